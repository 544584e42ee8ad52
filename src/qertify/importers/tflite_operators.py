"""How each int8 TFLite operator becomes integer nodes; ends in the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from qertify.errors import ModelFileError, UnsupportedModelError
from qertify.importers.lowering import Codes, Requantize
from qertify.importers.tflite_context import (
    RANGES,
    Lowering,
    Value,
    activation,
    int8,
    layout,
    parameters,
    require_multiplier,
    require_same_quantization,
    window_counts,
    window_of,
)
from qertify.importers.tflite_file import Operator
from qertify.importers.tflite_moves import MOVES
from qertify.network.nodes import Window
from qertify.network.tensor import IntegerArray
from qertify.runtimes.litert_arithmetic import (
    Addition,
    Kernels,
    Lanes,
    Scaling,
    average,
    linear,
    linear_multiplier,
    mean,
    product,
)

Scales = tuple[np.float32, np.float32, np.float32]
ZeroPoints = tuple[int, int, int]

LEAST_SUM_RATIO = 2.0**-10
"""Least ratio of scales of an addition that the kernels were established for."""
MEAN_LIMIT = 1 << 14
"""Most elements of a mean that the kernels were established for."""
NARROW_LIMIT = (1 << 15) - 256
"""The optimized ADD and MUL hold results in 16 bits, without saturation."""


def _requantize(lowering: Lowering, node: Operator, scaling: Scaling) -> Requantize:
    """A scaling, the fused activation, and the meaning of the result."""
    scale, zero_point = int8(lowering.result(node), node)
    low, high = activation(node, lowering.kernels_of(node), scale, zero_point)
    return Requantize(scaling.function, scaling.rows, low, high, parameters(scale, zero_point))


# Linear operators.


def _weight(lowering: Lowering, node: Operator, axes: int, channel_axis: int) -> tuple[IntegerArray, NDArray[np.float32]]:
    """The weight, and its scales: one, or one a channel of ``channel_axis``."""
    weight, tensor = lowering.constant(node, 1, "int8"), lowering.tensor(node, 1)
    if weight.ndim != axes or not weight.size:
        raise ModelFileError(f"node '{node.name}': weight of shape {list(weight.shape)}")
    lowering.spend(node, "weights", weight.size)
    channels = weight.shape[channel_axis]
    per_channel = tensor.scale.size == channels and (tensor.axis == channel_axis or channels == 1)
    if not per_channel and tensor.scale.size != 1:
        raise UnsupportedModelError(
            node.name, node.op, "scale", f"the weight needs one scale or one a channel, it has {tensor.scale.size}"
        )
    if np.any(tensor.zero_point):
        raise UnsupportedModelError(node.name, node.op, "zero_point", "the weight's zero point must be 0")
    return weight.astype(np.int64), tensor.scale


def _bias(lowering: Lowering, node: Operator, channels: int) -> IntegerArray:
    if len(node.inputs) < 3 or node.inputs[2] < 0:
        return np.zeros(channels, dtype=np.int64)
    bias = lowering.constant(node, 2, "int32")
    if bias.shape != (channels,):
        raise ModelFileError(f"node '{node.name}': bias of shape {list(bias.shape)} for {channels} channels")
    return bias.astype(np.int64)


def _scaling(lowering: Lowering, node: Operator, weight_scale: NDArray[np.float32], channels: int) -> Scaling:
    (x_scale, _), (y_scale, y_zero) = int8(lowering.tensor(node, 0), node), int8(lowering.result(node), node)
    require_multiplier(node, linear_multiplier(x_scale, weight_scale, y_scale))
    return linear(lowering.kernels_of(node), node.op, (x_scale, weight_scale, y_scale), y_zero, channels)


def _convolution(lowering: Lowering, node: Operator) -> Value:
    x, (_, zero_point) = lowering.image(node, 0), int8(lowering.tensor(node, 0), node)
    weight, scale = _weight(lowering, node, 4, 0)
    channels, height, width, per_channel = weight.shape
    if per_channel != x.shape[0]:
        raise UnsupportedModelError(
            node.name, node.op, "filter", f"{per_channel} channels a filter for {x.shape[0]}; grouped convolutions are not read"
        )
    scaling = _scaling(lowering, node, scale, channels)
    window = window_of(lowering, node, x, (height, width))
    kernel, bias = weight.transpose(0, 3, 1, 2), _bias(lowering, node, channels)
    requantize = _requantize(lowering, node, scaling)
    return lowering.builder.convolution(node.name, x, kernel, bias, window, zero_point, 1, requantize, scaling.accumulator_bits)


def _depthwise(lowering: Lowering, node: Operator) -> Value:
    x, (_, zero_point) = lowering.image(node, 0), int8(lowering.tensor(node, 0), node)
    weight, scale = _weight(lowering, node, 4, 3)
    one, height, width, channels = weight.shape
    if one != 1 or channels % x.shape[0] or node.options["DepthMultiplier"] not in (0, channels // x.shape[0]):
        raise ModelFileError(f"node '{node.name}': weight {list(weight.shape)} does not fit {x.shape[0]} channels")
    scaling = _scaling(lowering, node, scale, channels)
    window = window_of(lowering, node, x, (height, width))
    kernel, bias = weight.transpose(3, 0, 1, 2), _bias(lowering, node, channels)
    requantize = _requantize(lowering, node, scaling)
    return lowering.builder.convolution(
        node.name, x, kernel, bias, window, zero_point, x.shape[0], requantize, scaling.accumulator_bits
    )


def _fully_connected(lowering: Lowering, node: Operator) -> Value:
    if node.options["WeightsFormat"]:
        raise UnsupportedModelError(node.name, node.op, "weights_format", "only the default format is read")
    x, (_, zero_point) = lowering.codes(node, 0), int8(lowering.tensor(node, 0), node)
    weight, scale = _weight(lowering, node, 2, 0)
    outputs, inputs = weight.shape
    shape, target = lowering.tensor(node, 0).shape, lowering.result(node).shape
    if prod(x.shape) % inputs or prod(target) != prod(x.shape) // inputs * outputs:
        raise ModelFileError(f"node '{node.name}': weight {list(weight.shape)} does not fit {list(shape)} → {list(target)}")
    rows = prod(x.shape) // inputs
    flat = lowering.filed(f"{node.name}/input", x, shape)
    flat = lowering.builder.reshape(f"{node.name}/flat", flat, (inputs,) if rows == 1 else (rows, inputs))
    scaling = _scaling(lowering, node, scale, outputs)
    bias, requantize = _bias(lowering, node, outputs), _requantize(lowering, node, scaling)
    y = lowering.builder.dense(node.name, flat, weight, bias, zero_point, requantize, scaling.accumulator_bits)
    return lowering.placed(node.name, y, target)


# Pools.


def _pool_window(lowering: Lowering, node: Operator) -> tuple[Codes, Window]:
    x = lowering.image(node, 0)
    return x, window_of(lowering, node, x, (node.options["FilterHeight"], node.options["FilterWidth"]))


def _average_pool(lowering: Lowering, node: Operator) -> Value:
    if lowering.kernels_of(node) is Kernels.XNNPACK:
        raise UnsupportedModelError(node.name, node.op, None, "XNNPACK takes it here, whose arithmetic is not established")
    scale, zero_point = require_same_quantization(node, lowering.tensor(node, 0), lowering.result(node))
    x, window = _pool_window(lowering, node)
    low, high = activation(node, lowering.kernels_of(node), scale, zero_point)
    counts, row = np.unique(window_counts(window, (x.shape[1], x.shape[2])), return_inverse=True)
    maps = [average(int(count)) for count in counts]
    function: Callable[[IntegerArray], IntegerArray] = lambda z: np.stack([f(part) for f, part in zip(maps, z, strict=True)])  # noqa: E731
    places = row.reshape(1, *window.output_size(x.shape[1], x.shape[2]))
    requantize = Requantize(function, len(maps), low, high, parameters(scale, zero_point), places)
    return lowering.builder.pool_sum(node.name, x, window, 0, requantize)


def _max_pool(lowering: Lowering, node: Operator) -> Value:
    scale, zero_point = require_same_quantization(node, lowering.tensor(node, 0), lowering.result(node))
    x, window = _pool_window(lowering, node)
    y = lowering.builder.max_pool(node.name, x, window)
    low, high = activation(node, lowering.kernels_of(node), scale, zero_point)
    if low <= y.low and high >= y.high:
        return y
    clamped = np.clip(np.arange(y.low, y.high + 1), low, high)[None, :]
    return lowering.builder.unary(f"{node.name}/activation", y, clamped, low, high, parameters(scale, zero_point))


def _mean(lowering: Lowering, node: Operator) -> Value:
    x, axes = lowering.image(node, 0), lowering.constant(node, 1, "int32")
    if {int(axis) % 4 for axis in axes.reshape(-1)} != {1, 2} or axes.size != 2:
        raise UnsupportedModelError(
            node.name, node.op, "axis", f"{axes.reshape(-1).tolist()}; height and width, 1 and 2, needed"
        )
    (x_scale, x_zero), (y_scale, y_zero) = int8(lowering.tensor(node, 0), node), int8(lowering.result(node), node)
    require_multiplier(node, x_scale / y_scale, LEAST_SUM_RATIO)
    channels, height, width = x.shape
    if height * width > MEAN_LIMIT:
        raise UnsupportedModelError(node.name, node.op, None, f"a mean of more than {MEAN_LIMIT} elements is not established")
    keeps, kernels = bool(node.options["KeepDims"]), lowering.kernels_of(node)
    scaling = mean(kernels, (x_scale, x_zero), (y_scale, y_zero), height * width, channels, keeps)
    y = lowering.builder.pool_sum(node.name, x, Window((height, width)), 0, _requantize(lowering, node, scaling))
    return y if keeps else lowering.builder.reshape(f"{node.name}/output", y, (channels,))


# Two operands.


def _operand_scales(lowering: Lowering, node: Operator) -> tuple[Scales, ZeroPoints]:
    """Of both operands, and of the result."""
    tensors = (lowering.tensor(node, 0), lowering.tensor(node, 1), lowering.result(node))
    a, b, c = (int8(tensor, node) for tensor in tensors)
    return (a[0], b[0], c[0]), (a[1], b[1], c[1])


def _is_constant(lowering: Lowering, node: Operator, position: int) -> bool:
    return lowering.tensor(node, position).data is not None


def _broadcast(lowering: Lowering, node: Operator) -> tuple[Codes, Codes]:
    """Both operands, repeated to the shape of the result."""
    target = lowering.result(node).shape
    operands: list[Codes] = []
    for position, side in enumerate("ab"):
        shape, value = lowering.tensor(node, position).shape, lowering.codes(node, position)
        if shape != target:
            if len(shape) != len(target) or any(n not in (1, m) for n, m in zip(shape, target, strict=True)):
                raise UnsupportedModelError(node.name, node.op, None, f"operands of shapes {list(shape)} and {list(target)}")
            value = lowering.builder.broadcast(f"{node.name}/{side}", value, layout(target))
        operands.append(value)
    return operands[0], operands[1]


def _with_constant(
    lowering: Lowering, node: Operator, function: Callable[[IntegerArray, IntegerArray], IntegerArray], low: int, high: int
) -> Value:
    """An element-wise operator with one constant operand: one row a distinct constant."""
    fixed = 0 if _is_constant(lowering, node, 0) else 1
    x, constant = lowering.codes(node, 1 - fixed), lowering.constant(node, fixed, "int8")
    shape, target = lowering.tensor(node, 1 - fixed).shape, lowering.result(node).shape
    if shape != target or constant.ndim > len(shape) or np.broadcast_shapes(constant.shape, shape) != shape:
        raise UnsupportedModelError(node.name, node.op, None, f"operands of shapes {list(constant.shape)} and {list(shape)}")
    distinct, rows = np.unique(constant.astype(np.int64), return_inverse=True)
    codes = np.arange(x.low, x.high + 1, dtype=np.int64)[None, :]
    image = function(distinct[:, None], codes) if fixed == 0 else function(codes, distinct[:, None])
    row = np.broadcast_to(rows.reshape(constant.shape), shape)[0]
    row = row.transpose(2, 0, 1) if len(shape) == 4 else row
    scale, zero_point = int8(lowering.result(node), node)
    chosen = row if distinct.size > 1 else None
    return lowering.builder.unary(node.name, x, np.clip(image, low, high), low, high, parameters(scale, zero_point), chosen)


def _addition(lowering: Lowering, node: Operator) -> Value:
    scales, zero_points = _operand_scales(lowering, node)
    kernels, s, z = (
        lowering.kernels_of(node),
        (scales[0], scales[1], scales[2]),
        (zero_points[0], zero_points[1], zero_points[2]),
    )
    for scale in s[:2]:
        require_multiplier(node, scale / s[2], LEAST_SUM_RATIO)
    low, high = activation(node, kernels, s[2], z[2])
    function = Addition(kernels, s, z, node.op == "SUB")
    if kernels is Kernels.BUILTIN and node.op == "ADD":
        function = _blocked_addition(lowering, node, function, s, z)
    if _is_constant(lowering, node, 0) or _is_constant(lowering, node, 1):
        return _with_constant(lowering, node, function, low, high)
    a, b = _broadcast(lowering, node)
    terms = function.terms(np.arange(a.low, a.high + 1), np.arange(b.low, b.high + 1))
    return lowering.builder.combine(node.name, a, b, function, terms, low, high, parameters(s[2], z[2]))


def _blocked_addition(
    lowering: Lowering, node: Operator, scalar: Addition, scales: Scales, zero_points: ZeroPoints
) -> Addition:
    """The optimized ADD, if all elements are computed alike: whole blocks and the remainder may round differently."""
    blocks = Addition(Kernels.BUILTIN, scales, zero_points, in_block=True)
    codes = np.arange(RANGES["int8"][0], RANGES["int8"][1] + 1)
    images = [function(codes[:, None], codes[None, :]) for function in (blocks, scalar)]
    if np.abs(images[0] - zero_points[2]).max() > NARROW_LIMIT:
        raise UnsupportedModelError(node.name, node.op, "scale", "its sums may leave the 16 bits of the optimized kernel")
    if np.array_equal(images[0], images[1]):
        return scalar
    target = lowering.result(node).shape
    whole = all(lowering.tensor(node, position).shape == target for position in range(2))
    if whole and prod(target) % Lanes.ADDITION == 0:
        return blocks
    if whole and prod(target) < Lanes.ADDITION:
        return scalar
    raise UnsupportedModelError(
        node.name, node.op, None, f"the optimized kernel rounds the last of its {prod(target)} elements in another way"
    )


def _multiplication(lowering: Lowering, node: Operator) -> Value:
    kernels, (s, (z_a, z_b, z_c)) = lowering.kernels_of(node), _operand_scales(lowering, node)
    require_multiplier(node, s[0] * s[1] / s[2], 2.0**-16)
    low, high = activation(node, kernels, s[2], z_c)
    function = product(kernels, s, z_c)
    if kernels is Kernels.BUILTIN and np.abs(function(np.array([-(255**2), 255**2])) - z_c).max() > NARROW_LIMIT:
        raise UnsupportedModelError(node.name, node.op, "scale", "its products may leave the 16 bits of the optimized kernel")
    if _is_constant(lowering, node, 0) or _is_constant(lowering, node, 1):
        return _with_constant(lowering, node, lambda a, b: function((a - z_a) * (b - z_b)), low, high)
    a, b = _broadcast(lowering, node)
    requantize = Requantize(function, 1, low, high, parameters(s[2], z_c))
    return lowering.builder.product(node.name, a, b, (z_a, z_b), requantize)


OPERATORS: dict[str, Callable[[Lowering, Operator], Value | list[Value]]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "AVERAGE_POOL_2D": _average_pool,
    "MAX_POOL_2D": _max_pool,
    "MEAN": _mean,
    "ADD": _addition,
    "SUB": _addition,
    "MUL": _multiplication,
    **MOVES,
}
"""The lowering of each operator."""

XNNPACK_OPERATORS = (
    "ADD", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEQUANTIZE", "FULLY_CONNECTED", "LEAKY_RELU", "LOGISTIC",
    "MAX_POOL_2D", "MEAN", "MUL", "PAD", "QUANTIZE", "RESHAPE", "SUB", "TANH", "TRANSPOSE",
)  # fmt: skip
"""Operators that LiteRT is expected to give to XNNPACK, unless uint8 takes part; what it really does is asked of it."""
