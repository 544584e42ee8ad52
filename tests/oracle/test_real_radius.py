"""The maximum radius over real inputs against its definition, on networks whose codes can be enumerated."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from qertify.errors import InvalidInputError
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.nodes import Dense, Input, Staircase, per_channel_rows
from qertify.network.staircase import Rounding, shift_steps
from qertify.network.tensor import QuantizationParameters, as_integers
from qertify.options import Method, Options
from qertify.queries.radius import maximum_radius
from qertify.queries.real_radius import decimal, decimal_below, maximum_real_radius
from qertify.runtimes.base import runtime_of
from qertify.runtimes.rings import real_rings
from qertify.specification.property import Classification, Ties
from tests.oracle.random_networks import random_network

pytest.importorskip("onnxruntime")
SCALE, ZERO = 0.1, 128
CENTRES = (-1.3, -0.05, 0.0, 1e-9, 0.149999, 0.85, 12.7, -12.85, 40.0)


def network_of(generator: np.random.Generator, kind: str = "dequantized") -> Network:
    """Two inputs, two classes, read as onnxruntime reads them: float32, or uint8 codes."""
    weight, bias = generator.integers(-9, 10, size=(3, 2)), generator.integers(-50, 50, size=3)
    steps = shift_steps(3, Rounding.HALF_EVEN, -128, 127)
    nodes = (
        Input("x", (2,), 0, 255),
        Dense("dense", ("x",), as_integers(weight), as_integers(bias), ZERO),
        Staircase("steps", ("dense",), steps, per_channel_rows(1, (3,))),
    )
    metadata = {"input": "real" if kind == "dequantized" else "codes", "output": kind}
    parameters = QuantizationParameters.of(float(np.float32(SCALE)), ZERO)
    return Network(nodes, parameters, QuantizationParameters.of(1.0), "onnxruntime", metadata=metadata)


def truth(network: Network, centre: np.ndarray) -> Fraction | None:
    """The least distance of float32 numbers that are not of the centre's class, over all their codes."""
    runtime = runtime_of(network)
    start = runtime.quantize_input(centre[None])
    label = int(Ties.FIRST.predicted(evaluate(network, start))[0])
    codes = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), axis=-1).reshape(-1, 2)
    wrong = codes[Classification(label).violated(evaluate(network, codes))]
    if not len(wrong):
        return None
    nearest = [[_nearest(network, i, code, centre) for code in range(256)] for i in range(2)]
    return min(max(nearest[0][a], nearest[1][b]) for a, b in wrong.tolist())


def _nearest(network: Network, index: int, code: int, centre: np.ndarray) -> Fraction:
    """Walk from a number near the code's border to the first float32 that has the code."""
    runtime = runtime_of(network)

    def code_of(value: np.float32) -> int:
        return int(runtime.quantize_input(np.full((1, 2), value, dtype=np.float32))[0, index])

    own = code_of(centre[index])
    if code == own:
        return Fraction(0)
    towards = np.float32(np.inf if code > own else -np.inf)
    x = np.float32((code - ZERO) * SCALE - np.sign(code - own) * SCALE * 0.5001)
    while (code_of(x) < code) if code > own else (code_of(x) > code):
        x = np.nextafter(x, towards)
    while (
        (code_of(y := np.nextafter(x, -towards)) >= code) if code > own else (code_of(y := np.nextafter(x, -towards)) <= code)
    ):
        x = y
    return abs(Fraction(float(x)) - Fraction(float(centre[index])))


@pytest.mark.parametrize("number", range(4))
def test_against_enumeration(number: int) -> None:
    generator = np.random.default_rng(number)
    network = network_of(generator)
    centre = np.array([CENTRES[number * 2], CENTRES[number * 2 + 1]], dtype=np.float32)
    expected, result = truth(network, centre), maximum_real_radius(network, centre)
    assert result.exact
    assert result.refuted_at == (None if expected is None else str(expected))
    if expected is not None:
        assert result.verified_below == result.refuted_at
        assert result.verified_radius is not None
        assert result.refuted_radius is not None
        assert Fraction(repr(result.verified_radius)) < expected <= Fraction(repr(result.refuted_radius))


def test_boxes_are_the_images_of_balls() -> None:
    """At each radius and short of it, and for centres whose distances are no float64."""
    network = network_of(np.random.default_rng(0))
    runtime = runtime_of(network)
    for centre in (
        np.array([1e-30, 3.0], np.float32),
        np.array([0.05, -0.15], np.float32),
        np.array([-50.0, 0.349], np.float32),
    ):
        exact = np.array([Fraction(float(value)) for value in centre], dtype=object)
        box = runtime.integer_image(exact - 2, exact + 2)
        reach = runtime.real_input(np.stack([box.low, box.high])).astype(np.float32)
        rings = real_rings(runtime.quantize_input, centre, reach, box)
        assert rings.last > 10
        before = None
        for number in range(rings.last + 1):
            radius = rings.radius(number)
            found, expected = rings.box(number), runtime.integer_image(exact - radius, exact + radius)
            assert np.array_equal(found.low, expected.low)
            assert np.array_equal(found.high, expected.high)
            assert rings.number(found.low) <= number
            assert max(rings.number(found.low), rings.number(found.high)) == number
            if before is not None:
                less = radius - Fraction(1, 1 << 200)
                below = runtime.integer_image(exact - less, exact + less)
                assert np.array_equal(below.low, before.low)
                assert np.array_equal(below.high, before.high)
            before = found


def test_codes_as_inputs() -> None:
    network = network_of(np.random.default_rng(1), "codes")
    centre = np.array([90, 140], dtype=np.uint8)
    codes = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), axis=-1).reshape(-1, 2)
    label = int(Ties.FIRST.predicted(evaluate(network, centre[None].astype(np.int64)))[0])
    wrong = codes[Classification(label).violated(evaluate(network, codes))]
    result = maximum_real_radius(network, centre)
    assert result.exact
    assert result.refuted_at == str(int(np.abs(wrong - centre).max(axis=1).min()))


def test_networks_without_a_runtime_measure_in_their_scale() -> None:
    seen = 0
    for number in range(12):
        plain = random_network(np.random.default_rng(number))
        network = Network(plain.nodes, QuantizationParameters.of(0.25), plain.output_quantization, "test")
        centre = np.zeros(network.input_shape, dtype=np.int64)
        levels, real = maximum_radius(network, centre), maximum_real_radius(network, centre)
        assert real.exact == levels.exact
        assert real.refuted_at == (None if levels.refuted_radius is None else str(Fraction(levels.refuted_radius, 4)))
        seen += levels.refuted_radius is not None
    assert seen > 2


def test_limits() -> None:
    network = network_of(np.random.default_rng(0))
    centre = np.array([CENTRES[0], CENTRES[1]], dtype=np.float32)
    known = maximum_real_radius(network, centre)
    assert known.refuted_at is not None
    half = Fraction(known.refuted_at) / 2
    capped = maximum_real_radius(network, centre, max_radius=half)
    assert (capped.exact, capped.refuted_radius, capped.verified_below) == (True, None, None)
    assert capped.verified_radius == decimal(half, up=False)
    wrong = maximum_real_radius(network, centre, label=(known.label + 1) % 3)
    assert (wrong.verified_radius, wrong.refuted_radius, wrong.exact, wrong.reason) == (None, None, False, None)
    attacked = maximum_real_radius(network, centre, options=Options(method=Method.ATTACK))
    assert not attacked.exact
    with pytest.raises(InvalidInputError, match="negative"):
        maximum_real_radius(network, centre, max_radius=Fraction(-1))


@pytest.mark.parametrize("value", [Fraction(1, 3), Fraction(1, 8), Fraction(10**17 + 1, 10**17), Fraction(1, 7) ** 40])
def test_decimals_are_safe(value: Fraction) -> None:
    """What is printed is on the right side, and as near as floats are."""
    low, high, below = decimal(value, up=False), decimal(value, up=True), decimal_below(value)
    assert Fraction(repr(low)) <= value <= Fraction(repr(high))
    assert Fraction(repr(below)) < value
    assert high - below <= 4 * np.spacing(below)
