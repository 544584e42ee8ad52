"""Integer arithmetic that neither wraps nor rounds, against Python integers."""

from __future__ import annotations

import numpy as np
import pytest

from qertify.certificates.exact import Matrix, add, ceil_shift, largest, narrow, product, times, total


def big(generator: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    values = generator.integers(-(1 << bits), 1 << bits, size=shape, dtype=np.int64)
    values.flat[0] = (1 << bits) - 1
    return values


@pytest.mark.parametrize("bits", [3, 24, 25, 26, 29, 30, 31, 45, 61])
def test_products_are_exact_at_every_size(bits: int) -> None:
    generator = np.random.default_rng(bits)
    for _ in range(30):
        rows, inner, columns = (int(n) for n in generator.integers(1, 6, size=3))
        left, right = big(generator, (rows, inner), bits), big(generator, (inner, columns), bits)
        truth = left.astype(object) @ right.astype(object)
        assert (product(left, right) == truth).all()
        assert (Matrix(right).after(left) == truth).all()
        assert (Matrix(right).values == right).all()
        assert (times(left, left) == left.astype(object) * left.astype(object)).all()
        assert (add(left, left) == 2 * left.astype(object)).all()
        assert total(left).tolist() == left.astype(object).sum(axis=-1).tolist()


def test_products_with_python_integers() -> None:
    left, right = np.array([[1 << 80, -3]], dtype=object), np.array([[7], [1 << 70]], dtype=object)
    assert product(left, right)[0, 0] == 7 * (1 << 80) - 3 * (1 << 70)
    assert Matrix(right).after(left)[0, 0] == 7 * (1 << 80) - 3 * (1 << 70)


def test_nothing_is_zero() -> None:
    assert product(np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)).tolist() == [[0, 0, 0]] * 2
    assert Matrix(np.zeros((0, 3), dtype=np.int64)).after(np.zeros((2, 0), dtype=np.int64)).tolist() == [[0, 0, 0]] * 2
    assert largest(np.zeros(0, dtype=np.int64)) == 0


def test_the_least_integer_is_not_its_own_absolute_value() -> None:
    least = np.array([-(1 << 63)], dtype=np.int64)
    assert largest(least) == 1 << 63
    assert add(least, least)[0] == -(1 << 64)


def test_narrow_keeps_bounds() -> None:
    assert narrow(np.array([1 << 70, -(1 << 70), 5], dtype=object)).tolist() == [(1 << 63) - 1, 1 - (1 << 63), 5]


def test_shifts_round_up() -> None:
    values = np.array([7, 8, 9, -7, -8, -9])
    bits = np.full(6, 3, dtype=np.int64)
    assert ceil_shift(values, bits).tolist() == ceil_shift(values.astype(object), bits).tolist() == [1, 1, 2, 0, -1, -1]
