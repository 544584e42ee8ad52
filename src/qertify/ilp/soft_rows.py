"""A linear program over a box, asked again and again with other costs and other ranges of its rows (HiGHS).

Rows may leave their ranges at a price, so that there is a point whatever is asked. Points only: nothing is proved here.
"""

from __future__ import annotations

from typing import Any

import highspy
import numpy as np

from qertify.network.tensor import FloatArray

HIGHS_OPTIONS: dict[str, Any] = {"output_flag": False, "threads": 1}


class SoftRows:
    """minimise cost·x + penalty·(how far matrix·x is outside its ranges), low ≤ x ≤ high.

    Args:
        matrix: (rows, columns). low, high: (columns,), finite.
        cuts, limits: cuts·x ≤ limits holds as well, whatever it costs; (cuts, columns) and (cuts,).
    """

    def __init__(self, matrix: FloatArray, low: FloatArray, high: FloatArray, cuts: FloatArray, limits: FloatArray) -> None:
        self._rows, self._inputs = matrix.shape
        self._columns = self._inputs + 2 * self._rows
        lp: Any = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = self._columns, self._rows + len(limits)
        lp.col_cost_ = np.zeros(self._columns)
        lp.col_lower_ = np.concatenate([low, np.zeros(2 * self._rows)])
        lp.col_upper_ = np.concatenate([high, np.full(2 * self._rows, np.inf)])
        lp.row_lower_ = np.full(self._rows + len(limits), -np.inf)
        lp.row_upper_ = np.concatenate([np.full(self._rows, np.inf), limits])
        short = np.eye(self._rows)
        soft, hard = np.concatenate([matrix, short, -short], axis=1), np.pad(cuts, ((0, 0), (0, 2 * self._rows)))
        every = np.concatenate([soft, hard]).T
        used = every != 0
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.num_col_, lp.a_matrix_.num_row_ = lp.num_col_, lp.num_row_
        lp.a_matrix_.start_ = np.concatenate([[0], used.sum(axis=1).cumsum()]).astype(np.int32)
        lp.a_matrix_.index_ = np.nonzero(used)[1].astype(np.int32)
        lp.a_matrix_.value_ = every[used]
        self._solver: Any = highspy.Highs()
        for name, value in HIGHS_OPTIONS.items():
            self._solver.setOptionValue(name, value)
        self._usable = self._solver.passModel(lp) != highspy.HighsStatus.kError

    def solve(
        self, cost: FloatArray, penalty: FloatArray, low: FloatArray, high: FloatArray, seconds: float
    ) -> tuple[FloatArray, FloatArray] | None:
        """The point of these costs, (columns,), penalties and ranges, (rows,), and prices of the ranges; None if it is late.

        Prices, (rows,), are what a row costs that has to be greater by one.
        """
        if not self._usable:
            return None
        columns, rows = np.arange(self._columns, dtype=np.int32), np.arange(self._rows, dtype=np.int32)
        size = max(float(np.abs(cost).max(initial=0.0)), float(penalty.max(initial=0.0)), np.finfo(np.float64).tiny)
        self._solver.changeColsCost(self._columns, columns, np.concatenate([cost, penalty, penalty]) / size)
        self._solver.changeRowsBounds(self._rows, rows, low, high)
        self._solver.setOptionValue("time_limit", self._solver.getRunTime() + max(seconds, 0.0))
        self._solver.run()
        if self._solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        solution = self._solver.getSolution()
        found = np.asarray(solution.col_value, dtype=np.float64)[: self._inputs]
        prices = np.asarray(solution.row_dual, dtype=np.float64)[: self._rows] * size
        return (found, prices) if np.all(np.isfinite(found)) and np.all(np.isfinite(prices)) else None
