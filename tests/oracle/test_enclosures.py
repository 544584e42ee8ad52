"""Enclosures against brute force: every choice of a value between two staircases, element by element, is a possible runtime."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from qertify.ilp.engine import decide
from qertify.ilp.model import Status
from qertify.network.evaluate import RULES
from qertify.network.network import Network
from qertify.network.nodes import Input, Node, Staircase
from qertify.network.staircase import Steps
from qertify.network.tensor import IntegerArray, as_integers
from qertify.options import Method, Options
from qertify.queries.robustness import RobustnessQuery, local_robustness, verify
from qertify.result import Reason, Verdict
from qertify.specification.property import Ties
from tests.oracle.random_networks import random_network

Choose = Callable[[Staircase, IntegerArray, IntegerArray, IntegerArray], IntegerArray]
"""Node, accumulators, least and greatest values → the values that a runtime gives."""


def random_enclosure(generator: np.random.Generator) -> Network:
    """A random network, some of whose staircases are enclosures."""
    network = random_network(generator)
    nodes: list[Node] = []
    for node in network.nodes:
        if isinstance(node, Staircase) and generator.random() < 0.7:
            lower = node.steps.thresholds
            shifts = generator.integers(0, 4, size=lower.shape) * (generator.random(lower.shape) < 0.4)
            upper = Steps(as_integers(np.maximum.accumulate(lower - shifts, axis=1)), node.steps.low)
            node = replace(node, upper=upper)
        nodes.append(node)
    return replace(network, nodes=tuple(nodes))


def run(network: Network, codes: IntegerArray, choose: Choose) -> IntegerArray:
    """Outputs of one runtime, (batch, outputs)."""
    values = {network.input.name: codes}
    for node in network.nodes:
        if isinstance(node, Input):
            continue
        inputs = [values[name] for name in node.inputs]
        result = RULES[type(node)](node, inputs)
        if isinstance(node, Staircase) and node.upper is not None:
            greatest = RULES[Staircase](replace(node, steps=node.upper, upper=None), inputs)
            result = choose(node, inputs[0], result, greatest)
        values[node.name] = result
    return values[network.output.name].reshape(len(codes), -1)


def hidden_runtime(network: Network, seed: int) -> Callable[[IntegerArray], IntegerArray]:
    """A runtime whose values are any between the two staircases, by node, element and accumulator."""

    def choose(node: Staircase, z: IntegerArray, low: IntegerArray, high: IntegerArray) -> IntegerArray:
        element = np.arange(z[0].size).reshape(1, *z.shape[1:])
        noise = (z * 7919 + element * 104729 + seed * 31 + len(node.name)) * 2654435761 % 2**31
        return low + noise % (high - low + 1)

    return lambda codes: run(network, codes, choose)


def every_output(network: Network, x: IntegerArray) -> set[tuple[int, ...]]:
    """All outputs that some choice gives on one input."""
    open_: list[dict[str, IntegerArray]] = [{network.input.name: x[None]}]
    for node in network.nodes:
        if isinstance(node, Input):
            continue
        fresh: dict[tuple[int, ...], dict[str, IntegerArray]] = {}
        for values in open_:
            inputs = [values[name] for name in node.inputs]
            low = RULES[type(node)](node, inputs)
            high = low
            if isinstance(node, Staircase) and node.upper is not None:
                high = RULES[Staircase](replace(node, steps=node.upper, upper=None), inputs)
            ends = zip(low.reshape(-1).tolist(), high.reshape(-1).tolist(), strict=True)
            for picked in itertools.product(*(range(a, b + 1) for a, b in ends)):  # chains only: earlier values don't matter
                fresh[picked] = {node.name: np.array(picked, dtype=np.int64).reshape(low.shape)}
        open_ = list(fresh.values())
    return {tuple(values[network.output.name].reshape(-1).tolist()) for values in open_}


def some_runtime_violates(query: RobustnessQuery) -> bool:
    """The truth, by enumeration of inputs and choices."""
    for x in query.region.points():
        outputs = np.array(sorted(every_output(query.network, x)), dtype=np.int64)
        if query.property.violated(outputs).any():
            return True
    return False


def small_questions(seeds: range, largest: int = 150) -> list[tuple[int, RobustnessQuery]]:
    found: list[tuple[int, RobustnessQuery]] = []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        network = random_enclosure(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        query = local_robustness(network, centre, int(generator.integers(0, 3)), ties=list(Ties)[seed % 3])
        if query.region.size <= largest and network.exactness == "enclosure":
            found.append((seed, query))
    return found


@cache
def enumerated() -> list[tuple[int, RobustnessQuery, bool]]:
    return [(seed, query, some_runtime_violates(query)) for seed, query in small_questions(range(60))]


@pytest.mark.parametrize("method", [Method.AUTO, Method.BAB, Method.BOUNDS])
def test_robust_holds_for_every_choice(method: Method) -> None:
    seen: Counter[str] = Counter()
    for seed, query, truth in enumerated():
        result = verify(query, Options(method=method, seed=seed, timeout=0.3))
        seen[result.verdict.value + (" truly not robust" if truth else "")] += 1
        assert result.exactness == "enclosure"
        assert result.verdict in (Verdict.ROBUST, Verdict.UNKNOWN), f"seed {seed}: no runtime was run"
        if result.verdict is Verdict.ROBUST:
            assert not truth, f"seed {seed}"
        else:
            assert result.reason in (Reason.ENCLOSURE, Reason.TIMEOUT), f"seed {seed}"
    assert seen["robust"] > 8, dict(seen)
    assert seen["unknown truly not robust"] > 8, dict(seen)


def test_non_robust_only_if_the_runtime_says_so() -> None:
    seen: Counter[Verdict] = Counter()
    for seed, query in small_questions(range(200, 280), 2000):
        runtime = hidden_runtime(query.network, seed)
        truth = bool(query.property.violated(runtime(query.region.points())).any())
        result = verify(query, Options(seed=seed, timeout=3), run=runtime)
        seen[result.verdict] += 1
        if result.verdict is Verdict.ROBUST:
            assert not truth, f"seed {seed}"
        elif result.verdict is Verdict.NON_ROBUST:
            assert truth
            assert result.counterexample is not None
            codes = np.array(result.counterexample.levels).reshape(1, *query.network.input_shape)
            assert query.property.violated(runtime(codes))[0], f"seed {seed}"
            assert result.counterexample.outputs == tuple(runtime(codes)[0].tolist())
        elif result.verdict is Verdict.MISCLASSIFIED:
            assert query.property.violated(runtime(query.centre[None]))[0]
    assert min(seen[verdict] for verdict in (Verdict.ROBUST, Verdict.NON_ROBUST)) > 6, dict(seen)


def test_integer_programs_are_exact_for_enclosures() -> None:
    """CP-SAT finds the program empty exactly where no choice violates the property."""
    seen: Counter[tuple[Status, bool]] = Counter()
    for seed, query in small_questions(range(400, 440), 60)[:14]:
        truth = some_runtime_violates(query)
        answer = decide(query.network, query.region, query.property, "cp-sat", None)
        seen[answer.status, truth] += 1
        assert (answer.status is Status.INFEASIBLE) == (not truth), f"seed {seed}"
        assert answer.counterexample is None, "no runtime was run"
    assert len(seen) == 2, dict(seen)
