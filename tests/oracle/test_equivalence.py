"""Equivalence queries against enumeration, and against exact piecewise-linear enumeration of the float side."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import qertify.search.equivalence as engine
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.real import RealNetwork
from qertify.options import Method, Options
from qertify.queries.equivalence import equivalence
from qertify.queries.equivalence_result import Equivalence
from qertify.search.comparison import EquivalenceQuery, Judge, dequantized
from qertify.search.paired_input import grid, interval
from qertify.specification.region import IntegerBox
from tests.oracle.random_networks import random_network
from tests.oracle.random_pairs import exact_outputs, pieces, quantized_pair, random_float_network

SLACK = Fraction(1, 10**5)
"""Fixed point costs a little: a bound of this relative tightness need not be proved."""


@pytest.fixture(autouse=True)
def no_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds and the search are under test; long attacks are not."""
    monkeypatch.setattr(engine, "ENUMERATION_LIMIT", 0)
    for name, value in (("MOVES", 30), ("ROUNDS", 1), ("VARIATIONS", 1), ("CLIMBS", 2), ("RESTARTS", 6), ("STEPS", 20)):
        monkeypatch.setattr(f"qertify.search.equivalence_attack.{name}", value)


def _box(generator: np.random.Generator, network: Network) -> IntegerBox:
    ends = generator.integers(network.input.low, network.input.high + 1, size=(2, *network.input_shape))
    return IntegerBox(ends.min(axis=0), ends.max(axis=0))


def _truth(query: EquivalenceQuery) -> tuple[Fraction, bool]:
    """Greatest difference, and whether the classes agree everywhere, by enumeration."""
    judge, worst, agree = Judge(query), Fraction(0), True
    codes = query.inputs.box.points()
    for x, code in zip(query.inputs.stand_for(codes), codes, strict=True):
        outputs = judge.exactly(x, code)
        worst = max(worst, max(outputs.differences()[i] for i in query.outputs))
        own, other = outputs.predicted()
        agree = agree and own == other
    return worst, agree


def _pair(seed: int) -> tuple[RealNetwork | Network, Network, np.random.Generator]:
    """A float network and its quantization, two that have nothing in common, or two quantized ones."""
    generator = np.random.default_rng(seed)
    if seed % 3 == 0:
        return *quantized_pair(generator, int(generator.integers(1, 4)), int(generator.integers(1, 4))), generator
    network = random_network(generator)
    inputs, outputs = network.input_shape[0], network.output_size
    if seed % 3 == 1:
        return random_float_network(generator, inputs, outputs), network, generator
    last = network.nodes[1]
    changed = replace(last, bias=last.bias + generator.integers(-1, 2, size=last.bias.shape))  # a planted difference
    return (
        Network((network.nodes[0], changed, *network.nodes[2:]), *[network.input_quantization] * 2, "test"),
        network,
        generator,
    )


@pytest.mark.parametrize("seed", range(60))
def test_delta_is_decided_as_by_enumeration(seed: int) -> None:
    left, right, generator = _pair(seed)
    query = EquivalenceQuery(left, right, grid(right, _box(generator, right)))
    worst, _ = _truth(query)
    options = Options(timeout=5, seed=seed)
    above = equivalence(replace(query, delta=worst * (1 + SLACK) + Fraction(1, 1000)), replace(options, method=Method.BAB))
    assert above.verdict is not Equivalence.NOT_EQUIVALENT
    bounded = equivalence(query, replace(options, method=Method.BOUNDS, timeout=60))
    assert bounded.max_delta is not None
    assert bounded.max_delta[1] is not None
    assert Fraction(bounded.max_delta[0]) <= worst <= Fraction(bounded.max_delta[1])
    if worst > 0:
        below = equivalence(replace(query, delta=worst * Fraction(999, 1000)), options)
        assert below.verdict is not Equivalence.EQUIVALENT
        exactly = equivalence(replace(query, delta=worst), replace(options, timeout=1))
        assert exactly.verdict is not Equivalence.NOT_EQUIVALENT


@pytest.mark.parametrize("seed", range(0, 60, 2))
def test_same_class_is_decided_as_by_enumeration(seed: int) -> None:
    left, right, generator = _pair(seed)
    if right.output_size < 2:
        pytest.skip("one class")
    query = EquivalenceQuery(left, right, grid(right, _box(generator, right)), top1=True)
    _, agree = _truth(query)
    answer = equivalence(query, Options(timeout=5, seed=seed))
    assert answer.verdict in (Equivalence.UNKNOWN, Equivalence.EQUIVALENT if agree else Equivalence.NOT_EQUIVALENT)


def test_most_questions_are_decided() -> None:
    """Sound answers are easy to give by answering nothing."""
    decided = 0
    for seed in range(0, 30, 3):
        left, right, generator = _pair(seed)
        query = EquivalenceQuery(left, right, grid(right, _box(generator, right)))
        worst, _ = _truth(query)
        answers = [
            equivalence(replace(query, delta=worst * factor + Fraction(1, 1000)), Options(timeout=20)).verdict
            for factor in (Fraction(6, 5), Fraction(4, 5))
        ]
        decided += answers[0] is Equivalence.EQUIVALENT
        decided += answers[1] is Equivalence.NOT_EQUIVALENT or worst * Fraction(4, 5) + Fraction(1, 1000) >= worst
    assert decided >= 18


def _real_pair(seed: int) -> tuple[EquivalenceQuery, Fraction]:
    """A query on one real input, and the truth: over each code's interval it is at a kink of the float network or an end."""
    generator = np.random.default_rng(seed)
    left, right = quantized_pair(generator, 1, 2)
    scale, zero = Fraction(1, 16), int(right.input_quantization.zero_point[0])
    low, high = sorted(Fraction(int(v), 64) for v in generator.integers(-20, 40, size=2))
    high = max(high, low + Fraction(1, 64))
    inputs = interval(right, np.array([low], dtype=object), np.array([high], dtype=object))
    worst = Fraction(0)
    for code in range(int(inputs.box.low[0]), int(inputs.box.high[0]) + 1):
        least = low if code == right.input.low else max(low, (code - zero - Fraction(1, 2)) * scale)
        greatest = high if code == right.input.high else min(high, (code - zero + Fraction(1, 2)) * scale)
        output = dequantized(right, evaluate(right, np.array([[code]]))[0])
        for x in pieces(left, least, greatest):
            worst = max(worst, *(abs(a - b) for a, b in zip(exact_outputs(left, x), output, strict=True)))
    return EquivalenceQuery(left, right, inputs), worst


def test_real_inputs_against_exact_pieces() -> None:
    tight = 0
    for seed in range(20):
        query, worst = _real_pair(seed)
        answer = equivalence(query, Options(timeout=3, method=Method.BAB))
        assert answer.max_delta is not None
        attained, proved = answer.max_delta
        assert proved is not None
        assert Fraction(attained) <= worst <= Fraction(proved)
        assert Fraction(attained) >= worst * Fraction(9, 10) - Fraction(1, 100)
        tight += Fraction(proved) <= worst * Fraction(6, 5) + Fraction(1, 100)
    assert tight >= 12


def test_bounds_contain_sampled_differences() -> None:
    generator = np.random.default_rng(7)
    for _ in range(4):
        left, right = quantized_pair(generator, 3, 3)
        low = generator.uniform(-0.3, 0.2, size=3)
        inputs = interval(right, low, low + generator.uniform(0.01, 0.3, size=3))
        query = EquivalenceQuery(left, right, inputs)
        answer = equivalence(query, Options(timeout=10, method=Method.BOUNDS))
        assert inputs.low is not None
        assert inputs.high is not None
        x = generator.uniform(inputs.low, inputs.high, size=(25_000, 3)).astype(np.float32)
        x = np.clip(x, inputs.low, inputs.high)
        own, other = Judge(query).estimates(x, inputs.quantize(x))
        assert answer.max_delta is not None
        assert answer.max_delta[1] is not None
        assert np.abs(own - other).max() <= answer.max_delta[1]
