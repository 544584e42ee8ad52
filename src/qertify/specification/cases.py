"""The violation of a classification property, split into cases on the output accumulators.

Outputs are clamped, often on both sides, so "the competitor's output beats the label's" is never relaxed. It is split by
the level v at which it happens; with T the thresholds of the output staircases (t the label, j the competitor):

- strict (the competitor must exceed the label): violated ⇔ ∃ v ∈ [min, max−1]: z_j ≥ T_j(v+1) ∧ z_t ≤ T_t(v+1) − 1;
- a tie suffices: violated ⇔ ∃ v ∈ [min, max]: z_j ≥ T_j(v) ∧ z_t ≤ T_t(v+1) − 1, T(min) = −∞, T(max+1) = +∞.

A case covers a run of consecutive levels by one linear inequality, which is necessary for each of them; bisected down to
single levels the cases are exact. This is an output-based partition, and it is exact whatever the staircases are.

Where the output staircases are enclosures, "violated" means that some run may violate: T_j is then a threshold of the upper
staircase, T_t one of the lower.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from qertify.errors import UnsupportedModelError
from qertify.network.network import Network
from qertify.network.nodes import Rearrange, Staircase
from qertify.network.staircase import Steps
from qertify.network.tensor import IntegerArray
from qertify.specification.property import Classification


@dataclass(frozen=True, slots=True, eq=False)
class OutputView:
    """Where each class's output comes from.

    Attributes:
        node: name of the node whose values are the output accumulators z.
        element: int64, shape (classes,): flat index of each class's accumulator in that node's value.
        steps: the output staircases, or None if the accumulators are the outputs.
        row: int64, shape (classes,): each class's row of ``steps``.
        upper: the upper staircases where those are enclosures.
    """

    node: str
    element: IntegerArray
    steps: Steps | None
    row: IntegerArray
    upper: Steps | None = None


def output_view(network: Network) -> OutputView:
    """Find the output accumulators behind the last staircase, looking through pure reordering.

    Raises:
        UnsupportedModelError: output codes of different classes that can't be compared as integers.
    """
    output = network.output
    if not network.output_quantization.per_tensor:
        raise UnsupportedModelError(
            output.name, type(output).__name__, None, "classes with different output scales can't be compared yet"
        )
    node, element = output, np.arange(network.output_size, dtype=np.int64)
    while isinstance(node, Rearrange) and len(node.inputs) == 1:
        picked = node.indices.reshape(-1)[element]
        if np.any(picked < 0):
            break
        node, element = network.by_name[node.inputs[0]], picked
    if not isinstance(node, Staircase):
        return OutputView(node.name, element, None, np.zeros_like(element))
    row = np.broadcast_to(node.row, network.shapes[node.name]).reshape(-1)[element]
    return OutputView(node.inputs[0], element, node.steps, row, node.upper)


@dataclass(frozen=True, slots=True)
class Case:
    """One part of the violation: levels ``first`` … ``last`` of one competitor, or one disjunct of linear constraints.

    Every violation of these levels has Σ coefficient·z ≤ limit over ``weights``, z_i ≤ bound over ``upper`` and
    z_i ≥ bound over ``lower``; for a single level the three together are the violation itself. Indices are classes, or rows of
    linear constraints.

    Attributes:
        label: the class that must win, or the number of the disjunct.
        competitor: the class that beats the label, or None for "the label sinks to the lowest level", where every
            competitor that wins ties beats it.
    """

    label: int
    competitor: int | None
    first: int
    last: int
    weights: tuple[tuple[int, int], ...]
    limit: int
    upper: tuple[tuple[int, int], ...] = ()
    lower: tuple[tuple[int, int], ...] = ()

    @property
    def single(self) -> bool:
        """Whether the case is one level, hence exact."""
        return self.first == self.last

    @property
    def indices(self) -> frozenset[int]:
        """The accumulators that the case speaks of."""
        return frozenset(index for part in (self.weights, self.upper, self.lower) for index, _ in part)


@dataclass(frozen=True, slots=True, eq=False)
class CaseSplitter:
    """Makes and bisects the cases of one property on one network.

    Attributes:
        view: the output accumulators.
        property: the property.
        low, high: int64, shape (classes,): proved range of each output accumulator; levels out of reach are dropped.
    """

    view: OutputView
    property: Classification
    low: IntegerArray
    high: IntegerArray

    def narrowed(self, low: IntegerArray, high: IntegerArray) -> CaseSplitter:
        """The same with tighter ranges of the output accumulators."""
        return replace(self, low=low, high=high)

    def objectives(self, case: Case) -> tuple[Case, ...]:
        """A case's own inequality is the one worth bounding."""
        return (case,)

    def cases(self) -> tuple[Case, ...]:
        """Cases that together cover every violation; empty if none is possible."""
        label, steps = self.property.label, self.view.steps
        result: list[Case] = []
        sinks = False
        for competitor in self.property.competitors(len(self.view.element)):
            tie = self.property.ties.beaten_by_tie(label, competitor)
            if steps is None:
                limit = 0 if tie else -1
                if int(self.low[label]) - int(self.high[competitor]) <= limit:
                    result.append(Case(label, competitor, 0, 0, ((label, 1), (competitor, -1)), limit))
            elif tie:
                sinks = sinks or self._reachable(competitor, steps.low, tie)
                result += self._run(competitor, steps.low + 1, steps.high - 1)
                if steps.high > steps.low:
                    result += self._run(competitor, steps.high, steps.high)
            else:
                result += self._run(competitor, steps.low, steps.high - 1)
        if sinks:
            result += self._sink()
        return tuple(result)

    def bisect(self, case: Case) -> tuple[Case, ...]:
        """The two halves of a case of several levels; together they cover it."""
        assert case.competitor is not None
        assert not case.single
        middle = (case.first + case.last) // 2
        return (*self._run(case.competitor, case.first, middle), *self._run(case.competitor, middle + 1, case.last))

    def levels(self, case: Case) -> tuple[Case, ...]:
        """The single levels of a case; together they are the case's violations."""
        if case.single or case.competitor is None:
            return (case,)
        return tuple(part for level in range(case.first, case.last + 1) for part in self._run(case.competitor, level, level))

    def _ceiling(self, level: int) -> int | None:
        """The greatest z_t at which the label's output is ≤ level; None when there is none."""
        steps = self.view.steps
        assert steps is not None
        label = self.property.label
        return None if level == steps.high else steps.threshold(int(self.view.row[label]), level + 1) - 1

    def _floor(self, competitor: int, level: int, tie: bool) -> int | None:
        """The least z_j at which the competitor beats a label at ``level``; None when there is none."""
        steps = self.view.steps if self.view.upper is None else self.view.upper
        assert steps is not None
        needed = level if tie else level + 1
        return None if needed == steps.low else steps.threshold(int(self.view.row[competitor]), needed)

    def _reachable(self, competitor: int, level: int, tie: bool) -> bool:
        ceiling, floor = self._ceiling(level), self._floor(competitor, level, tie)
        return (ceiling is None or int(self.low[self.property.label]) <= ceiling) and (
            floor is None or int(self.high[competitor]) >= floor
        )

    def _sink(self) -> Iterable[Case]:
        label, steps = self.property.label, self.view.steps
        assert steps is not None
        ceiling = self._ceiling(steps.low)
        if ceiling is None:  # a constant output: always a tie
            return [Case(label, None, steps.low, steps.low, (), 0)]
        return [Case(label, None, steps.low, steps.low, ((label, 1),), ceiling, upper=((label, ceiling),))]

    def _run(self, competitor: int, first: int, last: int) -> Iterable[Case]:
        """The case of the reachable levels among first … last, if any."""
        label = self.property.label
        tie = self.property.ties.beaten_by_tie(label, competitor)
        levels = [level for level in range(first, last + 1) if self._reachable(competitor, level, tie)]
        if not levels:
            return []
        ceilings = [self._ceiling(level) for level in levels]
        floors = [self._floor(competitor, level, tie) for level in levels]
        base = Case(label, competitor, levels[0], levels[-1], (), 0)
        if floors[0] is None:
            raise AssertionError("the lowest level of a tie is the sinking case")
        lower = ((competitor, floors[0]),)
        if ceilings[-1] is None:  # the top level: only the competitor's accumulator matters
            assert len(levels) == 1
            return [replace(base, weights=((competitor, -1),), limit=-floors[0], lower=lower)]
        p, q = weights_of(self.view, label, competitor)
        limit = max(p * _known(ceiling) - q * _known(floor) for ceiling, floor in zip(ceilings, floors, strict=True))
        return [replace(base, weights=((label, p), (competitor, -q)), limit=limit, upper=((label, ceilings[-1]),), lower=lower)]


def weights_of(view: OutputView, own: int, other: int) -> tuple[int, int]:
    """Weights p, q that make a level of one output weigh about as much as one of another."""
    steps = view.steps
    assert steps is not None
    rows = [int(view.row[index]) for index in (own, other)]
    if rows[0] == rows[1] or steps.thresholds.shape[1] < 2:
        return 1, 1
    spans = [max(1, int(steps.thresholds[row, -1] - steps.thresholds[row, 0])) for row in rows]
    ratio = Fraction(spans[1], spans[0]).limit_denominator(64)
    return max(1, ratio.numerator), max(1, ratio.denominator)


def _known(bound: int | None) -> int:
    assert bound is not None
    return bound
