"""Where to split a domain: at a threshold of one unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qertify.bounds.dual import Domains
from qertify.bounds.interior_point import Relaxation
from qertify.bounds.program import Program

NOTHING = 1e-7


@dataclass(frozen=True, slots=True, eq=False)
class Branches:
    """The best split of each domain of a batch.

    Attributes:
        unit: (batch,), int64.
        threshold: (batch,): the parts are z_unit ≤ threshold − gap and z_unit ≥ threshold, with the gap of `Program.gap`.
        score: (batch,): how much the relaxation cheats at that unit, in units of the objective; 0 if it cheats nowhere.
        fixed: (batch,): every value is fixed, so no unit can be split.
    """

    unit: Tensor
    threshold: Tensor
    score: Tensor
    fixed: Tensor


class Gains:
    """What splits at each unit have brought so far, a unit of cheating: pseudo-costs.

    (M. Bénichou et al., "Experiments in mixed-integer linear programming", Mathematical Programming 1, 1971.)
    """

    PRIOR = 2.0
    """How many average observations a unit's own are mixed with."""

    def __init__(self, program: Program) -> None:
        self._sum = torch.zeros(2, len(program.units), dtype=torch.float64, device=program.low.device)
        self._count = torch.zeros_like(self._sum)

    @property
    def table(self) -> Tensor:
        """A copy of all that was observed, (4, N)."""
        return torch.cat([self._sum, self._count])

    def add(self, table: Tensor) -> None:
        """What another search observed, (4, N)."""
        self._sum += table[:2]
        self._count += table[2:]

    def record(self, side: Tensor, unit: Tensor, gain: Tensor) -> None:
        """Gains of children, (batch,); side 0 for z ≤ threshold − 1, 1 for z ≥ threshold."""
        self._sum.index_put_((side, unit), gain, accumulate=True)
        self._count.index_put_((side, unit), torch.ones_like(gain), accumulate=True)

    def estimates(self) -> Tensor:
        """(2, N)."""
        mean = self._sum.sum(1, keepdim=True) / self._count.sum(1, keepdim=True).clamp(min=1)
        mean = torch.where(mean > 0, mean, 1.0)
        return (self._sum + self.PRIOR * mean) / (self._count + self.PRIOR)


def choose(program: Program, domains: Domains, relaxation: Relaxation, gains: Gains) -> Branches:
    """Score every unit by how |a_u|·|σ_u(z_u) − y_u| at the relaxation's primal point has paid before; pick the greatest.

    A unit with a long flat phase is split where the phase ends, any other at the threshold next to its accumulator.
    """
    first, last = program.values(domains.low), program.values(domains.high)
    free = (first < last) & (program.has_value > 0)
    z = torch.minimum(torch.maximum(relaxation.z, domains.low), domains.high)
    at = torch.minimum(torch.maximum(program.values(z), first), last)
    slope = program.products(domains.objective + relaxation.multipliers)[1].abs()
    cheat = slope * (at - relaxation.y).abs()
    inside = torch.where(relaxation.y < at, at, at + 1)
    inside = torch.minimum(torch.maximum(inside, first + 1), last)
    floor_end, ceiling_start = program.threshold(first + 1), program.threshold(last)
    floor_flat = floor_end - domains.low > 1.5 * program.spacing
    ceiling_flat = domains.high - ceiling_start > 1.5 * program.spacing
    to_floor = torch.where(floor_flat, (z - floor_end).abs(), torch.inf)
    to_ceiling = torch.where(ceiling_flat, (z - ceiling_start).abs(), torch.inf)
    threshold = torch.where(to_floor <= to_ceiling, floor_end, ceiling_start)
    threshold = torch.where(floor_flat | ceiling_flat, threshold, program.threshold(inside))
    if program.divisor is not None:
        free = torch.where(program.divisor > 0, (domains.low < 0) & (domains.high > 0), free)
        threshold = torch.where(program.divisor > 0, 0.0, threshold)
    # where the relaxation cheats nowhere, split the unit that matters most
    cheat_or_width = cheat + NOTHING * slope * (last - first) + NOTHING**2
    if program.divisor is not None:  # phases first: next to them, one step among many brings nothing
        cheat_or_width = torch.where(program.divisor > 0, cheat_or_width, NOTHING * cheat_or_width)
    below, above = (estimate * cheat_or_width for estimate in gains.estimates())
    score = torch.where(free, torch.sqrt(below * above), -1.0)
    unit = score.argmax(-1)
    rows = torch.arange(len(domains), device=unit.device)
    return Branches(unit, threshold[rows, unit], cheat[rows, unit] * free[rows, unit], ~free.any(-1))


def parts(program: Program, low: Tensor, high: Tensor, unit: int, threshold: float) -> tuple[tuple[Tensor, Tensor], ...]:
    """Bounds, (N,) each, of the parts of a domain below and above a threshold of one unit."""
    below, above = high.clone(), low.clone()
    below[unit], above[unit] = threshold - program.gap(unit), threshold
    return (low, below), (above, high)
