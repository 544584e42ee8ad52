"""Preloaded into the workers of a test cluster: questions that take their time, and pieces that misbehave."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from qertify.parallel import worker
from qertify.parallel.executor import Message

DELAY = 0.1

worker.KINDS["slow"] = "tests.slow_pieces:slow"
worker.KINDS["endless"] = "tests.slow_pieces:endless"
worker.KINDS["poison"] = "tests.slow_pieces:poison"
worker.KINDS["question"] = "tests.slow_pieces:slow"


def slow(desk: worker.Desk, piece: Message, stopped: Callable[[], bool]) -> Message:
    """The true answer, later."""
    from qertify.queries.pieces import answer_question

    time.sleep(DELAY)
    return answer_question(desk, piece, stopped)


def endless(desk: worker.Desk, piece: Message, stopped: Callable[[], bool]) -> Message:
    """Ends when it is stopped."""
    start = time.monotonic()
    while not stopped():
        time.sleep(0.01)
    return {"seconds": time.monotonic() - start}


def poison(desk: worker.Desk, piece: Message, stopped: Callable[[], bool]) -> Message:
    """Kills whoever works on it."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}
