"""The ranges of differences of two paired activations, from those of their accumulators, level after level."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qertify.bounds.fixed_point import EXACT_FORM
from qertify.bounds.sides import Bounds, Pair, QuantizedSide, RealSide, step_values
from qertify.network.tensor import BoolArray, FloatArray

LINK_PARTS = 16
"""Slopes of rows that link the difference of two values to that of their accumulators are multiples of 1 / this."""


def _levels(right: QuantizedSide, pair: Pair, other: Bounds) -> Iterator[tuple[FloatArray, FloatArray, FloatArray, BoolArray]]:
    """Level after level of the right activation: the level, and the accumulators that have it, where there are any."""
    node, row = right.steps(pair.right)
    first, last = step_values(node, row, other[0]), step_values(node, row, other[1])
    infinite = np.full((node.steps.rows, 1), np.inf)
    thresholds = np.concatenate([-infinite, node.steps.thresholds.astype(np.float64), infinite], axis=1)
    for step in range(int((last - first).max(initial=0)) + 1):
        level = np.minimum(first + step, last)
        position = (level - node.steps.low).astype(np.int64)
        low = np.maximum(other[0], thresholds[row, position])
        high = np.minimum(other[1], thresholds[row, position + 1] - 1)
        yield level, low, high, low <= high


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
    least, greatest = np.full(factor.shape, np.inf), np.full(factor.shape, -np.inf)
    for level, low, high, possible in _levels(right, pair, other):
        ends = np.stack([factor * low, factor * high])
        below, above = np.maximum(ends.min(0), own[0] - apart[1]), np.minimum(ends.max(0), own[1] - apart[0])
        first, last = np.maximum(apart[0], own[0] - above), np.minimum(apart[1], own[1] - below)
        possible = possible & (below <= above) & (first <= last)
        offset = LINK_PARTS * scale * level

        def at(difference: FloatArray, end: FloatArray, offset: FloatArray = offset) -> FloatArray:
            value = np.maximum(np.clip(difference + end, own[0], own[1]), 0)
            return LINK_PARTS * value - share * difference - offset

        for corner in (first, last, -below, own[0] - below, own[1] - below):
            least = np.where(possible, np.minimum(least, at(np.clip(corner, first, last), below)), least)
        for corner in (first, last, -above, own[0] - above, own[1] - above):
            greatest = np.where(possible, np.maximum(greatest, at(np.clip(corner, first, last), above)), greatest)
    return _sane(least, greatest)


def rounding_range(
    right: QuantizedSide, pair: Pair, other: Bounds, factor: FloatArray, scale: float, rectified: BoolArray
) -> Bounds:
    """The range of factor·ẑ, rectified or not, less scale·right value."""
    least, greatest = np.full(factor.shape, np.inf), np.full(factor.shape, -np.inf)
    for level, low, high, possible in _levels(right, pair, other):
        ends = np.stack([factor * low, factor * high])
        ends = np.where(rectified, np.maximum(ends, 0), ends) - scale * level
        least = np.where(possible, np.minimum(least, ends.min(0)), least)
        greatest = np.where(possible, np.maximum(greatest, ends.max(0)), greatest)
    return _sane(least, greatest)


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
    """The range of left value − scale·right value, level after level of the right value."""
    least, greatest = np.full(factor.shape, np.inf), np.full(factor.shape, -np.inf)
    for level, low, high, possible in _levels(right, pair, other):
        ends = np.stack([factor * low, factor * high])
        own_low = np.maximum(own[0], ends.min(0) + apart[0])
        own_high = np.minimum(own[1], ends.max(0) + apart[1])
        possible = possible & (own_low <= own_high)
        own_low, own_high = np.where(possible, own_low, own[0]), np.where(possible, own_high, own[0])
        value_low, value_high = left.value_range(pair.left, own_low, own_high, up)
        least = np.where(possible, np.minimum(least, value_low - scale * level), least)
        greatest = np.where(possible, np.maximum(greatest, value_high - scale * level), greatest)
    return _sane(least, greatest)


def _sane(least: FloatArray, greatest: FloatArray) -> Bounds:
    empty = least > greatest  # can't be on a box that is not empty; leaves the row without force
    return np.where(empty, -EXACT_FORM, least), np.where(empty, EXACT_FORM, greatest)
