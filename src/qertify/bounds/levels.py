"""The staircases of many units without a table a unit: units share the thresholds of their node's rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qertify.network.tensor import IntegerArray

STRIDE = 1 << 34
"""Distance of two rows in the common sequence of thresholds."""
REACH = 1 << 33
"""Accumulators must stay below this; thresholds beyond are moved to it, which changes nothing that is within reach."""
ROW_LIMIT = 1 << 18
"""Most rows, so that the common sequence is exact in float64."""
CHUNK = 1 << 20
"""Entries of a table of thresholds that are looked at together."""


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Thresholds of all rows, one after the other, row r moved by r·STRIDE, so that one search serves all units.

    Attributes:
        keys: (total,), float64 integers, non-decreasing.
        start: (N,), where the row of each unit starts. base: (N,), its shift. count: (N,), its length.
        low: (N,), the least value of the row, reachable or not.
    """

    keys: Tensor
    start: Tensor
    base: Tensor
    count: Tensor
    low: Tensor

    def value(self, z: Tensor) -> Tensor:
        """σ_u(z_u) in float64; |z| < REACH, shape (…, N)."""
        return torch.searchsorted(self.keys, z + self.base, right=True) - self.start + self.low

    def to(self, device: str) -> Levels:
        """The same on another device."""
        return Levels(*(getattr(self, name).to(device) for name in Levels.__dataclass_fields__))

    def head(self, last: int, first: int) -> Levels:
        """Those of units before ``last``; from ``first`` on they have no thresholds."""
        part = self.part(0, last)
        inside = torch.arange(last, device=self.count.device) < first
        return Levels(self.keys, part.start, part.base, torch.where(inside, part.count, 0), torch.where(inside, part.low, 0.0))

    def part(self, first: int, last: int) -> Levels:
        """Those of units first … last − 1."""
        mine = slice(first, last)
        return Levels(self.keys, self.start[mine], self.base[mine], self.count[mine], self.low[mine])

    def threshold(self, value: Tensor) -> Tensor:
        """T_u(value_u), shape (…, N); −infinity at or below the row's least value, +infinity above its greatest."""
        position = (value - self.low).long()
        inside = (position > 0) & (position <= self.count)
        if not self.keys.numel():
            return torch.where(position <= 0, -torch.inf, torch.inf)
        found = self.keys[torch.where(inside, self.start + position - 1, 0)] - self.base
        return torch.where(inside, found, torch.where(position <= 0, -torch.inf, torch.inf))


class LevelsBuilder:
    """Collects rows and the units that use them. Row 0 has no thresholds: it is for units without a value."""

    def __init__(self) -> None:
        self._rows: list[IntegerArray] = [np.empty(0, dtype=np.int64)]
        self._low: list[int] = [0]
        self._unit_rows: list[IntegerArray] = []

    @property
    def rows(self) -> int:
        return len(self._rows)

    def fork(self) -> LevelsBuilder:
        """A copy to which more can be added."""
        fork = LevelsBuilder()
        fork._rows, fork._low, fork._unit_rows = self._rows[:], self._low[:], self._unit_rows[:]
        return fork

    def add_row(self, thresholds: IntegerArray, low: int) -> int:
        """A row of non-decreasing thresholds above the value ``low``; returns its number."""
        self._rows.append(np.clip(thresholds, 1 - REACH, REACH - 1))
        self._low.append(low)
        return len(self._rows) - 1

    def add_units(self, rows: IntegerArray) -> None:
        """More units, by the number of their row."""
        self._unit_rows.append(rows)

    def finish(self) -> Levels:
        counts = np.array([len(row) for row in self._rows], dtype=np.int64)
        starts = np.cumsum(counts) - counts
        keys = np.concatenate([row + number * STRIDE for number, row in enumerate(self._rows)]).astype(np.float64)
        rows = np.concatenate(self._unit_rows) if self._unit_rows else np.empty(0, dtype=np.int64)
        low = np.array(self._low, dtype=np.float64)
        pick = torch.from_numpy
        return Levels(
            pick(keys), pick(starts[rows]), pick((rows * STRIDE).astype(np.float64)), pick(counts[rows]), pick(low[rows])
        )


def measure(levels: Levels, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """`Program.spacing` and `Program.unevenness` of the thresholds between two values of each unit, (N,) each."""
    spacing, unevenness = torch.ones_like(first), torch.zeros_like(first)
    longest = int((last - first).max()) if len(first) else 0
    if not longest:
        return spacing, unevenness
    step = torch.arange(longest, dtype=torch.float64, device=first.device)
    for part in torch.nonzero(last - first > 1)[:, 0].split(max(1, CHUNK // longest)):
        count = (last - first)[part, None]
        where = (levels.start + (first - levels.low).long())[part, None] + torch.minimum(step, count - 1).long()
        thresholds = levels.keys[where] - levels.base[part, None]
        spacing[part], unevenness[part] = evenness(torch.where(step < count, thresholds, torch.inf))
    return spacing, unevenness


def evenness(thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """`Program.spacing` and `Program.unevenness`, (N,), of rows of thresholds that are padded with infinity, (N, K)."""
    spacing, unevenness = thresholds.new_ones(len(thresholds)), thresholds.new_zeros(len(thresholds))
    count = torch.isfinite(thresholds).sum(-1, keepdim=True)
    several = (count > 1)[:, 0]
    if not bool(several.any()):
        return spacing, unevenness
    thresholds, count = thresholds[several], count[several]
    step = torch.arange(thresholds.shape[1], device=thresholds.device)
    first = thresholds[:, :1]
    slope = (thresholds.gather(1, count - 1) - first) / (count - 1)
    deviation = torch.where(step < count, thresholds - (first + slope * step), 0.0)
    gaps = thresholds[:, 1:] - thresholds[:, :-1]
    uneven = ((gaps != gaps[:, :1]) & (step[1:] < count)).any(-1)
    width = (deviation.amax(-1) - deviation.amin(-1)).ceil() + 1  # +1 covers rounding of the line
    spacing[several], unevenness[several] = slope[:, 0], torch.where(uneven, width, 0.0)
    return spacing, unevenness
