"""What a TFLite file computes from shapes, such as the target of a Flatten with an open batch: folded into numbers."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from qertify.errors import ModelFileError, UnsupportedModelError
from qertify.importers.tflite_context import Lowering
from qertify.importers.tflite_file import Operator
from qertify.network.tensor import IntegerArray

SHAPE_TYPES = ("int32", "int64")
ELEMENT_LIMIT = 64
"""Most elements of a shape."""


def fold(lowering: Lowering, node: Operator) -> bool:
    """Whether the operator is one on shapes; what it gives then is among the lowering's numbers."""
    if len(node.outputs) != 1 or lowering.result(node).dtype not in SHAPE_TYPES:
        return False
    match node.op:
        case "SHAPE":
            lowering.value(node, 0)
            found = np.array(lowering.tensor(node, 0).shape, dtype=np.int64)
        case "STRIDED_SLICE":
            given = _numbers(lowering, node, 0)
            found = given[np.ix_(*slices(lowering, node, given.shape))]
            found = found.reshape([size for axis, size in enumerate(found.shape) if not shrinks(node, axis)])
        case "PACK":
            found = np.stack([_numbers(lowering, node, i).reshape(()) for i in range(len(node.inputs))])
        case "CONCATENATION":
            found = np.concatenate([_numbers(lowering, node, i).reshape(-1) for i in range(len(node.inputs))])
        case "GATHER":
            given, chosen = _numbers(lowering, node, 0).reshape(-1), _numbers(lowering, node, 1)
            if np.any((chosen < 0) | (chosen >= given.size)):
                raise ModelFileError(f"node '{node.name}': it picks sizes that are not there")
            found = given[chosen]
        case "REDUCE_PROD":
            found = np.array([prod(_numbers(lowering, node, 0).reshape(-1).tolist()) % (1 << 31)])
        case _:
            return False
    lowering.numbers[node.outputs[0]] = found
    return True


def _numbers(lowering: Lowering, node: Operator, position: int) -> IntegerArray:
    tensor, index = lowering.tensor(node, position), node.inputs[position]
    found: NDArray[np.integer] | None = lowering.numbers.get(index, tensor.data)
    if found is None or found.size > ELEMENT_LIMIT or found.dtype.kind != "i":
        raise UnsupportedModelError(node.name, node.op, None, f"operand '{tensor.name}' is no constant and no shape")
    return found.astype(np.int64)


def shrinks(node: Operator, axis: int) -> bool:
    """Whether a STRIDED_SLICE takes one index of an axis and drops the axis."""
    return bool(node.options["ShrinkAxisMask"] >> axis & 1)


def slices(lowering: Lowering, node: Operator, shape: tuple[int, ...]) -> list[IntegerArray]:
    """The indices that a STRIDED_SLICE takes along each axis.

    Raises:
        UnsupportedModelError: masks other than those of begin, end and dropped axes.
        ModelFileError: ends that do not fit the shape.
    """
    if node.options["EllipsisMask"] or node.options["NewAxisMask"]:
        raise UnsupportedModelError(node.name, node.op, "ellipsis_mask", "plain ranges along the axes are needed")
    begin, end, stride = (_numbers(lowering, node, position).reshape(-1).tolist() for position in (1, 2, 3))
    if not len(begin) == len(end) == len(stride) <= len(shape) or 0 in stride:
        raise ModelFileError(f"node '{node.name}': its ranges do not fit {list(shape)}")
    chosen: list[IntegerArray] = []
    for axis, size in enumerate(shape):
        if axis >= len(begin):
            chosen.append(np.arange(size))
        elif shrinks(node, axis):
            chosen.append(np.arange(size)[[begin[axis]]] if -size <= begin[axis] < size else np.arange(0))
        else:
            first = None if node.options["BeginMask"] >> axis & 1 else begin[axis]
            last = None if node.options["EndMask"] >> axis & 1 else end[axis]
            chosen.append(np.arange(size)[first : last : stride[axis]])
    if not all(indices.size for indices in chosen):
        raise ModelFileError(f"node '{node.name}': it takes nothing of {list(shape)}")
    return chosen


def require_target(lowering: Lowering, node: Operator) -> None:
    """A RESHAPE to a computed shape must give the shape that the file says.

    Raises:
        UnsupportedModelError: it does not; converters leave open shapes as ones.
    """
    if len(node.inputs) > 1 and node.inputs[1] in lowering.numbers:
        wanted, target = lowering.numbers[node.inputs[1]].reshape(-1).tolist(), lowering.result(node).shape
        fits = len(wanted) == len(target) and wanted.count(-1) < 2
        if not fits or any(size not in (-1, own) for size, own in zip(wanted, target, strict=True)):
            reason = f"{wanted} is computed where the file says {list(target)}; convert the model with a fixed batch size"
            raise UnsupportedModelError(node.name, node.op, "shape", reason)
