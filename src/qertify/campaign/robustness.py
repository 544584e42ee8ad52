"""A campaign's questions about one model: is an input robust at these radii, and which is the largest such radius?

Radii of one input are asked one after the other, from the middle outwards: a proof settles every smaller region, a
counterexample every region that holds it, and an input that is wrong at its centre is settled altogether. The order depends
on the answers alone, so that a campaign that was killed and resumed ends like one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import numpy as np

from qertify.campaign.journal import StoreJournal
from qertify.campaign.records import Point, Record, Search
from qertify.campaign.store import Store
from qertify.campaign.study import Task
from qertify.options import Options
from qertify.parallel.executor import Executor, LostError, Message
from qertify.queries.pieces import answer_piece, handed_from, question_piece, search_piece
from qertify.queries.radius_result import RadiusResult, RealRadiusResult, radius_result
from qertify.queries.robustness import RobustnessQuery, describe_region
from qertify.result import Result, Verdict
from qertify.specification.pixels import PixelBox
from qertify.specification.units import Unit

Answer = TypeVar("Answer", bound=Result | RadiusResult | RealRadiusResult)


class Posed(Protocol):
    """A question and its way back to the model file; of which the caller knows more than the campaign."""

    @property
    def query(self) -> RobustnessQuery:
        """In integers."""
        ...

    @property
    def given(self) -> np.ndarray:
        """The input as the model reads it."""
        ...

    @property
    def pixels(self) -> PixelBox | None:
        """The input as an image, if radii are pixel steps of images."""
        ...

    def confirm(self, result: Answer) -> Answer:
        """Replay a counterexample on the runtime itself, if there is one."""
        ...


Poser = Callable[[int, Fraction | None], Posed]
"""(position, radius) → question; radius None stands for the input alone."""


@dataclass(slots=True)
class _Line:
    """What is open for one input."""

    point: Point
    open: list[str]
    search: bool
    answered: set[str] = field(default_factory=set[str])

    def next(self) -> str | None:
        """The radius to ask next: the middle of those below the smallest one answered, else of those above."""
        if not self.open:
            return None
        below = [r for r in self.open if all(Fraction(r) < Fraction(other) for other in self.answered)]
        return below[len(below) // 2] if below else self.open[(len(self.open) - 1) // 2]


class RobustnessStudy:
    """As `qertify.campaign.study.Study`.

    Args:
        store: open for writing.
        pose: makes the questions.
        options: of each question.
    """

    def __init__(self, store: Store, pose: Poser, options: Options) -> None:
        self._store, self._pose, self._options = store, pose, options
        campaign = store.campaign
        answered, searched = store.answered(), {search.position for search in store.searches()}
        self._lines: dict[int, _Line] = {}
        self.total = self.done = 0
        for point in store.points():
            done = answered.get(point.position, set[str]())
            left = [radius for radius in campaign.radii if radius not in done]
            search = campaign.search is not None and point.position not in searched
            self.total += len(campaign.radii) + (campaign.search is not None)
            self.done += len(done) + (point.position in searched)
            self._lines[point.position] = _Line(point, left, search, done)

    def open(self) -> Iterable[int]:
        return [position for position, line in self._lines.items() if line.open or line.search]

    def next(self, position: int) -> Task | None:
        line = self._lines[position]
        return Task(position, line.next()) if line.open or line.search else None

    def piece(self, task: Task) -> Message:
        if task.radius is None:
            posed = self._pose(task.position, None)
            return search_piece(posed.query, Unit(self._store.campaign.radius_unit), self._largest(), posed.given, posed.pixels)
        piece = question_piece(self._pose(task.position, Fraction(task.radius)).query)
        return piece | {"open": StoreJournal(self._store, task).handed()}

    def share(self, task: Task, options: Options, stopped: Callable[[], bool], executor: Executor) -> Message:
        query = self._pose(task.position, None if task.radius is None else Fraction(task.radius)).query
        journal = None if task.radius is None else StoreJournal(self._store, task)
        return answer_piece(query.network, options, self.piece(task), stopped, executor, journal=journal)

    def keep(self, task: Task, open_: Message) -> None:
        StoreJournal(self._store, task).take(handed_from(open_, None))

    def _largest(self) -> Fraction | None:
        """Where a radius search ends."""
        search = self._store.campaign.search
        return None if search == "all" else Fraction(search or 0)

    def lost(self, task: Task, lost: LostError) -> Message:
        point, campaign = self._lines[task.position].point, self._store.campaign
        method, seconds = self._options.method.value, lost.seconds
        if task.radius is None:
            largest = self._largest()
            known: dict[str, Any] = {
                "model_digest": campaign.model_digest, "runtime_profile": campaign.runtime_profile, "label": point.label,
                "predicted": point.predicted, "verified_radius": None, "refuted_radius": None, "exact": False,
                "seconds": seconds, "method": method, "reason": lost.reason, "target": campaign.target, "ties": campaign.ties,
                "radius_unit": campaign.radius_unit,
            }  # fmt: skip
            found: Result | RadiusResult | RealRadiusResult
            if campaign.radius_unit == Unit.REAL.value:
                end = None if largest is None else str(largest)
                found = RealRadiusResult(**known, verified_below=None, refuted_at=None, max_radius=end)
            else:
                found = RadiusResult(**known, max_radius=None if largest is None else int(largest))
        else:
            query = self._pose(task.position, Fraction(task.radius)).query
            found = Result(
                campaign.model_digest, campaign.runtime_profile, Verdict.UNKNOWN, point.label, task.radius, query.radius_unit,
                seconds, method, reason=lost.reason, target=campaign.target, predicted=point.predicted,
                region=describe_region(query), ties=campaign.ties, explanation=(lost.why,),
            )  # fmt: skip
        return found.to_json()

    def settle(self, task: Task, data: dict[str, Any], attempts: int) -> None:
        line = self._lines[task.position]
        if task.radius is None:
            found = self._pose(task.position, None).confirm(radius_result(data))
            self._store.add_search(Search(task.position, found, attempts))
            line.search = False
            self.done += 1
            return
        result = self._pose(task.position, Fraction(task.radius)).confirm(Result.from_json(data))
        records = [Record(task.position, task.radius, result, None, attempts), *self._implied(line, task.radius, result)]
        self._store.add(records)
        line.answered |= {record.radius for record in records}
        line.open = [radius for radius in line.open if radius not in line.answered]
        self.done += len(records)

    def _implied(self, line: _Line, source: str, result: Result) -> list[Record]:
        """Answers that follow for the input's other radii; the regions themselves are compared, not the radii."""
        if result.verdict is Verdict.UNKNOWN:
            return []
        asked = self._pose(line.point.position, Fraction(source)).query.region
        found: list[Record] = []
        for radius in line.open:
            if radius == source:
                continue
            query = self._pose(line.point.position, Fraction(radius)).query
            match result.verdict:
                case Verdict.ROBUST:
                    inside = np.all(query.region.low >= asked.low) and np.all(query.region.high <= asked.high)
                case Verdict.NON_ROBUST:
                    assert result.counterexample is not None
                    levels = np.array(result.counterexample.levels, dtype=np.int64).reshape(line.point.codes.shape)
                    inside = query.region.contains(levels[None])[0]
                case _:  # the label loses at the centre, which every region holds
                    inside = True
            if inside:
                implied = replace(
                    result, radius=radius, region=describe_region(query), seconds=0.0, nodes=0,
                    explanation=(f"implied by the answer for radius {source}",),
                )  # fmt: skip
                found.append(Record(line.point.position, radius, implied, implied_by=source))
        return found
