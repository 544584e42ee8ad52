"""Step functions as rows: staircases, tables, and the choice of an output level."""

from __future__ import annotations

from collections.abc import Sequence
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


def encode_unary(builder: Builder, z: Term, low: int, high: int, unary: Unary) -> Term:
    """y = unary(z) for low ≤ z ≤ high, exactly."""
    if z.column < 0 or not len(unary.jumps):
        value = unary.levels[np.searchsorted(unary.jumps, low, side="right")]
        return Term(-1, int(value))
    y = builder.column(int(unary.levels.min()), int(unary.levels.max()), integer=True)
    if unary.line is not None:
        _band(builder, z, low, high, y, unary)
    else:
        _order(builder, z, low, high, y, unary)
    return y


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


def encode_levels(builder: Builder, label: Term, competitor: Term, ceilings: Sequence[int], floors: Sequence[int]) -> None:
    """Some level v has label ≤ ceilings[v] and competitor ≥ floors[v]; both sequences are non-decreasing."""
    least, greatest = builder.range_of(competitor)[0], builder.range_of(label)[1]
    first = max((v for v, floor in enumerate(floors) if floor <= least), default=0)
    last = min((v for v, ceiling in enumerate(ceilings) if ceiling >= greatest and v >= first), default=len(ceilings) - 1)
    ceilings, floors = ceilings[first : last + 1], floors[first : last + 1]  # the other levels imply one of these
    builder.restrict(label, builder.range_of(label)[0], ceilings[-1])
    builder.restrict(competitor, floors[0], builder.range_of(competitor)[1])
    if len(ceilings) == 1:
        return
    above = line_through(np.array(ceilings, dtype=np.int64) + 1)
    from_ = line_through(np.array(floors, dtype=np.int64))
    if above is not None and from_ is not None:
        level = builder.column(0, len(ceilings) - 1, integer=True)
        builder.row([(above.run, label), (-above.rise, level)], None, above.start - 1)
        builder.row([(from_.run, competitor), (-from_.rise, level)], from_.start, None)
        return
    passed = builder.ordered_binaries(len(ceilings) - 1)
    rises = np.diff(ceilings).tolist()
    builder.row([(1, label), *((-rise, bit) for rise, bit in zip(rises, passed, strict=True))], None, ceilings[0])
    rises = np.diff(floors).tolist()
    builder.row([(1, competitor), *((-rise, bit) for rise, bit in zip(rises, passed, strict=True))], floors[0], None)
