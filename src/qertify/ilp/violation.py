"""The violation on the output accumulators as rows: one case, or a choice among several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qertify.ilp.builder import Builder, Term, Values
from qertify.ilp.lines import line_through
from qertify.specification.cases import Case, OutputView

ALWAYS = Term(-1, 1)
"""A condition that holds."""


def encode_violation(
    builder: Builder, outputs: Values, view: OutputView, cases: Sequence[Sequence[Case]], encoding: str = "compact"
) -> None:
    """Some case of a violation holds.

    Args:
        outputs: the values of the view's node.
        cases: at least one, each as its single levels, in order, at least one.
        encoding: "compact" spends a binary a case and an integer on its level, "one-hot" a binary on each level of each case,
            which levels that bound several accumulators from above need in any case.

    Raises:
        ContradictionError: none is within reach.
    """
    builder.node = view.node
    terms = {index: outputs[int(view.element[index])] for case in cases for level in case for index in level.indices}
    if encoding == "one-hot" or any(len(case) > 1 and len(case[0].upper) > 1 for case in cases):
        cases, encoding = [(level,) for case in cases for level in case], "one-hot"
    encode_choice(builder, terms, cases, encoding)


def encode_choice(builder: Builder, terms: dict[int, Term], cases: Sequence[Sequence[Case]], encoding: str = "compact") -> None:
    """Some case holds of the accumulators ``terms``; as in `encode_violation`, one level a case if one-hot.

    Raises:
        ContradictionError: none is within reach.
    """
    if len(cases) == 1:
        _encode_case(builder, terms, cases[0], ALWAYS)
        return
    chosen = [builder.binary() for _ in cases]
    builder.row([(1, choice) for choice in chosen], 1, 1)
    if encoding == "one-hot":
        _one_of(builder, terms, [level for (level,) in cases], chosen)
        return
    for case, choice in zip(cases, chosen, strict=True):
        _encode_case(builder, terms, case, choice)


def _encode_case(builder: Builder, terms: dict[int, Term], levels: Sequence[Case], active: Term) -> None:
    """One case, if ``active`` is 1."""
    first = levels[0]
    if len(levels) == 1:
        _weigh(builder, terms, first, active)
        for index, bound in first.upper:
            _at_most(builder, terms[index], bound, active)
        for index, bound in first.lower:
            _at_least(builder, terms[index], bound, active)
        return
    assert first.competitor is not None
    ceilings = [bound for case in levels for _, bound in case.upper]
    floors = [bound for case in levels for _, bound in case.lower]
    encode_levels(builder, terms[first.label], terms[first.competitor], ceilings, floors, active)


def _one_of(builder: Builder, terms: dict[int, Term], levels: Sequence[Case], chosen: Sequence[Term]) -> None:
    """The chosen level: a row for each side of each accumulator, with coefficients from its range, sums all levels."""
    for index, term in terms.items():
        low, high = builder.range_of(term)
        above = [(high - dict(level.upper).get(index, high), choice) for level, choice in zip(levels, chosen, strict=True)]
        below = [(low - dict(level.lower).get(index, low), choice) for level, choice in zip(levels, chosen, strict=True)]
        if above := [part for part in above if part[0] > 0]:
            builder.row([(1, term), *above], None, high)
        if below := [part for part in below if part[0] < 0]:
            builder.row([(1, term), *below], low, None)
    for level, choice in zip(levels, chosen, strict=True):
        _weigh(builder, terms, level, choice)


def _weigh(builder: Builder, terms: dict[int, Term], level: Case, active: Term) -> None:
    """The level's inequality, if ``active`` is 1; left out where its bounds imply it."""
    upper, lower = dict(level.upper), dict(level.lower)
    greatest = bounded = 0
    for index, weight in level.weights:
        low, high = builder.range_of(terms[index])
        greatest += weight * (high if weight > 0 else low)
        bounded += weight * (min(high, upper.get(index, high)) if weight > 0 else max(low, lower.get(index, low)))
    if bounded > level.limit:
        slack = greatest - level.limit
        builder.row([*((weight, terms[index]) for index, weight in level.weights), (slack, active)], None, greatest)


def _at_most(builder: Builder, term: Term, bound: int, active: Term) -> None:
    low, high = builder.range_of(term)
    if active.column < 0:
        builder.restrict(term, low, bound)
    elif high > bound:
        builder.row([(1, term), (high - bound, active)], None, high)


def _at_least(builder: Builder, term: Term, bound: int, active: Term) -> None:
    low, high = builder.range_of(term)
    if active.column < 0:
        builder.restrict(term, bound, high)
    elif low < bound:
        builder.row([(1, term), (low - bound, active)], low, None)


def encode_levels(
    builder: Builder, label: Term, competitor: Term, ceilings: Sequence[int], floors: Sequence[int], active: Term = ALWAYS
) -> None:
    """If ``active`` is 1, some level v has label ≤ ceilings[v] and competitor ≥ floors[v]; both sequences are non-decreasing.

    If it is 0, every row holds at level 0 whatever label and competitor are.
    """
    least, greatest = builder.range_of(competitor)[0], builder.range_of(label)[1]
    first = max((v for v, floor in enumerate(floors) if floor <= least), default=0)
    last = min((v for v, ceiling in enumerate(ceilings) if ceiling >= greatest and v >= first), default=len(ceilings) - 1)
    ceilings, floors = ceilings[first : last + 1], floors[first : last + 1]  # the other levels imply one of these
    _at_most(builder, label, ceilings[-1], active)
    _at_least(builder, competitor, floors[0], active)
    if len(ceilings) == 1:
        return
    above = line_through(np.array(ceilings, dtype=np.int64) + 1)
    from_ = line_through(np.array(floors, dtype=np.int64))
    if above is not None and from_ is not None:
        level = builder.column(0, len(ceilings) - 1, integer=True)
        slack = max(0, above.run * greatest - above.start + 1)
        builder.row([(above.run, label), (-above.rise, level), (slack, active)], None, above.start - 1 + slack)
        slack = max(0, from_.start - from_.run * least)
        builder.row([(from_.run, competitor), (-from_.rise, level), (-slack, active)], from_.start - slack, None)
        return
    passed = builder.ordered_binaries(len(ceilings) - 1)
    rises, slack = np.diff(ceilings).tolist(), max(0, greatest - ceilings[0])
    steps = [(-rise, bit) for rise, bit in zip(rises, passed, strict=True)]
    builder.row([(1, label), *steps, (slack, active)], None, ceilings[0] + slack)
    rises, slack = np.diff(floors).tolist(), max(0, floors[0] - least)
    steps = [(-rise, bit) for rise, bit in zip(rises, passed, strict=True)]
    builder.row([(1, competitor), *steps, (-slack, active)], floors[0] - slack, None)
