"""What a campaign says as a whole: clean and certified accuracy, classes, radii, times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import ceil, floor, log10
from typing import Any

from qertify.campaign.records import Campaign, Point, Record, Search
from qertify.campaign.store import Store
from qertify.queries.radius_result import RadiusResult, RealRadiusResult, Span
from qertify.result import Verdict
from qertify.specification.units import Unit

STEPS = 20
"""Most round radii at which searches for real radii are counted."""


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
class Summary:
    """All of it; see `summarise`.

    Attributes:
        correct: inputs that the model gets right; None without labels.
        answers, questions: answers given, and how many of them were asked rather than implied.
        complete: nothing is open.
        seconds: of all questions together.
        radii: one entry a radius, ascending.
        reasons: why answers are unknown.
        spans: what is known of the radii of each input, in order.
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
    spans: tuple[Span, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the spans."""
        data = {name: value for name, value in asdict(self).items() if name != "spans"}
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
    if campaign.radii:
        radii = tuple(_at_radius(radius, points, records) for radius in campaign.radii)
    else:
        found = [(search.result, search.result.span) for search in searches]
        radii = tuple(_found_at(radius, len(points), found) for radius in _round_radii(campaign, [span for _, span in found]))
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
        spans=spans(campaign, points, records, searches),
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


def _round_radii(campaign: Campaign, known: Iterable[Span]) -> list[str]:
    """Radii at which the outcome of searches is counted: all whole ones up to the largest that matters, or round ones."""
    largest = max((end for span in known for end in (span.verified, span.refuted) if end is not None), default=Fraction(0))
    if campaign.radius_unit != Unit.REAL.value or not largest:
        return [str(radius) for radius in range(1, ceil(largest) + 1)]
    power = floor(log10(largest / STEPS))
    step = next(
        size for at in (power, power + 1) for size in (f"1e{at}", f"2e{at}", f"5e{at}") if Fraction(size) * STEPS >= largest
    )
    return [f"{float(Fraction(step) * count):.12g}" for count in range(1, ceil(largest / Fraction(step)) + 1)]


def _found_at(radius: str, inputs: int, found: list[tuple[RadiusResult | RealRadiusResult, Span]]) -> AtRadius:
    """Counts at one radius, from what searches found."""
    counts, asked = Counter[str](), Fraction(radius)
    for result, span in found:
        end = result.max_radius
        if result.misclassified:
            counts["misclassified"] += 1
        elif span.proves(asked) or (result.exact and span.refuted is None and end is None):
            counts["robust"] += 1
        elif span.refutes(asked):
            counts["non_robust"] += 1
        elif end is not None and span.proves(Fraction(end)):
            counts["open"] += 1
        else:
            counts["unknown"] += 1
    counts["open"] += inputs - sum(counts.values())
    return AtRadius(radius, *(counts[name] for name in ("robust", "non_robust", "misclassified", "unknown", "open")))


def spans(campaign: Campaign, points: list[Point], records: list[Record], searches: list[Search]) -> tuple[Span, ...]:
    """What all answers about each input say together of its radii."""
    found: dict[int, Span] = {}
    said = [(record.position, _span(record)) for record in records]
    # files of earlier versions may hold searches in levels beside radii in another unit
    said += [(s.position, s.result.span) for s in searches if s.result.radius_unit == campaign.radius_unit]
    for position, span in said:
        found[position] = span.joined(found.get(position, Span()))
    return tuple(found.get(point.position, Span()) for point in points)


def _span(record: Record) -> Span:
    match record.result.verdict:
        case Verdict.ROBUST:
            return Span(Fraction(record.radius))
        case Verdict.NON_ROBUST:
            return Span(refuted=Fraction(record.radius))
        case Verdict.MISCLASSIFIED:
            return Span(refuted=Fraction(0))
        case Verdict.UNKNOWN:
            return Span()


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
