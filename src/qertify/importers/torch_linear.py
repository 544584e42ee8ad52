"""Quantized linear layers and convolutions of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from qertify.importers.lowering import Codes, Requantize
from qertify.importers.torch_context import (
    HIGH,
    LOW,
    Lowering,
    Value,
    codes_of,
    image_shape,
    quantization_of,
    scale_of,
)
from qertify.importers.torch_graph import Operation
from qertify.network.nodes import Window
from qertify.network.tensor import IntegerArray
from qertify.runtimes.float32 import Float32Array
from qertify.runtimes.torch_arithmetic import Engine, enclosed_linear, fbgemm_linear, qnnpack_bias, qnnpack_linear

CONVERSION_LIMIT = 1 << 30
"""Largest result before clamping: the kernels convert it to 32 bits, where larger ones would wrap."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weight minus its zero point, integer bias, zero point of the input, and the requantization, or bounds of it."""

    weight: IntegerArray
    bias: IntegerArray
    zero_point: int
    requantize: tuple[Requantize, ...]

    @property
    def exact(self) -> Requantize | None:
        return self.requantize[0] if len(self.requantize) == 1 else None

    def finish(self, lowering: Lowering, name: str, z: Codes) -> Codes:
        """The codes of what the builder made: themselves, or the enclosure of an accumulator."""
        return z if self.exact else lowering.builder.enclose(name, z, self.requantize[0], self.requantize[1], 1 << 31)


def _parameters(
    lowering: Lowering,
    operation: Operation,
    packed: tuple[torch.Tensor, torch.Tensor | None],
    x: Codes,
    x_tensor: torch.Tensor,
    relu: bool,
    groups: int,
) -> _Layer:
    quantized, float_bias = packed
    if quantized.dtype is not torch.qint8:
        raise operation.unsupported("weight", f"qint8 weights are needed, not {quantized.dtype}")
    per_channel = quantized.qscheme() is torch.per_channel_affine
    if per_channel:
        scales, zeros = quantized.q_per_channel_scales().numpy(), quantized.q_per_channel_zero_points().numpy()
    elif quantized.qscheme() is torch.per_tensor_affine:
        scales, zeros = np.array([quantized.q_scale()]), np.array([quantized.q_zero_point()])
    else:
        raise operation.unsupported(
            "weight", f"weights quantized as {quantized.qscheme()}; per tensor or per channel is needed"
        )
    channels = quantized.shape[0]
    column = (-1,) + (1,) * (quantized.ndim - 1)
    zero_points = zeros.astype(np.int64)
    weight = quantized.int_repr().numpy().astype(np.int64) - zero_points.reshape(column)
    weight_scale = np.broadcast_to(scales.astype(np.float32), (channels,))
    bias = np.zeros(channels, dtype=np.float32) if float_bias is None else float_bias.numpy().astype(np.float32)
    (x_scale, x_zero_point), (y_scale, y_zero_point) = scale_of(operation, x_tensor), scale_of(operation, operation.result)
    _check_magnitudes(operation, weight, weight_scale, bias, x_scale, y_scale)
    integer_bias = np.zeros(channels, dtype=np.int64)
    rows = np.stack([weight_scale, bias], axis=1)
    if lowering.engine is Engine.QNNPACK:
        integer_bias = qnnpack_bias(x_scale, weight_scale, bias)
        rows = weight_scale[:, None]
    rows = rows[:1] if np.all(rows == rows[0]) else rows
    match lowering.engine:
        case Engine.QNNPACK:
            functions = [qnnpack_linear(x_scale, rows[:, 0], y_scale, y_zero_point)]
        case Engine.FBGEMM:
            functions = [fbgemm_linear(x_scale, rows[:, 0], rows[:, 1], y_scale, y_zero_point, per_channel)]
        case Engine.X86 | Engine.ONEDNN:
            scales = x_scale, rows[:, 0], rows[:, 1], y_scale
            functions = [enclosed_linear(*scales, y_zero_point, upper) for upper in (False, True)]
    _note_kernel(lowering, operation, zero_points, depthwise=groups > 1 and weight.shape[1] == 1)
    low = max(LOW, y_zero_point) if relu else LOW
    meaning = quantization_of(operation, operation.result)
    requantize = tuple(Requantize(function, len(rows), low, HIGH, meaning) for function in functions)
    return _Layer(weight, integer_bias, x_zero_point, requantize)


def _check_magnitudes(
    operation: Operation,
    weight: IntegerArray,
    weight_scale: Float32Array,
    bias: Float32Array,
    x_scale: np.float32,
    y_scale: np.float32,
) -> None:
    """Every float of the formulas is a normal number, and the result fits 32 bits before it is clamped."""
    scale = x_scale.astype(np.float64) * weight_scale
    largest = np.abs(weight.reshape(len(weight), -1)).sum(axis=1) * HIGH + np.abs(bias / scale)
    tiny, huge = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    for number in (scale, 1 / scale, scale / y_scale):
        if not np.all((number > 2 * tiny) & (number < huge / 2)):
            raise operation.unsupported("scale", "a quotient of its scales is outside the normal numbers of float32")
    if (
        not np.all(np.isfinite(bias))
        or not np.all(largest < CONVERSION_LIMIT)
        or not np.all(largest * scale / y_scale < CONVERSION_LIMIT)
    ):
        raise operation.unsupported("bias", "its results may leave 32 bits before they are clamped")


def _note_kernel(lowering: Lowering, operation: Operation, zero_points: IntegerArray, depthwise: bool) -> None:
    """The types that the kernel multiplies; qnnpack stores weights as uint8, fbgemm's depthwise kernels add in 16 bits.

    x86 takes fbgemm's kernels for some shapes.
    """
    kernel: dict[str, Any] = {"activation": "uint8", "weight": "int8", "weight_zero_point": zero_points.tolist()}
    if lowering.engine is Engine.QNNPACK:
        kernel |= {"weight": "uint8", "weight_zero_point": (zero_points + 128).tolist()}
    elif depthwise and lowering.engine is not Engine.ONEDNN:
        kernel["pairs_in_16_bits"] = True
    lowering.kernels[f"{operation.name}/accumulator"] = kernel


def _linear(relu: bool, lowering: Lowering, operation: Operation) -> Value:
    x, tensor = codes_of(operation, operation.arguments["X"])
    packed = torch.ops.quantized.linear_unpack(operation.arguments["W_prepack"])
    layer = _parameters(lowering, operation, packed, x, tensor, relu, 1)
    z = lowering.builder.dense(operation.name, x, layer.weight, layer.bias, layer.zero_point, layer.exact)
    return layer.finish(lowering, operation.name, z)


def _convolution(relu: bool, lowering: Lowering, operation: Operation) -> Value:
    """Of an image, or of a signal (channels, length), whose weights are packed as those of an image of one row."""
    x, tensor = codes_of(operation, operation.arguments["qx"])
    signal = len(x.shape) == 2
    if signal:
        x = lowering.builder.reshape(f"{operation.name}/image", x, (x.shape[0], 1, x.shape[1]))
    image_shape(operation, x)
    packed = operation.arguments["packed_weight"]
    ops = torch.ops.quantized
    if ops.conv2d_transpose(packed):
        raise operation.unsupported(None, "transposed convolutions are not supported")
    groups = ops.conv2d_groups(packed)
    layer = _parameters(lowering, operation, ops.conv2d_unpack(packed), x, tensor, relu, groups)
    (top, left), stride, dilation = ops.conv2d_padding(packed), ops.conv2d_stride(packed), ops.conv2d_dilation(packed)
    kernel = (layer.weight.shape[2], layer.weight.shape[3])
    window = Window(kernel, (stride[0], stride[1]), (top, left, top, left), (dilation[0], dilation[1]))
    z = lowering.builder.convolution(operation.name, x, layer.weight, layer.bias, window, layer.zero_point, groups, layer.exact)
    result = layer.finish(lowering, operation.name, z)
    if not signal:
        return result
    return lowering.builder.reshape(f"{operation.name}/signal", result, (result.shape[0], result.shape[2]))


LINEAR: dict[str, Callable[[Lowering, Operation], Value]] = {
    "quantized::linear": partial(_linear, False),
    "quantized::linear_relu": partial(_linear, True),
    "quantized::conv1d": partial(_convolution, False),
    "quantized::conv1d_relu": partial(_convolution, True),
    "quantized::conv2d": partial(_convolution, False),
    "quantized::conv2d_relu": partial(_convolution, True),
}
"""The lowering of each operator with weights."""
