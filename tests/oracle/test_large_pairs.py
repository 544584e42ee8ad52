"""Pairs of networks as operators against matrices and enumeration."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from qertify.attack.gradient import forward
from qertify.bounds import difference, operate_real
from qertify.bounds.chords import first_multipliers, initial_multipliers
from qertify.bounds.difference import Joint, compile_difference
from qertify.bounds.dual import prove
from qertify.bounds.first_order import FirstOrder
from qertify.bounds.pairing import find_pairs
from qertify.network.network import Network
from qertify.network.real import RealNetwork
from qertify.options import Method, Options
from qertify.queries.equivalence import equivalence
from qertify.queries.equivalence_result import Equivalence
from qertify.search import equivalence as engine
from qertify.search.comparison import EquivalenceQuery, Judge
from qertify.search.difference_rows import DifferenceRows
from qertify.search.domains import root_domains
from qertify.search.paired_input import grid, interval
from tests.oracle.test_equivalence import _box, _pair, _truth

NONE = torch.zeros(0)


def _question(seed: int) -> EquivalenceQuery:
    left, right, generator = _pair(seed)
    if seed % 6 == 3:
        low = generator.uniform(-0.3, 0.2, size=right.input_shape)
        return EquivalenceQuery(left, right, interval(right, low, low + generator.uniform(0.01, 0.3, size=low.shape)))
    return EquivalenceQuery(left, right, grid(right, _box(generator, right)))


def _compiled(query: EquivalenceQuery, dense: bool) -> tuple[Joint, DifferenceRows]:
    left, right, box = query.original, query.quantized, query.inputs.box
    generator = np.random.default_rng(0)
    codes = generator.integers(right.input.low, right.input.high + 1, (24, *box.low.shape))
    real = isinstance(left, RealNetwork)
    pairs = find_pairs(left, right, query.inputs.stand_for(codes).astype(np.float64) if real else codes, codes)
    rows = DifferenceRows(left, right, query.outputs)
    return compile_difference(left, right, box, query.inputs.relation, pairs, rows, dense=dense), rows


def _points(joint: Joint, generator: torch.Generator) -> torch.Tensor:
    program = joint.program
    mix = torch.rand(20, len(program.input_low), generator=generator, dtype=torch.float64)
    return program.inside_box((program.input_low + mix * (program.input_high - program.input_low)).round())


def _outputs(joint: Joint, x: torch.Tensor) -> torch.Tensor:
    rows = list(joint.program.output_units().values())
    return forward(joint.program, x)[0][:, rows] * 2.0**-joint.output_bits


@pytest.mark.parametrize("seed", range(40))
def test_both_forms_compute_the_same_and_bound_it(seed: int) -> None:
    query = _question(seed)
    dense, operators = _compiled(query, True)[0], _compiled(query, False)[0]
    assert operators.program.operators is not None
    assert np.array_equal(dense.program.input_index, operators.program.input_index)
    for name in ("input_low", "input_high", "coupled_corners"):
        ours, theirs = getattr(operators.program, name), getattr(dense.program, name)
        assert torch.equal(NONE if ours is None else ours, NONE if theirs is None else theirs)
    x = _points(dense, torch.Generator().manual_seed(seed))
    scale = max(1.0, float(_outputs(dense, x).abs().max()))
    assert torch.allclose(_outputs(operators, x), _outputs(dense, x), atol=2e-3 * scale)
    z = forward(operators.program, x)[0]
    slack = 0.0 if operators.program.slack is None else 2 * operators.program.slack
    rows = operators.program.has_value > 0
    assert bool(((z >= operators.program.low - slack) & (z <= operators.program.high + slack))[:, rows].all())


@pytest.mark.parametrize("seed", range(40))
def test_bounds_hold_and_are_as_tight_as_with_matrices(seed: int) -> None:
    query = _question(seed)
    proved: list[float] = []
    for dense in (True, False):
        joint, rows = _compiled(query, dense)
        every = [(row, sign) for row in range(len(query.outputs)) for sign in (1, -1)]
        domains = root_domains(joint.program, rows.cases(dict.fromkeys(every, 0)))
        tries = [
            first_multipliers(joint.program, domains),
            torch.zeros_like(domains.low),
            initial_multipliers(joint.program, domains) * 3 + 1,
        ]
        if not dense:
            tries.append(FirstOrder(joint.program).relax(domains, 20).multipliers)
        bounds = [prove(joint.program, domains, multipliers).margin.tolist() for multipliers in tries]
        worst = [
            max(max(rows.difference(row, bound, joint.output_bits) for (row, _), bound in zip(every, found, strict=True)), 0)
            for found in bounds
            if np.all(np.isfinite(found))
        ]
        if query.inputs.is_grid:
            assert min(worst) >= _truth(query)[0]
        proved.append(float(min(worst)))
    assert proved[1] <= proved[0] * 1.15 + 1e-3


@pytest.mark.parametrize("seed", range(0, 36, 3))
def test_answers_are_those_of_enumeration(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference, "DENSE_LIMIT", -1)
    monkeypatch.setattr(engine, "ENUMERATION_LIMIT", 0)
    left, right, generator = _pair(seed)
    query = EquivalenceQuery(left, right, grid(right, _box(generator, right)))
    worst, agree = _truth(query)
    options = Options(timeout=1, seed=seed)
    answer = equivalence(query, replace(options, method=Method.BOUNDS))
    assert answer.max_delta is not None
    assert answer.max_delta[1] is not None
    assert Fraction(answer.max_delta[0]) <= worst <= Fraction(answer.max_delta[1])
    above = equivalence(replace(query, delta=worst * 2 + Fraction(1, 10)), options)
    assert above.verdict is not Equivalence.NOT_EQUIVALENT
    if worst > 0:
        below = equivalence(replace(query, delta=worst * Fraction(99, 100)), options)
        assert below.verdict is not Equivalence.EQUIVALENT
    if right.output_size > 1:
        same = equivalence(replace(query, top1=True), options)
        assert same.verdict in (Equivalence.UNKNOWN, Equivalence.EQUIVALENT if agree else Equivalence.NOT_EQUIVALENT)


@pytest.mark.parametrize("seed", [1, 4, 7, 10, 13, 16, 22, 28])
def test_values_with_too_many_bits_get_units_of_their_own(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Affine layers in a row, with little room: the second reads what a unit has divided."""
    monkeypatch.setattr(operate_real, "COMPACT_BITS", 20)
    monkeypatch.setattr(operate_real, "SUM_BITS", 34)
    query = _question(seed)
    joint, rows = _compiled(query, False)
    every = [(row, sign) for row in range(len(query.outputs)) for sign in (1, -1)]
    domains = root_domains(joint.program, rows.cases(dict.fromkeys(every, 0)))
    bounds = prove(joint.program, domains, first_multipliers(joint.program, domains)).margin.tolist()
    worst = max(rows.difference(row, bound, joint.output_bits) for (row, _), bound in zip(every, bounds, strict=True))
    truth, _ = _truth(query)
    assert worst >= truth
    plain = _compiled(query, True)[0]
    x = _points(joint, torch.Generator().manual_seed(seed))
    assert torch.allclose(_outputs(joint, x), _outputs(plain, x), atol=0.05 * float(1 + truth))


def test_two_quantized_networks_share_their_codes() -> None:
    query = _question(2)
    assert isinstance(query.original, Network)
    joint, _ = _compiled(query, False)
    judge = Judge(query)
    x = _points(joint, torch.Generator().manual_seed(1))
    points, codes = query.inputs.points(joint, x.numpy())
    left, right = judge.estimates(points, codes)
    unit = np.array([float(DifferenceRows(query.original, query.quantized, query.outputs).unit(i)) for i in query.outputs])
    assert np.allclose(_outputs(joint, x).numpy() * unit, left - right, atol=1e-4)
