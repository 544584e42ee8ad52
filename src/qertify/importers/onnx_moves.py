"""ONNX operators that only move elements or pick the largest: the same on codes and on the real numbers they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from qertify.errors import ModelFileError, UnsupportedModelError
from qertify.importers.moving import ELEMENT_LIMIT, Codes
from qertify.importers.onnx_context import (
    Context,
    Decision,
    Real,
    Value,
    attribute,
    axis_without_batch,
    on_codes,
    require_default,
    window_of,
)
from qertify.importers.onnx_file import GraphNode
from qertify.network.nodes import Window
from qertify.runtimes.input_steps import merged
from qertify.runtimes.onnxruntime import picked_elements


def integers_of(context: Context, node: GraphNode, position: int, name: str) -> list[int] | None:
    """Integers given as an operand (newer opsets) or as an attribute (older ones); None if omitted."""
    if len(node.inputs) > position and node.inputs[position]:
        return [int(value) for value in context.constant(node, position, "iu").reshape(-1)]
    value = attribute(node, name, None)
    if value is None:
        return None
    if not isinstance(value, tuple) or not all(isinstance(item, int) for item in value):
        raise UnsupportedModelError(node.name, node.op, name, "a list of integers is needed")
    return list(value)


def _with_shape(context: Context, node: GraphNode, full_shape: list[int]) -> Value:
    """Reshape to a shape that includes the batch axis."""
    value = context.value(node, 0)
    if not full_shape or full_shape[0] != 1 or len(full_shape) < 2:
        raise UnsupportedModelError(node.name, node.op, None, f"gives the shape {full_shape}, which loses the batch axis")
    shape = tuple(full_shape[1:])
    if prod(shape) != prod(value.codes.shape if not isinstance(value, Codes) else value.shape):
        raise ModelFileError(f"node '{node.name}': the shape {full_shape} does not fit its input")
    return on_codes(value, lambda x: context.builder.reshape(node.name, x, shape), node)


def _full(context: Context, node: GraphNode) -> list[int]:
    """Shape of the first operand, batch axis included."""
    value = context.value(node, 0)
    return [1, *(value.shape if isinstance(value, Codes) else value.codes.shape)]


def _reshape(context: Context, node: GraphNode) -> Value:
    target = integers_of(context, node, 1, "shape")
    full = _full(context, node)
    if attribute(node, "allowzero", 0) and target is not None and 0 in target:
        raise UnsupportedModelError(node.name, node.op, "allowzero", f"the target shape {target} is empty")
    if target is None or target.count(-1) > 1 or min(target, default=0) < -1:
        raise ModelFileError(f"node '{node.name}': unusable target shape {target}")
    if any(size == 0 and axis >= len(full) for axis, size in enumerate(target)):
        raise ModelFileError(f"node '{node.name}': target shape {target} copies an axis that does not exist")
    shape = [full[axis] if size == 0 else size for axis, size in enumerate(target)]
    if -1 in shape:
        known = prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = prod(full) // max(1, known)
    return _with_shape(context, node, shape)


def _flatten(context: Context, node: GraphNode) -> Value:
    full = _full(context, node)
    axis = attribute(node, "axis", 1)
    axis = axis + len(full) if axis < 0 else axis
    return _with_shape(context, node, [prod(full[:axis]), prod(full[axis:])])


def _squeeze(context: Context, node: GraphNode) -> Value:
    full = _full(context, node)
    axes = integers_of(context, node, 1, "axes")
    chosen = [i for i, size in enumerate(full) if size == 1 and i] if axes is None else [a % len(full) for a in axes]
    if any(full[axis] != 1 for axis in chosen):
        raise ModelFileError(f"node '{node.name}': squeezes an axis that is not 1 in {full}")
    if axes is None or 0 in chosen:
        raise UnsupportedModelError(node.name, node.op, "axes", "name the axes; the batch axis must stay")
    return _with_shape(context, node, [size for axis, size in enumerate(full) if axis not in chosen])


def _unsqueeze(context: Context, node: GraphNode) -> Value:
    full = _full(context, node)
    axes = integers_of(context, node, 1, "axes") or []
    rank = len(full) + len(axes)
    chosen = {axis + rank if axis < 0 else axis for axis in axes}
    if len(chosen) != len(axes) or not all(0 < axis < rank for axis in chosen):
        raise UnsupportedModelError(
            node.name, node.op, "axes", f"{axes} is not usable: distinct axes after the batch are needed"
        )
    rest = iter(full)
    return _with_shape(context, node, [1 if axis in chosen else next(rest) for axis in range(rank)])


def _transpose(context: Context, node: GraphNode) -> Value:
    rank = len(_full(context, node))
    order = attribute(node, "perm", tuple(range(rank))[::-1])
    if sorted(order) != list(range(rank)):
        raise ModelFileError(f"node '{node.name}': perm {list(order)[:8]} is no permutation of {rank} axes")
    if order[0] != 0:
        raise UnsupportedModelError(node.name, node.op, "perm", "moves the batch axis")
    axes = [axis - 1 for axis in order[1:]]
    return on_codes(context.value(node, 0), lambda x: context.builder.transpose(node.name, x, axes), node)


def _concat(context: Context, node: GraphNode) -> Value:
    values = [context.value(node, position) for position in range(len(node.inputs))]
    first = values[0]
    parts = [value if isinstance(value, Codes) else value.codes for value in values]
    alike = all(isinstance(value, Codes) for value in values) and len({(part.low, part.high) for part in parts}) == 1
    reals = [value for value in values if isinstance(value, Real)]
    if isinstance(first, Real) and len(reals) == len(values):
        tables, steps = [real.values for real in reals], merged([real.steps for real in reals])
        alike = all((t is None and first.values is None) or np.array_equal(t, first.values) for t in tables)  # type: ignore[arg-type]
        if steps is None:
            raise UnsupportedModelError(node.name, node.op, None, "its operands are one input, normalized in several ways")
        first = replace(first, steps=steps)
    if isinstance(first, Decision) or not alike:
        raise UnsupportedModelError(node.name, node.op, None, "its operands are not quantized alike; QLinearConcat would do")
    axis = axis_without_batch(node, attribute(node, "axis", 0), len(parts[0].shape))
    if len({part.shape[:axis] + part.shape[axis + 1 :] for part in parts}) != 1:
        raise ModelFileError(f"node '{node.name}': the operands' shapes do not fit")
    joined = context.builder.concatenate(node.name, parts, axis)
    return joined if isinstance(first, Codes) else replace(first, codes=joined)


PADDING = {b"constant": None, b"reflect": "reflect", b"edge": "edge", b"wrap": "wrap"}
"""ONNX's names of ways to pad → numpy's."""


def _pad(context: Context, node: GraphNode) -> Value:
    mode = attribute(node, "mode", b"constant")
    if mode not in PADDING:
        raise UnsupportedModelError(node.name, node.op, "mode", f"unknown: {mode!r}"[:100])
    value = context.value(node, 0)
    x = value if isinstance(value, Codes) else value.codes
    pads = integers_of(context, node, 1, "pads") or []
    rank = len(x.shape) + 1
    if len(node.inputs) > 3 and node.inputs[3]:
        raise UnsupportedModelError(node.name, node.op, "axes", "pads for every axis are needed")
    if len(pads) != 2 * rank or pads[0] or pads[rank] or any(abs(pad) > 1 << 16 for pad in pads):
        raise UnsupportedModelError(node.name, node.op, "pads", f"{pads[:16]} does not pad {rank} axes, all but the batch")
    widths = [(pads[axis], pads[rank + axis]) for axis in range(1, rank)]
    if PADDING[mode] is not None:
        return _picked_from_padded(context, node, x.shape, widths, PADDING[mode])
    number = float(attribute(node, "value", 0.0))
    if len(node.inputs) > 2 and node.inputs[2]:
        operand = context.constant(node, 2)
        if operand.size != 1:
            raise ModelFileError(f"node '{node.name}': the padding value has {operand.size} elements")
        number = operand.reshape(-1)[0].item()
    fill = _code_of(value, number)
    if fill is None:
        raise UnsupportedModelError(node.name, node.op, "value", f"no code stands for the padding value {number}")
    return on_codes(value, lambda x: context.builder.pad(node.name, x, widths, fill), node)


def _picked_from_padded(
    context: Context, node: GraphNode, shape: tuple[int, ...], widths: list[tuple[int, int]], mode: Any
) -> Value:
    """Padding with elements of the tensor itself."""
    if any(not 0 <= width < size for size, pair in zip(shape, widths, strict=True) for width in pair):
        raise UnsupportedModelError(node.name, node.op, "pads", f"{widths} in the mode '{mode}' need more than {shape} holds")
    index = np.pad(np.arange(prod(shape)).reshape(shape), widths, mode=mode)
    return on_codes(context.value(node, 0), lambda x: context.builder.rearrange(node.name, (x,), index), node)


def _code_of(value: Value, number: float) -> int | None:
    """The code that stands for a number in this tensor."""
    match value:
        case Codes():
            return int(number) if number == int(number) and value.low <= number <= value.high else None
        case Real(codes, values, None) if values is not None:
            found = np.flatnonzero(values == np.float32(number))
            return codes.low + int(found[0]) if found.size else None
        case Real(codes) if codes.quantization is not None:
            from qertify.runtimes.onnxruntime_arithmetic import quantize

            q = codes.quantization
            code = quantize(np.array([number], dtype=np.float32), np.float32(q.scale[0]), int(q.zero_point[0]))
            return int(np.clip(code, codes.low, codes.high)[0])
        case _:
            return None


def _max_pool(context: Context, node: GraphNode) -> Value:
    require_default(node, storage_order=0)
    value = context.value(node, 0)
    if any(node.outputs[1:]):
        raise UnsupportedModelError(node.name, node.op, None, "its second output, the indices, is used")
    _require_growing(node, value)
    last = node.op == "NhwcMaxPool"
    kernel = attribute(node, "kernel_shape", (0,))
    builder = context.builder

    def pool(x: Codes) -> Codes:
        axes = len(x.shape) - 1
        if axes not in (1, 2) or len(kernel) != axes:
            raise UnsupportedModelError(node.name, node.op, "kernel_shape", f"{list(kernel)[:4]} on {x.shape}; one or two axes")
        y = builder.transpose(f"{node.name}/first", x, (axes, *range(axes))) if last else x
        window = window_of(node, y.shape[1:], tuple(kernel))
        y = builder.reshape(f"{node.name}/image", y, (y.shape[0], 1, y.shape[1])) if axes == 1 else y
        y = builder.max_pool(f"{node.name}/max", y, window)
        y = builder.reshape(f"{node.name}/signal", y, (y.shape[0], y.shape[2])) if axes == 1 else y
        return builder.transpose(f"{node.name}/last", y, (*range(1, axes + 1), 0)) if last else y

    return on_codes(value, pool, node)


def reduced_axes(context: Context, node: GraphNode, rank: int) -> tuple[int, ...]:
    """The axes that a Reduce operator reduces, of a tensor of ``rank`` axes without the batch."""
    axes = integers_of(context, node, 1, "axes")
    if not axes:
        raise UnsupportedModelError(node.name, node.op, "axes", "name the axes; the batch axis must stay")
    return tuple(sorted({axis_without_batch(node, axis, rank) for axis in axes}))


def along_window(
    context: Context, node: GraphNode, x: Codes, axes: tuple[int, ...], keep: bool, reduce: Callable[[Codes], Codes]
) -> Codes:
    """Reduce some axes of x: as the one row of an image with a channel for every combination of the others.

    Args:
        keep: whether the reduced axes stay, with size 1.
        reduce: from (channels, 1, elements) to (channels, 1, 1).
    """
    others = [axis for axis in range(len(x.shape)) if axis not in axes]
    channels = prod(x.shape[axis] for axis in others)
    builder = context.builder
    moved = builder.transpose(f"{node.name}/last", x, (*others, *axes))
    result = reduce(builder.reshape(f"{node.name}/row", moved, (channels, 1, prod(x.shape) // channels)))
    left = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape) if keep or axis not in axes)
    return builder.reshape(f"{node.name}/reduced", result, left or (1,))


def _reduce_max(context: Context, node: GraphNode) -> Value:
    """ReduceMax, or GlobalMaxPool over everything but the channels."""
    value = context.value(node, 0)
    rank = len(_full(context, node)) - 1
    pool = node.op == "GlobalMaxPool"
    axes = tuple(range(1, rank)) if pool else reduced_axes(context, node, rank)
    _require_growing(node, value)

    def reduce(row: Codes) -> Codes:
        return context.builder.max_pool(f"{node.name}/max", row, Window((1, row.shape[2])))

    keep = pool or bool(attribute(node, "keepdims", 1))
    return on_codes(value, lambda x: along_window(context, node, x, axes, keep, reduce), node)


def _require_growing(node: GraphNode, value: Value) -> None:
    if isinstance(value, Real) and value.values is not None and np.any(np.diff(value.values) < 0):
        raise UnsupportedModelError(node.name, node.op, None, "its input does not grow with the codes")


def _picked(context: Context, node: GraphNode, name: str, along: dict[int, Sequence[int]]) -> Value:
    """The elements at some indices along some axes of the first operand, without the batch axis."""

    def pick(x: Codes) -> Codes:
        index = np.arange(prod(x.shape)).reshape(x.shape)
        for axis, chosen in along.items():
            index = np.take(index, chosen, axis=axis)
        if not index.size:
            raise ModelFileError(f"node '{node.name}': picks no element of {x.shape}")
        return context.builder.rearrange(name, (x,), index)

    return on_codes(context.value(node, 0), pick, node)


def _slice(context: Context, node: GraphNode) -> Value:
    full = _full(context, node)
    starts, ends = (integers_of(context, node, position, name) for position, name in ((1, "starts"), (2, "ends")))
    if starts is None or ends is None:
        raise UnsupportedModelError(node.name, node.op, None, "starts and ends are needed")
    axes, steps = integers_of(context, node, 3, "axes") or list(range(len(starts))), integers_of(context, node, 4, "steps")
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise ModelFileError(f"node '{node.name}': starts, ends, axes and steps do not fit together")
    along: dict[int, Sequence[int]] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if (axis + len(full) if axis < 0 else axis) == 0 and (start, step) == (0, 1) and end >= 1:
            continue  # all of the batch
        chosen = axis_without_batch(node, axis, len(full) - 1)
        along[chosen] = range(full[chosen + 1])[slice(start, None if step < 0 and end < -full[chosen + 1] else end, step)]
    return _picked(context, node, node.name, along)


def _split(context: Context, node: GraphNode) -> Value:
    """Its further results are stored here, the first one is returned."""
    full = _full(context, node)
    axis = axis_without_batch(node, attribute(node, "axis", 0), len(full) - 1)
    size, count = full[axis + 1], len(node.outputs)
    sizes = integers_of(context, node, 1, "split")
    if sizes is None:
        part = -(-size // count)
        sizes = [max(0, min(part, size - i * part)) for i in range(count)]
    if len(sizes) != count or sum(sizes) != size or min(sizes) < 1:
        raise ModelFileError(f"node '{node.name}': can't split {size} elements into {sizes[:8]}")
    starts = np.cumsum([0, *sizes]).tolist()
    parts = [_picked(context, node, f"{node.name}/{i}", {axis: range(starts[i], starts[i + 1])}) for i in range(count)]
    context.values.update({name: part for name, part in zip(node.outputs[1:], parts[1:], strict=True) if name})
    return parts[0]


def _repeated(context: Context, node: GraphNode) -> Value:
    """An operator that picks and repeats elements, as constants tell it: onnxruntime does it with the elements' numbers."""
    full, last = _full(context, node), max([i for i, name in enumerate(node.inputs) if name], default=0)
    if node.op in ("Resize", "Upsample") and attribute(node, "mode", b"nearest") != b"nearest":
        raise UnsupportedModelError(node.name, node.op, "mode", "it averages neighbours; only nearest is supported")
    if node.op == "Gather":
        axis_without_batch(node, attribute(node, "axis", 0), len(full) - 1)
    operands = [context.constant(node, i) if node.inputs[i] else None for i in range(1, last + 1)]
    index = picked_elements(node.op, full, node.attributes, context.graph.opset, operands, ELEMENT_LIMIT)
    if index is None or index.ndim < 2 or index.shape[0] != 1:
        shape = "" if index is None else f": {list(index.shape)}"
        reason = f"its result loses the batch axis, or is unknown or larger than {ELEMENT_LIMIT} elements{shape}"
        raise UnsupportedModelError(node.name, node.op, None, reason)
    return on_codes(context.value(node, 0), lambda x: context.builder.rearrange(node.name, (x,), index[0]), node)


def _identity(context: Context, node: GraphNode) -> Value:
    if any(node.outputs[1:]) or (context.is_constant(node, 2) and bool(np.any(context.constant(node, 2, "b")))):
        raise UnsupportedModelError(node.name, node.op, None, "only its inference form is supported")
    return context.value(node, 0)


MOVES: dict[str, Callable[[Context, GraphNode], Value]] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Pad": _pad,
    "MaxPool": _max_pool,
    "NhwcMaxPool": _max_pool,
    "GlobalMaxPool": _reduce_max,
    "ReduceMax": _reduce_max,
    "Slice": _slice,
    "Split": _split,
    **dict.fromkeys(("DepthToSpace", "Expand", "Gather", "Resize", "SpaceToDepth", "Tile", "Upsample"), _repeated),
    "Identity": _identity,
    "Dropout": _identity,
}
"""The lowering of each operator that moves elements."""
