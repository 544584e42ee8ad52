"""Sums of products in PT2E graphs, which torch computes in float32: linear layers, convolutions and averages, enclosed."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from qertify.importers import islands
from qertify.importers.float_lowering import averaged_elements
from qertify.importers.islands import Island, Weights
from qertify.importers.lowering import Codes
from qertify.importers.pt2_context import pool_window, window_of
from qertify.importers.pt2_file import Call, ElementType, Reference
from qertify.importers.pt2e_context import Lowering, Value, linear_island
from qertify.network.nodes import Window
from qertify.network.tensor import FloatArray, IntegerArray


def _weights(lowering: Lowering, call: Call, name: str) -> Weights:
    """Weights with the output channel first."""
    operand = call.arguments.get(name)
    if isinstance(operand, Reference) and operand.name in lowering.weights:
        return lowering.weights[operand.name]
    return islands.weights_on_grid(lowering.numbers(call, name).astype(np.float32))


def _linear(lowering: Lowering, call: Call) -> Value:
    weights = _weights(lowering, call, "weight")
    return _dense(lowering, call, "input", weights, lowering.numbers(call, "bias", 0.0, (len(weights.values),)))


def _addmm(lowering: Lowering, call: Call) -> Value:
    weight = lowering.numbers(call, "mat2")
    if weight.ndim != 2 or any(call.arguments.get(name, 1) != 1 for name in ("alpha", "beta")):
        raise call.unsupported("mat2", f"a matrix is needed, not {weight.shape}, and neither alpha nor beta")
    bias = np.broadcast_to(lowering.numbers(call, "self").reshape(-1), weight.shape[1:])
    return _dense(lowering, call, "mat1", islands.weights_on_grid(weight.T.astype(np.float32)), bias)


def _dense(lowering: Lowering, call: Call, name: str, weights: Weights, bias: FloatArray) -> Value:
    x, zero_point = linear_island(lowering, call, lowering.value(call, name))
    if len(x.z.shape) != 1 or weights.integers.ndim != 2:
        raise call.unsupported(None, f"weight {weights.integers.shape} on {x.z.shape}; one axis is needed")

    def sums(weight: IntegerArray) -> Codes:
        return lowering.builder.dense(call.name, x.z, weight, np.zeros(len(weight), dtype=np.int64), zero_point, None, 64)

    return islands.linear(x, weights, bias, zero_point, sums)


def _convolution(lowering: Lowering, call: Call) -> Value:
    x, zero_point = linear_island(lowering, call, lowering.value(call, "input"))
    weights = _weights(lowering, call, "weight")
    if weights.integers.ndim != 4 or len(x.z.shape) != 3 or isinstance(call.arguments.get("padding"), str):
        raise call.unsupported("padding", f"weight {weights.integers.shape} on {x.z.shape}; two axes, padding as numbers")
    window = window_of(call, 2, (weights.integers.shape[2], weights.integers.shape[3]))
    groups, bias = call.arguments.get("groups", 1), lowering.numbers(call, "bias", 0.0, weights.values.shape[:1])

    def sums(weight: IntegerArray) -> Codes:
        zeros = np.zeros(len(weight), dtype=np.int64)
        return lowering.builder.convolution(call.name, x.z, weight, zeros, window, zero_point, groups, None, 64)

    return islands.linear(x, weights, bias, zero_point, sums)


def _averaged(lowering: Lowering, call: Call, name: str, window: Callable[[tuple[int, ...]], tuple[Window, Any]]) -> Island:
    """``window``: from the image's shape to the window and how many elements each position averages."""
    x, zero_point = linear_island(lowering, call, lowering.value(call, "self"))
    if len(x.z.shape) != 3:
        raise call.unsupported(None, f"it averages {x.z.shape}; (channels, height, width) is needed")
    chosen, counts = window(x.z.shape)
    return islands.average(lowering.builder, name, x, zero_point, chosen, counts)


def _average_pool(lowering: Lowering, call: Call) -> Value:
    def window(shape: tuple[int, ...]) -> tuple[Window, Any]:
        found = pool_window(call, 2, shape, lowering.result_shape(call))
        divisor = call.arguments.get("divisor_override")
        counts = averaged_elements(shape, found, bool(call.arguments.get("count_include_pad", True)))
        if divisor is not None and int(divisor) < 1:
            raise call.unsupported("divisor_override", f"{divisor} is not a positive number of elements")
        return found, counts if divisor is None else np.full((1, 1, 1), int(divisor), dtype=np.int64)

    return _averaged(lowering, call, call.name, window)


def _adaptive(lowering: Lowering, call: Call) -> Value:
    def window(shape: tuple[int, ...]) -> tuple[Window, Any]:
        out = lowering.result_shape(call)
        if len(out) != 3 or shape[1] % out[1] or shape[2] % out[2]:
            raise call.unsupported("output_size", f"{list(out[1:])} does not divide the input {shape[1:]}")
        kernel = (shape[1] // out[1], shape[2] // out[2])
        return Window(kernel, kernel), np.full((1, 1, 1), prod(kernel), dtype=np.int64)

    return _averaged(lowering, call, call.name, window)


def _mean(lowering: Lowering, call: Call) -> Value:
    axes = sorted(axis % 4 for axis in call.arguments.get("dim") or [])
    if axes != [2, 3] or call.arguments.get("dtype") not in (None, ElementType("float32")):
        raise call.unsupported("dim", f"{axes}: only the mean over height and width is supported, in float32")

    def window(shape: tuple[int, ...]) -> tuple[Window, Any]:
        return Window((shape[1], shape[2])), np.full((1, 1, 1), shape[1] * shape[2], dtype=np.int64)

    mean = _averaged(lowering, call, f"{call.name}/mean", window)
    return islands.moved(lowering.builder, call.name, mean, np.arange(mean.z.shape[0]).reshape(lowering.result_shape(call)))


LINEAR: dict[str, Callable[[Lowering, Call], Value]] = {
    "aten.linear": _linear,
    "aten.addmm": _addmm,
    "aten.conv2d": _convolution,
    "aten.avg_pool2d": _average_pool,
    "aten.adaptive_avg_pool2d": _adaptive,
    "aten.mean": _mean,
}
"""The lowering of each operator that sums."""
