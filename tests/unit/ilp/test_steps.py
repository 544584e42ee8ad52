"""Step functions as rows, against their definition: every point of z and y, every choice of the binaries."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from qertify.ilp.builder import Builder, ContradictionError, Term
from qertify.ilp.lines import line_through, simplest_between
from qertify.ilp.model import NO_HIGH, NO_LOW, Program
from qertify.ilp.rules import RULES, unary_of
from qertify.ilp.steps import Unary, encode_unary
from qertify.ilp.violation import encode_levels
from qertify.network.nodes import NODE_KINDS, Staircase, Table
from qertify.network.staircase import Rounding, Steps, shift_steps, steps_from_function
from qertify.network.tensor import as_integers


def _feasible(program: Program, fixed: dict[int, int]) -> bool:
    """Whether some values of the other columns fulfil the program, by enumeration."""
    free = [j for j in range(len(program.low)) if j not in fixed]
    rows, matrix = len(program.row_low), np.zeros((len(program.row_low), len(program.low)), dtype=np.int64)
    matrix[program.row_of_entry, program.columns] = program.coefficients
    low = np.where(program.row_low == NO_LOW, -(1 << 62), program.row_low)
    high = np.where(program.row_high == NO_HIGH, 1 << 62, program.row_high)
    if any(not program.low[j] <= value <= program.high[j] for j, value in fixed.items()):
        return False
    for choice in itertools.product(*(range(program.low[j], program.high[j] + 1) for j in free)):
        point = np.zeros(len(program.low), dtype=np.int64)
        point[list(fixed)], point[free] = list(fixed.values()), choice
        if not rows or np.all((matrix @ point >= low) & (matrix @ point <= high)):
            return True
    return False


def _check_unary(node: Staircase | Table, low: int, high: int) -> Unary:
    unary = unary_of(node, 0, low, high)
    builder = Builder()
    z = builder.column(low, high, integer=True)
    y = encode_unary(builder, z, low, high, unary)
    program, _ = builder.finish()
    for point in range(low, high + 1):
        if isinstance(node, Staircase):
            value = int(node.steps.value(0, np.array(point)))
        else:
            value = int(node.values[0, np.clip(point - node.first, 0, node.values.shape[1] - 1)])
        if y.column < 0:
            assert y.constant == value
            continue
        for candidate in range(value - 3, value + 4):
            assert _feasible(program, {z.column: point, y.column: candidate}) == (candidate == value), (point, candidate)
    return unary


def _staircase(steps: Steps) -> Staircase:
    return Staircase("s", ("z",), steps, as_integers([0]))


def _ranges(generator: np.random.Generator, count: int):
    for _ in range(count):
        low, high = np.sort(generator.integers(-22, 23, size=2)).tolist()
        yield low, high


@pytest.mark.parametrize("rounding", Rounding)
def test_shifts(rounding: Rounding) -> None:
    generator, lines = np.random.default_rng(1), 0
    for shift in range(4):
        stair = _staircase(shift_steps(shift, rounding, -2, 3))
        for low, high in _ranges(generator, 12):
            lines += _check_unary(stair, low, high).line is not None
    assert lines > 1


def test_real_multipliers_lie_on_lines() -> None:
    generator, lines = np.random.default_rng(2), 0
    for _ in range(25):
        factor = generator.uniform(0.1, 2.5)
        steps = steps_from_function(lambda z, f=factor: np.rint(z * f).astype(np.int64), 1, -4, 5, 1 << 20)
        for low, high in _ranges(generator, 3):
            unary = _check_unary(_staircase(steps), low, high)
            lines += unary.line is not None and unary.line.run > 1
    assert lines > 10


def test_uneven_thresholds_and_repeated_ones() -> None:
    generator = np.random.default_rng(3)
    for _ in range(40):
        gaps = generator.integers(0, 8, size=(1, 6))
        steps = Steps(as_integers(np.cumsum(gaps, axis=1) - 15), int(generator.integers(-3, 3)))
        for low, high in _ranges(generator, 2):
            _check_unary(_staircase(steps), low, high)


def test_tables() -> None:
    generator = np.random.default_rng(4)
    for _ in range(40):
        values = as_integers(generator.integers(-3, 4, size=(1, int(generator.integers(1, 7)))))
        table = Table("t", ("z",), values, int(generator.integers(-6, 4)), as_integers([0]))
        for low, high in _ranges(generator, 2):
            _check_unary(table, low, high)


def test_levels() -> None:
    generator = np.random.default_rng(5)
    for number in range(60):
        count = int(generator.integers(2, 6))
        if number % 2:
            ceilings, floors = (np.cumsum(generator.integers(0, 5, size=count)) - 5 for _ in range(2))
        else:
            ceilings, floors = (np.arange(count) * step // 2 - 3 for step in generator.integers(1, 9, size=2))
        builder = Builder()
        ranges = np.sort(generator.integers(-6, 10, size=(2, 2)), axis=1).tolist()
        a, b = (builder.column(low, high, integer=True) for low, high in ranges)
        try:
            encode_levels(builder, a, b, ceilings.tolist(), floors.tolist())
        except ContradictionError:
            assert not np.any((ranges[0][0] <= ceilings) & (ranges[1][1] >= floors))
            continue
        program, _ = builder.finish()
        for own, other in itertools.product(*(range(low, high + 1) for low, high in ranges)):
            truth = bool(np.any((own <= ceilings) & (other >= floors)))
            assert _feasible(program, {a.column: own, b.column: other}) == truth


def test_lines_go_through_their_thresholds() -> None:
    generator, found = np.random.default_rng(6), 0
    for _ in range(300):
        rise, run, start = (int(generator.integers(low, 40)) for low in (0, 1, -40))
        count = int(generator.integers(1, 60))
        thresholds = np.array([-((-rise * i - start) // run) for i in range(count)], dtype=np.int64)
        line = line_through(thresholds)
        assert line is not None, "a digital line was not recognized"
        assert [line.threshold(i) for i in range(count)] == thresholds.tolist()
        thresholds[generator.integers(count) :] += int(generator.integers(1, 4))
        line = line_through(thresholds)
        found += line is not None
        assert line is None or [line.threshold(i) for i in range(count)] == thresholds.tolist()
    assert 0 < found < 250


def test_simplest_fraction() -> None:
    generator = np.random.default_rng(7)
    for _ in range(300):
        one, other = (Fraction(int(generator.integers(0, 60)), int(generator.integers(1, 60))) for _ in range(2))
        if one == other:
            continue
        above, below = min(one, other), max(one, other)
        result = simplest_between(above, below)
        assert above < result < below
        smaller = (Fraction(n, d) for d in range(1, result.denominator) for n in range(60 * d + 1))
        assert not any(above < fraction < below for fraction in smaller)


def test_every_node_kind_has_a_rule() -> None:
    assert set(RULES) == set(NODE_KINDS)


def test_rows_of_constants() -> None:
    builder = Builder()
    builder.row([(2, Term(-1, 3))], 6, 6)
    with pytest.raises(ContradictionError):
        builder.row([(2, Term(-1, 3))], 7, None)
    with pytest.raises(ContradictionError):
        builder.column(1, 0, integer=True)


def test_repeated_columns_are_merged_and_unread_definitions_dropped() -> None:
    builder = Builder()
    x, y = builder.column(0, 3, integer=True), builder.column(0, 3, integer=True)
    builder.define(np.array([x.column, y.column]), np.array([1, 1]), 0, 0, 6)
    kept = builder.define(np.array([x.column]), np.array([2]), 0, 0, 6)
    builder.restrict(kept, 0, 3)
    builder.row([(1, x), (2, y), (1, x), (-2, y)], 1, None)
    program, renumbered = builder.finish()
    assert renumbered.tolist() == [0, 1, -1, 2]
    assert program.columns.tolist() == [0, 2, 0]
    assert program.coefficients.tolist() == [-2, 1, 2]
    again = Program.from_bytes(program.to_bytes())
    assert all(np.array_equal(getattr(program, name), getattr(again, name)) for name in Program.__slots__)
