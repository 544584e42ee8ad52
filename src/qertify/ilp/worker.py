"""The child process that runs one solver: ``python -m qertify.ilp.worker NAME``, programs in, answers out.

A frame is two big-endian 64-bit lengths, a JSON header and raw bytes. The child ends when its standard input is closed,
which is what happens when the parent dies, and an alarm ends it when a solver ignores its time limit.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import struct
import sys
import threading
import time
from typing import Any, BinaryIO

from qertify.ilp.model import Program, SolverAnswer, Status
from qertify.ilp.solvers import SOLVERS

LENGTHS = struct.Struct(">QQ")
GRACE = 2.0
"""Seconds after its deadline at which a solve is killed."""
PARENT_POLL = 1000
"""Milliseconds between looks at whether the parent still lives, where the system does not wake us."""


def frame(header: dict[str, Any], body: bytes) -> bytes:
    """One message."""
    text = json.dumps(header).encode()
    return LENGTHS.pack(len(text), len(body)) + text + body


def _read(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    text, body = LENGTHS.unpack(lengths)
    return json.loads(stream.read(text)), stream.read(body)


def watch_parent(descriptor: int) -> None:
    """End this process as soon as the other end of the pipe is closed, even while a solver runs."""
    poll = select.poll()
    poll.register(descriptor, 0)  # hang-ups are always reported
    while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(PARENT_POLL)):
        pass
    os._exit(1)


def _limit_memory(limit: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _answer(name: str, header: dict[str, Any], body: bytes) -> SolverAnswer:
    """Run the solver; whatever goes wrong inside it becomes an answer."""
    try:
        module, function = SOLVERS[name].split(":")
        solve = getattr(importlib.import_module(module), function)
        deadline = header["deadline"]
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            return SolverAnswer(Status.LIMIT, reason="no time left to start the solver")
        if remaining is not None:
            signal.setitimer(signal.ITIMER_REAL, remaining + 2 * GRACE)  # the default action ends the process
        return solve(Program.from_bytes(body), remaining, header["threads"], header["seed"] % (1 << 31))
    except MemoryError:
        return SolverAnswer(Status.LIMIT, reason="out of memory")
    except Exception as error:
        return SolverAnswer(Status.FAILED, reason=f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main(name: str, memory: int | None) -> None:
    """Serve programs until standard input ends."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a solver prints must not mix with the replies
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    threading.Thread(target=watch_parent, args=(requests.fileno(),), daemon=True).start()
    if memory is not None:
        _limit_memory(memory)
    while (request := _read(requests)) is not None:
        answer = _answer(name, *request)
        values = b"" if answer.values is None else answer.values.astype("<i8").tobytes()
        header = {"status": answer.status.value, "optimal": answer.optimal, "reason": answer.reason, "bound": answer.bound}
        replies.write(frame(header, values))
        replies.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
