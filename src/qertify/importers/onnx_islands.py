"""ONNX operators that a runtime computes in float32 between quantized ones: sums, products and averages, as enclosures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np

from qertify.errors import UnsupportedModelError
from qertify.importers import islands, reals
from qertify.importers.float_lowering import averaged_elements
from qertify.importers.islands import Island, Weights, clamp
from qertify.importers.lowering import Codes
from qertify.importers.onnx_context import Lowering, Real, Scaled, Sum, Value, attribute, integers, require_default, window_of
from qertify.importers.onnx_file import GraphNode
from qertify.importers.onnx_moves import along_window, reduced_axes
from qertify.network.nodes import Window
from qertify.network.tensor import FloatArray, IntegerArray, QuantizationParameters
from qertify.runtimes.float32 import Float32Array
from qertify.runtimes.onnxruntime_arithmetic import dequantize, quantize


def as_island(lowering: Lowering, node: GraphNode, value: Value, name: str = "") -> Island:
    """A computed float operand as an island; ``name`` tells several operands of one node apart.

    Raises:
        UnsupportedModelError: it is no float tensor behind a quantizer.
    """
    lowering.islands.append(node)
    prefix = f"{node.name}/{name}" if name else node.name
    match value:
        case Island():
            return value
        case Real(row=row) if row is not None:
            return as_island(lowering, node, reals.ranked(lowering.builder, f"{prefix}/ranks", value), name)
        case Real(codes, values) if values is not None:
            return islands.from_codes(lowering.builder, prefix, codes, values)
        case Scaled():
            return islands.from_scaled(value)
        case Sum(a, b, low, high):
            parts = [
                islands.from_codes(lowering.builder, f"{prefix}/{side}", x.codes, x.values)
                for side, x in (("a", a), ("b", b))
                if x.values is not None
            ]
            total = _added(lowering, node, f"{prefix}/sum", parts[0], parts[1])
            return total if (low, high) == (-np.inf, np.inf) else islands.then(total, clamp(low, high))
        case _:
            raise UnsupportedModelError(node.name, node.op, None, "it computes in float; a quantizer before it is needed")


def linear_island(lowering: Lowering, node: GraphNode, value: Value, name: str = "") -> tuple[Island, int]:
    """A linear island of one scale, and the integer that stands for zero in it.

    Raises:
        UnsupportedModelError: it is not of this form.
    """
    x = as_island(lowering, node, value, name)
    zero_point = islands.zero_point_of(x)
    if zero_point is None:
        raise UnsupportedModelError(
            node.name, node.op, None, "its operand was computed in float, too; a quantizer between them is needed"
        )
    return x, zero_point


def _producer(lowering: Lowering, name: str) -> GraphNode | None:
    return next((node for node in lowering.graph.nodes if name in node.outputs), None)


def is_float_constant(lowering: Lowering, node: GraphNode, position: int) -> bool:
    """Whether an operand is a constant, stored or dequantized."""
    if position < len(node.inputs) and node.inputs[position] in lowering.values:
        return False
    source = _producer(lowering, node.inputs[position]) if position < len(node.inputs) else None
    dequantized = source is not None and source.op == "DequantizeLinear" and lowering.is_constant(source, 0)
    return lowering.is_constant(node, position) or dequantized


def float_constant(lowering: Lowering, node: GraphNode, position: int) -> tuple[Float32Array, GraphNode | None]:
    """An operand that is a float constant, stored or dequantized, and the node that dequantizes it."""
    if lowering.is_constant(node, position):
        array = lowering.constant(node, position, "f")
        if array.dtype != np.float32:
            raise UnsupportedModelError(node.name, node.op, None, f"operand {position} is {array.dtype}; float32 is needed")
        return array, None
    source = _producer(lowering, node.inputs[position])
    if source is None or source.op != "DequantizeLinear" or not lowering.is_constant(source, 0):
        raise UnsupportedModelError(node.name, node.op, None, f"operand {position} must be a constant, it is computed")
    return dequantized_constant(lowering, source), source


def dequantized_constant(lowering: Lowering, source: GraphNode) -> Float32Array:
    """What a DequantizeLinear makes of a stored constant."""
    require_default(source, block_size=0, output_dtype=0)
    stored, scale = lowering.constant(source, 0, "iu"), lowering.scales(source, 1)
    zero_point = lowering.constant(source, 2, "iu").reshape(-1) if len(source.inputs) > 2 and source.inputs[2] else np.zeros(1)
    shape = [1] * stored.ndim
    if max(scale.size, zero_point.size) > 1:
        shape[attribute(source, "axis", 1)] = -1
    codes, zeros = integers(stored), integers(zero_point).reshape(shape)
    return np.asarray((codes - zeros).astype(np.float32) * scale.reshape(shape), dtype=np.float32)


def _weights(lowering: Lowering, node: GraphNode, position: int, output_axis: int) -> Weights:
    """Weights with the output channel first."""
    values, source = float_constant(lowering, node, position)
    values = np.moveaxis(values, output_axis, 0)
    if source is not None:
        scale = lowering.scales(source, 1).astype(np.float64)
        spread = scale.reshape(-1, *(1,) * (values.ndim - 1)) if scale.size in (1, len(values)) else None
        whole = None if spread is None else np.rint(values.astype(np.float64) / spread).astype(np.int64)
        if whole is not None:
            found = Weights(values.astype(np.float64), whole, scale)
            if np.all(found.residual <= 4 * islands.UNIT * np.abs(found.values)):
                return found
    return islands.weights_on_grid(values)


def _bias(lowering: Lowering, node: GraphNode, position: int, channels: int) -> FloatArray:
    if len(node.inputs) <= position or not node.inputs[position]:
        return np.zeros(channels)
    values, _ = float_constant(lowering, node, position)
    return np.broadcast_to(values.astype(np.float64).reshape(-1), (channels,))


def _convolution(lowering: Lowering, node: GraphNode) -> Value:
    x, zero_point = linear_island(lowering, node, lowering.value(node, 0))
    weights = _weights(lowering, node, 1, 0)
    groups, builder = attribute(node, "group", 1), lowering.builder
    size = x.z.shape[1:]
    if weights.integers.ndim not in (3, 4) or len(size) != weights.integers.ndim - 2:
        raise UnsupportedModelError(
            node.name, node.op, None, f"weight {weights.integers.shape} on {x.z.shape}; one or two axes"
        )
    window = window_of(node, size, weights.integers.shape[2:])
    image = builder.reshape(f"{node.name}/image", x.z, (x.z.shape[0], *(1,) * (2 - len(size)), *size))

    def sums(weight: IntegerArray) -> Codes:
        full = weight if weight.ndim == 4 else weight[:, :, None, :]
        zeros = np.zeros(len(full), dtype=np.int64)
        z = builder.convolution(node.name, image, full, zeros, window, zero_point, groups, None, 64)
        return z if weight.ndim == 4 else builder.reshape(f"{node.name}/signal", z, (z.shape[0], z.shape[2]))

    return islands.linear(x, weights, _bias(lowering, node, 2, len(weights.integers)), zero_point, sums)


ACTIVATIONS: dict[str, Callable[[tuple[float, ...]], islands.Monotone]] = {
    "Relu": lambda _: clamp(0.0, np.inf),
    "Clip": lambda limits: clamp(*limits),
}
"""Activations that onnxruntime fuses into float operators, by name; they get its parameters."""


def _activated(lowering: Lowering, node: GraphNode, x: Island) -> Island:
    name = attribute(node, "activation", b"").decode(errors="replace")
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            node.name, node.op, "activation", f"'{name}' is not enclosed; a quantizer before it is needed"
        )
    return islands.then(x, ACTIVATIONS[name](attribute(node, "activation_params", ())))


def _fused_convolution(lowering: Lowering, node: GraphNode) -> Value:
    """FusedConv: a convolution, perhaps added to another tensor, and an activation."""
    result = _convolution(lowering, node)
    assert isinstance(result, Island)
    if len(node.inputs) > 3 and node.inputs[3]:
        other = as_island(lowering, node, lowering.value(node, 3), "other")
        terms = _weights(lowering, node, 1, 0).integers[0].size + 3
        other = replace(other, error=other.error + islands.gamma(terms) * other.largest())  # it may be where the sum begins
        result = _added(lowering, node, f"{node.name}/sum", result, other)
    return _activated(lowering, node, result) if "activation" in node.attributes else result


def _fused_gemm(lowering: Lowering, node: GraphNode) -> Value:
    result = _gemm(lowering, node)
    assert isinstance(result, Island)
    return _activated(lowering, node, result)


def _dense(lowering: Lowering, node: GraphNode, output_axis: int) -> Value:
    x, zero_point = linear_island(lowering, node, lowering.value(node, 0))
    weights = _weights(lowering, node, 1, output_axis)
    if len(x.z.shape) != 1 or weights.integers.ndim != 2:
        raise UnsupportedModelError(
            node.name, node.op, None, f"weight {weights.integers.shape} on {x.z.shape}; one axis is needed"
        )

    def sums(weight: IntegerArray) -> Codes:
        return lowering.builder.dense(node.name, x.z, weight, np.zeros(len(weight), dtype=np.int64), zero_point, None, 64)

    return islands.linear(x, weights, _bias(lowering, node, 2, len(weights.integers)), zero_point, sums)


def _gemm(lowering: Lowering, node: GraphNode) -> Value:
    require_default(node, alpha=1.0, beta=1.0, transA=0)
    return _dense(lowering, node, 0 if attribute(node, "transB", 0) else 1)


def _average_pool(lowering: Lowering, node: GraphNode) -> Value:
    require_default(node, ceil_mode=0, dilations=(1, 1))
    return _average(lowering, node, lowering.value(node, 0))


def _average(lowering: Lowering, node: GraphNode, value: Value, channels_last: bool = False) -> Island:
    x, zero_point = linear_island(lowering, node, value)
    kernel = attribute(node, "kernel_shape", (0,))
    builder = lowering.builder
    axes = len(x.z.shape) - 1
    z = builder.transpose(f"{node.name}/first", x.z, (axes, *range(axes))) if channels_last else x.z
    if axes not in (1, 2) or len(kernel) != axes:
        raise UnsupportedModelError(node.name, node.op, "kernel_shape", f"{list(kernel)[:4]} on {z.shape}; one or two axes")
    window = window_of(node, z.shape[1:], tuple(kernel))
    z = builder.reshape(f"{node.name}/image", z, (z.shape[0], 1, z.shape[1])) if axes == 1 else z
    counts = averaged_elements(z.shape, window, bool(attribute(node, "count_include_pad", 0)))
    mean = islands.average(builder, f"{node.name}/mean", x.on(z), zero_point, window, counts)
    if axes == 2:
        return mean
    return islands.moved(builder, f"{node.name}/signal", mean, np.arange(prod(mean.z.shape)).reshape(mean.z.shape[0], -1))


def _whole_average(lowering: Lowering, node: GraphNode) -> Value:
    """ReduceMean, or GlobalAveragePool over everything but the channels."""
    x, zero_point = linear_island(lowering, node, lowering.value(node, 0))
    pool, rank = node.op == "GlobalAveragePool", len(x.z.shape)
    axes = tuple(range(1, rank)) if pool else reduced_axes(lowering, node, rank)
    means: list[Island] = []

    def reduce(row: Codes) -> Codes:
        elements = row.shape[2]
        window = Window((1, elements))
        means.append(islands.average(lowering.builder, node.name, x.on(row), zero_point, window, np.array(elements)))
        return means[0].z

    z = along_window(lowering, node, x.z, axes, pool or bool(attribute(node, "keepdims", 1)), reduce)
    return means[0].on(z)


def _quantized_average_pool(lowering: Lowering, node: GraphNode) -> Value:
    """QLinearAveragePool: its kernel dequantizes, averages in float32 in an order of its own, and quantizes."""
    require_default(node, ceil_mode=0)
    codes, scale, zero_point = lowering.quantized(node, 0)
    y_scale, y_zero_point, low, high, quantization = lowering.result(node, 3)
    real = Real(codes, dequantize(np.arange(codes.low, codes.high + 1), scale, zero_point))
    last = bool(attribute(node, "channels_last", 0))
    mean = _average(lowering, node, real, last)
    mean = replace(mean, error=mean.error + 8 * islands.UNIT * mean.largest())  # a quotient, however it is computed
    result = quantized(lowering, node, mean, y_scale, y_zero_point, low, high, quantization)
    return lowering.builder.transpose(f"{node.name}/last", result, (*range(1, len(result.shape)), 0)) if last else result


def quantized(
    lowering: Lowering,
    node: GraphNode,
    x: Island,
    scale: np.float32,
    zero_point: int,
    low: int,
    high: int,
    meaning: QuantizationParameters,
) -> Codes:
    """An island's codes, with the runtime's quantizer."""
    return islands.quantize(
        lowering.builder,
        node.name,
        x,
        lambda v: quantize(v, scale, zero_point),
        low,
        high,
        meaning,  # type: ignore[arg-type]
    )


def _added(lowering: Lowering, node: GraphNode, name: str, a: Island, b: Island) -> Island:
    if a.after or b.after or a.z.shape != b.z.shape:
        reason = "its operands were clamped or computed in float, or differ in shape; quantizers before it are needed"
        raise UnsupportedModelError(node.name, node.op, None, reason)
    total = islands.add(lowering.builder, name, a, b)
    if total is None:
        raise UnsupportedModelError(
            node.name, node.op, None, "its operands' scales vary within a channel, or are too far apart"
        )
    return total


def combined(lowering: Lowering, node: GraphNode, a: Value, b: Value) -> Value:
    """The float sum or product of two computed tensors."""
    if node.op == "Add":
        return _added(lowering, node, f"{node.name}/sum", *(as_island(lowering, node, v, s) for v, s in ((a, "a"), (b, "b"))))
    if node.op == "Mul":
        (x, x_zero), (y, y_zero) = (linear_island(lowering, node, v, s) for v, s in ((a, "a"), (b, "b")))
        shape = np.broadcast_shapes(x.z.shape, y.z.shape)
        builder = lowering.builder
        x, y = (replace(p, z=builder.broadcast(f"{node.name}/{s}", p.z, shape)) for p, s in ((x, "wide_a"), (y, "wide_b")))
        return islands.product(builder, f"{node.name}/product", x, y, (x_zero, y_zero))
    raise UnsupportedModelError(node.name, node.op, None, "of two computed tensors; only Add and Mul are enclosed")


ISLANDS: dict[str, Callable[[Lowering, GraphNode], Value]] = {
    "Conv": _convolution,
    "FusedConv": _fused_convolution,
    "FusedGemm": _fused_gemm,
    "Gemm": _gemm,
    "MatMul": lambda lowering, node: _dense(lowering, node, 1),
    "AveragePool": _average_pool,
    "GlobalAveragePool": _whole_average,
    "ReduceMean": _whole_average,
    "QLinearAveragePool": _quantized_average_pool,
}
"""The lowering of operators that are only enclosed."""
