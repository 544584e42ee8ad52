"""8-bit images before preprocessing, and the codes that a model which reads real inputs makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.errors import InvalidInputError
from qertify.network.tensor import IntegerArray
from qertify.specification.region import IntegerBox

Quantizer = Callable[[ArrayLike], IntegerArray]
"""Real inputs (batch, *input shape) → codes; non-decreasing in every element."""


@dataclass(frozen=True, slots=True, eq=False)
class Preprocessing:
    """(pixel / 255 − mean) / std, each operation rounded to float32, as image libraries do it.

    Attributes:
        mean, std: float32, of shapes that broadcast against the input's; every std is positive.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def apply(self, pixels: ArrayLike) -> NDArray[np.float32]:
        """Pixels 0 … 255 of shape (batch, *input shape) as the model reads them."""
        scaled = np.asarray(pixels).astype(np.float32) / np.float32(255)
        return ((scaled - self.mean) / self.std).astype(np.float32)


def preprocessing(shape: tuple[int, ...], mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
    """From one number, or one a channel; channels are the first axis of the input's shape or else the last.

    Raises:
        InvalidInputError: numbers that are not finite, a std that is not positive, or a count that fits no axis.
    """
    numbers = [np.array(values, dtype=np.float32) for values in (mean, std)]
    if not all(np.all(np.isfinite(values)) for values in numbers) or not np.all(numbers[1] > 0):
        raise InvalidInputError("mean and std must be finite numbers, and std positive")

    def spread(values: NDArray[Any], what: str) -> NDArray[np.float32]:
        for axis in (0, len(shape) - 1):
            if len(values) == 1 or (len(shape) > 1 and shape[axis] == len(values)):
                return values.reshape([-1 if place == axis else 1 for place in range(len(shape))])
        raise InvalidInputError(f"{len(values)} values of {what} fit no axis of channels of the input shape {shape}")

    return Preprocessing(spread(numbers[0], "mean"), spread(numbers[1], "std"))


@dataclass(frozen=True, slots=True, eq=False)
class PixelBox:
    """All images between two, and what a model makes of them.

    Attributes:
        low, high: int64 in 0 … 255, of the input's shape.
        centre: an image between them.
    """

    low: IntegerArray
    high: IntegerArray
    centre: IntegerArray
    preprocessing: Preprocessing
    quantize: Quantizer

    def around(self, radius: int) -> PixelBox:
        """All images within an integer radius ≥ 0 of the centre, in pixel steps."""
        reach = min(radius, 255)
        return replace(self, low=np.clip(self.centre - reach, 0, 255), high=np.clip(self.centre + reach, 0, 255))

    def image(self) -> IntegerBox:
        """The least box that holds the codes of all images; where pixel steps skip codes, some of its codes are no image's."""
        return IntegerBox(self._codes(self.low), self._codes(self.high))

    def ends(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The least and greatest real inputs, of the input's shape."""
        low, high = self.preprocessing.apply(np.stack([self.low, self.high]))
        return low, high

    def gapless(self) -> bool:
        """Whether every code of the box is an image's."""
        images = [np.clip(pixel, self.low, self.high) for pixel in range(int(self.low.min()), int(self.high.max()) + 1)]
        return all(bool(np.all(self._codes(after) - self._codes(before) <= 1)) for before, after in pairwise(images))

    def distance(self, codes: IntegerArray) -> int:
        """Pixel steps from the centre to the nearest image with these codes, which some image must have."""
        return int(np.abs(self._nearest(codes) - self.centre).max(initial=0))

    def real_input(self, codes: IntegerArray) -> NDArray[np.float32]:
        """As the model reads it, the image with the codes nearest to these, equal where one has them, near the centre."""
        return self.preprocessing.apply(self._nearest(codes)[None])[0]

    def nearest(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Images, as the model reads them, near real inputs of shape (batch, *input shape)."""
        pixels = np.rint((x * self.preprocessing.std.astype(np.float64) + self.preprocessing.mean) * 255)
        return self.preprocessing.apply(np.clip(pixels, self.low, self.high))

    def holds(self, x: NDArray[np.float32]) -> bool:
        """Whether an input, as the model reads it, is an image of the box."""
        found = np.zeros(x.shape, dtype=bool)
        for pixel in range(int(self.low.min()), int(self.high.max()) + 1):
            found |= self.preprocessing.apply(np.clip(pixel, self.low, self.high)[None])[0] == x
        return bool(found.all())

    def _nearest(self, codes: IntegerArray) -> IntegerArray:
        best, least = self.centre, np.full(self.centre.shape, np.iinfo(np.int64).max)
        for pixel in range(int(self.low.min()), int(self.high.max()) + 1):
            image = np.clip(pixel, self.low, self.high)
            away = (np.abs(self._codes(image) - codes) << 9) + np.abs(image - self.centre)
            best, least = np.where(away < least, image, best), np.minimum(away, least)
        return best

    def _codes(self, image: IntegerArray) -> IntegerArray:
        return self.quantize(self.preprocessing.apply(image[None]))[0]
