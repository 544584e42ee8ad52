"""Exact integer ranges of every node over a box of inputs, and the proof that accumulators fit their width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.network.linear import absolute_sum, bias_of, exact_weighted_sum, weight_of, windows
from qertify.network.network import Network
from qertify.network.nodes import (
    Add,
    Convolution,
    Dense,
    Input,
    Linear,
    Max,
    PoolSum,
    Product,
    Rearrange,
    Staircase,
    Table,
)
from qertify.network.tensor import IntegerArray
from qertify.network.unary import apply_rows

Range = tuple[IntegerArray, IntegerArray]
"""Least and greatest values, both of shape (batch, *node shape)."""


def _linear(node: Linear, inputs: list[Range]) -> Range:
    low, high = (bound - node.zero_point for bound in inputs[0])
    largest = max(abs(int(low.min())), abs(int(high.max())))
    magnitude = absolute_sum(node, largest)
    weight = weight_of(node)
    if weight is None:
        return exact_weighted_sum(node, None, low, magnitude), exact_weighted_sum(node, None, high, magnitude)
    positive, negative, bias = np.maximum(weight, 0), np.minimum(weight, 0), bias_of(node)
    least = exact_weighted_sum(node, positive, low, magnitude) + exact_weighted_sum(node, negative, high, magnitude)
    greatest = exact_weighted_sum(node, positive, high, magnitude) + exact_weighted_sum(node, negative, low, magnitude)
    return least + bias, greatest + bias


def _staircase(node: Staircase, inputs: list[Range]) -> Range:
    low, high = inputs[0]
    greatest = node.steps if node.upper is None else node.upper
    return apply_rows(node.row, node.steps.rows, low, node.steps.value), apply_rows(
        node.row, node.steps.rows, high, greatest.value
    )


def _table(node: Table, inputs: list[Range]) -> Range:
    """Extremes between two codes: of two runs of 2^k codes, one from the first on and one up to the last."""
    first, last = (np.clip(bound - node.first, 0, node.values.shape[1] - 1) for bound in inputs[0])
    rows = np.broadcast_to(node.row, first.shape)
    power = np.frexp(last - first + 1)[1] - 1
    extremes: list[IntegerArray] = []
    for pick in (np.minimum, np.maximum):
        runs, result = node.values, np.empty_like(first)
        for k in range(int(power.max(initial=0)) + 1):
            mine = power == k
            result[mine] = pick(runs[rows[mine], first[mine]], runs[rows[mine], last[mine] - (1 << k) + 1])
            runs = pick(runs[:, : -(1 << k)], runs[:, 1 << k :])
        extremes.append(result)
    return extremes[0], extremes[1]


def _max(node: Max, inputs: list[Range]) -> Range:
    lowest = np.iinfo(np.int64).min
    low, high = (windows(bound, node.window, fill=lowest).max(axis=(-2, -1)) for bound in inputs[0])
    return low, high


def _add(node: Add, inputs: list[Range]) -> Range:
    (low, high), *rest = inputs
    for less, more in rest:
        low, high = low + less, high + more
    return low, high


def _product(node: Product, inputs: list[Range]) -> Range:
    (a, b), (c, d) = ([bound - zero for bound in pair] for pair, zero in zip(inputs, node.zero_points, strict=True))
    corners = np.stack([a * c, a * d, b * c, b * d])
    return corners.min(axis=0), corners.max(axis=0)


def rearrange(node: Rearrange, values: list[NDArray[Any]]) -> NDArray[Any]:
    """Apply a Rearrange node to batched values, integers or others."""
    batch = values[0].shape[0]
    flat = [value.reshape(batch, -1) for value in values]
    padded = np.concatenate([*flat, np.full((batch, 1), node.fill, dtype=np.int64)], axis=1)
    return padded[:, node.indices.reshape(-1)].reshape(batch, *node.indices.shape)


RULES: dict[type, Callable[[Any, list[Range]], Range]] = {
    Dense: _linear,
    Convolution: _linear,
    PoolSum: _linear,
    Add: _add,
    Product: _product,
    Rearrange: lambda node, inputs: (rearrange(node, [x for x, _ in inputs]), rearrange(node, [x for _, x in inputs])),
    Staircase: _staircase,
    Table: _table,
    Max: _max,
}
"""The interval rule of each node kind, Input excepted."""


def ranges(network: Network, low: IntegerArray, high: IntegerArray) -> dict[str, Range]:
    """Interval arithmetic in exact integers.

    Args:
        network: any network.
        low, high: int64, shape (batch, *input shape), low ≤ high: a batch of boxes.

    Returns:
        for every node the least and greatest values it can be shown to take, shape (batch, *node shape).
    """
    result: dict[str, Range] = {}
    for node in network.nodes:
        if isinstance(node, Input):
            result[node.name] = (low, high)
        else:
            result[node.name] = RULES[type(node)](node, [result[name] for name in node.inputs])
    return result


def full_range(network: Network) -> Range:
    """The box of all valid inputs, as a batch of one."""
    shape = (1, *network.input_shape)
    return np.full(shape, network.input.low, dtype=np.int64), np.full(shape, network.input.high, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class AccumulatorProof:
    """How large the accumulator of one linear node can get, over all valid inputs and in any order of summation.

    Attributes:
        node: its name.
        bits: the width of the runtime's accumulator.
        magnitude: a proved bound on every partial sum.
        bits_needed: width of a signed integer that holds ±magnitude.
        proved: whether the accumulator can't overflow.
    """

    node: str
    bits: int
    magnitude: int
    bits_needed: int
    proved: bool


def accumulator_proofs(network: Network) -> tuple[AccumulatorProof, ...]:
    """One proof a linear node, over the box of all valid inputs."""
    known = ranges(network, *full_range(network))
    proofs = []
    for node in network.nodes:
        if isinstance(node, Dense | Convolution | PoolSum):
            low, high = known[node.inputs[0]]
            largest = max(abs(int(low.min()) - node.zero_point), abs(int(high.max()) - node.zero_point))
            magnitude = absolute_sum(node, largest)
            needed = magnitude.bit_length() + 1
            proofs.append(
                AccumulatorProof(node.name, node.accumulator_bits, magnitude, needed, needed <= node.accumulator_bits)
            )
    return tuple(proofs)
