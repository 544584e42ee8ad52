"""What a campaign about two models says as a whole: where they agree, how far apart they are, why questions stay open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from qertify.campaign.records import Compared, Point
from qertify.campaign.store import Store
from qertify.queries.equivalence_result import Equivalence
from qertify.search.comparison import rounded


@dataclass(frozen=True, slots=True)
class AtQuestion:
    """Counts of inputs for one radius and question; they add up to the number of inputs.

    Attributes:
        radius: exact rational as text.
        asked: "top1", "max_delta" or a delta.
        open: not answered yet.
    """

    radius: str
    asked: str
    equivalent: int
    not_equivalent: int
    unknown: int
    open: int


@dataclass(frozen=True, slots=True)
class Apart:
    """What is known about the greatest difference of the outputs around one input.

    Attributes:
        attained: at some input of the region; None if nothing is known.
        proved: nowhere exceeded; None if nothing is known.
    """

    position: int
    radius: str
    attained: float | None
    proved: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """All of it; see `agreement`.

    Attributes:
        radius_unit: of all radii.
        same_class: inputs at which both models predict the same class.
        answers, questions: answers given, and how many of them were asked rather than implied.
        complete: nothing is open.
        seconds: of all questions together.
        rows: one entry a radius and question, in the order of the campaign.
        reasons: why answers are unknown.
        apart: one entry an input and radius; empty where classes are compared.
    """

    radius_unit: str
    inputs: int
    same_class: int
    answers: int
    questions: int
    complete: bool
    seconds: float
    rows: tuple[AtQuestion, ...]
    reasons: dict[str, int]
    apart: tuple[Apart, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def agreement(store: Store) -> Agreement:
    """Read a store once and count.

    Raises:
        StoreError: a damaged store.
    """
    campaign, points, records = store.campaign, list(store.points()), list(store.compared())
    assert campaign.comparison is not None
    asked = [(radius, question) for radius in campaign.radii for question in campaign.comparison.asked]
    verdicts = Counter((record.radius, record.asked, record.result.verdict) for record in records)
    unknown = Counter(record.result.reason.value for record in records if record.result.reason is not None)
    rows: list[AtQuestion] = []
    for pair in asked:
        yes, no, doubtful = (verdicts[*pair, verdict] for verdict in Equivalence)
        rows.append(AtQuestion(*pair, yes, no, doubtful, len(points) - yes - no - doubtful))
    return Agreement(
        radius_unit=campaign.radius_unit,
        inputs=len(points),
        same_class=sum(point.label == point.predicted for point in points),
        answers=len(records),
        questions=sum(record.implied_by is None for record in records),
        complete=len(records) == len(points) * len(asked),
        seconds=sum(record.result.seconds for record in records),
        rows=tuple(rows),
        reasons=dict(unknown),
        apart=() if "top1" in campaign.comparison.asked else tuple(differences(points, campaign.radii, records)),
    )


def differences(points: Sequence[Point], radii: Sequence[str], records: Iterable[Compared]) -> Iterable[Apart]:
    """For each input and radius, the greatest difference attained within it and the least one proved for it or a larger one.

    Regions around one input hold those of smaller radii.
    """
    mine: dict[int, list[Compared]] = {}
    for record in records:
        mine.setdefault(record.position, []).append(record)
    for point in points:
        for radius in radii:
            attained: list[float] = []
            proved: list[float] = []
            for record in mine.get(point.position, []):
                result, within = record.result, Fraction(record.radius)
                least, greatest = result.max_delta or (None, None)
                if within <= Fraction(radius):
                    found = result.counterexample
                    attained += [value for value in (least, None if found is None else found.difference) if value is not None]
                if within >= Fraction(radius):
                    proved += [] if greatest is None else [greatest]
                    if result.verdict is Equivalence.EQUIVALENT and result.delta is not None:
                        proved.append(rounded(Fraction(result.delta), up=True))
            yield Apart(point.position, radius, max(attained, default=None), min(proved, default=None))
