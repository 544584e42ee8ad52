"""Thresholds that lie on a line: T_i = ⌈(P·i + C) / Q⌉ for all i, with integers P, Q > 0 and C.

Thresholds of a requantization by one multiplier are nearly always of this form. Then σ(z) ≥ i ⇔ Q·z ≥ P·i + C, one row
with integer coefficients instead of one binary a level, and exact. (Digital straight lines; the slope of the smallest
denominator comes from the Stern-Brocot tree, and has Q < number of thresholds.)
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np

from qertify.network.tensor import IntegerArray

LONGEST = 4096
"""Most thresholds of an uneven staircase that are searched for a line; the search is quadratic."""


@dataclass(frozen=True, slots=True)
class Line:
    """T_i = ⌈(rise·i + start) / run⌉."""

    rise: int
    run: int
    start: int

    def threshold(self, index: int) -> int:
        return -((-self.rise * index - self.start) // self.run)


def line_through(thresholds: IntegerArray) -> Line | None:
    """The line on which all thresholds lie, or None if there is none (or none was looked for).

    Args:
        thresholds: int64, shape (n,), n ≥ 1, non-decreasing; the first has index 0.
    """
    gaps = np.diff(thresholds)
    if np.all(gaps == gaps[:1]):
        return Line(int(gaps[0]) if len(gaps) else 1, 1, int(thresholds[0]))
    if len(thresholds) > LONGEST:
        return None
    # T_j − T_i − 1 < (j − i)·slope < T_j − T_i + 1 for all i < j; if a slope fulfils them, a start exists
    above, below = Fraction(0), Fraction(int(gaps.max()) + 1)
    for distance in range(1, len(thresholds)):
        span = thresholds[distance:] - thresholds[:-distance]
        above = max(above, Fraction(int(span.max()) - 1, distance))
        below = min(below, Fraction(int(span.min()) + 1, distance))
        if above >= below:
            return None
    slope = simplest_between(above, below)
    rise, run = slope.numerator, slope.denominator
    values = [int(value) for value in thresholds]
    line = Line(rise, run, min(run * value - rise * index for index, value in enumerate(values)))
    return line if all(line.threshold(index) == value for index, value in enumerate(values)) else None


def simplest_between(above: Fraction, below: Fraction) -> Fraction:
    """The fraction of the smallest denominator strictly between two fractions, 0 ≤ above < below."""
    whole = floor(above)
    if whole + 1 < below:
        return Fraction(whole + 1)
    rest = 1 / (below - whole)
    if above == whole:
        return whole + Fraction(1, floor(rest) + 1)
    return whole + 1 / simplest_between(rest, 1 / (above - whole))
