"""Input regions as integer boxes: a finite set of input codes, never empty."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.errors import InvalidInputError
from qertify.network.tensor import IntegerArray


@dataclass(frozen=True, slots=True, eq=False)
class IntegerBox:
    """Every integer tensor x with low ≤ x ≤ high; both int64 of the network's input shape.

    Raises:
        InvalidInputError: shapes differ, or the box is empty.
    """

    low: IntegerArray
    high: IntegerArray

    def __post_init__(self) -> None:
        if self.low.shape != self.high.shape:
            raise InvalidInputError(f"region bounds of shapes {self.low.shape} and {self.high.shape}")
        if empty := int(np.count_nonzero(self.low > self.high)):
            raise InvalidInputError(f"the region is empty: lower bound above upper bound at {empty} input(s)")

    def contains(self, x: IntegerArray) -> np.ndarray:
        """Whether each row of x, shape (batch, *input shape), lies in the box; bool of shape (batch,)."""
        axes = tuple(range(1, x.ndim))
        return np.all((x >= self.low) & (x <= self.high), axis=axes)

    def clip(self, x: IntegerArray) -> IntegerArray:
        return np.clip(x, self.low, self.high)

    def points(self, first: int = 0, last: int | None = None) -> IntegerArray:
        """Points first … last − 1 in lexicographic order, all by default, (count, *input shape). Check `size` first."""
        number = np.arange(first, self.size if last is None else min(last, self.size), dtype=np.int64)
        result = np.empty((len(number), self.low.size), dtype=np.int64)
        low, width = self.low.reshape(-1), (self.high - self.low + 1).reshape(-1)
        for axis in range(self.low.size - 1, -1, -1):
            number, result[:, axis] = np.divmod(number, width[axis])
        return (result + low).reshape(-1, *self.low.shape)

    @property
    def size(self) -> int:
        """Number of points, an exact Python integer."""
        result = 1
        for width in (self.high - self.low + 1).reshape(-1).tolist():
            result *= width
        return result


def linf_ball(centre: IntegerArray, radius: int, low: int, high: int) -> IntegerBox:
    """All codes within ``radius`` levels of the centre, clipped to low … high.

    Args:
        centre: int64, the network's input shape.
        radius: in levels of the quantized input, ≥ 0.
        low, high: the valid range of a code.

    Raises:
        InvalidInputError: a negative radius, or a centre outside the valid range.
    """
    if radius < 0:
        raise InvalidInputError(f"radius {radius} is negative")
    if centre.size and (centre.min() < low or centre.max() > high):
        raise InvalidInputError(f"the centre {centre.min()} … {centre.max()} leaves the valid range {low} … {high}")
    reach = min(radius, high - low)
    return IntegerBox(np.maximum(centre - reach, low), np.minimum(centre + reach, high))


def exact_array(values: NDArray[Any]) -> NDArray[Any]:
    """Floats or integers as exact rationals, element by element."""
    flat = [Fraction(value) for value in values.reshape(-1).tolist()]
    result = np.empty(len(flat), dtype=object)
    result[:] = flat
    return result.reshape(values.shape)
