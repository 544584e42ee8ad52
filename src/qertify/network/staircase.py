"""Integer staircases: requantization, ReLU and saturation as what they do, not how they are written.

A staircase is a non-decreasing map from integers to the integers low … high, stored by its exact thresholds
T(v) = min{z : σ(z) ≥ v} for v = low+1 … high. Every analysis works on thresholds, so none of them knows about scales,
multipliers or rounding modes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from qertify.errors import InvalidNetworkError
from qertify.network.tensor import IntegerArray, as_integers

ACCUMULATOR_LIMIT = 1 << 31
"""Thresholds are searched in −2³¹ … 2³¹; a threshold of +2³¹ means "never reached" by a 32-bit accumulator."""


class Rounding(Enum):
    """How an exact quotient becomes an integer. The docstring of each member is its definition."""

    FLOOR = "floor"
    """⌊x⌋: towards minus infinity, an arithmetic right shift."""
    HALF_TOWARD_POSITIVE = "half_toward_positive"
    """⌊x + 1/2⌋: to the nearest, ties towards plus infinity."""
    HALF_TOWARD_NEGATIVE = "half_toward_negative"
    """⌈x − 1/2⌉: to the nearest, ties towards minus infinity."""
    HALF_AWAY_FROM_ZERO = "half_away_from_zero"
    """sign(x)·⌊|x| + 1/2⌋: to the nearest, ties away from zero."""
    HALF_EVEN = "half_even"
    """To the nearest, ties to the even neighbour (IEEE 754 roundTiesToEven)."""

    def divide(self, numerator: IntegerArray, denominator: int) -> IntegerArray:
        """Round numerator / denominator exactly.

        Args:
            numerator: int64 array of any shape, |numerator| < 2⁶⁰.
            denominator: positive integer < 2⁶⁰.

        Returns:
            int64 array of the same shape.
        """
        if denominator <= 0:
            raise ValueError("the denominator must be positive")
        quotient, remainder = np.divmod(numerator, denominator)
        twice = 2 * remainder
        if self is Rounding.FLOOR:
            return quotient
        tie_goes_up = {
            Rounding.HALF_TOWARD_POSITIVE: np.ones_like(quotient, dtype=bool),
            Rounding.HALF_TOWARD_NEGATIVE: np.zeros_like(quotient, dtype=bool),
            Rounding.HALF_AWAY_FROM_ZERO: np.asarray(numerator) > 0,
            Rounding.HALF_EVEN: quotient % 2 != 0,
        }[self]
        return quotient + ((twice > denominator) | ((twice == denominator) & tie_goes_up))


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The thresholds of one or several staircases with a common range of values.

    Attributes:
        thresholds: int64, shape (rows, high − low); row r holds T_r(low+1) … T_r(high), non-decreasing.
        low: the lowest value, also the value below all thresholds.
    """

    thresholds: IntegerArray
    low: int

    def __post_init__(self) -> None:
        if self.thresholds.ndim != 2 or self.thresholds.shape[0] == 0:
            raise InvalidNetworkError(None, f"thresholds must have shape (rows, levels), not {self.thresholds.shape}")
        if np.any(np.diff(self.thresholds, axis=1) < 0):
            raise InvalidNetworkError(None, "thresholds must not decrease")

    @property
    def rows(self) -> int:
        return int(self.thresholds.shape[0])

    @property
    def high(self) -> int:
        return self.low + int(self.thresholds.shape[1])

    def value(self, row: int, z: IntegerArray) -> IntegerArray:
        """σ_row(z), any shape."""
        return self.low + np.searchsorted(self.thresholds[row], z, side="right").astype(np.int64)

    def threshold(self, row: int, value: int) -> int:
        """T_row(value) = min{z : σ(z) ≥ value} for low < value ≤ high."""
        return int(self.thresholds[row, value - self.low - 1])


def gap_of(steps: Steps, upper: Steps | None, row: int, low: int, high: int) -> int:
    """The most by which two staircases, upper ≥ steps, differ on low … high; 0 without an upper one."""
    if upper is None:
        return 0
    jumps = upper.thresholds[row]
    points = np.append(jumps[(jumps > low) & (jumps <= high)], low)
    return int((upper.value(row, points) - steps.value(row, points)).max())


def steps_from_function(
    function: Callable[[IntegerArray], IntegerArray], rows: int, low: int, high: int, limit: int = ACCUMULATOR_LIMIT
) -> Steps:
    """Exact thresholds of a non-decreasing integer function, by bisection on the function itself.

    Args:
        function: maps accumulators, int64 of shape (rows, n), to integers of the same shape, row by row; it is
            clamped to [low, high] here. It must be non-decreasing on −limit … limit − 1.
        rows: number of rows.
        low: least value.
        high: greatest value.
        limit: half the width of the accumulator domain.

    Returns:
        The steps; a threshold of ``limit`` means that the value is never reached, −limit that it always is.
    """
    values = np.arange(low + 1, high + 1, dtype=np.int64)[None, :].repeat(rows, axis=0)
    below = np.full_like(values, -limit - 1)  # function(below) < value, by convention at −limit − 1
    reached = np.full_like(values, limit)
    while values.size and np.any(reached - below > 1):
        middle = (below + reached) // 2
        hit = function(np.clip(middle, -limit, limit - 1)) >= values
        active = reached - below > 1
        reached = np.where(active & hit, middle, reached)
        below = np.where(active & ~hit, middle, below)
    return Steps(as_integers(reached), low)


def shift_steps(shift: int, rounding: Rounding, low: int, high: int) -> Steps:
    """The staircase clamp(round(z / 2^shift), low, high) of fixed-point networks, one row.

    Raises:
        ValueError: a shift outside 0 … 40.
    """
    if not 0 <= shift <= 40:
        raise ValueError(f"shift {shift} is outside 0 … 40")
    limit = max(ACCUMULATOR_LIMIT, (max(abs(low), abs(high)) + 2) << shift)
    return steps_from_function(lambda z: rounding.divide(z, 1 << shift), 1, low, high, limit)
