"""The ranges of differences of two paired activations, from those of their accumulators, level after level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qertify.bounds.fixed_point import EXACT_FORM
from qertify.bounds.forms import Bounds
from qertify.bounds.ladder import Ladder
from qertify.network.tensor import BoolArray, FloatArray

LINK_PARTS = 16
"""Slopes of rows that link the difference of two values to that of their accumulators are multiples of 1 / this."""

Ends = tuple[FloatArray, FloatArray, BoolArray]
"""Least and greatest value, element by element, and where there is one."""


def _over_levels(
    ladder: Ladder, other: Bounds, factor: FloatArray, ends: Callable[[FloatArray, FloatArray, FloatArray], Ends]
) -> Bounds:
    """Least and greatest value over all levels of the right activation, whose accumulator ẑ lies in ``other``.

    Args:
        ends: a level, and least and greatest factor·ẑ at it → what is wanted there.
    """
    first, last = ladder.level(other[0]), ladder.level(other[1])
    least, greatest = np.full(factor.shape, np.inf), np.full(factor.shape, -np.inf)
    for step in range(int((last - first).max(initial=0)) + 1):
        level = np.minimum(first + step, last)
        low, high = ladder.span(level)
        low, high = np.maximum(other[0], low), np.minimum(other[1], high)
        scaled = np.stack([factor * low, factor * high])
        below, above, possible = ends(level, scaled.min(0), scaled.max(0))
        possible = possible & (low <= high)
        least = np.where(possible, np.minimum(least, below), least)
        greatest = np.where(possible, np.maximum(greatest, above), greatest)
    empty = least > greatest  # can't be on a box that is not empty; leaves the row without force
    return np.where(empty, -EXACT_FORM, least), np.where(empty, EXACT_FORM, greatest)


def linked_difference(
    ladder: Ladder, own: Bounds, other: Bounds, apart: Bounds, factor: FloatArray, scale: float | FloatArray, share: FloatArray
) -> Bounds:
    """The range of parts·(rectifier − scale·right value) − share·D, D the difference of the accumulators, 0 ≤ share ≤ parts.

    With z = D + factor·ẑ, which lies in the range ``own``, the rectifier grows with ẑ: the greatest value is at the greatest
    factor·ẑ, the least one at the least, each at an end of D or where z is at an end of its range or at the kink.
    """

    def ends(level: FloatArray, low: FloatArray, high: FloatArray) -> Ends:
        below, above = np.maximum(low, own[0] - apart[1]), np.minimum(high, own[1] - apart[0])
        first, last = np.maximum(apart[0], own[0] - above), np.minimum(apart[1], own[1] - below)

        def at(end: FloatArray) -> FloatArray:
            difference = np.clip(np.stack([first, last, -end, own[0] - end, own[1] - end]), first, last)
            value = np.maximum(np.clip(difference + end, own[0], own[1]), 0)
            return LINK_PARTS * value - share * difference - LINK_PARTS * scale * level

        return at(below).min(0), at(above).max(0), (below <= above) & (first <= last)

    return _over_levels(ladder, other, factor, ends)


def rounding_range(ladder: Ladder, other: Bounds, factor: FloatArray, scale: float, rectified: BoolArray) -> Bounds:
    """The range of factor·ẑ, rectified or not, less scale·right value."""

    def ends(level: FloatArray, low: FloatArray, high: FloatArray) -> Ends:
        low, high = (np.where(rectified, np.maximum(end, 0), end) for end in (low, high))
        return low - scale * level, high - scale * level, np.ones(low.shape, dtype=bool)

    return _over_levels(ladder, other, factor, ends)


def value_difference(
    values: Callable[[FloatArray, FloatArray], Bounds],
    ladder: Ladder,
    own: Bounds,
    other: Bounds,
    apart: Bounds,
    factor: FloatArray,
    scale: float | FloatArray,
) -> Bounds:
    """The range of left value − scale·right value.

    Args:
        values: the range of the left value, from that of its accumulator.
    """

    def ends(level: FloatArray, low: FloatArray, high: FloatArray) -> Ends:
        low, high = np.maximum(own[0], low + apart[0]), np.minimum(own[1], high + apart[1])
        possible = low <= high
        low, high = values(np.where(possible, low, own[0]), np.where(possible, high, own[0]))
        return low - scale * level, high - scale * level, possible

    return _over_levels(ladder, other, factor, ends)


def rectified_range(low: FloatArray, high: FloatArray) -> Bounds:
    """The range of a rectifier's value."""
    return np.maximum(low, 0), np.maximum(high, 0)


def imply(bounds: list[Bounds], factor: FloatArray, up: float | FloatArray) -> None:
    """What the ranges of two accumulators and of their difference, up·z − factor·ẑ, say about those of z and ẑ, in place."""
    ends = np.stack([factor * bounds[1][0], factor * bounds[1][1]])
    implied = np.floor((ends.min(0) + bounds[2][0]) / up), np.ceil((ends.max(0) + bounds[2][1]) / up)
    bounds[0] = np.maximum(bounds[0][0], implied[0]), np.minimum(bounds[0][1], implied[1])
    ends = np.stack([bounds[0][0] * up - bounds[2][1], bounds[0][1] * up - bounds[2][0]]) / np.where(
        factor == 0, np.nan, factor
    )
    wider = np.abs(ends) * 2.0**-50 + 2.0**-50  # the quotients are rounded
    low, high = np.ceil((ends - wider).min(0)), np.floor((ends + wider).max(0))
    bounds[1] = np.fmax(bounds[1][0], low), np.fmin(bounds[1][1], high)
