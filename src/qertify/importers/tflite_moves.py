"""TFLite operators that move elements or map single codes, and the ends of the network."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from qertify.errors import ModelFileError, UnsupportedModelError
from qertify.importers.tflite_context import (
    RANGES,
    Lowering,
    RealInput,
    RealOutput,
    Value,
    int8,
    parameters,
    quantized,
    require_same_quantization,
    scale_of,
)
from qertify.importers.tflite_file import OPTIONS, Operator
from qertify.importers.tflite_shapes import require_target, shrinks, slices
from qertify.network.nodes import Window
from qertify.runtimes.litert import DEQUANTIZE_OPTIONS, REAL, picked_elements, unary_table

INPUT_SCALE_LIMIT = 2.0**100

# Moving elements.


def _reshape(lowering: Lowering, node: Operator) -> Value:
    """RESHAPE, EXPAND_DIMS and SQUEEZE: the file says the shape of the result."""
    require_same_quantization(node, lowering.tensor(node, 0), lowering.result(node))
    require_target(lowering, node)
    x, shape, target = lowering.codes(node, 0), lowering.tensor(node, 0).shape, lowering.result(node).shape
    if prod(shape) != prod(target):
        raise ModelFileError(f"node '{node.name}': can't reshape {list(shape)} to {list(target)}")
    return lowering.placed(node.name, lowering.filed(f"{node.name}/input", x, shape), target)


def _transpose(lowering: Lowering, node: Operator) -> Value:
    require_same_quantization(node, lowering.tensor(node, 0), lowering.result(node))
    shape, order = lowering.tensor(node, 0).shape, lowering.constant(node, 1, "int32").reshape(-1).tolist()
    axes = [axis + len(shape) if axis < 0 else axis for axis in order]
    if sorted(axes) != list(range(len(shape))) or axes[0] != 0:
        raise UnsupportedModelError(node.name, node.op, "perm", f"{order[:8]}; the batch axis must stay first")
    x = lowering.filed(f"{node.name}/input", lowering.codes(node, 0), shape)
    moved = lowering.builder.transpose(f"{node.name}/moved", x, [axis - 1 for axis in axes[1:]])
    return lowering.placed(node.name, moved, tuple(shape[axis] for axis in axes))


def _strided_slice(lowering: Lowering, node: Operator) -> Value:
    require_same_quantization(node, lowering.tensor(node, 0), lowering.result(node))
    shape, target = lowering.tensor(node, 0).shape, lowering.result(node).shape
    chosen = slices(lowering, node, shape)
    if chosen[0].tolist() != [0] or shrinks(node, 0):
        raise UnsupportedModelError(node.name, node.op, "begin", "the batch axis must stay")
    index = np.arange(prod(shape)).reshape(shape)[np.ix_(*chosen)]
    kept = tuple(size for axis, size in enumerate(index.shape) if not shrinks(node, axis))
    if kept != target:
        raise ModelFileError(f"node '{node.name}': it gives {list(kept)}, where the file says {list(target)}")
    x = lowering.filed(f"{node.name}/input", lowering.codes(node, 0), shape)
    return lowering.placed(node.name, lowering.builder.rearrange(f"{node.name}/taken", (x,), index.reshape(target[1:])), target)


def _picked(lowering: Lowering, node: Operator) -> list[Value]:
    """Operators that pick elements as constants tell them, perhaps with several results: what goes where is read off LiteRT."""
    targets = [lowering.graph.tensors[index] for index in node.outputs]
    places = [i for i, index in enumerate(node.inputs) if index in lowering.values]
    if len(places) != 1:
        raise UnsupportedModelError(node.name, node.op, None, f"{len(places)} of its operands are computed; one is needed")
    source = lowering.tensor(node, places[0])
    require_same_quantization(node, source, *targets)
    numbers = [lowering.constant(node, i, "int32") for i in range(len(node.inputs)) if i != places[0]]
    if node.op == "RESIZE_NEAREST_NEIGHBOR" and numbers[0].tolist() != list(targets[0].shape[1:3]):
        raise ModelFileError(f"node '{node.name}': the file declares another size than the operator is given")
    if any(prod(target.shape) > prod(source.shape) << 4 for target in targets if node.op != "RESIZE_NEAREST_NEIGHBOR"):
        raise UnsupportedModelError(node.name, node.op, None, "its result is more than 16 times as large as its operand")
    operands = list(numbers)
    operands.insert(places[0], source.shape)  # type: ignore[arg-type]
    name = OPTIONS.get(node.op, ("", ()))[0]
    options = name, {field[0].lower() + field[1:]: value for field, value in node.options.items()}
    shapes = [target.shape for target in targets]
    x = lowering.filed(f"{node.name}/input", lowering.codes(node, places[0]), source.shape)
    results: list[Value] = []
    for i, index in enumerate(picked_elements(node.op, options, lowering.kernels_of(node), operands, shapes)):
        if index.shape != shapes[i] or np.any(index >= prod(source.shape)):
            raise ModelFileError(f"node '{node.name}': it gives {list(index.shape)}, where the file says {list(shapes[i])}")
        picked = lowering.builder.rearrange(f"{node.name}/{i}/taken", (x,), index[0])
        results.append(lowering.placed(f"{node.name}/{i}", picked, shapes[i]))
    return results


def _reduce_max(lowering: Lowering, node: Operator) -> Value:
    require_same_quantization(node, lowering.tensor(node, 0), lowering.result(node))
    shape, axes = lowering.tensor(node, 0).shape, lowering.constant(node, 1, "int32").reshape(-1).tolist()
    if len(shape) != 4 or sorted(axis % 4 for axis in axes) != [1, 2]:
        raise UnsupportedModelError(node.name, node.op, "axis", f"{axes[:8]} of {list(shape)}: height and width are needed")
    pooled = lowering.builder.max_pool(f"{node.name}/max", lowering.codes(node, 0), Window((shape[1], shape[2])))
    return pooled if node.options["KeepDims"] else lowering.builder.reshape(node.name, pooled, (shape[3],))


def _pad(lowering: Lowering, node: Operator) -> Value:
    _, zero_point = require_same_quantization(node, lowering.tensor(node, 0), lowering.result(node))
    shape, widths = lowering.tensor(node, 0).shape, lowering.constant(node, 1, "int32")
    if widths.shape != (len(shape), 2) or widths.min() < 0 or np.any(widths[0]):
        raise UnsupportedModelError(node.name, node.op, "paddings", "one pair ≥ 0 an axis is needed, none for the batch")
    pairs = [(int(before), int(after)) for before, after in widths[1:]]
    pairs = [pairs[2], pairs[0], pairs[1]] if len(shape) == 4 else pairs
    return lowering.builder.pad(node.name, lowering.codes(node, 0), pairs, zero_point)


def _concatenation(lowering: Lowering, node: Operator) -> Value:
    tensors = [lowering.tensor(node, position) for position in range(len(node.inputs))]
    require_same_quantization(node, *tensors, lowering.result(node))
    if node.options["FusedActivationFunction"]:
        raise UnsupportedModelError(node.name, node.op, "fused_activation_function", "none is needed")
    rank = len(lowering.result(node).shape)
    axis = node.options["Axis"] + (rank if node.options["Axis"] < 0 else 0)
    if not 1 <= axis < rank or any(len(tensor.shape) != rank for tensor in tensors):
        raise UnsupportedModelError(
            node.name, node.op, "axis", f"{node.options['Axis']} of {rank} axes, the batch axis excluded"
        )
    if len({tensor.shape[:axis] + tensor.shape[axis + 1 :] for tensor in tensors}) != 1:
        raise ModelFileError(f"node '{node.name}': the shapes of its operands do not fit")
    operands = [lowering.codes(node, position) for position in range(len(tensors))]
    place = {1: 1, 2: 2, 3: 0}[axis] if rank == 4 else axis - 1
    return lowering.builder.concatenate(node.name, operands, place)


# Unary operators, and the ends.


def _tabulated(options: Callable[[Operator], tuple[str, dict[str, Any]]]) -> Callable[[Lowering, Operator], Value]:
    """An element-wise operator whose table is read off the runtime."""

    def rule(lowering: Lowering, node: Operator) -> Value:
        codes, source, target = lowering.codes(node, 0), lowering.tensor(node, 0), lowering.result(node)
        if source.shape != target.shape:
            raise ModelFileError(f"node '{node.name}': {list(source.shape)} → {list(target.shape)}")
        x, y = quantized(source, node), quantized(target, node)
        table = unary_table(node.name, node.op, options(node), lowering.kernels_of(node), source.shape[1:], x, y)
        row = table.row.transpose(2, 0, 1) if len(source.shape) == 4 else table.row
        values = table.values[:, codes.low - x.low : codes.high - x.low + 1].astype(np.int64)
        low, high = RANGES[target.dtype]
        return lowering.builder.unary(node.name, codes, values, low, high, parameters(*scale_of(target, node)), row)

    return rule


_plain = _tabulated(lambda node: ("", {}))


def _quantize(lowering: Lowering, node: Operator) -> Value:
    if not isinstance(lowering.value(node, 0), RealInput):
        return _tabulated(lambda node: ("QuantizeOptions", {}))(lowering, node)
    source, target = lowering.tensor(node, 0), lowering.result(node)
    scale, zero_point = int8(target, node)
    if source.shape != target.shape:
        raise ModelFileError(f"node '{node.name}': {list(source.shape)} → {list(target.shape)}")
    if not 1 / INPUT_SCALE_LIMIT <= scale <= INPUT_SCALE_LIMIT:
        raise UnsupportedModelError(node.name, node.op, "scale", f"{scale:.3g}, whose inverse may be no normal float32")
    if lowering.input_kernels is not None:
        raise UnsupportedModelError(node.name, node.op, None, "the input is quantized twice; one quantizer is needed")
    lowering.input_kernels = lowering.kernels_of(node)
    low, high = RANGES["int8"]
    return lowering.input(source.shape, low, high, parameters(scale, zero_point))


def _dequantize(lowering: Lowering, node: Operator) -> Value:
    codes, source = lowering.codes(node, 0), lowering.tensor(node, 0)
    x, kernels = quantized(source, node), lowering.kernels_of(node)
    int8(source, node)
    if lowering.result(node).dtype != "float32" or lowering.result(node).shape != source.shape:
        raise UnsupportedModelError(node.name, node.op, None, "float32 of the same shape is needed")
    shape = (prod(source.shape),)
    table = unary_table(node.name, node.op, DEQUANTIZE_OPTIONS, kernels, shape, x, REAL)
    if len(table.values) > 1:
        raise UnsupportedModelError(
            node.name, node.op, None, "the optimized kernel dequantizes equal codes to different numbers; end with int8 codes"
        )
    if np.any(np.diff(table.values[0]) <= 0):
        raise UnsupportedModelError(node.name, node.op, "scale", "different codes become the same number")
    return RealOutput(codes, kernels)


def _rejected(reason: str) -> Callable[[Lowering, Operator], Value]:
    def rule(lowering: Lowering, node: Operator) -> Value:
        raise UnsupportedModelError(node.name, node.op, None, reason)

    return rule


MOVES: dict[str, Callable[[Lowering, Operator], Value | list[Value]]] = {
    "RESHAPE": _reshape,
    "EXPAND_DIMS": _reshape,
    "SQUEEZE": _reshape,
    "STRIDED_SLICE": _strided_slice,
    **dict.fromkeys(
        (
            "DEPTH_TO_SPACE",
            "GATHER",
            "MIRROR_PAD",
            "RESIZE_NEAREST_NEIGHBOR",
            "SLICE",
            "SPACE_TO_DEPTH",
            "SPLIT",
            "SPLIT_V",
            "UNPACK",
        ),
        _picked,
    ),
    "REDUCE_MAX": _reduce_max,
    "TRANSPOSE": _transpose,
    "PAD": _pad,
    "CONCATENATION": _concatenation,
    "LOGISTIC": _plain,
    "TANH": _plain,
    "RELU": _plain,
    "RELU6": _plain,
    "HARD_SWISH": _tabulated(lambda node: ("HardSwishOptions", {})),
    "LEAKY_RELU": _tabulated(lambda node: ("LeakyReluOptions", {"alpha": node.options["Alpha"]})),
    "QUANTIZE": _quantize,
    "DEQUANTIZE": _dequantize,
    "SOFTMAX": _rejected("a quantized softmax makes ties; export the network without it"),
}
"""The lowering of each of them; a list of values for an operator that may have several results."""
