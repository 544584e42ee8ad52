"""Runs a campaign: which question next, what an answer implies, and what happens when a worker is slow or dies.

Radii of one input are asked one after the other, from the middle outwards: a proof settles every smaller region, a
counterexample every region that holds it, and an input that is wrong at its centre is settled altogether. The order depends
on the answers alone, so that a campaign that was killed and resumed ends like one that was not.
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from qertify.campaign.pool import COMMAND, Worker, WorkerLostError, system_out_of_memory_kills
from qertify.campaign.records import Point, Record, Search
from qertify.campaign.store import Store
from qertify.errors import WorkerError
from qertify.importers.registry import ImportOptions
from qertify.options import Options
from qertify.queries.radius import RadiusResult
from qertify.queries.robustness import RobustnessQuery, describe_region
from qertify.result import Reason, Result, Verdict

ATTEMPTS = 2
"""How often a question is asked whose worker dies."""
FALSE_STARTS = 3
"""Workers in a row that may die before they have read the model."""
GRACE = 1.5
"""Seconds past its time limit at which a worker is killed; the engines keep to the limit themselves."""
POLL = 0.2

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
        model: the file, read by every worker.
        options: of each question; ``memory`` is for one worker.
        workers: number of processes, each with one thread.
        budget: seconds in all, None for none.
        command: starts a worker, which speaks as `qertify.campaign.worker` does.
    """

    model: Path
    imports: ImportOptions
    options: Options
    workers: int = 1
    budget: float | None = None
    command: tuple[str, ...] = COMMAND


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
    attempt: int = 1


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
        self.retries: deque[_Task] = deque()
        self.workers: list[Worker] = []
        self.false_starts = 0
        self.out_of_memory = system_out_of_memory_kills()

    def run(self) -> bool:
        try:
            with selectors.DefaultSelector() as selector:
                for _ in range(min(self.plan.workers, len(self.lines))):
                    self._start(selector)
                while self.lines:
                    if self.plan.budget is not None and time.monotonic() - self.start > self.plan.budget:
                        return False
                    self._tell()
                    ready = {key.data for key, _ in selector.select(POLL)}
                    for worker in list(self.workers):
                        if not self._attend(worker, worker in ready):
                            selector.unregister(worker.replies)
                            worker.kill()
                            self.workers.remove(worker)
                            if len(self.workers) < len(self.lines):
                                self._start(selector)
            self._tell()
            return True
        finally:
            for worker in self.workers:
                worker.kill()

    def _start(self, selector: selectors.BaseSelector) -> None:
        options = asdict(self.plan.options) | {"method": self.plan.options.method.value}
        worker = Worker(
            self.plan.command, {"model": str(self.plan.model), "import": self.plan.imports.given(), "options": options}
        )
        self.workers.append(worker)
        selector.register(worker.replies, selectors.EVENT_READ, worker)
        with suppress(WorkerLostError):  # its end is seen on the pipe that it answers on
            worker.greet()

    def _attend(self, worker: Worker, speaks: bool) -> bool:
        """Take what a worker says, or look at its limits; False if it must be replaced."""
        limits = self.plan.options
        task: _Task | None = worker.task
        try:
            if speaks:
                if (reply := worker.receive()) is not None:
                    return self._take(worker, reply)
            elif task is None and worker.ready:
                return self._feed(worker)
            elif task is not None and limits.timeout is not None and time.monotonic() - worker.since > limits.timeout + GRACE:
                self._give_up(task, Reason.TIMEOUT, worker, "killed at the time limit")
                return False
            elif task is not None and limits.memory is not None and worker.resident_bytes() > limits.memory:
                self._give_up(task, Reason.MEMORY, worker, "killed at the memory limit")
                return False
        except WorkerLostError as lost:
            self._mourn(worker, str(lost))
            return False
        return True

    def _take(self, worker: Worker, reply: dict[str, Any]) -> bool:
        if "error" in reply:
            raise WorkerError(reply["error"])
        if not worker.ready:
            if reply["ready"] != self.store.campaign.model_digest:
                raise WorkerError(f"{self.plan.model}: the model file has changed since the campaign was started")
            worker.ready, self.false_starts = True, 0
            return self._feed(worker)
        task: _Task = worker.task
        worker.task = None
        if "memory" in reply:
            self._give_up(task, Reason.MEMORY, worker, "memory ran out")
            return False
        self._settle(task, reply["result"])
        return self._feed(worker)

    def _feed(self, worker: Worker) -> bool:
        """Give an idle worker its next question; True unless it is gone."""
        task = self._next()
        if task is None:
            return True
        line, campaign = self.lines[task.position], self.store.campaign
        message: dict[str, Any] = {
            "centre": line.point.codes.reshape(-1).tolist(),
            "label": line.point.label,
            "target": campaign.target,
            "ties": campaign.ties,
        }
        if task.radius is None:
            message["max_radius"] = None if campaign.search == "all" else campaign.search
        else:
            query = self.pose(task.position, Fraction(task.radius)).query
            message |= {
                "low": query.region.low.reshape(-1).tolist(),
                "high": query.region.high.reshape(-1).tolist(),
                "radius": task.radius,
                "radius_unit": query.radius_unit,
            }
        worker.task, worker.since = task, time.monotonic()
        self.asked += 1
        worker.send(message)
        return True

    def _next(self) -> _Task | None:
        if self.retries:
            return self.retries.popleft()
        return self._of(self.waiting.popleft()) if self.waiting else None

    def _of(self, position: int) -> _Task:
        return _Task(position, self.lines[position].next())

    def _mourn(self, worker: Worker, why: str) -> None:
        """A worker died by itself: ask its question once more, or put down that it can't be answered."""
        task: _Task | None = worker.task
        if not worker.ready:
            self.false_starts += 1
            if self.false_starts >= FALSE_STARTS:
                raise WorkerError(f"worker processes die before they have read the model; the last one {why}")
        elif task is not None and task.attempt < ATTEMPTS:
            self.retries.append(replace(task, attempt=task.attempt + 1))
        elif task is not None:
            kills = system_out_of_memory_kills()
            reason = Reason.MEMORY if kills > self.out_of_memory else Reason.WORKER_LOST
            self.out_of_memory = kills
            self._give_up(task, reason, worker, f"the worker {why}, {task.attempt} times")

    def _give_up(self, task: _Task, reason: Reason, worker: Worker, why: str) -> None:
        """Put down an unknown in place of an answer."""
        point, campaign = self.lines[task.position].point, self.store.campaign
        seconds, method = time.monotonic() - worker.since, self.plan.options.method.value
        if task.radius is None:
            found: Result | RadiusResult = RadiusResult(
                campaign.model_digest, campaign.runtime_profile, point.label, point.predicted, None, None, False, seconds,
                method, reason, campaign.target, campaign.ties, None if campaign.search == "all" else int(campaign.search or 0),
            )  # fmt: skip
        else:
            query = self.pose(task.position, Fraction(task.radius)).query
            found = Result(
                campaign.model_digest, campaign.runtime_profile, Verdict.UNKNOWN, point.label, task.radius, query.radius_unit,
                seconds, method, reason=reason, target=campaign.target, predicted=point.predicted,
                region=describe_region(query), ties=campaign.ties, explanation=(why,),
            )  # fmt: skip
        self._settle(task, found.to_json())

    def _settle(self, task: _Task, data: dict[str, Any]) -> None:
        """Add an answer and all that it implies, and let the input's next question wait its turn: at the front."""
        line = self.lines[task.position]
        if task.radius is None:
            found = self.pose(task.position, None).confirm(RadiusResult.from_json(data))
            self.store.add_search(Search(task.position, found, task.attempt))
            line.search = False
            self.done += 1
        else:
            result = self.pose(task.position, Fraction(task.radius)).confirm(Result.from_json(data))
            records = [
                Record(task.position, task.radius, result, None, task.attempt),
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
