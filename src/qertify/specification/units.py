"""Radii and bounds as exact rationals, and what a unit means in levels of the quantized input."""

from __future__ import annotations

import re
from enum import Enum
from fractions import Fraction

from qertify.errors import InvalidInputError
from qertify.network.network import Network

_DECIMAL = re.compile(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,2})?|[+-]?\d{1,40}/\d{1,40}", re.ASCII)


class Unit(str, Enum):
    """What a radius of one means."""

    LEVELS = "levels"
    """One step of the quantized input."""
    REAL = "real"
    """One in the model's input domain, after dequantization."""
    PIXEL = "pixel"
    """One step of an 8-bit image, before preprocessing."""


def parse_rational(text: str, what: str) -> Fraction:
    """An exact number from text: ``3``, ``2/255``, ``0.03``, ``1e-3``.

    Args:
        text: at most 40 digits a part, so that no text is expensive.
        what: its name in messages.

    Raises:
        InvalidInputError: anything else, NaN and infinity included.
    """
    stripped = text.strip()
    if not _DECIMAL.fullmatch(stripped):
        raise InvalidInputError(f"{what} '{text}' is not a number like 3, 2/255 or 0.03")
    try:
        return Fraction(stripped)
    except ZeroDivisionError as error:
        raise InvalidInputError(f"{what} '{text}' divides by zero") from error


def radius_in_levels(network: Network, radius: Fraction, unit: Unit) -> Fraction:
    """A radius around an input code, in levels; its floor gives the same set of codes.

    Args:
        network: supplies the meaning of an input code; its centre is a code.
        radius: in ``unit``, ≥ 0.
        unit: "pixel" needs a network whose input codes are the pixels themselves.

    Raises:
        InvalidInputError: a negative radius, or a unit that has no exact meaning for this network.
    """
    if radius < 0:
        raise InvalidInputError(f"radius {radius} is negative")
    match unit:
        case Unit.LEVELS:
            return radius
        case Unit.REAL:
            if not network.input_quantization.per_tensor:
                raise InvalidInputError("a real radius needs one input scale; this network has one a channel")
            return radius / Fraction(float(network.input_quantization.scale[0]))
        case Unit.PIXEL:
            if network.runtime_profile != "fixed-point" or network.input.high < 255:
                raise InvalidInputError("a radius in pixels needs a network that reads 8-bit pixels; use levels")
            return radius
