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
        slack: (N,), by how much an accumulator may differ from its equation, in integers; None where by nothing.
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

    def to(self, device: str) -> Program:
        """The same program with its tensors on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name in Program.__dataclass_fields__ if isinstance(value := getattr(self, name), Tensor)
        }
        return replace(self, **moved)

    def output_units(self) -> dict[int, int]:
        """Class → position of its accumulator among the units."""
        return {unit.label: position for position, unit in enumerate(self.units) if unit.label is not None}

    def values(self, z: Tensor) -> Tensor:
        """σ_u(z_u), shape (batch, N); integers but for rectifiers."""
        result = self.first_value + torch.searchsorted(self.thresholds, z.T.contiguous(), right=True).T * self.has_value
        if self.divisor is None:
            return result
        return torch.where(self.divisor > 0, z.clamp(min=0) / self.divisor.clamp(min=1), result)

    def value_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Integers around σ_u on low … high, (batch, N) each."""
        first, last = self.values(low), self.values(high)
        return (first, last) if self.divisor is None else (first.floor(), last.ceil())

    def inside(self, y: Tensor) -> Tensor:
        """Whether a value is neither the least nor the greatest of its unit, (batch, N)."""
        width = torch.isfinite(self.thresholds).sum(-1)
        result = (y > self.first_value) & (y < self.first_value + width)
        return result if self.divisor is None else torch.where(self.divisor > 0, y > 0, result)

    def gap(self, unit: int) -> float:
        """Distance between the two parts of a split: 1 for integer accumulators, 0 for real ones, whose parts share a point."""
        return 1.0 if self.divisor is None or not bool(self.divisor[unit]) else 0.0

    def threshold(self, value: Tensor) -> Tensor:
        """T_u(value_u), shape (batch, N); −infinity at or below the least value, +infinity above the greatest."""
        position = (value - self.first_value).long()
        width = self.thresholds.shape[1]
        found = self.thresholds.gather(1, (position - 1).clamp(0, width - 1).T.contiguous()).T
        found = torch.where(position <= 0, -torch.inf, found)
        return torch.where(position > width, torch.inf, found)
