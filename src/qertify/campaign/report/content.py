"""What the page says, as plain data for its template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Any

import numpy as np

from qertify.campaign.records import Campaign, Point, Record, Search
from qertify.campaign.report.figures import cactus, certified_curve, radius_histogram
from qertify.campaign.report.pictures import Layout, data_uri, difference, layout_of, picture
from qertify.campaign.store import Store
from qertify.campaign.summary import Summary, summarise_rows
from qertify.result import EVIDENCE, REASONS, Counterexample, Verdict
from qertify.specification.units import Unit

CARDS = 48
"""Counterexamples shown in full."""
SCORES = 10
"""Classes whose scores a card shows."""
CHANGES = 8
"""Inputs that a card lists where there is no image."""
UNKNOWNS = 200
"""Unknowns listed with their reasons; the table of answers has them all."""
ADVICE = {
    "timeout": "A longer --timeout may decide them.",
    "memory": "More --memory, or fewer workers, may decide them.",
    "solver_claim": "The solver cp-sat, or the method auto, can give exact evidence.",
    "enclosure": "A smaller radius narrows the enclosure.",
    "arithmetic": "Another CPU class, or reduced-range weights, would exclude it.",
    "unsupported": "The method auto uses every engine.",
    "interrupted": "--resume asks what is open.",
    "worker_lost": "The explanation of each says how its process ended.",
}


@dataclass(frozen=True, slots=True)
class Answers:
    """A store, read once."""

    campaign: Campaign
    points: list[Point]
    records: list[Record]
    searches: list[Search]
    summary: Summary


@dataclass(frozen=True, slots=True, eq=False)
class Fooled:
    """One input and the input that is taken for something else."""

    point: Point
    found: Counterexample


def read_answers(store: Store) -> Answers:
    """Everything in a store.

    Raises:
        StoreError: a damaged store.
    """
    points, records, searches = list(store.points()), list(store.records()), list(store.searches())
    return Answers(store.campaign, points, records, searches, summarise_rows(store.campaign, points, records, searches))


def counterexamples(answers: Answers) -> list[Fooled]:
    """Each distinct one, the most telling first: closest to its input; and every pair of classes before any pair's second."""
    points = {point.position: point for point in answers.points}
    found = [(r.position, r.result.counterexample) for r in answers.records]
    found += [(s.position, s.result.counterexample) for s in answers.searches]
    distinct = {(at, example.levels): Fooled(points[at], example) for at, example in found if example is not None}
    closest = sorted(distinct.values(), key=lambda f: (f.found.distance, f.point.position))
    turns: Counter[tuple[int, int]] = Counter()
    inputs: Counter[int] = Counter()
    ranked: list[tuple[tuple[int, int, int], Fooled]] = []
    for rank, fooled in enumerate(closest):
        pair = fooled.point.label, fooled.found.predicted
        ranked.append(((inputs[fooled.point.position], turns[pair], rank), fooled))
        turns[pair] += 1
        inputs[fooled.point.position] += 1
    return [fooled for _, fooled in sorted(ranked, key=lambda entry: entry[0])]


def content(answers: Answers, title: str | None) -> dict[str, Any]:
    """Names for the template; all text is escaped there."""
    campaign, summary = answers.campaign, answers.summary
    found = counterexamples(answers)
    layout = layout_of(campaign.input_shape)
    return {
        "title": title or campaign.model_file,
        "campaign": campaign,
        "summary": summary,
        "lead": _lead(summary, campaign),
        "tiles": _tiles(answers),
        "cards": [_card(fooled, campaign, layout) for fooled in found[:CARDS]],
        "counterexamples": len(found),
        "layout": layout,
        "curve": certified_curve(summary, campaign.radius_unit),
        "cactus": cactus(solved_seconds(answers)),
        "histogram": radius_histogram(histogram_bars(answers), campaign.radius_unit),
        "classes": _class_rows(summary, campaign),
        "matrix": _matrix(summary),
        "reasons": [(name, count, REASONS[name], ADVICE[name]) for name, count in sorted(summary.reasons.items())],
        "unknowns": _unknowns(answers),
        "provenance": provenance(
            campaign, f"ties: {campaign.ties}; target: {'all classes' if campaign.target is None else campaign.target}"
        ),
        "table": _table(answers),
    }


def histogram_bars(answers: Answers) -> list[tuple[str, int, int]]:
    """For `radius_histogram`: inputs by the largest radius proved, and whether a larger one is still possible."""
    real = bool(answers.searches) and answers.campaign.radius_unit == Unit.REAL.value
    asked = [Fraction(row.radius) for row in answers.summary.radii] if real else list(map(Fraction, answers.campaign.radii))
    texts = {Fraction(row.radius): row.radius for row in answers.summary.radii} if real else {}
    exact = {search.position: search.result.exact for search in answers.searches}
    settled: Counter[Fraction] = Counter()
    more: Counter[Fraction] = Counter()
    for point, span in zip(answers.points, answers.summary.spans, strict=True):
        verified = max((radius for radius in asked if span.proves(radius)), default=Fraction(0)) if real else span.verified
        verified = verified or Fraction(0)
        between = [radius for radius in asked if verified < radius and not span.proves(radius) and not span.refutes(radius)]
        known = span.refuted is not None if not answers.searches else exact.get(point.position, span.refuted == 0)
        (settled if known and not between else more)[verified] += 1
    values = sorted({Fraction(0), *asked, *settled, *more})
    return [(texts.get(value, str(value)), settled[value], more[value]) for value in values]


def solved_seconds(answers: Answers) -> list[float]:
    """Times of the questions that were asked and decided."""
    asked = [r.result.seconds for r in answers.records if r.implied_by is None and r.result.verdict is not Verdict.UNKNOWN]
    return asked + [search.result.seconds for search in answers.searches if search.result.reason is None]


def _lead(summary: Summary, campaign: Campaign) -> list[str]:
    """The outcome in a few sentences."""
    said = [f"{summary.inputs:,} inputs were examined."]
    if summary.correct is not None:
        said = [f"Of {summary.inputs:,} inputs, {summary.correct:,} are classified correctly."]
    if summary.radii:
        row = summary.radii[len(summary.radii) // 2]
        unit = "level" if campaign.radius_unit == "levels" else f"({campaign.radius_unit})"
        plural = "s" if campaign.radius_unit == "levels" and row.radius != "1" else ""
        said.append(
            f"{row.robust:,} of them provably keep their class when "
            f"every input changes by up to {row.radius} {unit}{plural}; "
            f"for {row.non_robust:,} a change was found that fools the network."
        )
    if not summary.complete:
        said.append("The campaign is not complete: what is open counts neither way.")
    return said


def _tiles(answers: Answers) -> list[tuple[str, str, str]]:
    """(name, figure, remark)."""
    summary = answers.summary
    tiles: list[tuple[str, str, str]] = []
    if summary.correct is not None:
        tiles.append(("Clean accuracy", f"{summary.correct / summary.inputs:.1%}", f"{summary.correct} of {summary.inputs}"))
    shown = summary.radii if len(summary.radii) <= 3 else [summary.radii[i] for i in (0, len(summary.radii) // 2, -1)]
    for row in shown:
        low, high = row.certified
        remark = f"{row.robust} of {row.inputs}" + (f", at most {high:.1%}" if high > low else "")
        tiles.append((f"Certified at radius {row.radius}", f"{low:.1%}", remark))
    unknown = sum(summary.reasons.values())
    if summary.answers:
        share = (summary.answers - unknown) / summary.answers
        tiles.append(("Decided", f"{share:.1%}", f"{summary.answers - unknown:,} of {summary.answers:,} answers"))
    if times := solved_seconds(answers):
        tiles.append(("Median question", duration(median(times)), f"slowest decided {duration(max(times))}"))
    return tiles


def panels(point: Point, levels: tuple[int, ...], campaign: Campaign, layout: Layout) -> list[Any]:
    """Original, changed input, difference."""
    changed = np.array(levels, dtype=np.int64)
    low, high = campaign.input_low, campaign.input_high
    return [
        picture(point.codes, layout, low, high),
        picture(changed, layout, low, high),
        difference(point.codes, changed, layout),
    ]


def changes(point: Point, levels: tuple[int, ...]) -> tuple[int, list[tuple[int, int, int, str]]]:
    """How many inputs changed, and (input, before, after, change) of the largest changes."""
    before = point.codes.reshape(-1)
    change = np.array(levels, dtype=np.int64) - before
    largest = np.argsort(-np.abs(change), kind="stable")[:CHANGES].tolist()
    return int(np.count_nonzero(change)), [
        (at, int(before[at]), levels[at], f"{change[at]:+d}") for at in largest if change[at]
    ]


def scores(before: Sequence[float], after: Sequence[float], always: Sequence[int]) -> list[dict[str, Any]]:
    """The largest outputs before and after, with the widths of their bars; those of ``always`` in any case."""
    order = sorted(range(len(after)), key=lambda c: -max(after[c], before[c]))[:SCORES]
    shown = sorted(set(order if len(after) <= SCORES else [*order[: SCORES - len(set(always))], *always]))
    everything = [*(after[c] for c in shown), *(before[c] for c in shown)]
    low, span = min(everything), (max(everything) - min(everything)) or 1
    return [
        {
            "name": c,
            "before": before[c],
            "after": after[c],
            "before_width": round(4 + 96 * (before[c] - low) / span, 1),
            "after_width": round(4 + 96 * (after[c] - low) / span, 1),
        }
        for c in shown
    ]


def _card(fooled: Fooled, campaign: Campaign, layout: Layout | None) -> dict[str, Any]:
    point, found = fooled.point, fooled.found
    count, largest = changes(point, found.levels)
    return {
        "row": point.row,
        "label": point.label,
        "predicted": found.predicted,
        "distance": found.distance,
        "replayed": "the reference evaluator" if found.replayed_on == "reference" else found.replayed_on,
        "images": None if layout is None else [data_uri(panel) for panel in panels(point, found.levels, campaign, layout)],
        "changed": count,
        "changes": largest,
        "scores": scores(point.outputs, found.outputs, (point.label, found.predicted)),
    }


def _class_rows(summary: Summary, campaign: Campaign) -> list[dict[str, Any]]:
    return [
        {
            "label": row.label,
            "inputs": row.inputs,
            "correct": f"{row.correct / row.inputs:.0%}" if campaign.labelled else "",
            "certified": [
                {
                    "share": round(100 * row.robust[radius] / row.inputs),
                    "open": round(100 * row.undecided[radius] / row.inputs),
                }
                for radius in campaign.radii
            ],
        }
        for row in summary.classes
    ]


def _matrix(summary: Summary) -> dict[str, Any]:
    """What counterexamples are taken for: rows are labels, columns classes."""
    columns = sorted({c for row in summary.classes for c in row.becomes} | {row.label for row in summary.classes})
    highest = max((count for row in summary.classes for count in row.becomes.values()), default=0)
    rows = [
        (row.label, [(c, row.becomes.get(c, 0), round(row.becomes.get(c, 0) / max(highest, 1), 2)) for c in columns])
        for row in summary.classes
    ]
    return {"columns": columns, "rows": rows if highest else []}


def _unknowns(answers: Answers) -> list[dict[str, Any]]:
    points = {point.position: point for point in answers.points}
    unknown = [record for record in answers.records if record.result.verdict is Verdict.UNKNOWN]
    return [
        {
            "row": points[record.position].row,
            "label": record.result.label,
            "radius": record.radius,
            "reason": REASONS[record.result.reason.value] if record.result.reason is not None else "",
            "nearest": record.result.nearest_class,
            "bound": record.result.bound_reached,
            "seconds": duration(record.result.seconds),
            "last": record.result.explanation[-1] if record.result.explanation else "",
        }
        for record in unknown[:UNKNOWNS]
    ]


def provenance(campaign: Campaign, question: str) -> list[tuple[str, str]]:
    """(name, value)."""
    options = ", ".join(f"{name} {value}" for name, value in campaign.options.items() if value not in (None, False))
    return [
        ("Model", campaign.model_file),
        ("Digest", campaign.model_digest),
        ("Runtime profile", campaign.runtime_profile + (f", CPU class {campaign.cpu_class}" if campaign.cpu_class else "")),
        ("Inputs", f"{campaign.inputs}, shape {' × '.join(map(str, campaign.input_shape))}"),
        ("Input codes", f"{campaign.input_low} … {campaign.input_high}"),
        ("Labels", campaign.labels or "the predicted classes"),
        ("Question", question),
        ("Options", options),
        ("Version", campaign.qertify_version),
        ("Started", campaign.created),
        ("Command", " ".join(("qertify", *campaign.command_line)) if campaign.command_line else "from Python"),
    ]


def _table(answers: Answers) -> dict[str, Any]:
    """Rows for the script: [row, label, predicted, radius, verdict, seconds, detail]."""
    points = {point.position: point for point in answers.points}
    rows: list[list[Any]] = []
    for record in answers.records:
        point, result = points[record.position], record.result
        rows.append(
            [
                point.row,
                result.label,
                point.predicted,
                record.radius,
                result.verdict.value,
                round(result.seconds, 4),
                _detail(record),
            ]
        )
    for search in answers.searches:
        point, result = points[search.position], search.result
        verdict = "misclassified" if result.misclassified else "radius"
        proved = "below" if result.span.below else "up to"
        detail = f"proved {proved} {result.verified_radius:.8g}" if result.verified_radius is not None else ""
        detail += f", refuted at {result.refuted_radius:.8g}" if result.refuted_radius is not None else ""
        detail += f"; {REASONS[result.reason.value]}" if result.reason is not None else ""
        rows.append([point.row, result.label, point.predicted, "search", verdict, round(result.seconds, 4), detail.strip("; ")])
    radii = [*answers.campaign.radii, *(["search"] if answers.searches else [])]
    return {"rows": rows, "radii": radii, "labels": sorted({point.label for point in answers.points})}


def _detail(record: Record) -> str:
    result = record.result
    implied = f" (implied by radius {record.implied_by})" if record.implied_by is not None else ""
    if (found := result.counterexample) is not None:
        return f"seen as {found.predicted} at distance {found.distance}{implied}"
    match result.verdict:
        case Verdict.UNKNOWN:
            assert result.reason is not None
            near = f"; class {result.nearest_class} stays open" if result.nearest_class is not None else ""
            return f"{REASONS[result.reason.value]}{near}"
        case Verdict.MISCLASSIFIED:
            return f"seen as {result.predicted} without any change"
        case _:
            return (EVIDENCE[result.evidence.value] if result.evidence is not None else "") + implied


def duration(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else "< 1 ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
