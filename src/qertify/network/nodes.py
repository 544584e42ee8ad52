"""The node kinds of the integer network. Import lowers every source operator to these; analyses see nothing else.

Shapes never include the batch axis; images are (channels, height, width). ``inputs`` names the nodes read, in order.
All arithmetic is on integer codes; ``zero_point`` is subtracted from the input before a linear node sums it, so that
the sum is the accumulator of the runtime and padding with the zero point is padding with zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from qertify.network.staircase import Steps
from qertify.network.tensor import IntegerArray


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A sliding window over the last two axes; ``padding`` is (top, left, bottom, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output."""
        top, left, bottom, right = self.padding
        rows = (height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1
        columns = (width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1
        return rows, columns


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """The network's input: every integer tensor of this shape with codes in low … high."""

    name: str
    shape: tuple[int, ...]
    low: int
    high: int
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """z = weight · (y − zero_point) + bias; weight (out, in), bias (out,), y (in,)."""

    name: str
    inputs: tuple[str, ...]
    weight: IntegerArray
    bias: IntegerArray
    zero_point: int = 0
    accumulator_bits: int = 32


@dataclass(frozen=True, slots=True, eq=False)
class Convolution:
    """Two-dimensional cross-correlation of (y − zero_point), zero padded; weight (out, in / groups, kh, kw), bias (out,)."""

    name: str
    inputs: tuple[str, ...]
    weight: IntegerArray
    bias: IntegerArray
    window: Window
    zero_point: int = 0
    groups: int = 1
    accumulator_bits: int = 32


@dataclass(frozen=True, slots=True, eq=False)
class PoolSum:
    """The sum of (y − zero_point) over a window, zero padded, channel by channel: average pooling before its division."""

    name: str
    inputs: tuple[str, ...]
    window: Window
    zero_point: int = 0
    accumulator_bits: int = 32


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """The exact sum of two or more inputs of one shape."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """(y₀ − zero_points[0]) · (y₁ − zero_points[1]), element by element, two inputs of one shape."""

    name: str
    inputs: tuple[str, ...]
    zero_points: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Rearrange:
    """Elements picked from the concatenation of the flattened inputs: reshape, transpose, concat, slice and pad in one.

    Attributes:
        indices: int64, of the output's shape; −1 stands for the constant ``fill``.
        fill: value of the elements whose index is −1.
    """

    name: str
    inputs: tuple[str, ...]
    indices: IntegerArray
    fill: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Staircase:
    """A non-decreasing step function, element by element: requantize, ReLU and saturate.

    With ``upper`` it is an enclosure: of the runtime's value only steps(z) ≤ value ≤ upper(z) is known, and the value may
    differ from element to element and from run to run, even at the same z.

    Attributes:
        steps: the exact thresholds, one row a distinct staircase; of the least value, for an enclosure.
        row: int64, broadcastable to the input's shape: which row of ``steps`` serves which element.
        upper: thresholds of the greatest value, none above its counterpart in ``steps``; None where the value is exact.
    """

    name: str
    inputs: tuple[str, ...]
    steps: Steps
    row: IntegerArray
    upper: Steps | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Any unary map on a range of codes, element by element (hard-swish, sigmoid, one side of a quantized addition).

    Attributes:
        values: int64, shape (rows, size): the image of first, first+1, …
        first: the least code in the table; an input outside first … first + size − 1 is clamped to it.
        row: int64, broadcastable to the input's shape.
    """

    name: str
    inputs: tuple[str, ...]
    values: IntegerArray
    first: int
    row: IntegerArray


@dataclass(frozen=True, slots=True, eq=False)
class Max:
    """The maximum over a window, channel by channel; padded positions don't take part."""

    name: str
    inputs: tuple[str, ...]
    window: Window


Linear: TypeAlias = Dense | Convolution | PoolSum
Node: TypeAlias = Input | Dense | Convolution | PoolSum | Add | Product | Rearrange | Staircase | Table | Max

NODE_KINDS: tuple[type, ...] = (
    Input, Dense, Convolution, PoolSum, Add, Product, Rearrange, Staircase, Table, Max,
)  # fmt: skip
"""Every node kind; each analysis has a rule for each of them, which tests/architecture checks."""


def per_channel_rows(rows: int, shape: tuple[int, ...]) -> IntegerArray:
    """The ``row`` of a staircase or table that serves the first axis channel by channel (or everything, for one row)."""
    row = np.arange(rows, dtype=np.int64) if rows > 1 else np.zeros(1, dtype=np.int64)
    row = row.reshape((-1,) + (1,) * (len(shape) - 1))
    row.setflags(write=False)
    return row
