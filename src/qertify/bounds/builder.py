"""Collecting the variables, units and affine forms of a `Program`."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from qertify.bounds.program import Program, Unit
from qertify.errors import UnsupportedModelError
from qertify.network.linear import EXACT_FLOAT64, windows
from qertify.network.nodes import Max, Product, Staircase, Table
from qertify.network.ranges import Range
from qertify.network.staircase import gap_of
from qertify.network.tensor import FloatArray, IntegerArray
from qertify.specification.cases import OutputView

SIZE_LIMIT = 1 << 27
"""Largest number of matrix entries that one node's affine form may take while compiling (1 GiB of float64)."""

TABLE_LIMIT = 1 << 16


def widen(form: FloatArray, rows: int) -> FloatArray:
    """An affine form of a node's value, (rows seen then, *shape), with rows for the variables seen since."""
    missing = rows - form.shape[0]
    return np.concatenate([form, np.zeros((missing, *form.shape[1:]))]) if missing else form


Steps = tuple[FloatArray, int] | None
"""Thresholds and least value of a unit's staircase; None without a value."""


class Builder:
    """Collects variables and the affine forms of units. Row 0 of a form is its constant, the others are variables."""

    def __init__(self) -> None:
        self._input_index: list[IntegerArray] = []
        self._input_ranges: list[tuple[IntegerArray, IntegerArray]] = []
        self._input_rows: list[IntegerArray] = []
        self._unit_rows: list[IntegerArray] = []
        self.rows = 1
        self._units: list[Unit] = []
        self._blocks: list[tuple[int, int]] = []
        self._forms: list[FloatArray] = []
        self._ranges: list[tuple[IntegerArray, IntegerArray]] = []
        self._steps: list[Steps] = []
        self._divisors: list[FloatArray] = []
        self._slacks: list[FloatArray] = []
        self._follows: list[tuple[int, int, int]] = []
        self._coupled: tuple[IntegerArray, FloatArray] | None = None

    @property
    def units(self) -> int:
        """How many units and rows there are."""
        return len(self._units)

    def fork(self) -> Builder:
        """A copy to which more can be added."""
        fork = copy.copy(self)
        for name, value in vars(self).items():
            setattr(fork, name, value[:] if isinstance(value, list) else value)
        return fork

    def variable_range(self) -> tuple[FloatArray, FloatArray]:
        """Least and greatest value of the constant one and of each variable, (rows,); integers. Rows have the value 0."""
        low, high = np.zeros(self.rows), np.zeros(self.rows)
        low[0] = high[0] = 1
        for rows, (least, greatest) in zip(self._input_rows, self._input_ranges, strict=True):
            low[rows], high[rows] = least, greatest
        first = 0
        for rows, (least, greatest), divisor in zip(self._unit_rows, self._ranges, self._divisors, strict=True):
            steps = self._steps[first : first + rows.size]
            first += rows.size
            low[rows] = [0 if given is None else given[1] for given in steps]
            high[rows] = [0 if given is None else given[1] + len(given[0]) for given in steps]
            real = divisor > 0
            low[rows[real]], high[rows[real]] = (np.maximum(end[real], 0) / divisor[real] for end in (least, greatest))
        return low, high

    def add_inputs(self, low: IntegerArray, high: IntegerArray) -> FloatArray:
        """The network's inputs, of its input shape, as far as they vary; returns their affine form."""
        flat_low, flat_high = low.reshape(-1), high.reshape(-1)
        varies = np.flatnonzero(flat_low < flat_high)
        return self._vary(np.zeros((self.rows, low.size)), flat_low, flat_high, varies).reshape(-1, *low.shape)

    def add_errors(self, form: FloatArray, low: IntegerArray, high: IntegerArray) -> FloatArray:
        """A form of shape (rows, elements) plus an additional input in low … high for each element."""
        return self._vary(form, low, high, np.full(int(np.count_nonzero(low < high)), -1, dtype=np.int64))

    def _vary(self, form: FloatArray, low: IntegerArray, high: IntegerArray, index: IntegerArray) -> FloatArray:
        form[0] += np.where(low == high, low, 0)
        chosen = np.flatnonzero(low < high)
        rows = self._new_rows(chosen.size)
        self._input_index.append(index)
        self._input_ranges.append((low[chosen], high[chosen]))
        self._input_rows.append(rows)
        form = widen(form, self.rows)
        form[rows, chosen] = 1.0
        return form

    def follow(self, first: int, rectifiers: IntegerArray, takes: int) -> None:
        """Say that rows from position ``first`` on follow rectifiers, given by their rows in forms."""
        place = {row: unit for unit, row in enumerate(np.concatenate(self._unit_rows).tolist())}
        self._follows += [(first + offset, place[row], takes) for offset, row in enumerate(rectifiers.tolist())]

    def couple(self, pairs: IntegerArray, corners: FloatArray) -> None:
        """Confine pairs of inputs, (m, 2) positions among all inputs, to the hulls of their corners, (m, 8, 2)."""
        self._coupled = pairs, corners

    def add_rectifiers(
        self,
        name: str,
        elements: IntegerArray,
        form: FloatArray,
        low: IntegerArray,
        high: IntegerArray,
        divisor: int,
        slack: FloatArray,
    ) -> IntegerArray:
        """Units y = max(z, 0) / divisor of real accumulators z = form ± slack; returns their rows in later forms.

        Args:
            form: (rows, elements). low, high: multiples of the divisor, so that values there are integers.
            divisor: a power of two.
            slack: integers ≥ 0.
        """
        units = [Unit(name, int(element)) for element in elements]
        return self._append(units, form, low, high, [(np.empty(0), 0)] * len(units), np.full(len(units), float(divisor)), slack)

    def add_rows(
        self, labels: Sequence[int | None], form: FloatArray, low: IntegerArray, high: IntegerArray, slack: FloatArray
    ) -> None:
        """Rows: affine functions form ± slack, (rows, count), whose ranges are known; with labels, outputs."""
        units = [Unit("", -1, label) for label in labels]
        self._append(units, form, low, high, [None] * len(units), slack=slack)

    def add_staircase(self, node: Staircase, form: FloatArray, known: Range) -> FloatArray:
        """Turn the elements that are not constant into units; returns the affine form of the staircase's value.

        An enclosure is its lower staircase plus an error between zero and the widest gap within reach.
        """
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
        if node.upper is not None:
            ends = zip(row.tolist(), low.tolist(), high.tolist(), strict=True)
            gaps = np.array([gap_of(node.steps, node.upper, *end) for end in ends], dtype=np.int64)
            result = self.add_errors(result, np.zeros_like(gaps), gaps)
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
            best = widen(best, self.rows)
            down, up = low[column] - greatest, high[column] - least
            wins, open_ = (column >= 0) & (down >= 0), np.flatnonzero((column >= 0) & (down < 0) & (up > 0))
            candidate = widen(flat[:, column], self.rows)
            difference = candidate[:, open_] - best[:, open_]
            steps = [(np.arange(1.0, reach + 1), 0) for reach in up[open_].tolist()]
            units = [Unit("", -1)] * open_.size
            fresh = self._append(units, difference, down[open_], up[open_], steps)
            best = widen(np.where(wins, candidate, best), self.rows)
            best[fresh, open_] += 1.0
            least = np.where(column >= 0, np.maximum(least, low[column]), least)
            greatest = np.where(column >= 0, np.maximum(greatest, high[column]), greatest)
        return best.reshape(-1, *shape)

    def _append(
        self,
        units: list[Unit],
        form: FloatArray,
        low: IntegerArray,
        high: IntegerArray,
        steps: Sequence[Steps],
        divisor: FloatArray | None = None,
        slack: FloatArray | None = None,
    ) -> IntegerArray:
        """Add one block of units; returns their rows in later forms."""
        start, count = len(self._units), len(units)
        self._units += units
        self._steps += steps
        if units:
            self._blocks.append((start, len(self._units)))
        self._forms.append(form)
        self._ranges.append((low, high))
        self._divisors.append(np.zeros(count) if divisor is None else divisor)
        self._slacks.append(np.zeros(count) if slack is None else slack)
        self._unit_rows.append(self._new_rows(count))
        return self._unit_rows[-1]

    def _new_rows(self, count: int) -> IntegerArray:
        self.rows += count
        return self.rows - count + np.arange(count)

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
        result = self.add_errors(form.reshape(form.shape[0], -1) * slope, least, greatest)
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
        return self.add_errors(result, corners.min(axis=0), corners.max(axis=0)).reshape(-1, *forms[0].shape[1:])

    def add_outputs(self, view: OutputView, form: FloatArray, known: Range, classes: tuple[int, ...]) -> None:
        element = view.element[list(classes)]
        units = [Unit(view.node, int(e), label) for e, label in zip(element, classes, strict=True)]
        low, high = known[0].reshape(-1)[element], known[1].reshape(-1)[element]
        self._append(units, form.reshape(form.shape[0], -1)[:, element], low, high, [None] * len(classes))

    def _followed(self, count: int) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        if not self._follows:
            return None, None
        follows, takes = torch.full((count,), -1, dtype=torch.long), torch.zeros(count, dtype=torch.float64)
        for row, unit, sign in self._follows:
            follows[row], takes[row] = unit, sign
        return follows, takes

    def finish(self) -> Program:
        """The program of everything added so far.

        Raises:
            UnsupportedModelError: too many coefficients, or numbers too large for float64.
        """
        count = len(self._units)
        if count * self.rows > SIZE_LIMIT:
            reason = f"{count} units over {self.rows} variables are too many for dense matrices"
            raise UnsupportedModelError(self._units[-1].node, "network", None, reason)
        matrix = np.zeros((count, self.rows))
        start = 0
        for form in self._forms:
            matrix[start : start + form.shape[1], : form.shape[0]] = form.T
            start += form.shape[1]
        if count and np.abs(matrix).max() >= EXACT_FLOAT64:
            reason = "coefficients of 2⁵³ or more are not supported"
            raise UnsupportedModelError(self._units[-1].node, "network", None, reason)
        low, high = (np.concatenate([pair[side] for pair in self._input_ranges]).astype(np.float64) for side in (0, 1))
        input_rows, unit_rows = np.concatenate(self._input_rows), np.concatenate(self._unit_rows)
        table = [(np.empty(0), 0) if steps is None else steps for steps in self._steps]
        width = max((len(steps) for steps, _ in table), default=0)
        thresholds = np.full((count, max(width, 1)), np.inf)
        spacing, unevenness = np.ones(count), np.zeros(count)
        divisor, slack = np.concatenate(self._divisors), np.concatenate(self._slacks)
        spacing[divisor > 0] = divisor[divisor > 0]
        for unit, (steps, _) in enumerate(table):
            thresholds[unit, : len(steps)] = steps
            if len(steps) > 1:
                spacing[unit] = (steps[-1] - steps[0]) / (len(steps) - 1)
                line = steps[0] + spacing[unit] * np.arange(len(steps))
                deviation = steps - line
                if np.any(np.diff(steps) != steps[1] - steps[0]):
                    unevenness[unit] = np.ceil(deviation.max() - deviation.min()) + 1  # +1 covers rounding of the line
        bounds = [np.concatenate([pair[side] for pair in self._ranges]).astype(np.float64) for side in (0, 1)]
        first_value = np.array([first for _, first in table], dtype=np.float64)
        last_value = first_value + [len(steps) for steps, _ in table]
        last_value += np.where(divisor > 0, np.ceil(np.maximum(bounds[1], 0) / np.maximum(divisor, 1)), 0)
        largest_x = np.maximum(np.maximum(np.abs(low), np.abs(high)), 1)
        largest_y = np.maximum(np.maximum(np.abs(first_value), np.abs(last_value)), 1)
        inputs, values = matrix[:, input_rows], matrix[:, unit_rows]
        equation_size = np.abs(matrix[:, 0]) + np.abs(inputs) @ largest_x + np.abs(values) @ largest_y + slack
        convert = torch.from_numpy
        if count and max(equation_size.max(), *(np.abs(bound).max() for bound in bounds)) >= EXACT_FLOAT64 / 2:
            reason = "sums of 2⁵² or more are not supported by the bounds"
            raise UnsupportedModelError(self._units[-1].node, "network", None, reason)
        follows, takes = self._followed(count)
        return Program(
            units=tuple(self._units),
            blocks=tuple(self._blocks),
            input_index=np.concatenate(self._input_index),
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
            has_value=convert(np.array([float(steps is not None) for steps in self._steps])),
            equation_size=convert(equation_size),
            divisor=convert(divisor) if divisor.any() else None,
            slack=convert(slack) if slack.any() else None,
            follows=follows,
            takes=takes,
            coupled=None if self._coupled is None else convert(self._coupled[0]),
            coupled_corners=None if self._coupled is None else convert(self._coupled[1]),
        )
