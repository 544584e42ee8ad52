"""Pooling operators of PyTorch on quantized tensors, all of which keep scale and zero point."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qertify.importers.lowering import Codes, Requantize
from qertify.importers.torch_context import (
    HIGH,
    LOW,
    Lowering,
    Value,
    codes_of,
    image_shape,
    is_channels_last,
    scale_of,
    shape_of,
    sizes,
)
from qertify.importers.torch_graph import Operation
from qertify.network.nodes import Window
from qertify.network.tensor import IntegerArray
from qertify.runtimes.torch_arithmetic import (
    AccumulatorMap,
    Engine,
    adaptive_contiguous,
    adaptive_in_lanes,
    average_by_channel,
    average_contiguous,
    average_in_lanes,
    float_mean_error,
    float_mean_is_exact,
    mean_contiguous,
    qnnpack_average,
)


def _window(operation: Operation, x: Codes) -> Window:
    """Kernel, stride, padding and dilation of a pool; a window beyond the padding (ceil_mode) extends the padding."""
    kernel = sizes(operation, "kernel_size")
    stride, padding = sizes(operation, "stride", kernel), sizes(operation, "padding", (0, 0))
    dilation = sizes(operation, "dilation", (1, 1))
    out = shape_of(operation, operation.result)[1:]
    after = [
        max(0, (out[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - x.shape[i + 1] - padding[i]) for i in range(2)
    ]
    return Window(kernel, stride, (*padding, after[0], after[1]), dilation)


def _max_signal(lowering: Lowering, operation: Operation) -> Value:
    x, _ = codes_of(operation, next(iter(operation.arguments.values())))
    if len(x.shape) != 2:
        raise operation.unsupported(None, f"it is applied to {x.shape}; (channels, length) is needed")
    builder = lowering.builder
    (_, kernel), (_, padding), (_, dilation) = (
        sizes(operation, name, default) for name, default in (("kernel_size", ()), ("padding", (0,)), ("dilation", (1,)))
    )
    (_, stride), out = sizes(operation, "stride", (kernel,)), shape_of(operation, operation.result)[1]
    after = max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - x.shape[1] - padding)
    image = builder.reshape(f"{operation.name}/image", x, (x.shape[0], 1, x.shape[1]))
    window = Window((1, kernel), (1, stride), (0, padding, 0, after), (1, dilation))
    pooled = builder.max_pool(operation.name, image, window)
    return builder.reshape(f"{operation.name}/signal", pooled, (pooled.shape[0], pooled.shape[2]))


def _max(lowering: Lowering, operation: Operation) -> Value:
    x, _ = codes_of(operation, next(iter(operation.arguments.values())))
    image_shape(operation, x)
    return lowering.builder.max_pool(operation.name, x, _window(operation, x))


def _average(lowering: Lowering, operation: Operation) -> Value:
    x, tensor = codes_of(operation, operation.arguments["self"])
    image_shape(operation, x)
    scale, zero_point = scale_of(operation, tensor)
    window = _window(operation, x)
    elements = window.kernel[0] * window.kernel[1]
    if lowering.engine is Engine.QNNPACK and not operation.arguments["ceil_mode"]:
        return _pool(lowering, operation.name, x, window, zero_point, [qnnpack_average(scale, zero_point, elements)])
    given = operation.arguments["divisor_override"]
    _, _, bottom, right = window.padding
    declared = sizes(operation, "padding", (0, 0))
    beyond = bottom > declared[0] or right > declared[1]
    if given is None and (beyond or (any(window.padding) and not operation.arguments["count_include_pad"])):
        raise operation.unsupported(
            "padding", "windows at the border average fewer elements; pad with count_include_pad=True and ceil_mode=False"
        )
    divisor = elements if given is None else int(given)
    if divisor < 1:
        raise operation.unsupported("divisor_override", f"{divisor} is not a positive number of elements")
    if is_channels_last(tensor):
        maps = _by_lane(lowering, x, average_in_lanes(zero_point, divisor), average_by_channel(zero_point, divisor))
    else:
        maps = [average_contiguous(zero_point, divisor)]
    return _pool(lowering, operation.name, x, window, zero_point, maps)


def _adaptive(lowering: Lowering, operation: Operation) -> Value:
    x, tensor = codes_of(operation, operation.arguments["self"])
    result = shape_of(operation, operation.result)
    if len(x.shape) == 2:  # a signal is an image of one row
        x = lowering.builder.reshape(f"{operation.name}/image", x, (x.shape[0], 1, x.shape[1]))
        tensor = tensor.unsqueeze(2)
    _, height, width = image_shape(operation, x)
    scale, zero_point = scale_of(operation, tensor)
    out = (1, *result[1:])[-2:]
    if height % out[0] or width % out[1]:
        raise operation.unsupported(
            "output_size", f"{list(out)} does not divide the input {height} × {width} into windows of one size"
        )
    kernel = (height // out[0], width // out[1])
    elements = kernel[0] * kernel[1]
    if lowering.engine is Engine.QNNPACK and elements > 1:
        maps = [qnnpack_average(scale, zero_point, elements)]
    elif is_channels_last(tensor):
        maps = _by_lane(lowering, x, adaptive_in_lanes(zero_point, elements), average_by_channel(zero_point, elements))
    else:
        maps = [adaptive_contiguous(zero_point, kernel)]
    pooled = _pool(lowering, operation.name, x, Window(kernel, kernel), zero_point, maps)
    return lowering.builder.reshape(f"{operation.name}/reshaped", pooled, result)


def _mean(lowering: Lowering, operation: Operation) -> Value:
    x, tensor = codes_of(operation, operation.arguments["self"])
    _, height, width = image_shape(operation, x)
    axes = list(operation.arguments.get("dim") or [])
    if sorted(axis % 4 for axis in axes) != [2, 3] or operation.arguments["dtype"] is not None:
        raise operation.unsupported(
            "dim", f"{axes}: only the mean over height and width is supported, in the tensor's own type"
        )
    scale, zero_point = scale_of(operation, tensor)
    elements = height * width
    if lowering.engine is Engine.QNNPACK and axes == [2, 3]:
        function = qnnpack_average(scale, zero_point, elements)
    elif tensor.is_contiguous() or float_mean_is_exact(elements):
        function = mean_contiguous(zero_point, elements)
    else:
        function = None
    window = Window((height, width))
    if function is None:
        pooled = _float_mean(lowering, operation.name, x, window, zero_point)
    else:
        pooled = _pool(lowering, operation.name, x, window, zero_point, [function])
    shape = shape_of(operation, operation.result)
    return lowering.builder.reshape(f"{operation.name}/squeezed", pooled, shape)


def _float_mean(lowering: Lowering, name: str, x: Codes, window: Window, zero_point: int) -> Codes:
    """The mean of a tensor that is channels last, which torch computes in float32 in an order of its own: enclosed."""
    elements = window.kernel[0] * window.kernel[1]
    error = float_mean_error(elements) + 2.0**-30

    def least(z: IntegerArray) -> IntegerArray:
        return np.ceil(z / elements + zero_point - error - 0.5).astype(np.int64)

    def greatest(z: IntegerArray) -> IntegerArray:
        return np.floor(z / elements + zero_point + error + 0.5).astype(np.int64)

    z = lowering.builder.pool_sum(name, x, window, zero_point, None)
    sides = [Requantize(side, 1, LOW, HIGH, x.quantization) for side in (least, greatest)]
    return lowering.builder.enclose(f"{name}/mean", z, sides[0], sides[1], 1 << 31)


def _by_lane(lowering: Lowering, x: Codes, in_lanes: AccumulatorMap, by_channel: AccumulatorMap) -> list[AccumulatorMap]:
    """One map a channel: whole lanes of channels use one formula, what is left of them another."""
    whole = x.shape[0] // lowering.lanes * lowering.lanes
    return [in_lanes] * whole + [by_channel] * (x.shape[0] - whole)


def _pool(lowering: Lowering, name: str, x: Codes, window: Window, zero_point: int, maps: Sequence[AccumulatorMap]) -> Codes:
    """The average of each window; ``maps``: one for all, or one a channel."""
    shared = maps if len(set(map(id, maps))) > 1 else maps[:1]

    def function(z: IntegerArray) -> IntegerArray:
        return np.concatenate([rule(z[i : i + 1]) for i, rule in enumerate(shared)])

    return lowering.builder.pool_sum(name, x, window, zero_point, Requantize(function, len(shared), LOW, HIGH, x.quantization))


POOLS: dict[str, Callable[[Lowering, Operation], Value]] = {
    "aten::max_pool2d": _max,
    "aten::quantized_max_pool2d": _max,
    "aten::max_pool1d": _max_signal,
    "aten::quantized_max_pool1d": _max_signal,
    "aten::avg_pool2d": _average,
    "aten::adaptive_avg_pool1d": _adaptive,
    "aten::adaptive_avg_pool2d": _adaptive,
    "aten::mean": _mean,
}
"""The lowering of each pooling operator."""
