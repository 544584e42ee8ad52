"""Moving coefficients back through a network: what a weighted sum of one node's elements is in terms of inputs and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from qertify.certificates.exact import WIDE, Integers, add, fit, largest, product, times, total
from qertify.errors import UnsupportedModelError
from qertify.network.network import Network
from qertify.network.nodes import (
    Add,
    Convolution,
    Dense,
    Input,
    Linear,
    Max,
    PoolSum,
    Product,
    Rearrange,
    Staircase,
    Table,
)
from qertify.network.tensor import IntegerArray


@dataclass(slots=True)
class StepsForm:
    """How a staircase's value depends on its units; arrays of flat elements and of their units' positions."""

    elements: IntegerArray
    units: IntegerArray
    constant: IntegerArray


@dataclass(slots=True)
class MaximumForm:
    """base[e] is the member that a maximum's element e starts from; terms add the values of units to elements."""

    base: IntegerArray
    terms: list[tuple[IntegerArray, IntegerArray]]


@dataclass(slots=True)
class AffineForm:
    """slope[i] · (input i) + constant + error, element by element; ``columns`` of the additional inputs at ``elements``."""

    slopes: list[IntegerArray]
    constant: IntegerArray
    elements: IntegerArray
    columns: IntegerArray


@dataclass(slots=True)
class Coefficients:
    """Coefficients of several sums at once, (batch, …): what has reached inputs, units and the constant."""

    inputs: Integers
    units: Integers
    constant: Integers


@dataclass(slots=True, eq=False)
class Forms:
    """What the values of a network's nodes are made of on a box.

    Attributes:
        base, varies: the input's least codes, flat, and the positions that vary.
        by_node: of staircases, maxima, tables and products.
    """

    network: Network
    base: IntegerArray
    varies: IntegerArray
    by_node: dict[str, StepsForm | MaximumForm | AffineForm] = field(
        default_factory=dict[str, "StepsForm | MaximumForm | AffineForm"]
    )


def pull(forms: Forms, source: str, start: Integers, inputs: int, units: int) -> Coefficients:
    """Move coefficients of one node's elements, (batch, size), back to so many inputs and units.

    Raises:
        UnsupportedModelError: coefficients beyond 62 bits.
    """
    batch = len(start)
    pending: dict[str, Integers] = {source: start}
    result = Coefficients(
        np.zeros((batch, inputs), dtype=np.int64),
        np.zeros((batch, units), dtype=np.int64),
        np.zeros(batch, dtype=np.int64),
    )
    for node in reversed(forms.network.nodes):
        if node.name not in pending:
            continue
        weights = pending.pop(node.name)
        if largest(weights) >= WIDE:
            raise UnsupportedModelError(node.name, type(node).__name__, None, "its coefficients don't fit 62 bits")
        weights = weights.astype(np.int64)
        for name, moved in zip(node.inputs, RULES[type(node)](forms, node, weights, result), strict=False):
            pending[name] = add(pending[name], moved) if name in pending else moved
    return result


Rule = Callable[[Forms, Any, IntegerArray, Coefficients], list[Integers]]
"""Node and coefficients of its elements (batch, size) → those of its inputs' elements; the rest is added to the result."""


def _constant(result: Coefficients, weights: IntegerArray, values: IntegerArray) -> None:
    result.constant = add(result.constant, product(weights, values.reshape(-1, 1))[:, 0])


def _input(forms: Forms, node: Input, weights: IntegerArray, result: Coefficients) -> list[Integers]:
    fixed = forms.base.copy()
    fixed[forms.varies] = 0
    _constant(result, weights, fixed)
    count = forms.varies.size
    result.inputs[:, :count] = weights[:, forms.varies]
    return []


def _dense(forms: Forms, node: Dense, weights: IntegerArray, result: Coefficients) -> list[Integers]:
    _constant(result, weights, node.bias)
    moved = product(weights, node.weight)
    result.constant = add(result.constant, times(total(moved), np.array(-node.zero_point)))
    return [moved]


def _windowed(forms: Forms, node: Convolution | PoolSum, weights: IntegerArray, result: Coefficients) -> list[Integers]:
    channels, height, width = forms.network.shapes[node.inputs[0]]
    out, rows, columns = forms.network.shapes[node.name]
    batch = len(weights)
    if isinstance(node, Convolution):
        _constant(result, weights, np.repeat(node.bias, rows * columns))
    given = weights.reshape(batch, out, rows, columns)
    top, left, bottom, right = node.window.padding
    moved = np.zeros((batch, channels, top + height + bottom, left + width + right), dtype=np.int64)
    size = 0
    for i in range(node.window.kernel[0]):
        for j in range(node.window.kernel[1]):
            part = _through_kernel(node, given, i, j)
            size += largest(part)
            if size >= WIDE:
                raise UnsupportedModelError(node.name, type(node).__name__, None, "its coefficients don't fit 62 bits")
            y, x = i * node.window.dilation[0], j * node.window.dilation[1]
            moved[
                :,
                :,
                y : y + node.window.stride[0] * (rows - 1) + 1 : node.window.stride[0],
                x : x + node.window.stride[1] * (columns - 1) + 1 : node.window.stride[1],
            ] += part.astype(np.int64)
    inside = moved[:, :, top : top + height, left : left + width].reshape(batch, -1)
    result.constant = add(result.constant, times(total(inside), np.array(-node.zero_point)))
    return [inside]


def _through_kernel(node: Linear, given: IntegerArray, i: int, j: int) -> Integers:
    """The part of (batch, out, rows, columns) that moves to the inputs at one position of the kernel, (batch, in, …)."""
    if not isinstance(node, Convolution):
        return given
    batch, _, rows, columns = given.shape
    per_group = node.weight.shape[0] // node.groups
    parts: list[Integers] = []
    for group in range(node.groups):
        mine = slice(group * per_group, (group + 1) * per_group)
        flat = given[:, mine].transpose(0, 2, 3, 1).reshape(-1, per_group)
        moved = product(flat, node.weight[mine, :, i, j])
        parts.append(moved.reshape(batch, rows, columns, -1))
    return np.concatenate(parts, axis=-1).transpose(0, 3, 1, 2)


def _add(forms: Forms, node: Add, weights: IntegerArray, result: Coefficients) -> list[Integers]:
    return [weights] * len(node.inputs)


def _rearrange(forms: Forms, node: Rearrange, weights: IntegerArray, result: Coefficients) -> list[Integers]:
    sizes = [prod(forms.network.shapes[name]) for name in node.inputs]
    flat = node.indices.reshape(-1)
    filled = flat < 0
    _constant(result, weights, np.where(filled, node.fill, 0))
    (weights_,) = fit(largest(weights) * max(1, flat.size), weights)
    moved = np.zeros((sum(sizes), len(weights)), dtype=weights_.dtype)
    np.add.at(moved, flat[~filled], weights_[:, ~filled].T)
    return np.split(moved.T, np.cumsum(sizes)[:-1], axis=1)


def _staircase(forms: Forms, node: Staircase, weights: IntegerArray, result: Coefficients) -> list[Integers]:
    form = forms.by_node[node.name]
    assert isinstance(form, StepsForm)
    _constant(result, weights, form.constant)
    result.units[:, form.units] = weights[:, form.elements]
    return []


def _max(forms: Forms, node: Max, weights: IntegerArray, result: Coefficients) -> list[Integers]:
    form = forms.by_node[node.name]
    assert isinstance(form, MaximumForm)
    for elements, units in form.terms:
        result.units[:, units] = weights[:, elements]
    (weights_,) = fit(largest(weights) * max(1, form.base.size), weights)
    moved = np.zeros((prod(forms.network.shapes[node.inputs[0]]), len(weights)), dtype=weights_.dtype)
    np.add.at(moved, form.base, weights_.T)
    return [moved.T]


def _elementwise(forms: Forms, node: Table | Product, weights: IntegerArray, result: Coefficients) -> list[Integers]:
    form = forms.by_node[node.name]
    assert isinstance(form, AffineForm)
    _constant(result, weights, form.constant)
    result.inputs[:, form.columns] = weights[:, form.elements]
    return [times(weights, slope) for slope in form.slopes]


RULES: dict[type, Rule] = {
    Input: _input,
    Dense: _dense,
    Convolution: _windowed,
    PoolSum: _windowed,
    Add: _add,
    Product: _elementwise,
    Rearrange: _rearrange,
    Staircase: _staircase,
    Table: _elementwise,
    Max: _max,
}
"""How coefficients move back through each node kind."""
