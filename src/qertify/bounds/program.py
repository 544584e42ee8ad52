"""A network over a box as one affine system: the form in which bounds are searched and proved.

Every element of a staircase whose value is not constant on the box is a *unit* u with an accumulator z_u and a value
y_u = σ_u(z_u); each accumulator is an exact affine function of the inputs and of the values of earlier units,

    z = input_matrix · x + unit_matrix · y + constant.

Output accumulators are units without a value, and so are *rows*, affine functions of which only a range is known. Where a
node is not of this form (a table, a product), an affine map takes its place, and an additional input, confined to the
range of the error, makes up the difference. All entries are integers, held exactly in float64.

Float networks are of this form too, in fixed point: their accumulators are real numbers, known up to a slack, and their
units are rectifiers y = max(z, 0) / divisor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qertify.bounds.levels import Levels
from qertify.bounds.operators import Operators
from qertify.bounds.passes import Fill
from qertify.network.tensor import IntegerArray


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Where one unit comes from, for branching, certificates and the ILP.

    Attributes:
        node: name of the node whose value is the accumulator; "" for the difference of two elements of a maximum.
        element: flat index in that node's value, or −1.
        label: the class, for an output accumulator; None for a hidden unit.
    """

    node: str
    element: int
    label: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A compiled network; N units, n inputs that vary. All tensors are float64 with integer entries.

    Attributes:
        units: the N units in topological order, output accumulators last.
        blocks: (first, last+1) of the units that are read by no unit of the same block, in order.
        input_index: int64 (n,), flat positions of the inputs that vary on the box; −1 for an additional input.
        input_low, input_high: (n,).
        input_matrix: (N, n). unit_matrix: (N, N), strictly lower block triangular. constant: (N,).
        low, high: (N,), proved range of each accumulator on the whole box.
        thresholds: (N, K), rows padded with ±infinity to one common width; T_u(first_value_u + 1 + k) at k.
        first_value: (N,), least value of each staircase; 0 for output accumulators.
        spacing: (N,), distance of consecutive thresholds where even, else of the chord through them.
        unevenness: (N,), 0 where the thresholds are exactly even, else a bound on how far two deviations from a
            line differ, an integer.
        has_value: (N,), 1 for hidden units, 0 for output accumulators.
        equation_size: (N,), bound on |constant| + Σ|input_matrix|·max(|x|, 1) + Σ|unit_matrix|·max(|y|, 1) + slack, not an
            integer.
        divisor: (N,), a power of two for rectifiers, 0 for other units; None where all units are staircases.
        follows: int64 (N,), for a row that is the difference of a rectifier's value and another value, perhaps less a part of
            their accumulators' difference, the rectifier's position, −1 for all other units; None where there is no such row.
        takes: (N,), the sign of the multipliers that such a row is made for, 0 for both.
        link_units: int64 (m, 5), for pairs of a rectifier and a staircase: their positions, and those of rows, −1 for none:
            their values' difference D̂ = up·relu − scale·σ, and twice PARTS·D̂ − share·D, D that of their accumulators.
        link_numbers: (m, 7), integers: the range of D = up·z − factor·ẑ, factor, up, scale, and both shares.
        coupled: int64 (m, 2), pairs of inputs that are not independent; None where all are.
        coupled_corners: (m, 8, 2), the corners of the values of each pair.
        slack: (N,), by how much an accumulator may differ from its equation, in integers; None where by nothing.
        operators, levels, last_value: the equations and the staircases of a large program, with the greatest value of each
            unit, (N,); both matrices and ``thresholds`` are empty then. None where they are not.
    """

    units: tuple[Unit, ...]
    blocks: tuple[tuple[int, int], ...]
    input_index: IntegerArray
    input_low: Tensor
    input_high: Tensor
    input_matrix: Tensor
    unit_matrix: Tensor
    constant: Tensor
    low: Tensor
    high: Tensor
    thresholds: Tensor
    first_value: Tensor
    spacing: Tensor
    unevenness: Tensor
    has_value: Tensor
    equation_size: Tensor
    divisor: Tensor | None = None
    slack: Tensor | None = None
    follows: Tensor | None = None
    takes: Tensor | None = None
    link_units: Tensor | None = None
    link_numbers: Tensor | None = None
    coupled: Tensor | None = None
    coupled_corners: Tensor | None = None
    operators: Operators | None = None
    levels: Levels | None = None
    last_value: Tensor | None = None

    def to(self, device: str) -> Program:
        """The same program with its tensors on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name in Program.__dataclass_fields__ if isinstance(value := getattr(self, name), Tensor)
        }
        if self.operators is not None and self.levels is not None:
            moved |= {"operators": self.operators.to(device), "levels": self.levels.to(device)}
        return replace(self, **moved)

    def head(self, first: int) -> Program:
        """A large program up to the block of units that starts at ``first``, whose units lose their values."""
        assert self.operators is not None
        assert self.levels is not None
        operators = self.operators.head(first)
        names = (
            "constant", "low", "high", "first_value", "spacing", "unevenness", "has_value", "equation_size", "last_value",
            "divisor", "slack", "follows", "takes",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in names}
        parts: dict[str, Any] = {name: part[: operators.units].clone() for name, part in given.items() if part is not None}
        for name in ("has_value", "first_value", "last_value"):
            parts[name][first:] = 0
        blocks = tuple(block for block in self.blocks if block[0] <= first)
        levels = self.levels.head(operators.units, first)
        return replace(self, units=self.units[: operators.units], blocks=blocks, operators=operators, levels=levels, **parts)

    def products(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """total·input_matrix, (batch, n), and total·unit_matrix, (batch, N), for weights of the accumulators (batch, N)."""
        if self.operators is None:
            units = torch.zeros_like(total)
            for first, last in self._valued():
                units[:, first:last] = total[:, first:] @ self.unit_matrix[first:, first:last]
            return total @ self.input_matrix, units
        done = self.operators.backward(total, lambda first, last, _: total[:, first:last])
        return done.inputs, done.units

    def backward(self, objective: Tensor, fill: Fill) -> Tensor:
        """Weights of the inputs, (batch, n), where a block's values weigh on its accumulators as ``fill`` says.

        Args:
            objective: (batch, N), what the accumulators weigh besides.
            fill: first and last+1 of a block, weights of its values, (batch, count) → weights to add to its accumulators. A
                row that follows a rectifier is offered the multiplier that takes the whole weight of the rectifier over.
        """
        if self.operators is not None:
            return self.operators.backward(
                objective, lambda first, last, found: objective[:, first:last] + fill(first, last, found)
            ).inputs
        weight, found, valued = objective.clone(), torch.zeros_like(objective), self._valued()
        for first, last in reversed(self.blocks):
            weight[:, first:last] += fill(first, last, self._offered(found, first, last))
            for start, stop in valued:
                if start < first:
                    stop = min(stop, first)
                    found[:, start:stop] += weight[:, first:last] @ self.unit_matrix[first:last, start:stop]
        return weight @ self.input_matrix

    def _valued(self) -> list[tuple[int, int]]:
        """Runs of blocks of units with values, first and last+1; the other columns of the matrix are zero."""
        runs: list[tuple[int, int]] = []
        for first, last in self.blocks:
            if bool(self.has_value[first:last].any()):
                joined = bool(runs) and runs[-1][1] == first
                runs[-1 if joined else len(runs) :] = [(runs[-1][0] if joined else first, last)]
        return runs

    def _offered(self, found: Tensor, first: int, last: int) -> Tensor:
        """What a backward pass offers a block: weights of values, or of what rows follow, as multipliers that undo them."""
        offered = found[:, first:last]
        rows = first + torch.nonzero(self.follows[first:last] >= 0)[:, 0] if self.follows is not None else found.new_empty(0)
        if self.follows is not None and len(rows):
            partner = self.follows[rows]
            offered = offered.clone()
            offered[:, rows - first] = -found[:, partner] / self.unit_matrix[rows, partner]
        return offered

    def forward(self, x: Tensor, fill: Fill) -> Tensor:
        """Accumulators, (batch, N), at inputs, (batch, n), where ``fill`` turns a block's accumulators into its values."""
        if self.operators is not None:
            return self.operators.forward(x, fill).units
        z = self.constant + x @ self.input_matrix.T
        y = torch.zeros_like(z)
        for first, last in self.blocks:
            if first:
                z[:, first:last] += y[:, :first] @ self.unit_matrix[first:last, :first].T
            y[:, first:last] = fill(first, last, z[:, first:last])
        return z

    def reach(self) -> float:
        """A bound on the sums in `products` of weights between −1 and 1."""
        if self.operators is not None:
            return self.operators.reach
        sums = (float(matrix.abs().sum(0).amax()) for matrix in (self.input_matrix, self.unit_matrix) if matrix.numel())
        return max(sums, default=0.0)

    def output_units(self) -> dict[int, int]:
        """Class → position of its accumulator among the units."""
        return {unit.label: position for position, unit in enumerate(self.units) if unit.label is not None}

    def least_inputs(self, cost: Tensor) -> Tensor:
        """min over the inputs of cost·x, (batch,), as integers if the cost, (batch, n), is of integers."""
        low, high = self.input_low.to(cost.dtype), self.input_high.to(cost.dtype)
        least = torch.minimum(cost * low, cost * high)
        if self.coupled is None or self.coupled_corners is None:
            return least.sum(-1)
        first, second = (cost[:, position] for position in self.coupled.T)
        corners = self.coupled_corners.to(cost.dtype).permute(1, 2, 0)
        best = first * corners[0, 0] + second * corners[0, 1]
        for corner in corners[1:]:
            best = torch.minimum(best, first * corner[0] + second * corner[1])
        least[:, self.coupled.reshape(-1)] = 0
        return least.sum(-1) + best.sum(-1)

    def least_point(self, cost: Tensor) -> Tensor:
        """Where cost·x is least over the inputs, (batch, n), for a cost (batch, n)."""
        x = torch.where(cost > 0, self.input_low, self.input_high).to(cost.dtype)
        if self.coupled is None or self.coupled_corners is None:
            return x
        corners = self.coupled_corners.to(cost.dtype)
        best = (cost[:, self.coupled][:, :, None, :] * corners).sum(-1).argmin(-1)
        x[:, self.coupled] = corners[torch.arange(len(corners), device=best.device), best]
        return x

    def inside_box(self, x: Tensor) -> Tensor:
        """The nearest inputs in the box, (batch, n); the second of a coupled pair follows the first, which is an integer."""
        x = torch.minimum(torch.maximum(x, self.input_low), self.input_high)
        if self.coupled is None or self.coupled_corners is None:
            return x
        x = x.clone()
        first, second = self.coupled.T
        known, value = self.coupled_corners.unbind(-1)
        first_low, first_high = known.amin(-1), known.amax(-1)
        code = x[:, first].round()
        for end in (first_low, first_high):
            at = known == end[:, None]
            least = torch.where(at, value, torch.inf).amin(-1)
            greatest = torch.where(at, value, -torch.inf).amax(-1)
            clipped = torch.minimum(torch.maximum(x[:, second], least), greatest)
            x[:, second] = torch.where(code == end, clipped, x[:, second])
        return x

    def values(self, z: Tensor) -> Tensor:
        """σ_u(z_u), shape (batch, N); integers but for rectifiers."""
        return self.block_values(0, len(self.units), z)

    def block_values(self, first: int, last: int, z: Tensor) -> Tensor:
        """`values` of units first … last − 1 at their accumulators, (batch, last − first)."""
        mine = slice(first, last)
        if self.levels is not None and self.last_value is not None:
            found = self.levels.part(first, last).value(z)
            result = torch.minimum(torch.maximum(found, self.first_value[mine]), self.last_value[mine])
        else:
            steps = torch.searchsorted(self.thresholds[mine], z.T.contiguous(), right=True).T
            result = self.first_value[mine] + steps * self.has_value[mine]
        if self.divisor is None:
            return result
        return torch.where(self.divisor[mine] > 0, z.clamp(min=0) / self.divisor[mine].clamp(min=1), result)

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Integers around σ_u on low … high, (batch, N) each."""
        first, last = self.values(low), self.values(high)
        return (first, last) if self.divisor is None else (first.floor(), last.ceil())

    def inside(self, y: Tensor) -> Tensor:
        """Whether a value is neither the least nor the greatest of its unit, (batch, N)."""
        last = self.last_value
        if last is None:
            last = self.first_value + torch.isfinite(self.thresholds).sum(-1)
        result = (y > self.first_value) & (y < last)
        return result if self.divisor is None else torch.where(self.divisor > 0, y > 0, result)

    def gap(self, unit: int) -> float:
        """Distance between the two parts of a split: 1 for integer accumulators, 0 for real ones, whose parts share a point."""
        return 1.0 if self.divisor is None or not bool(self.divisor[unit]) else 0.0

    def threshold(self, value: Tensor) -> Tensor:
        """T_u(value_u), shape (batch, N); −infinity at or below the least value, +infinity above the greatest."""
        if self.levels is not None:
            return self.levels.threshold(value)
        position = (value - self.first_value).long()
        width = self.thresholds.shape[1]
        found = self.thresholds.gather(1, (position - 1).clamp(0, width - 1).T.contiguous()).T
        found = torch.where(position <= 0, -torch.inf, found)
        return torch.where(position > width, torch.inf, found)
