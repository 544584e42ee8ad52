"""The integer network: a checked, immutable DAG with one input and one output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import prod

import numpy as np

from qertify.errors import InvalidNetworkError
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
    Window,
)
from qertify.network.staircase import Steps
from qertify.network.tensor import QuantizationParameters

Shape = tuple[int, ...]


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
        shapes: dict[str, Shape] = {}
        for node in self.nodes:
            if node.name in shapes:
                raise InvalidNetworkError(node.name, "two nodes have this name")
            for name in node.inputs:
                if name not in shapes:
                    raise InvalidNetworkError(node.name, f"reads '{name}', which no earlier node computes")
            shape = _output_shape(node, [shapes[name] for name in node.inputs])
            if not shape or any(size <= 0 for size in shape):
                raise InvalidNetworkError(node.name, f"has the empty shape {shape}")
            shapes[node.name] = shape
        if sum(isinstance(node, Input) for node in self.nodes) != 1:
            raise InvalidNetworkError(None, "a network needs exactly one input node")
        read = {name for node in self.nodes for name in node.inputs}
        for node in self.nodes[:-1]:
            if node.name not in read:
                raise InvalidNetworkError(node.name, "is read by no node and is not the output")
        return shapes

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
        for node in self.nodes:
            for key, value in _flat_fields(node):
                state.update(f"|{key}=".encode())
                if isinstance(value, np.ndarray):
                    state.update(f"{value.shape}".encode() + value.astype("<i8").tobytes())
                else:
                    state.update(repr(value).encode())
        return state.hexdigest()


def _flat_fields(node: Node) -> Iterator[tuple[str, object]]:
    yield "kind", type(node).__name__
    for item in fields(node):
        value = getattr(node, item.name)
        if isinstance(value, Window | Steps):
            for inner in fields(value):
                yield f"{item.name}.{inner.name}", getattr(value, inner.name)
        else:
            yield item.name, value


def _require(condition: bool, node: Node, reason: str) -> None:
    if not condition:
        raise InvalidNetworkError(node.name, reason)


def _require_unary_rows(node: Staircase | Table, rows: int, shape: Shape) -> None:
    try:
        fits = np.broadcast_shapes(node.row.shape, shape) == shape
    except ValueError:
        fits = False
    _require(fits, node, f"row of shape {node.row.shape} does not fit the input {shape}")
    _require(bool(np.all((node.row >= 0) & (node.row < rows))), node, f"a row index is outside 0 … {rows - 1}")


def _windowed_shape(node: Convolution | PoolSum | Max, shape: Shape, channels: int) -> Shape:
    window = node.window
    _require(len(shape) == 3, node, f"needs an input of shape (channels, height, width), got {shape}")
    _require(min(*window.kernel, *window.stride, *window.dilation) >= 1, node, "kernel, stride and dilation must be ≥ 1")
    _require(min(window.padding) >= 0, node, "padding must not be negative")
    return (channels, *window.output_size(shape[1], shape[2]))


_ARITY: dict[type, int | None] = {Add: None, Rearrange: None, Input: 0, Product: 2}
"""How many inputs a node kind reads; None for one or more, one unless listed."""


def _output_shape(node: Node, inputs: list[Shape]) -> Shape:
    """The rule of each node kind: checks the node against its inputs' shapes, returns its own."""
    arity = _ARITY.get(type(node), 1)
    if arity is None:
        _require(len(inputs) >= 1, node, "needs at least one input")
    else:
        _require(len(inputs) == arity, node, f"needs {arity} input(s), got {len(inputs)}")
    match node:
        case Input():
            _require(node.low <= node.high, node, f"an empty input range {node.low} … {node.high}")
            return node.shape
        case Dense():
            _require(node.weight.ndim == 2, node, f"weight must have two axes, not shape {node.weight.shape}")
            _require(inputs[0] == (node.weight.shape[1],), node, f"weight {node.weight.shape} does not fit input {inputs[0]}")
            _require(
                node.bias.shape == (node.weight.shape[0],), node, f"bias {node.bias.shape} does not fit {node.weight.shape}"
            )
            return (node.weight.shape[0],)
        case Convolution():
            _require(node.weight.ndim == 4, node, f"weight must have four axes, not shape {node.weight.shape}")
            out, per_group, *kernel = node.weight.shape
            shape = _windowed_shape(node, inputs[0], out)
            _require(tuple(kernel) == node.window.kernel, node, f"weight {node.weight.shape} does not fit {node.window.kernel}")
            _require(node.groups >= 1 and out % node.groups == 0, node, f"{out} channels in {node.groups} groups")
            _require(
                per_group * node.groups == inputs[0][0], node, f"weight {node.weight.shape} does not fit input {inputs[0]}"
            )
            _require(node.bias.shape == (out,), node, f"bias {node.bias.shape} does not fit {node.weight.shape}")
            return shape
        case PoolSum() | Max():
            _require(len(inputs[0]) == 3, node, f"needs an input of shape (channels, height, width), got {inputs[0]}")
            shape = _windowed_shape(node, inputs[0], inputs[0][0])
            if isinstance(node, Max):
                reach = [d * (k - 1) + 1 for k, d in zip(node.window.kernel, node.window.dilation, strict=True)]
                pads = node.window.padding
                covered = max(pads[0], pads[2]) < reach[0] and max(pads[1], pads[3]) < reach[1]
                _require(covered, node, "a window that holds only padding has no maximum")
            return shape
        case Add() | Product():
            _require(all(shape == inputs[0] for shape in inputs), node, f"input shapes differ: {inputs}")
            return inputs[0]
        case Rearrange():
            total = sum(prod(shape) for shape in inputs)
            _require(bool(np.all((node.indices >= -1) & (node.indices < total))), node, f"an index is outside −1 … {total - 1}")
            return node.indices.shape
        case Staircase():
            _require_unary_rows(node, node.steps.rows, inputs[0])
            return inputs[0]
        case Table():
            _require(node.values.ndim == 2 and node.values.size > 0, node, "a table needs values of shape (rows, size)")
            _require_unary_rows(node, node.values.shape[0], inputs[0])
            return inputs[0]
