"""Real networks in fixed point: affine forms with integer coefficients and a slack that covers all that was rounded.

A value is known as value · 2^bits = form ± slack. Weights are rounded to integers; what the rounding costs is the
rounded part times how far the operand strays from its middle, since the middle's own share goes into the constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import frexp
from typing import Any

import numpy as np

from qertify.bounds.builder import SIZE_LIMIT, Builder, widen
from qertify.bounds.compile import rearranged
from qertify.errors import UnsupportedModelError
from qertify.network.linear import weighted_sum, windows
from qertify.network.nodes import Add, Convolution, Dense, Max, PoolSum, Rearrange
from qertify.network.real import RealAverage, RealConvolution, RealDense, RealInput, RealNode, RealScale, Relu
from qertify.network.tensor import FloatArray

WEIGHT_BITS = 15
"""Weights are rounded so that the largest of a node takes this many bits."""
VALUE_BITS = 16
"""Values of rectifiers take about this many bits."""
COMPACT_BITS = 32
"""Values that are to be weighted again take at most this many bits."""
SUM_BITS = 46
"""Sums take at most this many bits, even where the bias is much larger than what it is added to."""
EXACT_FORM = float(1 << 50)
"""Sums of products stay below this, so that float64 holds them exactly."""
ROUNDING = 1e-9
"""Far more than the relative error of any float64 sum made here; bounds computed in float64 are widened by it."""


@dataclass(frozen=True, slots=True, eq=False)
class RealForm:
    """value · 2^bits = form · (1, variables) ± slack, element by element.

    Attributes:
        form: integers, (rows, *shape). slack: integers ≥ 0, of the value's shape.
    """

    form: FloatArray
    slack: FloatArray
    bits: int

    def widened(self, rows: int) -> RealForm:
        return RealForm(widen(self.form, rows), self.slack, self.bits)

    def raised(self, bits: int) -> RealForm:
        """The same value with more fractional bits."""
        factor = float(2 ** (bits - self.bits))
        return RealForm(self.form * factor, self.slack * factor, bits)

    def flat(self) -> RealForm:
        """The elements in one axis."""
        return RealForm(self.form.reshape(self.form.shape[0], -1), self.slack.reshape(-1), self.bits)

    def range(self, builder: Builder) -> tuple[FloatArray, FloatArray]:
        """Least and greatest value · 2^bits, integers of the value's shape.

        Raises:
            UnsupportedModelError: sums too large for float64.
        """
        low, high = form_range(builder, self.form)
        return low - self.slack, high + self.slack

    def gross(self, builder: Builder) -> FloatArray:
        """A bound on Σ|coefficient|·|variable| and the slack, of the value's shape, up to rounding."""
        low, high = builder.variable_range()
        return np.tensordot(np.maximum(np.abs(low), np.abs(high)), np.abs(self.form), axes=1) + self.slack


def form_range(builder: Builder, form: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Least and greatest value of forms of shape (rows, *shape), exact integers.

    Raises:
        UnsupportedModelError: sums too large for float64.
    """
    low, high = builder.variable_range()
    flat = form.reshape(form.shape[0], -1)
    if flat.size and (np.maximum(np.abs(low), np.abs(high)) @ np.abs(flat)).max() >= EXACT_FORM:
        raise UnsupportedModelError("", "network", None, "sums of 2⁵⁰ or more in fixed point are not supported")
    positive, negative = np.maximum(flat, 0), np.minimum(flat, 0)
    return (
        (low @ positive + high @ negative).reshape(form.shape[1:]),
        (high @ positive + low @ negative).reshape(form.shape[1:]),
    )


def _fraction_bits(weight: FloatArray, wanted: int) -> int:
    """Fractional bits with which the greatest weight takes ``wanted`` bits."""
    greatest = float(np.abs(weight).max(initial=0.0))
    return wanted - frexp(greatest)[1] if greatest else wanted


def _ceil(bound: FloatArray) -> FloatArray:
    """An integer surely above a non-negative bound that was computed in float64."""
    return np.where(bound > 0, np.ceil(bound * (1 + ROUNDING) + ROUNDING), 0)


def _magnitude(builder: Builder, value: RealForm) -> int:
    """Bits of the largest sum in a form."""
    return frexp(float(value.gross(builder).max(initial=0.0)))[1]


def _with_bits(builder: Builder, value: RealForm, bits: int) -> RealForm:
    """The value with another number of fractional bits; fewer ones are rounded to, at the cost of slack."""
    if bits >= value.bits:
        return value.raised(bits)
    scale = 2.0 ** (bits - value.bits)
    least, greatest = builder.variable_range()
    scaled = value.form * scale
    rounded = np.round(scaled)
    lost = np.tensordot(np.maximum(np.abs(least), np.abs(greatest)), np.abs(scaled - rounded), axes=1)
    return RealForm(rounded, _ceil(value.slack * scale + lost), bits)


def compact(builder: Builder, value: RealForm, wanted: int = COMPACT_BITS) -> RealForm:
    """The value with fewer fractional bits where it has so many that products might not fit."""
    surplus = _magnitude(builder, value) - wanted
    return value if surplus <= 0 else _with_bits(builder, value, value.bits - surplus)


def _aligned(builder: Builder, values: list[RealForm]) -> list[RealForm]:
    """The values with one common number of fractional bits, as many as one of them has if the sums still fit."""
    room = min(value.bits + SUM_BITS - _magnitude(builder, value) for value in values)
    bits = min(max(value.bits for value in values), room)
    return [_with_bits(builder, value, bits) for value in values]


Apply = Callable[[FloatArray, FloatArray], FloatArray]
"""A linear map with a weight to be given: (weight, values of shape (batch, *shape)) → (batch, *output shape)."""


def _linear(builder: Builder, value: RealForm, weight: FloatArray, bias: FloatArray, apply: Apply) -> RealForm:
    """The form of a linear map of a value, plus a bias that broadcasts over the result."""
    value = compact(builder, value)
    low, high = value.range(builder)
    middle = np.round((low + high) / 2)
    half = np.maximum(high - middle, middle - low)
    size = (apply(np.abs(weight), value.gross(builder)[None])[0] * 2.0**-value.bits + np.abs(bias)).max()
    bits = min(_fraction_bits(weight, WEIGHT_BITS), SUM_BITS - frexp(float(size))[1] - value.bits)
    scaled = weight * 2.0**bits
    rounded = np.round(scaled)
    rest = scaled - rounded
    largest = np.abs(value.form).max(axis=0)
    if largest.size and apply(np.abs(rounded), largest[None]).max() >= EXACT_FORM:
        raise UnsupportedModelError("", "network", "weight", "coefficients of 2⁵⁰ or more in fixed point are not supported")
    form = apply(rounded, value.form)
    total = value.bits + bits
    constant = apply(rest, middle[None])[0] + bias * 2.0**total
    size = apply(np.abs(rest), np.abs(middle)[None])[0] + np.abs(bias * 2.0**total)
    form[0] += np.round(constant)
    lost = np.abs(constant - np.round(constant)) + size * ROUNDING
    lost += apply(np.abs(scaled), np.maximum(np.abs(low), np.abs(high))[None])[0] * 2.0**-50  # quotients as weights are rounded
    slack = apply(np.abs(scaled), value.slack[None])[0] + apply(np.abs(rest), half[None])[0] + lost
    return RealForm(form, _ceil(slack), total)


def _dense(builder: Builder, node: RealDense, value: RealForm) -> RealForm:
    proxy = Dense(node.name, node.inputs, np.zeros((0, 0), np.int64), np.zeros(0, np.int64))
    return _linear(builder, value, node.weight, node.bias, lambda weight, y: weighted_sum(proxy, weight, y))


def _convolution(builder: Builder, node: RealConvolution, value: RealForm) -> RealForm:
    zero = np.zeros(0, np.int64)
    proxy = Convolution(node.name, node.inputs, zero, zero, node.window, groups=node.groups)
    bias = node.bias[:, None, None]
    return _linear(builder, value, node.weight, bias, lambda weight, y: weighted_sum(proxy, weight, y))


def _average(builder: Builder, node: RealAverage, value: RealForm) -> RealForm:
    proxy = PoolSum(node.name, node.inputs, node.window)
    return _linear(builder, value, 1.0 / node.divisor, np.zeros(1), lambda weight, y: weighted_sum(proxy, None, y) * weight)


def _scale(builder: Builder, node: RealScale, value: RealForm) -> RealForm:
    return _linear(builder, value, node.factor, node.shift, lambda weight, y: weight * y)


def _add(builder: Builder, values: list[RealForm]) -> RealForm:
    aligned = _aligned(builder, values)
    return RealForm(np.sum([v.form for v in aligned], axis=0), np.sum([v.slack for v in aligned], axis=0), aligned[0].bits)


def _rearrange(builder: Builder, node: Rearrange, values: list[RealForm]) -> RealForm:
    aligned = _aligned(builder, values)
    slack = rearranged(node, [value.slack[None] for value in aligned])[0]
    return RealForm(rearranged(node, [value.form for value in aligned]), slack, aligned[0].bits)


def _max(builder: Builder, node: Max, value: RealForm) -> RealForm:
    """max(m, e) = m + max(e − m, 0), element after element of the window; the slack of the operands is that of the result."""
    shape = value.form.shape[1:]
    members = windows(np.arange(value.slack.size).reshape(1, *shape), node.window, fill=-1)[0]
    size, members = members.shape[:3], members.reshape(-1, members.shape[3] * members.shape[4])
    high = form_range(builder, value.form)[1].reshape(-1)
    order = np.argsort(np.where(members >= 0, -high[members], np.inf), axis=1, kind="stable")
    members = np.take_along_axis(members, order, axis=1)
    flat, slack = value.form.reshape(value.form.shape[0], -1), value.slack.reshape(-1)
    best = flat[:, members[:, 0]]
    for column in members[:, 1:].T:
        candidate = widen(flat[:, column], builder.rows)
        best = widen(best, builder.rows)
        down, up = form_range(builder, candidate - best)
        wins, open_ = (column >= 0) & (down >= 0), np.flatnonzero((column >= 0) & (down < 0) & (up > 0))
        difference = RealForm((candidate - best)[:, open_], np.zeros(open_.size), value.bits)
        gain = rectified(builder, node.name, difference, down[open_], up[open_])
        best = widen(np.where(wins, candidate, best), builder.rows)
        best[:, open_] += gain.raised(value.bits).form
    widest = np.where(members >= 0, slack[members], 0).max(axis=1)
    return RealForm(best.reshape(-1, *size), widest.reshape(size), value.bits)


def rectified(builder: Builder, name: str, value: RealForm, low: FloatArray, high: FloatArray) -> RealForm:
    """max(value, 0) of a value whose range is known: a unit for every element that can be positive.

    Args:
        low, high: of value · 2^bits, integers of the value's shape.
    """
    flat_low, flat_high = low.reshape(-1), high.reshape(-1)
    shift = max(0, frexp(float(flat_high.max(initial=0.0)))[1] - VALUE_BITS)
    divisor = float(2**shift)
    alive = np.flatnonzero(flat_high > 0)
    below = np.floor(flat_low[alive] / divisor) * divisor
    above = np.ceil(flat_high[alive] / divisor) * divisor
    form = value.form.reshape(value.form.shape[0], -1)[:, alive]
    rows = builder.add_rectifiers(
        name, alive, form, below.astype(np.int64), above.astype(np.int64), int(divisor), value.slack.reshape(-1)[alive]
    )
    result = np.zeros((builder.rows, flat_low.size))
    result[rows, alive] = 1.0
    return RealForm(result.reshape(builder.rows, *value.slack.shape), np.zeros(value.slack.shape), value.bits - shift)


RULES: dict[type, Callable[[Builder, Any, list[RealForm]], RealForm]] = {
    RealDense: lambda builder, node, values: _dense(builder, node, values[0]),
    RealConvolution: lambda builder, node, values: _convolution(builder, node, values[0]),
    RealAverage: lambda builder, node, values: _average(builder, node, values[0]),
    RealScale: lambda builder, node, values: _scale(builder, node, values[0]),
    Relu: lambda builder, node, values: rectified(builder, node.name, values[0], *values[0].range(builder)),
    Add: lambda builder, node, values: _add(builder, values),
    Max: lambda builder, node, values: _max(builder, node, values[0]),
    Rearrange: lambda builder, node, values: _rearrange(builder, node, values),
}
"""The form of each node kind, RealInput excepted."""


def real_form(builder: Builder, node: RealNode, inputs: list[RealForm], shape: tuple[int, ...]) -> RealForm:
    """The form of a node's value, from those of its inputs; the node's units join the builder.

    Raises:
        UnsupportedModelError: too many coefficients for dense matrices, or numbers too large.
    """
    assert not isinstance(node, RealInput)
    if builder.rows * int(np.prod(shape)) > SIZE_LIMIT:
        reason = f"{builder.rows} × {shape} coefficients are too many for dense matrices"
        raise UnsupportedModelError(node.name, type(node).__name__, None, reason)
    return RULES[type(node)](builder, node, [value.widened(builder.rows) for value in inputs])
