"""The integer programs against exhaustive enumeration, with every solver in one long-lived child process each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from qertify.ilp.engine import IlpAnswer, IlpEngine, decide, engine_for
from qertify.ilp.model import Status
from qertify.ilp.process import SolverProcesses
from qertify.ilp.solvers import EXACT_SOLVERS
from qertify.ilp.steps import ENCODINGS
from qertify.network.evaluate import evaluate, evaluate_nodes
from qertify.network.network import Network
from qertify.network.nodes import NODE_KINDS, Dense, Staircase
from qertify.network.ranges import full_range, ranges
from qertify.network.staircase import Steps
from qertify.network.tensor import IntegerArray, as_integers
from qertify.specification.property import Classification, Ties
from qertify.specification.region import IntegerBox, linf_ball
from tests.data import images, published_network, shared_data
from tests.oracle.random_graphs import random_graph
from tests.oracle.random_networks import random_network, violated_somewhere
from tests.solvers import ALL, needs

LIMIT = 30.0
LARGEST = 4096


@pytest.fixture(scope="module")
def processes() -> Iterator[SolverProcesses]:
    with SolverProcesses() as children:
        yield children


def _question(generator: np.random.Generator, network: Network) -> tuple[IntegerBox, Classification]:
    """A ball around a random centre, of at most LARGEST points, and a property that mostly holds at the centre."""
    low, high = network.input.low, network.input.high
    centre = generator.integers(low, high + 1, size=network.input_shape)
    radius = int(generator.integers(0, 4))
    while (box := linf_ball(centre, radius, low, high)).size > LARGEST:
        radius -= 1
    ties = list(Ties)[int(generator.integers(3))]
    label = int(ties.predicted(evaluate(network, centre[None]))[0])
    others = [j for j in range(network.output_size) if j != label]
    target = int(generator.choice(others)) if generator.random() < 0.3 else None
    return box, Classification(label, target, ties)


def _check(engine: IlpEngine, answer: IlpAnswer, solver: str, truth: bool, what: str) -> None:
    """The answer is the truth, its counterexample is one, and its exactness is what the solver can give."""
    assert answer.status is (Status.FEASIBLE if truth else Status.INFEASIBLE), (what, answer)
    if answer.counterexample is not None:
        assert engine.box.contains(answer.counterexample[None])[0]
        assert engine.property.violated(evaluate(engine.network, answer.counterexample[None]))[0]
    elif answer.solvers:
        assert answer.exact == (solver in EXACT_SOLVERS)


@pytest.mark.parametrize(
    ("solver", "encoding", "count"),
    [
        ("highs", "compact", 400),
        ("cp-sat", "compact", 400),
        ("highs", "one-hot", 200),
        ("cp-sat", "one-hot", 300),
        pytest.param("scip", "compact", 150, marks=needs("scip")),
        pytest.param("scip", "one-hot", 150, marks=needs("scip")),
        pytest.param("gurobi", "compact", 250, marks=needs("gurobi")),
        pytest.param("gurobi", "one-hot", 250, marks=needs("gurobi")),
    ],
)
@pytest.mark.parametrize("make", [random_network, random_graph])
def test_agrees_with_enumeration(processes: SolverProcesses, solver: str, encoding: str, count: int, make) -> None:
    generator, seen, kinds = np.random.default_rng(count), Counter(), Counter()
    for number in range(count):
        network = make(generator)
        box, property_ = _question(generator, network)
        engine = engine_for(network, box, property_, processes, seed=number, encoding=encoding)
        answer = engine.decide(engine.splitter.cases(), solver, time.monotonic() + LIMIT)
        truth = violated_somewhere(network, box, property_)
        _check(engine, answer, solver, truth, f"network {number}")
        seen[truth, bool(answer.solvers)] += 1
        if answer.solvers:
            kinds.update({type(node) for node in network.nodes})
    assert seen[True, True] > count // 10, seen
    assert seen[False, True] > count // 40, seen
    if make is random_graph and count >= 400:
        assert all(kinds[kind] > 3 for kind in NODE_KINDS), kinds


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("make", [random_network, random_graph])
def test_all_cases_in_one_program(processes: SolverProcesses, encoding: str, make) -> None:
    """The program in which any of the cases holds, with and without interval arithmetic over the box."""
    generator, seen = np.random.default_rng(21), Counter()
    for number in range(250):
        network = make(generator)
        box, property_ = _question(generator, network)
        known = ranges(network, *full_range(network)) if number % 2 else None
        engine = replace(engine_for(network, box, property_, processes, known, encoding=encoding), propagate=known is None)
        cases = engine.splitter.cases()
        program = engine.encode(cases)
        truth = violated_somewhere(network, box, property_)
        if program is None:
            assert not truth
            continue
        answer = engine.solve(program.program, "cp-sat", None)
        assert answer.status is (Status.FEASIBLE if truth else Status.INFEASIBLE), number
        if answer.values is not None:
            assert engine.replay(program, answer.values) is not None
        seen[truth, len(cases) > 1] += 1
    assert min(seen.values()) > 10, seen
    assert len(seen) == 4


@pytest.mark.parametrize("make", [random_network, random_graph])
def test_extra_bounds_and_parts_of_cases(processes: SolverProcesses, make) -> None:
    """With bounds on accumulators, and for halves and single levels of cases, the program means exactly its points."""
    generator, seen = np.random.default_rng(8), Counter()
    for number in range(450):
        network = make(generator)
        box, property_ = _question(generator, network)
        engine = engine_for(network, box, property_, processes)
        points = evaluate_nodes(network, box.points())
        inside = np.ones(box.size, dtype=bool)
        bounds: dict[str, tuple[IntegerArray, IntegerArray]] = {}
        for node in network.nodes:
            if isinstance(node, Staircase) and generator.random() < 0.7:
                values = points[node.inputs[0]].reshape(box.size, -1)
                picked = np.sort(values[generator.integers(box.size, size=2)], axis=0)
                widened = generator.random(values.shape[1]) < 0.5
                low = np.where(widened, values.min(axis=0), picked[0])
                bounds[node.inputs[0]] = low, picked[1]
                inside &= np.all((values >= low) & (values <= picked[1]), axis=1)
        accumulators = points[engine.splitter.view.node].reshape(box.size, -1)[:, engine.splitter.view.element]
        for case in engine.splitter.cases():
            parts = [case] if case.single else [case, *engine.splitter.bisect(case)]
            for part in parts:
                truth = np.zeros(box.size, dtype=bool)
                for level in engine.splitter.levels(part):
                    hit = np.all([accumulators[:, j] <= bound for j, bound in level.upper] + [inside], axis=0)
                    hit &= np.all([accumulators[:, j] >= bound for j, bound in level.lower] + [inside], axis=0)
                    weight = sum((w * accumulators[:, j] for j, w in level.weights), np.zeros(box.size, dtype=np.int64))
                    truth |= hit & (weight <= level.limit)
                assert not np.any(truth & ~property_.violated(points[network.output.name].reshape(box.size, -1)))
                answer = engine.decide_case(part, "cp-sat", time.monotonic() + LIMIT, bounds)
                _check(engine, answer, "cp-sat", bool(truth.any()), f"network {number}, {part}")
                seen[bool(truth.any()), bool(answer.solvers)] += 1
    assert min(seen[True, True], seen[False, True]) > 10, seen


def test_a_threshold_moved_by_one_is_noticed(processes: SolverProcesses) -> None:
    """The encoding of a network with one threshold moved must differ from the truth of the unmoved one somewhere."""
    generator, wrong, noticed = np.random.default_rng(4), 0, 0
    for _ in range(250):
        network = random_network(generator, uneven=True)
        stair = next((node for node in network.nodes if isinstance(node, Staircase)), None)
        if stair is None:
            continue
        thresholds = stair.steps.thresholds.copy()
        thresholds[0, generator.integers(thresholds.shape[1]) :] += 1
        moved = replace(stair, steps=Steps(as_integers(thresholds), stair.steps.low))
        damaged = replace(network, nodes=tuple(moved if node is stair else node for node in network.nodes))
        box, property_ = _question(generator, network)
        truth, other = (violated_somewhere(one, box, property_) for one in (network, damaged))
        engine = engine_for(damaged, box, property_, processes)
        answer = engine.decide(engine.splitter.cases(), "cp-sat", time.monotonic() + LIMIT)
        wrong += truth != other
        noticed += truth != (answer.status is Status.FEASIBLE)
    assert wrong == noticed > 0


def test_a_wrong_encoding_never_makes_a_counterexample(processes: SolverProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of a program that belongs to another network are dropped by the replay; they make no verdict either way."""
    generator, dropped = np.random.default_rng(5), 0
    for _ in range(60):
        network = random_network(generator)
        box, property_ = _question(generator, network)
        first = next(node for node in network.nodes if isinstance(node, Dense))
        other = replace(first, bias=as_integers(first.bias + generator.integers(-30, 31, size=first.bias.shape)))
        damaged = replace(network, nodes=tuple(other if node is first else node for node in network.nodes))
        engine = engine_for(damaged, box, property_, processes)
        for case in engine.splitter.cases():
            expected = engine.decide_case(case, "cp-sat", None)
            for solver in ("highs", "cp-sat"):
                with monkeypatch.context() as patch:
                    patch.setattr("qertify.specification.judge.evaluate", lambda _, codes, true=network: evaluate(true, codes))
                    answer = engine.decide_case(case, solver, None)
                if answer.counterexample is not None:
                    assert property_.violated(evaluate(network, answer.counterexample[None]))[0]
                else:
                    assert answer.status is (Status.FAILED if expected.status is Status.FEASIBLE else Status.INFEASIBLE)
                    dropped += answer.status is Status.FAILED
    assert dropped > 5


@pytest.mark.parametrize("solver", ALL)
def test_one_call_decides_a_point_box(solver: str) -> None:
    network = random_network(np.random.default_rng(0))
    centre = np.zeros(network.input_shape, dtype=np.int64)
    label = int(Ties.FIRST.predicted(evaluate(network, centre[None]))[0])
    answer = decide(network, IntegerBox(centre, centre), Classification(label), solver, None)
    assert answer.status is Status.INFEASIBLE
    assert answer.exact


@pytest.mark.parametrize("solver", ALL)
def test_no_time_is_no_answer(solver: str) -> None:
    generator = np.random.default_rng(1)
    undecided = 0
    for _ in range(40):
        network = random_network(generator)
        box, property_ = _question(generator, network)
        answer = decide(network, box, property_, solver, time.monotonic() - 1)
        assert answer.status in (Status.LIMIT, Status.INFEASIBLE)
        assert answer.status is not Status.INFEASIBLE or not violated_somewhere(network, box, property_)
        undecided += answer.status is Status.LIMIT
        assert (answer.status is Status.LIMIT) == bool(answer.open)
    assert undecided > 5


@pytest.mark.skipif(shared_data() is None, reason="needs the data folder (QERTIFY_DATA)")
@pytest.mark.parametrize(
    ("solver", "bits", "sample", "radius", "competitors", "status"),
    [
        ("cp-sat", 4, 172, 2, range(10), Status.INFEASIBLE),
        ("highs", 4, 172, 2, range(10), Status.INFEASIBLE),
        ("highs", 4, 308, 4, [8, None], Status.INFEASIBLE),
        ("highs", 6, 1722, 10, [4], Status.FEASIBLE),
        ("highs", 4, 1032, 1, [8], Status.FEASIBLE),
    ],
)
def test_published_tasks(
    processes: SolverProcesses, solver: str, bits: int, sample: int, radius: int, competitors, status: Status
) -> None:
    network = published_network(f"mnist_1blk_64_in_8_qu_{bits}.h5")
    pixels, labels = images("mnist")
    box = linf_ball(pixels[sample], radius, network.input.low, network.input.high)
    engine = engine_for(network, box, Classification(int(labels[sample])), processes)
    cases = [case for case in engine.splitter.cases() if case.competitor in competitors]
    assert cases
    assert engine.decide(cases, solver, time.monotonic() + LIMIT).status is status
