"""What the importers of torch.export files share: checked access to arguments, constants, and operators that move elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.errors import InvalidNetworkError
from qertify.importers.pt2_file import Call, ExportedGraph, Reference
from qertify.network.nodes import Window
from qertify.network.tensor import FloatArray

Move = Callable[[NDArray[Any], Call], NDArray[Any]]
"""Moves the elements of an array as an operator does."""


@dataclass(frozen=True, slots=True)
class Operands:
    """Access to the operands of one graph.

    Attributes:
        folded: constants that the module computes from its own.
    """

    graph: ExportedGraph
    folded: dict[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])

    def constant(self, call: Call, name: str) -> NDArray[Any] | None:
        """An argument that the module holds, or a number; None if it is a computed tensor or missing."""
        value = call.arguments.get(name)
        if isinstance(value, Reference):
            return self.folded.get(value.name, self.graph.constants.get(value.name))
        return np.array(value, dtype=np.float64) if isinstance(value, int | float) else None

    def numbers(self, call: Call, name: str, default: float | None = None, shape: tuple[int, ...] = ()) -> FloatArray:
        """A constant argument of float32 numbers (or a number) in float64; ``default`` of ``shape`` if it is missing."""
        if call.arguments.get(name) is None and default is not None:
            return np.full(shape, default)
        array = self.constant(call, name)
        if array is None:
            raise call.unsupported(name, "a constant is needed here")
        if array.ndim and array.dtype != np.float32:
            raise call.unsupported(name, f"is {array.dtype}; float32 is needed")
        if not np.all(np.isfinite(array)):
            raise InvalidNetworkError(call.name, f"{name} holds NaN or infinity")
        return array.astype(np.float64)

    def result_shape(self, call: Call) -> tuple[int, ...]:
        """Shape of the result without the batch axis, which must be the first one."""
        shape = self.graph.shapes.get(call.outputs[0], ())
        inner = tuple(size for size in shape[1:] if size is not None)
        if len(shape) < 2 or shape[0] not in (1, None) or len(inner) != len(shape) - 1:
            raise call.unsupported(None, f"its result {list(shape)} has no batch axis of 1 in front of fixed sizes")
        return inner


def sizes_of(call: Call, name: str, axes: int, default: Sequence[int]) -> tuple[int, ...]:
    """An argument of ``axes`` sizes, of which one may stand for all, and none for the default."""
    given = call.arguments.get(name)
    values: list[Any] = [given] if isinstance(given, int) else list(given or default)
    values = values * axes if len(values) == 1 else values
    if len(values) != axes or any(not isinstance(v, int) or not 0 <= v <= 1 << 16 for v in values):
        raise call.unsupported(name, f"{values[:8]} is not {axes} sizes up to 65536")
    return tuple(values)


def lifted(call: Call, axes: int, name: str, default: Sequence[int], fill: int) -> tuple[int, int]:
    values = sizes_of(call, name, axes, default)
    return (fill, values[0]) if axes == 1 else (values[0], values[1])


def window_of(call: Call, axes: int, kernel: tuple[int, int], given: tuple[int, ...] = (1,)) -> Window:
    """``given``: the stride where the operator names none."""
    (height, width) = lifted(call, axes, "padding", (0,), 0)
    stride, dilation = lifted(call, axes, "stride", given, 1), lifted(call, axes, "dilation", (1,), 1)
    return Window(kernel, stride, (height, width, height, width), dilation)


def pool_window(call: Call, axes: int, size: tuple[int, ...], result: tuple[int, ...]) -> Window:
    """The window of a pool; ``size`` and ``result``: shapes of the operand, with two spatial axes, and of the result.

    Raises:
        UnsupportedModelError: a window leaves the padded input.
    """
    window = window_of(call, axes, lifted(call, axes, "kernel_size", (), 1), sizes_of(call, "kernel_size", axes, ()))
    if min(*window.kernel, *window.stride, *window.dilation) < 1:
        raise call.unsupported("kernel_size", "kernel, stride and dilation must be at least 1")
    if call.arguments.get("ceil_mode") and (1,) * (2 - axes) + result[1:] != window.output_size(size[1], size[2]):
        raise call.unsupported("ceil_mode", "a window leaves the padded input; crop or pad it")
    return window


def _sliced(indices: NDArray[Any], call: Call) -> NDArray[Any]:
    axis, step = call.arguments.get("dim", 0), call.arguments.get("step", 1)
    chosen = slice(call.arguments.get("start"), call.arguments.get("end"), step)
    return indices[(slice(None),) * (axis % indices.ndim) + (chosen,)]


def padded(indices: NDArray[Any], call: Call) -> NDArray[Any]:
    pads = call.arguments["pad"]
    if call.arguments.get("value") not in (None, 0) or call.arguments.get("mode", "constant") != "constant" or min(pads) < 0:
        raise call.unsupported("value", "only zeros are padded")
    if len(pads) % 2 or len(pads) > 2 * indices.ndim or max(pads) > 1 << 16:
        raise call.unsupported("pad", f"{pads[:8]} does not fit {indices.shape}")
    pairs = [(0, 0)] * (indices.ndim - len(pads) // 2) + list(zip(pads[::2], pads[1::2], strict=True))[::-1]
    return np.pad(indices, pairs, constant_values=-1)


_ORDERED = (
    "flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "unflatten", "contiguous", "clone", "alias",
    "detach", "dropout", "dropout_", "feature_dropout", "lift_fresh_copy",
)  # fmt: skip
RESHAPING = frozenset(f"aten.{name}" for name in _ORDERED)
"""Operators that keep the order of the elements."""
MOVES: dict[str, Move] = {
    "aten.permute": lambda array, call: array.transpose(call.arguments["dims"]),
    "aten.transpose": lambda array, call: array.swapaxes(call.arguments["dim0"], call.arguments["dim1"]),
    "aten.t": lambda array, call: array.T,
    "aten.slice": _sliced,
    "aten.select": lambda array, call: array.take(call.arguments["index"], axis=call.arguments["dim"]),
}
"""Operators that pick elements, on arrays with their batch axis."""
VIEWS = RESHAPING | frozenset(MOVES)
"""Operators whose result may share memory with their operand."""


def fold(operands: Operands, call: Call) -> bool:
    """Whether the operator moved elements of a constant, which it then gave another name."""
    op, constant = call.op.rpartition(".")[0], operands.constant(call, "self")
    shape = operands.graph.shapes.get(call.outputs[0], (None,)) if call.outputs else (None,)
    movable = (op in MOVES or op in RESHAPING) and not call.arguments.get("train")
    if constant is None or not constant.ndim or None in shape or not movable:
        return False
    moved = MOVES[op](constant, call) if op in MOVES else constant.reshape([size or 0 for size in shape])
    operands.folded[call.outputs[0]] = moved
    return True


def require_unshared(graph: ExportedGraph, call: Call) -> None:
    """An operator in place is like any other while nothing else reads the memory that it changes."""
    target = call.arguments.get("self")
    readers = sum(_reads(other, target) for other in graph.calls)
    made = next((other for other in graph.calls if isinstance(target, Reference) and target.name in other.outputs), None)
    changed = isinstance(target, Reference) and target.name == graph.output
    if made is None or made.op.rpartition(".")[0] in VIEWS or readers != 1 or changed:
        raise call.unsupported(None, "it changes memory that another operator may read; use the form that is not in place")


def _reads(call: Call, target: object) -> int:
    operands = [item for value in call.arguments.values() for item in (value if isinstance(value, list) else [value])]
    return sum(item == target for item in operands)
