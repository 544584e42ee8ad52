"""How each quantized ONNX operator becomes integer nodes; ends in the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from qertify.errors import ModelFileError, UnsupportedModelError
from qertify.importers.lowering import Codes, Requantize
from qertify.importers.onnx_context import (
    Lowering,
    Value,
    attribute,
    axis_without_batch,
    integers,
    require_8_bits,
    require_default,
    window_of,
)
from qertify.importers.onnx_file import Constant, GraphNode
from qertify.importers.onnx_moves import MOVES
from qertify.importers.onnx_reals import REALS
from qertify.importers.reals import Scaled
from qertify.network.nodes import Window
from qertify.network.tensor import IntegerArray
from qertify.runtimes.float32 import Float32Array, is_normal
from qertify.runtimes.onnxruntime import unary_table
from qertify.runtimes.onnxruntime_arithmetic import (
    Addition,
    average_multiplier,
    linear_multiplier,
    requantize_linear,
    requantize_product,
)


def _requantize_linear(lowering: Lowering, node: GraphNode, x: int, w: int, y: int, channels: int) -> Requantize:
    """The requantization of a linear operator, from the positions of three scales."""
    weight_scale = lowering.scales(node, w)
    scale, zero_point, low, high, quantization = lowering.result(node, y)
    if weight_scale.size not in (1, channels):
        raise ModelFileError(f"node '{node.name}': {weight_scale.size} weight scales for {channels} channels")
    multiplier = linear_multiplier(lowering.scale(node, x), weight_scale, scale)
    _require_normal(node, multiplier)
    if np.all(multiplier == multiplier[0]):
        multiplier = multiplier[:1]
    return Requantize(requantize_linear(multiplier, zero_point), multiplier.size, low, high, quantization)


def _require_normal(node: GraphNode, multiplier: Float32Array) -> None:
    if not all(is_normal(float(m)) for m in multiplier):
        raise UnsupportedModelError(node.name, node.op, "scale", "what the scales multiply to must be a normal float32")


def _weight(lowering: Lowering, node: GraphNode, position: int, x: Codes, output_axis: int) -> IntegerArray:
    """Weight minus its zero point, and a note of the types that the kernel multiplies.

    Args:
        position: of the weight operand; its scale and zero point follow.
        output_axis: the axis of output channels, which a zero point a channel belongs to.
    """
    weight, zero_point = lowering.constant(node, position), lowering.zero_points(node, position + 2)
    require_8_bits(node, "weight", weight.dtype)
    if len(node.inputs) > position + 2 and node.inputs[position + 2] and zero_point.dtype != weight.dtype:
        raise ModelFileError(f"node '{node.name}': weight and weight zero point have different types")
    if x.low < 0 and weight.dtype == np.uint8:
        raise UnsupportedModelError(node.name, node.op, "weight", "onnxruntime has no kernel for int8 times uint8")
    if weight.ndim < 2 or zero_point.size not in (1, weight.shape[output_axis]):
        raise ModelFileError(f"node '{node.name}': weight {weight.shape} with {zero_point.size} zero points")
    z = integers(zero_point)
    lowering.kernels[f"{node.name}/accumulator"] = {
        "activation": "int8" if x.low < 0 else "uint8",
        "weight": str(weight.dtype),
        "weight_zero_point": 0 if not np.any(z) else z.tolist(),
    }
    shape = [1] * weight.ndim
    shape[output_axis] = -1
    return integers(weight) - z.reshape(shape if z.size > 1 else [1] * weight.ndim)


def _bias(lowering: Lowering, node: GraphNode, position: int, channels: int) -> IntegerArray:
    if len(node.inputs) <= position or not node.inputs[position]:
        return np.zeros(channels, dtype=np.int64)
    bias = lowering.constant(node, position)
    if bias.dtype != np.int32 or bias.size not in (1, channels):
        raise ModelFileError(f"node '{node.name}': bias {bias.dtype} of shape {bias.shape}, int32 ({channels},) is needed")
    return integers(np.broadcast_to(bias.reshape(-1), (channels,)))


def _convolution(lowering: Lowering, node: GraphNode) -> Value:
    x, _, zero_point = lowering.quantized(node, 0)
    last = bool(attribute(node, "channels_last", 0))
    weight = _weight(lowering, node, 3, x, 0)
    axes = weight.ndim - 2
    if axes not in (1, 2) or len(x.shape) != axes + 1:
        raise UnsupportedModelError(
            node.name, node.op, "weight", f"shape {weight.shape} on {x.shape}; one or two spatial axes needed"
        )
    image = _to_image(lowering, node, x, last)
    window = window_of(node, image.shape[3 - axes :], weight.shape[2:])
    if tuple(attribute(node, "kernel_shape", tuple(weight.shape[2:]))) != weight.shape[2:]:
        raise ModelFileError(f"node '{node.name}': kernel_shape does not fit the weight {weight.shape}")
    channels, groups = weight.shape[0], attribute(node, "group", 1)
    if groups < 1 or channels % groups or weight.shape[1] * groups != image.shape[0]:
        raise ModelFileError(f"node '{node.name}': weight {weight.shape} in {groups} groups does not fit {x.shape}")
    requantize = _requantize_linear(lowering, node, 1, 4, 6, channels)
    bias = _bias(lowering, node, 8, channels)
    kernel = weight.reshape(*weight.shape[:2], *window.kernel)
    result = lowering.builder.convolution(node.name, image, kernel, bias, window, zero_point, groups, requantize)
    return _from_image(lowering, node, result, axes, last)


def _to_image(lowering: Lowering, node: GraphNode, x: Codes, channels_last: bool) -> Codes:
    """(channels, height, width) of a tensor with one or two spatial axes, channels first or last."""
    builder = lowering.builder
    if channels_last:
        x = builder.transpose(f"{node.name}/channels_first", x, (len(x.shape) - 1, *range(len(x.shape) - 1)))
    return builder.reshape(f"{node.name}/image", x, (x.shape[0], 1, x.shape[1])) if len(x.shape) == 2 else x


def _from_image(lowering: Lowering, node: GraphNode, x: Codes, axes: int, channels_last: bool) -> Codes:
    """The inverse of `_to_image`."""
    builder = lowering.builder
    if axes == 1:
        x = builder.reshape(f"{node.name}/signal", x, (x.shape[0], x.shape[2]))
    return builder.transpose(f"{node.name}/channels_last", x, (*range(1, len(x.shape)), 0)) if channels_last else x


def _matmul(lowering: Lowering, node: GraphNode) -> Value:
    x, _, zero_point = lowering.quantized(node, 0)
    weight = _weight(lowering, node, 3, x, 1)
    if weight.ndim != 2:
        raise UnsupportedModelError(node.name, node.op, "weight", f"two axes are needed, not shape {weight.shape}")
    requantize = _requantize_linear(lowering, node, 1, 4, 6, weight.shape[1])
    bias = np.zeros(weight.shape[1], dtype=np.int64)
    return lowering.builder.dense(node.name, x, weight.T, bias, zero_point, requantize)


def _gemm(lowering: Lowering, node: GraphNode) -> Value:
    require_default(node, alpha=1.0, transA=0)
    x, _, zero_point = lowering.quantized(node, 0)
    if len(x.shape) != 1:
        raise ModelFileError(f"node '{node.name}': a matrix is needed, not {(1, *x.shape)}")
    transposed = bool(attribute(node, "transB", 0))
    weight = _weight(lowering, node, 3, x, 0 if transposed else 1)
    if weight.ndim != 2:
        raise ModelFileError(f"node '{node.name}': weight of shape {weight.shape}, two axes are needed")
    weight = weight if transposed else weight.T
    bias = _bias(lowering, node, 6, weight.shape[0])
    if len(node.inputs) < 8 or not node.inputs[7]:
        return _scaled(lowering, node, x, weight, bias, zero_point, lowering.scale(node, 1) * lowering.scales(node, 4))
    requantize = _requantize_linear(lowering, node, 1, 4, 7, weight.shape[0])
    return lowering.builder.dense(node.name, x, weight, bias, zero_point, requantize)


def _scaled(
    lowering: Lowering,
    node: GraphNode,
    x: Codes,
    weight: IntegerArray,
    bias: IntegerArray,
    zero_point: int,
    multiplier: Float32Array,
) -> Scaled:
    """A product whose accumulator is only scaled: its result is float32."""
    if multiplier.size not in (1, len(weight)):
        raise ModelFileError(f"node '{node.name}': {multiplier.size} weight scales for {len(weight)} channels")
    farthest = max(zero_point - x.low, x.high - zero_point)
    bound = int((np.abs(weight).sum(axis=1) * farthest + np.abs(bias)).max())
    _require_normal(node, multiplier)
    with np.errstate(over="ignore"):
        _require_normal(node, multiplier * np.float32(max(bound, 1)))  # infinities would tie
    codes = lowering.builder.dense(node.name, x, weight, bias, zero_point, None)
    return Scaled(codes, bound, multiplier[:1] if np.all(multiplier == multiplier[0]) else multiplier)


def _matmul_to_float(lowering: Lowering, node: GraphNode) -> Value:
    """MatMulIntegerToFloat: operands, their scales, their zero points, and a float bias that is added last."""
    x, scale = lowering.codes(node, 0), lowering.scale(node, 2)
    renamed = replace(node, inputs=tuple(node.inputs[i] if i < len(node.inputs) else "" for i in (0, 2, 4, 1, 3, 5)))
    codes, _, zero_point = lowering.quantized(renamed, 0)
    weight = _weight(lowering, renamed, 3, codes, 1)
    if weight.ndim != 2:
        raise UnsupportedModelError(node.name, node.op, "weight", f"two axes are needed, not shape {weight.shape}")
    none = np.zeros(weight.shape[1], dtype=np.int64)
    result = _scaled(lowering, node, x, weight.T, none, zero_point, scale * lowering.scales(node, 3))
    if len(node.inputs) < 7 or not node.inputs[6]:
        return result
    bias = lowering.constant(node, 6, "f").astype(np.float32).reshape(-1)
    if bias.size != weight.shape[1]:
        raise ModelFileError(f"node '{node.name}': bias of {bias.size} elements for {weight.shape[1]} channels")
    return replace(result, multiplier=np.broadcast_to(result.multiplier, bias.shape), bias=bias)


def _global_average(lowering: Lowering, node: GraphNode) -> Value:
    x, x_scale, zero_point = lowering.quantized(node, 0)
    scale, y_zero_point, low, high, quantization = lowering.result(node, 3)
    last, axes = bool(attribute(node, "channels_last", 0)), len(x.shape) - 1
    if axes not in (1, 2):
        raise UnsupportedModelError(node.name, node.op, None, f"one or two spatial axes are needed, not {x.shape}")
    image = _to_image(lowering, node, x, last)
    kernel = (image.shape[1], image.shape[2])
    multiplier = average_multiplier(x_scale, scale, prod(kernel))
    _require_normal(node, multiplier)
    requantize = Requantize(requantize_linear(multiplier, y_zero_point), 1, low, high, quantization)
    result = lowering.builder.pool_sum(node.name, image, Window(kernel), zero_point, requantize)
    return _from_image(lowering, node, result, axes, last)


def _exchanges(a: tuple[int, ...], b: tuple[int, ...]) -> bool | None:
    """Whether QLinearAdd exchanges its operands when it broadcasts these shapes (batch axis included).

    It does where the first operand is a scalar in the innermost loop and the second one is not. None for a
    single element, whose kernel depends on the size of the batch.
    """
    rank = max(len(a), len(b))
    full_a, full_b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    inner = [(m, n) for m, n in zip(full_a, full_b, strict=True) if (m, n) != (1, 1)]
    return inner[-1][0] == 1 if inner else None


def _addition(lowering: Lowering, node: GraphNode) -> Value:
    scales = tuple(lowering.scale(node, i) for i in (1, 4, 6))
    (z_a, low, high), (z_b, *_), (z_c, *_) = (lowering.zero_point(node, i) for i in (2, 5, 7))
    quantization = lowering.result(node, 6)[4]
    plain = Addition((scales[0], scales[1], scales[2]), (z_a, z_b, z_c))
    exchanged = Addition((scales[1], scales[0], scales[2]), (z_b, z_a, z_c))
    exchanges = _exchanges(_full_shape(lowering, node, 0), _full_shape(lowering, node, 3))
    _require_normal(node, np.array(plain.ratios))
    if exchanges is None:
        codes = np.arange(low, high + 1)
        one, two = plain(codes[:, None], codes[None, :]), exchanged(codes[None, :], codes[:, None])
        if not np.array_equal(np.clip(one, low, high), np.clip(two, low, high)):
            raise UnsupportedModelError(node.name, node.op, None, "its rounding depends on the batch size for a single element")
    first, second = (3, 0) if exchanges else (0, 3)
    function = exchanged if exchanges else plain
    if lowering.is_constant(node, 0) or lowering.is_constant(node, 3):
        return _with_constant(lowering, node, first, function, low, high)
    a, b = _broadcast(lowering, node, (first, second))
    codes = np.arange(low, high + 1)
    return lowering.builder.combine(node.name, a, b, function, function.terms(codes, codes), low, high, quantization)


def _full_shape(lowering: Lowering, node: GraphNode, position: int) -> tuple[int, ...]:
    """The shape of an operand, batch axis included."""
    if lowering.is_constant(node, position):
        return lowering.constant(node, position).shape
    return (1, *lowering.codes(node, position).shape)


def _common_shape(node: GraphNode, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError as error:
        raise ModelFileError(f"node '{node.name}': shapes {a} and {b} do not fit") from error


def _broadcast(lowering: Lowering, node: GraphNode, positions: tuple[int, int]) -> tuple[Codes, Codes]:
    """Two computed operands at their common shape."""
    a, b = (lowering.quantized(node, position)[0] for position in positions)
    shape = _common_shape(node, (1, *a.shape), (1, *b.shape))[1:]
    builder = lowering.builder
    return builder.broadcast(f"{node.name}/a", a, shape), builder.broadcast(f"{node.name}/b", b, shape)


def _with_constant(
    lowering: Lowering,
    node: GraphNode,
    first: int,
    function: Callable[[IntegerArray, IntegerArray], IntegerArray],
    low: int,
    high: int,
) -> Value:
    """An element-wise operator with one constant operand: one row a distinct constant; ``first``: function's first."""
    fixed, computed = (0, 3) if lowering.is_constant(node, 0) else (3, 0)
    x = lowering.quantized(node, computed)[0]
    constant: Constant = lowering.constant(node, fixed)
    if constant.dtype != (np.int8 if low < 0 else np.uint8):
        raise ModelFileError(f"node '{node.name}': operand {fixed} and its zero point have different types")
    full = (1, *x.shape)
    if _common_shape(node, full, constant.shape) != full:
        raise UnsupportedModelError(node.name, node.op, None, f"the constant {constant.shape} would extend the tensor {full}")
    distinct, rows = np.unique(integers(constant), return_inverse=True)
    codes = np.arange(low, high + 1, dtype=np.int64)[None, :]
    image = function(codes, distinct[:, None]) if first == computed else function(distinct[:, None], codes)
    row = np.broadcast_to(rows.reshape(constant.shape), full)[0] if distinct.size > 1 else None
    quantization = lowering.result(node, 6)[4]
    return lowering.builder.unary(node.name, x, np.clip(image, low, high), low, high, quantization, row)


def _multiplication(lowering: Lowering, node: GraphNode) -> Value:
    a_scale, b_scale = lowering.scale(node, 1), lowering.scale(node, 4)
    z_a, z_b = lowering.zero_point(node, 2)[0], lowering.zero_point(node, 5)[0]
    scale, zero_point, low, high, quantization = lowering.result(node, 6)
    multiplier = linear_multiplier(a_scale, np.array([b_scale]), scale)
    _require_normal(node, multiplier)
    function = requantize_product(multiplier[0], zero_point)
    if lowering.is_constant(node, 0) or lowering.is_constant(node, 3):
        first = 3 if lowering.is_constant(node, 0) else 0
        z_first, z_second = (z_a, z_b) if first == 0 else (z_b, z_a)
        return _with_constant(lowering, node, first, lambda x, c: function((x - z_first) * (c - z_second)), low, high)
    a, b = _broadcast(lowering, node, (0, 3))
    return lowering.builder.product(node.name, a, b, (z_a, z_b), Requantize(function, 1, low, high, quantization))


def _runtime_table(lowering: Lowering, node: GraphNode, x: int, y: int, **attributes: Any) -> Value:
    """A unary operator that the runtime itself tabulates: the table is read off the runtime."""
    codes, x_scale, x_zero_point = lowering.quantized(node, x)
    y_scale, y_zero_point, low, high, quantization = lowering.result(node, y)
    if (low, high) != (codes.low, codes.high):
        raise ModelFileError(f"node '{node.name}': input and output have different types")
    table = unary_table(node.op, low, (x_scale, x_zero_point), (y_scale, y_zero_point), attributes)
    name = node.name if node.op != "QLinearConcat" else f"{node.name}/operand{x}"
    return lowering.builder.unary(name, codes, table[None, :], low, high, quantization)


def _concat(lowering: Lowering, node: GraphNode) -> Value:
    parts: list[Codes] = []
    for position in range(2, len(node.inputs), 3):
        part = _runtime_table(lowering, node, position, 0)
        assert isinstance(part, Codes)
        parts.append(part)
    if not parts or len({len(part.shape) for part in parts}) != 1:
        raise ModelFileError(f"node '{node.name}': operands are missing or differ in their number of axes")
    axis = axis_without_batch(node, attribute(node, "axis", 0), len(parts[0].shape))
    if len({part.shape[:axis] + part.shape[axis + 1 :] for part in parts}) != 1:
        raise ModelFileError(f"node '{node.name}': the operands' shapes do not fit")
    return lowering.builder.concatenate(node.name, parts, axis)


def _rejected(reason: str) -> Callable[[Lowering, GraphNode], Value]:
    def rule(lowering: Lowering, node: GraphNode) -> Value:
        raise UnsupportedModelError(node.name, node.op, None, reason)

    return rule


OPERATORS: dict[str, Callable[[Lowering, GraphNode], Value]] = {
    "QLinearConv": _convolution,
    "QLinearMatMul": _matmul,
    "QGemm": _gemm,
    "MatMulIntegerToFloat": _matmul_to_float,
    "QLinearAdd": _addition,
    "QLinearMul": _multiplication,
    "QLinearGlobalAveragePool": _global_average,
    "QLinearConcat": _concat,
    "QLinearSigmoid": lambda lowering, node: _runtime_table(lowering, node, 0, 3),
    "QLinearLeakyRelu": lambda lowering, node: _runtime_table(lowering, node, 0, 3, alpha=attribute(node, "alpha", 0.01)),
    "QLinearSoftmax": _rejected("a quantized softmax makes ties; export the network without it"),
    **MOVES,
    **REALS,
}
"""The lowering of each operator."""
