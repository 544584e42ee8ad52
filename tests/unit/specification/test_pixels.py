"""Balls of pixels against their enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike

from qertify.errors import InvalidInputError
from qertify.network.tensor import IntegerArray
from qertify.specification.pixels import PixelBox, Preprocessing, preprocessing

SHAPE = (2, 1, 2)
CENTRE = np.array([0, 100, 130, 254]).reshape(SHAPE)


def quantizer(scale: float):
    def quantize(real: ArrayLike) -> IntegerArray:
        return np.clip(np.rint(np.asarray(real) / np.float32(scale)) + 3, 0, 255).astype(np.int64)

    return quantize


def prepare() -> Preprocessing:
    return preprocessing(SHAPE, [0.25, 0.5], [0.5, 0.7])


@pytest.mark.parametrize(("scale", "gapless"), [(0.02, True), (0.004, False)])
def test_the_image_is_that_of_every_pixel(scale: float, gapless: bool) -> None:
    ball = PixelBox(CENTRE, CENTRE, CENTRE, prepare(), quantizer(scale)).around(3)
    box = ball.image()
    every = [np.clip(CENTRE + step, 0, 255) for step in range(-3, 4)]
    codes = np.stack([quantizer(scale)(prepare().apply(image[None]))[0] for image in every])
    assert np.array_equal(box.low, codes.min(0))
    assert np.array_equal(box.high, codes.max(0))
    reached = [set(codes[:, i, 0, j].tolist()) for i in range(2) for j in range(2)]
    sizes = (box.high - box.low + 1).reshape(-1).tolist()
    assert all(len(have) == size for have, size in zip(reached, sizes, strict=True)) == gapless == ball.gapless()


@pytest.mark.parametrize("scale", [0.02, 0.004])
def test_real_inputs_are_those_of_the_nearest_image(scale: float) -> None:
    ball = PixelBox(CENTRE, CENTRE, CENTRE, prepare(), quantizer(scale)).around(5)
    generator = np.random.default_rng(0)
    for _ in range(20):
        image = generator.integers(ball.low, ball.high + 1)
        codes = quantizer(scale)(prepare().apply(image[None]))[0]
        real = ball.real_input(codes)
        assert np.array_equal(quantizer(scale)(real[None])[0], codes)
        assert ball.distance(codes) <= np.abs(image - CENTRE).max()
        nearest = [
            min(
                abs(p - c) for p in range(256) if quantizer(scale)(prepare().apply(np.full((1, *SHAPE), p)))[0][at] == codes[at]
            )
            for at, c in np.ndenumerate(CENTRE)
        ]
        assert ball.distance(codes) == max(nearest)


def test_channels_first_and_last() -> None:
    assert preprocessing((3, 4, 5), [1, 2, 3], [1]).mean.shape == (3, 1, 1)
    assert preprocessing((4, 5, 3), [1, 2, 3], [1]).mean.shape == (1, 1, 3)
    pixels = np.arange(3).reshape(1, 1, 1, 3)
    expected = (np.arange(3, dtype=np.float32) / np.float32(255) - np.float32([0.1, 0.2, 0.3])) / np.float32(0.3)
    assert np.array_equal(preprocessing((1, 1, 3), [0.1, 0.2, 0.3], [0.3]).apply(pixels).reshape(-1), expected)
    for mean, std in (([1, 2], [1]), ([0], [0]), ([0], [-1]), ([float("inf")], [1])):
        with pytest.raises(InvalidInputError):
            preprocessing((3, 4, 5), mean, std)
