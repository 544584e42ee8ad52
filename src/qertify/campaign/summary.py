"""What a campaign says as a whole: clean and certified accuracy, classes, radii, times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from qertify.campaign.records import Campaign, Point, Record, Search
from qertify.campaign.store import Store
from qertify.result import Verdict


@dataclass(frozen=True, slots=True)
class AtRadius:
    """Counts of inputs at one radius; they add up to the number of inputs.

    Attributes:
        radius: exact rational as text.
        open: not answered yet.
    """

    radius: str
    robust: int
    non_robust: int
    misclassified: int
    unknown: int
    open: int

    @property
    def inputs(self) -> int:
        return self.robust + self.non_robust + self.misclassified + self.unknown + self.open

    @property
    def certified(self) -> tuple[float, float]:
        """Share of inputs proved robust, and what it could become once everything is decided."""
        return self.robust / self.inputs, (self.robust + self.unknown + self.open) / self.inputs


@dataclass(frozen=True, slots=True)
class OfClass:
    """One class.

    Attributes:
        inputs, correct: inputs with this label, and how many of them the model gets right.
        robust: how many are proved robust, by radius.
        undecided: how many are unknown or open, by radius.
        becomes: what counterexamples of its inputs are taken for: class → inputs, each counted once, at its smallest
            refuted radius.
    """

    label: int
    inputs: int
    correct: int
    robust: dict[str, int]
    undecided: dict[str, int]
    becomes: dict[int, int]


@dataclass(frozen=True, slots=True)
class RadiusInterval:
    """What is known about the largest robust radius of one input.

    Attributes:
        verified: proved at this radius, None if at none.
        refuted: refuted at this one, None if at none.
    """

    position: int
    verified: Fraction | None
    refuted: Fraction | None


@dataclass(frozen=True, slots=True)
class Summary:
    """All of it; see `summarise`.

    Attributes:
        correct: inputs that the model gets right; None without labels.
        answers, questions: answers given, and how many of them were asked rather than implied.
        complete: nothing is open.
        seconds: of all questions together.
        radii: one entry a radius, ascending.
        reasons: why answers are unknown.
    """

    inputs: int
    correct: int | None
    answers: int
    questions: int
    complete: bool
    seconds: float
    radii: tuple[AtRadius, ...]
    classes: tuple[OfClass, ...]
    reasons: dict[str, int]
    intervals: tuple[RadiusInterval, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the intervals."""
        data = {name: value for name, value in asdict(self).items() if name != "intervals"}
        for entry, row in zip(data["radii"], self.radii, strict=True):
            entry["certified"] = list(row.certified)
        data["clean_accuracy"] = None if self.correct is None else self.correct / self.inputs
        return data


def summarise(store: Store) -> Summary:
    """Read a store once and count.

    Raises:
        StoreError: a damaged store.
    """
    return summarise_rows(store.campaign, list(store.points()), list(store.records()), list(store.searches()))


def summarise_rows(campaign: Campaign, points: list[Point], records: list[Record], searches: list[Search]) -> Summary:
    """As `summarise`, from what was read."""
    intervals = radius_intervals(points, records, searches)
    if campaign.radii:
        radii = tuple(_at_radius(radius, points, records) for radius in campaign.radii)
    else:
        radii = _from_searches(points, searches)
    asked = len(points) * (len(campaign.radii) + (campaign.search is not None))
    answers = len(records) + len(searches)
    unknown = [r.result.reason for r in records] + [s.result.reason for s in searches]
    return Summary(
        inputs=len(points),
        correct=sum(point.label == point.predicted for point in points) if campaign.labelled else None,
        answers=answers,
        questions=sum(record.implied_by is None for record in records) + len(searches),
        complete=answers == asked,
        seconds=sum(record.result.seconds for record in records) + sum(search.result.seconds for search in searches),
        radii=radii,
        classes=_classes(campaign, points, records, searches),
        reasons=dict(Counter(reason.value for reason in unknown if reason is not None)),
        intervals=intervals,
    )


def _at_radius(radius: str, points: list[Point], records: Iterable[Record]) -> AtRadius:
    counts = Counter(record.result.verdict for record in records if record.radius == radius)
    return AtRadius(
        radius,
        counts[Verdict.ROBUST],
        counts[Verdict.NON_ROBUST],
        counts[Verdict.MISCLASSIFIED],
        counts[Verdict.UNKNOWN],
        len(points) - sum(counts.values()),
    )


def _from_searches(points: list[Point], searches: list[Search]) -> tuple[AtRadius, ...]:
    """Counts at every radius from 1 to the largest one that matters, from the intervals that searches found."""
    known = [s.result.verified_radius for s in searches] + [s.result.refuted_radius for s in searches]
    rows: list[AtRadius] = []
    for radius in range(1, max((value for value in known if value is not None), default=0) + 1):
        counts: Counter[str] = Counter()
        for result in (search.result for search in searches):
            if result.verified_radius is not None and result.verified_radius >= radius:
                counts["robust"] += 1
            elif result.refuted_radius is not None and result.refuted_radius <= radius:
                counts["non_robust"] += 1
            elif result.verified_radius is None and result.reason is None:
                counts["misclassified"] += 1
            elif result.verified_radius is not None and result.verified_radius == result.max_radius:
                counts["open"] += 1
            else:
                counts["unknown"] += 1
        counts["open"] += len(points) - sum(counts.values())
        rows.append(
            AtRadius(str(radius), *(counts[name] for name in ("robust", "non_robust", "misclassified", "unknown", "open")))
        )
    return tuple(rows)


def radius_intervals(points: list[Point], records: list[Record], searches: list[Search]) -> tuple[RadiusInterval, ...]:
    """For each input, the largest radius proved and the smallest one refuted; misclassified counts as refuted at 0."""
    verified: dict[int, Fraction] = {}
    refuted: dict[int, Fraction] = {}
    found: list[tuple[int, Fraction | None, Fraction | None]] = []
    for record in records:
        radius = Fraction(record.radius)
        match record.result.verdict:
            case Verdict.ROBUST:
                found.append((record.position, radius, None))
            case Verdict.NON_ROBUST:
                found.append((record.position, None, radius))
            case Verdict.MISCLASSIFIED:
                found.append((record.position, None, Fraction(0)))
            case Verdict.UNKNOWN:
                pass
    for search in searches:
        result = search.result
        wrong = result.verified_radius is None and result.reason is None
        low = None if result.verified_radius is None else Fraction(result.verified_radius)
        high = Fraction(0) if wrong else None if result.refuted_radius is None else Fraction(result.refuted_radius)
        found.append((search.position, low, high))
    for position, low, high in found:
        if low is not None:
            verified[position] = max(low, verified.get(position, low))
        if high is not None:
            refuted[position] = min(high, refuted.get(position, high))
    return tuple(RadiusInterval(p.position, verified.get(p.position), refuted.get(p.position)) for p in points)


def _classes(campaign: Campaign, points: list[Point], records: list[Record], searches: list[Search]) -> tuple[OfClass, ...]:
    verdicts = {(record.position, record.radius): record.result.verdict for record in records}
    nearest: dict[int, tuple[int, int]] = {}
    answers = [(record.position, record.result) for record in records] + [(s.position, s.result) for s in searches]
    for position, result in answers:
        if (found := result.counterexample) is not None:
            nearest[position] = min((found.distance, found.predicted), nearest.get(position, (found.distance, found.predicted)))
    rows: list[OfClass] = []
    for label in range(campaign.classes):
        mine = [point for point in points if point.label == label]
        if not mine:
            continue
        at = {radius: Counter(verdicts.get((point.position, radius)) for point in mine) for radius in campaign.radii}
        rows.append(
            OfClass(
                label,
                len(mine),
                sum(point.predicted == label for point in mine),
                {radius: counts[Verdict.ROBUST] for radius, counts in at.items()},
                {radius: counts[Verdict.UNKNOWN] + counts[None] for radius, counts in at.items()},
                dict(sorted(Counter(nearest[point.position][1] for point in mine if point.position in nearest).items())),
            )
        )
    return tuple(rows)
