"""The integer program of two networks against enumeration, on random pairs, and what its answers count for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from qertify.bounds.difference import Joint, compile_difference
from qertify.bounds.program import Program
from qertify.ilp.model import Status
from qertify.ilp.process import SolverProcesses
from qertify.network.network import Network
from qertify.options import Method, Options
from qertify.queries.equivalence import equivalence
from qertify.queries.equivalence_result import Equivalence
from qertify.result import Evidence, Reason
from qertify.search.comparison import EquivalenceQuery, Judge
from qertify.search.difference_rows import DifferenceRows
from qertify.search.equivalence_ilp import JointSolver, real_inputs
from qertify.search.paired_input import grid, interval
from qertify.search.program_ilp import convex_hull, encode_program
from tests.oracle.random_pairs import quantized_pair
from tests.oracle.test_equivalence import _box, _pair, _truth
from tests.solvers import needs

SLACK = Fraction(1, 500)
"""What fixed point may cost the small numbers of tiny networks, relatively."""
SOLVERS = [pytest.param("highs"), pytest.param("cp-sat"), pytest.param("scip", marks=needs("scip"))]


def _question(seed: int) -> tuple[EquivalenceQuery, Fraction, bool]:
    left, right, generator = _pair(seed)
    query = EquivalenceQuery(left, right, grid(right, _box(generator, right)))
    return query, *_truth(query)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(0, 24, 4))
def test_delta_is_decided_as_by_enumeration(seed: int, solver: str) -> None:
    query, worst, _ = _question(seed)
    options = Options(method=Method.ILP, solver=solver, timeout=30, seed=seed, coupled=seed % 8 == 0)
    above = equivalence(replace(query, delta=worst * (1 + SLACK) + Fraction(1, 100)), options)
    exact = solver == "cp-sat"
    assert above.verdict is (Equivalence.EQUIVALENT if exact or above.evidence else Equivalence.UNKNOWN)
    assert above.evidence is (Evidence.EXACT_SOLVER if exact else above.evidence)
    assert exact or above.evidence is Evidence.EXACT_SOLVER or above.reason is Reason.SOLVER_CLAIM
    if worst > 0:
        below = equivalence(replace(query, delta=worst * Fraction(99, 100)), options)
        assert below.verdict is Equivalence.NOT_EQUIVALENT
        assert below.counterexample is not None


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(1, 24, 5))
def test_greatest_difference(seed: int, solver: str) -> None:
    query, worst, _ = _question(seed)
    options = Options(method=Method.ILP, solver=solver, timeout=30, accept_solver_claims=True)
    answer = equivalence(query, options)
    assert answer.max_delta is not None
    assert answer.max_delta[1] is not None
    assert Fraction(answer.max_delta[0]) <= worst <= Fraction(answer.max_delta[1])
    assert Fraction(answer.max_delta[1]) <= worst * (1 + SLACK) + Fraction(1, 100)
    claimed = equivalence(query, replace(options, accept_solver_claims=False))
    assert claimed.max_delta is not None
    if solver != "cp-sat":
        assert claimed.max_delta[1] is None, "a claim is no bound"
        assert claimed.reason is Reason.SOLVER_CLAIM


@pytest.mark.parametrize("seed", range(18))
def test_same_class_is_decided_as_by_enumeration(seed: int) -> None:
    left, right, generator = _pair(seed)
    if right.output_size < 2:
        pytest.skip("one class")
    query = EquivalenceQuery(left, right, grid(right, _box(generator, right)), top1=True)
    _, agree = _truth(query)
    answer = equivalence(query, Options(method=Method.ILP, solver="cp-sat", timeout=20))
    assert answer.verdict in (Equivalence.UNKNOWN, Equivalence.EQUIVALENT if agree else Equivalence.NOT_EQUIVALENT)


def _joint(query: EquivalenceQuery) -> Joint:
    rows = DifferenceRows(query.original, query.quantized, query.outputs)
    return compile_difference(query.original, query.quantized, query.inputs.box, query.inputs.relation, (), rows)


@pytest.mark.parametrize("seed", range(10))
def test_no_real_input_is_lost(seed: int) -> None:
    """Real inputs, at the ends of the region above all, where codes and errors are coupled: their differences stay possible."""
    generator = np.random.default_rng(seed)
    left, right = quantized_pair(generator, 2, 2)
    low = generator.uniform(-0.3, 0.2, size=2)
    inputs = interval(right, low, low + generator.uniform(0.01, 0.3, size=2))
    query = EquivalenceQuery(left, right, inputs)
    answer = equivalence(query, Options(method=Method.ILP, solver="cp-sat", timeout=20))
    assert answer.max_delta is not None
    assert answer.max_delta[1] is not None
    assert inputs.low is not None
    assert inputs.high is not None
    x = generator.uniform(inputs.low, inputs.high, size=(5000, 2)).astype(np.float32)
    x = np.where(generator.random(x.shape) < 0.3, np.where(generator.random(x.shape) < 0.5, inputs.low, inputs.high), x)
    x = np.clip(x, inputs.low, inputs.high)
    own, other = Judge(query).estimates(x, inputs.quantize(x))
    reached = np.abs(own - other).max()
    assert reached <= answer.max_delta[1]
    assert answer.max_delta[1] <= reached * 1.5 + 0.05


@pytest.mark.parametrize("seed", range(0, 12, 3))
def test_leaves(seed: int) -> None:
    """Within the bounds of a domain the integer solver finds just what enumeration finds there."""
    query, worst, _ = _question(seed)
    joint = _joint(query)
    rows = DifferenceRows(query.original, query.quantized, query.outputs)
    program: Program = joint.program
    middle = torch.where(program.has_value > 0, (program.low + program.high).div(2).floor(), program.high)
    with SolverProcesses() as processes:
        solver = JointSolver(program, real_inputs(joint), Options(), processes, False, lambda _: None)
        for sign, factor in itertools.product((1, -1), (Fraction(1, 2), Fraction(2))):
            (case,) = rows.cases({(0, sign): rows.limit(0, worst * factor + Fraction(1, 10), joint.output_bits)})
            parts = [solver.leaf(case, low, high, None) for low, high in ((program.low, middle), (program.low, program.high))]
            assert parts[1] is not Status.INFEASIBLE or parts[0] is Status.INFEASIBLE
            if factor == 2:
                assert parts == [Status.INFEASIBLE] * 2
            assert encode_program(program, (case,), real_inputs(joint), coupled=False, low=program.high + 1) is None


def test_hulls() -> None:
    square = [(0, 0), (4, 0), (4, 4), (0, 4)]
    assert convex_hull([*square, (2, 2), (2, 0), (0, 0)]) == square
    assert convex_hull([(1, 1), (1, 1)]) == [(1, 1)]
    assert convex_hull([(0, 0), (1, 3), (2, 6)]) == [(0, 0), (2, 6)]


def test_two_quantized_networks_differ_by_a_planted_step() -> None:
    for seed in range(2, 14, 3):
        query, worst, _ = _question(seed)
        assert isinstance(query.original, Network)
        answer = equivalence(query, Options(method=Method.ILP, solver="cp-sat", timeout=20))
        assert answer.max_delta is not None
        assert answer.max_delta[1] is not None
        assert Fraction(answer.max_delta[0]) == worst
        assert Fraction(answer.max_delta[1]) <= worst + Fraction(1, 10**5)
