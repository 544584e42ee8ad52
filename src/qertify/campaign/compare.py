"""Two campaigns side by side: verdicts that changed, radii that moved, and contradictions, which must not exist.

Inputs are matched by their codes, label and target, radii by their exact value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from qertify.campaign.records import Campaign, Point
from qertify.campaign.store import Store
from qertify.campaign.summary import spans
from qertify.errors import InvalidInputError
from qertify.queries.radius_result import Span


@dataclass(frozen=True, slots=True)
class Change:
    """One input and radius whose verdict differs."""

    row: int
    label: int
    radius: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Contradiction:
    """An input proved robust at one radius here and refuted at the same or a smaller one there, of the same model."""

    row: int
    label: int
    verified: str
    refuted: str
    verified_in: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome.

    Attributes:
        same_model: whether both ran the same integers under the same question, so that they must not contradict.
        shared: inputs in both.
        only_first, only_second: inputs in one of them.
        compared: pairs of answers at the same input and radius.
        transitions: "robust → unknown" → how often, changed ones only.
        larger, smaller, equal: inputs whose largest verified radius grew, shrank or stayed.
    """

    same_model: bool
    shared: int
    only_first: int
    only_second: int
    compared: int
    changes: tuple[Change, ...]
    transitions: dict[str, int]
    larger: int
    smaller: int
    equal: int
    mean_shift: float
    contradictions: tuple[Contradiction, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare(first: Store, second: Store) -> Comparison:
    """Compare two stores.

    Raises:
        StoreError: a damaged store.
        InvalidInputError: radii in different units, or no common input.
    """
    points = [keyed_points(store) for store in (first, second)]
    shared = shared_points(first, second, points)
    verdicts = [
        {(record.position, record.radius): record.result.verdict.value for record in store.records()}
        for store in (first, second)
    ]
    changes: list[Change] = []
    compared = 0
    for key in shared:
        before, after = (side[key] for side in points)
        for radius in first.campaign.radii:
            pair = verdicts[0].get((before.position, radius)), verdicts[1].get((after.position, radius))
            if pair[0] is None or pair[1] is None:
                continue
            compared += 1
            if pair[0] != pair[1]:
                changes.append(Change(before.row, before.label, radius, pair[0], pair[1]))
    known = [_spans(store, side) for store, side in zip((first, second), points, strict=True)]
    pairs = [(points[0][key], known[0][key], known[1][key]) for key in shared]
    shifts = [_reach(after) - _reach(before) for _, before, after in pairs]
    same = _same_question(first.campaign, second.campaign)
    return Comparison(
        same_model=same,
        shared=len(shared),
        only_first=len(points[0]) - len(shared),
        only_second=len(points[1]) - len(shared),
        compared=compared,
        changes=tuple(changes),
        transitions=transitions(changes),
        larger=sum(shift > 0 for shift in shifts),
        smaller=sum(shift < 0 for shift in shifts),
        equal=sum(shift == 0 for shift in shifts),
        mean_shift=float(sum(shifts, Fraction(0)) / len(shifts)),
        contradictions=tuple(found for pair in pairs for found in _contradictions(*pair)) if same else (),
    )


Keyed = dict[tuple[str, int, int], Point]


def keyed_points(store: Store) -> Keyed:
    """Inputs by what they are; an input that occurs twice is told apart by its occurrence."""
    found: Keyed = {}
    seen: Counter[tuple[str, int]] = Counter()
    for point in store.points():
        key = point.sha256, point.label
        found[*key, seen[key]] = point
        seen[key] += 1
    return found


def shared_points(first: Store, second: Store, points: Sequence[Keyed]) -> list[tuple[str, int, int]]:
    """The inputs that both campaigns have.

    Raises:
        InvalidInputError: there is none, or their radii can't be compared.
    """
    if first.campaign.radius_unit != second.campaign.radius_unit:
        units = f"'{first.campaign.radius_unit}' and '{second.campaign.radius_unit}'"
        raise InvalidInputError(f"the campaigns measure radii in different units, {units}")
    shared = [key for key in points[0] if key in points[1]]
    if not shared:
        raise InvalidInputError("the campaigns have no input in common")
    return shared


def transitions(changes: Iterable[Change]) -> dict[str, int]:
    """Before → after, and how often."""
    return dict(Counter(f"{change.before} → {change.after}" for change in changes))


def _spans(store: Store, points: Keyed) -> dict[tuple[str, int, int], Span]:
    found = spans(store.campaign, list(points.values()), list(store.records()), list(store.searches()))
    return dict(zip(points, found, strict=True))


def _reach(span: Span) -> Fraction:
    """The largest verified radius; 0 if there is none, which holds for every input classified correctly."""
    return span.verified or Fraction(0)


def _same_question(first: Campaign, second: Campaign) -> bool:
    value: Callable[[Campaign], Any] = lambda c: (c.model_digest, c.runtime_profile, c.target, c.ties, c.input_range)  # noqa: E731
    return value(first) == value(second)


def _contradictions(point: Point, before: Span, after: Span) -> list[Contradiction]:
    found: list[Contradiction] = []
    for name, proof, refutation in (("first", before, after), ("second", after, before)):
        if proof.verified is not None and refutation.refuted is not None and proof.proves(refutation.refuted):
            found.append(Contradiction(point.row, point.label, str(proof.verified), str(refutation.refuted), name))
    return found
