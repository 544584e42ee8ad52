"""Compiling a network over a box into a `Program` whose equations are operators: for networks too large for matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from qertify.bounds.builder import TABLE_LIMIT
from qertify.bounds.operator_builder import Ends, OperatorBuilder, coefficients
from qertify.bounds.operators import (
    AddOperator,
    Challenge,
    InputOperator,
    LinearOperator,
    MaxOperator,
    PickOperator,
    SlopeOperator,
    UnitsOperator,
)
from qertify.bounds.program import Program, Unit
from qertify.errors import UnsupportedModelError
from qertify.network.linear import bias_of, weight_of, windows
from qertify.network.network import Network
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
    Window,
)
from qertify.network.ranges import Range
from qertify.network.staircase import gap_of
from qertify.network.tensor import IntegerArray
from qertify.network.unary import apply_rows
from qertify.specification.cases import OutputView
from qertify.specification.region import IntegerBox

MAX_LEVELS = 1 << 22
"""Largest difference of two elements of a maximum."""
FILL_CHUNK = 1 << 22


def compile_operators(
    network: Network, box: IntegerBox, known: dict[str, Range], view: OutputView, classes: tuple[int, ...]
) -> Program:
    """Compile a network over a box; arguments as for `compile_program`, whose units, in its order, the result has.

    Raises:
        UnsupportedModelError: a network with numbers too large for float64.
    """
    builder = OperatorBuilder()
    lowering = Lowering(builder, network, known)
    low, high = box.low.reshape(-1), box.high.reshape(-1)
    varies = np.flatnonzero(low < high)
    builder.add_inputs(varies, low[varies], high[varies])
    constant = coefficients(np.where(low == high, low, 0))
    builder.steps.append(InputOperator(network.input.name, constant, torch.from_numpy(varies)))
    for node in network.nodes:
        if isinstance(node, Staircase) and node is network.output and node.inputs[0] == view.node:
            break
        if not isinstance(node, Input):
            lowering.lower(node)
    element = view.element[list(classes)]
    ends = tuple(bound[element] for bound in lowering.range_of(view.node))
    units = [Unit(view.node, int(e), label) for e, label in zip(element, classes, strict=True)]
    builder.add_outputs(units, view.node, lowering.size(view.node), element.copy(), (ends[0], ends[1]))
    return builder.finish()


@dataclass(frozen=True, slots=True, eq=False)
class Lowering:
    """One network on its way into a builder; ``prefix`` keeps its nodes apart from another's.

    Attributes:
        known: ranges of all nodes that are read, (1, *node shape).
    """

    builder: OperatorBuilder
    network: Network
    known: dict[str, Range]
    prefix: str = ""

    def range_of(self, name: str) -> tuple[IntegerArray, IntegerArray]:
        low, high = self.known[name]
        return low.reshape(-1), high.reshape(-1)

    def size(self, name: str) -> int:
        return prod(self.network.shapes[name])

    def names(self, node: Node) -> tuple[str, tuple[str, ...]]:
        """What the node and its inputs are called among the operators."""
        return self.prefix + node.name, tuple(self.prefix + name for name in node.inputs)

    def lower(self, node: Node) -> None:
        """Add the node's operator and units."""
        RULES[type(node)](self, node)


def _linear(to: Lowering, node: Linear) -> None:
    before, after = to.network.shapes[node.inputs[0]], to.network.shapes[node.name]
    weight = weight_of(node)
    if isinstance(node, PoolSum):
        weight = np.ones((before[0], 1, *node.window.kernel), dtype=np.int64)
    assert weight is not None
    bias = coefficients(np.broadcast_to(bias_of(node), after).reshape(-1))
    zero_point = coefficients(np.array([node.zero_point]))
    name, (source,) = to.names(node)
    to.builder.steps.append(LinearOperator(name, source, node, coefficients(weight), bias, zero_point, before, after))


def _add(to: Lowering, node: Add) -> None:
    to.builder.steps.append(AddOperator(*to.names(node)))


def _rearrange(to: Lowering, node: Rearrange) -> None:
    sizes = tuple(to.size(name) for name in node.inputs)
    index = node.indices.reshape(-1)
    index = torch.from_numpy(np.where(index < 0, sum(sizes), index))
    to.builder.steps.append(PickOperator(*to.names(node), sizes, index, coefficients(np.array([node.fill]))))


def _staircase(to: Lowering, node: Staircase) -> None:
    (source,) = node.inputs
    low, high = to.range_of(source)
    shape, rows = to.known[source][0].shape, node.steps.rows
    least, greatest = (apply_rows(node.row, rows, bound.reshape(shape), node.steps.value).reshape(-1) for bound in (low, high))
    chosen = np.flatnonzero(least < greatest)
    row = np.broadcast_to(node.row, shape[1:]).reshape(-1)
    numbers = np.array([to.builder.levels.add_row(node.steps.thresholds[index], node.steps.low) for index in range(rows)])
    units = [Unit(source, element) for element in chosen.tolist()]
    first = to.builder.add_units(units, (low[chosen], high[chosen]), (least[chosen], greatest[chosen]), numbers[row[chosen]])
    errors = None
    if node.upper is not None:
        ends = zip(row.tolist(), low.tolist(), high.tolist(), strict=True)
        gaps = np.array([gap_of(node.steps, node.upper, *end) for end in ends], dtype=np.int64)
        errors = to.builder.add_errors(np.zeros_like(gaps), np.zeros_like(gaps), gaps)
    constant = coefficients(np.where(least == greatest, least, 0))
    name, (read,) = to.names(node)
    to.builder.steps.append(UnitsOperator(name, read, torch.from_numpy(chosen), first, constant, errors))


def _max(to: Lowering, node: Max) -> None:
    (source,) = node.inputs

    def add_units(down: IntegerArray, up: IntegerArray) -> int:
        if int(up.max(initial=0)) > MAX_LEVELS:
            reason = f"elements that differ by more than {MAX_LEVELS} are not supported by the bounds"
            raise UnsupportedModelError(node.name, "Max", None, reason)
        row = to.builder.levels.add_row(np.arange(1, int(up.max(initial=0)) + 1), 0)
        return to.builder.add_units([Unit("", -1)] * up.size, (down, up), (np.zeros_like(up), up), np.full(up.size, row))

    to.builder.steps.append(
        max_operator(*to.names(node), node.window, to.network.shapes[source], to.range_of(source), add_units)
    )


def max_operator(
    name: str, inputs: tuple[str, ...], window: Window, shape: tuple[int, ...], ends: Ends, add_units: Callable[..., int]
) -> MaxOperator:
    """The operator of a maximum.

    Args:
        shape, ends: of the input; the ranges are flat integers.
        add_units: adds units max(difference, 0), from the least and greatest differences; returns the first's number.
    """
    low, high = ends
    members = windows(np.arange(low.size).reshape(1, *shape), window, fill=-1)[0]
    members = members.reshape(-1, members.shape[3] * members.shape[4])
    order = np.argsort(np.where(members >= 0, -high[members], np.inf), axis=1, kind="stable")
    members = np.take_along_axis(members, order, axis=1)
    leader = members[:, 0]
    least, greatest = low[leader], high[leader]
    challenges: list[Challenge] = []
    pick = torch.from_numpy
    for column in members[:, 1:].T:
        down, up = low[column] - greatest, high[column] - least
        wins = np.flatnonzero((column >= 0) & (down >= 0))
        open_ = np.flatnonzero((column >= 0) & (down < 0) & (up > 0))
        first = add_units(down[open_], up[open_])
        challenges.append(Challenge(pick(wins), pick(column[wins]), pick(open_), pick(column[open_]), first))
        least = np.where(column >= 0, np.maximum(least, low[column]), least)
        greatest = np.where(column >= 0, np.maximum(greatest, high[column]), greatest)
    return MaxOperator(name, inputs[0], low.size, pick(leader.copy()), tuple(challenges))


def _table(to: Lowering, node: Table) -> None:
    low, high = to.range_of(node.inputs[0])
    if int((high - low).max()) > TABLE_LIMIT:
        reason = f"the bounds support tables of inputs that vary by at most {TABLE_LIMIT}"
        raise UnsupportedModelError(node.name, "Table", None, reason)
    row = np.broadcast_to(node.row, to.network.shapes[node.inputs[0]]).reshape(-1)
    slope, least, greatest = (np.zeros_like(low) for _ in range(3))
    cells, inverse = np.unique(np.stack([row, low, high], axis=1), axis=0, return_inverse=True)
    lines = np.array([_line(node, *cell) for cell in cells.tolist()], dtype=np.int64)
    slope, least, greatest = lines[inverse.reshape(-1)].T
    errors = to.builder.add_errors(np.zeros_like(low), least, greatest)
    to.builder.steps.append(SlopeOperator(*to.names(node), (coefficients(slope),), errors))


def _line(node: Table, row: int, start: int, stop: int) -> tuple[int, int, int]:
    """Slope of the line through the ends of a part of the table, least and greatest error of it."""
    codes = np.arange(start, stop + 1)
    values = node.values[row, np.clip(codes - node.first, 0, node.values.shape[1] - 1)]
    slope = round(int(values[-1] - values[0]) / max(1, stop - start))
    error = values - slope * codes
    return slope, int(error.min()), int(error.max())


def _product(to: Lowering, node: Product) -> None:
    """a·b = m·b + n·a − m·n + (a − m)·(b − n) around the middles m, n; the last term is the error."""
    ends = [
        (low - zero, high - zero)
        for (low, high), zero in zip((to.range_of(name) for name in node.inputs), node.zero_points, strict=True)
    ]
    m, n = ((low + high) // 2 for low, high in ends)
    corners = np.stack([a * b for a in (ends[0][0] - m, ends[0][1] - m) for b in (ends[1][0] - n, ends[1][1] - n)])
    constant = -m * n - n * node.zero_points[0] - m * node.zero_points[1]
    errors = to.builder.add_errors(constant, corners.min(axis=0), corners.max(axis=0))
    to.builder.steps.append(SlopeOperator(*to.names(node), (coefficients(n), coefficients(m)), errors))


RULES: dict[type, Callable[[Lowering, Any], None]] = {
    Dense: _linear,
    Convolution: _linear,
    PoolSum: _linear,
    Add: _add,
    Rearrange: _rearrange,
    Staircase: _staircase,
    Table: _table,
    Product: _product,
    Max: _max,
}
"""The operator of each node kind."""
