"""Rows for what the kinks of all pairs of a layer can do to an output together.

Let D be the difference of two paired accumulators. The difference of their rectifiers lies between 0 and D: twice it, less D,
is the *twist*, between −|D| and |D| but for rounding. Ranges of single pairs let every twist be at its end; but all D are
functions of the same errors before, and can't all be great at once: `joint_kinks` bounds Σ|c·D| for the weights c that the
pairs have in an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qertify.bounds.builder import Builder
from qertify.bounds.fixed_point import RealForm, compact
from qertify.bounds.joint_kinks import greatest_sum
from qertify.network.tensor import BoolArray, FloatArray, IntegerArray

WEIGHT, FORM_BITS = 127.0, 36
"""Greatest weight of a pair in a row, and bits of what is weighted."""
LEAST_ROOM = 0.2
"""A pair joins in if its rectifier reaches beyond the kink by this part of D's greatest size; else its own rows know more."""
WORTH = 0.9
"""A row has its place if the bound is below this part of what the ranges of single differences say."""
ROUNDING = 2.0**-40
"""Far more than the relative error of float64 sums made here."""


@dataclass(frozen=True, slots=True, eq=False)
class PairForms:
    """Paired activations of one layer, element by element, where one of the two varies.

    Attributes:
        own, other: rows of y and ŷ in forms, 0 for values that are constant.
        follows: rows in forms that a row may follow: y where its rectifier has both phases, else ŷ.
        room: how far z reaches beyond its kink on both sides, with the bits of D; not positive where the kink is out of reach.
        open: where a kink is within reach; else, where both vary, y is its accumulator.
        apart, twist: D, and 2·(raise·y − scale·ŷ) − D, with the same bits. right: forms of factor·ẑ.
        reach: the greatest |D|.
        low, high: of max(factor·ẑ, 0) − scale·ŷ where open, of factor·ẑ − scale·ŷ elsewhere.
        raise_, scale: integers, the first a power of two.
    """

    own: IntegerArray
    other: IntegerArray
    follows: IntegerArray
    room: FloatArray
    open: BoolArray
    apart: RealForm
    twist: RealForm
    right: FloatArray
    reach: FloatArray
    low: FloatArray
    high: FloatArray
    raise_: float
    scale: float


def add_joint_rows(builder: Builder, outputs: FloatArray, pairs: Sequence[PairForms]) -> None:
    """A row Σ c·twist over the last layer's pairs with a kink well within reach, for each output, c being their weights in it.

    Args:
        outputs: forms, (rows, outputs). pairs: layer after layer.
    """
    last = pairs[-1]
    free = last.room > LEAST_ROOM * last.reach
    if not free.any():
        return
    twist = compact(builder, last.twist, FORM_BITS)
    shrunk = 2.0 ** (twist.bits - last.twist.bits)
    halves, error = _spread(builder, last.apart, pairs[:-1])
    for output in outputs.T:
        weight = np.where(last.other > 0, -output[last.other] / last.scale, output[last.own] / last.raise_) * free
        largest = float(np.abs(weight).max())
        if not largest:
            continue
        factor = np.round(weight * (WEIGHT / largest))
        size = np.abs(factor)
        joint = greatest_sum((halves * size).T, error * size)
        if joint > WORTH * (size @ last.reach):
            continue
        ends = np.stack([2 * factor * last.low, 2 * factor * last.high])
        joint += ROUNDING * float(np.abs(ends).sum())
        low, high = (ends.min(0).sum() - joint) * shrunk, (ends.max(0).sum() + joint) * shrunk
        follows = last.follows[[int(np.argmax(size * last.reach))]]
        ends = np.array([np.floor(low) - 1, np.ceil(high) + 1]).astype(np.int64)
        builder.add_rows([None], (twist.form @ factor)[:, None], ends[:1], ends[1:], np.array([twist.slack @ size]), follows)


def _spread(builder: Builder, value: RealForm, pairs: Sequence[PairForms]) -> tuple[FloatArray, FloatArray]:
    """A value as a function of errors: halves.T @ u, |u| ≤ 1, the first one 1.

    Pairs before are replaced by what they are functions of: y by its accumulator and ŷ by that and its rounding, where no
    kink is within reach; else y by D, the twist and ŷ.

    Returns:
        halves, (columns, count), and a bound on what is off, (count,).
    """
    low, high = builder.variable_range()
    form, error = value.form.copy(), value.slack.copy()
    columns: list[FloatArray] = []
    ends: list[tuple[FloatArray, FloatArray]] = []
    gross = np.zeros_like(form)
    for pair in reversed(pairs):
        both = (pair.own > 0) & (pair.other > 0)
        gross = np.maximum(gross, np.abs(form))
        rows = len(pair.apart.form)
        for chosen in (both & ~pair.open, both & pair.open):
            left, right = form[pair.own[chosen]] / pair.raise_, form[pair.other[chosen]] / pair.scale
            apart, accumulator = pair.apart.form[:, chosen], pair.right[:, chosen]
            form[pair.own[chosen]] = 0.0
            if pair.open[chosen].any():
                form[pair.other[chosen]] += pair.scale * left
                left = left / 2
                columns.append(left)
                ends.append((2 * pair.low[chosen] - pair.reach[chosen], 2 * pair.high[chosen] + pair.reach[chosen]))
            else:
                form[pair.other[chosen]] = 0.0
                columns.append(-right)
                ends.append((pair.low[chosen], pair.high[chosen]))
                form[:rows] += accumulator @ (left + right)
                gross[:rows] += np.abs(accumulator) @ (np.abs(left) + np.abs(right))
            form[:rows] += apart @ left
            gross[:rows] += np.abs(apart) @ np.abs(left)
            error += pair.apart.slack[chosen] @ np.abs(left)
    coefficients = np.concatenate([form, *columns])
    low, high = (np.concatenate([first, *(pair[side] for pair in ends)]) for side, first in enumerate((low, high)))
    halves = coefficients * ((high - low) / 2)[:, None]
    largest = np.maximum(np.abs(low), np.abs(high))
    error += ROUNDING * (largest[: len(gross)] @ gross + largest @ np.abs(coefficients))
    result = np.concatenate([((low + high) / 2 @ coefficients)[None], halves])
    return result[(result != 0).any(1)], error
