"""Real networks: validation names the node, the digest sees every field, exact values are those of the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from qertify.errors import InvalidInputError, InvalidNetworkError
from qertify.network.nodes import Add, Rearrange, Window
from qertify.network.real import (
    RealAverage,
    RealConvolution,
    RealDense,
    RealInput,
    RealNetwork,
    RealScale,
    Relu,
    as_reals,
)
from qertify.network.real_evaluate import evaluate_exactly, evaluate_float64, evaluate_nodes_exactly
from tests.unit.network.real_samples import every_real_kind, meaning, numbers

X = RealInput("x", (2,))
ONE, TWO = as_reals(np.ones(1)), as_reals(np.ones(2))


def bumped(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        changed = np.array(value)
        changed.flat[-1] += 1
        return changed
    return replace(value, padding=(*value.padding[:3], value.padding[3] + 1)) if isinstance(value, Window) else value + 1


def test_digest_sees_every_field() -> None:
    network = every_real_kind()
    digests, changes = {network.digest, RealNetwork(network.nodes, {"format": "x"}).digest}, 2
    for node in network.nodes:
        for item in fields(node):
            value = getattr(node, item.name)
            if isinstance(value, np.ndarray):
                nodes = tuple(replace(n, **{item.name: bumped(value)}) if n is node else n for n in network.nodes)
                digests.add(RealNetwork(nodes).digest)
                changes += 1
    assert len(digests) == changes == 12
    assert RealNetwork(network.nodes).digest == network.digest


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (lambda: RealDense("n", ("x",), as_reals(np.ones((1, 3))), ONE), "does not fit input"),
        (lambda: RealDense("n", ("x",), as_reals(np.ones((2, 2))), ONE), "bias"),
        (lambda: RealDense("n", ("x",), np.full((1, 2), np.nan), ONE), "NaN"),
        (lambda: RealDense("n", ("x",), np.ones((1, 2), dtype=np.float32), ONE), "float64"),
        (lambda: RealScale("n", ("x",), as_reals(np.ones(3)), ONE), "do not fit"),
        (lambda: RealScale("n", ("x",), ONE, TWO, shift_error=as_reals(-np.ones(1))), "negative"),
        (lambda: RealConvolution("n", ("x",), as_reals(np.ones((1, 1, 1, 1))), ONE, Window((1, 1))), "channels"),
        (lambda: RealAverage("n", ("x",), Window((1, 1)), np.array([1])), "channels"),
        (lambda: Rearrange("n", ("x",), np.array([0, -1]), fill=1), "only zero"),
        (lambda: Rearrange("n", ("x",), np.array([2])), "outside"),
        (lambda: Add("n", ()), "at least one"),
        (lambda: Relu("n", ("x", "x")), "1 input"),
        (lambda: Relu("n", ("y",)), "no earlier node"),
    ],
)
def test_broken_nodes_are_named(node: Callable[[], Any], text: str) -> None:
    with pytest.raises(InvalidNetworkError, match=text) as found:
        RealNetwork((X, node()))
    assert found.value.node == "n"


def test_divisors_must_be_positive() -> None:
    x = RealInput("x", (1, 2, 2))
    for divisor in (np.array([[[0]]]), np.array([[[1.0]]]), np.ones((1, 3, 3), dtype=np.int64)):
        with pytest.raises(InvalidNetworkError, match="divisor"):
            RealNetwork((x, RealAverage("n", ("x",), Window((2, 2)), divisor)))


def test_reals_are_finite_floats() -> None:
    for bad in ([1], [np.nan], [np.inf], np.array([1.0], dtype=np.longdouble), ["a"]):
        with pytest.raises(InvalidNetworkError):
            as_reals(bad, "n")
    kept = as_reals(np.array([0.1], dtype=np.float32))
    assert Fraction(kept[0]) == Fraction(float(np.float32(0.1)))
    assert not kept.flags.writeable


@pytest.mark.parametrize(("seed", "spread"), [(0, 0.0), (1, 4.0), (2, 25.0)])
def test_exact_values_by_definition(seed: int, spread: float) -> None:
    network = every_real_kind(seed, spread)
    x = numbers(np.random.default_rng(seed + 10), *network.input_shape, spread=spread)
    exact = evaluate_exactly(network, x.astype(np.float32))
    assert exact == meaning(network, x)
    assert np.allclose(evaluate_float64(network, x[None])[0], [float(v) for v in exact], rtol=1e-9, atol=1e-9 * 2**spread)


def test_exact_values_at_fractions() -> None:
    network = every_real_kind(3)
    x = np.empty(network.input_shape, dtype=object)
    for place, index in enumerate(np.ndindex(*x.shape)):
        x[index] = Fraction(place - 30, place % 7 + 3)
    assert evaluate_exactly(network, x) == meaning(network, x)
    assert len(evaluate_nodes_exactly(network, x)) == len(network.nodes)


@pytest.mark.parametrize(
    ("weight", "value"),
    [
        (1e-45, 1e-45),  # the smallest float32
        (5e-324, 5e-324),  # the smallest float64
        (1.7e308, -1.7e308),
        (1.7e308, 5e-324),
        (0.0, 1.0),
        (1 / 3, 2 / 3),
        (-1.0, 2.0**60),
    ],
)
def test_products_of_any_size(weight: float, value: float) -> None:
    network = RealNetwork((RealInput("x", (3,)), RealDense("y", ("x",), as_reals([[weight, 1.0, -weight]]), as_reals([value]))))
    x = np.array([value, weight, 0.125])
    expected = Fraction(weight) * Fraction(value) + Fraction(weight) - Fraction(weight) / 8 + Fraction(value)
    assert evaluate_exactly(network, x) == [expected]


def test_long_rows_do_not_round() -> None:
    """The longest sums that a matrix product of limbs may take: every term at its largest."""
    for terms in (1, 2, 127, 128, 4095, 4096):
        weight = as_reals(np.full((1, terms), np.nextafter(2.0, 0)))
        network = RealNetwork((RealInput("x", (terms,)), RealDense("y", ("x",), weight, as_reals(np.zeros(1)))))
        assert evaluate_exactly(network, np.full(terms, np.nextafter(2.0, 0))) == [terms * Fraction(weight[0, 0]) ** 2]


def test_unusable_inputs() -> None:
    network = every_real_kind()
    shape = network.input_shape
    for bad in (np.zeros(3), np.full(shape, np.nan), np.full(shape, "a"), np.full(shape, None)):
        with pytest.raises(InvalidInputError):
            evaluate_exactly(network, bad)
    for bad in (np.zeros(shape), np.full((1, *shape), None)):
        with pytest.raises(InvalidInputError):
            evaluate_float64(network, bad)
