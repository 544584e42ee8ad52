"""Programs near the one that is asked for: weaker ones, whose infeasibility carries over, and ones that aim at inputs.

The search for inputs is rounding with a margin: while inputs are real numbers and values are integers, every accumulator
that sums inputs has to keep a distance from its thresholds that rounding the inputs will hardly use up. The values, and so
the verdict on the output, then stay as they are. Near the boundary of robustness, where attacks and plain relaxations fail
because a few thresholds have to be hit together, this finds counterexamples within seconds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qertify.ilp.encode import Encoding
from qertify.ilp.model import NO_HIGH, NO_LOW, Program
from qertify.network.tensor import IntegerArray


def binaries_only(encoding: Encoding) -> Program:
    """The program in which only columns of two values have to be integers: infeasible only if the program is."""
    program = encoding.program
    return replace(program, integer=program.integer & (program.high - program.low == 1))


def rounding_margin(encoding: Encoding, factor: float) -> Program:
    """The program with real inputs, and accumulators of inputs kept away from their thresholds.

    The margin of an accumulator is ``factor`` standard deviations of what rounding does to it, if as many inputs are
    fractional as there are rows (a vertex has no more) and their fractions are uniform. Its infeasibility says nothing.
    """
    program = encoding.program
    row, column = program.row_of_entry, program.columns
    rows, columns = len(program.row_low), len(program.low)
    is_input = np.zeros(columns, dtype=bool)
    is_input[encoding.column[encoding.column >= 0]] = True
    of_input = is_input[column]
    count = np.bincount(row[of_input], minlength=rows)
    squares = np.bincount(row[of_input], weights=program.coefficients[of_input].astype(np.float64) ** 2, minlength=rows)
    defining = (count > 0) & (program.row_low == program.row_high)
    deviation = np.sqrt(squares / np.maximum(count, 1) * np.minimum(count, rows) / 12)
    margin = np.zeros(columns, dtype=np.int64)
    summed = defining[row] & ~of_input
    margin[column[summed]] = np.ceil(factor * deviation[row[summed]]).astype(np.int64)
    read = ~defining[row] & (margin[column] > 0)
    inset = np.zeros(rows, dtype=np.int64)
    np.add.at(inset, row[read], np.abs(program.coefficients[read]) * margin[column[read]])
    return replace(
        program,
        integer=program.integer & ~is_input,
        row_low=np.where(program.row_low == NO_LOW, NO_LOW, program.row_low + inset),
        row_high=np.where(program.row_high == NO_HIGH, NO_HIGH, program.row_high - inset),
    )


def fixed_pattern(encoding: Encoding, values: IntegerArray) -> Program:
    """The program with the staircase values fixed to those of a point: a question about the input lattice only."""
    low, high = encoding.program.low.copy(), encoding.program.high.copy()
    fixed = encoding.pattern
    low[fixed] = high[fixed] = np.clip(values[fixed], low[fixed], high[fixed])
    return replace(encoding.program, low=low, high=high)
