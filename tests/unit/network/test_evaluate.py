"""The reference evaluator against plain Python loops that follow the docstrings of the node kinds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from qertify.errors import InvalidInputError
from qertify.network.evaluate import evaluate, evaluate_nodes
from qertify.network.network import Network
from qertify.network.nodes import (
    NODE_KINDS,
    Add,
    Convolution,
    Dense,
    Input,
    Max,
    Node,
    PoolSum,
    Product,
    Rearrange,
    Staircase,
    Table,
    Window,
)
from qertify.network.ranges import accumulator_proofs, full_range, ranges
from qertify.network.tensor import QuantizationParameters, as_integers
from tests.unit.network.samples import every_kind


def positions(window: Window, row: int, column: int, height: int, width: int) -> Any:
    """(kernel row, kernel column, input row, input column) of a window's cells that lie inside the image."""
    for i, j in itertools.product(range(window.kernel[0]), range(window.kernel[1])):
        y = row * window.stride[0] - window.padding[0] + i * window.dilation[0]
        x = column * window.stride[1] - window.padding[1] + j * window.dilation[1]
        if 0 <= y < height and 0 <= x < width:
            yield i, j, y, x


def naive(node: Node, inputs: list[Any], shape: tuple[int, ...]) -> Any:
    """One node on one example, in Python integers."""
    result = np.zeros(shape, dtype=object)
    first = inputs[0]
    match node:
        case Dense():
            for out in range(shape[0]):
                terms = (int(w) * (int(y) - node.zero_point) for w, y in zip(node.weight[out], first, strict=True))
                result[out] = sum(terms) + int(node.bias[out])
        case Convolution():
            per_group, outs = node.weight.shape[1], shape[0] // node.groups
            for out, row, column in np.ndindex(*shape):
                total = int(node.bias[out])
                for channel in range(per_group):
                    source = first[(out // outs) * per_group + channel]
                    for i, j, y, x in positions(node.window, row, column, *source.shape):
                        total += int(node.weight[out, channel, i, j]) * (int(source[y, x]) - node.zero_point)
                result[out, row, column] = total
        case PoolSum() | Max():
            for channel, row, column in np.ndindex(*shape):
                cells = [int(first[channel, y, x]) for *_, y, x in positions(node.window, row, column, *first.shape[1:])]
                result[channel, row, column] = (
                    max(cells) if isinstance(node, Max) else sum(cell - node.zero_point for cell in cells)
                )
        case Add():
            result = sum(np.asarray(value, dtype=object) for value in inputs)
        case Product():
            for index in np.ndindex(*shape):
                result[index] = (int(first[index]) - node.zero_points[0]) * (int(inputs[1][index]) - node.zero_points[1])
        case Rearrange():
            pool = [int(v) for value in inputs for v in np.asarray(value).reshape(-1)]
            for index in np.ndindex(*shape):
                source = int(node.indices[index])
                result[index] = node.fill if source == -1 else pool[source]
        case Staircase():
            rows = np.broadcast_to(node.row, shape)
            for index in np.ndindex(*shape):
                thresholds = node.steps.thresholds[rows[index]]
                result[index] = node.steps.low + sum(int(first[index]) >= int(t) for t in thresholds)
        case Table():
            rows = np.broadcast_to(node.row, shape)
            for index in np.ndindex(*shape):
                code = min(max(int(first[index]) - node.first, 0), node.values.shape[1] - 1)
                result[index] = int(node.values[rows[index], code])
        case Input():
            raise AssertionError("inputs are given")
    return result


@pytest.mark.parametrize("seed", range(6))
def test_every_node_kind_against_plain_loops(seed: int) -> None:
    network = every_kind(seed)
    assert {type(node) for node in network.nodes} == set(NODE_KINDS)
    inputs = np.random.default_rng(seed + 100).integers(0, 16, size=(2, 2, 6, 6))
    values = evaluate_nodes(network, inputs)
    for example, node in itertools.product(range(2), network.nodes[1:]):
        expected = naive(node, [values[name][example] for name in node.inputs], network.shapes[node.name])
        assert np.array_equal(values[node.name][example], expected.astype(np.int64)), node.name
        assert values[node.name].dtype == np.int64


def test_values_lie_in_their_ranges() -> None:
    network = every_kind(1)
    inputs = np.random.default_rng(7).integers(0, 16, size=(300, 2, 6, 6))
    known = ranges(network, *full_range(network))
    for name, value in evaluate_nodes(network, inputs).items():
        low, high = known[name]
        assert np.all((value >= low) & (value <= high)), name


def one_sum(weights: list[int], high: int, accumulator_bits: int = 32) -> Network:
    unit = QuantizationParameters.of(1.0)
    dense = Dense("sum", ("input",), as_integers([weights]), as_integers([0]), accumulator_bits=accumulator_bits)
    return Network((Input("input", (len(weights),), 0, high), dense), unit, unit, "test")


def test_sums_beyond_float64_are_exact() -> None:
    """2⁵³ + 1 is the first integer that a float64 sum would lose."""
    network = one_sum([1 << 26, 1], (1 << 27) + 1)
    assert evaluate(network, np.array([[1 << 27, 1]])).item() == (1 << 53) + 1


def test_sums_beyond_64_bits_are_refused() -> None:
    network = one_sum([1 << 40, 1], 1 << 30)
    with pytest.raises(OverflowError, match="'sum'"):
        evaluate(network, np.array([[1 << 30, 0]]))


@pytest.mark.parametrize(("bits", "proved"), [(11, True), (10, False)])
def test_accumulator_proof_is_tight(bits: int, proved: bool) -> None:
    """3·100 + 5·100 = 800 < 2¹⁰ needs 11 bits with the sign."""
    (proof,) = accumulator_proofs(one_sum([3, -5], 100, bits))
    assert (proof.magnitude, proof.bits_needed, proof.proved) == (800, 11, proved)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((1, 2, 6, 6)), "must be integers"),
        (np.zeros((1, 2, 6, 5), dtype=int), "shape"),
        (np.full((1, 2, 6, 6), 16), "leave the valid range"),
        (np.full((1, 2, 6, 6), -1), "leave the valid range"),
        (np.full((1, 2, 6, 6), 2**64 - 1, dtype=np.uint64), "leave the valid range"),
    ],
)
def test_bad_inputs(inputs: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluate(every_kind(), inputs)
