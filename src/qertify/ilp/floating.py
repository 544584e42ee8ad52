"""Integer programs in the units that floating-point solvers can compute in.

Their tolerances are absolute, so a column of real numbers in fixed point, with more digits than a float64 has beyond the
tolerance, must be counted in larger units, and its rows with it. Units are powers of two: nothing is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qertify.ilp.model import NO_HIGH, NO_LOW, Program
from qertify.network.tensor import FloatArray, IntegerArray

LARGE = 26
"""Bits from which a column that is not marked integer gets a unit of its own, in which it takes `BITS` bits."""
BITS = 10


@dataclass(frozen=True, slots=True, eq=False)
class FloatingProgram:
    """The arrays of a program, in float64; infinite where a row's side is missing.

    Attributes:
        unit: (columns,); a column of the program is unit · its value here.
        objective_unit: the same for the objective.
    """

    low: FloatArray
    high: FloatArray
    row_low: FloatArray
    row_high: FloatArray
    coefficients: FloatArray
    objective: FloatArray
    unit: FloatArray
    objective_unit: float

    def values(self, values: FloatArray, program: Program) -> IntegerArray:
        """A point in the program's own units, rounded into its bounds."""
        return np.clip(np.rint(values * self.unit).astype(np.int64), program.low, program.high)

    def bound(self, bound: float) -> int | None:
        """A lower bound of the objective in the program's own units; None for none."""
        exact = bound * self.objective_unit
        return int(np.floor(exact)) if abs(exact) < 2.0**61 else None


def floating(program: Program) -> FloatingProgram:
    """Units for large columns and for the rows that read them; other rows stay as they are."""
    size = np.maximum(np.abs(program.low), np.abs(program.high)).astype(np.float64)
    exponent = np.frexp(size)[1]
    large = ~program.integer & (exponent > LARGE)
    unit = np.where(large, 2.0 ** (exponent - BITS), 1.0)
    coefficients, row = program.coefficients * unit[program.columns], program.row_of_entry
    greatest, reads = np.zeros(len(program.row_low)), np.zeros(len(program.row_low), dtype=bool)
    np.maximum.at(greatest, row, np.abs(coefficients))
    reads[row[large[program.columns]]] = True
    row_unit = np.where(reads, 2.0 ** np.frexp(greatest)[1], 1.0)
    objective = program.objective * unit
    largest = float(np.abs(objective).max(initial=0.0))
    objective_unit = 2.0 ** int(np.frexp(largest)[1]) if np.any(large & (program.objective != 0)) else 1.0
    return FloatingProgram(
        low=program.low / unit,
        high=program.high / unit,
        row_low=np.where(program.row_low == NO_LOW, -np.inf, program.row_low / row_unit),
        row_high=np.where(program.row_high == NO_HIGH, np.inf, program.row_high / row_unit),
        coefficients=coefficients / row_unit[row],
        objective=objective / objective_unit,
        unit=unit,
        objective_unit=objective_unit,
    )
