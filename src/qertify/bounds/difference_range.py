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
    right: QuantizedSide, pair: Pair, other: Bounds, apart: Bounds, factor: FloatArray, scale: float, share: FloatArray
) -> Bounds:
    """The range of parts·(rectifier − scale·right value) − share·D, D the difference of the accumulators, 0 ≤ share ≤ parts.

    With z = D + factor·ẑ the rectifier is convex in D and in ẑ: the greatest value is at a corner, the least one at the
    least factor·ẑ and an end or the kink of D.
    """
    least, greatest = np.full(factor.shape, np.inf), np.full(factor.shape, -np.inf)
    for level, low, high, possible in _levels(right, pair, other):
        ends = np.stack([factor * low, factor * high])
        below, above = ends.min(0), ends.max(0)
        offset = LINK_PARTS * scale * level
        for difference in (apart[0], apart[1], np.clip(-below, apart[0], apart[1])):
            value = LINK_PARTS * np.maximum(difference + below, 0) - share * difference - offset
            least = np.where(possible, np.minimum(least, value), least)
        for difference in apart:
            value = LINK_PARTS * np.maximum(difference + above, 0) - share * difference - offset
            greatest = np.where(possible, np.maximum(greatest, value), greatest)
    return least, greatest


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
    empty = least > greatest  # can't be on a box that is not empty; leaves the row without force
    return np.where(empty, -EXACT_FORM, least), np.where(empty, EXACT_FORM, greatest)
