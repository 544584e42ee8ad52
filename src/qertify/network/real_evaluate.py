"""Values of a real network: exactly, as rational numbers, and quickly, in float64. The exact ones are the trusted base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.errors import InvalidInputError
from qertify.network.linear import weighted_sum, windows
from qertify.network.nodes import Add, Max, Rearrange
from qertify.network.ranges import rearrange
from qertify.network.real import (
    RealAverage,
    RealConvolution,
    RealDense,
    RealInput,
    RealNetwork,
    RealScale,
    Relu,
)
from qertify.network.tensor import FloatArray

ObjectArray = NDArray[np.object_]


@dataclass(frozen=True, slots=True, eq=False)
class Rational:
    """A batch of rational tensors over one denominator: numbers · 2^−exponent / divisor.

    Attributes:
        numbers: Python integers, shape (batch, *node shape).
        divisor: positive.
    """

    numbers: ObjectArray
    exponent: int = 0
    divisor: int = 1

    @staticmethod
    def of(values: NDArray[Any]) -> Rational:
        """From floats, exactly, or from an object array of integers and fractions.

        Raises:
            InvalidInputError: NaN or infinity, or no numbers.
        """
        if values.dtype.kind == "f":
            if not np.all(np.isfinite(values)):
                raise InvalidInputError("an input is NaN or infinite")
            return _of_floats(values.astype(np.float64))
        try:
            fractions = [Fraction(value) for value in values.reshape(-1).tolist()]
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInputError("an input is not a finite number") from error
        divisor = lcm(*(value.denominator for value in fractions))
        numbers = np.empty(len(fractions), dtype=object)
        numbers[:] = [value.numerator * (divisor // value.denominator) for value in fractions]
        return Rational(numbers.reshape(values.shape), 0, divisor)

    def over(self, exponent: int, divisor: int) -> ObjectArray:
        """The numbers over a larger common denominator."""
        return np.asarray(self.numbers * ((divisor // self.divisor) << (exponent - self.exponent)), dtype=object)

    def reduced(self) -> Rational:
        """Without common factors of two."""
        together = int(np.bitwise_or.reduce(self.numbers.reshape(-1), initial=0))
        spare = (together & -together).bit_length() - 1
        if together == 0 or spare == 0:
            return self
        return Rational(self.numbers >> spare, self.exponent - spare, self.divisor)

    def fractions(self) -> list[Fraction]:
        """All numbers, flattened."""
        numerator, denominator = 1 << max(0, -self.exponent), self.divisor << max(0, self.exponent)
        return [Fraction(int(number) * numerator, denominator) for number in self.numbers.reshape(-1)]


def _exponents(values: FloatArray) -> tuple[int, int]:
    """(k, bits): all values are multiples of 2^−k, and below 2^(bits − k) in magnitude."""
    mantissa, exponent = np.frexp(values[values != 0])
    if not mantissa.size:
        return 0, 0
    whole = np.ldexp(np.abs(mantissa), 53).astype(np.int64)
    trailing = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    least = int((exponent - 53 + trailing).min())
    return -least, int(exponent.max()) - least


def _limbs(values: FloatArray, width: int) -> tuple[list[FloatArray], int]:
    """Float64 arrays of integers below 2^width in magnitude, and k: values = Σᵢ limbs[i] · 2^(width·i − k), exactly."""
    k, bits = _exponents(values)
    limbs, rest = [], values
    for index in reversed(range(-(-bits // width))):
        limb = np.trunc(np.ldexp(rest, k - width * index))
        rest = rest - np.ldexp(limb, width * index - k)
        limbs.append(limb)
    return limbs[::-1], k


def _joined(limbs: list[FloatArray], width: int, shape: tuple[int, ...]) -> ObjectArray:
    """Σᵢ limbs[i] · 2^(width·i) as Python integers."""
    total = np.full(shape, 0, dtype=object)
    for index, limb in enumerate(limbs):
        total = total + (limb.astype(np.int64).astype(object) << (width * index))
    return np.asarray(total, dtype=object)


def _of_floats(values: FloatArray) -> Rational:
    limbs, k = _limbs(values, 52)
    return Rational(_joined(limbs, 52, values.shape), k)


def _affine(node: RealDense | RealConvolution, inputs: list[Rational]) -> Rational:
    """Products of limbs in float64, so short that no sum of a row's products rounds: a row of n needs n · 2^(2·width) ≤ 2⁵³."""
    x = inputs[0]
    terms = node.weight[0].size
    width = (53 - terms.bit_length()) // 2
    weights, k = _limbs(node.weight, width)
    sign, magnitude = np.where(x.numbers < 0, -1.0, 1.0), np.abs(x.numbers)
    length = max((int(number).bit_length() for number in magnitude.reshape(-1)), default=0)
    digits = [
        ((magnitude >> (width * i)) & ((1 << width) - 1)).astype(np.float64) * sign for i in range(max(1, -(-length // width)))
    ]
    products: dict[int, NDArray[np.int64]] = {}
    for i, weight in enumerate(weights or [np.zeros_like(node.weight)]):
        for j, digit in enumerate(digits):
            part = weighted_sum(node, weight, digit).astype(np.int64)
            products[i + j] = products[i + j] + part if i + j in products else part
    total = sum((part.astype(object) << (width * place) for place, part in products.items()), start=0)
    summed = Rational(np.asarray(total, dtype=object), k + x.exponent, x.divisor)
    bias = node.bias if isinstance(node, RealDense) else node.bias[:, None, None]
    return _sum([summed, _of_floats(bias[None])])


def _sum(inputs: list[Rational]) -> Rational:
    exponent, divisor = max(x.exponent for x in inputs), lcm(*(x.divisor for x in inputs))
    numbers = sum((x.over(exponent, divisor) for x in inputs[1:]), start=inputs[0].over(exponent, divisor))
    return Rational(numbers, exponent, divisor).reduced()


def _average(node: RealAverage, inputs: list[Rational]) -> Rational:
    x = inputs[0]
    common = lcm(*(int(value) for value in node.divisor.reshape(-1)))
    numbers = weighted_sum(node, None, x.numbers) * (common // node.divisor.astype(object))
    twos = (common & -common).bit_length() - 1
    return Rational(numbers, x.exponent + twos, x.divisor * (common >> twos)).reduced()


def _scale(node: RealScale, inputs: list[Rational]) -> Rational:
    x, factor = inputs[0], _of_floats(node.factor)
    scaled = Rational(x.numbers * factor.numbers, x.exponent + factor.exponent, x.divisor)
    return _sum([scaled, _of_floats(np.broadcast_to(node.shift, x.numbers.shape))])


def _max(node: Max, inputs: list[Rational]) -> Rational:
    x = inputs[0]
    below = int(x.numbers.min()) - 1
    shifted = windows(x.numbers - below, node.window).max(axis=(-2, -1))  # positive, so that zero padding never wins
    return Rational(shifted + below, x.exponent, x.divisor)


def _rearranged(node: Rearrange, inputs: list[Rational]) -> Rational:
    exponent, divisor = max(x.exponent for x in inputs), lcm(*(x.divisor for x in inputs))
    return Rational(rearrange(node, [x.over(exponent, divisor) for x in inputs]), exponent, divisor)


EXACT_RULES: dict[type, Callable[[Any, list[Rational]], Rational]] = {
    RealDense: _affine,
    RealConvolution: _affine,
    RealAverage: _average,
    RealScale: _scale,
    Relu: lambda node, inputs: Rational(np.maximum(inputs[0].numbers, 0), inputs[0].exponent, inputs[0].divisor),
    Add: lambda node, inputs: _sum(inputs),
    Max: _max,
    Rearrange: _rearranged,
}
"""The meaning of each node kind, RealInput excepted."""


def _checked(network: RealNetwork, x: ArrayLike, axes: int) -> NDArray[Any]:
    array = np.asarray(x)
    if array.ndim != len(network.input_shape) + axes or array.shape[axes:] != network.input_shape:
        raise InvalidInputError(f"inputs of shape {array.shape[axes:]} given, but the network reads {network.input_shape}")
    return array


def evaluate_nodes_exactly(network: RealNetwork, x: ArrayLike) -> dict[str, Rational]:
    """The value of every node at one input, without rounding.

    Args:
        network: any real network.
        x: shape (*input shape): floats, or an object array of integers and `Fraction`.

    Returns:
        for each node name a `Rational` of shape (1, *node shape).

    Raises:
        InvalidInputError: another shape, NaN or infinity.
    """
    values = {network.input.name: Rational.of(_checked(network, x, 0)[None])}
    for node in network.nodes:
        if not isinstance(node, RealInput):
            values[node.name] = EXACT_RULES[type(node)](node, [values[name] for name in node.inputs])
    return values


def evaluate_exactly(network: RealNetwork, x: ArrayLike) -> list[Fraction]:
    """Outputs at one input, flattened, as exact rational numbers; see `evaluate_nodes_exactly`."""
    return evaluate_nodes_exactly(network, x)[network.output.name].fractions()


def _affine_float64(node: RealDense | RealConvolution, inputs: list[FloatArray]) -> FloatArray:
    bias = node.bias if isinstance(node, RealDense) else node.bias[:, None, None]
    return weighted_sum(node, node.weight, inputs[0]) + bias


FLOAT64_RULES: dict[type, Callable[[Any, list[FloatArray]], FloatArray]] = {
    RealDense: _affine_float64,
    RealConvolution: _affine_float64,
    RealAverage: lambda node, inputs: weighted_sum(node, None, inputs[0]) / node.divisor,
    RealScale: lambda node, inputs: inputs[0] * node.factor + node.shift,
    Relu: lambda node, inputs: np.maximum(inputs[0], 0.0),
    Add: lambda node, inputs: sum(inputs[1:], start=inputs[0]),
    Max: lambda node, inputs: windows(inputs[0], node.window, fill=-np.inf).max(axis=(-2, -1)),
    Rearrange: rearrange,
}
"""The same in float64; `real_error.float64_error` bounds what it rounds."""


def evaluate_nodes_float64(network: RealNetwork, x: ArrayLike) -> dict[str, FloatArray]:
    """The value of every node in float64.

    Args:
        network: any real network.
        x: shape (batch, *input shape).

    Returns:
        for each node name a float64 array of shape (batch, *node shape), near the exact values.

    Raises:
        InvalidInputError: another shape, or no numbers.
    """
    array = _checked(network, x, 1)
    if array.dtype.kind not in "fiu":
        raise InvalidInputError(f"inputs must be numbers, not {array.dtype}")
    values = {network.input.name: array.astype(np.float64)}
    for node in network.nodes:
        if not isinstance(node, RealInput):
            values[node.name] = FLOAT64_RULES[type(node)](node, [values[name] for name in node.inputs])
    return values


def evaluate_float64(network: RealNetwork, x: ArrayLike) -> FloatArray:
    """Outputs in float64, shape (batch, outputs), flattened; see `evaluate_nodes_float64`."""
    return evaluate_nodes_float64(network, x)[network.output.name].reshape(len(np.asarray(x)), -1)
