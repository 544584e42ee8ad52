"""Pairs that normalize their input, and pairs on images, against every float32 number and every image of small regions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import qertify.search.equivalence as engine
from qertify.errors import InvalidInputError
from qertify.network.network import Network
from qertify.network.nodes import Dense, Input
from qertify.network.real import RealDense, RealInput, RealNetwork, RealScale, as_reals
from qertify.network.tensor import QuantizationParameters, as_integers
from qertify.options import Options
from qertify.queries.equivalence import equivalence
from qertify.queries.equivalence_result import Equivalence
from qertify.queries.pieces import answer_comparison, comparison_piece
from qertify.runtimes.base import runtime_of
from qertify.runtimes.float32 import Float32Array, at_position, position
from qertify.runtimes.input_steps import Step, Steps, from_json, to_json
from qertify.search.comparison import EquivalenceQuery, Judge
from qertify.search.paired_input import PairedInput, grid, images, interval
from qertify.specification.pixels import PixelBox, preprocessing
from qertify.specification.region import IntegerBox

MEAN, STD = np.array([99.0, 101.5], dtype=np.float32), np.array([0.25, 0.31], dtype=np.float32)
STANDARDIZED = (Step("subtract", MEAN), Step("divide", STD))
SCALED = (Step("multiply", np.float32([3.7])), Step("add", np.array([-370.0, -371.1], dtype=np.float32)))
WEIGHT = np.array([[3, -2], [1, 2]])


def quantized(steps: Steps, scale: float, zero_point: int = 0, **changes: Any) -> Network:
    """Two inputs, normalized and quantized as onnxruntime does it; two outputs."""
    unit = QuantizationParameters.of(float(np.float32(scale)), zero_point)
    nodes = (Input("x", (2,), -128, 127), Dense("y", ("x",), as_integers(WEIGHT), as_integers([7, -5]), zero_point))
    metadata = {"input": "real", "input_name": "x", "output": "codes", "kernels": "{}"}
    if steps:
        metadata["input_steps"] = to_json(steps)
    return replace(Network(nodes, unit, QuantizationParameters.of(scale), "onnxruntime", metadata), **changes)


def original(steps: Steps, scale: float) -> RealNetwork:
    """About the same function of real numbers."""
    factor, shift = np.ones(2), np.zeros(2)
    for step in steps:
        constant = step.constant.astype(np.float64)
        match step.op:
            case "subtract":
                shift = shift - constant
            case "add":
                shift = shift + constant
            case "multiply":
                factor, shift = factor * constant, shift * constant
            case _:
                factor, shift = factor / constant, shift / constant
    normalized = RealScale("n", ("x",), as_reals(factor), as_reals(shift))
    dense = RealDense("y", ("n",), as_reals(WEIGHT.astype(np.float64)), as_reals(np.array([7.25, -5.5]) * scale))
    return RealNetwork((RealInput("x", (2,)), normalized, dense))


def floats(low: Float32Array, high: Float32Array) -> Iterator[Float32Array]:
    """Every float32 number between two, for each element."""
    for least, greatest in zip(low, high, strict=True):
        yield at_position(np.arange(int(position(least)), int(position(greatest)) + 1))


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("steps", [STANDARDIZED, SCALED, ()], ids=["standardized", "scaled", "plain"])
def test_errors_of_codes_are_those_of_all_numbers(steps: Steps, clamped: bool) -> None:
    """The relation holds for every float32 number of the region, and no tighter one of its form does."""
    network = quantized(steps, 0.0051 if steps else 0.012, 120 if clamped else 3)
    quantize = runtime_of(network).quantize_input
    middle = runtime_of(network).real_input(np.array([126 if clamped else 60, 124 if clamped else -40]))
    low, high = middle - np.float32(0.008), middle + np.float32(0.0091)
    inputs = interval(network, low, high)
    relation, box = inputs.relation, inputs.box
    for element, every in enumerate(floats(low, high)):
        codes = quantize(np.stack([every] * 2, axis=1))[:, element]
        assert (codes.min(), codes.max()) == (box.low[element], box.high[element])
        error = every - relation.factor[element] * codes - relation.shift[element]
        inner = ~(relation.clamped_high[element] & (codes == box.high[element]))
        assert relation.clamped_high[element] == (codes.max() == 127)
        assert error.min() >= relation.error_low[element]
        assert error[inner].max() <= relation.error_high[element]
        assert relation.error_low[element] == pytest.approx(error.min(), abs=1e-10)
        assert relation.error_high[element] == pytest.approx(error[inner].max(), abs=1e-10)


def greatest(query: EquivalenceQuery, inputs: Iterator[Float32Array]) -> Fraction:
    """The greatest difference at some inputs, exactly."""
    judge = Judge(query)
    for x in inputs:
        judge.consider(x, query.inputs.quantize(x[None])[0])
    return judge.attained


@pytest.mark.parametrize("steps", [STANDARDIZED, SCALED], ids=["standardized", "scaled"])
@pytest.mark.parametrize("reach", [0.0004, 0.003, 0.02])
def test_greatest_difference_of_a_normalized_pair(steps: Steps, reach: float) -> None:
    scale = 0.0051
    network = quantized(steps, scale)
    middle = runtime_of(network).real_input(np.array([60, -40])) + np.float32(0.0005)
    inputs = interval(network, middle - np.float32(reach), middle + np.float32(reach))
    query = EquivalenceQuery(original(steps, scale), network, inputs)
    assert inputs.low is not None
    assert inputs.high is not None
    edges: list[set[float]] = []  # a linear difference is greatest at the ends of codes
    for element, every in enumerate(floats(inputs.low, inputs.high)):
        codes = inputs.quantize(np.stack([every] * 2, axis=1))[:, element]
        jumps = np.flatnonzero(np.diff(codes))
        edges.append(set(every[np.concatenate([[0], jumps, jumps + 1, [len(every) - 1]])].tolist()))
    worst = greatest(query, (np.array(x, dtype=np.float32) for x in product(*edges)))
    answer = equivalence(query, Options(timeout=5))
    assert answer.max_delta is not None
    assert answer.max_delta[1] is not None
    assert 0.97 * worst <= answer.max_delta[0] <= worst <= answer.max_delta[1] <= 1.01 * worst
    refuted = equivalence(replace(query, delta=Fraction(answer.max_delta[0]) * Fraction(99, 100)), Options(timeout=5))
    assert refuted.verdict is Equivalence.NOT_EQUIVALENT
    proved = equivalence(replace(query, delta=worst * Fraction(102, 100)), Options(timeout=5))
    assert proved.verdict is Equivalence.EQUIVALENT


def test_a_code_stands_for_a_number_of_its_own() -> None:
    """On the grid of a normalized input, too: the runtime makes just that code of it."""
    network = quantized(STANDARDIZED, 0.0051)
    inputs = grid(network, IntegerBox(np.array([-128, 3]), np.array([127, 9])))
    codes = inputs.box.points()
    x = inputs.stand_for(codes)
    assert np.array_equal(runtime_of(network).quantize_input(x), codes)
    off = x - inputs.relation.factor * codes - inputs.relation.shift
    assert np.all((inputs.relation.error_low <= off) & (off <= inputs.relation.error_high))
    assert np.abs(off).max() < 4e-6  # half a step of float32
    query = EquivalenceQuery(original(STANDARDIZED, 0.0051), network, inputs)
    worst = greatest(query, iter(x))
    assert equivalence(query).max_delta == (pytest.approx(float(worst)), pytest.approx(float(worst)))


def ball(network: Network, centre: tuple[int, int], radius: int, mean: float, std: float) -> PixelBox:
    prepare, image = preprocessing((2,), [mean], [std]), np.array(centre)
    return PixelBox(image, image, image, prepare, runtime_of(network).quantize_input).around(radius)


IMAGES = {
    "a code an image": (quantized((), 1 / 255, -128), 0.0, 1.0, True),
    "several images a code": (quantized((), 0.1, -70), 0.4, 0.25, False),
    "codes without images": (quantized((), 1 / 900, -128), 0.0, 1.0, False),
    "clamped images": (quantized((), 1 / 255, 0), 0.0, 1.0, False),
    "normalized once more": (quantized((Step("subtract", np.float32([128 / 255])),), 1 / 255, 0), 0.0, 1.0, True),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(("centre", "radius"), [((3, 120), 4), ((126, 200), 3), ((0, 255), 1), ((7, 7), 0)])
def test_images_are_all_that_counts(name: str, centre: tuple[int, int], radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ENUMERATION_LIMIT", 0)
    network, mean, std, one_to_one = IMAGES[name]
    box = ball(network, centre, radius, mean, std)
    inputs = images(network, box)
    assert inputs.is_grid or not one_to_one
    every = box.preprocessing.apply(IntegerBox(box.low, box.high).points())
    codes = inputs.quantize(every)
    assert all(inputs.holds(x, code) for x, code in zip(every, codes, strict=True))
    between = every + (every[0] != every[-1]) * np.float32(1e-4)
    assert radius == 0 or not any(inputs.holds(x, inputs.quantize(x[None])[0]) for x in between)
    query = EquivalenceQuery(original(network_steps(network), 0.01), network, inputs)
    worst = greatest(query, iter(every))
    answer = equivalence(query, Options(timeout=5))
    assert answer.region["kind"] == "images"
    assert answer.max_delta is not None
    assert answer.max_delta[1] is not None
    assert answer.max_delta[0] <= worst <= answer.max_delta[1]
    assert answer.max_delta[0] >= 0.999 * worst
    assert answer.max_delta[1] <= worst * 1.001 + Fraction(1, 1000) or not inputs.is_grid


def network_steps(network: Network) -> Steps:
    return from_json(network.metadata.get("input_steps", "[]"))


@pytest.mark.parametrize("region", ["images", "codes", "real_box"])
def test_regions_travel(region: str) -> None:
    network = IMAGES["normalized once more"][0]
    box = ball(network, (100, 200), 2, 0.0, 1.0)
    inputs: PairedInput = {
        "images": images(network, box),
        "codes": grid(network, box.image()),
        "real_box": interval(network, *box.ends()),
    }[region]
    query = EquivalenceQuery(original(network_steps(network), 0.01), network, inputs)
    desk: Any = SimpleNamespace(network=network, options=Options(timeout=5), original=query.original)
    told = answer_comparison(desk, comparison_piece(query), lambda: False)["result"]
    own = equivalence(query, Options(timeout=5)).to_json()
    assert inputs.kind == region
    assert (told["region"], told["max_delta"]) == (own["region"], own["max_delta"])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (np.full(2, np.nan), 1.0, "finite"),
        (0.0, np.full(2, np.inf), "finite"),
        (np.zeros(3), np.ones(3), "shape"),
        (1.0, 0.0, "empty"),
    ],
)
def test_what_is_no_region_of_reals(low: Any, high: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        interval(quantized((), 0.1), low, high)


@pytest.mark.parametrize("codes", [[[0, 128], [0, 128]], [[-129, 0], [0, 0]], [[0], [1]]])
def test_what_is_no_region_of_codes(codes: list[list[int]]) -> None:
    with pytest.raises(InvalidInputError, match="reads codes -128 … 127"):
        grid(quantized((), 0.1), IntegerBox(*np.array(codes)))


def test_runtimes_that_make_different_codes_are_not_compared_on_real_inputs() -> None:
    """Of a number halfway between two codes, to which one runtime gives the even one."""
    nodes, unit = (Input("x", (1,), -128, 127), Dense("y", ("x",), as_integers([[1], [2]]), as_integers([0, 0]))), 1 / 4
    pair = [
        Network(
            nodes, QuantizationParameters.of(unit), QuantizationParameters.of(1.0), f"litert-{name}",
            {"input": "real", "input_kernels": name, "output": "codes"},
        )
        for name in ("reference", "xnnpack")
    ]  # fmt: skip
    tie = np.array([2.5 * unit])
    for left, right in (pair, pair[::-1]):
        with pytest.raises(InvalidInputError, match="different codes"):
            EquivalenceQuery(left, right, interval(right, tie - 0.01, tie + 0.01))
        EquivalenceQuery(left, right, interval(right, tie - 0.1, tie - 0.01))
        assert equivalence(EquivalenceQuery(left, right, grid(right, IntegerBox(*np.array([[2], [3]]))))).max_delta == (0, 0)
