"""Disjunctions of conjunctions of linear constraints on a network's outputs, in exact integers.

An output Y = scale · (code − zero_point) is a rational number (a scale is a binary fraction), so a linear constraint on
outputs is one on codes with rational coefficients. Divided by their common factor these are integers without a common
divisor; then Σ a·q is an integer, and its bound is rounded to one:

    Σ a·q ≤ d ⇔ Σ a·q ≤ ⌊d⌋,      Σ a·q < d ⇔ Σ a·q ≤ ⌈d⌉ − 1.

The left-hand sides become one more Dense node, a row a distinct one, whose values the constraints merely bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor, gcd, lcm

import numpy as np

from qertify.errors import InvalidInputError, UnsupportedModelError
from qertify.network.network import Network
from qertify.network.nodes import Dense, Rearrange
from qertify.network.ranges import Range
from qertify.network.tensor import IntegerArray, as_integers
from qertify.specification.cases import Case, OutputView

EXACT_LIMIT = 1 << 50
"""Values of a left-hand side must stay below: all engines work on integers below 2⁵³."""
OBJECTIVES = 8
"""Most inequalities of one case that are tried as its objective."""
WEIGHT_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Constraint:
    """Σ coefficient·Y_i ≤ bound, or < if strict, over real outputs.

    Attributes:
        coefficients: (i, coefficient), ascending in i, none of them zero.
    """

    coefficients: tuple[tuple[int, Fraction], ...]
    bound: Fraction
    strict: bool = False

    def holds(self, outputs: Sequence[Fraction]) -> bool:
        """Whether one vector of real outputs fulfils it. The definition."""
        left = sum((factor * outputs[index] for index, factor in self.coefficients), start=Fraction(0))
        return left < self.bound if self.strict else left <= self.bound


Disjunction = tuple[tuple[Constraint, ...], ...]
"""The violation: some member holds, all constraints of it."""


def holds(violation: Disjunction, outputs: Sequence[Fraction]) -> bool:
    """Whether real outputs are a violation. The definition."""
    return any(all(constraint.holds(outputs) for constraint in disjunct) for disjunct in violation)


def output_values(network: Network, codes: IntegerArray) -> list[Fraction]:
    """The exact real numbers that one vector of output codes, (outputs,), stands for."""
    meaning = network.output_quantization
    scales, zero_points = (np.broadcast_to(part, codes.shape).tolist() for part in (meaning.scale, meaning.zero_point))
    return [Fraction(scale) * (code - zero) for code, scale, zero in zip(codes.tolist(), scales, zero_points, strict=True)]


Bounds = tuple[tuple[int, int], ...]
"""(row, bound)."""


@dataclass(frozen=True, slots=True)
class Box:
    """One disjunct: z_row ≤ bound over ``upper`` and z_row ≥ bound over ``lower``."""

    upper: Bounds
    lower: Bounds


@dataclass(frozen=True, slots=True)
class RowViolation:
    """The property that the rows z lie in none of some boxes. A property of a network made by `with_rows`.

    Attributes:
        rows: number of rows.
        boxes: none of them without a bound; none at all if there is no violation.
    """

    rows: int
    boxes: tuple[Box, ...]

    def check(self, outputs: int) -> None:
        """Raises InvalidInputError if the network has another number of outputs."""
        if outputs != self.rows:
            raise InvalidInputError(f"{self.rows} rows of constraints for a network with {outputs} outputs")

    def violated(self, outputs: IntegerArray) -> np.ndarray:
        """Whether the rows lie in some box, shape (batch, rows) → bool (batch,). The definition."""
        return self.possible(outputs, outputs)

    def possible(self, low: IntegerArray, high: IntegerArray) -> np.ndarray:
        """Whether rows between low and high may lie in some box, shapes (batch, rows) → bool (batch,)."""
        result = np.zeros(len(low), dtype=bool)
        for box in self.boxes:
            inside = np.ones(len(low), dtype=bool)
            for row, bound in box.upper:
                inside &= low[:, row] <= bound
            for row, bound in box.lower:
                inside &= high[:, row] >= bound
            result |= inside
        return result

    def convincing(self, outputs: IntegerArray) -> np.ndarray:
        """All violations alike."""
        return np.ones(len(outputs), dtype=bool)


@dataclass(frozen=True, slots=True, eq=False)
class Lowered:
    """A violation in integers.

    Attributes:
        always: it holds whatever the input.
        rows: int64, shape (rows, outputs): the distinct left-hand sides over output codes; no rows if nothing is open.
        property: that there is no violation.
    """

    always: bool
    rows: IntegerArray
    property: RowViolation


def lower(network: Network, violation: Disjunction, known: Range) -> Lowered:
    """Write a violation over output codes.

    Args:
        network: whose outputs it speaks of.
        known: proved ranges of the output codes over the region, shape (1, *node shape). Constraints that they decide vanish.

    Raises:
        InvalidInputError: an output that the network does not have.
        UnsupportedModelError: coefficients so large that a left-hand side may exceed 2⁵⁰.
    """
    low, high = (bound.reshape(-1).tolist() for bound in known)
    index: dict[tuple[tuple[int, int], ...], int] = {}
    boxes: list[Box] = []
    for disjunct in violation:
        upper: dict[int, int] = {}
        lower_: dict[int, int] = {}
        possible = True
        for constraint in disjunct:
            row, flipped, bound = _integers(network, constraint)
            least, greatest = _reach(network, row, low, high)
            if flipped:
                least, greatest = -greatest, -least
            if greatest <= bound:
                continue
            if least > bound:
                possible = False
                break
            at = index.setdefault(row, len(index))
            if flipped:
                lower_[at] = max(lower_.get(at, -bound), -bound)
            else:
                upper[at] = min(upper.get(at, bound), bound)
        if not possible or any(lower_[row] > upper[row] for row in lower_.keys() & upper.keys()):
            continue
        if not upper and not lower_:
            return Lowered(True, np.zeros((0, len(low)), dtype=np.int64), RowViolation(0, ()))
        boxes.append(Box(tuple(upper.items()), tuple(lower_.items())))
    rows = np.zeros((len(index), len(low)), dtype=np.int64)
    for row, at in index.items():
        for output, factor in row:
            rows[at, output] = factor
    return Lowered(False, rows, RowViolation(len(index), tuple(dict.fromkeys(boxes))))


def _integers(network: Network, constraint: Constraint) -> tuple[tuple[tuple[int, int], ...], bool, int]:
    """(row, flipped, bound): ±Σ factor·code ≤ bound, minus if flipped; the row's first factor is positive."""
    meaning, outputs = network.output_quantization, network.output_size
    scale, zero_point = (np.broadcast_to(part, (outputs,)).tolist() for part in (meaning.scale, meaning.zero_point))
    factors: list[tuple[int, Fraction]] = []
    bound = constraint.bound
    for output, coefficient in constraint.coefficients:
        if output >= outputs:
            raise InvalidInputError(f"the property speaks of Y_{output}, but the network has {outputs} output(s)")
        factors.append((output, coefficient * Fraction(scale[output])))
        bound += factors[-1][1] * zero_point[output]
    common = Fraction(lcm(*(factor.denominator for _, factor in factors)))
    common /= gcd(*(int(factor * common) for _, factor in factors)) or 1
    bound *= common
    flipped = bool(factors) and factors[0][1] < 0
    row = tuple((output, int(factor * common) * (-1 if flipped else 1)) for output, factor in factors)
    return row, flipped, ceil(bound) - 1 if constraint.strict else floor(bound)


def _reach(network: Network, row: tuple[tuple[int, int], ...], low: list[int], high: list[int]) -> tuple[int, int]:
    """Least and greatest Σ factor·code."""
    size = sum(abs(factor) * max(abs(low[output]), abs(high[output]), 1) for output, factor in row)
    if size >= EXACT_LIMIT:
        reason = f"a constraint whose integer coefficients reach {size.bit_length()} bits; use fewer digits"
        raise UnsupportedModelError(network.output.name, "linear constraint", "coefficients", reason)
    least = sum(factor * (low if factor > 0 else high)[output] for output, factor in row)
    return least, sum(factor * (high if factor > 0 else low)[output] for output, factor in row)


ROWS = "linear constraints"
"""Name of the node that holds the left-hand sides."""


def with_rows(network: Network, rows: IntegerArray) -> Network:
    """The network followed by one Dense node without bias: what the constraints bound."""
    taken, flat, name = {node.name for node in network.nodes}, network.output.name, ROWS
    nodes = list(network.nodes)
    while name in taken or f"{name} input" in taken:
        name += "'"
    if len(network.shapes[flat]) != 1:
        nodes.append(Rearrange(f"{name} input", (flat,), np.arange(network.output_size, dtype=np.int64)))
        flat = nodes[-1].name
    nodes.append(Dense(name, (flat,), as_integers(rows), as_integers(np.zeros(len(rows), dtype=np.int64)), 0, 64))
    return replace(network, nodes=tuple(nodes))


def row_view(network: Network) -> OutputView:
    """The rows as output accumulators."""
    element = np.arange(network.output_size, dtype=np.int64)
    return OutputView(network.output.name, element, None, np.zeros_like(element))


@dataclass(frozen=True, slots=True, eq=False)
class LinearSplitter:
    """One case a box. There is nothing to bisect: bounds on rows are exact.

    Attributes:
        view: the rows.
        property: the property.
        low, high: int64, shape (rows,): proved range of each row; boxes out of reach are dropped.
    """

    view: OutputView
    property: RowViolation
    low: IntegerArray
    high: IntegerArray

    def narrowed(self, low: IntegerArray, high: IntegerArray) -> LinearSplitter:
        """The same with tighter ranges of the rows."""
        return replace(self, low=low, high=high)

    def cases(self) -> tuple[Case, ...]:
        """The boxes within reach; empty if none is."""
        return tuple(
            self._case(number, box)
            for number, box in enumerate(self.property.boxes)
            if all(int(self.low[row]) <= bound for row, bound in box.upper)
            and all(int(self.high[row]) >= bound for row, bound in box.lower)
        )

    def bisect(self, case: Case) -> tuple[Case, ...]:
        """Never asked: every case is a single level."""
        raise AssertionError(f"case {case.label} is a single level")

    def levels(self, case: Case) -> tuple[Case, ...]:
        """The case itself."""
        return (case,)

    def objectives(self, case: Case) -> tuple[Case, ...]:
        """Each bound that is hardest to keep by its range, and the weighted sum of all bounds."""
        sides = self._sides(case.upper, case.lower)[:OBJECTIVES]
        result = [replace(case, weights=((row, sign),), limit=sign * bound) for row, sign, bound in sides]
        if len(sides) > 1:
            result.append(self._sum(case, sides))
        return tuple(result)

    def _case(self, number: int, box: Box) -> Case:
        row, sign, bound = self._sides(box.upper, box.lower)[0]
        return Case(number, None, 0, 0, ((row, sign),), sign * bound, box.upper, box.lower)

    def _sides(self, upper: Bounds, lower_: Bounds) -> list[tuple[int, int, int]]:
        """(row, sign, bound) of all bounds, sign·z_row ≤ sign·bound; the one with the least room within the range first."""

        def room(side: tuple[int, int, int]) -> Fraction:
            row, sign, bound = side
            least, greatest = int(self.low[row]), int(self.high[row])
            return Fraction(bound - least if sign > 0 else greatest - bound, max(1, greatest - least))

        return sorted([*((row, 1, bound) for row, bound in upper), *((row, -1, bound) for row, bound in lower_)], key=room)

    def _sum(self, case: Case, sides: list[tuple[int, int, int]]) -> Case:
        """All bounds in one inequality, each row weighed by how little it varies."""
        width = {row: max(1, int(self.high[row] - self.low[row])) for row, _, _ in sides}
        widest = max(width.values())
        weights: dict[int, int] = {}
        limit = 0
        for row, sign, bound in sides:
            weight = sign * min(WEIGHT_LIMIT, max(1, widest // width[row]))
            weights[row] = weights.get(row, 0) + weight
            limit += weight * bound
        return replace(case, weights=tuple(weights.items()), limit=limit)
