"""What the lowering rules of ONNX operators share: values under construction, and checked access to operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.errors import ModelFileError, UnsupportedModelError
from qertify.importers.islands import Island
from qertify.importers.lowering import Builder
from qertify.importers.moving import Codes, Mover
from qertify.importers.onnx_file import Constant, Graph, GraphNode
from qertify.importers.reals import Real, Scaled, Sum
from qertify.network.nodes import Window
from qertify.network.tensor import IntegerArray, QuantizationParameters
from qertify.runtimes.float32 import Float32Array, is_normal

SIZE_LIMIT = 1 << 16
"""Largest kernel, stride, dilation or padding."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a final operator makes of strictly ordered codes: "softmax" or "argmax". Only an output may be one."""

    codes: Codes
    kind: str


Value = Codes | Real | Decision | Sum | Scaled | Island


@dataclass(frozen=True, slots=True)
class Context:
    """One import in progress, of a quantized or a float graph.

    Attributes:
        values: of the tensors lowered so far; constants are not among them.
    """

    graph: Graph
    builder: Mover[Any]
    values: dict[str, Value] = field(default_factory=dict)

    def value(self, node: GraphNode, position: int) -> Value:
        """An operand that depends on the network's input."""
        name = _operand(node, position)
        if name not in self.values:
            raise UnsupportedModelError(
                node.name, node.op, None, f"operand '{name}' is a constant here; a computed one is needed"
            )
        return self.values[name]

    def is_constant(self, node: GraphNode, position: int) -> bool:
        return len(node.inputs) > position and node.inputs[position] in self.graph.constants

    def constant(self, node: GraphNode, position: int, kinds: str = "iuf") -> Constant:
        """An operand that the file holds; ``kinds`` are the numpy kinds allowed."""
        name = _operand(node, position)
        if name not in self.graph.constants:
            raise UnsupportedModelError(node.name, node.op, None, f"operand '{name}' must be a constant, it is computed")
        array = self.graph.constants[name]
        if array.dtype.kind not in kinds:
            raise UnsupportedModelError(node.name, node.op, None, f"operand '{name}' has the type {array.dtype}")
        return array


@dataclass(frozen=True, slots=True)
class Lowering(Context):
    """The import of a quantized graph.

    Attributes:
        kernels: for each linear node the types its multiplication runs on, which saturation analysis needs.
        islands: nodes whose float arithmetic was enclosed; an enclosure may turn out exact.
        quantized_inputs: what the quantizers of the real input read.
    """

    builder: Builder
    kernels: dict[str, dict[str, Any]] = field(default_factory=dict)
    islands: list[GraphNode] = field(default_factory=list)
    quantized_inputs: list[Real] = field(default_factory=list)

    def codes(self, node: GraphNode, position: int) -> Codes:
        """An operand that is an integer tensor."""
        value = self.value(node, position)
        if not isinstance(value, Codes):
            raise UnsupportedModelError(node.name, node.op, None, "it computes in float; a quantized operator is needed")
        return value

    def scales(self, node: GraphNode, position: int) -> Float32Array:
        """A scale operand, one-dimensional: one for the tensor or one a channel."""
        array = self.constant(node, position)
        if array.dtype != np.float32 or array.ndim > 1 or not array.size:
            raise UnsupportedModelError(
                node.name,
                node.op,
                "scale",
                f"float32, one or one a channel is needed, not {array.dtype} of shape {array.shape}",
            )
        if not all(is_normal(float(scale)) for scale in array.reshape(-1)):
            raise UnsupportedModelError(node.name, node.op, "scale", "every scale must be a positive normal float32")
        return array.reshape(-1)

    def scale(self, node: GraphNode, position: int) -> np.float32:
        """A scale operand of the whole tensor."""
        array = self.scales(node, position)
        if array.size != 1:
            raise UnsupportedModelError(node.name, node.op, "scale", "one scale a tensor is needed for activations")
        return np.float32(array[0])

    def zero_points(self, node: GraphNode, position: int) -> Constant:
        """A zero point operand, one-dimensional, uint8 or int8; an omitted one is uint8 zero."""
        if len(node.inputs) <= position or not node.inputs[position]:
            return np.zeros(1, dtype=np.uint8)
        array = self.constant(node, position)
        require_8_bits(node, "zero_point", array.dtype)
        if array.ndim > 1 or not array.size:
            raise UnsupportedModelError(node.name, node.op, "zero_point", f"has the shape {array.shape}")
        return array.reshape(-1)

    def zero_point(self, node: GraphNode, position: int) -> tuple[int, int, int]:
        """A zero point of the whole tensor, and the least and greatest code of its type."""
        array = self.zero_points(node, position)
        if array.size != 1:
            raise UnsupportedModelError(node.name, node.op, "zero_point", "one zero point a tensor is needed for activations")
        limits = np.iinfo(array.dtype)
        return int(array[0]), int(limits.min), int(limits.max)

    def quantized(self, node: GraphNode, position: int) -> tuple[Codes, np.float32, int]:
        """An operand given as tensor, scale and zero point, in this order from ``position``."""
        codes = self.codes(node, position)
        zero_point, low, high = self.zero_point(node, position + 2)
        if (codes.low, codes.high) != (low, high):
            raise ModelFileError(f"node '{node.name}': tensor and zero point of operand {position} have different types")
        return codes, self.scale(node, position + 1), zero_point

    def result(self, node: GraphNode, position: int) -> tuple[np.float32, int, int, int, QuantizationParameters]:
        """Scale, zero point, least and greatest code of the result, from the scale operand at ``position``."""
        scale = self.scale(node, position)
        zero_point, low, high = self.zero_point(node, position + 1)
        return scale, zero_point, low, high, QuantizationParameters.of(float(scale), zero_point)


def _operand(node: GraphNode, position: int) -> str:
    if position >= len(node.inputs) or not node.inputs[position]:
        raise UnsupportedModelError(node.name, node.op, None, f"operand {position} is missing")
    return node.inputs[position]


def require_8_bits(node: GraphNode, what: str, dtype: np.dtype[Any]) -> None:
    if dtype.name not in ("uint8", "int8"):
        raise UnsupportedModelError(node.name, node.op, what, f"uint8 or int8 is needed, not {dtype}")


def attribute(node: GraphNode, name: str, default: Any) -> Any:
    """An attribute of the default's type.

    Raises:
        UnsupportedModelError: another type.
    """
    value = node.attributes.get(name, default)
    if default is not None and not isinstance(value, type(default)):
        raise UnsupportedModelError(node.name, node.op, name, f"has an unexpected type: {value!r}"[:200])
    return value


def require_default(node: GraphNode, **defaults: Any) -> None:
    """Reject attributes that differ from the given values."""
    for name, default in defaults.items():
        if name in node.attributes and node.attributes[name] != default:
            value = node.attributes[name]
            raise UnsupportedModelError(node.name, node.op, name, f"{value!r} given, only {default!r} is supported"[:200])


def on_codes(value: Value, function: Callable[[Codes], Codes], node: GraphNode) -> Value:
    """Apply an operator that only moves elements."""
    match value:
        case Codes():
            return function(value)
        case Real(row=None):
            return replace(value, codes=function(value.codes))
        case Real():
            raise UnsupportedModelError(
                node.name, node.op, None, "it moves what has numbers of its own for each channel; quantize it before"
            )
        case Island() if value.uniform:
            return value.on(function(value.z))
        case Scaled() if value.multiplier.size == 1:
            return replace(value, codes=function(value.codes))
        case Island() | Sum() | Scaled():
            raise UnsupportedModelError(node.name, node.op, None, "it moves what was computed in float; quantize it before")
        case Decision():
            raise UnsupportedModelError(node.name, node.op, None, f"nothing may follow the final {value.kind}")


def axis_without_batch(node: GraphNode, axis: int, rank: int) -> int:
    """An ONNX axis of a tensor with ``rank`` axes besides the batch, as an axis of the tensor without the batch."""
    full = axis + rank + 1 if axis < 0 else axis
    if not 1 <= full <= rank:
        raise UnsupportedModelError(node.name, node.op, "axis", f"{axis} is the batch axis or out of range")
    return full - 1


def _sizes(node: GraphNode, name: str, count: int, default: int) -> tuple[int, ...]:
    values = attribute(node, name, (default,) * count)
    if len(values) != count or any(not isinstance(v, int) or not 0 <= v <= SIZE_LIMIT for v in values):
        raise UnsupportedModelError(node.name, node.op, name, f"{list(values)[:8]} is not {count} sizes up to {SIZE_LIMIT}")
    return values


def window_of(node: GraphNode, size: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The sliding window of a convolution or pool over one or two axes of this size; one axis is lifted to (1, size)."""
    axes = len(size)
    strides, dilations = _sizes(node, "strides", axes, 1), _sizes(node, "dilations", axes, 1)
    if not kernel or len(kernel) != axes or min(*kernel, *strides, *dilations) < 1 or max(kernel) > SIZE_LIMIT:
        raise UnsupportedModelError(node.name, node.op, "kernel_shape", "kernel, strides and dilations must be at least 1")
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    match attribute(node, "auto_pad", b"NOTSET"):
        case b"NOTSET":
            pads = _sizes(node, "pads", 2 * axes, 0)
        case b"VALID":
            pads = (0,) * (2 * axes)
        case b"SAME_UPPER" | b"SAME_LOWER" as mode:
            totals = [max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(size, strides, reach, strict=True)]
            small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
            pads = small + large if mode == b"SAME_UPPER" else large + small
        case other:
            raise UnsupportedModelError(node.name, node.op, "auto_pad", f"unknown mode {other!r}"[:100])
    before, after = pads[:axes], list(pads[axes:])
    if attribute(node, "ceil_mode", 0):
        for i in range(axes):
            spare = (size[i] + before[i] + after[i] - reach[i]) % strides[i]
            after[i] += (strides[i] - spare) % strides[i]
    if any(n + b + a < r for n, b, a, r in zip(size, before, after, reach, strict=True)):
        raise UnsupportedModelError(
            node.name, node.op, "kernel_shape", f"the window {list(reach)} does not fit the input {size}"
        )
    lift: Callable[[tuple[int, ...], int], tuple[int, int]] = lambda v, fill: (fill, v[0]) if axes == 1 else (v[0], v[1])  # noqa: E731
    (top, left), (bottom, right) = lift(before, 0), lift(tuple(after), 0)
    return Window(lift(kernel, 1), lift(strides, 1), (top, left, bottom, right), lift(dilations, 1))


def integers(array: NDArray[Any]) -> IntegerArray:
    return array.astype(np.int64)
