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
from qertify.network.nodes import Add, Max, Rearrange
from qertify.network.real import RealAverage, RealConvolution, RealDense, RealInput, RealNode, RealScale, Relu
from qertify.network.tensor import FloatArray, IntegerArray

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
class Extent:
    """How far a value reaches, in units of 2^−bits, element by element; integers but for ``gross``.

    Attributes:
        low, high: least and greatest value. slack: by how much the value may differ from what is computed.
        gross: a bound on Σ|coefficient|·|variable| and the slack, up to rounding.
    """

    low: FloatArray
    high: FloatArray
    slack: FloatArray
    gross: FloatArray
    bits: int


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
        """As in `Extent`."""
        low, high = builder.variable_range()
        return np.tensordot(np.maximum(np.abs(low), np.abs(high)), np.abs(self.form), axes=1) + self.slack

    def extent(self, builder: Builder) -> Extent:
        return Extent(*self.range(builder), self.slack, self.gross(builder), self.bits)


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


def with_bits(builder: Builder, value: RealForm, bits: int) -> RealForm:
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
    return value if surplus <= 0 else with_bits(builder, value, value.bits - surplus)


def _aligned(builder: Builder, values: list[RealForm]) -> list[RealForm]:
    """The values with one common number of fractional bits, as many as one of them has if the sums still fit."""
    room = min(value.bits + SUM_BITS - _magnitude(builder, value) for value in values)
    bits = min(max(value.bits for value in values), room)
    return [with_bits(builder, value, bits) for value in values]


RealMap = RealDense | RealConvolution | RealAverage | RealScale


def weight_and_bias(node: RealMap) -> tuple[FloatArray, FloatArray]:
    """Both of an affine node; the bias broadcasts over the value."""
    match node:
        case RealDense():
            return node.weight, node.bias
        case RealConvolution():
            return node.weight, node.bias[:, None, None]
        case RealAverage():
            return 1.0 / node.divisor, np.zeros(1)
        case RealScale():
            return node.factor, node.shift


def applied(node: RealMap, weight: FloatArray, y: FloatArray) -> FloatArray:
    """The node's linear map with another weight, (batch, *shape) → (batch, *output shape)."""
    match node:
        case RealDense() | RealConvolution():
            return weighted_sum(node, weight, y)
        case RealAverage():
            return weighted_sum(node, None, y) * weight
        case RealScale():
            return weight * y


@dataclass(frozen=True, slots=True, eq=False)
class RoundedMap:
    """An affine node in fixed point: value · 2^bits = weight · operand + constant ± slack, all integers.

    Attributes:
        weight: shaped as the node's. constant, slack: of the value's shape.
    """

    weight: FloatArray
    constant: FloatArray
    slack: FloatArray
    bits: int


def rounded_map(node: RealMap, value: Extent) -> RoundedMap:
    """Round an affine node whose operand lies in ``value``."""
    weight, bias = weight_and_bias(node)
    middle = np.round((value.low + value.high) / 2)
    half = np.maximum(value.high - middle, middle - value.low)
    size = (applied(node, np.abs(weight), value.gross[None])[0] * 2.0**-value.bits + np.abs(bias)).max()
    bits = min(_fraction_bits(weight, WEIGHT_BITS), SUM_BITS - frexp(float(size))[1] - value.bits)
    scaled = weight * 2.0**bits
    rounded = np.round(scaled)
    rest = scaled - rounded
    total = value.bits + bits
    exact = applied(node, rest, middle[None])[0] + bias * 2.0**total
    constant = np.round(exact)
    size = applied(node, np.abs(rest), np.abs(middle)[None])[0] + np.abs(bias * 2.0**total)
    lost = np.abs(exact - constant) + size * ROUNDING
    largest = np.maximum(np.abs(value.low), np.abs(value.high))
    lost += applied(node, np.abs(scaled), largest[None])[0] * 2.0**-50  # quotients as weights are rounded
    slack = applied(node, np.abs(scaled), value.slack[None])[0] + applied(node, np.abs(rest), half[None])[0] + lost
    return RoundedMap(rounded, constant, _ceil(slack), total)


def _affine(builder: Builder, node: RealMap, value: RealForm) -> RealForm:
    value = compact(builder, value)
    found = rounded_map(node, value.extent(builder))
    largest = np.abs(value.form).max(axis=0)
    if largest.size and applied(node, np.abs(found.weight), largest[None]).max() >= EXACT_FORM:
        raise UnsupportedModelError(
            node.name, type(node).__name__, "weight", "coefficients of 2⁵⁰ or more in fixed point are not supported"
        )
    form = applied(node, found.weight, value.form)
    form[0] += found.constant
    return RealForm(form, found.slack, found.bits)


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


@dataclass(frozen=True, slots=True, eq=False)
class RectifierEnds:
    """Rectifiers max(z, 0) / 2^shift: positions of those that can be positive, and ranges of their z, multiples of 2^shift."""

    alive: IntegerArray
    low: IntegerArray
    high: IntegerArray
    shift: int


def rectifier_ends(low: FloatArray, high: FloatArray, shift: int | None = None) -> RectifierEnds:
    """The rectifiers of accumulators in low … high, integers; without a shift, values get `VALUE_BITS`."""
    low, high = low.reshape(-1), high.reshape(-1)
    shift = max(0, frexp(float(high.max(initial=0.0)))[1] - VALUE_BITS) if shift is None else shift
    divisor = float(2**shift)
    alive = np.flatnonzero(high > 0)
    below, above = np.floor(low[alive] / divisor) * divisor, np.ceil(high[alive] / divisor) * divisor
    return RectifierEnds(alive, below.astype(np.int64), above.astype(np.int64), shift)


def rectified(builder: Builder, name: str, value: RealForm, low: FloatArray, high: FloatArray) -> RealForm:
    """max(value, 0) of a value whose range is known: a unit for every element that can be positive.

    Args:
        low, high: of value · 2^bits, integers of the value's shape.
    """
    ends = rectifier_ends(low, high)
    alive = ends.alive
    form = value.form.reshape(value.form.shape[0], -1)[:, alive]
    rows = builder.add_rectifiers(name, alive, form, ends.low, ends.high, 1 << ends.shift, value.slack.reshape(-1)[alive])
    result = np.zeros((builder.rows, low.size))
    result[rows, alive] = 1.0
    return RealForm(result.reshape(builder.rows, *value.slack.shape), np.zeros(value.slack.shape), value.bits - ends.shift)


RULES: dict[type, Callable[[Builder, Any, list[RealForm]], RealForm]] = {
    RealDense: lambda builder, node, values: _affine(builder, node, values[0]),
    RealConvolution: lambda builder, node, values: _affine(builder, node, values[0]),
    RealAverage: lambda builder, node, values: _affine(builder, node, values[0]),
    RealScale: lambda builder, node, values: _affine(builder, node, values[0]),
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
