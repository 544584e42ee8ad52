"""Builds an integer program column by column and row by row; constants are folded, magnitudes are checked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qertify.errors import UnsupportedModelError
from qertify.ilp.model import MAGNITUDE_LIMIT, NO_HIGH, NO_LOW, Program
from qertify.network.tensor import IntegerArray


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """What the elements of a node are: columns of the program, or constants.

    Attributes:
        column: int64, shape (elements,); −1 for a constant.
        constant: int64, shape (elements,): the constants, 0 elsewhere.
    """

    column: IntegerArray
    constant: IntegerArray

    def __getitem__(self, index: int) -> Term:
        return Term(int(self.column[index]), int(self.constant[index]))


@dataclass(frozen=True, slots=True)
class Term:
    """One element: a column, or a constant where column is −1."""

    column: int
    constant: int = 0


def concatenate(parts: Sequence[Values]) -> Values:
    """All elements one after another."""
    return Values(np.concatenate([part.column for part in parts]), np.concatenate([part.constant for part in parts]))


class ContradictionError(Exception):
    """A row of constants, or a column's bounds, that nothing fulfils: the program has no solution."""


@dataclass(slots=True)
class Builder:
    """The program under construction.

    Attributes:
        node: the node being encoded, for error messages.
        defined: columns with a single defining row whose bounds follow from it: dropped when nothing else reads them.
    """

    node: str = ""
    low: list[int] = field(default_factory=list[int])
    high: list[int] = field(default_factory=list[int])
    integer: list[bool] = field(default_factory=list[bool])
    row_low: list[int] = field(default_factory=list[int])
    row_high: list[int] = field(default_factory=list[int])
    entries: list[tuple[IntegerArray, IntegerArray, IntegerArray]] = field(
        default_factory=list[tuple[IntegerArray, IntegerArray, IntegerArray]]
    )
    defined: dict[int, int] = field(default_factory=dict[int, int])

    def column(self, low: int, high: int, *, integer: bool) -> Term:
        """A new column.

        Raises:
            ContradictionError: low > high.
        """
        if low > high:
            raise ContradictionError
        self.low.append(self._checked(low))
        self.high.append(self._checked(high))
        self.integer.append(integer)
        return Term(len(self.low) - 1)

    def binary(self) -> Term:
        return self.column(0, 1, integer=True)

    def ordered_binaries(self, count: int) -> list[Term]:
        """New binaries of which each is at most the one before."""
        result = [self.binary() for _ in range(count)]
        for earlier, later in itertools.pairwise(result):
            self.row([(1, earlier), (-1, later)], 0, None)
        return result

    def range_of(self, term: Term) -> tuple[int, int]:
        """Least and greatest value of an element."""
        if term.column < 0:
            return term.constant, term.constant
        return self.low[term.column], self.high[term.column]

    def restrict(self, term: Term, low: int, high: int) -> None:
        """Intersect an element's range with low … high, as a constraint of its own.

        Raises:
            ContradictionError: nothing is left.
        """
        least, greatest = self.range_of(term)
        least, greatest = max(least, low), min(greatest, high)
        if least > greatest:
            raise ContradictionError
        if term.column >= 0:
            self.low[term.column], self.high[term.column] = least, greatest
            self.defined.pop(term.column, None)

    def row(self, terms: Sequence[tuple[int, Term]], low: int | None, high: int | None) -> None:
        """low ≤ Σ coefficient · element ≤ high; None for a missing side.

        Raises:
            ContradictionError: only constants, and they don't fulfil it.
        """
        constant = sum(coefficient * term.constant for coefficient, term in terms if term.column < 0)
        kept = [(coefficient, term.column) for coefficient, term in terms if term.column >= 0 and coefficient]
        low, high = None if low is None else low - constant, None if high is None else high - constant
        if not kept:
            if (low is not None and low > 0) or (high is not None and high < 0):
                raise ContradictionError
            return
        columns = np.array([column for _, column in kept], dtype=np.int64)
        coefficients = np.array([self._checked(coefficient) for coefficient, _ in kept], dtype=np.int64)
        self._append(low, high, columns, coefficients)

    def define(
        self, columns: IntegerArray, coefficients: IntegerArray, constant: int, low: int, high: int, slack: int = 0
    ) -> Term:
        """A new element z = Σ coefficient · column + constant ± slack, known to lie in low … high."""
        if not len(columns) and not slack:
            return Term(-1, constant)
        result = self.column(low, high, integer=False)
        self.defined[result.column] = len(self.row_low)
        ends = constant - slack, constant + slack
        self._append(*ends, np.append(columns, result.column), np.append(-coefficients, 1))
        return result

    def _append(self, low: int | None, high: int | None, columns: IntegerArray, coefficients: IntegerArray) -> None:
        self.entries.append((np.full(len(columns), len(self.row_low), dtype=np.int64), columns, coefficients))
        self.row_low.append(NO_LOW if low is None else self._checked(low))
        self.row_high.append(NO_HIGH if high is None else self._checked(high))

    def _checked(self, number: int) -> int:
        if abs(number) >= MAGNITUDE_LIMIT:
            raise UnsupportedModelError(self.node, "integer program", None, f"the number {number} exceeds 61 bits")
        return number

    def finish(self) -> tuple[Program, IntegerArray]:
        """The program without unread definitions, and the new index of each column, −1 if dropped."""
        count, rows = len(self.low), len(self.row_low)
        empty = np.zeros(0, dtype=np.int64)
        row, column, coefficient = (
            np.concatenate([part[axis] for part in self.entries]) if self.entries else empty for axis in range(3)
        )
        key, inverse = np.unique(row * max(count, 1) + column, return_inverse=True)
        total = np.zeros(len(key), dtype=np.int64)
        np.add.at(total, inverse, coefficient)
        row, column, coefficient = (key // max(count, 1))[total != 0], (key % max(count, 1))[total != 0], total[total != 0]
        starts = np.searchsorted(row, np.arange(rows + 1))
        readers = np.bincount(column, minlength=count)
        keep_row, keep_column = np.ones(rows, dtype=bool), np.ones(count, dtype=bool)
        for defined, defining in reversed(self.defined.items()):
            if readers[defined] == 1:
                keep_row[defining] = keep_column[defined] = False
                readers[column[starts[defining] : starts[defining + 1]]] -= 1
        renumbered = np.where(keep_column, np.cumsum(keep_column) - 1, -1)
        kept = keep_row[row]
        new_rows = int(keep_row.sum())
        program = Program(
            low=np.array(self.low, dtype=np.int64)[keep_column],
            high=np.array(self.high, dtype=np.int64)[keep_column],
            integer=np.array(self.integer, dtype=np.bool_)[keep_column],
            row_low=np.array(self.row_low, dtype=np.int64)[keep_row],
            row_high=np.array(self.row_high, dtype=np.int64)[keep_row],
            starts=np.searchsorted((np.cumsum(keep_row) - 1)[row[kept]], np.arange(new_rows + 1)).astype(np.int64),
            columns=renumbered[column[kept]].astype(np.int64),
            coefficients=coefficient[kept],
            objective=np.zeros(int(keep_column.sum()), dtype=np.int64),
        )
        return program, renumbered.astype(np.int64)
