"""Collecting the variables, units and affine forms of a `Program`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from qertify.bounds.levels import evenness
from qertify.bounds.program import Program, Unit
from qertify.errors import UnsupportedModelError
from qertify.network.linear import EXACT_FLOAT64, windows
from qertify.network.nodes import Max, Product, Staircase, Table
from qertify.network.ranges import Range
from qertify.network.staircase import gap_of
from qertify.network.tensor import BoolArray, FloatArray, IntegerArray
from qertify.specification.cases import OutputView

SIZE_LIMIT = 1 << 27
"""Largest number of matrix entries that one node's affine form may take while compiling (1 GiB of float64)."""

TABLE_LIMIT = 1 << 16


def widen(form: FloatArray, rows: int) -> FloatArray:
    """An affine form of a node's value, (rows seen then, *shape), with rows for the variables seen since."""
    missing = rows - form.shape[0]
    return np.concatenate([form, np.zeros((missing, *form.shape[1:]))]) if missing else form


Ends = tuple[IntegerArray, IntegerArray]
"""Least and greatest values, one element a unit; integers."""


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Units that were added together, none of which reads another one; arrays have an entry for each.

    Attributes:
        rows: where their values are in later forms. form: (rows before, count).
        low, high: ranges of the accumulators, integers. least, greatest: of the values, integers; 0 without a value.
        thresholds: (count, width), padded with infinity.
        follows: the row in forms of what is followed, −1 for nothing.
        spacing, unevenness, has_value, divisor, slack, takes: as in `Program`.
    """

    units: list[Unit]
    rows: IntegerArray
    form: FloatArray
    low: IntegerArray
    high: IntegerArray
    least: FloatArray
    greatest: FloatArray
    thresholds: FloatArray
    spacing: FloatArray
    unevenness: FloatArray
    has_value: bool
    divisor: float
    slack: FloatArray
    follows: IntegerArray
    takes: int


class Builder:
    """Collects variables and the affine forms of units. Row 0 of a form is its constant, the others are variables."""

    def __init__(self) -> None:
        self._input_index: list[IntegerArray] = []
        self._input_ranges: list[tuple[IntegerArray, IntegerArray]] = []
        self._input_rows: list[IntegerArray] = []
        self._blocks: list[_Block] = []
        self._coupled: tuple[IntegerArray, FloatArray] | None = None
        self._links: tuple[tuple[IntegerArray, FloatArray], ...] = ()
        self.rows = 1

    @property
    def units(self) -> int:
        """How many units and rows there are."""
        return sum(len(block.units) for block in self._blocks)

    def part(self, needed: BoolArray) -> Builder:
        """A copy to which more can be added, of the inputs, the units that some variables depend on, and rows over these.

        Args:
            needed: which variables, (rows,).
        """
        needed = needed.copy()
        needed[np.concatenate([[0], *self._input_rows])] = True
        reads = [(block.form != 0).any(axis=1) for block in self._blocks]
        for block, read in zip(reversed(self._blocks), reversed(reads), strict=True):
            if needed[block.rows].any():
                needed[block.rows] = True
                needed[: read.size] |= read
        result = copy.copy(self)
        result._input_index, result._input_ranges = self._input_index[:], self._input_ranges[:]
        result._input_rows, result._links = self._input_rows[:], ()
        result._blocks = [
            block
            for block, read in zip(self._blocks, reads, strict=True)
            if needed[block.rows].all() or not (block.has_value or (read & ~needed[: read.size]).any())
        ]
        return result

    def variable_range(self) -> tuple[FloatArray, FloatArray]:
        """Least and greatest value of the constant one and of each variable, (rows,); integers. Rows have the value 0."""
        low, high = np.zeros(self.rows), np.zeros(self.rows)
        low[0] = high[0] = 1
        for rows, (least, greatest) in zip(self._input_rows, self._input_ranges, strict=True):
            low[rows], high[rows] = least, greatest
        for block in self._blocks:
            low[block.rows], high[block.rows] = block.least, block.greatest
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
        least, greatest = (np.maximum(end, 0) / divisor for end in (low, high))
        return self._append(units, form, (low, high), (least, greatest), divisor=divisor, slack=slack)

    def add_rows(
        self,
        labels: Sequence[int | None],
        form: FloatArray,
        low: IntegerArray,
        high: IntegerArray,
        slack: FloatArray,
        follows: IntegerArray | None = None,
        takes: int = 0,
    ) -> None:
        """Rows: affine functions form ± slack, (rows, count), whose ranges are known; with labels, outputs.

        Args:
            follows: for each the row in forms of the rectifier that it follows. takes: as in `Program`.
        """
        self._append([Unit("", -1, label) for label in labels], form, (low, high), slack=slack, follows=follows, takes=takes)

    def link(self, units: IntegerArray, numbers: FloatArray) -> None:
        """Pairs of units, and the rows on them: more of `Program.link_units` and `Program.link_numbers`."""
        self._links = (*self._links, (units, numbers))

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
        first, last = least[chosen] - node.steps.low, greatest[chosen] - node.steps.low
        position = first[:, None] + np.arange(int((last - first).max(initial=0)))
        known_thresholds = node.steps.thresholds[row[chosen, None], np.minimum(position, last[:, None] - 1)]
        thresholds = np.where(position < last[:, None], known_thresholds.astype(np.float64), np.inf)
        result = np.zeros((self.rows + chosen.size, low.size))
        result[0] = np.where(least == greatest, least, 0)
        ends = (low[chosen], high[chosen]), (least[chosen], greatest[chosen])
        result[self._append(units, flat[:, chosen], *ends, thresholds), chosen] = 1.0
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
            gain = up[open_]
            count = np.arange(1.0, float(gain.max(initial=0)) + 1)
            thresholds = np.where(count <= gain[:, None], count, np.inf)
            units = [Unit("", -1)] * open_.size
            fresh = self._append(units, difference, (down[open_], gain), (np.zeros_like(gain), gain), thresholds)
            best = widen(np.where(wins, candidate, best), self.rows)
            best[fresh, open_] += 1.0
            least = np.where(column >= 0, np.maximum(least, low[column]), least)
            greatest = np.where(column >= 0, np.maximum(greatest, high[column]), greatest)
        return best.reshape(-1, *shape)

    def _append(
        self,
        units: list[Unit],
        form: FloatArray,
        ends: Ends,
        values: Ends | tuple[FloatArray, FloatArray] | None = None,
        thresholds: FloatArray | None = None,
        divisor: float = 0.0,
        slack: FloatArray | None = None,
        follows: IntegerArray | None = None,
        takes: int = 0,
    ) -> IntegerArray:
        """Add one block of units; returns their rows in later forms.

        Args:
            ends: of the accumulators. values: least and greatest ones; None for units without a value.
        """
        count, nothing = len(units), np.zeros(len(units))
        least, greatest = (nothing, nothing) if values is None else (end.astype(np.float64) for end in values)
        thresholds = np.empty((count, 0)) if thresholds is None else thresholds
        spacing, unevenness = (part.numpy() for part in evenness(torch.from_numpy(thresholds)))
        block = _Block(
            units, self._new_rows(count), form, *ends, least, greatest, thresholds,
            np.full(count, divisor) if divisor else spacing, unevenness, values is not None, divisor,
            nothing if slack is None else slack, np.full(count, -1) if follows is None else follows, takes,
        )  # fmt: skip
        if units:
            self._blocks.append(block)
        return block.rows

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
        self._append(units, form.reshape(form.shape[0], -1)[:, element], (low, high))

    def finish(self) -> Program:
        """The program of everything added so far.

        Raises:
            UnsupportedModelError: too many coefficients, or numbers too large for float64.
        """
        blocks = self._blocks
        units = tuple(unit for block in blocks for unit in block.units)
        count = len(units)
        if count * self.rows > SIZE_LIMIT:
            reason = f"{count} units over {self.rows} variables are too many for dense matrices"
            raise UnsupportedModelError(units[-1].node, "network", None, reason)

        def joined(name: str) -> FloatArray:
            parts = [np.broadcast_to(getattr(block, name), len(block.units)) for block in blocks]
            return np.concatenate([np.empty(0), *parts])

        low, high = (np.concatenate([pair[side] for pair in self._input_ranges]).astype(np.float64) for side in (0, 1))
        input_rows, unit_rows = np.concatenate(self._input_rows), joined("rows").astype(np.int64)
        ends, values = (joined("low"), joined("high")), (joined("least"), joined("greatest"))
        divisor, slack, has_value = joined("divisor"), joined("slack"), joined("has_value")
        constant, inputs, matrix = np.zeros(count), np.zeros((count, low.size)), np.zeros((count, count))
        place = np.full(self.rows, -1)
        place[unit_rows] = np.arange(count)
        stops = np.cumsum([0, *(len(block.units) for block in blocks)]).tolist()
        spans = list(pairwise(stops))
        thresholds = np.full((count, max([1, *(block.thresholds.shape[1] for block in blocks)])), np.inf)
        for block, (start, stop) in zip(blocks, spans, strict=True):
            rows = len(block.form)
            constant[start:stop] = block.form[0]
            seen = input_rows < rows
            inputs[start:stop, seen] = block.form[input_rows[seen]].T
            seen = unit_rows < rows
            matrix[start:stop, seen] = block.form[unit_rows[seen]].T
            thresholds[start:stop, : block.thresholds.shape[1]] = block.thresholds
        if max(float(np.abs(part).max(initial=0.0)) for part in (constant, inputs, matrix)) >= EXACT_FLOAT64:
            reason = "coefficients of 2⁵³ or more are not supported"
            raise UnsupportedModelError(units[-1].node, "network", None, reason)
        largest_x = np.maximum(np.maximum(np.abs(low), np.abs(high)), 1)
        largest_y = np.maximum(np.maximum(np.abs(values[0]), np.abs(values[1])), 1)
        equation_size = np.abs(constant) + np.abs(inputs) @ largest_x + np.abs(matrix) @ largest_y + slack
        if max(float(np.abs(part).max(initial=0.0)) for part in (equation_size, *ends)) >= EXACT_FLOAT64 / 2:
            reason = "sums of 2⁵² or more are not supported by the bounds"
            raise UnsupportedModelError(units[-1].node, "network", None, reason)
        follows = joined("follows").astype(np.int64)
        follows = np.where(follows >= 0, place[follows], -1)
        follow, coupled = bool((follows >= 0).any()), self._coupled
        links = [np.concatenate(parts) for parts in zip(*self._links, strict=True)]
        convert = torch.from_numpy
        return Program(
            units=units,
            blocks=tuple(spans),
            input_index=np.concatenate(self._input_index),
            input_low=convert(low),
            input_high=convert(high),
            input_matrix=convert(inputs),
            unit_matrix=convert(matrix),
            constant=convert(constant),
            low=convert(ends[0]),
            high=convert(ends[1]),
            thresholds=convert(thresholds),
            first_value=convert(np.where(divisor > 0, 0, values[0])),
            spacing=convert(joined("spacing")),
            unevenness=convert(joined("unevenness")),
            has_value=convert(has_value),
            equation_size=convert(equation_size),
            divisor=convert(divisor) if divisor.any() else None,
            slack=convert(slack) if slack.any() else None,
            follows=convert(follows) if follow else None,
            takes=convert(joined("takes")) if follow else None,
            link_units=convert(links[0]) if links else None,
            link_numbers=convert(links[1]) if links else None,
            coupled=None if coupled is None else convert(coupled[0]),
            coupled_corners=None if coupled is None else convert(coupled[1]),
        )
