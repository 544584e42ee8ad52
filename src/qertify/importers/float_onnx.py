"""Float ONNX models as exact real arithmetic."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from qertify.errors import InvalidNetworkError, ModelFileError, UnsupportedModelError
from qertify.importers.float_lowering import RealBuilder, averaged_elements
from qertify.importers.moving import Codes
from qertify.importers.onnx_context import (
    Context,
    Decision,
    Value,
    attribute,
    axis_without_batch,
    require_default,
    window_of,
)
from qertify.importers.onnx_file import GraphNode, is_quantized, read_graph, read_model
from qertify.importers.onnx_folding import fold
from qertify.importers.onnx_moves import MOVES, along_window, reduced_axes
from qertify.network.nodes import Window
from qertify.network.real import RealNetwork
from qertify.network.tensor import FloatArray


@dataclass(frozen=True, slots=True)
class FloatLowering(Context):
    """The import of a float graph; its tensors are `Codes` without range."""

    builder: RealBuilder

    def real(self, node: GraphNode, position: int) -> Codes:
        """An operand that depends on the input."""
        value = self.value(node, position)
        if not isinstance(value, Codes):
            raise UnsupportedModelError(node.name, node.op, None, "nothing may follow the final softmax or argmax")
        return value

    def numbers(self, node: GraphNode, position: int) -> FloatArray:
        """A constant operand of float32 numbers, in float64."""
        array = self.constant(node, position, "f")
        if array.dtype != np.float32:
            raise UnsupportedModelError(node.name, node.op, None, f"operand {position} is {array.dtype}; float32 is needed")
        if not np.all(np.isfinite(array)):
            raise ModelFileError(f"node '{node.name}': operand {position} holds NaN or infinity")
        return array.astype(np.float64)


def load_float_onnx(path: str | os.PathLike[str], input_shape: Sequence[int] | None = None) -> RealNetwork:
    """Import a float ONNX model: linear operators, ReLU and its clipped forms, pools, batch normalization, moves.

    Args:
        path: the .onnx file; external data must lie in its folder.
        input_shape: the input's full shape, batch axis first (it must be 1), where the file leaves more than it open.

    Returns:
        The real network. Its metadata tell what became of the outputs ("output": values, softmax, argmax: the last two are
        dropped, and the network gives the scores that they read; only questions about their order make sense then).

    Raises:
        ModelFileError: a damaged or hostile file.
        UnsupportedModelError: a quantized model, or an operator that is not one of the above; names it.
        InvalidInputError: an input shape that contradicts the file.
    """
    try:
        graph = read_graph(read_model(path), input_shape)
        if is_quantized(graph):
            raise UnsupportedModelError(
                graph.nodes[0].name if graph.nodes else "graph",
                "graph",
                None,
                "this is a quantized model; the float original it was made from is needed",
            )
        lowering = FloatLowering(graph, RealBuilder())
        lowering.values[graph.input] = lowering.builder.input(graph.input, graph.input_shape)
        for node in graph.nodes:
            if fold(lowering, node):
                continue
            if node.op not in OPERATORS:
                raise UnsupportedModelError(node.name, node.op, None, "only piecewise linear float operators are read")
            if not node.outputs or not node.outputs[0]:
                raise ModelFileError(f"node '{node.name}' computes nothing")
            lowering.values[node.outputs[0]] = OPERATORS[node.op](lowering, node)
        if graph.output not in lowering.values:
            raise UnsupportedModelError(graph.output, "graph", "output", "does not depend on the input")
        result = lowering.values[graph.output]
        scores, kind = (result.codes, result.kind) if isinstance(result, Decision) else (result, "values")
        assert isinstance(scores, Codes)
        return lowering.builder.build(scores, {"format": "onnx", "input_name": graph.input, "output": kind})
    except (ValueError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path}: damaged: its shapes or values do not fit together ({reason})") from error
    except (InvalidNetworkError, ModelFileError) as error:
        raise error if str(error).startswith(str(path)) else ModelFileError(f"{path}: {error}") from error


def _bias(lowering: FloatLowering, node: GraphNode, position: int, channels: int) -> FloatArray:
    if len(node.inputs) <= position or not node.inputs[position]:
        return np.zeros(channels)
    bias = lowering.numbers(node, position)
    if bias.size not in (1, channels) or max(bias.shape, default=1) != bias.size:
        raise ModelFileError(f"node '{node.name}': bias of shape {bias.shape} for {channels} outputs")
    return np.broadcast_to(bias.reshape(-1), (channels,))


def _gemm(lowering: FloatLowering, node: GraphNode) -> Value:
    require_default(node, transA=0)
    x = lowering.real(node, 0)
    if len(x.shape) != 1:
        raise ModelFileError(f"node '{node.name}': a matrix is needed, not {(1, *x.shape)}")
    weight = lowering.numbers(node, 1)
    if weight.ndim != 2:
        raise ModelFileError(f"node '{node.name}': weight of shape {weight.shape}, two axes are needed")
    weight = weight if attribute(node, "transB", 0) else weight.T
    bias = _bias(lowering, node, 2, weight.shape[0])
    # Both factors have 24 bits, so that the products are exact.
    return lowering.builder.dense(node.name, x, attribute(node, "alpha", 1.0) * weight, attribute(node, "beta", 1.0) * bias)


def _matmul(lowering: FloatLowering, node: GraphNode) -> Value:
    builder = lowering.builder
    if lowering.is_constant(node, 0):
        weight, x = lowering.numbers(node, 0), lowering.real(node, 1)
        if weight.ndim != 2 or len(x.shape) < 2:
            raise UnsupportedModelError(node.name, node.op, None, f"{weight.shape} times {(1, *x.shape)} is not supported")
        axes = (*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2)
        columns = builder.transpose(f"{node.name}/transposed", x, axes)
        result = builder.dense(node.name, columns, weight, np.zeros(weight.shape[0]))
        return builder.transpose(f"{node.name}/back", result, axes)
    x, weight = lowering.real(node, 0), lowering.numbers(node, 1)
    if weight.ndim != 2:
        raise UnsupportedModelError(node.name, node.op, "weight", f"two axes are needed, not shape {weight.shape}")
    return builder.dense(node.name, x, weight.T, np.zeros(weight.shape[1]))


def _on_image(lowering: FloatLowering, node: GraphNode, x: Codes, function: Callable[[Codes], Codes]) -> Codes:
    """Apply a map of images to a tensor with one or two spatial axes."""
    if len(x.shape) == 3:
        return function(x)
    if len(x.shape) != 2:
        raise UnsupportedModelError(node.name, node.op, None, f"one or two spatial axes are needed, not {x.shape}")
    builder = lowering.builder
    result = function(builder.reshape(f"{node.name}/image", x, (x.shape[0], 1, x.shape[1])))
    return builder.reshape(f"{node.name}/signal", result, (result.shape[0], result.shape[2]))


def _convolution(lowering: FloatLowering, node: GraphNode) -> Value:
    x, weight = lowering.real(node, 0), lowering.numbers(node, 1)
    if weight.ndim != len(x.shape) + 1:
        raise UnsupportedModelError(node.name, node.op, "weight", f"shape {weight.shape} on {x.shape}")
    if tuple(attribute(node, "kernel_shape", tuple(weight.shape[2:]))) != weight.shape[2:]:
        raise ModelFileError(f"node '{node.name}': kernel_shape does not fit the weight {weight.shape}")
    window = window_of(node, x.shape[1:], weight.shape[2:])
    bias, groups = _bias(lowering, node, 2, weight.shape[0]), attribute(node, "group", 1)
    kernel = weight.reshape(*weight.shape[:2], *window.kernel)
    return _on_image(
        lowering, node, x, lambda image: lowering.builder.convolution(node.name, image, kernel, bias, window, groups)
    )


def _average_pool(lowering: FloatLowering, node: GraphNode) -> Value:
    x = lowering.real(node, 0)
    window = window_of(node, x.shape[1:], tuple(attribute(node, "kernel_shape", (0,))))
    if attribute(node, "ceil_mode", 0):
        floored = GraphNode(node.name, node.op, node.inputs, node.outputs, {**node.attributes, "ceil_mode": 0})
        if window_of(floored, x.shape[1:], tuple(attribute(node, "kernel_shape", (0,)))).padding != window.padding:
            raise UnsupportedModelError(node.name, node.op, "ceil_mode", "a window leaves the padded input; crop or pad it")
    count = bool(attribute(node, "count_include_pad", 0))

    def pool(image: Codes) -> Codes:
        return lowering.builder.average(node.name, image, window, averaged_elements(image.shape, window, count))

    return _on_image(lowering, node, x, pool)


def _whole_average(lowering: FloatLowering, node: GraphNode) -> Value:
    """ReduceMean, or GlobalAveragePool over everything but the channels."""
    x = lowering.real(node, 0)
    pool, rank = node.op == "GlobalAveragePool", len(x.shape)
    axes = tuple(range(1, rank)) if pool else reduced_axes(lowering, node, rank)

    def average(row: Codes) -> Codes:
        window = Window((1, row.shape[2]))
        return lowering.builder.average(node.name, row, window, averaged_elements(row.shape, window, True))

    return along_window(lowering, node, x, axes, pool or bool(attribute(node, "keepdims", 1)), average)


def _batch_normalization(lowering: FloatLowering, node: GraphNode) -> Value:
    require_default(node, training_mode=0, spatial=1)
    if any(node.outputs[1:]):
        raise UnsupportedModelError(node.name, node.op, None, "only its inference form is supported")
    x = lowering.real(node, 0)
    gamma, beta, mean, variance = (lowering.numbers(node, position) for position in range(1, 5))
    epsilon = float(np.float32(attribute(node, "epsilon", 1e-5)))
    return lowering.builder.normalize(node.name, x, gamma, beta, mean, variance, epsilon)


def _relu(lowering: FloatLowering, node: GraphNode) -> Value:
    return lowering.builder.relu(node.name, lowering.real(node, 0))


def _leaky_relu(lowering: FloatLowering, node: GraphNode) -> Value:
    if node.op == "LeakyRelu":
        return lowering.builder.leaky_relu(node.name, lowering.real(node, 0), attribute(node, "alpha", 0.01))
    x, slope = lowering.real(node, 0), lowering.numbers(node, 1)
    if slope.ndim > len(x.shape) + 1 or _common_shape(node, (1, *x.shape), slope.shape) != x.shape:
        raise ModelFileError(f"node '{node.name}': slopes of shape {slope.shape} do not fit {x.shape}")
    lifted = slope.reshape((1,) * (len(x.shape) + 1 - slope.ndim) + slope.shape)[0]
    return lowering.builder.leaky_relu(node.name, x, lifted)


def _clip(lowering: FloatLowering, node: GraphNode) -> Value:
    bounds = [-np.inf, np.inf]
    for side, name in enumerate(("min", "max")):
        if len(node.inputs) > side + 1 and node.inputs[side + 1]:
            operand = lowering.constant(node, side + 1, "f")
            if operand.size != 1 or np.isnan(operand).any():
                raise ModelFileError(f"node '{node.name}': {name} is not one number")
            bounds[side] = float(operand.reshape(-1)[0])
        elif name in node.attributes:
            bounds[side] = float(attribute(node, name, 0.0))
    bounds = [-np.inf if bounds[0] <= -FLOAT32_MAX else bounds[0], np.inf if bounds[1] >= FLOAT32_MAX else bounds[1]]
    return lowering.builder.clip(node.name, lowering.real(node, 0), bounds[0], bounds[1])


FLOAT32_MAX = float(np.finfo(np.float32).max)
"""Clipping to it is what exporters write for no bound."""


def _common_shape(node: GraphNode, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Of two operands with their batch axis, without it."""
    try:
        full = np.broadcast_shapes(a, b)
    except ValueError as error:
        raise ModelFileError(f"node '{node.name}': shapes {a} and {b} do not fit") from error
    if full[0] != 1 or len(full) > max(len(a), 2):
        raise UnsupportedModelError(node.name, node.op, None, f"shapes {a} and {b} give {full}, which moves the batch axis")
    return full[1:]


def _with_constant(lowering: FloatLowering, node: GraphNode) -> tuple[Codes, FloatArray]:
    """The computed and the constant operand of an element-wise operator, the constant lifted to the axes of the result."""
    fixed = 0 if lowering.is_constant(node, 0) else 1
    x, constant = lowering.real(node, 1 - fixed), lowering.numbers(node, fixed)
    shape = _common_shape(node, (1, *x.shape), constant.shape)
    lifted = constant.reshape((1,) * (len(shape) + 1 - constant.ndim) + constant.shape)[0]
    return lowering.builder.broadcast(f"{node.name}/broadcast", x, shape), lifted


def _sum(lowering: FloatLowering, node: GraphNode, sign: float) -> Value:
    """Addition (sign 1) and subtraction (sign −1)."""
    builder = lowering.builder
    if lowering.is_constant(node, 0) or lowering.is_constant(node, 1):
        x, constant = _with_constant(lowering, node)
        if lowering.is_constant(node, 0):
            return builder.scale(node.name, x, sign, constant)
        return builder.scale(node.name, x, 1.0, sign * constant)
    a, b = lowering.real(node, 0), lowering.real(node, 1)
    shape = _common_shape(node, (1, *a.shape), (1, *b.shape))
    a, b = builder.broadcast(f"{node.name}/a", a, shape), builder.broadcast(f"{node.name}/b", b, shape)
    return builder.add(node.name, [a, b if sign > 0 else builder.scale(f"{node.name}/negative", b, -1.0, 0.0)])


def _product(lowering: FloatLowering, node: GraphNode) -> Value:
    _require_one_constant(lowering, node, "the product of two computed tensors is not linear")
    x, constant = _with_constant(lowering, node)
    return lowering.builder.scale(node.name, x, constant, 0.0)


def _quotient(lowering: FloatLowering, node: GraphNode) -> Value:
    if not lowering.is_constant(node, 1):
        raise UnsupportedModelError(node.name, node.op, None, "dividing by a computed tensor is not linear")
    x, constant = _with_constant(lowering, node)
    return lowering.builder.divide(node.name, x, constant)


def _require_one_constant(lowering: FloatLowering, node: GraphNode, reason: str) -> None:
    if not lowering.is_constant(node, 0) and not lowering.is_constant(node, 1):
        raise UnsupportedModelError(node.name, node.op, None, reason)


def _negative(lowering: FloatLowering, node: GraphNode) -> Value:
    return lowering.builder.scale(node.name, lowering.real(node, 0), -1.0, 0.0)


def _decision(lowering: FloatLowering, node: GraphNode, kind: str) -> Value:
    """A final softmax or argmax over all outputs: dropped, since in real arithmetic it keeps order and ties."""
    value = lowering.value(node, 0)
    scores = value if isinstance(value, Codes) else value.codes
    if kind == "argmax":
        require_default(node, select_last_index=0)
    default = 0 if kind == "argmax" else (-1 if lowering.graph.opset >= 13 else 1)
    axis = axis_without_batch(node, attribute(node, "axis", default), len(scores.shape))
    if scores.shape[axis] != np.prod(scores.shape):
        raise UnsupportedModelError(node.name, node.op, "axis", f"must run over all outputs, not one axis of {scores.shape}")
    return Decision(scores, kind)


OPERATORS: dict[str, Callable[[Any, GraphNode], Value]] = {
    **MOVES,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _convolution,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _whole_average,
    "ReduceMean": _whole_average,
    "BatchNormalization": _batch_normalization,
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "PRelu": _leaky_relu,
    "Clip": _clip,
    "Add": partial(_sum, sign=1.0),
    "Sub": partial(_sum, sign=-1.0),
    "Mul": _product,
    "Div": _quotient,
    "Neg": _negative,
    "Softmax": partial(_decision, kind="softmax"),
    "LogSoftmax": partial(_decision, kind="softmax"),
    "ArgMax": partial(_decision, kind="argmax"),
}
"""The lowering of each float operator."""
