"""A bounds program with cases on its outputs as an integer program: two networks on their common input, for solvers.

Codes, the values of staircases and their accumulators are integers as they are. What is real in a float network (errors of
the input, accumulators, values of rectifiers) is represented by the nearest multiple of 1 / `FINER`, and every row that
reads it is widened by what that may cost, a half of each coefficient; that is less than the fixed point has cost already.
So a solution exists wherever an input does what the cases say, also for solvers that compute in integers; and a solution is
such an input up to the slack of the fixed point, which is judged exactly elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from qertify.bounds.program import Program
from qertify.ilp.builder import Builder, ContradictionError, Term
from qertify.ilp.encode import Encoding
from qertify.ilp.steps import encode_unary, rising
from qertify.ilp.violation import encode_choice
from qertify.network.tensor import BoolArray, FloatArray, IntegerArray
from qertify.specification.cases import Case

FINER = 64
"""Columns of real numbers, and of rows, count in this part of the program's own unit."""


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """A program as arrays of integers; N units, n inputs. ``fine`` units, (N,), count in the smaller unit."""

    program: Program
    inputs: IntegerArray
    units: IntegerArray
    constant: IntegerArray
    slack: IntegerArray
    divisor: IntegerArray
    thresholds: FloatArray
    low: IntegerArray
    high: IntegerArray
    fine: BoolArray


def encode_program(
    program: Program,
    cases: Sequence[Case],
    real: BoolArray,
    *,
    coupled: bool,
    minimise: bool = False,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Encoding | None:
    """Encode that one of the cases holds.

    Args:
        program: with matrices.
        cases: of one level each.
        real: (n,), the inputs that are real numbers; only rectifiers and rows read them.
        coupled: whether rows that are no outputs, which tie the two networks together, are rows of the program, too.
        minimise: leave out the limit of the only case, which is one accumulator, and ask for its least value.
        low, high: (N,) bounds on the accumulators: only points within count.

    Returns:
        the program, or None if its ranges already show that it has no solution. Real inputs and the objective come in the
        smaller unit.

    Raises:
        UnsupportedModelError: numbers too large for the program.
    """
    parts = _parts(program, low, high)
    builder = Builder("difference")
    try:
        if np.any(parts.low > parts.high):
            raise ContradictionError
        columns = _input_columns(builder, program, real)
        outputs = _encode_units(builder, parts, columns, real, coupled, frozenset[int]().union(*(c.indices for c in cases)))
        objective = _objective(builder, cases[0], outputs) if minimise else None
        if objective is None:
            encode_choice(builder, outputs, [(_finer(case),) for case in cases])
        found, renumbered = builder.finish()
    except ContradictionError:
        return None
    if objective is not None:
        found.objective[renumbered[objective.column]] = 1 if cases[0].weights[0][1] > 0 else -1
    nothing = np.zeros(0, dtype=np.int64)
    return Encoding(found, renumbered[columns], np.zeros(len(columns), dtype=np.int64), nothing)


def _parts(program: Program, low: Tensor | None, high: Tensor | None) -> _Parts:
    count = len(program.units)
    least, greatest = (
        edge(bound.numpy() if given is None else meet(bound.numpy(), given.numpy())).astype(np.int64)
        for edge, meet, bound, given in (
            (np.ceil, np.maximum, program.low, low),
            (np.floor, np.minimum, program.high, high),
        )
    )
    none = np.zeros(count, dtype=np.int64)
    divisor = none if program.divisor is None else program.divisor.numpy().astype(np.int64)
    fine = (divisor > 0) | (program.has_value.numpy() == 0)
    return _Parts(
        program,
        program.input_matrix.numpy().astype(np.int64),
        program.unit_matrix.numpy().astype(np.int64),
        program.constant.numpy().astype(np.int64),
        none if program.slack is None else program.slack.numpy().astype(np.int64),
        divisor,
        program.thresholds.numpy(),
        np.where(fine, FINER * least, least),
        np.where(fine, FINER * greatest, greatest),
        fine,
    )


def _input_columns(builder: Builder, program: Program, real: BoolArray) -> IntegerArray:
    """A column for each input, (n,); pairs that depend on each other are confined to their hulls."""
    unit = np.where(real, FINER, 1)
    ends = ((end.numpy().astype(np.int64) * unit).tolist() for end in (program.input_low, program.input_high))
    terms = [
        builder.column(least, greatest, integer=not is_real)
        for least, greatest, is_real in zip(*ends, real.tolist(), strict=True)
    ]
    if program.coupled is not None and program.coupled_corners is not None:
        units = unit[program.coupled.numpy()][:, None, :]
        corners = (program.coupled_corners.numpy().astype(np.int64) * units).tolist()
        for pair, points in zip(program.coupled.tolist(), corners, strict=True):
            _confine(builder, [terms[index] for index in pair], [tuple(point) for point in points], real[pair])
    return np.array([term.column for term in terms], dtype=np.int64)


def _confine(builder: Builder, pair: list[Term], points: list[tuple[int, int]], real: BoolArray) -> None:
    """A row for each edge of the hull of some points that is not an end of a coordinate's range."""
    hull = convex_hull(points)
    for (x, y), (next_x, next_y) in zip(hull, [*hull[1:], hull[0]], strict=True):
        normal = next_y - y, x - next_x  # outwards: the hull is counterclockwise
        if all(normal):
            cost = -(-sum(abs(part) for part, is_real in zip(normal, real, strict=True) if is_real) // 2)
            builder.row(list(zip(normal, pair, strict=True)), None, normal[0] * x + normal[1] * y + cost)


def convex_hull(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The corners of the hull, counterclockwise. (Andrew's monotone chain.)"""
    ordered = sorted(set(points))
    if len(ordered) < 3:
        return ordered
    result: list[tuple[int, int]] = []
    for sequence in (ordered, ordered[::-1]):
        chain: list[tuple[int, int]] = []
        for point in sequence:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
                chain.pop()
            chain.append(point)
        result += chain[:-1]
    return result


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _encode_units(
    builder: Builder, parts: _Parts, columns: IntegerArray, real: BoolArray, coupled: bool, wanted: frozenset[int]
) -> dict[int, Term]:
    """Every unit, and the rows; the accumulators of the wanted outputs."""
    program = parts.program
    count = len(program.units)
    column, constant, is_real = np.full(count, -1), np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
    has_value = program.has_value.numpy() > 0
    outputs: dict[int, Term] = {}
    for unit, source in enumerate(program.units):
        output = source.label is not None and source.label in wanted
        if not (has_value[unit] or output or (source.label is None and coupled)):
            continue
        read = np.flatnonzero(parts.inputs[unit]), np.flatnonzero(parts.units[unit])
        factor = FINER if parts.fine[unit] else 1
        weights = np.concatenate([parts.inputs[unit][read[0]], parts.units[unit][read[1]]])
        is_fine = np.concatenate([real[read[0]], is_real[read[1]]])
        halves = int(np.abs(weights[is_fine]).sum())
        given = np.concatenate([columns[read[0]], column[read[1]]])
        known = np.concatenate([np.zeros_like(read[0]), constant[read[1]]])
        assert parts.fine[unit] or not halves
        slack = factor * int(parts.slack[unit]) + halves // 2 + 2  # 2: an odd half, and the rounding of z itself
        weights = np.where(is_fine, weights, factor * weights)
        varies = given >= 0
        z = builder.define(
            given[varies],
            weights[varies],
            int(factor * parts.constant[unit] + (weights * known).sum()),
            int(parts.low[unit]),
            int(parts.high[unit]),
            slack if parts.slack[unit] or halves or parts.divisor[unit] else 0,
        )
        if not has_value[unit]:
            z = _kept(builder, z)
            if output and source.label is not None:
                outputs[source.label] = z
            continue
        if parts.divisor[unit]:
            y = _rectifier(builder, z, int(parts.divisor[unit]))
            is_real[unit] = True
        else:
            y = _staircase(builder, z, parts, unit)
        column[unit], constant[unit] = y.column, y.constant
    return outputs


def _kept(builder: Builder, z: Term) -> Term:
    """An accumulator as a column whose range is a constraint, whoever reads it."""
    if z.column < 0:
        return builder.column(z.constant, z.constant, integer=True)
    builder.restrict(z, *builder.range_of(z))
    return z


def _staircase(builder: Builder, z: Term, parts: _Parts, unit: int) -> Term:
    builder.restrict(z, int(parts.low[unit]), int(parts.high[unit]))
    low, high = builder.range_of(z)
    thresholds = parts.thresholds[unit]
    first, last = np.searchsorted(thresholds, [low, high], side="right").tolist()
    value = int(parts.program.first_value[unit]) + first
    return encode_unary(builder, z, low, high, rising(thresholds[first:last].astype(np.int64), value))


def _rectifier(builder: Builder, z: Term, divisor: int) -> Term:
    """max(z, 0) / divisor, rounded, of a z that is rounded itself; one binary where its sign is open."""
    builder.restrict(z, *builder.range_of(z))
    low, high = builder.range_of(z)
    if high <= 0:
        return Term(-1, 0)
    half = divisor // 2 + 1
    y = builder.column(max(low, 0) // divisor, -(-high // divisor), integer=False)
    if low >= 0:
        builder.row([(divisor, y), (-1, z)], -half, half)
        return y
    active = builder.binary()
    builder.row([(divisor, y), (-1, z)], -half, None)
    builder.row([(divisor, y), (-1, z), (-low, active)], None, half - low)
    builder.row([(1, y), (-builder.range_of(y)[1], active)], None, 0)
    return y


def _finer(case: Case) -> Case:
    """The case in the smaller unit, of rounded accumulators; rounding keeps to bounds on single ones, which are integers."""
    size = sum(abs(weight) for _, weight in case.weights)
    return replace(
        case,
        limit=FINER * case.limit + (0 if size == 1 else -(-size // 2)),
        upper=tuple((index, FINER * bound) for index, bound in case.upper),
        lower=tuple((index, FINER * bound) for index, bound in case.lower),
    )


def _objective(builder: Builder, case: Case, outputs: dict[int, Term]) -> Term:
    """The accumulator of a case that is one, within the case's other bounds."""
    ((index, _),) = case.weights
    return _kept(builder, outputs[index])
