"""Input codes as pictures, where the input is one."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from qertify.campaign.report.png import encode
from qertify.network.tensor import IntegerArray

LEAST_PIXELS = 49
"""A flat input of fewer entries is not taken for an image, even if a square."""
LEAST_SIDE = 4
GAP = 10
"""Screen pixels between two pictures."""
UP, DOWN = (196, 50, 20), (28, 90, 184)
"""Colours of the largest change."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Layout:
    """How an input is an image.

    Attributes:
        height, width: in pixels.
        channels: 1 or 3.
        channels_last: whether they are the last axis; else the first.
    """

    height: int
    width: int
    channels: int = 1
    channels_last: bool = False

    def grid(self, codes: IntegerArray) -> IntegerArray:
        """Codes in any shape as (height, width, channels)."""
        if self.channels_last:
            return codes.reshape(self.height, self.width, self.channels)
        return codes.reshape(self.channels, self.height, self.width).transpose(1, 2, 0)


def layout_of(shape: tuple[int, ...]) -> Layout | None:
    """The image that an input shape is: a flat square, (height, width), or one with 1 or 3 channels; None if it is none."""
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    match shape:
        case (count,) if count >= LEAST_PIXELS and isqrt(count) ** 2 == count:
            return Layout(isqrt(count), isqrt(count))
        case (1, count) if count >= LEAST_PIXELS and isqrt(count) ** 2 == count:
            return Layout(isqrt(count), isqrt(count))
        case (height, width) if min(height, width) >= LEAST_SIDE:
            return Layout(height, width)
        case (1 | 3 as channels, height, width) if min(height, width) >= LEAST_SIDE:
            return Layout(height, width, channels)
        case (height, width, 1 | 3 as channels) if min(height, width) >= LEAST_SIDE:
            return Layout(height, width, channels, channels_last=True)
        case _:
            return None


def picture(codes: IntegerArray, layout: Layout, low: int, high: int) -> Pixels:
    """RGB of an input, its lowest code black and its highest one white."""
    grey = (layout.grid(codes) - low) * 255 // max(high - low, 1)
    return np.broadcast_to(grey, (layout.height, layout.width, 3)).clip(0, 255).astype(np.uint8)


def difference(original: IntegerArray, changed: IntegerArray, layout: Layout) -> Pixels:
    """RGB of a change, its largest entry at full strength: white where none, red up, blue down."""
    change = layout.grid(changed.reshape(-1) - original.reshape(-1))
    strength = np.abs(change) * 255 // max(int(np.abs(change).max(initial=0)), 1)
    if layout.channels == 3:
        return (128 + np.sign(change) * strength // 2).clip(0, 255).astype(np.uint8)
    strong = np.where(change > 0, np.array(UP), np.array(DOWN))
    return (255 - (255 - strong) * strength // 255).astype(np.uint8)


def data_uri(pixels: Pixels) -> str:
    """For the ``src`` of an image."""
    return "data:image/png;base64," + base64.b64encode(encode(pixels)).decode()


def triptych(panels: list[Pixels], zoom: int) -> bytes:
    """A PNG of pictures of one height, side by side, each pixel ``zoom`` screen pixels wide."""
    large = [panel.repeat(zoom, axis=0).repeat(zoom, axis=1) for panel in panels]
    gap = np.full((large[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    parts = [part for panel in large for part in (gap, panel)][1:]
    return encode(np.concatenate(parts, axis=1))
