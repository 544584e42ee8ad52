"""IEEE float32 arithmetic as the runtimes use it, in numpy: exact conversions, fused multiply-add, neighbours of a rational."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.network.tensor import IntegerArray

Float32Array = NDArray[np.float32]


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> Float32Array:
    """a·b + c of float32 values with one rounding, to nearest even; broadcasts.

    The product is exact in float64. The sum is rounded to odd there, which leaves room for an innocuous second rounding
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
    """
    left, right, addend = (np.asarray(x, dtype=np.float32).astype(np.float64) for x in (a, b, c))
    product = left * right
    total = np.asarray(product + addend)
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    inexact_even = np.isfinite(total) & (error != 0) & (total.view(np.int64) % 2 == 0)
    towards = np.where(error > 0, np.inf, -np.inf)
    return np.where(inexact_even, np.nextafter(total, towards), total).astype(np.float32)


def round_half_even(x: Float32Array) -> IntegerArray:
    """The nearest integer, ties to even, of float32 values; ±2⁶² where |x| is larger (a clamp always follows)."""
    return np.clip(np.rint(x), np.float32(-(2.0**62)), np.float32(2.0**62)).astype(np.int64)


def is_normal(value: float) -> bool:
    """Whether a positive value is a normal float32: neither zero, subnormal, infinite nor NaN."""
    return bool(np.finfo(np.float32).tiny <= value <= np.finfo(np.float32).max)


def least_float32(bound: Fraction) -> np.float32:
    """The least float32 ≥ bound; +infinity if none is finite."""
    return -greatest_float32(-bound)


def greatest_float32(bound: Fraction) -> np.float32:
    """The greatest float32 ≤ bound; −infinity if none is finite."""
    largest = np.finfo(np.float32).max
    if bound >= Fraction(float(largest)):
        return largest
    if bound < -Fraction(float(largest)):
        return np.float32(-np.inf)
    with np.errstate(over="ignore"):
        nearest = np.float32(float(bound))
    if not np.isfinite(nearest):
        nearest = np.copysign(largest, nearest)
    while Fraction(float(nearest)) > bound:
        nearest = np.nextafter(nearest, np.float32(-np.inf))
    return nearest


def position(values: Float32Array) -> IntegerArray:
    """Where finite numbers stand among all float32 numbers, both zeros at 0."""
    bits = values.view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def at_position(positions: IntegerArray) -> Float32Array:
    """The inverse of `position`."""
    magnitude = np.abs(positions).astype(np.int32).view(np.float32)
    return np.where(positions < 0, -magnitude, magnitude)
