"""Disjunctions of linear constraints: every engine against exhaustive enumeration in rational arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from qertify.ilp.process import SolverProcesses
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.ranges import ranges
from qertify.network.tensor import QuantizationParameters
from qertify.options import Method, Options
from qertify.result import Evidence, Reason
from qertify.search import stages
from qertify.search.portfolio import decide
from qertify.specification.linear import Constraint, Disjunction, holds, lower, output_values, with_rows
from qertify.specification.orders import orders_of
from qertify.specification.region import IntegerBox
from tests.oracle.random_graphs import random_graph
from tests.oracle.random_networks import random_network
from tests.solvers import shared_solvers

COUNT = 120
SCALES = (1.0, 0.5, 0.1, float(np.float32(0.0123)), 3.0)


@pytest.fixture(scope="module", autouse=True)
def processes() -> Generator[SolverProcesses]:
    with shared_solvers() as children:
        yield children


def random_box(generator: np.random.Generator, network: Network) -> IntegerBox:
    ends = generator.integers(network.input.low, network.input.high + 1, size=(2, *network.input_shape))
    return IntegerBox(ends.min(axis=0), ends.max(axis=0))


def random_violation(generator: np.random.Generator, network: Network, box: IntegerBox) -> Disjunction:
    """Constraints through the outputs of a random input, moved a little: near the boundary more often than not."""
    samples = evaluate(network, generator.integers(box.low, box.high + 1, size=(60, *network.input_shape)))
    scale = Fraction(float(network.output_quantization.scale[0]))
    disjuncts: list[tuple[Constraint, ...]] = []
    for _ in range(int(generator.integers(1, 4))):
        constraints: list[Constraint] = []
        for _ in range(int(generator.integers(1, 5))):
            chosen = generator.permutation(network.output_size)[: int(generator.integers(1, 4))]
            factors = {
                int(i): Fraction(int(generator.choice([-2, -1, 1, 1, 3])), int(generator.integers(1, 4))) for i in chosen
            }
            reached = [sum(f * output_values(network, row)[i] for i, f in factors.items()) for row in samples]
            moved = sorted(reached)[int(generator.integers(3))] - scale * Fraction(int(generator.integers(-1, 2)), 2)
            constraints.append(Constraint(tuple(sorted(factors.items())), Fraction(moved), bool(generator.random() < 0.5)))
        disjuncts.append(tuple(constraints))
    return tuple(disjuncts)


def questions(seed: int, count: int, make=random_network):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        meaning = QuantizationParameters.of(SCALES[int(generator.integers(len(SCALES)))], int(generator.integers(-3, 4)))
        network = replace(make(generator), output_quantization=meaning)
        box = random_box(generator, network)
        if box.size <= 4096:
            yield network, box, random_violation(generator, network, box)


def truth(network: Network, box: IntegerBox, violation: Disjunction) -> bool:
    """By enumeration of the inputs, from the definition."""
    codes = np.unique(evaluate(network, box.points()), axis=0)
    return any(holds(violation, output_values(network, row)) for row in codes)


@pytest.mark.parametrize("method", [Method.AUTO, Method.BAB, Method.ATTACK, Method.BOUNDS])
def test_engines_agree_with_enumeration(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "ENUMERATION_LIMIT", 0)
    seen: Counter[str] = Counter()
    count = COUNT // 3 if method is Method.ATTACK else COUNT  # it searches on wherever there is nothing to find
    for number, (network, box, violation) in enumerate(questions(list(Method).index(method), count)):
        check(network, box, violation, Options(method=method, seed=number), seen)
    print(method, dict(seen))
    assert seen["sat" if method is not Method.BOUNDS else "unsat"] > count // 10
    assert seen["unsat" if method is not Method.ATTACK else "sat"] > count // 10
    if method in (Method.AUTO, Method.BAB):
        assert seen["open"] == 0


@pytest.mark.parametrize("solver", ["highs", "cp-sat"])
def test_integer_programs_agree_with_enumeration(solver: str) -> None:
    seen: Counter[str] = Counter()
    for number, (network, box, violation) in enumerate(questions(40, 45)):
        check(network, box, violation, Options(method=Method.ILP, solver=solver, seed=number), seen)
    print(solver, dict(seen))
    assert seen["sat"] > 5
    assert seen["unsat" if solver == "cp-sat" else "claim"] > 5
    assert seen["open"] == 0


def test_graphs_of_every_node_kind_agree_with_enumeration() -> None:
    seen: Counter[str] = Counter()
    for number, (network, box, violation) in enumerate(questions(50, 150, random_graph)):
        check(network, box, violation, Options(method=Method.BAB, seed=number, timeout=1), seen)
    print(dict(seen))
    assert seen["sat"] > 10
    assert seen["unsat"] > 10


def check(network: Network, box: IntegerBox, violation: Disjunction, options: Options, seen: Counter[str]) -> None:
    """Decide one question as the query does, and compare."""
    known = ranges(network, box.low[None], box.high[None])[network.output.name]
    lowered = lower(network, violation, known)
    expected = truth(network, box, violation)
    if lowered.always or not lowered.property.boxes:
        assert expected == lowered.always
        seen["trivial"] += 1
        return
    extended = with_rows(network, lowered.rows)
    points = box.points()
    rows = evaluate(extended, points)
    codes = evaluate(network, points)
    for row in range(0, len(points), max(1, len(points) // 16)):
        assert bool(lowered.property.violated(rows[row : row + 1])[0]) == holds(violation, output_values(network, codes[row]))
    decision = decide(extended, box, lowered.property, options, deadline=None)
    if decision.counterexample is not None:
        found = decision.counterexample.reshape(1, *network.input_shape)
        assert box.contains(found)[0]
        assert holds(violation, output_values(network, evaluate(network, found)[0]))
        seen["sat"] += 1
    elif decision.evidence is Evidence.SOLVER_CLAIM:
        assert not expected
        seen["claim"] += 1
    elif decision.evidence is not None:
        assert not expected, decision.evidence
        seen["unsat"] += 1
    else:
        assert decision.reason in (Reason.UNSUPPORTED, Reason.TIMEOUT)
        seen["open"] += 1


def random_order(generator: np.random.Generator, network: Network, box: IntegerBox) -> Disjunction:
    """One output above, below or near others by about what inputs attain, perhaps bounded as well; strict or not."""
    scale = Fraction(float(network.output_quantization.scale[0]))
    inputs = generator.integers(box.low, box.high + 1, size=(20, *network.input_shape))
    samples = [output_values(network, row) for row in evaluate(network, inputs)]
    disjuncts: list[tuple[Constraint, ...]] = []
    for _ in range(int(generator.integers(1, 4))):
        centre, *others = generator.permutation(network.output_size).tolist()
        constraints: list[Constraint] = []
        for other in others[: int(generator.integers(0, len(others) + 1))]:
            sign = int(generator.choice([-1, 1]))
            factors = tuple(sorted([(centre, Fraction(sign)), (other, Fraction(-sign))]))
            attained = min(sum(factor * sample[index] for index, factor in factors) for sample in samples)
            bound = Fraction(attained) + scale * int(generator.integers(-2, 1)) if generator.random() < 0.7 else Fraction(0)
            constraints.append(Constraint(factors, bound, bool(generator.random() < 0.5)))
        if generator.random() < 0.5 or not constraints:
            index, sign = int(generator.integers(network.output_size)), int(generator.choice([-1, 1]))
            bound = min(sign * sample[index] for sample in samples) + scale * int(generator.integers(-1, 2))
            constraints.append(Constraint(((index, Fraction(sign)),), bound, False))
        disjuncts.append(tuple(constraints))
    return tuple(disjuncts)


@pytest.mark.parametrize("method", [Method.BAB, Method.ILP])
@pytest.mark.parametrize("make", [random_network, random_graph])
def test_orders_agree_with_enumeration(method: Method, make: Callable[..., Network], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "ENUMERATION_LIMIT", 0)
    seen: Counter[str] = Counter()
    generator = np.random.default_rng(60)
    for number, (network, box, _) in enumerate(questions(60, 150 if method is Method.BAB else 40, make)):
        violation = random_order(generator, network, box)
        known = ranges(network, box.low[None], box.high[None])[network.output.name]
        lowered = lower(network, violation, known)
        if lowered.always or not lowered.property.boxes or (orders := orders_of(network, lowered)) is None:
            continue
        codes = evaluate(network, box.points())
        found = [holds(violation, output_values(network, row)) for row in np.unique(codes, axis=0)]
        assert orders.violated(np.unique(codes, axis=0)).tolist() == found
        decision = decide(network, box, orders, Options(method=method, solver="cp-sat", seed=number, timeout=5), deadline=None)
        assert decision.settled
        assert (decision.counterexample is not None) == any(found), decision.evidence
        seen["sat" if any(found) else "unsat"] += 1
    print(dict(seen))
    assert seen["sat"] > 3
    assert seen["unsat"] > 0 or method is Method.ILP
