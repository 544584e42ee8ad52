"""ONNX operators that a runtime computes in float32 between quantized ones: sums, products and averages, as enclosures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.errors import UnsupportedModelError
from qertify.importers import islands, reals
from qertify.importers.float_lowering import averaged_elements
from qertify.importers.islands import Island, Weights, clamp
from qertify.importers.lowering import Codes
from qertify.importers.moving import ELEMENT_LIMIT
from qertify.importers.onnx_constants import float_constant
from qertify.importers.onnx_context import (
    SIZE_LIMIT,
    Lowering,
    Real,
    Scaled,
    Sum,
    Value,
    attribute,
    require_default,
    window_of,
)
from qertify.importers.onnx_file import GraphNode
from qertify.importers.onnx_moves import along_window, reduced_axes
from qertify.network.nodes import Window
from qertify.network.tensor import FloatArray, IntegerArray, QuantizationParameters
from qertify.runtimes.onnxruntime import unary_floats
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


SUMMED, ADDED, AVERAGED = 1 << 22, 1 << 28, 1 << 36
"""Largest integers that are multiplied by weights, added or averaged as they are; beyond, a grid keeps sums small."""


def linear_island(
    lowering: Lowering, node: GraphNode, value: Value, name: str = "", largest: int = SUMMED
) -> tuple[Island, int]:
    """A linear island of one scale, and the integer that stands for zero in it: on a grid where it is none as it is."""
    x = as_island(lowering, node, value, name)
    zero_point = islands.zero_point_of(x)
    if zero_point is None or x.reach > largest:
        return islands.regrid(lowering.builder, _grid_name(node, name), x), 0
    return x, zero_point


def _grid_name(node: GraphNode, name: str) -> str:
    return f"{node.name}/{name}/grid" if name else f"{node.name}/grid"


def uniform(lowering: Lowering, node: GraphNode, position: int) -> None:
    """Make an operand that is treated element by element one that is treated alike everywhere, so that it may be moved."""
    value = lowering.values.get(node.inputs[position])
    if isinstance(value, Real) and value.row is not None:
        lowering.values[node.inputs[position]] = reals.ranked(lowering.builder, f"{node.name}/ranks", value)
    if isinstance(value, Sum | Scaled) or (isinstance(value, Island) and not value.uniform):
        name = f"operand{position}"
        x = as_island(lowering, node, value, name)
        lowering.values[node.inputs[position]] = islands.regrid(lowering.builder, _grid_name(node, name), x)


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


def _transposed_convolution(lowering: Lowering, node: GraphNode) -> Value:
    """ConvTranspose: the convolution of its operand, spread by the strides, with the kernel turned around."""
    require_default(node, auto_pad=b"NOTSET", output_shape=())
    x, zero_point = linear_island(lowering, node, lowering.value(node, 0))
    weights, groups = _weights(lowering, node, 1, 1), attribute(node, "group", 1)
    axes, (channels, *size) = weights.integers.ndim - 2, x.z.shape
    if axes not in (1, 2) or len(size) != axes or groups < 1 or channels % groups or weights.integers.shape[1] != channels:
        reason = f"weight {weights.integers.shape} in {groups} groups on {x.z.shape}; one or two axes"
        raise UnsupportedModelError(node.name, node.op, None, reason)
    kernel = weights.integers.shape[2:]
    window = window_of(replace(node, attributes={**node.attributes, "pads": (0,) * 2 * axes}), kernel, (1,) * axes)
    pads, extra = (attribute(node, key, (0,) * n) for key, n in (("pads", 2 * axes), ("output_padding", axes)))
    if len(pads) != 2 * axes or len(extra) != axes or not all(0 <= value <= SIZE_LIMIT for value in (*pads, *extra)):
        raise UnsupportedModelError(node.name, node.op, "pads", f"{list(pads)[:8]} and {list(extra)[:4]} for {axes} axes")
    stride, dilation = window.stride[2 - axes :], window.dilation[2 - axes :]
    spread = [(n - 1) * s + 1 for n, s in zip(size, stride, strict=True)]
    if channels * prod(spread) > ELEMENT_LIMIT:
        raise UnsupportedModelError(node.name, node.op, "strides", f"spread to {spread}, more than {ELEMENT_LIMIT} elements")
    index = np.full((channels, *spread), -1)
    index[:, *(slice(None, None, s) for s in stride)] = np.arange(prod(x.z.shape)).reshape(x.z.shape)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    widths = [(reach[i] - pads[i], reach[i] - pads[axes + i] + extra[i]) for i in range(axes)]
    builder, lift = lowering.builder, (1,) * (2 - axes)
    z = builder.rearrange(f"{node.name}/spread", (x.z,), index, zero_point)
    z = builder.pad(f"{node.name}/padded", z, [(0, 0), *widths], zero_point)
    z = builder.reshape(f"{node.name}/image", z, (channels, *lift, *z.shape[1:]))

    def turned(weight: NDArray[Any]) -> NDArray[Any]:
        apart = weight.reshape(len(weight), groups, channels // groups, *kernel).swapaxes(0, 1)
        return np.flip(apart.reshape(-1, *apart.shape[2:]), axis=tuple(range(2, 2 + axes)))

    scale = weights.scale if weights.scale.size == 1 else np.tile(weights.scale, groups)
    weights = Weights(turned(weights.values), turned(weights.integers), scale)

    def sums(weight: IntegerArray) -> Codes:
        full = weight.reshape(*weight.shape[:2], *lift, *kernel)
        step = Window((full.shape[2], full.shape[3]), dilation=window.dilation)
        y = builder.convolution(node.name, z, full, np.zeros(len(full), dtype=np.int64), step, zero_point, groups, None, 64)
        return y if axes == 2 else builder.reshape(f"{node.name}/signal", y, (y.shape[0], y.shape[2]))

    return islands.linear(x, weights, _bias(lowering, node, 2, len(weights.integers)), zero_point, sums)


SLOPES = {
    "Abs": 1.0, "Elu": 1.0, "Erf": 1.13, "Gelu": 1.13, "HardSigmoid": 0.2, "HardSwish": 1.5, "LeakyRelu": 1.0, "Mish": 1.1,
    "Neg": 1.0, "QuickGelu": 1.1, "Sigmoid": 0.25, "Softplus": 1.0, "Softsign": 1.0, "Tanh": 1.0,
}  # fmt: skip
"""The steepest slope of each function, or alpha if that is larger."""
NO_NUMBER = "some code gives NaN or infinity"


def function_of(lowering: Lowering, node: GraphNode, op: str, attributes: Mapping[str, Any], x: Island) -> Island:
    """An element-wise function of float numbers: on a grid its results are read off the runtime, between them bounded."""
    if op not in SLOPES:
        raise UnsupportedModelError(node.name, node.op, None, f"'{op}' of float numbers is not enclosed; quantize them before")
    grid = islands.regrid(lowering.builder, f"{node.name}/points", x, islands.LEVELS)
    points = (float(grid.scale.flat[0]) * np.arange(grid.low, grid.high + 1)).astype(np.float32)
    found = unary_floats(op, points, attributes, lowering.graph.opset)
    if found is None:
        raise UnsupportedModelError(node.name, node.op, None, NO_NUMBER)
    error = max(SLOPES[op], abs(attributes.get("alpha", 0.0))) * float(grid.error.flat[0])
    codes = replace(grid.z, low=grid.low, high=grid.high)
    return islands.tabulated(lowering.builder, node.name, codes, *found, error)


ACTIVATIONS = {"HardSigmoid": ("alpha", "beta"), "LeakyRelu": ("alpha",), "Sigmoid": (), "Tanh": ()}
"""Functions that onnxruntime fuses into float operators, and the attributes that their parameters are."""


def _activated(lowering: Lowering, node: GraphNode, x: Island) -> Island:
    name = attribute(node, "activation", b"").decode(errors="replace")
    parameters = attribute(node, "activation_params", ())
    if name in ("Relu", "Clip"):
        return islands.then(x, clamp(0.0, np.inf) if name == "Relu" else clamp(*parameters))
    if name not in ACTIVATIONS or len(parameters) < len(ACTIVATIONS[name]):
        reason = f"'{name}' is not enclosed; a quantizer before it is needed"
        raise UnsupportedModelError(node.name, node.op, "activation", reason)
    return function_of(lowering, node, name, dict(zip(ACTIVATIONS[name], parameters, strict=False)), x)


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
    x, zero_point = linear_island(lowering, node, value, largest=AVERAGED)
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
    x, zero_point = linear_island(lowering, node, lowering.value(node, 0), largest=AVERAGED)
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
    if a.z.shape != b.z.shape:
        reason = f"its operands {a.z.shape} and {b.z.shape} differ in shape; quantizers before it are needed"
        raise UnsupportedModelError(node.name, node.op, None, reason)
    a, b = (
        islands.regrid(lowering.builder, f"{name}/{side}/grid", x) if x.after or x.reach > ADDED else x
        for side, x in (("a", a), ("b", b))
    )
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
    "ConvTranspose": _transposed_convolution,
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
