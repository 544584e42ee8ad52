"""ONNX operators at the border of integers and floats: quantizers, clamps, and the final decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from qertify.errors import ModelFileError, UnsupportedModelError
from qertify.importers.decisions import softmax_obstacle
from qertify.importers.islands import Island, shifted, tabulated, then
from qertify.importers.lowering import Codes
from qertify.importers.onnx_constants import float_constant, is_float_constant
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
from qertify.importers.onnx_inputs import STEPS, normalized, stepped
from qertify.importers.onnx_islands import (
    NO_NUMBER,
    as_island,
    clamp,
    combined,
    function_of,
    quantized,
)
from qertify.importers.onnx_moves import MOVES
from qertify.importers.reals import Scaled, exact_sum, quantize_scaled, ranked
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
            lowering.quantized_inputs.append(value)
            return codes
        case Real(codes, values, row) if values is not None:
            image = np.clip(quantize(np.atleast_2d(values), scale, zero_point), low, high)
            return lowering.builder.unary(node.name, codes, image, low, high, quantization, row)
        case Sum() if (exact := exact_sum(lowering.builder, node.name, value, quantizer, low, high, quantization)) is not None:
            return exact
        case Scaled():
            return quantize_scaled(lowering.builder, node.name, value, quantizer, low, high, quantization)
        case Sum() | Island():
            x = as_island(lowering, node, value, "sum")
            return quantized(lowering, node, x, scale, zero_point, low, high, quantization)
        case _:
            raise ModelFileError(f"node '{node.name}': quantizes a tensor that is not float")


def _dequantize(lowering: Lowering, node: GraphNode) -> Value:
    require_default(node, block_size=0, output_dtype=0)
    x = lowering.codes(node, 0)
    scales, zero_points = lowering.scales(node, 1), lowering.zero_points(node, 2)
    rows = max(scales.size, zero_points.size)
    codes = np.arange(x.low, x.high + 1)
    values = [
        dequantize(codes, scale, int(zero_point))
        for scale, zero_point in zip(*(np.broadcast_to(part, (rows,)) for part in (scales, zero_points)), strict=True)
    ]
    if rows == 1:
        return Real(x, values[0])
    axis = axis_without_batch(node, attribute(node, "axis", 1), len(x.shape))
    if x.shape[axis] != rows:
        raise ModelFileError(f"node '{node.name}': {rows} scales for the axis {axis + 1} of {(1, *x.shape)}")
    return Real(x, np.stack(values), np.arange(rows).reshape(-1, *(1,) * (len(x.shape) - axis - 1)))


def _cast(lowering: Lowering, node: GraphNode) -> Value:
    """Codes as the float32 numbers that they are, or float32 as it is."""
    if attribute(node, "to", 0) != 1:
        raise UnsupportedModelError(node.name, node.op, "to", "only a cast to float32 is supported")
    value = lowering.value(node, 0)
    if not isinstance(value, Codes):
        return value
    return Real(value, np.arange(value.low, value.high + 1).astype(np.float32))


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
        case Island() | Scaled():
            return then(as_island(lowering, node, value), clamp(float(np.float32(least)), float(np.float32(greatest))))
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
    if isinstance(value, Sum | Island | Scaled):
        raise UnsupportedModelError(node.name, node.op, None, "it reads what was computed in float; quantize it before")
    if isinstance(value, Real) and value.row is not None:
        value = ranked(lowering.builder, f"{node.name}/ranks", value)
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
    """Softmax or LogSoftmax: dropped after a proof that it keeps order and ties."""
    codes, values = _decided(lowering, node)
    _classes_axis(lowering, node, codes, -1 if lowering.graph.opset >= 13 else 1)
    obstacle = softmax_obstacle(values, int(np.prod(codes.shape)), partial(softmax_keeps_ties, node.op))
    if obstacle is not None:
        raise UnsupportedModelError(node.name, node.op, None, obstacle)
    return Decision(codes, "softmax")


def _argmax(lowering: Lowering, node: GraphNode) -> Value:
    require_default(node, select_last_index=0)
    codes, _ = _decided(lowering, node)
    _classes_axis(lowering, node, codes, 0)
    return Decision(codes, "argmax")


UNARY = (
    "Abs", "Ceil", "Celu", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg",
    "QuickGelu", "Reciprocal", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
)  # fmt: skip
"""Element-wise float operators of one operand."""


def _unary(lowering: Lowering, node: GraphNode) -> Value:
    """An element-wise float operator: its results on all codes, or on a grid after an island, are read off the runtime."""
    if any(isinstance(setting, tuple | np.ndarray) for setting in node.attributes.values()):
        raise UnsupportedModelError(node.name, node.op, None, "its attributes are no single numbers")
    value = lowering.value(node, 0)
    if isinstance(value, Sum | Island | Scaled):
        return function_of(lowering, node, node.op, node.attributes, as_island(lowering, node, value))
    if not isinstance(value, Real) or value.values is None:
        raise UnsupportedModelError(node.name, node.op, None, "it computes in float; a quantizer before it is needed")
    found = unary_floats(node.op, value.values.reshape(-1), node.attributes, lowering.graph.opset)
    if found is None:
        raise UnsupportedModelError(node.name, node.op, None, NO_NUMBER)
    least, greatest = (side.reshape(value.values.shape) for side in found)
    if np.array_equal(least, greatest):
        return replace(value, values=least)
    lowering.islands.append(node)
    if value.row is not None:
        raise UnsupportedModelError(node.name, node.op, None, "its float results depend on the position in the tensor")
    return tabulated(lowering.builder, node.name, value.codes, least, greatest, 0.0)


def _batch_normalization(lowering: Lowering, node: GraphNode) -> Value:
    """Between integers: its results on all codes, channel by channel, are read off the runtime."""
    require_default(node, training_mode=0, spatial=1)
    value = lowering.value(node, 0)
    if not isinstance(value, Real) or value.row is not None or any(node.outputs[1:]):
        raise UnsupportedModelError(node.name, node.op, None, "it computes in float; a quantizer before it is needed")
    channels, *rest = value.codes.shape
    parameters = [float_constant(lowering, node, position)[0] for position in range(1, 5)]
    if any(parameter.shape != (channels,) for parameter in parameters):
        raise ModelFileError(f"node '{node.name}': its parameters do not fit {channels} channels")
    if value.values is None:
        return normalized(lowering, node, value, parameters)
    settings = {"epsilon": attribute(node, "epsilon", 1e-5)}
    found = unary_floats(node.op, value.values, settings, lowering.graph.opset, parameters)
    if found is None or not np.array_equal(*found):
        reason = NO_NUMBER if found is None else "its float results depend on the position in the tensor"
        raise UnsupportedModelError(node.name, node.op, None, reason)
    return Real(value.codes, found[0], np.arange(channels).reshape(channels, *(1,) * len(rest)))


BINARY: dict[str, Callable[[Float32Array, Float32Array], Float32Array]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "PRelu": lambda a, b: np.where(a > 0, a, a * b),
    "Max": np.maximum,
    "Min": np.minimum,
}
"""Float operators with one correctly rounded result, float32 in and out."""


def _binary(lowering: Lowering, node: GraphNode) -> Value:
    """Two float tensors known through the same codes, or one of them constant: still known through those codes.

    The sum of two tensors known through different codes stays exact, too; the rest is enclosed.
    """
    if len(node.inputs) != 2:
        raise UnsupportedModelError(node.name, node.op, None, f"two operands are needed, not {len(node.inputs)}")
    operands = [_binary_operand(lowering, node, position) for position in range(2)]
    known = [operand for operand in operands if not isinstance(operand, np.ndarray)]
    if not known:
        raise UnsupportedModelError(node.name, node.op, None, "both operands are constants; fold them")
    if any(isinstance(operand, Island | Sum | Scaled) for operand in known):
        return _on_islands(lowering, node, operands)
    if any(isinstance(operand, Real) and operand.values is None for operand in known):
        return _on_input(lowering, node, operands)
    reals = [operand for operand in known if isinstance(operand, Real)]
    if len(reals) != len(known):
        raise UnsupportedModelError(node.name, node.op, None, "it computes in float; an operand is no float tensor")
    codes = reals[0].codes
    if any((real.codes.node, real.codes.shape) != (codes.node, codes.shape) for real in reals):
        return _different(lowering, node, reals[0], reals[1])
    (first, first_row), (second, second_row) = (_rows(node, operand, codes) for operand in operands)  # type: ignore[arg-type]
    pairs, row = np.unique(first_row * len(second) + second_row, return_inverse=True)
    with np.errstate(all="ignore"):
        values = BINARY[node.op](first[pairs // len(second)], second[pairs % len(second)])
    if not np.all(np.isfinite(values)):
        raise UnsupportedModelError(node.name, node.op, None, NO_NUMBER)
    return Real(codes, values[0]) if len(pairs) == 1 else Real(codes, values, row.reshape(codes.shape))


def _on_input(lowering: Lowering, node: GraphNode, operands: list[Value | Float32Array]) -> Value:
    """The network's input before its quantizer, with a constant."""
    match operands:
        case [Real() as x, np.ndarray() as constant] if node.op in STEPS:
            return stepped(lowering, node, x, STEPS[node.op], constant)
        case [np.ndarray() as constant, Real() as x] if node.op in ("Add", "Mul"):
            return stepped(lowering, node, x, STEPS[node.op], constant)
        case _:
            reason = "on the network's input before its quantizer; only constants added, subtracted, multiplied or divided by"
            raise UnsupportedModelError(node.name, node.op, None, reason)


def _binary_operand(lowering: Lowering, node: GraphNode, position: int) -> Value | Float32Array:
    if is_float_constant(lowering, node, position):
        return float_constant(lowering, node, position)[0]
    return lowering.value(node, position)


def _rows(node: GraphNode, operand: Real | Float32Array, codes: Codes) -> tuple[Float32Array, IntegerArray]:
    """An operand's number on every code, (rows, codes or 1), and the row of each element of the tensor."""
    if isinstance(operand, Real):
        assert operand.values is not None
        row = np.zeros(1, dtype=np.int64) if operand.row is None else operand.row
        return np.atleast_2d(operand.values), np.broadcast_to(row, codes.shape)
    full = (1, *codes.shape)
    if operand.size != 1 and np.broadcast_shapes(operand.shape, full) != full:
        raise UnsupportedModelError(node.name, node.op, None, f"the constant {operand.shape} would extend the tensor {full}")
    distinct, row = np.unique(operand, return_inverse=True)
    return distinct[:, None], np.broadcast_to(row.reshape(operand.shape if operand.size != 1 else ()), full)[0]


def _different(lowering: Lowering, node: GraphNode, a: Real, b: Real) -> Value:
    """Of two tensors known through different codes."""
    a, b = (
        real if real.row is None else ranked(lowering.builder, f"{node.name}/{side}_ranks", real)
        for side, real in (("a", a), ("b", b))
    )
    if node.op in ("Add", "Sub") and a.codes.shape == b.codes.shape:
        return Sum(a, b if node.op == "Add" else replace(b, values=-b.values))  # type: ignore[operator]
    return combined(lowering, node, a, b)


def _concat(lowering: Lowering, node: GraphNode) -> Value:
    """Float tensors known through codes of different scales are joined through codes that number all their values."""
    before = dict(lowering.values)
    parts = [lowering.value(node, position) for position in range(len(node.inputs))]
    reals = [
        part if part.row is None else ranked(lowering.builder, f"{node.name}/ranks{i}", part)
        for i, part in enumerate(parts)
        if isinstance(part, Real) and part.values is not None
    ]
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


def _on_islands(lowering: Lowering, node: GraphNode, operands: list[Value | Float32Array]) -> Value:
    """An operator of which an operand was computed in float itself: two tensors, or a tensor and a constant added to it."""
    first, second = operands
    if not isinstance(first, np.ndarray) and not isinstance(second, np.ndarray):
        return combined(lowering, node, first, second)
    position = 0 if isinstance(first, np.ndarray) else 1
    constant = np.asarray(operands[position], dtype=np.float64)
    x = as_island(lowering, node, operands[1 - position])  # type: ignore[arg-type]
    fits = constant.size == 1 or np.broadcast_shapes(constant.shape, (1, *x.z.shape)) == (1, *x.z.shape)
    if x.after or not fits or not (node.op == "Add" or (node.op == "Sub" and position == 1)):
        raise UnsupportedModelError(node.name, node.op, None, "only a constant added to a linear float result is enclosed")
    aligned = constant.reshape((1,) * (len(x.z.shape) + 1 - constant.ndim) + constant.shape)[0]
    return shifted(x, aligned if node.op == "Add" else -aligned)


REALS: dict[str, Callable[[Lowering, GraphNode], Value]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Cast": _cast,
    "Relu": lambda lowering, node: _clamp(lowering, node, 0.0, np.inf),
    "Clip": _clip,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "BatchNormalization": _batch_normalization,
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    "Concat": _concat,
    "ArgMax": _argmax,
}
"""The lowering of each operator between integers and floats."""
