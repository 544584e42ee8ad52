"""Conjunctions that bound outputs and order them around one of them, split into levels of that one.

Such a conjunction speaks of output codes q by q_i ≤ b, q_i ≥ b and q_a − q_b ≤ d, where one output, the centre c, takes part
in every difference. At each level v = q_c every constraint bounds a single code, hence a single accumulator:

    q_i ≤ w ⇔ z_i ≤ T_i(w+1) − 1,      q_i ≥ w ⇔ z_i ≥ T_i(w),

so that the outputs, which are clamped, are never relaxed. A case is a run of levels with one linear inequality that is
necessary at each of them; single levels are exact. "This class is the greatest" and "the least", as most published
properties are stated, are of this form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby

import numpy as np

from qertify.errors import InvalidInputError, UnsupportedModelError
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.specification.cases import Case, OutputView, output_view, weights_of
from qertify.specification.linear import OBJECTIVES, Bounds, Lowered


@dataclass(frozen=True, slots=True)
class Difference:
    """q_left − q_right ≤ bound."""

    left: int
    right: int
    bound: int


@dataclass(frozen=True, slots=True)
class Order:
    """One disjunct: all differences hold, q_i ≤ bound over ``upper`` and q_i ≥ bound over ``lower``.

    Attributes:
        centre: an output that takes part in every difference; None if there are none.
    """

    differences: tuple[Difference, ...]
    upper: Bounds
    lower: Bounds
    centre: int | None


@dataclass(frozen=True, slots=True)
class OrderViolation:
    """The property that none of some orders holds of the output codes."""

    outputs: int
    orders: tuple[Order, ...]

    def check(self, outputs: int) -> None:
        """Raises InvalidInputError if the network has another number of outputs."""
        if outputs != self.outputs:
            raise InvalidInputError(f"constraints on {self.outputs} outputs for a network with {outputs}")

    def violated(self, outputs: IntegerArray) -> np.ndarray:
        """Whether some order holds, shape (batch, outputs) → bool (batch,). The definition."""
        return self.possible(outputs, outputs)

    def possible(self, low: IntegerArray, high: IntegerArray) -> np.ndarray:
        """Whether each constraint of some order may hold between low and high, shapes (batch, outputs) → bool (batch,)."""
        result = np.zeros(len(low), dtype=bool)
        for order in self.orders:
            inside = np.ones(len(low), dtype=bool)
            for each in order.differences:
                inside &= low[:, each.left] - high[:, each.right] <= each.bound
            for output, bound in order.upper:
                inside &= low[:, output] <= bound
            for output, bound in order.lower:
                inside &= high[:, output] >= bound
            result |= inside
        return result

    def convincing(self, outputs: IntegerArray) -> np.ndarray:
        """All violations alike."""
        return np.ones(len(outputs), dtype=bool)


def orders_of(network: Network, lowered: Lowered) -> OrderViolation | None:
    """The same violation by levels of outputs; None if it has other constraints, or outputs that no staircase makes."""
    try:
        view = output_view(network)
    except UnsupportedModelError:
        return None
    rows = [[(int(at), int(row[at])) for at in np.flatnonzero(row)] for row in lowered.rows]
    if view.steps is None or not all([factor for _, factor in row] in ([1], [1, -1]) for row in rows):
        return None
    orders: list[Order] = []
    for box in lowered.property.boxes:
        upper = tuple((rows[row][0][0], bound) for row, bound in box.upper if len(rows[row]) == 1)
        lower = tuple((rows[row][0][0], bound) for row, bound in box.lower if len(rows[row]) == 1)
        pairs = [(rows[row], bound) for row, bound in box.upper if len(rows[row]) == 2]
        differences = [Difference(left, right, bound) for ((left, _), (right, _)), bound in pairs]
        pairs = [(rows[row], bound) for row, bound in box.lower if len(rows[row]) == 2]
        differences += [Difference(right, left, -bound) for ((left, _), (right, _)), bound in pairs]
        shared = [{each.left, each.right} for each in differences]
        common = set[int]().union(*shared).intersection(*shared)
        if differences and not common:
            return None
        orders.append(Order(tuple(differences), upper, lower, min(common, default=None)))
    return OrderViolation(network.output_size, tuple(orders))


@dataclass(frozen=True, slots=True)
class _Level:
    """Ranges at one level of the accumulators that the order speaks of: index → (least, greatest)."""

    value: int
    ranges: dict[int, tuple[int, int]]
    free: frozenset[int]
    """Ends that every code meets, i for the upper and ~i for the lower one of accumulator i."""


@dataclass(frozen=True, slots=True, eq=False)
class OrderSplitter:
    """A case or a few for each order, bisected by levels of its centre. Made by `order_splitter`.

    A case's ``label`` is the number of its order, its ``competitor`` that of the inequality in its weights.

    Attributes:
        view: the output accumulators, behind a staircase.
        property: the property.
        low, high: int64, shape (outputs,): proved range of each output accumulator; levels out of reach are dropped.
        within: the levels within reach of each order, ascending.
        terms: left-hand sides that are small at every level of each order, index → factor.
    """

    view: OutputView
    property: OrderViolation
    low: IntegerArray
    high: IntegerArray
    within: tuple[tuple[_Level, ...], ...]
    terms: tuple[tuple[dict[int, int], ...], ...]

    def narrowed(self, low: IntegerArray, high: IntegerArray) -> OrderSplitter:
        """The same with tighter ranges of the output accumulators."""
        return order_splitter(self.view, self.property, low, high)

    def cases(self) -> tuple[Case, ...]:
        """Cases that together cover every violation; empty if none is possible."""
        return tuple(
            self._run(number, 0, tuple(levels))
            for number, within in enumerate(self.within)
            for _, levels in groupby(
                within, lambda level: level.free
            )  # one inequality fits no level with a free end and others
        )

    def bisect(self, case: Case) -> tuple[Case, ...]:
        """The two halves of a case of several levels; together they cover it."""
        levels = self._levels(case)
        middle = len(levels) // 2
        return tuple(self._run(case.label, case.competitor or 0, part) for part in (levels[:middle], levels[middle:]) if part)

    def levels(self, case: Case) -> tuple[Case, ...]:
        """The single levels of a case; together they are the case's violations."""
        return tuple(self._run(case.label, case.competitor or 0, (level,)) for level in self._levels(case))

    def objectives(self, case: Case) -> tuple[Case, ...]:
        """The case with each inequality, the most promising ones first, and with the sum of all."""
        levels = self._levels(case)
        return tuple(self._run(case.label, number, levels) for number in range(len(self.terms[case.label])))

    def _levels(self, case: Case) -> tuple[_Level, ...]:
        return tuple(level for level in self.within[case.label] if case.first <= level.value <= case.last)

    def _run(self, number: int, term: int, levels: Sequence[_Level]) -> Case:
        weights = self.terms[number][term]
        limit = max(sum(factor * level.ranges[index][factor > 0] for index, factor in weights.items()) for level in levels)
        ends = {index: [level.ranges[index] for level in levels] for index in sorted(levels[0].ranges)}
        upper = tuple((index, max(most for _, most in both)) for index, both in ends.items())
        lower = tuple((index, min(least for least, _ in both)) for index, both in ends.items())
        return Case(number, term, levels[0].value, levels[-1].value, tuple(weights.items()), limit, upper, lower)


def order_splitter(view: OutputView, property_: OrderViolation, low: IntegerArray, high: IntegerArray) -> OrderSplitter:
    """The splitter of a property, with what is within reach of each of its orders."""
    within = tuple(tuple(_within(view, each, low, high)) for each in property_.orders)
    terms = tuple(tuple(_terms(view, *each, low, high)) for each in zip(property_.orders, within, strict=True))
    return OrderSplitter(view, property_, low, high, within, terms)


def _terms(
    view: OutputView, order: Order, levels: Sequence[_Level], low: IntegerArray, high: IntegerArray
) -> Iterable[dict[int, int]]:
    """One a constraint, the one with the least room within the ranges first, and their sum."""
    terms: list[dict[int, int]] = []
    for each in order.differences:
        p, q = weights_of(view, each.left, each.right)
        terms.append({each.left: p, each.right: -q})
    terms += [{output: 1} for output, _ in order.upper] + [{output: -1} for output, _ in order.lower]

    def room(term: dict[int, int]) -> Fraction:
        least = sum(factor * int((low if factor > 0 else high)[index]) for index, factor in term.items())
        width = sum(abs(factor) * int(high[index] - low[index]) for index, factor in term.items())
        limit = max((sum(f * level.ranges[index][f > 0] for index, f in term.items()) for level in levels), default=least)
        return Fraction(limit - least, max(1, width))

    terms = sorted(terms, key=room)[:OBJECTIVES]
    total: dict[int, int] = {}
    for term in terms:
        for index, factor in term.items():
            total[index] = total.get(index, 0) + factor
    together = {index: factor for index, factor in total.items() if factor}
    return [*terms, together] if len(terms) > 1 and together else terms


def _within(view: OutputView, order: Order, low: IntegerArray, high: IntegerArray) -> Iterable[_Level]:
    """The levels of the centre within reach, or the only one of an order without differences."""
    lower_steps = view.steps
    assert lower_steps is not None
    upper_steps = lower_steps if view.upper is None else view.upper
    least, greatest = lower_steps.low, lower_steps.high
    for level in range(least, greatest + 1) if order.centre is not None else (0,):
        most, fewest = dict(order.upper), dict(order.lower)
        if order.centre is not None:
            most[order.centre] = min(level, most.get(order.centre, level))
            fewest[order.centre] = max(level, fewest.get(order.centre, level))
        for each in order.differences:
            if each.right == order.centre:
                most[each.left] = min(level + each.bound, most.get(each.left, level + each.bound))
            else:
                fewest[each.right] = max(level - each.bound, fewest.get(each.right, level - each.bound))
        if any(code < least for code in most.values()) or any(code > greatest for code in fewest.values()):
            continue
        ranges: dict[int, tuple[int, int]] = {}
        free = {index for index, code in most.items() if code >= greatest} | {~i for i, code in fewest.items() if code <= least}
        for index in most.keys() | fewest.keys():
            row, first, last = int(view.row[index]), int(low[index]), int(high[index])
            code = most.get(index, greatest)
            if code < greatest:
                last = min(last, lower_steps.threshold(row, code + 1) - 1)
            code = fewest.get(index, least)
            if code > least:
                first = max(first, upper_steps.threshold(row, code))
            ranges[index] = first, last
        if all(first <= last for first, last in ranges.values()):
            yield _Level(level, ranges, frozenset(free))
