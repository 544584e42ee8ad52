"""Two campaigns about two models each, side by side: verdicts that changed, and contradictions, which must not exist.

Inputs are matched by their codes and the original's class, radii and deltas by their exact values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import product
from typing import Any

from qertify.campaign.compare import Change, keyed_points, shared_points, transitions
from qertify.campaign.records import Campaign, Compared, Point
from qertify.campaign.store import Store
from qertify.errors import InvalidInputError
from qertify.queries.equivalence_result import Equivalence


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One input around which the same models are proved to agree here, and were seen to differ there.

    Attributes:
        proved, seen: (radius, what was asked).
        proved_in: "first" or "second".
    """

    row: int
    label: int
    proved: tuple[str, str]
    seen: tuple[str, str]
    proved_in: str


@dataclass(frozen=True, slots=True)
class PairComparison:
    """The outcome.

    Attributes:
        same_model: whether both ask about the same two models under the same conditions, so that they must not contradict.
        shared: inputs in both.
        only_first, only_second: inputs in one of them.
        compared: pairs of answers to the same question at the same input.
        changes: ``radius`` holds what is asked, too.
        transitions: "equivalent → unknown" → how often, changed ones only.
        narrower, wider: intervals of differences, attained to proved, that became so.
    """

    same_model: bool
    shared: int
    only_first: int
    only_second: int
    compared: int
    changes: tuple[Change, ...]
    transitions: dict[str, int]
    narrower: int
    wider: int
    contradictions: tuple[Disagreement, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare_pairs(first: Store, second: Store) -> PairComparison:
    """Compare two stores about two models.

    Raises:
        StoreError: a damaged store.
        InvalidInputError: radii in different units, or no common input.
    """
    if None in (first.campaign.comparison, second.campaign.comparison):
        raise InvalidInputError("one campaign is about one model, the other one about two")
    points = [keyed_points(store) for store in (first, second)]
    shared = shared_points(first, second, points)
    answers: list[dict[int, list[Compared]]] = [{}, {}]
    for side, store in zip(answers, (first, second), strict=True):
        for record in store.compared():
            side.setdefault(record.position, []).append(record)
    same = _same_question(first.campaign, second.campaign)
    changes: list[Change] = []
    contradictions: list[Disagreement] = []
    compared = narrower = wider = 0
    for key in shared:
        point, other = points[0][key], points[1][key]
        before, after = answers[0].get(point.position, []), answers[1].get(other.position, [])
        again = {(record.radius, record.asked): record.result for record in after}
        for record in before:
            if (result := again.get((record.radius, record.asked))) is None:
                continue
            compared += 1
            if record.result.verdict is not result.verdict:
                asked = f"{record.radius}, {record.asked}"
                changes.append(Change(point.row, point.label, asked, record.result.verdict.value, result.verdict.value))
            widths = [_width(found) for found in (record.result.max_delta, result.max_delta)]
            narrower, wider = narrower + (widths[1] < widths[0]), wider + (widths[0] < widths[1])
        if same:
            contradictions += [
                *_contradictions(point, before, after, "first"),
                *_contradictions(point, after, before, "second"),
            ]
    return PairComparison(
        same_model=same,
        shared=len(shared),
        only_first=len(points[0]) - len(shared),
        only_second=len(points[1]) - len(shared),
        compared=compared,
        changes=tuple(changes),
        transitions=transitions(changes),
        narrower=narrower,
        wider=wider,
        contradictions=tuple(contradictions),
    )


def _width(interval: tuple[float, float | None] | None) -> float:
    return float("inf") if interval is None or interval[1] is None else interval[1] - interval[0]


def _same_question(first: Campaign, second: Campaign) -> bool:
    def value(campaign: Campaign) -> Any:
        pair = campaign.comparison
        assert pair is not None
        models = (campaign.model_digest, pair.original_digest, campaign.runtime_profile, campaign.input_range)
        return (*models, pair.float_semantics, pair.output, pair.input_scale, pair.rows_sha256)

    return value(first) == value(second)


def _contradictions(point: Point, proofs: Sequence[Compared], sights: Sequence[Compared], name: str) -> list[Disagreement]:
    """Proofs on a region that holds another one where the models were seen to differ by more than was proved."""
    return [
        Disagreement(point.row, point.label, (proof.radius, proof.asked), (sight.radius, sight.asked), name)
        for proof, sight in product(proofs, sights)
        if Fraction(sight.radius) <= Fraction(proof.radius) and _contradict(proof, sight)
    ]


def _contradict(proof: Compared, sight: Compared) -> bool:
    bound, attained = proof.result.max_delta, sight.result.max_delta
    if bound is not None and bound[1] is not None and attained is not None and attained[0] > bound[1]:
        return True
    if proof.result.verdict is not Equivalence.EQUIVALENT or sight.result.verdict is not Equivalence.NOT_EQUIVALENT:
        return False
    if proof.result.delta is None or sight.result.delta is None:
        return proof.asked == sight.asked == "top1"
    return Fraction(proof.result.delta) <= Fraction(sight.result.delta)
