"""ONNX operators at the border of integers and floats: quantizers, clamps, and the final decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from qertify.errors import ModelFileError, UnsupportedModelError
from qertify.importers.decisions import softmax_obstacle
from qertify.importers.islands import Island, exact_sum, shifted, then
from qertify.importers.lowering import Codes
from qertify.importers.onnx_context import (
    Decision,
    Lowering,
    Real,
    Sum,
    Value,
    attribute,
    axis_without_batch,
    require_default,
)
from qertify.importers.onnx_file import GraphNode
from qertify.importers.onnx_islands import as_island, clamp, combined, quantized
from qertify.importers.onnx_moves import MOVES
from qertify.network.tensor import IntegerArray
from qertify.runtimes.float32 import Float32Array
from qertify.runtimes.onnxruntime import softmax_keeps_ties, unary_floats
from qertify.runtimes.onnxruntime_arithmetic import dequantize, quantize


def _quantize(lowering: Lowering, node: GraphNode) -> Value:
    require_default(node, block_size=0, output_dtype=0, precision=0, saturate=1)
    value = lowering.value(node, 0)
    scale, zero_point, low, high, quantization = lowering.result(node, 1)

    def quantizer(x: Float32Array) -> IntegerArray:
        return quantize(x, scale, zero_point)

    match value:
        case Real(codes, None):  # the input itself: its codes are this quantizer's
            return codes
        case Real(codes, values) if values is not None:
            image = np.clip(quantize(values, scale, zero_point), low, high)
            return lowering.builder.unary(node.name, codes, image[None, :], low, high, quantization)
        case Sum() if (exact := exact_sum(lowering.builder, node.name, value, quantizer, low, high, quantization)) is not None:
            return exact
        case Sum() | Island():
            x = as_island(lowering, node, value, "sum")
            return quantized(lowering, node, x, scale, zero_point, low, high, quantization)
        case _:
            raise ModelFileError(f"node '{node.name}': quantizes a tensor that is not float")


def _dequantize(lowering: Lowering, node: GraphNode) -> Value:
    require_default(node, block_size=0, output_dtype=0)
    x = lowering.codes(node, 0)
    scale = lowering.scale(node, 1)
    zero_point = lowering.zero_point(node, 2)[0] if len(node.inputs) > 2 and node.inputs[2] else 0
    return Real(x, dequantize(np.arange(x.low, x.high + 1), scale, zero_point))


def _clamp(lowering: Lowering, node: GraphNode, least: float, greatest: float) -> Value:
    """min(max(x, least), greatest) on codes as they are, or on the real numbers they stand for."""
    value = lowering.value(node, 0)
    match value:
        case Codes():
            image = np.clip(np.arange(value.low, value.high + 1), max(least, value.low), min(greatest, value.high))
            return lowering.builder.unary(
                node.name, value, image[None, :].astype(np.int64), value.low, value.high, value.quantization
            )
        case Real(_, values) if values is not None:
            return replace(value, values=np.minimum(np.maximum(values, np.float32(least)), np.float32(greatest)))
        case Sum(a, b, low, high):
            return Sum(a, b, float(np.clip(low, least, greatest)), float(np.clip(high, least, greatest)))
        case Island():
            return then(value, clamp(float(np.float32(least)), float(np.float32(greatest))))
        case _:
            raise UnsupportedModelError(node.name, node.op, None, "it computes in float; a quantizer before it is needed")


def _clip(lowering: Lowering, node: GraphNode) -> Value:
    bounds = [-np.inf, np.inf]
    for side, name in enumerate(("min", "max")):
        if len(node.inputs) > side + 1 and node.inputs[side + 1]:
            operand = lowering.constant(node, side + 1)
            if operand.size != 1:
                raise ModelFileError(f"node '{node.name}': {name} has {operand.size} elements")
            bounds[side] = float(operand.reshape(-1)[0])
        elif name in node.attributes:
            bounds[side] = float(attribute(node, name, 0.0))
    if not bounds[0] <= bounds[1]:
        raise ModelFileError(f"node '{node.name}': clips to the empty range {bounds}")
    return _clamp(lowering, node, bounds[0], bounds[1])


def _decided(lowering: Lowering, node: GraphNode) -> tuple[Codes, Float32Array | None]:
    """The codes that a final operator reads, whose real numbers must grow strictly with them."""
    value = lowering.value(node, 0)
    if isinstance(value, Decision):
        return value.codes, None
    if isinstance(value, Sum | Island):
        raise UnsupportedModelError(node.name, node.op, None, "it reads what was computed in float; quantize it before")
    codes, values = (value, None) if isinstance(value, Codes) else (value.codes, value.values)
    if isinstance(value, Real) and values is None:
        raise UnsupportedModelError(node.name, node.op, None, "it reads the network's input")
    if values is not None and np.any(np.diff(values) <= 0):
        raise UnsupportedModelError(node.name, node.op, None, "different codes stand for the same number before it")
    return codes, values


def _classes_axis(lowering: Lowering, node: GraphNode, codes: Codes, default: int) -> None:
    axis = axis_without_batch(node, attribute(node, "axis", default), len(codes.shape))
    if codes.shape[axis] != np.prod(codes.shape):
        raise UnsupportedModelError(node.name, node.op, "axis", f"must run over all outputs, not one axis of {codes.shape}")


def _softmax(lowering: Lowering, node: GraphNode) -> Value:
    """Dropped after a proof that it keeps order and ties."""
    codes, values = _decided(lowering, node)
    _classes_axis(lowering, node, codes, -1 if lowering.graph.opset >= 13 else 1)
    obstacle = softmax_obstacle(values, int(np.prod(codes.shape)), softmax_keeps_ties)
    if obstacle is not None:
        raise UnsupportedModelError(node.name, node.op, None, obstacle)
    return Decision(codes, "softmax")


def _argmax(lowering: Lowering, node: GraphNode) -> Value:
    require_default(node, select_last_index=0)
    codes, _ = _decided(lowering, node)
    _classes_axis(lowering, node, codes, 0)
    return Decision(codes, "argmax")


def _unary(lowering: Lowering, node: GraphNode) -> Value:
    """An element-wise float operator between integers: its results on all codes are read off the runtime."""
    value = lowering.value(node, 0)
    if not isinstance(value, Real) or value.values is None:
        raise UnsupportedModelError(node.name, node.op, None, "it computes in float; a quantizer before it is needed")
    attributes = {name: attribute(node, name, 0.0) for name in node.attributes}
    values = unary_floats(node.op, value.values, attributes)
    if values is None:
        raise UnsupportedModelError(node.name, node.op, None, "its float results depend on the position in the tensor")
    return replace(value, values=values)


BINARY: dict[str, Callable[[Float32Array, Float32Array], Float32Array]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
}
"""Float operators with one correctly rounded result, float32 in and out."""


def _binary(lowering: Lowering, node: GraphNode) -> Value:
    """Two float tensors known through the same codes, or one of them a number: still known through those codes.

    The sum of two tensors known through different codes stays exact, too; the rest is enclosed.
    """
    values_of = [None if lowering.is_constant(node, side) else lowering.value(node, side) for side in range(2)]
    if any(isinstance(value, Island | Sum) for value in values_of):
        return _on_islands(lowering, node, values_of)
    operands: list[Float32Array] = []
    known: list[Real] = []
    for position in range(2):
        if lowering.is_constant(node, position):
            constant = lowering.constant(node, position)
            if constant.dtype != np.float32 or constant.size != 1:
                raise UnsupportedModelError(node.name, node.op, None, f"a single number is needed, not {constant.shape}")
            operands.append(constant.reshape(-1))
            continue
        value = lowering.value(node, position)
        if not isinstance(value, Real) or value.values is None:
            raise UnsupportedModelError(node.name, node.op, None, "it runs in float, on the network's input")
        known.append(value)
        operands.append(value.values)
    if not known:
        raise UnsupportedModelError(node.name, node.op, None, "both operands are constants; fold them")
    codes = known[0].codes
    if any((k.codes.node, k.codes.shape) != (codes.node, codes.shape) for k in known):
        if node.op in ("Add", "Sub") and known[1].codes.shape == codes.shape:
            return Sum(known[0], known[1] if node.op == "Add" else replace(known[1], values=-operands[1]))
        return combined(lowering, node, known[0], known[1])
    with np.errstate(all="ignore"):
        values = BINARY[node.op](operands[0], operands[1])
    if not np.all(np.isfinite(values)):
        raise UnsupportedModelError(node.name, node.op, None, "some code gives NaN or infinity")
    return Real(codes, values)


def _concat(lowering: Lowering, node: GraphNode) -> Value:
    """Float tensors known through codes of different scales are joined through codes that number all their values."""
    before = dict(lowering.values)
    parts = [lowering.value(node, position) for position in range(len(node.inputs))]
    reals = [part for part in parts if isinstance(part, Real) and part.values is not None]
    tables = [part.values for part in reals if part.values is not None]
    alike = all(np.array_equal(table, tables[0]) for table in tables)
    if reals and len(reals) == len(parts) and not alike:
        union = np.unique(np.concatenate(tables))
        for position, (part, table) in enumerate(zip(reals, tables, strict=True)):
            index = np.searchsorted(union, table)[None, :]
            codes = lowering.builder.unary(f"{node.name}/{position}", part.codes, index, 0, len(union) - 1, None)
            lowering.values[node.inputs[position]] = Real(replace(codes, low=0, high=len(union) - 1), union)
    joined = MOVES["Concat"](lowering, node)
    lowering.values.update(before)
    return joined


def _on_islands(lowering: Lowering, node: GraphNode, values: list[Value | None]) -> Value:
    """An operator of which an operand was computed in float itself: two tensors, or a tensor and a constant added to it."""
    first, second = values
    if first is not None and second is not None:
        return combined(lowering, node, first, second)
    position = 0 if first is None else 1
    constant = lowering.constant(node, position, "f").astype(np.float64)
    x = as_island(lowering, node, values[1 - position])  # type: ignore[arg-type]
    fits = constant.size == 1 or np.broadcast_shapes(constant.shape, (1, *x.z.shape)) == (1, *x.z.shape)
    if x.after or not fits or not (node.op == "Add" or (node.op == "Sub" and position == 1)):
        raise UnsupportedModelError(node.name, node.op, None, "only a constant added to a linear float result is enclosed")
    aligned = constant.reshape((1,) * (len(x.z.shape) + 1 - constant.ndim) + constant.shape)[0]
    return shifted(x, aligned if node.op == "Add" else -aligned)


REALS: dict[str, Callable[[Lowering, GraphNode], Value]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Relu": lambda lowering, node: _clamp(lowering, node, 0.0, np.inf),
    "Clip": _clip,
    "Softmax": _softmax,
    "LeakyRelu": _unary,
    "Sigmoid": _unary,
    "Tanh": _unary,
    "HardSigmoid": _unary,
    "HardSwish": _unary,
    **dict.fromkeys(BINARY, _binary),
    "Concat": _concat,
    "ArgMax": _argmax,
}
"""The lowering of each operator between integers and floats."""
