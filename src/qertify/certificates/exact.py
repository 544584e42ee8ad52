"""Integer arrays that never wrap and never round: float64 products below 2⁵³, else int64 below 2⁶², else Python integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.network.tensor import IntegerArray

Integers = NDArray[Any]
"""int64, or Python integers (dtype object) where 64 bits may not do."""
WIDE = 1 << 62
FLOAT = 1 << 53
LAST = (1 << 63) - 1


def largest(values: Integers) -> int:
    """max |value|, a Python integer; 0 if there is none."""
    return max(abs(int(values.max())), abs(int(values.min()))) if values.size else 0


def fit(bound: int, *arrays: Integers) -> tuple[Integers, ...]:
    """The arrays in a type in which results up to ``bound`` don't wrap."""
    if bound < WIDE and all(array.dtype != object for array in arrays):
        return arrays
    return tuple(array.astype(object) for array in arrays)


def add(left: Integers, right: Integers) -> Integers:
    """left + right."""
    left, right = fit(largest(left) + largest(right), left, right)
    return left + right


def times(left: Integers, right: Integers) -> Integers:
    """left · right, element by element."""
    left, right = fit(largest(left) * largest(right), left, right)
    return left * right


def total(values: Integers) -> Integers:
    """The sum over the last axis."""
    (values,) = fit(largest(values) * max(1, values.shape[-1]), values)
    return values.sum(axis=-1)


def product(left: Integers, right: Integers) -> Integers:
    """left @ right, shapes (rows, k) and (k, columns)."""
    if not left.size or not right.size:
        return np.zeros((left.shape[0], right.shape[1]), dtype=np.int64)
    reach = largest(right) * right.shape[0]
    if reach < WIDE and right.dtype != object:
        reach = int(np.abs(right).sum(axis=0).max())
    bound = largest(left) * reach
    if bound < FLOAT:
        return (left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64)
    left, right = fit(bound, left, right)
    return left @ right


class Matrix:
    """A matrix that many products share; float64 as long as its entries fit, (rows, columns)."""

    def __init__(self, values: Integers) -> None:
        size = largest(values)
        self._reach = size * values.shape[0]
        if self._reach < WIDE:
            self._reach = int(np.abs(values).sum(axis=0).max()) if values.size else 0
        self._values: NDArray[Any] = values.astype(np.float64) if size < FLOAT else values
        self._integers = np.int64 if size < WIDE else object

    def after(self, left: Integers) -> Integers:
        """left @ matrix."""
        bound = largest(left) * self._reach
        if bound < FLOAT and self._values.dtype == np.float64:
            return (left.astype(np.float64) @ self._values).astype(np.int64)
        left, right = fit(bound, left, self._values.astype(self._integers))
        return left @ right

    @property
    def values(self) -> Integers:
        """The entries."""
        return self._values.astype(self._integers)


def narrow(values: Integers) -> IntegerArray:
    """As int64, numbers beyond ±(2⁶³ − 1) brought back there: what is a bound of 64-bit numbers stays one."""
    if values.dtype == object:
        values = np.clip(values, -LAST, LAST)
    return values.astype(np.int64)


def ceil_shift(values: Integers, bits: IntegerArray) -> Integers:
    """⌈values / 2^bits⌉."""
    shift = bits if values.dtype != object else bits.astype(object)
    return -((-values) >> shift)
