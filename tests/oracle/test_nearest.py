"""The radius as one integer program against enumeration and against the search, with every solver and encoding."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from functools import cache, partial

import numpy as np
import pytest

from qertify.errors import ReplayError
from qertify.ilp.engine import engine_for
from qertify.ilp.model import Program, SolverAnswer, Status
from qertify.ilp.nearest import nearest_violation
from qertify.ilp.process import SolverProcesses
from qertify.ilp.solvers import EXACT_SOLVERS
from qertify.ilp.steps import ENCODINGS
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.options import Method, Options
from qertify.queries.radius import maximum_radius
from qertify.queries.radius_result import RadiusResult
from qertify.queries.radius_search import RadiusSearch
from qertify.result import Counterexample, Evidence, Reason, Result, Verdict
from qertify.search.question import Decision
from qertify.specification.property import Classification, Ties
from qertify.specification.region import linf_ball
from tests.data import images, published_network, shared_data
from tests.oracle.random_graphs import random_graph
from tests.oracle.random_networks import random_network
from tests.oracle.test_enclosures import every_output, small_questions
from tests.solvers import ALL, shared_solvers

LARGEST = 5000


@pytest.fixture(scope="module", autouse=True)
def processes() -> Generator[SolverProcesses]:
    with shared_solvers() as children:
        yield children


def _truth(network: Network, centre: IntegerArray, property_: Classification, greatest: int) -> int | None:
    """The least distance of a violation, by enumeration."""
    points = linf_ball(centre, greatest, network.input.low, network.input.high).points()
    bad = points[property_.violated(evaluate(network, points))]
    return int(np.abs(bad - centre).reshape(len(bad), -1).max(axis=1).min()) if len(bad) else None


def _question(generator: np.random.Generator, make) -> tuple[Network, IntegerArray, Classification, int]:
    """A network, a centre that it classifies by the property, and a radius whose ball can be enumerated."""
    while True:
        network = make(generator)
        low, high = network.input.low, network.input.high
        centre = generator.integers(low, high + 1, size=network.input_shape)
        ties = list(Ties)[int(generator.integers(3))]
        outputs = evaluate(network, centre[None])
        property_ = Classification(int(ties.predicted(outputs)[0]), None, ties)
        greatest = int(generator.integers(1, 4)) if make is random_graph else high - low
        while linf_ball(centre, greatest, low, high).size > LARGEST:
            greatest -= 1
        if not property_.violated(outputs)[0] and greatest > 0:
            return network, centre, property_, greatest


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize("make", [random_network, random_graph])
def test_one_program_agrees_with_enumeration(processes: SolverProcesses, solver: str, encoding: str, make) -> None:
    generator, seen = np.random.default_rng(31), Counter[tuple[bool, bool]]()
    for number in range(60):
        network, centre, property_, greatest = _question(generator, make)
        box = linf_ball(centre, greatest, network.input.low, network.input.high)
        engine = engine_for(network, box, property_, processes, seed=number, encoding=encoding)
        answer = nearest_violation(engine, centre, 1, greatest, solver, time.monotonic() + 30)
        truth = _truth(network, centre, property_, greatest)
        assert answer.free == (greatest if truth is None else truth - 1), number
        assert answer.exact == (solver in EXACT_SOLVERS or not answer.solver)
        if truth is not None:
            assert answer.counterexample is not None
            assert property_.violated(evaluate(network, answer.counterexample[None]))[0]
            assert np.abs(answer.counterexample - centre).max() == truth
        seen[truth is None, bool(answer.solver)] += 1
    assert min(seen[False, True], seen[True, True]) > 3, seen


@cache
def searched() -> list[tuple[Network, IntegerArray, Ties, RadiusResult]]:
    """Questions with their radii as found without integer programs alone."""
    generator = np.random.default_rng(13)
    found: list[tuple[Network, IntegerArray, Ties, RadiusResult]] = []
    for _ in range(3):
        network, centre, property_, _ = _question(generator, random_network)
        found.append((network, centre, property_.ties, maximum_radius(network, centre, ties=property_.ties)))
    return found


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("solver", ALL)
def test_the_radius_agrees_with_the_search(solver: str, encoding: str) -> None:
    for number, (network, centre, ties, other) in enumerate(searched()):
        options = Options(method=Method.ILP, solver=solver, encoding=encoding, seed=number)
        result = maximum_radius(network, centre, ties=ties, options=options)
        assert result.exact
        assert (result.verified_radius, result.refuted_radius) == (other.verified_radius, other.refuted_radius)
        assert result.evidence in (Evidence.EXACT_SOLVER, Evidence.EXACT_BOUNDS, None)
        assert RadiusResult.from_json(result.to_json()) == result


def test_every_verified_radius_is_handed_on_where_decisions_are_wanted() -> None:
    """A certificate is written from decisions, so then the radii are decided one by one."""
    generator, kept = np.random.default_rng(17), 0
    for _ in range(5):
        network, centre, property_, _ = _question(generator, random_network)
        decisions: dict[int, Decision] = {}
        options = Options(method=Method.ILP, solver="cp-sat")
        result = maximum_radius(
            network, centre, ties=property_.ties, options=options, decided=lambda r, d, to=decisions: to.update({r: d})
        )
        assert result.exact
        assert result.verified_radius is not None
        if result.verified_radius > 0:
            assert decisions[result.verified_radius].evidence is not None
            kept += 1
    assert kept > 1


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_enclosures_are_free_of_what_no_runtime_does(processes: SolverProcesses, encoding: str) -> None:
    """The distance proved free is the greatest at which no choice of values between the staircases violates the property."""
    seen = Counter[bool]()
    for seed, query in small_questions(range(400, 640)):
        by_distance = np.abs(query.region.points() - query.centre).reshape(query.region.size, -1).max(axis=1)
        possible = [
            query.property.violated(np.array(sorted(every_output(query.network, x)))).any() for x in query.region.points()
        ]
        nearest = by_distance[possible].min(initial=query.radius + 1)
        if nearest == 0 or query.radius == 0:
            continue
        engine = engine_for(query.network, query.region, query.property, processes, encoding=encoding)
        answer = nearest_violation(engine, query.centre, 1, int(query.radius), "cp-sat", None)
        assert (answer.free, answer.exact, answer.counterexample) == (nearest - 1, True, None), seed
        seen[nearest <= query.radius] += 1
    assert min(seen[True], seen[False]) > 5, seen


def _liar(status: Status):
    """A floating-point solver that answers everything alike, beside an integer solver that has no time."""

    def solve(_: SolverProcesses, solver: str, program: Program, *rest: object) -> SolverAnswer:
        if solver in EXACT_SOLVERS:
            return SolverAnswer(Status.LIMIT, reason="no time left")
        feasible = status is Status.FEASIBLE
        return SolverAnswer(status, program.low.copy() if feasible else None, optimal=feasible)

    return solve


@pytest.mark.parametrize("status", [Status.INFEASIBLE, Status.FEASIBLE])
def test_claims_of_a_floating_point_solver_prove_nothing(monkeypatch: pytest.MonkeyPatch, status: Status) -> None:
    """A solver that claims infeasibility, or an optimum whose point is none, moves neither bound; on request it does."""
    generator, claims = np.random.default_rng(2), 0
    for _ in range(22):
        network, centre, property_, _ = _question(generator, random_network)
        truth = maximum_radius(network, centre, ties=property_.ties)
        assert truth.verified_radius is not None
        with monkeypatch.context() as patch:
            patch.setattr("qertify.ilp.process.SolverProcesses.solve", _liar(status))
            claimed = maximum_radius(
                network, centre, ties=property_.ties, options=Options(method=Method.ILP, solver="highs", timeout=5)
            )
            assert claimed.verified_radius is not None
            assert claimed.verified_radius <= truth.verified_radius
            assert claimed.evidence is not Evidence.SOLVER_CLAIM
            assert claimed.refuted_radius is None or truth.refuted_radius is not None
            assert (claimed.refuted_radius or 1 << 30) >= (truth.refuted_radius or 1 << 30)
            if claimed.reason is Reason.SOLVER_CLAIM:
                claims += 1
                accepted = maximum_radius(
                    network,
                    centre,
                    ties=property_.ties,
                    options=Options(method=Method.ILP, solver="highs", timeout=5, accept_solver_claims=True),
                )
                assert accepted.exact
                assert accepted.evidence is Evidence.SOLVER_CLAIM
    assert claims > 1 or status is Status.FEASIBLE


def test_an_accepted_claim_that_is_refuted_is_withdrawn() -> None:
    """Radius 3 is claimed to be robust, then a counterexample at distance 2 turns up: nothing but the centre is verified."""
    answer = partial(Result, "", "", label=0, radius="", radius_unit="levels", seconds=0.0, method="ilp")
    claim = answer(verdict=Verdict.ROBUST, evidence=Evidence.SOLVER_CLAIM)
    found = answer(verdict=Verdict.NON_ROBUST, counterexample=Counterexample((), (), 1, 2))
    answers = {3: claim, 5: found}
    search = RadiusSearch(
        lambda radius, _: answers[radius], lambda found: found.distance, Options(accept_solver_claims=True), 9
    )
    search.decide(3, Method.ILP, None)
    assert (search.verified, search.evidence) == (3, Evidence.SOLVER_CLAIM)
    search.decide(5, Method.ILP, None)
    assert (search.verified, search.refuted, search.evidence) == (0, 2, None)


def test_a_proof_that_is_refuted_is_no_answer() -> None:
    answer = partial(Result, "", "", label=0, radius="", radius_unit="levels", seconds=0.0, method="bab")
    proof = answer(verdict=Verdict.ROBUST, evidence=Evidence.EXACT_SEARCH)
    found = answer(verdict=Verdict.NON_ROBUST, counterexample=Counterexample((), (), 1, 3))
    for order in ((3, 5), (5, 3)):
        search = RadiusSearch(lambda radius, _: {3: proof, 5: found}[radius], lambda found: found.distance, Options(), 9)
        search.decide(order[0], Method.BAB, None)
        with pytest.raises(ReplayError, match="radius 3 is proved and refuted at 3"):
            search.decide(order[1], Method.BAB, None)


def test_the_solvers_bound_counts_when_time_runs_out(monkeypatch: pytest.MonkeyPatch, processes: SolverProcesses) -> None:
    generator = np.random.default_rng(6)
    network, centre, property_, greatest = _question(generator, random_network)
    while (truth := _truth(network, centre, property_, greatest)) is None or truth < 3:
        network, centre, property_, greatest = _question(generator, random_network)
    box = linf_ball(centre, greatest, network.input.low, network.input.high)
    engine = engine_for(network, box, property_, processes)
    limit = SolverAnswer(Status.LIMIT, reason="no time left", bound=truth - 1)
    monkeypatch.setattr("qertify.ilp.process.SolverProcesses.solve", lambda *_: limit)
    answer = nearest_violation(engine, centre, 1, greatest, "cp-sat", None)
    assert (answer.free, answer.exact, answer.counterexample) == (truth - 2, True, None)


@pytest.mark.skipif(shared_data() is None, reason="the data folder is not there")
@pytest.mark.parametrize("solver", ["cp-sat", "highs"])
def test_a_published_radius(solver: str) -> None:
    pixels, labels = images("mnist")
    network = published_network("mnist_1blk_64_in_8_qu_6.h5")
    options = Options(method=Method.ILP, solver=solver, timeout=20)
    result = maximum_radius(network, pixels[1194], label=int(labels[1194]), options=options)
    assert (result.verified_radius, result.refuted_radius, result.exact) == (2, 3, True)
    assert result.evidence is Evidence.EXACT_SOLVER
