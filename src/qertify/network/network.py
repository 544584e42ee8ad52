"""The integer network: a checked, immutable DAG with one input and one output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np

from qertify.network.graph import (
    Shape,
    convolution_shape,
    dense_shape,
    hash_nodes,
    infer_shapes,
    require,
    require_arity,
    shared_shape,
    windowed_shape,
)
from qertify.network.nodes import (
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
)
from qertify.network.tensor import QuantizationParameters


@dataclass(frozen=True, eq=False)
class Network:
    """A quantized network as integers.

    Attributes:
        nodes: in topological order; exactly one is an Input, and the last is the output.
        input_quantization: what an input code means.
        output_quantization: what an output code means.
        runtime_profile: whose arithmetic this is, bit for bit, for example "fixed-point".
        metadata: notes of the importer (source format, options); part of the digest.

    Raises:
        InvalidNetworkError: on construction, naming the node that breaks a rule.
    """

    nodes: tuple[Node, ...]
    input_quantization: QuantizationParameters
    output_quantization: QuantizationParameters
    runtime_profile: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shapes  # noqa: B018  (validates)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every node's value, without the batch axis."""
        return infer_shapes(self.nodes, Input, _output_shape)

    @property
    def input(self) -> Input:
        return next(node for node in self.nodes if isinstance(node, Input))

    @property
    def output(self) -> Node:
        return self.nodes[-1]

    @property
    def input_shape(self) -> Shape:
        return self.input.shape

    @property
    def output_size(self) -> int:
        """Number of outputs, flattened."""
        return prod(self.shapes[self.output.name])

    @cached_property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def parameter_count(self) -> int:
        """Number of weights and biases."""
        return sum(node.weight.size + node.bias.size for node in self.nodes if isinstance(node, Dense | Convolution))

    @cached_property
    def exactness(self) -> str:
        """ "exact", or "enclosure" where some value of the runtime is only known to lie between two staircases."""
        enclosed = any(isinstance(node, Staircase) and node.upper is not None for node in self.nodes)
        return "enclosure" if enclosed else "exact"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides what the network computes and how its codes are read."""
        state = hashlib.sha256()
        header = {
            "runtime_profile": self.runtime_profile,
            "metadata": dict(sorted(self.metadata.items())),
            "quantization": [
                [q.scale.tolist(), q.zero_point.tolist()] for q in (self.input_quantization, self.output_quantization)
            ],
        }
        state.update(json.dumps(header, sort_keys=True).encode())
        hash_nodes(state, self.nodes)
        return state.hexdigest()


def _require_unary_rows(node: Staircase | Table, rows: int, shape: Shape) -> None:
    try:
        fits = np.broadcast_shapes(node.row.shape, shape) == shape
    except ValueError:
        fits = False
    require(fits, node, f"row of shape {node.row.shape} does not fit the input {shape}")
    require(bool(np.all((node.row >= 0) & (node.row < rows))), node, f"a row index is outside 0 … {rows - 1}")


_ARITY: dict[type, int | None] = {Add: None, Rearrange: None, Input: 0, Product: 2}
"""How many inputs a node kind reads; None for one or more, one unless listed."""


def _output_shape(node: Node, inputs: list[Shape]) -> Shape:
    """The rule of each node kind: checks the node against its inputs' shapes, returns its own."""
    require_arity(node, inputs, _ARITY.get(type(node), 1))
    match node:
        case Input():
            require(node.low <= node.high, node, f"an empty input range {node.low} … {node.high}")
            return node.shape
        case Dense():
            return dense_shape(node, node.weight, node.bias, inputs[0])
        case Convolution():
            return convolution_shape(node, node.weight, node.bias, node.window, node.groups, inputs[0])
        case PoolSum():
            return windowed_shape(node, node.window, inputs[0])
        case Add() | Product() | Max() | Rearrange():
            return shared_shape(node, inputs)
        case Staircase():
            _require_unary_rows(node, node.steps.rows, inputs[0])
            if (upper := node.upper) is not None:
                alike = upper.low == node.steps.low and upper.thresholds.shape == node.steps.thresholds.shape
                require(alike, node, "the two staircases of an enclosure must have the same rows and values")
                above = bool(np.all(upper.thresholds <= node.steps.thresholds))
                require(above, node, "the upper staircase of an enclosure lies below the lower one")
            return inputs[0]
        case Table():
            require(node.values.ndim == 2 and node.values.size > 0, node, "a table needs values of shape (rows, size)")
            _require_unary_rows(node, node.values.shape[0], inputs[0])
            return inputs[0]
