"""Bounds on float32 rounding hold for every order of summation, with and without fused operations; ranges hold all values."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from qertify.errors import InvalidInputError
from qertify.network.nodes import Add, Rearrange
from qertify.network.real import RealDense, RealInput, RealNetwork, RealScale, Relu, as_reals
from qertify.network.real_error import enclosures, float32_error, float64_error
from qertify.network.real_evaluate import evaluate_exactly, evaluate_nodes_exactly, evaluate_nodes_float64
from tests.unit.network.real_samples import every_real_kind, numbers

F = np.float32


def mlp(seed: int, *sizes: int) -> RealNetwork:
    generator = np.random.default_rng(seed)
    nodes: list = [RealInput("x", (sizes[0],))]
    for layer, (a, b) in enumerate(pairwise(sizes)):
        nodes.append(RealDense(f"z{layer}", (nodes[-1].name,), numbers(generator, b, a), numbers(generator, b)))
        if layer < len(sizes) - 2:
            nodes.append(Relu(f"y{layer}", (nodes[-1].name,)))
    return RealNetwork(tuple(nodes))


def in_float32(network: RealNetwork, x: NDArray[np.float32], order: str, generator: np.random.Generator) -> dict:
    """A float32 run with a summation order of its own."""
    values = {"x": x}
    for node in network.nodes[1:]:
        y = values[node.inputs[0]]
        if isinstance(node, Relu):
            values[node.name] = np.maximum(y, F(0))
            continue
        out = []
        for row, bias in zip(node.weight, node.bias, strict=True):
            weights = row.astype(F)
            if order == "fused":  # each step rounds once: a double holds the product exactly
                total = F(bias)
                for w, v in zip(weights, y, strict=True):
                    total = F(float(w) * float(v) + float(total))
                out.append(total)
                continue
            terms = [*(weights * y), F(bias)]
            if order == "shuffled":
                terms = [terms[i] for i in generator.permutation(len(terms))]
            if order == "descending":
                terms.sort(key=abs, reverse=True)
            while order == "pairs" and len(terms) > 1:
                terms = [*(F(a + b) for a, b in zip(terms[::2], terms[1::2], strict=False)), *terms[len(terms) // 2 * 2 :]]
            total = terms[0]
            for term in terms[1:]:
                total = F(total + term)
            out.append(total)
        values[node.name] = np.array(out, dtype=F)
    return values


@pytest.mark.parametrize("order", ["plain", "shuffled", "descending", "pairs", "fused"])
def test_every_order_of_summation(order: str) -> None:
    generator = np.random.default_rng(5)
    closest = 0.0
    for seed in range(6):
        network = mlp(seed, 30, 20, 10, 4)
        centre = numbers(generator, 30)
        low, high = (as_reals((centre + r).astype(F)) for r in (-0.1, 0.1))
        bound = float32_error(network, low, high)
        for _ in range(3):
            x = np.clip((low + generator.random(30) * (high - low)).astype(F), low, high).astype(F)
            computed = in_float32(network, x, order, generator)
            exact = evaluate_nodes_exactly(network, x)
            for name, limit in bound.items():
                for found, true, most in zip(computed[name], exact[name].fractions(), limit, strict=True):
                    difference = abs(Fraction(float(found)) - true)
                    assert difference <= Fraction(float(most))
                    closest = max(closest, float(difference) / max(float(most), 1e-300))
    assert closest > 1e-3  # the bound is no more than a thousand times what is seen somewhere


def test_a_sum_that_rounds_at_every_step_comes_near_the_bound() -> None:
    """1 + n terms just above half an ulp, summed one after the other, all rounded up."""
    terms = 300
    tiny = F(2.0**-24 * (1 + 2.0**-20))
    network = RealNetwork(
        (RealInput("x", (terms,)), RealDense("y", ("x",), as_reals(np.ones((1, terms))), as_reals(np.ones(1))))
    )
    x = np.full(terms, tiny)
    total = F(1)
    for value in x:
        total = F(total + value)
    difference = abs(Fraction(float(total)) - evaluate_exactly(network, x)[0])
    bound = float32_error(network, x, x)["y"][0]
    assert bound / 3 < difference <= bound


def test_constants_of_the_runtime() -> None:
    """The runtime may use any constants within their stated errors."""
    x = RealInput("x", (1,))
    errors = as_reals([0.25]), as_reals([0.5])
    network = RealNetwork((x, RealScale("y", ("x",), as_reals([2.0]), as_reals([1.0]), *errors)))
    bound = float32_error(network, [3.0], [3.0])["y"][0]
    assert bound >= abs((2.25 * 3 + 1.5) - (2 * 3 + 1))
    assert bound < 1.3
    assert float64_error(network, [3.0], [3.0])["y"][0] < 1e-13  # float64 values use the network's own


@pytest.mark.parametrize(("seed", "spread"), [(0, 0.0), (1, 4.0)])
def test_ranges_and_float64_values(seed: int, spread: float) -> None:
    network = every_real_kind(seed, spread)
    generator = np.random.default_rng(seed)
    centre = numbers(generator, *network.input_shape)
    low, high = centre - 0.25, centre + 0.5
    known = enclosures(network, low[None], high[None])
    error = float64_error(network, low, high)
    for corner in range(12):
        where = generator.random(centre.shape)
        x = np.where(where < 0.5, low, high) if corner % 2 else np.clip(low + where * (high - low), low, high)
        exact, quick = evaluate_nodes_exactly(network, x), evaluate_nodes_float64(network, x[None])
        for name, item in known.items():
            arrays = [a.reshape(-1) for a in (item.low, item.high, quick[name], error[name])]
            rows = zip(exact[name].fractions(), *arrays, strict=True)
            for true, least, greatest, value, most in rows:
                assert Fraction(least) <= true <= Fraction(greatest)
                assert abs(Fraction(value) - true) <= Fraction(most)
    assert float(error[network.output.name].max()) < 1e-6


def test_overflow_is_infinite() -> None:
    x = RealInput("x", (2,))
    big = RealNetwork((x, RealDense("y", ("x",), as_reals([[1e30, 1.0]]), as_reals([0.0])), Relu("z", ("y",))))
    assert np.isfinite(float32_error(big, [0, 0], [1e7, 1])["z"]).all()
    assert np.isinf(float32_error(big, [0, 0], [1e9, 1])["z"]).all()
    assert np.isfinite(float64_error(big, [0, 0], [1e9, 1])["z"]).all()
    after = RealNetwork((*big.nodes, RealDense("w", ("z",), as_reals([[0.0]]), as_reals([1.0]))))
    assert np.isinf(float32_error(after, [0, 0], [1e9, 1])["w"]).all()  # ∞ · 0 is NaN on the runtime


def test_underflow_to_zero() -> None:
    network = RealNetwork((RealInput("x", (1,)), RealDense("y", ("x",), as_reals([[2.0**-100]]), as_reals([0.0]))))
    assert float32_error(network, [2.0**-30], [2.0**-30])["y"][0] >= 2.0**-130  # flushed


def test_dead_units_pass_no_error_on() -> None:
    dense = RealDense("y", ("x",), as_reals([[1.0], [1.0]]), as_reals([-5.0, 5.0]))
    network = RealNetwork((RealInput("x", (1,)), dense, Relu("z", ("y",))))
    error = float32_error(network, [0.0], [1.0])["z"]
    assert error[0] == 0
    assert error[1] > 0


def test_a_constant_folded_into_a_long_sum() -> None:
    """A runtime may start the sum with a constant that the graph adds after it; then the constant passes all roundings."""
    terms = 200
    ones = as_reals(np.ones((1, terms)))
    nodes = (
        RealInput("x", (terms,)),
        RealDense("y", ("x",), ones, as_reals(np.zeros(1))),
        RealScale("z", ("y",), as_reals(np.ones(1)), as_reals(np.full(1, 1.0))),
    )
    x = np.full(terms, F(2.0**-24 * (1 + 2.0**-20)))
    total = F(1)
    for value in x:
        total = F(total + value)
    network = RealNetwork(nodes)
    assert abs(Fraction(float(total)) - evaluate_exactly(network, x)[0]) <= float32_error(network, x, x)["z"][0]
    joined = RealNetwork((*nodes[:2], Rearrange("p", ("x",), np.array([0])), Add("z", ("y", "p"))))
    assert float32_error(joined, x, x)["z"][0] > float32_error(joined, x, x)["y"][0]


def test_unusable_boxes() -> None:
    network = mlp(0, 2, 1)
    for low, high, text in (
        ([0.0], [1.0], "shape"),
        ([0.0, 2.0], [1.0, 1.0], "empty"),
        ([0.0, np.nan], [1.0, 1.0], "NaN"),
        ([0.0, 0.0], [1.0, np.inf], "NaN or infinite"),
    ):
        with pytest.raises(InvalidInputError, match=text):
            float32_error(network, low, high)
    with pytest.raises(InvalidInputError, match="negative"):
        float32_error(network, [0, 0], [1, 1], -1.0)
