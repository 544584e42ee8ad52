"""The input of a model that reads 8-bit codes: nothing to quantize, the codes are the model's own input domain."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.errors import InvalidInputError
from qertify.network.tensor import IntegerArray
from qertify.specification.region import IntegerBox


@dataclass(frozen=True, slots=True)
class CodeInput:
    """The same operations as `InputQuantizer`, on codes low … high; ``shape`` is that of one input."""

    shape: tuple[int, ...]
    low: int
    high: int

    def checked(self, real: ArrayLike) -> NDArray[Any]:
        """A batch of inputs in the model's type.

        Raises:
            InvalidInputError: wrong shape, not integers, or a code out of range.
        """
        array, dtype = np.asarray(real), np.dtype(np.int8 if self.low < 0 else np.uint8)
        if array.shape[1:] != self.shape:
            raise InvalidInputError(f"inputs of shape {array.shape[1:]} given, but the network reads {self.shape}")
        if array.dtype.kind not in "iu" or (array.size and not self.low <= int(array.min()) <= int(array.max()) <= self.high):
            raise InvalidInputError(f"the model reads {dtype} codes {self.low} … {self.high}")
        return array.astype(dtype)

    def codes(self, real: NDArray[Any]) -> IntegerArray:
        """The codes of checked inputs."""
        return real.astype(np.int64)

    def image(self, low: ArrayLike, high: ArrayLike) -> IntegerBox:
        """All codes in low … high (numbers, or exact fractions).

        Raises:
            InvalidInputError: a bound that is no finite number, or an empty region.
        """
        sides = [np.broadcast_to(np.asarray(bound), self.shape).reshape(-1).tolist() for bound in (low, high)]
        try:
            exact = [[Fraction(value) for value in side] for side in sides]
        except (ValueError, OverflowError, TypeError) as error:
            raise InvalidInputError("a bound of the region is not a finite number") from error
        least = [min(max(self.low, -(-v.numerator // v.denominator)), self.high + 1) for v in exact[0]]
        greatest = [max(min(self.high, v.numerator // v.denominator), self.low - 1) for v in exact[1]]
        bounds = [np.array(side, dtype=np.int64).reshape(self.shape) for side in (least, greatest)]
        return IntegerBox(bounds[0], bounds[1])

    def preimage(self, codes: IntegerArray, low: ArrayLike | None, high: ArrayLike | None) -> NDArray[Any]:
        """The codes themselves, in the model's type.

        Raises:
            InvalidInputError: codes out of range, or outside low … high.
        """
        wanted = np.asarray(codes)
        values = self.checked(wanted.reshape(-1, *self.shape)).reshape(wanted.shape)
        if low is not None and high is not None and not np.all(self.image(low, high).contains(self.codes(values))):
            raise InvalidInputError("no input in the region has these codes")
        return values
