"""The reference evaluator: exact integers, batched. Every counterexample is replayed here; this is the trusted base.

Where a staircase is an enclosure, `evaluate` takes the least value: one run among those that the enclosure allows, which
proves nothing about the others. `evaluate_interval` contains them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qertify.errors import InvalidInputError
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
from qertify.network.ranges import ranges, rearrange
from qertify.network.tensor import IntegerArray
from qertify.network.unary import apply_rows


def _linear(node: Linear, inputs: list[IntegerArray]) -> IntegerArray:
    centred = inputs[0] - node.zero_point
    largest = max(abs(int(centred.min())), abs(int(centred.max()))) if centred.size else 0
    return exact_weighted_sum(node, weight_of(node), centred, absolute_sum(node, largest)) + bias_of(node)


def _table(node: Table, inputs: list[IntegerArray]) -> IntegerArray:
    code = np.clip(inputs[0] - node.first, 0, node.values.shape[1] - 1)
    return node.values[np.broadcast_to(node.row, code.shape), code]


RULES: dict[type, Callable[[Any, list[IntegerArray]], IntegerArray]] = {
    Dense: _linear,
    Convolution: _linear,
    PoolSum: _linear,
    Add: lambda node, inputs: sum(inputs[1:], start=inputs[0]),
    Product: lambda node, inputs: (inputs[0] - node.zero_points[0]) * (inputs[1] - node.zero_points[1]),
    Rearrange: rearrange,
    Staircase: lambda node, inputs: apply_rows(node.row, node.steps.rows, inputs[0], node.steps.value),
    Table: _table,
    Max: lambda node, inputs: windows(inputs[0], node.window, fill=np.iinfo(np.int64).min).max(axis=(-2, -1)),
}
"""The meaning of each node kind, Input excepted."""


def check_inputs(network: Network, inputs: ArrayLike) -> IntegerArray:
    """A batch of input codes as int64 of shape (batch, *input shape).

    Raises:
        InvalidInputError: not integers, wrong shape, or a code outside the input's range.
    """
    array = np.asarray(inputs)
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"input codes must be integers, not {array.dtype}")
    if array.shape[1:] != network.input_shape:
        raise InvalidInputError(f"input codes of shape {array.shape[1:]} given, but the network reads {network.input_shape}")
    low, high = network.input.low, network.input.high
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        raise InvalidInputError(f"input codes {array.min()} … {array.max()} leave the valid range {low} … {high}")
    return array.astype(np.int64)


def evaluate_nodes(network: Network, inputs: ArrayLike) -> dict[str, IntegerArray]:
    """The value of every node.

    Args:
        network: any network.
        inputs: integer codes, shape (batch, *input shape).

    Returns:
        for each node name an int64 array of shape (batch, *node shape).

    Raises:
        InvalidInputError: as `check_inputs`.
    """
    values = {network.input.name: check_inputs(network, inputs)}
    for node in network.nodes:
        if not isinstance(node, Input):
            values[node.name] = RULES[type(node)](node, [values[name] for name in node.inputs])
    return values


def evaluate(network: Network, inputs: ArrayLike) -> IntegerArray:
    """Output codes, int64 of shape (batch, outputs), flattened; see `evaluate_nodes`."""
    return evaluate_nodes(network, inputs)[network.output.name].reshape(len(np.asarray(inputs)), -1)


def evaluate_interval(network: Network, inputs: ArrayLike) -> tuple[IntegerArray, IntegerArray]:
    """Least and greatest output codes that a run on each input may give, (batch, outputs) each; equal for exact networks."""
    codes = check_inputs(network, inputs)
    if network.exactness == "exact":
        outputs = evaluate(network, codes)
        return outputs, outputs
    low, high = ranges(network, codes, codes)[network.output.name]
    return low.reshape(len(codes), -1), high.reshape(len(codes), -1)
