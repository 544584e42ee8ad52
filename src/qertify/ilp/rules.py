"""Each node kind as columns and rows; the rows admit exactly the integer points of its definition (network/evaluate.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qertify.errors import UnsupportedModelError
from qertify.ilp.builder import Builder, Term, Values, concatenate
from qertify.ilp.model import MAGNITUDE_LIMIT
from qertify.ilp.steps import Unary, encode_unary, rising
from qertify.network.linear import absolute_sum, weight_of, windows
from qertify.network.nodes import (
    Add,
    Convolution,
    Dense,
    Input,
    Linear,
    Max,
    Node,
    PoolSum,
    Product,
    Rearrange,
    Staircase,
    Table,
)
from qertify.network.staircase import gap_of
from qertify.network.tensor import IntegerArray


@dataclass(slots=True)
class Context:
    """What the rules share.

    Attributes:
        encoding: of step functions, a name in `steps.ENCODINGS`.
        range: proved range of each node's elements, flat, extra bounds included.
        unary: the step functions met so far, by node, row and range.
        pattern: columns of their values.
    """

    builder: Builder
    shapes: Mapping[str, tuple[int, ...]]
    encoding: str
    range: dict[str, tuple[IntegerArray, IntegerArray]] = field(default_factory=dict[str, tuple[IntegerArray, IntegerArray]])
    unary: dict[tuple[str, int, int, int, bool], Unary] = field(default_factory=dict[tuple[str, int, int, int, bool], Unary])
    pattern: list[int] = field(default_factory=list[int])


def _input(context: Context, node: Input, inputs: list[Values]) -> Values:
    low, high = context.range[node.name]
    columns = [
        context.builder.column(least, greatest, integer=True).column if least < greatest else -1
        for least, greatest in zip(low.tolist(), high.tolist(), strict=True)
    ]
    column = np.array(columns, dtype=np.int64)
    return Values(column, np.where(column < 0, low, 0))


def _chunks(node: Linear, shape: tuple[int, ...]) -> Iterator[tuple[IntegerArray, IntegerArray, IntegerArray]]:
    """(index, weight, bias) of a run of outputs in flat order: index (n, k) into the flat input, −1 for padding; weight
    broadcastable to (n, k); bias (n,)."""
    if isinstance(node, Dense):
        yield np.broadcast_to(np.arange(shape[0], dtype=np.int64), node.weight.shape), node.weight, node.bias
        return
    position = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(1, *shape)
    view = windows(position, node.window, fill=-1)[0]  # (channels, out_h, out_w, kh, kw)
    channels, rows, columns = view.shape[:3]
    weight = weight_of(node)
    if weight is None or isinstance(node, PoolSum):
        for channel in range(channels):
            index = view[channel].reshape(rows * columns, -1)
            yield index, np.ones((1, index.shape[1]), dtype=np.int64), np.zeros(len(index), dtype=np.int64)
        return
    per_group, out = channels // node.groups, weight.shape[0] // node.groups
    for channel in range(weight.shape[0]):
        group = channel // out
        piece = view[group * per_group : (group + 1) * per_group].transpose(1, 2, 0, 3, 4)
        index = piece.reshape(rows * columns, -1)
        yield index, weight[channel].reshape(1, -1), np.full(len(index), node.bias[channel], dtype=np.int64)


def _linear(context: Context, node: Linear, inputs: list[Values]) -> Values:
    (source,) = inputs
    builder = context.builder
    low, high = context.range[node.inputs[0]]
    largest = max(abs(int(low.min())), abs(int(high.max()))) + abs(node.zero_point)
    if absolute_sum(node, largest) >= MAGNITUDE_LIMIT:
        raise UnsupportedModelError(node.name, type(node).__name__, None, "an accumulator that may exceed 61 bits")
    low, high = context.range[node.name]
    terms: list[Term] = []
    for index, weight, bias in _chunks(node, context.shapes[node.inputs[0]]):
        full = np.where(index >= 0, np.broadcast_to(weight, index.shape), 0)
        column = source.column[index]
        constant = bias + (full * (source.constant[index] - node.zero_point)).sum(axis=1)
        used = (column >= 0) & (full != 0)
        for position in range(len(index)):
            mine, at = used[position], len(terms)
            terms.append(
                builder.define(
                    column[position][mine], full[position][mine], int(constant[position]), int(low[at]), int(high[at])
                )
            )
    return _values(terms)


def _values(terms: Sequence[Term]) -> Values:
    column = np.array([term.column for term in terms], dtype=np.int64)
    return Values(column, np.array([term.constant for term in terms], dtype=np.int64))


def _add(context: Context, node: Add, inputs: list[Values]) -> Values:
    low, high = (bound.tolist() for bound in context.range[node.name])
    columns, constants = np.stack([part.column for part in inputs], axis=1), sum(part.constant for part in inputs)
    ones = np.ones(len(inputs), dtype=np.int64)
    terms = [
        context.builder.define(mine[mine >= 0], ones[mine >= 0], int(constant), least, greatest)
        for mine, constant, least, greatest in zip(columns, np.asarray(constants), low, high, strict=True)
    ]
    return _values(terms)


def _rearrange(context: Context, node: Rearrange, inputs: list[Values]) -> Values:
    fill = Values(np.array([-1], dtype=np.int64), np.array([node.fill], dtype=np.int64))
    joined, index = concatenate([*inputs, fill]), node.indices.reshape(-1)
    return Values(joined.column[index], joined.constant[index])


def _unary(context: Context, node: Staircase | Table, inputs: list[Values]) -> Values:
    """Staircases and tables: constant on the reachable range, or steps at thresholds."""
    builder = context.builder
    low, high = (bound.tolist() for bound in context.range[node.inputs[0]])
    rows = np.broadcast_to(node.row, context.shapes[node.name]).reshape(-1).tolist()
    terms: list[Term] = []
    for at, row in enumerate(rows):
        enclosure = isinstance(node, Staircase) and gap_of(node.steps, node.upper, row, low[at], high[at]) > 0
        ends: list[Term] = []
        for upper in (False, True) if enclosure else (False,):
            key = (node.name, row, low[at], high[at], upper)
            if key not in context.unary:
                context.unary[key] = unary_of(node, row, low[at], high[at], upper)
            ends.append(encode_unary(builder, inputs[0][at], low[at], high[at], context.unary[key], context.encoding))
        terms.append(_between(builder, ends[0], ends[1]) if enclosure else ends[0])
        context.pattern += [term.column for term in {*ends, terms[-1]} if term.column >= 0]
    return _values(terms)


def _between(builder: Builder, least: Term, greatest: Term) -> Term:
    """Any integer between two terms."""
    y = builder.column(builder.range_of(least)[0], builder.range_of(greatest)[1], integer=True)
    builder.row([(1, y), (-1, least)], 0, None)
    builder.row([(1, y), (-1, greatest)], None, 0)
    return y


def unary_of(node: Staircase | Table, row: int, low: int, high: int, upper: bool = False) -> Unary:
    """The steps of one element's map on low … high; ``upper``: of the greatest values of an enclosure."""
    if isinstance(node, Table):
        first, last = (min(max(z - node.first, 0), node.values.shape[1] - 1) for z in (low, high))
        values = node.values[row, first : last + 1]
        jumps = np.flatnonzero(np.diff(values)) + 1
        return Unary(jumps + node.first + first, np.append(values[:1], values[jumps]), None)
    steps = node.upper if upper and node.upper is not None else node.steps
    base = steps.low
    first, last = (int(value) - base for value in steps.value(row, np.array([low, high])))
    return rising(steps.thresholds[row, first:last], base + first)


def _max(context: Context, node: Max, inputs: list[Values]) -> Values:
    """y is at least each element of the window and equal to the selected one; elements that can't win are left out."""
    (source,), builder = inputs, context.builder
    low, high = context.range[node.inputs[0]]
    own_low, own_high = context.range[node.name]
    shape = context.shapes[node.inputs[0]]
    position = np.arange(low.size, dtype=np.int64).reshape(1, *shape)
    view = windows(position, node.window, fill=-1)[0]
    terms: list[Term] = []
    for at, window in enumerate(view.reshape(-1, view.shape[-2] * view.shape[-1])):
        window = window[window >= 0]
        threshold = int(low[window].max())
        open_ = [index for index in window.tolist() if source.column[index] >= 0 and high[index] > threshold]
        floor = [index for index in window.tolist() if low[index] == threshold and index not in open_][:1]
        candidates = [source[index] for index in floor + open_]
        if len(candidates) == 1:
            terms.append(candidates[0])
            continue
        y = builder.column(int(own_low[at]), int(own_high[at]), integer=True)
        choices = [builder.binary() for _ in candidates]
        builder.row([(1, choice) for choice in choices], 1, 1)
        for candidate, choice in zip(candidates, choices, strict=True):
            slack = int(own_high[at]) - builder.range_of(candidate)[0]
            builder.row([(1, y), (-1, candidate)], 0, None)
            builder.row([(1, y), (-1, candidate), (slack, choice)], None, slack)
        terms.append(y)
    return _values(terms)


def _product(context: Context, node: Product, inputs: list[Values]) -> Values:
    low, high = context.range[node.name]
    ranges = [context.range[name] for name in node.inputs]
    terms: list[Term] = []
    for at in range(low.size):
        factors = [
            (inputs[side][at], int(ranges[side][0][at]), int(ranges[side][1][at]), node.zero_points[side]) for side in (0, 1)
        ]
        narrow, wide = sorted(factors, key=lambda factor: factor[2] - factor[1] if factor[0].column >= 0 else -1)
        terms.append(_multiply(context.builder, narrow, wide, int(low[at]), int(high[at])))
    return _values(terms)


_Factor = tuple[Term, int, int, int]
"""An element, its least and greatest value, and the zero point to subtract."""


def _multiply(builder: Builder, narrow: _Factor, wide: _Factor, low: int, high: int) -> Term:
    """(u − a)·(w − b): u = least + Σ 2ᵏ·bitₖ, and each bitₖ·(w − b) is exact by four rows."""
    (u, least, greatest, a), (w, w_low, w_high, b) = narrow, wide
    if u.column < 0 and w.column < 0:
        return Term(-1, (u.constant - a) * (w.constant - b))
    result = builder.column(low, high, integer=True)
    if u.column < 0:
        builder.row([(1, result), (a - u.constant, w)], (a - u.constant) * b, (a - u.constant) * b)
        return result
    bits = [(1 << k, builder.binary()) for k in range((greatest - least).bit_length())]
    builder.row([(1, u), *((-weight, bit) for weight, bit in bits)], least, least)
    parts: list[tuple[int, Term]] = []
    less, more = w_low - b, w_high - b
    for weight, bit in bits:
        part = builder.column(min(less, 0), max(more, 0), integer=True)  # bit · (w − b)
        builder.row([(1, part), (-more, bit)], None, 0)
        builder.row([(1, part), (-less, bit)], 0, None)
        builder.row([(1, part), (-1, w), (-less, bit)], None, -b - less)
        builder.row([(1, part), (-1, w), (-more, bit)], -b - more, None)
        parts.append((-weight, part))
    constant = (least - a) * -b
    builder.row([(1, result), *parts, (a - least, w)], constant, constant)
    return result


RULES: dict[type[Node], Callable[[Context, Any, list[Values]], Values]] = {
    Input: _input,
    Dense: _linear,
    Convolution: _linear,
    PoolSum: _linear,
    Add: _add,
    Product: _product,
    Rearrange: _rearrange,
    Staircase: _unary,
    Table: _unary,
    Max: _max,
}
"""The encoding of each node kind."""
