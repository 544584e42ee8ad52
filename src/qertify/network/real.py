"""The real network: a float network as exact real arithmetic, a checked, immutable DAG with one input and one output.

The numbers in it are those of the source file: every float32 or float64 is an exact dyadic number, so the network is a
function of real numbers that can be computed without any rounding. It says nothing about how a runtime rounds; a bound
on that is in `real_evaluate`. Shapes never include the batch axis; images are (channels, height, width).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from qertify.errors import InvalidNetworkError
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
from qertify.network.nodes import Add, Max, Rearrange, Window
from qertify.network.tensor import FloatArray, IntegerArray


def as_reals(values: ArrayLike, node: str | None = None) -> FloatArray:
    """A read-only, contiguous float64 copy of floating-point data, exactly.

    Raises:
        InvalidNetworkError: the data are not float64, float32 or float16, or hold NaN or infinity.
    """
    array = np.asarray(values)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise InvalidNetworkError(node, f"expected float32 or float64 numbers, got {array.dtype}")
    result = np.array(array, dtype=np.float64, order="C")
    if not np.all(np.isfinite(result)):
        raise InvalidNetworkError(node, "a weight is NaN or infinite")
    result.setflags(write=False)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class RealInput:
    """The network's input: every real tensor of this shape."""

    name: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class RealDense:
    """z = weight · y + bias; weight (out, in), bias (out,), y (in,)."""

    name: str
    inputs: tuple[str, ...]
    weight: FloatArray
    bias: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class RealConvolution:
    """Two-dimensional cross-correlation, zero padded, plus bias; weight (out, in / groups, kh, kw), bias (out,)."""

    name: str
    inputs: tuple[str, ...]
    weight: FloatArray
    bias: FloatArray
    window: Window
    groups: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class RealAverage:
    """The sum over a window, zero padded, channel by channel, divided by ``divisor``.

    Attributes:
        divisor: int64, positive, broadcastable to the output's shape: how many elements are averaged.
    """

    name: str
    inputs: tuple[str, ...]
    window: Window
    divisor: IntegerArray


def _no_error() -> FloatArray:
    return as_reals(np.zeros(1))


@dataclass(frozen=True, slots=True, eq=False)
class RealScale:
    """y · factor + shift, element by element: batch normalization, and arithmetic with constants.

    Attributes:
        factor, shift: float64, broadcastable to the input's shape.
        factor_error, shift_error: float64, likewise: how far the constants that a float32 runtime computes with may lie
            from these at most. Zero where the file holds the constants themselves; the function of real numbers does not
            depend on them.
    """

    name: str
    inputs: tuple[str, ...]
    factor: FloatArray
    shift: FloatArray
    factor_error: FloatArray = field(default_factory=_no_error)
    shift_error: FloatArray = field(default_factory=_no_error)


@dataclass(frozen=True, slots=True, eq=False)
class Relu:
    """max(y, 0), element by element."""

    name: str
    inputs: tuple[str, ...]


RealLinear: TypeAlias = RealDense | RealConvolution | RealAverage
RealNode: TypeAlias = RealInput | RealDense | RealConvolution | RealAverage | RealScale | Relu | Add | Max | Rearrange

REAL_NODE_KINDS: tuple[type, ...] = (
    RealInput, RealDense, RealConvolution, RealAverage, RealScale, Relu, Add, Max, Rearrange,
)  # fmt: skip
"""Every node kind; each analysis has a rule for each of them, which tests/architecture checks."""


@dataclass(frozen=True, eq=False)
class RealNetwork:
    """A float network as a function of real numbers.

    Attributes:
        nodes: in topological order; exactly one is a RealInput, and the last is the output.
        metadata: notes of the importer (source format, how the outputs are to be read); part of the digest.

    Raises:
        InvalidNetworkError: on construction, naming the node that breaks a rule.
    """

    nodes: tuple[RealNode, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shapes  # noqa: B018  (validates)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every node's value, without the batch axis."""
        return infer_shapes(self.nodes, RealInput, _output_shape)

    @property
    def input(self) -> RealInput:
        return next(node for node in self.nodes if isinstance(node, RealInput))

    @property
    def output(self) -> RealNode:
        return self.nodes[-1]

    @property
    def input_shape(self) -> Shape:
        return self.input.shape

    @property
    def output_size(self) -> int:
        """Number of outputs, flattened."""
        return prod(self.shapes[self.output.name])

    @cached_property
    def by_name(self) -> dict[str, RealNode]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def parameter_count(self) -> int:
        """Number of weights and biases."""
        return sum(node.weight.size + node.bias.size for node in self.nodes if isinstance(node, RealDense | RealConvolution))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides what the network computes."""
        state = hashlib.sha256()
        state.update(json.dumps({"real": True, "metadata": dict(sorted(self.metadata.items()))}, sort_keys=True).encode())
        hash_nodes(state, self.nodes)
        return state.hexdigest()


def _fits(values: FloatArray | IntegerArray, shape: Shape) -> bool:
    try:
        return np.broadcast_shapes(values.shape, shape) == shape
    except ValueError:
        return False


_ARITY: dict[type, int | None] = {Add: None, Rearrange: None, RealInput: 0}
"""How many inputs a node kind reads; None for one or more, one unless listed."""


def _output_shape(node: RealNode, inputs: list[Shape]) -> Shape:
    """The rule of each node kind: checks the node against its inputs' shapes, returns its own."""
    require_arity(node, inputs, _ARITY.get(type(node), 1))
    match node:
        case RealInput():
            return node.shape
        case RealDense():
            _require_finite(node, node.weight, node.bias)
            return dense_shape(node, node.weight, node.bias, inputs[0])
        case RealConvolution():
            _require_finite(node, node.weight, node.bias)
            return convolution_shape(node, node.weight, node.bias, node.window, node.groups, inputs[0])
        case RealAverage():
            shape = windowed_shape(node, node.window, inputs[0])
            require(_fits(node.divisor, shape), node, f"divisor of shape {node.divisor.shape} does not fit the output {shape}")
            require(node.divisor.dtype.kind in "iu" and bool(np.all(node.divisor > 0)), node, "a divisor is not positive")
            return shape
        case RealScale():
            constants = (node.factor, node.shift, node.factor_error, node.shift_error)
            _require_finite(node, *constants)
            for values in constants:
                require(_fits(values, inputs[0]), node, f"constants of shape {values.shape} do not fit the input {inputs[0]}")
            require(bool(np.all(node.factor_error >= 0) and np.all(node.shift_error >= 0)), node, "an error bound is negative")
            return inputs[0]
        case Relu():
            return inputs[0]
        case Add() | Max():
            return shared_shape(node, inputs)
        case Rearrange():
            require(node.fill == 0, node, f"fills with {node.fill}; only zero is padded in a real network")
            return shared_shape(node, inputs)


def _require_finite(node: RealNode, *arrays: FloatArray) -> None:
    for array in arrays:
        require(
            array.dtype == np.float64 and bool(np.all(np.isfinite(array))), node, "a weight is NaN, infinite or not float64"
        )
