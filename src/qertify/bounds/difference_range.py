"""The ranges of differences of two paired activations, from those of their accumulators, level after level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qertify.bounds.fixed_point import EXACT_FORM
from qertify.bounds.sides import Bounds, Pair, QuantizedSide, RealSide, step_values
from qertify.network.tensor import BoolArray, FloatArray

LINK_PARTS = 16
"""Slopes of rows that link the difference of two values to that of their accumulators are multiples of 1 / this."""

Ends = tuple[FloatArray, FloatArray, BoolArray]
"""Least and greatest value, element by element, and where there is one."""


def _over_levels(
    right: QuantizedSide,
    pair: Pair,
    other: Bounds,
    factor: FloatArray,
    ends: Callable[[FloatArray, FloatArray, FloatArray], Ends],
) -> Bounds:
    """Least and greatest value over all levels of the right activation, whose accumulator ẑ lies in ``other``.

    Args:
        ends: a level, and least and greatest factor·ẑ at it → what is wanted there.
    """
    node, row = right.steps(pair.right)
    first, last = step_values(node, row, other[0]), step_values(node, row, other[1])
    infinite = np.full((node.steps.rows, 1), np.inf)
    thresholds = np.concatenate([-infinite, node.steps.thresholds.astype(np.float64), infinite], axis=1)
    least, greatest = np.full(factor.shape, np.inf), np.full(factor.shape, -np.inf)
    for step in range(int((last - first).max(initial=0)) + 1):
        level = np.minimum(first + step, last)
        position = (level - node.steps.low).astype(np.int64)
        low = np.maximum(other[0], thresholds[row, position])
        high = np.minimum(other[1], thresholds[row, position + 1] - 1)
        scaled = np.stack([factor * low, factor * high])
        below, above, possible = ends(level, scaled.min(0), scaled.max(0))
        possible = possible & (low <= high)
        least = np.where(possible, np.minimum(least, below), least)
        greatest = np.where(possible, np.maximum(greatest, above), greatest)
    empty = least > greatest  # can't be on a box that is not empty; leaves the row without force
    return np.where(empty, -EXACT_FORM, least), np.where(empty, EXACT_FORM, greatest)


def linked_difference(
    right: QuantizedSide,
    pair: Pair,
    own: Bounds,
    other: Bounds,
    apart: Bounds,
    factor: FloatArray,
    scale: float,
    share: FloatArray,
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

    return _over_levels(right, pair, other, factor, ends)


def rounding_range(
    right: QuantizedSide, pair: Pair, other: Bounds, factor: FloatArray, scale: float, rectified: BoolArray
) -> Bounds:
    """The range of factor·ẑ, rectified or not, less scale·right value."""

    def ends(level: FloatArray, low: FloatArray, high: FloatArray) -> Ends:
        low, high = (np.where(rectified, np.maximum(end, 0), end) for end in (low, high))
        return low - scale * level, high - scale * level, np.ones(low.shape, dtype=bool)

    return _over_levels(right, pair, other, factor, ends)


def value_difference(
    left: RealSide | QuantizedSide,
    right: QuantizedSide,
    pair: Pair,
    own: Bounds,
    other: Bounds,
    apart: Bounds,
    factor: FloatArray,
    scale: float,
    up: float,
) -> Bounds:
    """The range of left value − scale·right value."""

    def ends(level: FloatArray, low: FloatArray, high: FloatArray) -> Ends:
        low, high = np.maximum(own[0], low + apart[0]), np.minimum(own[1], high + apart[1])
        possible = low <= high
        low, high = left.value_range(pair.left, np.where(possible, low, own[0]), np.where(possible, high, own[0]), up)
        return low - scale * level, high - scale * level, possible

    return _over_levels(right, pair, other, factor, ends)
