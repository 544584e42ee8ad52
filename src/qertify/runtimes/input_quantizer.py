"""A float32 input quantizer seen as an exact map between boxes of real numbers and boxes of codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from qertify.errors import InvalidInputError
from qertify.network.tensor import IntegerArray
from qertify.runtimes.float32 import Float32Array, greatest_float32, least_float32
from qertify.runtimes.input_steps import LARGEST, Steps, apply, first_reaching, invert
from qertify.specification.region import IntegerBox


def float32_box(shape: tuple[int, ...], low: ArrayLike, high: ArrayLike) -> tuple[Float32Array, Float32Array]:
    """The least and greatest float32 in low … high, element by element; bounds may be exact fractions.

    Raises:
        InvalidInputError: bounds of another shape, one that is no finite number, or an empty region.
    """
    try:
        sides = [np.broadcast_to(np.asarray(bound), shape).reshape(-1).tolist() for bound in (low, high)]
    except ValueError as error:
        raise InvalidInputError(f"bounds of shapes {np.shape(low)} and {np.shape(high)} for inputs of shape {shape}") from error
    try:
        exact = [[Fraction(value) for value in side] for side in sides]
    except (ValueError, OverflowError, TypeError) as error:
        raise InvalidInputError("a bound of the region is not a finite number") from error
    least = np.array([least_float32(value) for value in exact[0]], dtype=np.float32)
    greatest = np.array([greatest_float32(value) for value in exact[1]], dtype=np.float32)
    if empty := int(np.count_nonzero(~(least <= greatest) | ~np.isfinite(least) | ~np.isfinite(greatest))):
        raise InvalidInputError(f"the region is empty: it holds no float32 number at {empty} input(s)")
    return least.reshape(shape), greatest.reshape(shape)


@dataclass(frozen=True, slots=True, eq=False)
class InputQuantizer:
    """The quantizer at a network's input.

    Attributes:
        shape: of one input.
        low, high: range of the codes.
        quantize: float32 → codes, non-decreasing, element by element; clamped here. Neighbouring float32 numbers between the
            images of low and high must not skip a code, which holds for scales that are normal numbers.
        dequantize: codes → float32, a preimage of each.
        steps: what the model makes of its input before it quantizes; no code may be out of its reach (`input_steps.obstacle`).
    """

    shape: tuple[int, ...]
    low: int
    high: int
    quantize: Callable[[Float32Array], IntegerArray]
    dequantize: Callable[[IntegerArray], Float32Array]
    steps: Steps = ()

    def checked(self, real: ArrayLike) -> Float32Array:
        """A batch of inputs as float32, to which numbers of other types are rounded as callers of the model must do.

        Raises:
            InvalidInputError: wrong shape or type, NaN, infinity, or a number beyond float32.
        """
        array = np.asarray(real)
        if array.shape[1:] != self.shape:
            raise InvalidInputError(f"inputs of shape {array.shape[1:]} given, but the network reads {self.shape}")
        if array.dtype.kind not in "fiu":
            raise InvalidInputError(f"the model reads float32 numbers, not {array.dtype}")
        with np.errstate(over="ignore"):
            result = array.astype(np.float32)
        if not np.all(np.isfinite(result)):
            raise InvalidInputError("an input is NaN, infinite, or beyond float32")
        return result

    def codes(self, real: Float32Array) -> IntegerArray:
        """The clamped codes of checked inputs."""
        return np.clip(self.quantize(apply(self.steps, real)), self.low, self.high)

    def bounds(self, low: ArrayLike, high: ArrayLike) -> tuple[Float32Array, Float32Array]:
        """The least and greatest float32 in low … high, element by element; bounds may be exact fractions.

        Raises:
            InvalidInputError: a bound that is no finite number, or an empty region.
        """
        return float32_box(self.shape, low, high)

    def image(self, low: ArrayLike, high: ArrayLike) -> IntegerBox:
        """The exact set of codes of all inputs in low … high."""
        least, greatest = self.bounds(low, high)
        return IntegerBox(self.codes(least), self.codes(greatest))

    def preimage(self, codes: IntegerArray, low: ArrayLike | None, high: ArrayLike | None) -> Float32Array:
        """An input in low … high for codes of that region's image: about the number each code stands for, or the nearest bound.

        Raises:
            InvalidInputError: no such input.
        """
        wanted = np.asarray(codes, dtype=np.int64)
        least, greatest = (-LARGEST, LARGEST) if low is None or high is None else self.bounds(low, high)
        values = np.clip(invert(self.steps, self.dequantize(wanted)), least, greatest)
        missed = self.codes(values) != wanted
        if np.any(missed):
            values = np.where(missed, first_reaching(self.codes, wanted, least, greatest), values)
            if not np.array_equal(self.codes(values), wanted):
                raise InvalidInputError("no input in the region has these codes")
        return values
