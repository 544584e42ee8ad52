"""Compiling a network over a box into a `Program`: affine forms are pushed through the graph, exactly."""

from __future__ import annotations

from math import prod

import numpy as np
import torch

from qertify.bounds.program import Program, Unit
from qertify.errors import UnsupportedModelError
from qertify.network.linear import EXACT_FLOAT64, absolute_sum, bias_of, weight_of, weighted_sum, windows
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
from qertify.network.ranges import Range, rearrange
from qertify.network.tensor import FloatArray, IntegerArray
from qertify.specification.cases import OutputView
from qertify.specification.region import IntegerBox

SIZE_LIMIT = 1 << 27
"""Largest number of matrix entries that one node's affine form may take while compiling (1 GiB of float64)."""

TABLE_LIMIT = 1 << 16


def compile_program(
    network: Network, box: IntegerBox, known: dict[str, Range], view: OutputView, classes: tuple[int, ...]
) -> Program:
    """Compile a network over a box.

    Args:
        network: any network.
        box: the input region.
        known: the result of `ranges` on the box (batch of one).
        view: the output accumulators.
        classes: the classes whose accumulators become units.

    Raises:
        UnsupportedModelError: a network too large for dense matrices, or with numbers too large for float64.
    """
    low, high = box.low.reshape(-1), box.high.reshape(-1)
    varies = np.flatnonzero(low < high)
    form = np.zeros((1 + varies.size, low.size))
    form[0] = np.where(low == high, low, 0)
    form[1 + np.arange(varies.size), varies] = 1.0
    forms: dict[str, FloatArray] = {network.input.name: form.reshape(-1, *network.input_shape)}
    builder = _Builder(varies, low[varies], high[varies])
    last_use = {name: node.name for node in network.nodes for name in node.inputs}
    for node in network.nodes:
        if isinstance(node, Input):
            continue
        if isinstance(node, Staircase) and node is network.output and node.inputs[0] == view.node:
            break
        if builder.rows * prod(network.shapes[node.name]) > SIZE_LIMIT:
            reason = f"{builder.rows} × {network.shapes[node.name]} coefficients are too many for dense matrices"
            raise UnsupportedModelError(node.name, type(node).__name__, None, reason)
        inputs = [_widen(forms[name], builder.rows) for name in node.inputs]
        given = [known[name] for name in node.inputs]
        match node:
            case Dense() | Convolution() | PoolSum():
                forms[node.name] = _linear(node, inputs[0])
            case Add():
                forms[node.name] = np.sum(inputs, axis=0)
            case Rearrange():
                forms[node.name] = _rearrange(node, inputs)
            case Staircase():
                forms[node.name] = builder.add_staircase(node, inputs[0], given[0])
            case Max():
                forms[node.name] = builder.add_max(node, inputs[0], given[0])
            case Table():
                forms[node.name] = builder.add_table(node, inputs[0], given[0])
            case Product():
                forms[node.name] = builder.add_product(node, inputs, given)
        for name in node.inputs:
            if last_use[name] == node.name and name != view.node:
                forms.pop(name, None)
    builder.add_outputs(view, _widen(forms[view.node], builder.rows), known[view.node], classes)
    return builder.finish()


def _widen(form: FloatArray, rows: int) -> FloatArray:
    """An affine form of a node's value, (rows seen then, *shape), with rows for the variables seen since."""
    missing = rows - form.shape[0]
    return np.concatenate([form, np.zeros((missing, *form.shape[1:]))]) if missing else form


def _linear(node: Linear, form: FloatArray) -> FloatArray:
    weight = weight_of(node)
    shifted = form.copy()
    shifted[0] -= node.zero_point
    if absolute_sum(node, int(np.abs(shifted).max())) >= EXACT_FLOAT64:
        raise UnsupportedModelError(node.name, type(node).__name__, "weight", "coefficients of 2⁵³ or more are not supported")
    result = weighted_sum(node, None if weight is None else weight.astype(np.float64), shifted)
    result[0] += bias_of(node)
    return result


def _rearrange(node: Rearrange, forms: list[FloatArray]) -> FloatArray:
    result = rearrange(node, [form.astype(np.int64) for form in forms]).astype(np.float64)
    result[1:, node.indices < 0] = 0.0
    return result


class _Builder:
    """Collects variables and the affine forms of units. Row 0 of a form is its constant, the others are variables."""

    def __init__(self, index: IntegerArray, low: IntegerArray, high: IntegerArray) -> None:
        self.input_index, self.input_ranges = [index], [(low, high)]
        self.input_rows = [1 + np.arange(index.size)]
        self.unit_rows: list[IntegerArray] = []
        self.rows = 1 + index.size
        self.units: list[Unit] = []
        self.blocks: list[tuple[int, int]] = []
        self.forms: list[FloatArray] = []
        self.ranges: list[tuple[IntegerArray, IntegerArray]] = []
        self.steps: list[tuple[FloatArray, int]] = []

    def add_staircase(self, node: Staircase, form: FloatArray, known: Range) -> FloatArray:
        """Turn the elements that are not constant into units; returns the affine form of the staircase's value."""
        low, high = known[0].reshape(-1), known[1].reshape(-1)
        row = np.broadcast_to(node.row, form.shape[1:]).reshape(-1)
        least, greatest = np.empty_like(low), np.empty_like(high)
        for index in range(node.steps.rows):
            mine = row == index
            least[mine], greatest[mine] = node.steps.value(index, low[mine]), node.steps.value(index, high[mine])
        chosen = np.flatnonzero(least < greatest)
        flat = form.reshape(form.shape[0], -1)
        units = [Unit(node.inputs[0], int(element)) for element in chosen]
        steps = [
            (
                node.steps.thresholds[row[e], least[e] - node.steps.low : greatest[e] - node.steps.low].astype(np.float64),
                int(least[e]),
            )
            for e in chosen
        ]
        result = np.zeros((self.rows + chosen.size, low.size))
        result[0] = np.where(least == greatest, least, 0)
        result[self._append(units, flat[:, chosen], low[chosen], high[chosen], steps), chosen] = 1.0
        return result.reshape(-1, *form.shape[1:])

    def add_max(self, node: Max, form: FloatArray, known: Range) -> FloatArray:
        """max(m, e) = m + max(e − m, 0), element after element of the window: a unit for each pair whose order is open."""
        low, high = known[0].reshape(-1), known[1].reshape(-1)
        position = np.arange(low.size).reshape(1, *form.shape[1:])
        members = windows(position, node.window, fill=-1)[0]
        shape, members = members.shape[:3], members.reshape(-1, members.shape[3] * members.shape[4])
        flat = form.reshape(form.shape[0], -1)
        order = np.argsort(np.where(members >= 0, -high[members], np.iinfo(np.int64).max), axis=1, kind="stable")
        members = np.take_along_axis(members, order, axis=1)
        best, least, greatest = flat[:, members[:, 0]], low[members[:, 0]], high[members[:, 0]]
        for column in members[:, 1:].T:
            best = _widen(best, self.rows)
            down, up = low[column] - greatest, high[column] - least
            wins, open_ = (column >= 0) & (down >= 0), np.flatnonzero((column >= 0) & (down < 0) & (up > 0))
            candidate = _widen(flat[:, column], self.rows)
            difference = candidate[:, open_] - best[:, open_]
            steps = [(np.arange(1.0, reach + 1), 0) for reach in up[open_].tolist()]
            units = [Unit("", -1)] * open_.size
            fresh = self._append(units, difference, down[open_], up[open_], steps)
            best = _widen(np.where(wins, candidate, best), self.rows)
            best[fresh, open_] += 1.0
            least = np.where(column >= 0, np.maximum(least, low[column]), least)
            greatest = np.where(column >= 0, np.maximum(greatest, high[column]), greatest)
        return best.reshape(-1, *shape)

    def _append(
        self, units: list[Unit], form: FloatArray, low: IntegerArray, high: IntegerArray, steps: list[tuple[FloatArray, int]]
    ) -> IntegerArray:
        """Add one block of units; returns their rows in later forms."""
        start = len(self.units)
        self.units += units
        self.steps += steps
        if units:
            self.blocks.append((start, len(self.units)))
        self.forms.append(form)
        self.ranges.append((low, high))
        self.unit_rows.append(self._new_rows(len(units)))
        return self.unit_rows[-1]

    def _new_rows(self, count: int) -> IntegerArray:
        self.rows += count
        return self.rows - count + np.arange(count)

    def _with_error(self, form: FloatArray, low: IntegerArray, high: IntegerArray) -> FloatArray:
        """A form of shape (rows, elements) plus an additional input in low … high for each element."""
        form[0] += np.where(low == high, low, 0)
        chosen = np.flatnonzero(low < high)
        rows = self._new_rows(chosen.size)
        self.input_index.append(np.full(chosen.size, -1, dtype=np.int64))
        self.input_ranges.append((low[chosen], high[chosen]))
        self.input_rows.append(rows)
        form = _widen(form, self.rows)
        form[rows, chosen] = 1.0
        return form

    def add_table(self, node: Table, form: FloatArray, known: Range) -> FloatArray:
        """A line through the ends of each element's reachable part of the table, and its error."""
        low, high = known[0].reshape(-1), known[1].reshape(-1)
        if int((high - low).max()) > TABLE_LIMIT:
            reason = f"the bounds support tables of inputs that vary by at most {TABLE_LIMIT}"
            raise UnsupportedModelError(node.name, "Table", None, reason)
        row = np.broadcast_to(node.row, form.shape[1:]).reshape(-1)
        slope, least, greatest = (np.zeros_like(low) for _ in range(3))
        for element, (index, start, stop) in enumerate(zip(row, low, high, strict=True)):
            codes = np.arange(start, stop + 1)
            values = node.values[index, np.clip(codes - node.first, 0, node.values.shape[1] - 1)]
            slope[element] = round(int(values[-1] - values[0]) / max(1, stop - start))
            error = values - slope[element] * codes
            least[element], greatest[element] = error.min(), error.max()
        result = self._with_error(form.reshape(form.shape[0], -1) * slope, least, greatest)
        return result.reshape(-1, *form.shape[1:])

    def add_product(self, node: Product, forms: list[FloatArray], known: list[Range]) -> FloatArray:
        """a·b = m·b + n·a − m·n + (a − m)·(b − n) around the middles m, n; the last term is the error."""
        flat = [form.reshape(form.shape[0], -1).copy() for form in forms]
        for form, zero_point in zip(flat, node.zero_points, strict=True):
            form[0] -= zero_point
        ends = [
            (low.reshape(-1) - zero, high.reshape(-1) - zero) for (low, high), zero in zip(known, node.zero_points, strict=True)
        ]
        middle = [(low + high) // 2 for low, high in ends]
        centred = [(low - m, high - m) for (low, high), m in zip(ends, middle, strict=True)]
        corners = np.stack([a * b for a in centred[0] for b in centred[1]])
        result = flat[0] * middle[1] + flat[1] * middle[0]
        result[0] -= middle[0] * middle[1]
        return self._with_error(result, corners.min(axis=0), corners.max(axis=0)).reshape(-1, *forms[0].shape[1:])

    def add_outputs(self, view: OutputView, form: FloatArray, known: Range, classes: tuple[int, ...]) -> None:
        element = view.element[list(classes)]
        units = [Unit(view.node, int(e), label) for e, label in zip(element, classes, strict=True)]
        low, high = known[0].reshape(-1)[element], known[1].reshape(-1)[element]
        self._append(units, form.reshape(form.shape[0], -1)[:, element], low, high, [(np.empty(0), 0)] * len(classes))

    def finish(self) -> Program:
        count = len(self.units)
        if count * self.rows > SIZE_LIMIT:
            reason = f"{count} units over {self.rows} variables are too many for dense matrices"
            raise UnsupportedModelError(self.units[-1].node, "network", None, reason)
        matrix = np.zeros((count, self.rows))
        start = 0
        for form in self.forms:
            matrix[start : start + form.shape[1], : form.shape[0]] = form.T
            start += form.shape[1]
        if count and np.abs(matrix).max() >= EXACT_FLOAT64:
            reason = "coefficients of 2⁵³ or more are not supported"
            raise UnsupportedModelError(self.units[-1].node, "network", None, reason)
        low, high = (np.concatenate([pair[side] for pair in self.input_ranges]).astype(np.float64) for side in (0, 1))
        input_rows, unit_rows = np.concatenate(self.input_rows), np.concatenate(self.unit_rows)
        width = max((len(steps) for steps, _ in self.steps), default=0)
        thresholds = np.full((count, max(width, 1)), np.inf)
        spacing, unevenness = np.ones(count), np.zeros(count)
        for unit, (steps, _) in enumerate(self.steps):
            thresholds[unit, : len(steps)] = steps
            if len(steps) > 1:
                spacing[unit] = (steps[-1] - steps[0]) / (len(steps) - 1)
                line = steps[0] + spacing[unit] * np.arange(len(steps))
                deviation = steps - line
                if np.any(np.diff(steps) != steps[1] - steps[0]):
                    unevenness[unit] = np.ceil(deviation.max() - deviation.min()) + 1  # +1 covers rounding of the line
        first_value = np.array([first for _, first in self.steps], dtype=np.float64)
        last_value = first_value + [len(steps) for steps, _ in self.steps]
        largest_x = np.maximum(np.maximum(np.abs(low), np.abs(high)), 1)
        largest_y = np.maximum(np.maximum(np.abs(first_value), np.abs(last_value)), 1)
        inputs, values = matrix[:, input_rows], matrix[:, unit_rows]
        equation_size = np.abs(matrix[:, 0]) + np.abs(inputs) @ largest_x + np.abs(values) @ largest_y
        convert = torch.from_numpy
        bounds = [np.concatenate([pair[side] for pair in self.ranges]).astype(np.float64) for side in (0, 1)]
        if count and max(equation_size.max(), *(np.abs(bound).max() for bound in bounds)) >= EXACT_FLOAT64 / 2:
            reason = "sums of 2⁵² or more are not supported by the bounds"
            raise UnsupportedModelError(self.units[-1].node, "network", None, reason)
        return Program(
            units=tuple(self.units),
            blocks=tuple(self.blocks),
            input_index=np.concatenate(self.input_index),
            input_low=convert(low),
            input_high=convert(high),
            input_matrix=convert(inputs),
            unit_matrix=convert(values),
            constant=convert(matrix[:, 0].copy()),
            low=convert(bounds[0]),
            high=convert(bounds[1]),
            thresholds=convert(thresholds),
            first_value=convert(first_value),
            spacing=convert(spacing),
            unevenness=convert(unevenness),
            has_value=convert(np.array([float(unit.label is None) for unit in self.units])),
            equation_size=convert(equation_size),
        )
