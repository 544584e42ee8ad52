"""Step functions as rows: staircases and tables, in the compact or the one-hot encoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qertify.ilp.builder import Builder, Term
from qertify.ilp.lines import Line, line_through
from qertify.network.tensor import IntegerArray


@dataclass(frozen=True, slots=True, eq=False)
class Unary:
    """A step function on a range of z.

    Attributes:
        jumps: int64, shape (m,): strictly increasing z at which the value changes.
        levels: int64, shape (m + 1,): the value below the first jump, and from each jump on.
        line: if the values rise by one at (not necessarily distinct) thresholds on a line: that line, whose index 0 is
            the threshold of value levels[0] + 1.
    """

    jumps: IntegerArray
    levels: IntegerArray
    line: Line | None


def rising(thresholds: IntegerArray, first: int) -> Unary:
    """A staircase that rises from ``first`` by one at each threshold; they are in order, and several may be equal."""
    jumps, at = np.unique(thresholds[::-1], return_index=True)
    levels = first + np.append(0, len(thresholds) - at)
    return Unary(jumps, levels, line_through(thresholds) if len(jumps) > 2 else None)


def encode_unary(builder: Builder, z: Term, low: int, high: int, unary: Unary, encoding: str = "compact") -> Term:
    """y = unary(z) for low ≤ z ≤ high, exactly, by a rule of `ENCODINGS`."""
    if z.column < 0 or not len(unary.jumps):
        value = unary.levels[np.searchsorted(unary.jumps, low, side="right")]
        return Term(-1, int(value))
    y = builder.column(int(unary.levels.min()), int(unary.levels.max()), integer=True)
    ENCODINGS[encoding](builder, z, low, high, y, unary)
    return y


def _compact(builder: Builder, z: Term, low: int, high: int, y: Term, unary: Unary) -> None:
    """Two rows and at most two binaries where the thresholds lie on a line, else one binary a jump."""
    rule = _order if unary.line is None else _band
    rule(builder, z, low, high, y, unary)


def _one_hot(builder: Builder, z: Term, low: int, high: int, y: Term, unary: Unary) -> None:
    """One binary a step, of which exactly one is 1 and names the step's value and the least and greatest z on it.

    The encoding of Zhang et al., "QVIP" (ASE 2022), for any step function. Summed over the binaries, the rows of a step
    need no big-M: their coefficients are the exact thresholds, within the range of z.
    """
    starts, stops = [low, *unary.jumps.tolist()], [*(unary.jumps - 1).tolist(), high]
    hot = [builder.binary() for _ in starts]
    builder.row([(1, bit) for bit in hot], 1, 1)
    builder.row([(1, y), *((-level, bit) for level, bit in zip(unary.levels.tolist(), hot, strict=True))], 0, 0)
    builder.row([(1, z), *((-start, bit) for start, bit in zip(starts, hot, strict=True))], 0, None)
    builder.row([(1, z), *((-stop, bit) for stop, bit in zip(stops, hot, strict=True))], None, 0)


def _order(builder: Builder, z: Term, low: int, high: int, y: Term, unary: Unary) -> None:
    """One binary a jump, reached[i] = [z ≥ jumps[i]]: any thresholds, any values."""
    jumps, levels = unary.jumps.tolist(), unary.levels.tolist()
    reached = builder.ordered_binaries(len(jumps))
    rises = np.diff([low, *jumps]).tolist()
    builder.row([(1, z), *((-rise, hit) for rise, hit in zip(rises, reached, strict=True))], low, None)
    rises = np.diff([*jumps, high + 1]).tolist()
    builder.row([(1, z), *((-rise, hit) for rise, hit in zip(rises, reached, strict=True))], None, jumps[0] - 1)
    rises = np.diff(levels).tolist()
    builder.row([(1, y), *((-rise, hit) for rise, hit in zip(rises, reached, strict=True))], levels[0], levels[0])


def _band(builder: Builder, z: Term, low: int, high: int, y: Term, unary: Unary) -> None:
    """Thresholds on a line: rise·k + start − rise ≤ run·z ≤ rise·k + start − 1 for y = first + k, one binary a clamp.

    The band holds for every k strictly between 0 and the last; at the two ends, where z goes on to ``low`` and ``high``,
    a binary that is 1 exactly there widens it by just as much.
    """
    line = unary.line
    assert line is not None
    first, last = int(unary.levels[0]), int(unary.levels[-1])
    steps = last - first
    base = line.start - line.rise * (first + 1)  # threshold of value v: ⌈(rise·v + base) / run⌉
    below = line.rise * first + base - line.run * low
    lower = [(line.run, z), (-line.rise, y)]
    if below > 0:
        clamped = builder.binary()
        lower.append((below, clamped))
        builder.row([(1, y), (steps, clamped)], None, last)
        builder.row([(1, y), (1, clamped)], first + 1, None)
    builder.row(lower, base, None)
    above = line.run * high - (line.rise * (last + 1) + base - 1)
    upper = [(line.run, z), (-line.rise, y)]
    if above > 0:
        clamped = builder.binary()
        upper.append((-above, clamped))
        builder.row([(1, y), (-steps, clamped)], first, None)
        builder.row([(1, y), (-1, clamped)], None, last - 1)
    builder.row(upper, None, line.rise + base - 1)


ENCODINGS: dict[str, Callable[[Builder, Term, int, int, Term, Unary], None]] = {"compact": _compact, "one-hot": _one_hot}
"""How a step function becomes rows."""
