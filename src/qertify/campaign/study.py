"""What the runner has to know about a campaign: its inputs' questions, one after the other, and what to do with answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from qertify.options import Options
from qertify.parallel.executor import Executor, LostError, Message


@dataclass(frozen=True, slots=True)
class Task:
    """One question on its way.

    Attributes:
        radius: exact rational as text; None for a radius search.
        asked: of two models: "top1", "max_delta" or a delta, exact rational as text; None of a single one.
    """

    position: int
    radius: str | None
    asked: str | None = None


class Study(Protocol):
    """The questions and answers of one campaign. The next question of an input depends on its answers alone."""

    @property
    def total(self) -> int:
        """Answers that there will be."""
        ...

    @property
    def done(self) -> int:
        """Answers that there are."""
        ...

    def open(self) -> Iterable[int]:
        """Inputs with a question that has no answer, in order."""
        ...

    def next(self, position: int) -> Task | None:
        """The question to ask next about an input; None if all have answers."""
        ...

    def piece(self, task: Task) -> Message:
        """The question for a worker."""
        ...

    def share(self, task: Task, options: Options, stopped: Callable[[], bool], executor: Executor) -> Message:
        """The answer, found here with the help of all workers."""
        ...

    def keep(self, task: Task, open_: Message) -> None:
        """Write down the domains that are open in a question that goes on: "open" of a worker's reply."""
        ...

    def lost(self, task: Task, lost: LostError) -> Message:
        """The answer in place of the one that was lost: unknown."""
        ...

    def settle(self, task: Task, data: dict[str, Any], attempts: int) -> None:
        """Store an answer and all that it implies: together, or none of it."""
        ...
