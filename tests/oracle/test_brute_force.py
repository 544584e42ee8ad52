"""Every engine against exhaustive enumeration."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator

import numpy as np
import pytest

from qertify.ilp.process import SolverProcesses
from qertify.network.nodes import Product, Table
from qertify.options import Method, Options
from qertify.queries.robustness import local_robustness, verify
from qertify.result import Evidence, Reason, Verdict
from qertify.search import stages
from qertify.specification.property import Ties
from tests.oracle.random_graphs import random_graph
from tests.oracle.random_networks import random_network, violated_somewhere
from tests.solvers import shared_solvers

CASES = 300


@pytest.fixture(scope="module", autouse=True)
def processes() -> Generator[SolverProcesses]:
    with shared_solvers() as children:
        yield children


def _queries(seed: int, count: int):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        network = random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        target = None
        ties = list(Ties)[int(generator.integers(3))]
        query = local_robustness(network, centre, int(generator.integers(0, 4)), ties=ties)
        label = query.property.label
        if generator.random() < 0.3:
            target = int(generator.choice([j for j in range(network.output_size) if j != label]))
            query = local_robustness(network, centre, int(query.radius), target=target, ties=ties)
        yield query


@pytest.mark.parametrize("method", [Method.AUTO, Method.BAB, Method.ATTACK, Method.BOUNDS])
def test_engines_agree_with_enumeration(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    if method is Method.AUTO:
        monkeypatch.setattr(stages, "ENUMERATION_LIMIT", 0)  # so that the other stages have something to do
    seen: Counter[Verdict] = Counter()
    for number, query in enumerate(_queries(list(Method).index(method), CASES)):
        result = verify(query, Options(method=method, seed=number))
        seen[result.verdict] += 1
        if result.verdict is Verdict.MISCLASSIFIED:
            continue
        truth = violated_somewhere(query.network, query.region, query.property)
        if result.verdict is Verdict.ROBUST:
            assert not truth, f"query {number}: wrong robust ({result.evidence})"
        if result.verdict is Verdict.NON_ROBUST:
            assert truth
    assert seen[Verdict.ROBUST if method is not Method.ATTACK else Verdict.NON_ROBUST] > CASES // 10
    print(method, dict(seen))
    if method in (Method.AUTO, Method.BAB):
        assert seen[Verdict.UNKNOWN] == 0


def test_boxes_that_enumerate_fast_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "ENUMERATION_LIMIT", 64)
    seen: Counter[Verdict] = Counter()
    for query in _queries(9, 400):
        if 64 < query.region.size <= 16 * 64:
            result = verify(query)
            assert not any(line.startswith("search:") for line in result.explanation)
            if result.method == "enumeration":
                seen[result.verdict] += 1
                truth = violated_somewhere(query.network, query.region, query.property)
                assert result.verdict is (Verdict.NON_ROBUST if truth else Verdict.ROBUST)
                if seen[Verdict.ROBUST] > 3:
                    return
    pytest.fail(f"too few boxes: {seen}")


@pytest.mark.parametrize("solver", ["highs", "cp-sat"])
def test_ilp_agrees_with_enumeration(solver: str) -> None:
    seen: Counter[tuple[Verdict, Evidence | None]] = Counter()
    hard = (query for query in _queries(77, 400) if verify(query, Options(method=Method.BOUNDS)).verdict is Verdict.UNKNOWN)
    for number, query in enumerate(itertools.islice(hard, 30)):
        result = verify(query, Options(method=Method.ILP, solver=solver, seed=number))
        seen[result.verdict, result.evidence] += 1
        truth = violated_somewhere(query.network, query.region, query.property)
        assert (result.verdict is Verdict.NON_ROBUST) == truth
        if not truth and solver == "cp-sat":
            assert result.verdict is Verdict.ROBUST
        if result.verdict is Verdict.UNKNOWN:
            assert result.reason is Reason.SOLVER_CLAIM
            accepted = verify(query, Options(method=Method.ILP, solver=solver, seed=number, accept_solver_claims=True))
            assert (accepted.verdict, accepted.evidence) == (Verdict.ROBUST, Evidence.SOLVER_CLAIM)
    assert seen[Verdict.NON_ROBUST, Evidence.REPLAYED_COUNTEREXAMPLE] > 3
    if solver == "highs":
        assert seen[Verdict.UNKNOWN, Evidence.SOLVER_CLAIM] > 0, "no query that a floating-point solver had to close"
        assert seen[Verdict.ROBUST, Evidence.EXACT_SOLVER] == 0


def test_graphs_of_every_node_kind_agree_with_enumeration() -> None:
    generator = np.random.default_rng(5)
    seen: Counter[tuple[Verdict, str]] = Counter()
    for number in range(200):
        network = random_graph(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        query = local_robustness(network, centre, int(generator.integers(1, 3)), ties=list(Ties)[number % 3])
        if query.region.size > 1 << 14:
            continue
        enclosed = any(isinstance(node, Table | Product) for node in network.nodes)  # slow to close
        result = verify(query, Options(method=Method.BAB, seed=number, timeout=1 if enclosed else 60))
        seen[result.verdict, result.method] += 1
        truth = violated_somewhere(query.network, query.region, query.property)
        if result.verdict is Verdict.UNKNOWN:
            assert enclosed, f"graph {number}"
        elif result.verdict is not Verdict.MISCLASSIFIED:
            assert result.verdict is (Verdict.NON_ROBUST if truth else Verdict.ROBUST), f"graph {number}"
    assert seen[Verdict.ROBUST, "bounds"] + seen[Verdict.ROBUST, "bab"] > 5, dict(seen)
    assert sum(count for (verdict, _), count in seen.items() if verdict is Verdict.NON_ROBUST) > 15
