"""The seam: engines and campaigns hand pieces to an `Executor` and know nothing of processes or machines.

A piece is a message: plain data that JSON can write, complete in itself apart from the model, which every worker reads once.
So it may be sent anywhere, more than once, and nothing that comes back is ever unpickled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from qertify.result import Reason

Message = dict[str, Any]
"""Plain data for JSON."""
Reply = Future[Message]
"""A piece on its way; the result has "attempts" added. Exceptions are `LostError` and `qertify.errors.QertifyError`."""

ATTEMPTS = 2
"""How often a piece is tried whose worker dies."""
GRACE = 1.5
"""Seconds past its limit at which a worker is given up; the engines keep to the limit themselves."""
MODEL_CHANGED = "the model file has changed since it was read first"


class LostError(Exception):
    """A piece without an answer; the rest goes on.

    Attributes:
        reason: timeout, memory or worker_lost.
        attempts: how often it was tried.
        seconds: time that the last attempt took.
    """

    def __init__(self, reason: Reason, why: str, attempts: int = 1, seconds: float = 0.0) -> None:
        self.reason, self.why, self.attempts, self.seconds = reason, why, attempts, seconds
        super().__init__(why)


class Executor(Protocol):
    """Where pieces are worked on, any number at a time; `concurrent.futures` with a way to stop what is running."""

    @property
    def ready(self) -> int:
        """Workers that have read the model."""
        ...

    @property
    def size(self) -> int:
        """Workers there are, or will be; at least 1."""
        ...

    @property
    def idle(self) -> int:
        """Ready workers with nothing to do and nothing waiting for them."""
        ...

    def submit(self, piece: Message, seconds: float | None = None) -> Reply:
        """Queue a piece.

        Args:
            piece: has a "kind" of `qertify.parallel.worker`.
            seconds: its time limit; a worker that exceeds it by far is killed.
        """
        ...

    def stop(self, replies: Iterable[Reply]) -> None:
        """Ask running pieces to hand in what they have, and drop waiting ones; returns at once."""
        ...

    def close(self) -> None:
        """End all work. What is open fails with `LostError`, reason interrupted."""
        ...


Answerer = Callable[[Message, Callable[[], bool]], Message]
"""(piece, whether it has been stopped) → reply."""


@dataclass(slots=True, eq=False)
class InProcess:
    """Works on each piece at once, in the caller's thread: for tests, and to see what parallelism itself costs."""

    answer: Answerer
    ready: int = 1
    size: int = 1

    @property
    def idle(self) -> int:
        """All of them: no piece is ever open."""
        return self.ready

    def submit(self, piece: Message, seconds: float | None = None) -> Reply:
        """The finished reply."""
        reply: Reply = Future()
        start = time.monotonic()
        try:
            found = self.answer(piece, lambda: seconds is not None and time.monotonic() - start > seconds)
            reply.set_result(found | {"attempts": 1})
        except Exception as error:
            reply.set_exception(error)
        return reply

    def stop(self, replies: Iterable[Reply]) -> None:
        """Nothing is running."""

    def close(self) -> None:
        """Nothing is open."""


def first_done(replies: Iterable[Reply], seconds: float | None) -> set[Reply]:
    """Those that are done as soon as one is, or none when the time is over."""
    return wait(replies, timeout=seconds, return_when=FIRST_COMPLETED).done
