"""Balls of real radius around an input, as a network sees them: finitely many boxes of codes, each with its exact radius.

A growing ball reaches one code after the other. The radius at which it reaches a code is the distance of the nearest float32
number that the runtime's quantizer maps to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qertify.errors import InvalidInputError
from qertify.network.tensor import FloatArray, IntegerArray
from qertify.runtimes.float32 import Float32Array, at_position, position
from qertify.specification.region import IntegerBox

SIZE_LIMIT = 1 << 24
"""Most codes within reach, of all inputs together."""


@dataclass(frozen=True, slots=True, eq=False)
class Rings:
    """Boxes of codes in ascending order, by their number from 0: that of the input's own code.

    Attributes:
        low: least codes within reach, of the input's shape.
        rank: int64, (codes, *shape): number of the first box that holds code ``low`` + position.
        whole, rest: float64, (boxes,): each box's least radius is (whole + rest) · unit, exactly.
    """

    low: IntegerArray
    rank: IntegerArray
    whole: FloatArray
    rest: FloatArray
    unit: Fraction

    @property
    def last(self) -> int:
        """Number of the largest box."""
        return len(self.whole) - 1

    def radius(self, number: int) -> Fraction:
        """The least radius of a ball whose image is the box."""
        return (Fraction(float(self.whole[number])) + Fraction(float(self.rest[number]))) * self.unit

    def box(self, number: int) -> IntegerBox:
        """The codes of all balls from `radius` (number) to short of `radius` (number + 1)."""
        inside = self.rank <= number
        first = inside.argmax(axis=0)
        return IntegerBox(self.low + first, self.low + first + inside.sum(axis=0) - 1)

    def number(self, codes: IntegerArray) -> int:
        """The first box that holds these codes, of the input's shape."""
        return int(np.take_along_axis(self.rank, (codes - self.low)[None], axis=0).max())


def code_rings(centre: IntegerArray, box: IntegerBox, unit: Fraction) -> Rings:
    """Around codes, which are ``unit`` apart."""
    codes, inside = _codes(box)
    distance = np.abs(codes - centre).astype(np.float64)
    return _ranked(box, distance, np.zeros_like(distance), inside, unit)


def real_rings(
    quantize: Callable[[Float32Array], IntegerArray], centre: Float32Array, reach: Float32Array, box: IntegerBox
) -> Rings:
    """Around a float32 input.

    Args:
        quantize: (batch, *shape) → codes, non-decreasing, element by element.
        reach: (2, *shape), two inputs whose codes are the ends of ``box``.
        box: all codes of interest; holds the centre's.
    """
    codes, inside = _codes(box)
    codes = np.clip(codes, box.low, box.high)
    middle = quantize(centre[None])[0]
    upwards = codes > middle
    # `far` has the code or lies beyond it, seen from `near`, which has not reached it
    near = np.broadcast_to(position(centre), codes.shape).copy()
    far = np.where(upwards, position(reach[1]), position(reach[0]))
    far[codes == middle] = near[codes == middle]
    while np.any(np.abs(far - near) > 1):
        between = (near + far) // 2
        found = quantize(at_position(between))
        reached = np.where(upwards, found >= codes, found <= codes)
        far, near = np.where(reached, between, far), np.where(reached, near, between)
    point, origin = at_position(far).astype(np.float64), centre.astype(np.float64)
    whole = point - origin
    shadow = whole + origin  # the rounding error of the difference, exactly (Møller and Knuth's TwoSum)
    rest = (point - shadow) - (origin - (shadow - whole))
    sign = np.where(upwards, 1.0, -1.0)
    return _ranked(box, whole * sign, rest * sign, inside, Fraction(1))


def _codes(box: IntegerBox) -> tuple[IntegerArray, NDArray[np.bool_]]:
    """Every code from the least one on, (codes, *shape), and whether it is in the box."""
    width = int((box.high - box.low).max()) + 1
    if width * box.low.size > SIZE_LIMIT:
        raise InvalidInputError(f"a real radius of {box.low.size} inputs is out of reach here; give a smaller --max-radius")
    codes = box.low + np.arange(width).reshape(-1, *[1] * box.low.ndim)
    return codes, codes <= box.high


def _ranked(box: IntegerBox, whole: FloatArray, rest: FloatArray, inside: NDArray[np.bool_], unit: Fraction) -> Rings:
    """Order the distances; of exact sums of two floats, the rounded part decides before the rest does."""
    keys = np.empty(whole.shape, dtype=np.complex128)
    keys.real, keys.imag = whole, rest
    levels, inverse = np.unique(keys[inside], return_inverse=True)
    rank = np.full(whole.shape, len(levels), dtype=np.int64)
    rank[inside] = inverse.reshape(-1)
    return Rings(box.low, rank, levels.real.copy(), levels.imag.copy(), unit)
