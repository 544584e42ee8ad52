"""Hard limits for the whole process tree: the command runs in a child, a small parent keeps the clock and prints.

The child tells the parent what it would answer if it were stopped now (a draft), and hands over its final answer instead of
printing it, so that exactly one answer appears whatever happens and whenever. The parent imports no numerical library, can't
hang with an engine, and outlives a crash of it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

GRACE = 0.6
"""Seconds that an engine may run past the limit to hand in its own answer."""
FAREWELL = 2.0
"""Seconds that a child may take to end after its final answer."""
POLL = 0.1
UNKNOWN, INTERRUPTED = 3, 130
"""Exit statuses."""


class Channel(Protocol):
    """How a command reports, whether it is supervised or not."""

    def limit(self, timeout: float | None, memory: int | None) -> float | None:
        """Set the wall-clock limit in seconds since the start and the memory limit in bytes; returns the seconds left."""
        ...

    def draft(self, answer: dict[str, Any], as_json: bool) -> None:
        """The answer as JSON data, should the command be stopped from now on."""
        ...

    def progress(self, line: str) -> None:
        """One line for the explanation of a draft."""
        ...

    def finish(self, text: str, status: int) -> int:
        """The final answer for stdout and the exit status, which is returned."""
        ...


@dataclass(slots=True)
class Direct:
    """Without supervision: prints at once. For calls in one process, and for platforms without fork."""

    start: float = field(default_factory=time.monotonic)

    def limit(self, timeout: float | None, memory: int | None) -> float | None:
        return None if timeout is None else self.start + timeout - time.monotonic()

    def draft(self, answer: dict[str, Any], as_json: bool) -> None:
        pass

    def progress(self, line: str) -> None:
        pass

    def finish(self, text: str, status: int) -> int:
        _print(text)
        return status


@dataclass(frozen=True, slots=True)
class _Pipe:
    """The child's end."""

    write_end: int
    start: float

    def _send(self, **message: Any) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            data = data[os.write(self.write_end, data) :]

    def limit(self, timeout: float | None, memory: int | None) -> float | None:
        self._send(kind="limit", timeout=timeout, memory=memory)
        return None if timeout is None else self.start + timeout - time.monotonic()

    def draft(self, answer: dict[str, Any], as_json: bool) -> None:
        self._send(kind="draft", answer=answer, as_json=as_json)

    def progress(self, line: str) -> None:
        self._send(kind="progress", line=line)

    def finish(self, text: str, status: int) -> int:
        self._send(kind="final", text=text, status=status)
        return status


@dataclass(slots=True)
class _Watch:
    """What the parent knows."""

    pid: int
    read_end: int
    start: float
    deadline: float | None = None
    memory: int | None = None
    draft: dict[str, Any] | None = None
    as_json: bool = False
    lines: list[str] = field(default_factory=list[str])
    status: int | None = None
    buffer: bytes = b""

    def listen(self, seconds: float) -> bool:
        """Take what the child says within some seconds; False once it can't say anything any more."""
        if not select.select([self.read_end], [], [], seconds)[0]:
            return True
        chunk = os.read(self.read_end, 1 << 16)
        *lines, self.buffer = (self.buffer + chunk).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        return bool(chunk)

    def _take(self, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "limit":
                self.deadline = None if message["timeout"] is None else self.start + message["timeout"]
                self.memory = message["memory"]
            case "draft":
                self.draft, self.as_json = message["answer"], message["as_json"]
            case "progress":
                self.lines.append(message["line"])
            case _:
                self.status = message["status"]
                _print(message["text"])

    def stop(self, reason: str, note: str, status: int) -> int:
        """End the child and answer for it: with its final answer if it has just given one, else with its draft."""
        _kill_tree(self.pid)
        while select.select([self.read_end], [], [], 0)[0] and self.listen(0):
            pass
        _restore_terminal()
        if self.status is not None:
            return self.status
        if self.draft is None:
            print(f"error: {note}", file=sys.stderr)
            return status
        from qertify.cli.render import render_answer

        unknown = {"reason": reason, "seconds": time.monotonic() - self.start, "explanation": [*self.lines, note]}
        _print(render_answer({**self.draft, **unknown}, self.as_json, sys.stdout.isatty()))
        return status


def supervise(work: Callable[[Channel], int]) -> int:
    """Run ``work`` in a child and return its exit status; in the child, returns the status too.

    Exit status 3 when a limit stops it, 130 on an interrupt, 2 when it dies of a signal.
    """
    start = time.monotonic()
    if not hasattr(os, "fork"):
        return work(Direct(start))
    read_end, write_end = os.pipe()
    alive, lifeline = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        os.close(lifeline)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
        threading.Thread(target=_die_with_parent, args=(alive,), daemon=True).start()
        return work(_Pipe(write_end, start))
    os.close(write_end)
    os.close(alive)
    watch = _Watch(pid, read_end, start)
    try:
        return _watch(watch)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return watch.stop("interrupted", "interrupted", INTERRUPTED)


def _watch(watch: _Watch) -> int:
    while watch.listen(POLL) and watch.status is None:
        if watch.deadline is not None and time.monotonic() > watch.deadline + GRACE:
            return watch.stop("timeout", "stopped at the time limit", UNKNOWN)
        if watch.memory is not None and _resident_bytes(watch.pid) > watch.memory:
            return watch.stop("memory", "stopped at the memory limit", UNKNOWN)
    farewell = time.monotonic() + FAREWELL
    found, code = 0, 0
    while not found and time.monotonic() < farewell:
        found, code = os.waitpid(watch.pid, os.WNOHANG)
        time.sleep(0 if found else 0.005)
    if not found:
        return watch.stop("interrupted", "did not end after its answer", 2)
    if not os.WIFSIGNALED(code):
        return os.waitstatus_to_exitcode(code)
    number = os.WTERMSIG(code)
    if number == signal.SIGKILL:
        return watch.stop("memory", "killed by the system, as when memory runs out", UNKNOWN)
    watch.draft = None
    return watch.stop("", f"killed by signal {number}; this is a defect of qertify, please report", 2)


def _die_with_parent(alive: int) -> None:
    """Block until the parent's end of the pipe closes, then end this process and all below it, from outside."""
    os.read(alive, 1)
    victim = os.getpid()
    if os.fork() == 0:
        _kill_tree(victim)
        os._exit(0)


def _print(text: str) -> None:
    """Write to stdout; a reader that has gone away, as ``head`` does, is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _restore_terminal() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K\x1b[?25h")
        sys.stderr.flush()


def _processes() -> dict[int, list[int]]:
    """Parent → children, of all processes of the machine; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    return children


def _descendants(pid: int) -> list[int]:
    """A process and all below it, but for the one that asks."""
    children, found = _processes(), [pid]
    for process in found:
        found.extend(child for child in children.get(process, []) if child != os.getpid())
    return found


def _kill_tree(pid: int) -> None:
    """Kill a process and everything it started; all are stopped first, so that none can start another meanwhile."""
    stopped: set[int] = set()
    while found := [process for process in _descendants(pid) if process not in stopped]:
        stopped.update(found)
        for process in found:
            _signal(process, signal.SIGSTOP)
    for process in stopped:
        _signal(process, signal.SIGKILL)


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process tree."""
    pages = 0
    for process in _descendants(pid):
        try:
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")
