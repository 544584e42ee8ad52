"""Multipliers, ranges and whole decisions of the form for large networks, on networks small enough to enumerate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qertify.bounds import refine as refine_module
from qertify.bounds.chords import initial_multipliers
from qertify.bounds.dual import Domains, prove
from qertify.bounds.first_order import FirstOrder
from qertify.bounds.operate import compile_operators
from qertify.bounds.program import Program
from qertify.bounds.refine import refine
from qertify.bounds.relaxers import relax_parts
from qertify.network.evaluate import evaluate, evaluate_nodes
from qertify.network.network import Network
from qertify.network.ranges import Range, ranges
from qertify.network.tensor import IntegerArray
from qertify.options import Method, Options
from qertify.search import stages
from qertify.search.domains import root_domains
from qertify.search.portfolio import decide
from qertify.specification.property import Classification
from qertify.specification.region import IntegerBox
from qertify.specification.splitting import splitter_of
from tests.oracle.random_graphs import random_graph

NETWORKS = 120
PER_TEST = 40


def _question(seed: int) -> tuple[Network, IntegerBox, Classification, dict[str, Range], IntegerArray]:
    """A random network, a box, the property that the centre's class wins, ranges, and all points of the box."""
    generator = np.random.default_rng(seed)
    network = random_graph(generator)
    low = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
    box = IntegerBox(low, np.minimum(low + generator.integers(0, 3, size=low.shape), network.input.high))
    label = int(evaluate(network, box.low[None])[0].argmax())
    points = box.points() if box.size <= 1 << 12 else box.low + np.random.default_rng(seed).integers(
        0, 2, size=(1 << 12, *box.low.shape)
    ) * (box.high - box.low)  # fmt: skip
    return network, box, Classification(label), ranges(network, box.low[None], box.high[None]), points


def _program(seed: int) -> tuple[Network, Program, dict[str, Range], IntegerArray]:
    network, box, property_, known, points = _question(seed)
    splitter = splitter_of(network, property_, known)
    return network, compile_operators(network, box, known, splitter.view, tuple(range(network.output_size))), known, points


@pytest.mark.parametrize("start", range(0, NETWORKS, PER_TEST))
def test_refined_ranges_contain_every_point(monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    monkeypatch.setattr(refine_module, "FLAT", -1e9)  # bound every unit, not only those that promise most
    tighter = 0
    for seed in range(start, start + PER_TEST):
        network, program, known, points = _program(seed)
        refined = refine(network, known, program)
        for name, values in evaluate_nodes(network, points).items():
            low, high = refined[name]
            assert bool((values >= low).all() and (values <= high).all()), f"seed {seed}: {name}"
            assert bool((low >= known[name][0]).all() and (high <= known[name][1]).all())
            tighter += int((high - low).sum() < (known[name][1] - known[name][0]).sum())
        late = refine(network, known, program, late=lambda: True)
        assert all(bool((late[name][0] <= refined[name][0]).all()) for name in refined)
    assert tighter


@pytest.mark.parametrize("start", range(0, NETWORKS, PER_TEST))
def test_first_order_bounds_hold_and_are_better_than_chords(start: int) -> None:
    better, worse = 0, 0
    for seed in range(start, start + PER_TEST):
        network, box, property_, known, points = _question(seed)
        splitter = splitter_of(network, property_, known)
        cases = splitter.cases()
        if not cases:
            continue
        program = compile_operators(network, box, known, splitter.view, tuple(range(network.output_size)))
        domains = root_domains(program, cases)
        values = evaluate_nodes(network, points)[splitter.view.node].reshape(len(points), -1)
        outputs = torch.from_numpy(values[:, splitter.view.element].astype(np.float64))
        first = len(program.units) - network.output_size
        inside = (outputs >= domains.low[:, None, first:]) & (outputs <= domains.high[:, None, first:])
        reached = torch.where(inside.all(-1), domains.objective[:, first:] @ outputs.T, torch.inf).amin(-1)
        relaxer = FirstOrder(program)
        for multipliers in (relaxer.relax(domains).multipliers, relaxer.relax(domains).multipliers):
            margin = prove(program, domains, multipliers).margin
            assert bool((margin + domains.limit + 1 <= reached).all()), f"seed {seed}"
        chords = prove(program, domains, initial_multipliers(program, domains)).margin
        undecided = chords < 0
        better += int((margin > chords)[undecided].sum())
        worse += int((margin < chords)[undecided].sum())
    assert better > 2 * worse


def test_what_domains_share_changes_no_bound_and_no_bound_is_overstated() -> None:
    """Ranges in common, one row of them for all objectives, against a copy a domain; and against the exact evaluation."""
    compared = 0
    for seed in range(PER_TEST // 3):
        network, box, property_, known, _ = _question(seed)
        splitter = splitter_of(network, property_, known)
        if not splitter.cases():
            continue
        program = compile_operators(network, box, known, splitter.view, tuple(range(network.output_size)))
        count, outputs = 2 * network.output_size, network.output_size
        objective = torch.zeros(count, len(program.units), dtype=torch.float64)
        objective[:, -outputs:] = torch.cat([torch.eye(outputs), -torch.eye(outputs)]).double()
        low, high = (bound.expand(count, -1) for bound in (program.low, program.high))
        limit = torch.full((count,), 1e6, dtype=torch.float64)  # never enough
        shared, copied = Domains(low, high, objective, limit), Domains(low.clone(), high.clone(), objective, limit)
        for steps in (0, 8):
            found = FirstOrder(program).relax(shared, steps)
            assert torch.allclose(found.bound, FirstOrder(program).relax(copied, steps).bound, rtol=1e-4, atol=0.1), (
                f"seed {seed}"
            )
            exact = prove(program, replace(shared, limit=torch.zeros_like(limit)), found.multipliers).margin + 1
            assert bool((found.bound <= exact + 1e-4 * exact.abs() + 0.1)[exact.isfinite()].all()), f"seed {seed}"
            compared += int(exact.isfinite().sum())
    assert compared > 20


def test_a_search_goes_on_from_the_slopes_of_another() -> None:
    """As good as where the other ended, without a step."""
    gained = 0
    for seed in range(PER_TEST):
        network, box, property_, known, _ = _question(seed)
        splitter = splitter_of(network, property_, known)
        if not splitter.cases():
            continue
        program = compile_operators(network, box, known, splitter.view, tuple(range(network.output_size)))
        domains = root_domains(program, splitter.cases())
        domains = replace(domains, limit=torch.full_like(domains.limit, 1e9))  # never enough
        found = FirstOrder(program).relax(domains, 40)
        chords = FirstOrder(program).relax(domains, 0)
        again = FirstOrder(program).relax(domains, 0, found.slopes)
        rounding = 0.01 * (found.bound - chords.bound).abs() + 1e-2 * found.bound.abs() + 1
        assert bool((again.bound >= found.bound - rounding).all()), f"seed {seed}"
        gained += int((again.bound > chords.bound + rounding).sum())
        parts = relax_parts(FirstOrder(program), domains, [None, *(found.slopes[1:] if found.slopes is not None else ())])
        assert parts.bound.isfinite().all()
    assert gained > 5


@pytest.mark.parametrize("matrices", [0, 1600])
@pytest.mark.parametrize("start", [200, 240])
def test_decisions_agree_with_enumeration(monkeypatch: pytest.MonkeyPatch, start: int, matrices: int) -> None:
    """The whole path of large networks: attack, refined ranges, first-order bounds, and the search on either form."""
    monkeypatch.setattr(stages, "OPERATORS_ABOVE", 0)
    monkeypatch.setattr(stages, "MATRICES_UP_TO", matrices)
    verdicts = {True: 0, False: 0}
    for seed in range(start, start + 40):
        network, box, property_, _, points = _question(seed)
        if box.size != len(points):
            continue
        robust = not property_.violated(evaluate(network, points)).any()
        for method in (Method.BAB, Method.BOUNDS):
            found = decide(network, box, property_, Options(method=method))
            if method is Method.BAB:
                assert found.settled, f"seed {seed}"
            assert found.evidence is None or robust, f"seed {seed}"
            assert found.counterexample is None or not robust, f"seed {seed}"
        verdicts[robust] += 1
    assert min(verdicts.values()) > 3
