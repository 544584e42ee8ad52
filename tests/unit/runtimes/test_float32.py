"""Float32 helpers against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qertify.runtimes.float32 import fma, greatest_float32, least_float32, round_half_even

FLOATS = st.floats(width=32, min_value=-(2.0**40), max_value=2.0**40, allow_subnormal=False)


def nearest(exact: Fraction) -> np.float32:
    """The float32 next to an exact number, ties to even, without any intermediate rounding."""
    low, high = greatest_float32(exact), least_float32(exact)
    if low == high:
        return low
    below, above = exact - Fraction(float(low)), Fraction(float(high)) - exact
    if below != above:
        return low if below < above else high
    return low if low.view(np.int32) % 2 == 0 else high


@given(FLOATS, FLOATS, FLOATS)
def test_fma_rounds_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0 or abs(exact) > Fraction(1, 1 << 120):
        assert fma(a, b, c) == nearest(exact)


def test_fma_where_two_roundings_differ():
    """1 + 2⁻²⁴ + a hair: through float64 it falls on a tie and goes down, rounded once it goes up."""
    a, b, c = np.float32(1 + 2.0**-23), np.float32(2.0**-24), np.float32(1)
    tiny = np.float32(2.0**-60)
    assert fma(a, b, c) == np.float32(1 + 2.0**-23)
    double = np.float32(np.float64(1 + 2.0**-24) + np.float64(tiny) * np.float64(1))
    assert double == 1
    assert fma(tiny, np.float32(1), np.float32(1)) == 1
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=20000).astype(np.float32) for _ in range(2))
    z = -(x * y) + np.float32(1e-9)
    expected = [
        nearest(Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r)))
        for p, q, r in zip(x[:500], y[:500], z[:500], strict=True)
    ]
    assert np.array_equal(fma(x, y, z)[:500], np.array(expected))


@given(st.fractions(min_value=-(10**30), max_value=10**30))
def test_neighbours_enclose(bound):
    low, high = greatest_float32(bound), least_float32(bound)
    assert Fraction(float(low)) <= bound <= Fraction(float(high))
    assert high in (low, np.nextafter(low, np.float32(np.inf)))


def test_neighbours_at_the_ends():
    assert least_float32(Fraction(10) ** 50) == np.inf
    assert greatest_float32(-(Fraction(10) ** 50)) == -np.inf
    assert greatest_float32(Fraction(10) ** 50) == np.finfo(np.float32).max
    assert least_float32(Fraction(1, 10**60)) == np.float32(1e-45)


def test_ties_go_to_even():
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, np.inf, -np.inf], dtype=np.float32)
    assert round_half_even(x).tolist() == [-2, -2, 0, 0, 2, 2, 1 << 62, -(1 << 62)]
