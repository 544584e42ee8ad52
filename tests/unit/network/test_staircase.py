"""Thresholds against the written definitions, by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from qertify.errors import InvalidNetworkError
from qertify.network.staircase import Rounding, Steps, shift_steps, steps_from_function
from qertify.network.tensor import as_integers

DEFINITIONS: dict[Rounding, Callable[[Fraction], int]] = {
    Rounding.FLOOR: math.floor,
    Rounding.HALF_TOWARD_POSITIVE: lambda x: math.floor(x + Fraction(1, 2)),
    Rounding.HALF_TOWARD_NEGATIVE: lambda x: math.ceil(x - Fraction(1, 2)),
    Rounding.HALF_AWAY_FROM_ZERO: lambda x: (1 if x >= 0 else -1) * math.floor(abs(x) + Fraction(1, 2)),
    Rounding.HALF_EVEN: round,
}


def test_every_rounding_has_a_definition() -> None:
    assert set(DEFINITIONS) == set(Rounding)


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("denominator", [1, 2, 3, 4, 7, 8, 10])
def test_divide_is_its_definition(rounding: Rounding, denominator: int) -> None:
    numerators = np.arange(-50, 51)
    expected = [DEFINITIONS[rounding](Fraction(int(n), denominator)) for n in numerators]
    assert rounding.divide(numerators, denominator).tolist() == expected


def test_roundings_differ_from_each_other() -> None:
    quarters = np.arange(-8, 9)
    assert len({tuple(rounding.divide(quarters, 4).tolist()) for rounding in Rounding}) == len(Rounding)


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("shift", [0, 1, 2, 3, 5])
@pytest.mark.parametrize(("low", "high"), [(0, 7), (-4, 3), (-1, 0), (2, 9)])
def test_shift_steps_by_brute_force(rounding: Rounding, shift: int, low: int, high: int) -> None:
    steps = shift_steps(shift, rounding, low, high)
    z = np.arange(-400, 401)
    expected = [min(max(DEFINITIONS[rounding](Fraction(int(v), 1 << shift)), low), high) for v in z]
    assert steps.value(0, z).tolist() == expected
    for value in range(low + 1, high + 1):
        threshold = steps.threshold(0, value)
        assert steps.value(0, np.array([threshold - 1, threshold])).tolist()[1] >= value
        assert steps.value(0, np.array([threshold - 1])).item() < value


def test_uneven_rows_from_a_function() -> None:
    multipliers = np.array([[3], [5], [0]])

    def function(z: np.ndarray) -> np.ndarray:
        return Rounding.HALF_EVEN.divide(z * multipliers, 16)

    steps = steps_from_function(function, 3, -3, 4, limit=1 << 12)
    z = np.arange(-100, 101)
    for row in range(3):
        expected = np.clip(function(np.broadcast_to(z, (3, len(z))))[row], -3, 4)
        assert np.array_equal(steps.value(row, z), expected)
    assert steps.thresholds[2].tolist() == [-4096, -4096, -4096, 4096, 4096, 4096, 4096]  # always or never reached


def test_one_value_has_no_threshold() -> None:
    steps = shift_steps(1, Rounding.FLOOR, 3, 3)
    assert steps.high == steps.low == 3
    assert steps.value(0, np.array([-100, 0, 100])).tolist() == [3, 3, 3]


def test_bad_steps_are_rejected() -> None:
    with pytest.raises(InvalidNetworkError, match="must not decrease"):
        Steps(as_integers([[3, 2]]), 0)
    with pytest.raises(InvalidNetworkError, match="shape"):
        Steps(as_integers([1, 2]), 0)
    with pytest.raises(ValueError, match="shift"):
        shift_steps(41, Rounding.FLOOR, 0, 1)
    with pytest.raises(ValueError, match="positive"):
        Rounding.FLOOR.divide(np.array([1]), 0)
