"""How far a floating-point run of a real network may lie from its exact value, over a box of inputs.

The standard analysis of sums (Higham, "Accuracy and Stability of Numerical Algorithms", §3.1, §4.2): a value that passes
through at most n roundings of unit roundoff u is off by a factor within 1 ± γₙ, γₙ = n·u / (1 − n·u), whatever the order
of summation and whether multiplications are fused with additions or not. Each node adds γₙ times the largest magnitude of
what it sums to the error that it passes on from its inputs: by |weight| where it is linear; ReLU and maximum pass it on.

What a runtime is assumed to do: every number is a float32 (or float64), rounded to nearest, flushed to zero at will
where it is subnormal; a linear node's output is a sum of its products and its bias, in any order; constants of a scale or
an addition may be folded into the linear node before it, and each coefficient passes through at most `FOLDINGS` roundings
more there; `RealScale` says how far its constants lie from the runtime's. Not covered: reduced precision (TF32, bfloat16),
Winograd and FFT convolution. Where a sum may overflow, the error is infinite.

Everything here is float64 itself, and enlarged by more than float64 may have rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

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

FOLDINGS = 4
"""Roundings granted to a runtime that computes a coefficient from several constants of the file."""
_TINY = 2.0**-1000
"""More than float64 loses below its normal numbers in any sum here."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A floating-point arithmetic.

    Attributes:
        unit: unit roundoff.
        least, greatest: the smallest normal and the largest finite number.
        folds: whether a runtime's own constants may differ from the network's (`RealScale.factor_error`).
    """

    unit: float
    least: float
    greatest: float
    folds: bool

    def gamma(self, roundings: int) -> float:
        """γₙ, rounded up; infinite where n·u is no longer small."""
        total = roundings * self.unit
        return total / (1 - total) * (1 + 2.0**-50) if total < 0.25 else np.inf


FLOAT32 = Arithmetic(2.0**-24, 2.0**-126, float(np.finfo(np.float32).max), folds=True)
FLOAT64 = Arithmetic(2.0**-53, 2.0**-1022, float(np.finfo(np.float64).max), folds=False)


@dataclass(frozen=True, slots=True, eq=False)
class Enclosure:
    """What is known about one node over a batch of boxes.

    Attributes:
        low, high: float64, shape (batch, *node shape): the exact value lies in low … high.
        error: float64, same shape: bounds |computed − exact|.
        roundings: how many roundings a term has passed through that a runtime may sum together with later constants.
    """

    low: FloatArray
    high: FloatArray
    error: FloatArray
    roundings: int = 0

    @property
    def magnitude(self) -> FloatArray:
        """Bounds |exact|."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def _enlarged(values: FloatArray, terms: int) -> FloatArray:
    """An upper bound of a sum of at most ``terms`` nonnegative products computed in float64; NaN (of ∞ · 0) is infinite."""
    return np.where(np.isnan(values), np.inf, values * (1 + (terms + 16) * 2.0**-51) + _TINY)


def _enclosed(
    arithmetic: Arithmetic,
    middle: FloatArray,
    radius: FloatArray,
    passed: FloatArray,
    computed: FloatArray,
    terms: int,
    roundings: int,
    underflow: FloatArray | float,
) -> Enclosure:
    """A node that sums.

    Args:
        middle, radius: of the exact value, as float64 computed them from at most ``terms`` terms.
        passed: bounds the inputs' errors in the sum.
        computed: bounds the sum of the magnitudes of all terms as the runtime sees them.
        roundings: of each term.
        underflow: bounds what flushing to zero takes away.
    """
    largest = _enlarged(computed, terms)
    radius = _enlarged(radius, terms) + largest * ((terms + 16) * 2.0**-51)
    error = _enlarged(_enlarged(passed, terms) + arithmetic.gamma(roundings) * largest + underflow, 4)
    error = np.where(largest * 2 + error < arithmetic.greatest, error, np.inf)
    low, high = middle - radius, middle + radius
    low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    return Enclosure(np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high), error, roundings)


def _middle_radius(x: Enclosure) -> tuple[FloatArray, FloatArray]:
    middle = x.low / 2 + x.high / 2
    return middle, np.nextafter(np.maximum(x.high - middle, middle - x.low), np.inf)


def _linear(arithmetic: Arithmetic, node: RealDense | RealConvolution, inputs: list[Enclosure]) -> Enclosure:
    x, terms = inputs[0], node.weight[0].size + 1
    bias = node.bias if isinstance(node, RealDense) else node.bias[:, None, None]
    middle, radius = _middle_radius(x)
    absolute, seen = np.abs(node.weight), x.magnitude + x.error
    stacked = np.concatenate([radius, x.error, seen, np.ones_like(seen)])
    spread, passed, computed, weights = np.split(weighted_sum(node, absolute, stacked), 4)
    underflow = 8 * arithmetic.least * (terms + weights + weighted_sum(node, np.ones_like(absolute), seen))
    return _enclosed(
        arithmetic, weighted_sum(node, node.weight, middle) + bias, spread, passed, computed + np.abs(bias), terms,
        terms + FOLDINGS, underflow,
    )  # fmt: skip


def _average(arithmetic: Arithmetic, node: RealAverage, inputs: list[Enclosure]) -> Enclosure:
    x, terms = inputs[0], node.window.kernel[0] * node.window.kernel[1]
    middle, radius = _middle_radius(x)
    stacked = np.concatenate([middle, radius, x.error, x.magnitude + x.error])
    centre, spread, passed, computed = np.split(weighted_sum(node, None, stacked) / node.divisor, 4)
    # A runtime may divide the sum or each term, and overflow before it divides.
    whole = np.where(computed * node.divisor < arithmetic.greatest / 4, computed, np.inf)
    underflow = 8 * arithmetic.least * (terms + computed * node.divisor + 1)
    return _enclosed(arithmetic, centre, spread, passed, whole, terms + 1, terms + 1 + FOLDINGS, underflow)


def _scale(arithmetic: Arithmetic, node: RealScale, inputs: list[Enclosure]) -> Enclosure:
    x = inputs[0]
    middle, radius = _middle_radius(x)
    seen, factor, shift = x.magnitude + x.error, np.abs(node.factor), np.abs(node.shift)
    factor_error = node.factor_error * arithmetic.folds
    shift_error = node.shift_error * arithmetic.folds
    return _enclosed(
        arithmetic,
        middle * node.factor + node.shift,
        radius * factor,
        x.error * factor + factor_error * seen + shift_error,
        (factor + factor_error) * seen + shift + shift_error,
        2,
        x.roundings + 2 + FOLDINGS,
        8 * arithmetic.least * (2 + factor + seen),
    )


def _add(arithmetic: Arithmetic, node: Add, inputs: list[Enclosure]) -> Enclosure:
    middles, radii = zip(*(_middle_radius(x) for x in inputs), strict=True)
    return _enclosed(
        arithmetic,
        _total(middles),
        _total(radii),
        _total([x.error for x in inputs]),
        _total([x.magnitude + x.error for x in inputs]),
        len(inputs),
        sum(x.roundings for x in inputs) + len(inputs) + FOLDINGS,
        8 * arithmetic.least * len(inputs),
    )


def _total(values: Sequence[FloatArray]) -> FloatArray:
    return np.sum(np.stack(values), axis=0)


def _relu(arithmetic: Arithmetic, node: Relu, inputs: list[Enclosure]) -> Enclosure:
    x = inputs[0]
    dead = x.high + x.error < 0
    return Enclosure(np.maximum(x.low, 0.0), np.maximum(x.high, 0.0), np.where(dead, 0.0, x.error))


def _max(arithmetic: Arithmetic, node: Max, inputs: list[Enclosure]) -> Enclosure:
    x = inputs[0]
    low, high, error = (windows(values, node.window, fill=-np.inf).max(axis=(-2, -1)) for values in (x.low, x.high, x.error))
    return Enclosure(low, high, error)


def _rearranged(arithmetic: Arithmetic, node: Rearrange, inputs: list[Enclosure]) -> Enclosure:
    low, high, error = (rearrange(node, [getattr(x, side) for x in inputs]) for side in ("low", "high", "error"))
    return Enclosure(low, high, error, max(x.roundings for x in inputs))


RULES: dict[type, Callable[[Arithmetic, Any, list[Enclosure]], Enclosure]] = {
    RealDense: _linear,
    RealConvolution: _linear,
    RealAverage: _average,
    RealScale: _scale,
    Relu: _relu,
    Add: _add,
    Max: _max,
    Rearrange: _rearranged,
}
"""The interval and error rule of each node kind, RealInput excepted."""


def enclosures(
    network: RealNetwork, low: ArrayLike, high: ArrayLike, arithmetic: Arithmetic = FLOAT32, input_error: ArrayLike = 0.0
) -> dict[str, Enclosure]:
    """Exact ranges and rounding errors of every node.

    Args:
        network: any real network.
        low, high: shape (batch, *input shape), float64: a batch of boxes of exact inputs.
        arithmetic: that of the run whose error is bounded.
        input_error: bounds |input of the run − exact input|; zero where the run gets the exact input.

    Raises:
        InvalidInputError: another shape, an empty box, NaN or infinity, or a negative input error.
    """
    bounds = [np.array(bound, dtype=np.float64) for bound in (low, high)]
    for bound in bounds:
        if bound.ndim != len(network.input_shape) + 1 or bound.shape[1:] != network.input_shape:
            raise InvalidInputError(f"a box of shape {bound.shape[1:]} given, but the network reads {network.input_shape}")
    if bounds[0].shape != bounds[1].shape or not np.all(np.isfinite(bounds[0]) & np.isfinite(bounds[1])):
        raise InvalidInputError("the bounds of the box differ in shape, or one is NaN or infinite")
    if np.any(bounds[0] > bounds[1]):
        raise InvalidInputError("the region is empty: a lower bound exceeds its upper bound")
    error = np.array(np.broadcast_to(np.asarray(input_error, dtype=np.float64), bounds[0].shape))
    if not np.all(error >= 0):
        raise InvalidInputError("an input error is negative or NaN")
    known: dict[str, Enclosure] = {}
    with np.errstate(over="ignore", invalid="ignore"):  # overflow becomes infinity, which is a bound
        for node in network.nodes:
            if isinstance(node, RealInput):
                known[node.name] = Enclosure(bounds[0], bounds[1], error)
            else:
                known[node.name] = RULES[type(node)](arithmetic, node, [known[name] for name in node.inputs])
    return known


def _errors(
    network: RealNetwork, low: ArrayLike, high: ArrayLike, arithmetic: Arithmetic, input_error: ArrayLike
) -> dict[str, FloatArray]:
    found = enclosures(network, np.asarray(low)[None], np.asarray(high)[None], arithmetic, input_error)
    return {name: item.error[0] for name, item in found.items()}


def float32_error(network: RealNetwork, low: ArrayLike, high: ArrayLike, input_error: ArrayLike = 0.0) -> dict[str, FloatArray]:
    """A bound on |float32 run − exact value| of every node over the box low … high.

    Args:
        network: any real network.
        low, high: float64, shape (*input shape): every exact input.
        input_error: as `enclosures`; zero where the float32 run gets the exact input.

    Returns:
        for each node name, the output's among them, float64 of shape (*node shape); infinite where float32 may overflow.

    Raises:
        InvalidInputError: as `enclosures`.
    """
    return _errors(network, low, high, FLOAT32, input_error)


def float64_error(network: RealNetwork, low: ArrayLike, high: ArrayLike) -> dict[str, FloatArray]:
    """The same for `real_evaluate.evaluate_float64`."""
    return _errors(network, low, high, FLOAT64, 0.0)
