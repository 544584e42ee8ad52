"""Exact radii."""

from __future__ import annotations

from fractions import Fraction

import pytest

from qertify.errors import InvalidInputError
from qertify.network.network import Network
from qertify.network.nodes import Dense, Input
from qertify.network.tensor import QuantizationParameters, as_integers
from qertify.specification.units import Unit, parse_rational, radius_in_levels


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", Fraction(3)),
        ("2/255", Fraction(2, 255)),
        ("0.03", Fraction(3, 100)),
        (".5", Fraction(1, 2)),
        ("1e-3", Fraction(1, 1000)),
        (" 4 ", Fraction(4)),
        ("-1", Fraction(-1)),
        ("9" * 40, Fraction(int("9" * 40))),
    ],
)
def test_numbers(text: str, value: Fraction) -> None:
    assert parse_rational(text, "radius") == value


@pytest.mark.parametrize(
    "text", ["", "nan", "inf", "-inf", "three", "1/0", "1/2/3", "0x10", "1_000", "1e999999999", "9" * 41, "1,5", "٣"]
)
def test_garbage(text: str) -> None:
    with pytest.raises(InvalidInputError, match="radius"):
        parse_rational(text, "radius")


def network(high: int, scale: object, profile: str = "fixed-point") -> Network:
    nodes = (Input("x", (1,), 0, high), Dense("y", ("x",), as_integers([[1], [2]]), as_integers([0, 0])))
    return Network(nodes, QuantizationParameters.of(scale), QuantizationParameters.of(1.0), profile)


def test_units() -> None:
    byte = network(255, 2.0**-8)
    assert radius_in_levels(byte, Fraction(3, 2), Unit.LEVELS) == Fraction(3, 2)
    assert radius_in_levels(byte, Fraction(3, 100), Unit.REAL) == Fraction(768, 100)
    assert radius_in_levels(byte, Fraction(1, 256), Unit.REAL) == 1  # exactly on the edge
    assert radius_in_levels(byte, Fraction(2), Unit.PIXEL) == 2


def test_units_without_an_exact_meaning() -> None:
    with pytest.raises(InvalidInputError, match="8-bit pixels"):
        radius_in_levels(network(15, 2.0**-4), Fraction(1), Unit.PIXEL)
    with pytest.raises(InvalidInputError, match="8-bit pixels"):
        radius_in_levels(network(255, 0.01, "onnxruntime"), Fraction(1), Unit.PIXEL)
    with pytest.raises(InvalidInputError, match="one a channel"):
        radius_in_levels(network(255, [0.1, 0.2]), Fraction(1), Unit.REAL)
    with pytest.raises(InvalidInputError, match="negative"):
        radius_in_levels(network(255, 1.0), Fraction(-1), Unit.LEVELS)
