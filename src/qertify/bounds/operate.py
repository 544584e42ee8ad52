"""Compiling a network over a box into a `Program` whose equations are operators: for networks too large for matrices."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.builder import TABLE_LIMIT
from qertify.bounds.dual import EXACT
from qertify.bounds.levels import REACH, ROW_LIMIT, LevelsBuilder, measure
from qertify.bounds.operators import (
    AddOperator,
    Challenge,
    Errors,
    InputOperator,
    LinearOperator,
    MaxOperator,
    Operator,
    Operators,
    OutputsOperator,
    PickOperator,
    SlopeOperator,
    UnitsOperator,
)
from qertify.bounds.passes import Coefficients
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
    PoolSum,
    Product,
    Rearrange,
    Staircase,
    Table,
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
    builder = _Builder(network, box, known)
    for node in network.nodes:
        if isinstance(node, Staircase) and node is network.output and node.inputs[0] == view.node:
            break
        RULES[type(node)](builder, node)
    builder.add_outputs(view, classes)
    return builder.finish()


class _Builder:
    """Collects operators, units and inputs."""

    def __init__(self, network: Network, box: IntegerBox, known: dict[str, Range]) -> None:
        self.network, self.box, self.known = network, box, known
        self.steps: list[Operator] = []
        self.units: list[Unit] = []
        self.blocks: list[tuple[int, int]] = []
        self.ranges: list[tuple[IntegerArray, IntegerArray]] = []
        self.values: list[tuple[IntegerArray, IntegerArray]] = []
        self.levels = LevelsBuilder()
        self.input_index: list[IntegerArray] = []
        self.input_ranges: list[tuple[IntegerArray, IntegerArray]] = []
        self.inputs = 0

    def range_of(self, name: str) -> tuple[IntegerArray, IntegerArray]:
        low, high = self.known[name]
        return low.reshape(-1), high.reshape(-1)

    def size(self, name: str) -> int:
        return prod(self.network.shapes[name])

    def add_inputs(self, index: IntegerArray, low: IntegerArray, high: IntegerArray) -> int:
        """More inputs; returns the first's number."""
        self.inputs += len(index)
        self.input_index.append(index)
        self.input_ranges.append((low, high))
        return self.inputs - len(index)

    def add_errors(self, constant: IntegerArray, low: IntegerArray, high: IntegerArray) -> Errors:
        """An additional input in low … high for each element, besides a constant."""
        chosen = np.flatnonzero(low < high)
        first = self.add_inputs(np.full(chosen.size, -1, dtype=np.int64), low[chosen], high[chosen])
        return Errors(coefficients(constant + np.where(low == high, low, 0)), torch.from_numpy(chosen), first)

    def add_units(
        self,
        units: list[Unit],
        low: IntegerArray,
        high: IntegerArray,
        values: tuple[IntegerArray, IntegerArray],
        rows: IntegerArray,
    ) -> int:
        """One block of units, their accumulators' ranges, least and greatest values, and rows; returns the first's number."""
        first = len(self.units)
        self.units += units
        if units:
            self.blocks.append((first, len(self.units)))
        self.ranges.append((low, high))
        self.values.append(values)
        self.levels.add_units(rows)
        return first

    def add_outputs(self, view: OutputView, classes: tuple[int, ...]) -> None:
        element = view.element[list(classes)]
        low, high = (bound[element] for bound in self.range_of(view.node))
        nothing = np.zeros_like(low)
        units = [Unit(view.node, int(e), label) for e, label in zip(element, classes, strict=True)]
        first = self.add_units(units, low, high, (nothing, nothing), nothing)
        self.steps.append(OutputsOperator(view.node, self.size(view.node), torch.from_numpy(element.copy()), first))

    def finish(self) -> Program:
        if self.levels.rows > ROW_LIMIT:
            raise UnsupportedModelError(self.units[-1].node, "network", None, f"more than {ROW_LIMIT} different staircases")
        levels = self.levels.finish()
        low, high = _joined(self.ranges)
        first_value, last_value = _joined(self.values)
        input_low, input_high = _joined(self.input_ranges)
        operators = Operators(tuple(self.steps), self.inputs, len(self.units))
        largest_x = torch.maximum(input_low.abs(), input_high.abs()).clamp(min=1)
        largest_y = torch.maximum(first_value.abs(), last_value.abs()).clamp(min=1)
        sizes = operators.forward(largest_x[None], lambda first, last, _: largest_y[None, first:last], absolute=True)
        furthest = max((float(bound.abs().max()) for bound in (low, high) if bound.numel()), default=0.0)
        if max(sizes.largest, furthest) >= EXACT or furthest >= REACH:
            reason = "accumulators of 2³³ or more and sums of 2⁵² or more are not supported by the bounds"
            raise UnsupportedModelError(self.units[-1].node, "network", None, reason)
        constant = operators.forward(torch.zeros_like(input_low)[None], lambda first, last, z: torch.zeros_like(z)).units[0]
        ones = operators.backward(constant[None], lambda first, last, a: torch.ones_like(a), absolute=True)
        spacing, unevenness = measure(levels, first_value, last_value)
        empty = torch.empty(0, 0, dtype=torch.float64)
        return Program(
            units=tuple(self.units),
            blocks=tuple(self.blocks),
            input_index=np.concatenate(self.input_index),
            input_low=input_low,
            input_high=input_high,
            input_matrix=empty,
            unit_matrix=empty,
            constant=constant,
            low=low,
            high=high,
            thresholds=empty,
            first_value=first_value,
            spacing=spacing,
            unevenness=unevenness,
            has_value=torch.tensor([float(unit.label is None) for unit in self.units], dtype=torch.float64),
            equation_size=sizes.units[0],
            operators=Operators(operators.steps, self.inputs, len(self.units), ones.largest),
            levels=levels,
            last_value=last_value,
        )


def _joined(pairs: list[tuple[IntegerArray, IntegerArray]]) -> tuple[Tensor, Tensor]:
    first, second = (np.concatenate([pair[side] for pair in pairs]).astype(np.float64) for side in (0, 1))
    return torch.from_numpy(first), torch.from_numpy(second)


def coefficients(values: IntegerArray) -> Coefficients:
    return Coefficients(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)))


def _input(builder: _Builder, node: Input) -> None:
    low, high = builder.box.low.reshape(-1), builder.box.high.reshape(-1)
    varies = np.flatnonzero(low < high)
    builder.add_inputs(varies, low[varies], high[varies])
    builder.steps.append(InputOperator(node.name, coefficients(np.where(low == high, low, 0)), torch.from_numpy(varies)))


def _linear(builder: _Builder, node: Linear) -> None:
    before, after = builder.network.shapes[node.inputs[0]], builder.network.shapes[node.name]
    weight = weight_of(node)
    if isinstance(node, PoolSum):
        weight = np.ones((before[0], 1, *node.window.kernel), dtype=np.int64)
    assert weight is not None
    bias = np.broadcast_to(np.asarray(bias_of(node)).reshape(-1), after[:1])
    zero_point = coefficients(np.array([node.zero_point]))
    step = LinearOperator(node.name, node.inputs[0], node, coefficients(weight), coefficients(bias), zero_point, before, after)
    builder.steps.append(step)


def _add(builder: _Builder, node: Add) -> None:
    builder.steps.append(AddOperator(node.name, node.inputs))


def _rearrange(builder: _Builder, node: Rearrange) -> None:
    sizes = tuple(builder.size(name) for name in node.inputs)
    index = node.indices.reshape(-1)
    index = torch.from_numpy(np.where(index < 0, sum(sizes), index))
    builder.steps.append(PickOperator(node.name, node.inputs, sizes, index, coefficients(np.array([node.fill]))))


def _staircase(builder: _Builder, node: Staircase) -> None:
    (source,) = node.inputs
    low, high = builder.range_of(source)
    shape, rows = builder.known[source][0].shape, node.steps.rows
    least, greatest = (apply_rows(node.row, rows, bound.reshape(shape), node.steps.value).reshape(-1) for bound in (low, high))
    chosen = np.flatnonzero(least < greatest)
    row = np.broadcast_to(node.row, shape[1:]).reshape(-1)
    numbers = np.array([builder.levels.add_row(node.steps.thresholds[index], node.steps.low) for index in range(rows)])
    units = [Unit(source, element) for element in chosen.tolist()]
    first = builder.add_units(units, low[chosen], high[chosen], (least[chosen], greatest[chosen]), numbers[row[chosen]])
    errors = None
    if node.upper is not None:
        ends = zip(row.tolist(), low.tolist(), high.tolist(), strict=True)
        gaps = np.array([gap_of(node.steps, node.upper, *end) for end in ends], dtype=np.int64)
        errors = builder.add_errors(np.zeros_like(gaps), np.zeros_like(gaps), gaps)
    constant = coefficients(np.where(least == greatest, least, 0))
    builder.steps.append(UnitsOperator(node.name, source, torch.from_numpy(chosen), first, constant, errors))


def _max(builder: _Builder, node: Max) -> None:
    (source,) = node.inputs
    low, high = builder.range_of(source)
    position = np.arange(low.size).reshape(1, *builder.network.shapes[source])
    members = windows(position, node.window, fill=-1)[0]
    members = members.reshape(-1, members.shape[3] * members.shape[4])
    order = np.argsort(np.where(members >= 0, -high[members], np.iinfo(np.int64).max), axis=1, kind="stable")
    members = np.take_along_axis(members, order, axis=1)
    leader = members[:, 0]
    least, greatest = low[leader], high[leader]
    challenges: list[Challenge] = []
    for column in members[:, 1:].T:
        down, up = low[column] - greatest, high[column] - least
        wins = np.flatnonzero((column >= 0) & (down >= 0))
        open_ = np.flatnonzero((column >= 0) & (down < 0) & (up > 0))
        reach = up[open_]
        if reach.size and int(reach.max()) > MAX_LEVELS:
            reason = f"elements that differ by more than {MAX_LEVELS} are not supported by the bounds"
            raise UnsupportedModelError(node.name, "Max", None, reason)
        row = builder.levels.add_row(np.arange(1, int(reach.max(initial=0)) + 1), 0)
        units = [Unit("", -1)] * open_.size
        values = np.zeros_like(reach), reach
        first = builder.add_units(units, down[open_], reach, values, np.full(open_.size, row))
        pick = torch.from_numpy
        challenges.append(Challenge(pick(wins), pick(column[wins]), pick(open_), pick(column[open_]), first))
        least = np.where(column >= 0, np.maximum(least, low[column]), least)
        greatest = np.where(column >= 0, np.maximum(greatest, high[column]), greatest)
    builder.steps.append(MaxOperator(node.name, source, low.size, torch.from_numpy(leader), tuple(challenges)))


def _table(builder: _Builder, node: Table) -> None:
    low, high = builder.range_of(node.inputs[0])
    if int((high - low).max()) > TABLE_LIMIT:
        reason = f"the bounds support tables of inputs that vary by at most {TABLE_LIMIT}"
        raise UnsupportedModelError(node.name, "Table", None, reason)
    row = np.broadcast_to(node.row, builder.network.shapes[node.inputs[0]]).reshape(-1)
    slope, least, greatest = (np.zeros_like(low) for _ in range(3))
    cells, inverse = np.unique(np.stack([row, low, high], axis=1), axis=0, return_inverse=True)
    lines = np.array([_line(node, *cell) for cell in cells.tolist()], dtype=np.int64)
    slope, least, greatest = lines[inverse.reshape(-1)].T
    errors = builder.add_errors(np.zeros_like(low), least, greatest)
    builder.steps.append(SlopeOperator(node.name, node.inputs, (coefficients(slope),), errors))


def _line(node: Table, row: int, start: int, stop: int) -> tuple[int, int, int]:
    """Slope of the line through the ends of a part of the table, least and greatest error of it."""
    codes = np.arange(start, stop + 1)
    values = node.values[row, np.clip(codes - node.first, 0, node.values.shape[1] - 1)]
    slope = round(int(values[-1] - values[0]) / max(1, stop - start))
    error = values - slope * codes
    return slope, int(error.min()), int(error.max())


def _product(builder: _Builder, node: Product) -> None:
    """a·b = m·b + n·a − m·n + (a − m)·(b − n) around the middles m, n; the last term is the error."""
    ends = [
        (low - zero, high - zero)
        for (low, high), zero in zip((builder.range_of(name) for name in node.inputs), node.zero_points, strict=True)
    ]
    m, n = ((low + high) // 2 for low, high in ends)
    corners = np.stack([a * b for a in (ends[0][0] - m, ends[0][1] - m) for b in (ends[1][0] - n, ends[1][1] - n)])
    constant = -m * n - n * node.zero_points[0] - m * node.zero_points[1]
    errors = builder.add_errors(constant, corners.min(axis=0), corners.max(axis=0))
    builder.steps.append(SlopeOperator(node.name, node.inputs, (coefficients(n), coefficients(m)), errors))


RULES: dict[type, Callable[[_Builder, Any], None]] = {
    Input: _input,
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
