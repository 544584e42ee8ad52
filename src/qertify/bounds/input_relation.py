"""Two networks' views of one input: a real x and its code q, with x = factor·q + shift + e.

The code takes x's place as a variable of the program, and the error e joins it. Where the region cuts a code's interval,
which is only at its ends, fewer errors go with that code: q and e are coupled, and confined to the hull of what remains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qertify.errors import InvalidInputError
from qertify.network.tensor import BoolArray, FloatArray, IntegerArray
from qertify.specification.region import IntegerBox

INPUT_BITS = 12
"""Fractional bits of x, in steps of the code."""
FARTHEST = 2.0**50
"""Greatest error in fixed point."""

Bounds = tuple[FloatArray, FloatArray]


@dataclass(frozen=True, slots=True, eq=False)
class InputRelation:
    """Which x go with which codes; arrays of the input's shape, float64 but for the last two.

    Attributes:
        factor, shift: x = factor·q + shift + e; the factor is positive.
        error_low, error_high: bounds of e at codes that are not clamped.
        low, high: bounds of x; infinite where q determines x, up to an error too small for a variable of its own.
        clamped_low, clamped_high: whether the least (greatest) code of the box stands for all x below (above), too.
    """

    factor: FloatArray
    shift: FloatArray
    error_low: FloatArray
    error_high: FloatArray
    low: FloatArray
    high: FloatArray
    clamped_low: BoolArray
    clamped_high: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class InputTerms:
    """x in fixed point: x · 2^bits = factor · code + constant + error ± slack, all integers.

    Attributes:
        factor, constant, slack, low, high: of the input's shape; the error lies in low … high.
        pairs: int64 (m, 2), codes and errors that are coupled: positions among the codes that vary, followed by the errors
            that vary. corners: (m, 8, 2), of their values; codes are counted from the middle of the box.
    """

    factor: FloatArray
    constant: FloatArray
    slack: FloatArray
    low: FloatArray
    high: FloatArray
    pairs: IntegerArray
    corners: FloatArray
    bits: int

    @property
    def error_index(self) -> IntegerArray:
        """Flat positions whose error varies."""
        return np.flatnonzero(self.low < self.high)


def input_terms(relation: InputRelation, box: IntegerBox) -> InputTerms:
    """x over a box of codes.

    Raises:
        InvalidInputError: a code of the box with which no x goes, or numbers too large for fixed point.
    """
    bits = INPUT_BITS - int(np.frexp(np.abs(relation.factor).max())[1])
    one = 2.0**bits
    middle = (box.low + box.high) // 2
    factor = np.round(relation.factor * one)
    constant = (relation.factor * one - factor) * middle + relation.shift * one
    lost = np.abs(relation.factor * one - factor) * np.maximum(box.high - middle, middle - box.low)
    lost += np.abs(constant - np.round(constant))
    lost += (np.abs(relation.factor * one - factor) * np.abs(middle) + np.abs(relation.shift * one)) * 2.0**-40
    slack = np.where(lost > 0, np.ceil(lost * (1 + 1e-9)), 0)
    constant = np.round(constant)

    determined = np.isinf(relation.low)
    slack += np.where(determined, np.ceil(np.maximum(relation.error_high, -relation.error_low) * one), 0)
    inner = np.floor(relation.error_low * one), np.ceil(relation.error_high * one)
    inner = np.where(determined, 0, inner[0]), np.where(determined, 0, inner[1])
    ends: list[Bounds] = []
    for code in (box.low, box.high):
        least = np.floor(relation.low * one) - factor * code - constant - slack
        greatest = np.ceil(relation.high * one) - factor * code - constant + slack
        low = np.where(relation.clamped_low & (code == box.low), least, np.maximum(inner[0], least))
        high = np.where(relation.clamped_high & (code == box.high), greatest, np.minimum(inner[1], greatest))
        ends.append((low, high))
    if any(np.any(np.abs(side) >= FARTHEST) for end in ends for side in end):
        raise InvalidInputError("the region reaches too far from its codes, in steps of them, to bound the networks on it")
    if any(np.any(low > high) for low, high in ends):
        raise InvalidInputError("the region leaves no input for a code of its image")
    several = box.high > box.low + 1
    after = tuple(np.where(several, own, end) for own, end in zip(inner, ends[1], strict=True))
    before = tuple(np.where(several, own, end) for own, end in zip(inner, ends[0], strict=True))
    positions = (box.low, np.minimum(box.low + 1, box.high), np.maximum(box.high - 1, box.low), box.high)
    errors = (ends[0], after, before, ends[1])
    corners = np.stack(
        [
            np.stack([(position - middle).reshape(-1).astype(np.float64), error[side].reshape(-1)], axis=-1)
            for position, error in zip(positions, errors, strict=True)
            for side in (0, 1)
        ],
        axis=1,
    )
    low, high = corners[..., 1].min(axis=1), corners[..., 1].max(axis=1)
    code_varies, error_varies = (box.low < box.high).reshape(-1), low < high
    both = code_varies & error_varies
    first, second = np.cumsum(code_varies) - 1, np.count_nonzero(code_varies) + np.cumsum(error_varies) - 1
    shape = box.low.shape
    return InputTerms(
        factor, constant, slack, low.reshape(shape), high.reshape(shape),
        np.stack([first[both], second[both]], axis=1), corners[both], bits,
    )  # fmt: skip
