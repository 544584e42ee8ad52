"""Integer programs as plain arrays, neutral between solvers, and what a solver may answer."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass, fields
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from qertify.network.tensor import IntegerArray

NO_LOW = int(np.iinfo(np.int64).min)
"""A row's lower side that constrains nothing."""
NO_HIGH = int(np.iinfo(np.int64).max)
"""A row's upper side that constrains nothing."""
MAGNITUDE_LIMIT = 1 << 61
"""Every bound, side, coefficient and row activity of a program stays below this in absolute value."""


class Status(str, Enum):
    """What a solver says about a program. An answer that is not one of the first two says nothing about the program."""

    INFEASIBLE = "infeasible"
    FEASIBLE = "feasible"
    LIMIT = "limit"
    """Out of time or memory."""
    FAILED = "failed"
    """Crashed, refused the program, or ended with a status that nobody mapped."""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Find values with low ≤ x ≤ high, row_low ≤ A·x ≤ row_high that minimise objective·x; all data are exact integers.

    Columns that are not marked integer take integer values whenever the marked ones do; a solver may branch on them or not.

    Attributes:
        low, high: int64, shape (columns,).
        integer: bool, shape (columns,).
        row_low, row_high: int64, shape (rows,); NO_LOW and NO_HIGH stand for a missing side.
        starts: int64, shape (rows + 1,): where each row's entries start (compressed sparse rows).
        columns, coefficients: int64, shape (entries,); no column twice in a row, no coefficient zero.
        objective: int64, shape (columns,); all zero asks for any feasible point.
    """

    low: IntegerArray
    high: IntegerArray
    integer: NDArray[np.bool_]
    row_low: IntegerArray
    row_high: IntegerArray
    starts: IntegerArray
    columns: IntegerArray
    coefficients: IntegerArray
    objective: IntegerArray

    @property
    def row_of_entry(self) -> IntegerArray:
        """int64, shape (entries,): the row of each entry."""
        return np.repeat(np.arange(len(self.row_low), dtype=np.int64), np.diff(self.starts))

    def activity_limits(self) -> list[int]:
        """For each row Σ |coefficient| · max(|low|, |high|), an exact bound on every partial sum."""
        largest = [max(abs(low), abs(high)) for low, high in zip(self.low.tolist(), self.high.tolist(), strict=True)]
        terms = [abs(a) * largest[j] for a, j in zip(self.coefficients.tolist(), self.columns.tolist(), strict=True)]
        starts = self.starts.tolist()
        return [sum(terms[start:stop]) for start, stop in itertools.pairwise(starts)]

    def to_bytes(self) -> bytes:
        """All arrays in one .npz archive."""
        buffer = io.BytesIO()
        arrays = {item.name: getattr(self, item.name) for item in fields(self)}
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Program:
        """The inverse of `to_bytes`; nothing is unpickled."""
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return Program(**{item.name: archive[item.name] for item in fields(Program)})


@dataclass(frozen=True, slots=True, eq=False)
class SolverAnswer:
    """One solver's answer to one program.

    Attributes:
        values: int64, shape (columns,), of a FEASIBLE answer; rounded by solvers that compute in floating point.
        optimal: whether the solver claims that no feasible point has a smaller objective.
        reason: why a LIMIT or FAILED answer is one, a single line.
        bound: no feasible point has a smaller objective, as surely as the solver's INFEASIBLE; None if nothing is known.
    """

    status: Status
    values: IntegerArray | None = None
    optimal: bool = False
    reason: str = ""
    bound: int | None = None

    def __post_init__(self) -> None:
        if (self.status is Status.FEASIBLE) != (self.values is not None):
            raise ValueError("a feasible answer has values, and no other one has")
