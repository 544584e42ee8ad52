"""Collecting the operators, inputs and units of a `Program` whose equations are never formed as matrices."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.dual import EXACT
from qertify.bounds.levels import REACH, ROW_LIMIT, LevelsBuilder, measure
from qertify.bounds.operators import Errors, Followed, Operator, Operators, OutputsOperator
from qertify.bounds.passes import Coefficients
from qertify.bounds.program import Program, Unit
from qertify.errors import UnsupportedModelError
from qertify.network.tensor import FloatArray, IntegerArray

Ends = tuple[IntegerArray | FloatArray, IntegerArray | FloatArray]
"""Least and greatest values, one element a unit; integers."""


class OperatorBuilder:
    """Collects operators, units and inputs."""

    def __init__(self) -> None:
        self.steps: list[Operator] = []
        self.units: list[Unit] = []
        self.levels = LevelsBuilder()
        self._blocks: list[tuple[int, int]] = []
        self._ranges: list[Ends] = []
        self._values: list[Ends] = []
        self._divisors: list[FloatArray] = []
        self._slacks: list[FloatArray] = []
        self._follows: list[IntegerArray] = []
        self._takes: list[FloatArray] = []
        self._input_index: list[IntegerArray] = []
        self._input_ranges: list[Ends] = []
        self._inputs = 0
        self._coupled: tuple[IntegerArray, FloatArray] | None = None

    def fork(self) -> OperatorBuilder:
        """A copy to which more can be added; thresholds excepted."""
        fork = copy.copy(self)
        for name, value in vars(self).items():
            setattr(fork, name, value[:] if isinstance(value, list) else value)
        fork.levels = self.levels.fork()
        return fork

    def add_inputs(self, index: IntegerArray, low: IntegerArray, high: IntegerArray) -> int:
        """More inputs; returns the first's number."""
        self._inputs += len(index)
        self._input_index.append(index)
        self._input_ranges.append((low, high))
        return self._inputs - len(index)

    def add_errors(self, constant: IntegerArray, low: IntegerArray, high: IntegerArray) -> Errors:
        """An additional input in low … high for each element, besides a constant."""
        chosen = np.flatnonzero(low < high)
        first = self.add_inputs(np.full(chosen.size, -1, dtype=np.int64), low[chosen], high[chosen])
        return Errors(coefficients(constant + np.where(low == high, low, 0)), torch.from_numpy(chosen), first)

    def couple(self, pairs: IntegerArray, corners: FloatArray) -> None:
        """Confine pairs of inputs, (m, 2) positions among all inputs, to the hulls of their corners, (m, 8, 2)."""
        self._coupled = pairs, corners

    def add_units(
        self,
        units: list[Unit],
        ends: Ends,
        values: Ends,
        rows: IntegerArray | None = None,
        divisor: float = 0.0,
        slack: FloatArray | None = None,
        follows: IntegerArray | None = None,
        takes: int = 0,
    ) -> int:
        """One block of units; returns the first's number.

        Args:
            ends: of the accumulators. values: of the staircases.
            rows: of `levels`; None for units without thresholds.
            divisor: of rectifiers. slack: of the accumulators. follows, takes: as in `Program`.
        """
        first, count = len(self.units), len(units)
        self.units += units
        if units:
            self._blocks.append((first, len(self.units)))
        self._ranges.append(ends)
        self._values.append(values)
        self.levels.add_units(np.zeros(count, dtype=np.int64) if rows is None else rows)
        self._divisors.append(np.full(count, divisor))
        self._slacks.append(np.zeros(count) if slack is None else slack)
        self._follows.append(np.full(count, -1, dtype=np.int64) if follows is None else follows)
        self._takes.append(np.full(count, float(takes)))
        return first

    def add_outputs(
        self,
        units: list[Unit],
        source: str,
        size: int,
        chosen: IntegerArray,
        ends: Ends,
        slack: FloatArray | None = None,
        followed: Followed | None = None,
        follows: IntegerArray | None = None,
        takes: int = 0,
    ) -> None:
        """Units without a value: elements of a node of ``size`` elements."""
        nothing = np.zeros(len(units))
        first = self.add_units(units, ends, (nothing, nothing), slack=slack, follows=follows, takes=takes)
        self.steps.append(OutputsOperator(source, size, torch.from_numpy(chosen), first, followed))

    def finish(self) -> Program:
        """The program of everything added so far.

        Raises:
            UnsupportedModelError: numbers too large for float64.
        """
        if self.levels.rows > ROW_LIMIT:
            raise UnsupportedModelError(self.units[-1].node, "network", None, f"more than {ROW_LIMIT} different staircases")
        levels = self.levels.finish()
        low, high = _joined(self._ranges)
        first_value, last_value = _joined(self._values)
        input_low, input_high = _joined(self._input_ranges)
        divisor, slack = (torch.from_numpy(np.concatenate(parts)) for parts in (self._divisors, self._slacks))
        follows = torch.from_numpy(np.concatenate(self._follows))
        following = bool((follows >= 0).any())
        operators = Operators(tuple(self.steps), self._inputs, len(self.units))
        largest_x = torch.maximum(input_low.abs(), input_high.abs()).clamp(min=1)
        largest_y = torch.maximum(first_value.abs(), last_value.abs()).clamp(min=1)
        sizes = operators.forward(largest_x[None], lambda first, last, _: largest_y[None, first:last], absolute=True)
        stepped = levels.count > 0
        furthest = max((float(bound[stepped].abs().max()) for bound in (low, high) if stepped.any()), default=0.0)
        widest = max((float(part.abs().max()) for part in (low, high, slack) if part.numel()), default=0.0)
        if max(sizes.largest, widest) >= EXACT or furthest >= REACH:
            reason = "accumulators of 2³³ or more and sums of 2⁵² or more are not supported by the bounds"
            raise UnsupportedModelError(self.units[-1].node, "network", None, reason)
        constant = operators.forward(torch.zeros_like(input_low)[None], lambda first, last, z: torch.zeros_like(z)).units[0]
        ones = operators.backward(constant[None], lambda first, last, a: torch.ones_like(a), absolute=True)
        spacing, unevenness = measure(levels, first_value, torch.where(divisor > 0, first_value, last_value))
        empty = torch.empty(0, 0, dtype=torch.float64)
        pairs, corners = (None, None) if self._coupled is None else (torch.from_numpy(part) for part in self._coupled)
        return Program(
            units=tuple(self.units),
            blocks=tuple(self._blocks),
            input_index=np.concatenate(self._input_index),
            input_low=input_low,
            input_high=input_high,
            input_matrix=empty,
            unit_matrix=empty,
            constant=constant,
            low=low,
            high=high,
            thresholds=empty,
            first_value=first_value,
            spacing=torch.where(divisor > 0, divisor, spacing),
            unevenness=unevenness,
            has_value=(first_value < last_value).double(),
            equation_size=sizes.units[0] + slack,
            divisor=divisor if bool(divisor.any()) else None,
            slack=slack if bool(slack.any()) else None,
            follows=follows if following else None,
            takes=torch.from_numpy(np.concatenate(self._takes)) if following else None,
            coupled=pairs,
            coupled_corners=corners,
            operators=replace(operators, reach=ones.largest),
            levels=levels,
            last_value=last_value,
        )


def _joined(pairs: list[Ends]) -> tuple[Tensor, Tensor]:
    first, second = (np.concatenate([pair[side] for pair in pairs]).astype(np.float64) for side in (0, 1))
    return torch.from_numpy(first), torch.from_numpy(second)


def coefficients(values: IntegerArray | FloatArray) -> Coefficients:
    return Coefficients(torch.from_numpy(np.array(values, dtype=np.float64)))
