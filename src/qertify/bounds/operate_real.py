"""Real networks as operators in fixed point: the counterpart of `fixed_point`, whose rounding it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import frexp
from typing import Any

import numpy as np
import torch

from qertify.bounds.fixed_point import (
    COMPACT_BITS,
    SUM_BITS,
    Extent,
    RealMap,
    RoundedMap,
    applied,
    rectifier_ends,
    rounded_map,
)
from qertify.bounds.operate import max_operator
from qertify.bounds.operator_builder import OperatorBuilder, coefficients
from qertify.bounds.operators import AddOperator, Errors, LinearOperator, PickOperator, SlopeOperator, UnitsOperator
from qertify.bounds.program import Unit
from qertify.network.linear import windows
from qertify.network.nodes import Add, Max, Rearrange, Window
from qertify.network.real import RealAverage, RealConvolution, RealDense, RealInput, RealNode, RealScale, Relu
from qertify.network.tensor import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A value that an operator computes, in units of 2^−bits."""

    name: str
    extent: Extent

    @property
    def slack(self) -> FloatArray:
        return self.extent.slack

    @property
    def bits(self) -> int:
        return self.extent.bits

    @property
    def size(self) -> int:
        return self.extent.slack.size

    @property
    def computed(self) -> tuple[FloatArray, FloatArray]:
        """Least and greatest value of what is computed, flat: without the slack."""
        extent = self.extent
        return (extent.low + extent.slack).reshape(-1), (extent.high - extent.slack).reshape(-1)


def constant(values: FloatArray) -> Errors:
    """A constant for each element, and no errors."""
    return Errors(coefficients(values.reshape(-1)), torch.zeros(0, dtype=torch.long), 0)


def scaled(builder: OperatorBuilder, name: str, value: Named, factor: float, shift: FloatArray | float = 0.0) -> Named:
    """factor · value + shift, all integers."""
    slopes = coefficients(np.full(value.size, factor))
    extent = value.extent
    shifts = np.broadcast_to(shift, extent.slack.shape)
    builder.steps.append(SlopeOperator(name, (value.name,), (slopes,), constant(shifts)))
    low, high, slack = extent.low * factor + shifts, extent.high * factor + shifts, extent.slack * factor
    return Named(name, Extent(low, high, slack, extent.gross * factor + np.abs(shifts), extent.bits))


def _with_bits(builder: OperatorBuilder, name: str, value: Named, bits: int) -> Named:
    """The value with another number of fractional bits; for fewer ones, a unit takes each element's place."""
    if bits == value.bits:
        return value
    if bits > value.bits:
        raised = scaled(builder, name, value, 2.0 ** (bits - value.bits))
        return Named(name, replace(raised.extent, bits=bits))
    divisor = 2.0 ** (value.bits - bits)
    start = np.floor(value.extent.low / divisor) - 1
    lifted = scaled(builder, f"{name}/lifted", value, 1.0, -start * divisor)
    divided = rectified(builder, f"{name}/divided", lifted, lifted.extent.low, lifted.extent.high, value.bits - bits)
    return scaled(builder, name, divided, 1.0, start)


def compact(builder: OperatorBuilder, name: str, value: Named, wanted: int = COMPACT_BITS) -> Named:
    """The value with fewer fractional bits where it has so many that products might not fit."""
    surplus = frexp(float(value.extent.gross.max(initial=0.0)))[1] - wanted
    return value if surplus <= 0 else _with_bits(builder, name, value, value.bits - surplus)


def _aligned(builder: OperatorBuilder, name: str, values: list[Named]) -> list[Named]:
    """The values with one common number of fractional bits, as many as one of them has if the sums still fit."""
    room = min(value.bits + SUM_BITS - frexp(float(value.extent.gross.max(initial=0.0)))[1] for value in values)
    bits = min(max(value.bits for value in values), room)
    return [_with_bits(builder, f"{name}/{place}", value, bits) for place, value in enumerate(values)]


def _affine(builder: OperatorBuilder, name: str, node: RealMap, values: list[Named]) -> Named:
    value = compact(builder, f"{name}/operand", values[0])
    extent = value.extent
    found = rounded_map(node, extent)
    before, after = extent.slack.shape, found.slack.shape
    match node:
        case RealDense() | RealConvolution():
            weight, bias = coefficients(found.weight), coefficients(found.constant.reshape(-1))
            builder.steps.append(LinearOperator(name, value.name, node, weight, bias, _zero(), before, after))
        case RealAverage():
            ones, nothing = np.ones((before[0], 1, *node.window.kernel)), coefficients(np.zeros(found.slack.size))
            step = LinearOperator(f"{name}/sum", value.name, node, coefficients(ones), nothing, _zero(), before, after)
            builder.steps += [step, _slope(name, step.name, found, after)]
        case RealScale():
            builder.steps.append(_slope(name, value.name, found, after))
    positive, negative = np.maximum(found.weight, 0), np.minimum(found.weight, 0)
    low, high, gross = (end[None] for end in (extent.low, extent.high, extent.gross))
    least = applied(node, positive, low)[0] + applied(node, negative, high)[0] + found.constant - found.slack
    greatest = applied(node, positive, high)[0] + applied(node, negative, low)[0] + found.constant + found.slack
    size = applied(node, np.abs(found.weight), gross)[0] + np.abs(found.constant) + found.slack
    return Named(name, Extent(least, greatest, found.slack, size, found.bits))


def _zero() -> Any:
    return coefficients(np.zeros(1))


def _slope(name: str, source: str, found: RoundedMap, shape: tuple[int, ...]) -> SlopeOperator:
    slopes = coefficients(np.broadcast_to(found.weight, shape).reshape(-1))
    return SlopeOperator(name, (source,), (slopes,), constant(found.constant))


def _add(builder: OperatorBuilder, name: str, _node: Add, values: list[Named]) -> Named:
    parts = _aligned(builder, name, values)
    builder.steps.append(AddOperator(name, tuple(part.name for part in parts)))
    low, high, slack, gross = (
        np.sum([getattr(part.extent, field) for part in parts], axis=0) for field in ("low", "high", "slack", "gross")
    )
    return Named(name, Extent(low, high, slack, gross, parts[0].bits))


def _rearrange(builder: OperatorBuilder, name: str, node: Rearrange, values: list[Named]) -> Named:
    parts = _aligned(builder, name, values)
    sizes = tuple(part.size for part in parts)
    index = np.where(node.indices < 0, sum(sizes), node.indices).reshape(-1)
    names = tuple(part.name for part in parts)
    builder.steps.append(PickOperator(name, names, sizes, torch.from_numpy(index), _zero()))

    def picked(field: str) -> FloatArray:
        flat = np.concatenate([*(getattr(part.extent, field).reshape(-1) for part in parts), np.zeros(1)])
        return flat[index].reshape(node.indices.shape)

    return Named(name, Extent(picked("low"), picked("high"), picked("slack"), picked("gross"), parts[0].bits))


def _max(builder: OperatorBuilder, name: str, node: Max, values: list[Named]) -> Named:
    (value,) = values
    extent = value.extent
    image = extent.slack.shape

    def add_units(down: FloatArray, up: FloatArray) -> int:
        return builder.add_units([Unit("", -1)] * up.size, (down, up), (np.zeros_like(up), up), divisor=1.0)

    builder.steps.append(max_operator(name, (value.name,), node.window, image, value.computed, add_units))
    low, high, slack, gross = (_greatest(node.window, getattr(extent, field)) for field in ("low", "high", "slack", "gross"))
    return Named(name, Extent(low - slack, high + slack, slack, gross, extent.bits))


def _greatest(window: Window, image: FloatArray) -> FloatArray:
    return windows(image[None], window, fill=-np.inf).max(axis=(-2, -1))[0]


def rectified(
    builder: OperatorBuilder, name: str, value: Named, low: FloatArray, high: FloatArray, shift: int | None = None
) -> Named:
    """max(value, 0), where value · 2^bits lies in low … high: a unit for every element that can be positive.

    Args:
        shift: how many fractional bits the result has less; None for as many as it can do without.
    """
    ends = rectifier_ends(low, high, shift)
    divisor, shape = float(1 << ends.shift), value.slack.shape
    above = ends.high / divisor
    units = [Unit(name, element) for element in ends.alive.tolist()]
    first = builder.add_units(
        units,
        (ends.low, ends.high),
        (np.zeros_like(above), above),
        divisor=divisor,
        slack=value.slack.reshape(-1)[ends.alive],
    )
    nothing = coefficients(np.zeros(value.size))
    builder.steps.append(UnitsOperator(name, value.name, torch.from_numpy(ends.alive), first, nothing, None))
    least, greatest = np.zeros(value.size), np.zeros(value.size)
    least[ends.alive], greatest[ends.alive] = np.maximum(ends.low / divisor, 0), above
    least, greatest = least.reshape(shape), greatest.reshape(shape)
    return Named(name, Extent(least, greatest, np.zeros(shape), greatest, value.bits - ends.shift))


def _relu(builder: OperatorBuilder, name: str, _node: Relu, values: list[Named]) -> Named:
    return rectified(builder, name, values[0], values[0].extent.low, values[0].extent.high)


RULES: dict[type, Callable[[OperatorBuilder, str, Any, list[Named]], Named]] = {
    RealDense: _affine,
    RealConvolution: _affine,
    RealAverage: _affine,
    RealScale: _affine,
    Relu: _relu,
    Add: _add,
    Max: _max,
    Rearrange: _rearrange,
}
"""The operators of each node kind, RealInput excepted."""


def lower_real(builder: OperatorBuilder, name: str, node: RealNode, values: list[Named]) -> Named:
    """Add a node's operators and units; ``name`` is what it is called among the operators.

    Raises:
        UnsupportedModelError: numbers too large.
    """
    assert not isinstance(node, RealInput)
    return RULES[type(node)](builder, name, node, values)
