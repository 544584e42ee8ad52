"""How each operator of a PT2E graph becomes integer nodes; ends in the table of all of them.

Such a graph quantizes and dequantizes explicitly, and computes in float32 between. What one tensor of codes determines is
known exactly, number by number; sums of products are enclosed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from qertify.importers import islands, reals
from qertify.importers.islands import Island
from qertify.importers.lowering import Codes
from qertify.importers.pt2_context import MOVES, RESHAPING, Move, padded, pool_window
from qertify.importers.pt2_file import Call, ElementType, Reference
from qertify.importers.pt2e_context import Lowering, Raw, Value, island_of, linear_island, require
from qertify.importers.pt2e_linear import LINEAR
from qertify.importers.reals import Real, Sum
from qertify.network.tensor import FloatArray, IntegerArray, QuantizationParameters
from qertify.runtimes.float32 import Float32Array
from qertify.runtimes.torch_arithmetic import dequantize, quantize_decomposed
from qertify.runtimes.torch_exported import elementwise

SLOPES = {
    "aten.gelu": 1.13, "aten.hardsigmoid": 1 / 6, "aten.hardswish": 1.5, "aten.leaky_relu": 1.0,
    "aten.neg": 1.0, "aten.sigmoid": 0.25, "aten.silu": 1.1, "aten.tanh": 1.0,
}  # fmt: skip
"""The steepest slope of each function (of its standard form)."""


def _quantize(lowering: Lowering, call: Call) -> Value:
    scale, zero_point = lowering.scale(call), int(lowering.number(call, "zero_point"))
    low, high = lowering.range(call)
    meaning = QuantizationParameters.of(scale, zero_point)
    builder, value = lowering.builder, lowering.value(call, "input")

    def quantizer(x: Float32Array) -> IntegerArray:
        return quantize_decomposed(x, scale, zero_point)

    match value:
        case Raw(indices):
            if not lowering.inputs:
                lowering.inputs.append(builder.input("input", lowering.graph.input_shape, low, high, meaning))
            codes = lowering.inputs[0]
            found = codes.quantization
            assert found is not None
            if (found.scale[0], found.zero_point[0], codes.low, codes.high) != (scale, zero_point, low, high):
                raise call.unsupported(None, "the input is quantized in several ways; one quantizer is needed")
            return builder.rearrange(call.name, (codes,), indices)
        case Real(codes, values) if values is not None:
            image = np.clip(quantizer(values), low, high)
            return builder.unary(call.name, codes, image[None, :], low, high, meaning)
        case Sum() if (exact := reals.exact_sum(builder, call.name, value, quantizer, low, high, meaning)) is not None:
            return exact
        case Sum() | Island():
            return islands.quantize(builder, call.name, island_of(lowering, call, value), quantizer, low, high, meaning)
        case _:
            raise call.unsupported("input", "it does not quantize a float tensor")


def _dequantize(lowering: Lowering, call: Call) -> Value:
    codes = lowering.value(call, "input")
    if not isinstance(codes, Codes) or call.arguments.get("out_dtype") not in (None, ElementType("float32")):
        raise call.unsupported("input", "it does not dequantize codes to float32")
    zero_point = int(lowering.number(call, "zero_point"))
    return Real(codes, dequantize(np.arange(codes.low, codes.high + 1), np.float32(lowering.scale(call)), zero_point))


# Element by element.


def _elementwise(lowering: Lowering, call: Call) -> Value:
    """An operator of numbers known through one tensor of codes: its results on all of them are read off torch."""
    named = {key: lowering.values[value.name] for key, value in call.arguments.items() if _is_computed(value, lowering)}
    first, *others = named.values()
    if isinstance(first, Sum | Island) and not others:
        return _on_grid(lowering, call, first)
    if not isinstance(first, Real) or first.values is None:
        raise call.unsupported(None, "it computes in float; a quantizer before it is needed")
    tables = {key: value.values for key, value in named.items() if isinstance(value, Real) and value.values is not None}
    return _read_off(lowering, call, first.codes, tables, 0.0)


def _on_grid(lowering: Lowering, call: Call, value: Sum | Island) -> Value:
    """The operator on a grid: what is between two of its points can't be further away than the operator's slope allows."""
    slope = SLOPES.get(call.op.rpartition(".")[0].rstrip("_"))
    if slope is None:
        raise call.unsupported(None, "it computes in float; a quantizer before it is needed")
    slope = max(slope, abs(float(call.arguments.get("negative_slope", 0.01))))
    x = islands.regrid(lowering.builder, f"{call.name}/grid", island_of(lowering, call, value))
    step = float(x.scale.flat[0])
    points = (step * np.arange(x.low, x.high + 1)).astype(np.float32)
    return _read_off(lowering, call, replace(x.z, low=x.low, high=x.high), {"self": points}, slope * float(x.error.flat[0]))


def _read_off(lowering: Lowering, call: Call, codes: Codes, tables: Mapping[str, Float32Array], error: float) -> Value:
    """The operator's results on the numbers of all codes; ``error``: how far its operands' real numbers move them."""
    fixed: dict[str, float] = {}
    for key, value in call.arguments.items():
        array = lowering.constant(call, key) if isinstance(value, Reference) else None
        if array is not None:
            require(call, array.size == 1 and array.dtype == np.float32, key, "a single number is needed")
            fixed[key] = float(array.reshape(-1)[0])
    require(call, lowering.result_shape(call) == codes.shape, "other", "its result has another shape than its operand")
    found = elementwise(call, tables, fixed)
    if found is None:
        raise call.unsupported(None, "some code gives NaN or infinity")
    least, greatest = found
    if not error and np.array_equal(least, greatest):
        return Real(codes, least)
    return islands.tabulated(lowering.builder, call.name, codes, least, greatest, error)


def _is_computed(value: object, lowering: Lowering) -> TypeGuard[Reference]:
    return isinstance(value, Reference) and value.name in lowering.values


def _clamp(lowering: Lowering, call: Call, names: tuple[str, str], bounds: tuple[float, float]) -> Value:
    value = lowering.value(call, "self")
    given = [call.arguments.get(name) for name in names]
    low, high = (default if one is None else one for one, default in zip(given, bounds, strict=True))
    if not isinstance(low, int | float) or not isinstance(high, int | float) or not low <= high:
        raise call.unsupported(names[0], "bounds as numbers are needed, the lower one first")
    low, high = float(np.float32(low)), float(np.float32(high))
    match value:
        case Real(_, values) if values is not None:
            return replace(value, values=np.clip(values, np.float32(low), np.float32(high)))
        case Sum():
            return replace(value, low=float(np.clip(value.low, low, high)), high=float(np.clip(value.high, low, high)))
        case Island():
            return islands.then(value, islands.clamp(low, high))
        case _:
            raise call.unsupported(None, "it computes in float, on what no quantizer and dequantizer precede")


def _binary(lowering: Lowering, call: Call) -> Value:
    """Sums and products; what one tensor of codes determines is exact."""
    if call.arguments.get("alpha", 1) != 1 or call.arguments.get("rounding_mode") is not None:
        raise call.unsupported("alpha", "alpha and rounding modes are not supported")
    op = call.op.split(".")[1].rstrip("_")
    operands = [lowering.values[v.name] for v in call.arguments.values() if _is_computed(v, lowering)]
    sources = {(x.codes.node, x.codes.shape) if isinstance(x, Real) else None for x in operands}
    if len(sources) == 1 and None not in sources:
        return _elementwise(lowering, call)
    builder = lowering.builder
    if len(operands) == 2 and op in ("add", "sub", "mul"):
        a, b = (lowering.value(call, name) for name in ("self", "other"))
        shape = lowering.result_shape(call)
        if op == "sub":
            if not isinstance(b, Real) or b.values is None:
                raise call.unsupported(None, "it subtracts what was computed in float; quantizers before it are needed")
            b = replace(b, values=-b.values)
        if op == "mul":
            (x, x_zero), (y, y_zero) = (linear_island(lowering, call, v, s) for v, s in ((a, "a"), (b, "b")))
            x, y = (replace(p, z=builder.broadcast(f"{call.name}/wide_{s}", p.z, shape)) for p, s in ((x, "a"), (y, "b")))
            return islands.product(builder, f"{call.name}/product", x, y, (x_zero, y_zero))
        if isinstance(a, Real) and isinstance(b, Real) and a.codes.shape == b.codes.shape:
            return Sum(a, b)
        x, y = (island_of(lowering, call, v, s) for v, s in ((a, "a"), (b, "b")))
        x, y = (islands.regrid(builder, f"{call.name}/grid_{s}", p) if p.after else p for p, s in ((x, "a"), (y, "b")))
        total = islands.add(builder, f"{call.name}/sum", x, y) if x.z.shape == y.z.shape else None
        if total is None:
            raise call.unsupported(
                None, "its operands differ in shape, or their scales within a channel; quantizers are needed"
            )
        return total
    constant = lowering.constant(call, "other")
    x = lowering.value(call, "self") if constant is not None else None
    if op == "add" and constant is not None and isinstance(x, Island) and not x.after:
        return islands.shifted(x, _aligned(call, constant, x.z.shape))
    raise call.unsupported(None, "only the sum or product of computed tensors, or of codes and a number, is supported")


def _aligned(call: Call, constant: NDArray[Any], shape: tuple[int, ...]) -> FloatArray:
    values = constant.astype(np.float32).astype(np.float64)
    if values.ndim > len(shape) + 1 or np.broadcast_shapes(values.shape, (1, *shape)) != (1, *shape):
        raise call.unsupported("other", f"a constant of shape {values.shape} does not fit {shape}")
    return values.reshape((1,) * (len(shape) + 1 - values.ndim) + values.shape)[0]


# Moves.


def _max_pool(lowering: Lowering, call: Call) -> Value:
    value, builder = lowering.value(call, "self"), lowering.builder
    value = island_of(lowering, call, value) if isinstance(value, Sum) else value
    if isinstance(value, Raw) or len(_codes_of(value).shape) != 3:
        raise call.unsupported(None, "an image behind a quantizer is needed")
    window = pool_window(call, 2, _codes_of(value).shape, lowering.result_shape(call))
    match value:
        case Codes():
            return builder.max_pool(call.name, value, window)
        case Real(codes, values) if values is not None:
            if np.all(np.diff(values) >= 0):
                return Real(builder.max_pool(call.name, codes, window), values)
            order = np.unique(values)
            rank = builder.unary(f"{call.name}/rank", codes, np.searchsorted(order, values)[None, :], 0, len(order) - 1, None)
            return Real(builder.max_pool(call.name, replace(rank, low=0, high=len(order) - 1), window), order)
        case Island():
            per_channel = all(part.shape[1:] in ((), (1, 1)) for part in (value.scale, value.shift, value.error))
            x = value if per_channel else islands.regrid(builder, f"{call.name}/grid", value)
            return replace(x, z=builder.max_pool(call.name, x.z, window))
        case _:
            raise call.unsupported(None, "an image behind a quantizer is needed")


def _codes_of(value: Codes | Real | Island | Sum) -> Codes:
    return value if isinstance(value, Codes) else value.z if isinstance(value, Island) else value.codes


def _moved(lowering: Lowering, call: Call, move: Move) -> Value:
    """An operator that moves elements: it is applied to their indices, batch axis included."""
    if call.arguments.get("train"):
        raise call.unsupported("train", "only the inference form of dropout is supported")
    value = lowering.value(call, "self" if "self" in call.arguments else "input")
    value = island_of(lowering, call, value) if isinstance(value, Sum) else value
    shape = value.indices.shape if isinstance(value, Raw) else _codes_of(value).shape
    picked = move(np.arange(prod(shape)).reshape(1, *shape), call)
    if picked.shape[:1] != (1,) or picked.shape[1:] != lowering.result_shape(call):
        raise call.unsupported(None, f"gives the shape {picked.shape}, which moves the batch axis")
    indices = picked[0].astype(np.int64)
    pads, builder = bool(np.any(indices < 0)), lowering.builder
    match value:
        case Raw(earlier) if not pads:
            return Raw(earlier.reshape(-1)[indices])
        case Codes() if not pads:
            return builder.rearrange(call.name, (value,), indices)
        case Real(codes, values) if values is not None:
            zero = np.flatnonzero(values == 0)
            if pads and not zero.size:
                raise call.unsupported("value", "no code stands for the zero that it pads")
            return Real(builder.rearrange(call.name, (codes,), indices, codes.low + int(zero[0]) if pads else 0), values)
        case Island() if not pads:
            return islands.moved(builder, call.name, value, indices)
        case _:
            raise call.unsupported("value", "it pads what was computed in float; a quantizer before it is needed")


def _concatenate(lowering: Lowering, call: Call) -> Value:
    """Tensors known through codes that mean the same are joined as codes, others as linear functions of theirs."""
    tensors = call.arguments.get("tensors") or []
    parts = [lowering.values[item.name] for item in tensors if _is_computed(item, lowering)]
    if not parts or len(parts) != len(tensors) or any(isinstance(part, Raw) for part in parts):
        raise call.unsupported("tensors", "quantized operands are needed")
    axis = call.arguments.get("dim", 0) % (len(lowering.result_shape(call)) + 1)
    if axis == 0:
        raise call.unsupported("dim", "it joins along the batch axis")
    reals = [part for part in parts if isinstance(part, Real)]
    if len(reals) == len(parts):
        low, values = reals[0].codes.low, reals[0].values
        if all(part.codes.low == low and np.array_equal(part.values, values) for part in reals):  # type: ignore[arg-type]
            return Real(lowering.builder.concatenate(call.name, [part.codes for part in reals], axis - 1), values)
    found = [linear_island(lowering, call, part, str(position))[0] for position, part in enumerate(parts)]
    return islands.joined(lowering.builder, call.name, found, axis - 1)


Rule = Callable[[Lowering, Call], Value]
_UNARY = (
    "elu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardswish_",
    "leaky_relu",
    "leaky_relu_",
    "neg",
    "sigmoid",
    "silu",
    "tanh",
)
OPERATORS: dict[str, Rule] = {
    "quantized_decomposed.quantize_per_tensor": _quantize,
    "quantized_decomposed.dequantize_per_tensor": _dequantize,
    **LINEAR,
    "aten.max_pool2d": _max_pool,
    "aten.cat": _concatenate,
    **{op: partial(_moved, move=move) for op, move in MOVES.items()},
    "aten.pad": partial(_moved, move=padded),
    "aten.constant_pad_nd": partial(_moved, move=padded),
    **dict.fromkeys(RESHAPING, lambda lowering, call: _moved(lowering, call, _in_order(lowering))),
    **{f"aten.{name}": _elementwise for name in _UNARY},
    **{f"aten.{name}": _binary for name in ("add", "add_", "sub", "mul", "mul_", "div", "rsub")},
    "aten.relu": partial(_clamp, names=("", ""), bounds=(0.0, np.inf)),
    "aten.relu_": partial(_clamp, names=("", ""), bounds=(0.0, np.inf)),
    "aten.relu6": partial(_clamp, names=("", ""), bounds=(0.0, 6.0)),
    "aten.hardtanh": partial(_clamp, names=("min_val", "max_val"), bounds=(-1.0, 1.0)),
    "aten.hardtanh_": partial(_clamp, names=("min_val", "max_val"), bounds=(-1.0, 1.0)),
    "aten.clamp": partial(_clamp, names=("min", "max"), bounds=(-np.inf, np.inf)),
    "aten.clamp_": partial(_clamp, names=("min", "max"), bounds=(-np.inf, np.inf)),
}
"""The lowering of each operator, all overloads alike."""


def _in_order(lowering: Lowering) -> Move:
    """An operator that keeps the order of the elements."""
    return lambda indices, call: indices.reshape(1, *lowering.result_shape(call))
