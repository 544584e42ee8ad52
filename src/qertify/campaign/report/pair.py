"""What the page of a campaign about two models says, as plain data for its template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from qertify.campaign.agreement import Agreement, agreement
from qertify.campaign.records import Campaign, Compared, Point
from qertify.campaign.report.content import (
    ADVICE,
    CARDS,
    UNKNOWNS,
    changes,
    duration,
    panels,
    provenance,
    scores,
)
from qertify.campaign.report.figures import apart, cactus
from qertify.campaign.report.pictures import data_uri, layout_of
from qertify.campaign.store import Store
from qertify.queries.equivalence_result import DifferingInput, Equivalence
from qertify.result import EVIDENCE, REASONS


@dataclass(frozen=True, slots=True)
class PairAnswers:
    """A store, read once."""

    campaign: Campaign
    points: dict[int, Point]
    records: list[Compared]
    summary: Agreement


def read_pair_answers(store: Store) -> PairAnswers:
    """Everything in a store about two models.

    Raises:
        StoreError: a damaged store.
    """
    return PairAnswers(
        store.campaign, {point.position: point for point in store.points()}, list(store.compared()), agreement(store)
    )


def differing(answers: PairAnswers) -> list[tuple[Point, str, DifferingInput]]:
    """(input, radius, where the models differ), each distinct one, the largest difference first."""
    found: dict[tuple[int, tuple[float, ...]], tuple[Point, str, DifferingInput]] = {}
    for record in answers.records:
        if (example := record.result.counterexample) is not None:
            found.setdefault((record.position, example.input), (answers.points[record.position], record.radius, example))
    return sorted(found.values(), key=lambda entry: (-entry[2].difference, entry[0].position))


def pair_content(answers: PairAnswers, title: str | None) -> dict[str, Any]:
    """Names for the template; all text is escaped there."""
    campaign, summary = answers.campaign, answers.summary
    assert campaign.comparison is not None
    found, layout = differing(answers), layout_of(campaign.input_shape)
    times = _seconds(answers)
    return {
        "title": title or f"{campaign.comparison.original_file} and {campaign.model_file}",
        "campaign": campaign,
        "summary": summary,
        "lead": _lead(summary),
        "tiles": _tiles(summary, times),
        "cards": [_card(entry, campaign) for entry in found[:CARDS]],
        "counterexamples": len(found),
        "layout": layout,
        "apart": [(radius, figure) for radius in campaign.radii if (figure := _figure(summary, radius))],
        "cactus": cactus(times),
        "reasons": [(name, count, REASONS[name], ADVICE[name]) for name, count in sorted(summary.reasons.items())],
        "unknowns": _unknowns(answers),
        "provenance": [
            ("Compared with", f"{campaign.comparison.original_file}, digest {campaign.comparison.original_digest}"),
            *provenance(
                campaign, f"{', '.join(campaign.comparison.asked)}; float semantics: {campaign.comparison.float_semantics}"
            ),
        ],
        "table": _table(answers),
    }


def _figure(summary: Agreement, radius: str) -> str:
    known = [(entry.attained, entry.proved) for entry in summary.apart if entry.radius == radius]
    return apart([(least, greatest) for least, greatest in known if least is not None])


def _seconds(answers: PairAnswers) -> list[float]:
    """Times of the questions that were asked and decided."""
    return [
        record.result.seconds
        for record in answers.records
        if record.implied_by is None and record.result.verdict is not Equivalence.UNKNOWN
    ]


def _lead(summary: Agreement) -> list[str]:
    """The outcome in a few sentences."""
    said = [f"{summary.inputs:,} inputs were examined; at {summary.same_class:,} of them both models predict the same class."]
    row = summary.rows[len(summary.rows) // 2]
    within = f"when every input changes by up to {row.radius} ({summary.radius_unit})"
    match row.asked:
        case "max_delta":
            pass
        case "top1":
            said.append(
                f"Around {row.equivalent:,} of them the class is provably the same {within}; "
                f"around {row.not_equivalent:,} an input was found at which it differs."
            )
        case _:
            said.append(
                f"Around {row.equivalent:,} of them the outputs provably stay within {row.asked} of each other {within}; "
                f"around {row.not_equivalent:,} an input was found at which they do not."
            )
    attained = max((entry.attained for entry in summary.apart if entry.attained is not None), default=None)
    if attained is not None:
        said.append(f"The largest difference that was found is {attained:.6g}.")
    if not summary.complete:
        said.append("The campaign is not complete: what is open counts neither way.")
    return said


def _tiles(summary: Agreement, times: Sequence[float]) -> list[tuple[str, str, str]]:
    """(name, figure, remark)."""
    tiles = [("Same class", f"{summary.same_class / summary.inputs:.1%}", f"{summary.same_class} of {summary.inputs} inputs")]
    rows = [row for row in summary.rows if row.asked != "max_delta"]
    for row in rows if len(rows) <= 3 else [rows[at] for at in (0, len(rows) // 2, -1)]:
        name = "Same class" if row.asked == "top1" else f"Within {row.asked}"
        remark = f"{row.equivalent} of {summary.inputs}, radius {row.radius}"
        tiles.append((f"{name} proved", f"{row.equivalent / summary.inputs:.1%}", remark))
    if summary.answers:
        decided = summary.answers - sum(summary.reasons.values())
        tiles.append(("Decided", f"{decided / summary.answers:.1%}", f"{decided:,} of {summary.answers:,} answers"))
    if times:
        tiles.append(("Median question", duration(median(times)), f"slowest decided {duration(max(times))}"))
    return tiles


def _card(entry: tuple[Point, str, DifferingInput], campaign: Campaign) -> dict[str, Any]:
    point, radius, found = entry
    layout = layout_of(campaign.input_shape)
    count, largest = changes(point, found.levels)
    return {
        "row": point.row,
        "radius": radius,
        "label": found.original_predicted,
        "predicted": found.quantized_predicted,
        "difference": f"{found.difference:.6g}",
        "output": found.output,
        "replayed": "the reference evaluator" if found.replayed_on == "reference" else found.replayed_on,
        "images": None if layout is None else [data_uri(panel) for panel in panels(point, found.levels, campaign, layout)],
        "changed": count,
        "changes": largest,
        "scores": scores(
            [float(f"{value:.4g}") for value in found.original],
            [float(f"{value:.4g}") for value in found.quantized],
            (found.output, found.original_predicted, found.quantized_predicted),
        ),
    }


def _interval(record: Compared) -> str:
    known = record.result.max_delta
    if known is None:
        return ""
    return f"{known[0]:.6g} … {'?' if known[1] is None else f'{known[1]:.6g}'}"


def _unknowns(answers: PairAnswers) -> list[dict[str, Any]]:
    unknown = [record for record in answers.records if record.result.verdict is Equivalence.UNKNOWN]
    return [
        {
            "row": answers.points[record.position].row,
            "radius": record.radius,
            "asked": record.asked,
            "difference": _interval(record) or "–",
            "seconds": duration(record.result.seconds),
            "last": record.result.explanation[-1] if record.result.explanation else "",
        }
        for record in unknown[:UNKNOWNS]
    ]


def _table(answers: PairAnswers) -> dict[str, Any]:
    """Rows for the script: [row, label, predicted, radius and question, verdict, seconds, detail]."""
    rows: list[list[Any]] = []
    for record in answers.records:
        point, result = answers.points[record.position], record.result
        rows.append(
            [
                point.row,
                point.label,
                point.predicted,
                f"{record.radius}, {record.asked}",
                result.verdict.value,
                round(result.seconds, 4),
                _detail(record),
            ]
        )
    comparison = answers.campaign.comparison
    assert comparison is not None
    radii = [f"{radius}, {asked}" for radius in answers.campaign.radii for asked in comparison.asked]
    return {"rows": rows, "radii": radii, "labels": sorted({point.label for point in answers.points.values()})}


def _detail(record: Compared) -> str:
    result = record.result
    implied = "" if record.implied_by is None else f" (implied by radius {', '.join(record.implied_by)})"
    interval = f"difference {_interval(record)}" if result.max_delta is not None else ""
    match result.verdict:
        case Equivalence.NOT_EQUIVALENT:
            found = result.counterexample
            assert found is not None
            classes = f"{found.original_predicted} seen as {found.quantized_predicted}, "
            apart_by = f"apart by {found.difference:.6g} at output {found.output}"
            return (classes if found.original_predicted != found.quantized_predicted else "") + apart_by + implied
        case Equivalence.UNKNOWN:
            assert result.reason is not None
            return "; ".join(filter(None, [REASONS[result.reason.value], interval]))
        case Equivalence.EQUIVALENT:
            assert result.evidence is not None
            return "; ".join(filter(None, [EVIDENCE[result.evidence.value], interval])) + implied
