"""The levels of staircases and where they begin, element by element."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qertify.network.tensor import FloatArray, IntegerArray


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """Staircases.

    Attributes:
        thresholds: (rows, K), where levels begin, non-decreasing; infinite where there is no such level.
        least: (rows,), the level below the first threshold.
        row: (elements,), which row an element follows.
    """

    thresholds: FloatArray
    least: FloatArray
    row: IntegerArray

    def level(self, z: FloatArray) -> FloatArray:
        """The level at each element's accumulator."""
        result = np.empty(z.shape)
        for index in np.unique(self.row).tolist():
            mine = self.row == index
            result[mine] = self.least[index] + np.searchsorted(self.thresholds[index], z[mine], side="right")
        return result

    def span(self, level: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The least and greatest accumulator at each element's level; infinite where there is none."""
        if not self.thresholds.shape[1]:
            return np.full(level.shape, -np.inf), np.full(level.shape, np.inf)
        position = (level - self.least[self.row]).astype(np.int64)
        last = self.thresholds.shape[1] - 1
        low = np.where(position > 0, self.thresholds[self.row, np.clip(position - 1, 0, last)], -np.inf)
        return low, np.where(position <= last, self.thresholds[self.row, np.clip(position, 0, last)] - 1, np.inf)
