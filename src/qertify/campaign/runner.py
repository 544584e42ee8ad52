"""Runs a campaign: which question next, what an answer implies, and what happens when a worker is slow or dies.

Radii of one input are asked one after the other, from the middle outwards: a proof settles every smaller region, a
counterexample every region that holds it, and an input that is wrong at its centre is settled altogether. The order depends
on the answers alone, so that a campaign that was killed and resumed ends like one that was not.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import numpy as np

from qertify.campaign.records import Point, Record, Search
from qertify.campaign.store import Store
from qertify.options import Options
from qertify.parallel.executor import Executor, LostError, Message, Reply, first_done
from qertify.queries.pieces import answer_piece, question_piece, search_piece
from qertify.queries.radius import RadiusResult
from qertify.queries.robustness import RobustnessQuery, describe_region
from qertify.result import Result, Verdict

POLL = 0.2
HELPERS, HELP_AFTER, ENOUGH_IDLE = 4, 5.0, 2
"""Most questions that are shared out at a time, seconds that such a question has run, and idle workers that it takes."""

Answer = TypeVar("Answer", Result, RadiusResult)


class Posed(Protocol):
    """A question and its way back to the model file; of which the caller knows more than the runner."""

    @property
    def query(self) -> RobustnessQuery:
        """In integers."""
        ...

    def confirm(self, result: Answer) -> Answer:
        """Replay a counterexample on the runtime itself, if there is one."""
        ...


Poser = Callable[[int, Fraction | None], Posed]
"""(position, radius) → question; radius None stands for the input alone, in levels."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run.

    Attributes:
        executor: its workers answer; they have read the campaign's model, and options for one question.
        options: of each question.
        budget: seconds in all, None for none.
    """

    executor: Executor
    options: Options
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is.

    Attributes:
        done, total: answers, those of earlier runs included.
        asked: questions that this run asked.
        seconds: of this run.
        left: estimated seconds to go, None while unknown.
    """

    done: int
    total: int
    asked: int
    seconds: float
    left: float | None


@dataclass(frozen=True, slots=True)
class _Task:
    """One question on its way; ``radius`` None is a radius search."""

    position: int
    radius: str | None


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


def run_campaign(store: Store, pose: Poser, plan: Plan, progress: Callable[[Progress], None] | None = None) -> bool:
    """Ask what the store has no answer for, and add each answer as it comes.

    Args:
        store: open for writing.
        pose: makes the questions.
        plan: how to run.
        progress: told after each answer, and a few times a second.

    Returns:
        whether everything is answered; False when the budget ran out.

    Raises:
        StoreError: the file can't be written; what it holds stays valid.
        WorkerError: workers don't start.
        QertifyError: a question that the chosen method can't be asked.
    """
    return _Run(store, pose, plan, progress or (lambda _: None)).run()


class _Run:
    """The state of one run."""

    def __init__(self, store: Store, pose: Poser, plan: Plan, progress: Callable[[Progress], None]) -> None:
        self.store, self.pose, self.plan, self.progress = store, pose, plan, progress
        self.start = time.monotonic()
        campaign = store.campaign
        answered, searched = store.answered(), {search.position for search in store.searches()}
        self.lines: dict[int, _Line] = {}
        self.total = self.before = 0
        for point in store.points():
            done = answered.get(point.position, set[str]())
            left = [radius for radius in campaign.radii if radius not in done]
            search = campaign.search is not None and point.position not in searched
            self.total += len(campaign.radii) + (campaign.search is not None)
            self.before += len(done) + (point.position in searched)
            if left or search:
                self.lines[point.position] = _Line(point, left, search, done)
        self.done, self.asked = self.before, 0
        self.waiting = deque(self.lines)
        self.running: dict[Reply, _Task] = {}
        self.since: dict[_Task, float] = {}
        self.helping: dict[Reply, _Task] = {}
        self.over: dict[_Task, threading.Event] = {}

    def run(self) -> bool:
        executor = self.plan.executor
        helpers = ThreadPoolExecutor(HELPERS)
        try:
            while self.lines:
                if self.plan.budget is not None and time.monotonic() - self.start > self.plan.budget:
                    return False
                self._tell()
                while len(self.running) < executor.size and (task := self._next()) is not None:
                    self.running[executor.submit(self._piece(task), self.plan.options.timeout)] = task
                    self.since[task] = time.monotonic()
                    self.asked += 1
                self._help(helpers)
                for reply in first_done([*self.running, *self.helping], POLL):
                    self._take(reply)
            self._tell()
            return True
        finally:
            for event in self.over.values():
                event.set()
            executor.stop(self.running)
            helpers.shutdown()

    def _help(self, helpers: ThreadPoolExecutor) -> None:
        """Where workers have nothing to do any more, share out the search of the question that has run longest.

        The worker that has it goes on: the first answer counts.
        """
        if self.waiting or len(self.helping) >= HELPERS or self.plan.executor.idle < ENOUGH_IDLE:
            return
        now = time.monotonic()
        old = [task for task in self.running.values() if task not in self.over and now - self.since[task] > HELP_AFTER]
        if old:
            task = min(old, key=self.since.__getitem__)
            self.over[task] = threading.Event()
            self.helping[helpers.submit(self._share, task, self.over[task].is_set)] = task

    def _share(self, task: _Task, stopped: Callable[[], bool]) -> Message:
        """The answer to a question, found here with the help of all workers."""
        piece, executor = self._piece(task), self.plan.executor
        left = self.plan.options.timeout
        if left is not None:
            left = max(1e-3, left - (time.monotonic() - self.since[task]))
        options = replace(self.plan.options, timeout=left)
        query = self.pose(task.position, None if task.radius is None else Fraction(task.radius)).query
        return answer_piece(query.network, options, piece, stopped, executor) | {"attempts": 1}

    def _piece(self, task: _Task) -> Message:
        if task.radius is None:
            return search_piece(self.pose(task.position, None).query, self._largest())
        return question_piece(self.pose(task.position, Fraction(task.radius)).query)

    def _largest(self) -> int | None:
        """Where a radius search ends."""
        search = self.store.campaign.search
        return None if search == "all" else int(search or 0)

    def _take(self, reply: Reply) -> None:
        """Settle what a worker says, or put down that it could not say anything."""
        helped = reply in self.helping
        task = self.helping.pop(reply) if helped else self.running.pop(reply, None)
        if task is None:  # settled a moment ago
            return
        others = self.running if helped else self.helping
        other = next((found for found, its in others.items() if its == task), None)
        try:
            message = reply.result()
        except LostError as lost:
            if other is None:
                self._give_up(task, lost)
            return
        if other is not None:
            if message["result"]["reason"] is not None:  # the other one may still find out
                return
            self.over[task].set()
            self.plan.executor.stop([other])
            del others[other]
        self._settle(task, message["result"], message["attempts"])

    def _next(self) -> _Task | None:
        if not self.waiting:
            return None
        position = self.waiting.popleft()
        return _Task(position, self.lines[position].next())

    def _give_up(self, task: _Task, lost: LostError) -> None:
        """Put down an unknown in place of an answer."""
        point, campaign = self.lines[task.position].point, self.store.campaign
        method, seconds = self.plan.options.method.value, lost.seconds
        if task.radius is None:
            found: Result | RadiusResult = RadiusResult(
                campaign.model_digest, campaign.runtime_profile, point.label, point.predicted, None, None, False, seconds,
                method, lost.reason, campaign.target, campaign.ties, self._largest(),
            )  # fmt: skip
        else:
            query = self.pose(task.position, Fraction(task.radius)).query
            found = Result(
                campaign.model_digest, campaign.runtime_profile, Verdict.UNKNOWN, point.label, task.radius, query.radius_unit,
                seconds, method, reason=lost.reason, target=campaign.target, predicted=point.predicted,
                region=describe_region(query), ties=campaign.ties, explanation=(lost.why,),
            )  # fmt: skip
        self._settle(task, found.to_json(), lost.attempts)

    def _settle(self, task: _Task, data: dict[str, Any], attempts: int) -> None:
        """Add an answer and all that it implies, and let the input's next question wait its turn: at the front."""
        line = self.lines[task.position]
        if task.radius is None:
            found = self.pose(task.position, None).confirm(RadiusResult.from_json(data))
            self.store.add_search(Search(task.position, found, attempts))
            line.search = False
            self.done += 1
        else:
            result = self.pose(task.position, Fraction(task.radius)).confirm(Result.from_json(data))
            records = [
                Record(task.position, task.radius, result, None, attempts),
                *self._implied(line, task.radius, result),
            ]
            self.store.add(records)
            line.answered |= {record.radius for record in records}
            line.open = [radius for radius in line.open if radius not in line.answered]
            self.done += len(records)
        if line.open or line.search:
            self.waiting.appendleft(task.position)
        else:
            del self.lines[task.position]
        self._tell()

    def _implied(self, line: _Line, source: str, result: Result) -> list[Record]:
        """Answers that follow for the input's other radii; the regions themselves are compared, not the radii."""
        if result.verdict is Verdict.UNKNOWN:
            return []
        asked = self.pose(line.point.position, Fraction(source)).query.region
        found: list[Record] = []
        for radius in line.open:
            if radius == source:
                continue
            query = self.pose(line.point.position, Fraction(radius)).query
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

    def _tell(self) -> None:
        seconds, new = time.monotonic() - self.start, self.done - self.before
        left = seconds / new * (self.total - self.done) if new else None
        self.progress(Progress(self.done, self.total, self.asked, seconds, left))
