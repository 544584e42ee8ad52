"""Runs a campaign: keeps workers busy with its questions, and what happens when one of them is slow or dies."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from qertify.campaign.robustness import Poser, RobustnessStudy
from qertify.campaign.store import Store
from qertify.campaign.study import Study, Task
from qertify.options import Options
from qertify.parallel.executor import Executor, LostError, Message, Reply, first_done

POLL = 0.2
HELPERS, HELP_AFTER, ENOUGH_IDLE = 4, 5.0, 2
"""Most questions that are shared out at a time, seconds that such a question has run, and idle workers that it takes."""
BUDGET = 30.0
"""Seconds after which a search hands in what is open, to be written down; doubled each time."""


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


def run_campaign(store: Store, pose: Poser, plan: Plan, progress: Callable[[Progress], None] | None = None) -> bool:
    """Ask what the store of a campaign about one model has no answer for; as `run_study`.

    Args:
        store: open for writing.
        pose: makes the questions.
    """
    return run_study(RobustnessStudy(store, pose, plan.options), plan, progress)


def run_study(study: Study, plan: Plan, progress: Callable[[Progress], None] | None = None) -> bool:
    """Ask what has no answer yet, and add each answer as it comes.

    Args:
        study: the questions.
        plan: how to run.
        progress: told after each answer, and a few times a second.

    Returns:
        whether everything is answered; False when the budget ran out.

    Raises:
        StoreError: the file can't be written; what it holds stays valid.
        WorkerError: workers don't start.
        QertifyError: a question that the chosen method can't be asked.
    """
    return _Run(study, plan, progress or (lambda _: None)).run()


class _Run:
    """The state of one run."""

    def __init__(self, study: Study, plan: Plan, progress: Callable[[Progress], None]) -> None:
        self.study, self.plan, self.progress = study, plan, progress
        self.start, self.before, self.asked = time.monotonic(), study.done, 0
        self.waiting = deque(study.open())
        self.running: dict[Reply, Task] = {}
        self.since: dict[Task, float] = {}
        self.helping: dict[Reply, Task] = {}
        self.over: dict[Task, threading.Event] = {}
        self.unfinished: deque[Task] = deque()
        self.helpers = ThreadPoolExecutor(HELPERS)

    def run(self) -> bool:
        executor = self.plan.executor
        try:
            while self.waiting or self.running or self.helping or self.unfinished:
                if self.plan.budget is not None and time.monotonic() - self.start > self.plan.budget:
                    return False
                self._tell()
                while len(self.running) < executor.size and (task := self._next()) is not None:
                    self.asked += task not in self.since
                    self._ask(task)
                self._help()
                for reply in first_done([*self.running, *self.helping], POLL):
                    self._take(reply)
            self._tell()
            return True
        finally:
            for event in self.over.values():
                event.set()
            executor.stop(self.running)
            self.helpers.shutdown()

    def _ask(self, task: Task) -> None:
        """Send a question to a worker, for the time that is left of its limit."""
        since = self.since.setdefault(task, time.monotonic())
        age, limit = time.monotonic() - since, self.plan.options.timeout
        left = None if limit is None else max(1e-3, limit - age)
        piece = self.study.piece(task) | {"left": left, "budget": max(BUDGET, age)}
        self.running[self.plan.executor.submit(piece, left)] = task

    def _help(self) -> None:
        """Where workers have nothing to do any more, share out the search of the question that has run longest.

        The worker that has it goes on: the first answer counts.
        """
        if self.waiting or len(self.helping) >= HELPERS or self.plan.executor.idle < ENOUGH_IDLE:
            return
        now = time.monotonic()
        old = [task for task in self.running.values() if task not in self.over and now - self.since[task] > HELP_AFTER]
        if old:
            self._share_out(min(old, key=self.since.__getitem__))

    def _share_out(self, task: Task) -> None:
        self.over[task] = threading.Event()
        self.helping[self.helpers.submit(self._share, task, self.over[task].is_set)] = task

    def _share(self, task: Task, stopped: Callable[[], bool]) -> Message:
        left = self.plan.options.timeout
        if left is not None:
            left = max(1e-3, left - (time.monotonic() - self.since[task]))
        options = replace(self.plan.options, timeout=left)
        return self.study.share(task, options, stopped, self.plan.executor) | {"attempts": 1}

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
                self._settle(task, {"result": self.study.lost(task, lost), "attempts": lost.attempts})
            return
        if "open" in message:
            self.study.keep(task, message["open"])
            free = not self.waiting and len(self.helping) < HELPERS and self.plan.executor.idle >= ENOUGH_IDLE
            if other is None and free:  # the worker that had it is one of them
                self._share_out(task)
            elif other is None:
                self.unfinished.append(task)
            return
        if other is not None:
            if message["result"]["reason"] is not None:  # the other one may still find out
                return
            self.over[task].set()
            self.plan.executor.stop([other])
            del others[other]
        self._settle(task, message)

    def _next(self) -> Task | None:
        if self.waiting:
            return self.study.next(self.waiting.popleft())
        return self.unfinished.popleft() if self.unfinished else None

    def _settle(self, task: Task, message: Message) -> None:
        """Store an answer, and let the input's next question wait its turn: at the front."""
        self.study.settle(task, message["result"], message["attempts"])
        if self.study.next(task.position) is not None:
            self.waiting.appendleft(task.position)
        self._tell()

    def _tell(self) -> None:
        seconds, new = time.monotonic() - self.start, self.study.done - self.before
        left = seconds / new * (self.study.total - self.study.done) if new else None
        self.progress(Progress(self.study.done, self.study.total, self.asked, seconds, left))
