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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

GRACE = 0.6
"""Seconds that an engine may run past the limit to hand in its own answer."""
FAREWELL = 2.0
"""Seconds that a child may take to end after its final answer."""
POLL = 0.1


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

    def finish(self, text: str) -> None:
        """The final answer for stdout."""
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

    def finish(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


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

    def finish(self, text: str) -> None:
        self._send(kind="final", text=text)


@dataclass(slots=True)
class _Watch:
    """What the parent knows."""

    pid: int
    start: float
    deadline: float | None = None
    memory: int | None = None
    draft: dict[str, Any] | None = None
    as_json: bool = False
    lines: list[str] = field(default_factory=list[str])
    final: bool = False

    def take(self, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "limit":
                self.deadline = None if message["timeout"] is None else self.start + message["timeout"]
                self.memory = message["memory"]
            case "draft":
                self.draft, self.as_json = message["answer"], message["as_json"]
            case "progress":
                self.lines.append(message["line"])
            case _:
                self.final = True
                sys.stdout.write(message["text"])
                sys.stdout.flush()

    def answer(self, reason: str, note: str) -> bool:
        """Print the draft as an unknown verdict; False if there is none."""
        if self.draft is None:
            return False
        from qertify.cli.render import render_answer

        unknown = {"reason": reason, "seconds": time.monotonic() - self.start, "explanation": [*self.lines, note]}
        sys.stdout.write(render_answer({**self.draft, **unknown}, self.as_json, sys.stdout.isatty()))
        sys.stdout.flush()
        return True


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
    watch = _Watch(pid, start)
    try:
        return _watch(watch, read_end)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _kill_tree(pid)
        _restore_terminal()
        if not watch.final and not watch.answer("interrupted", "interrupted"):
            print("interrupted", file=sys.stderr)
        return 130


def _watch(watch: _Watch, read_end: int) -> int:
    buffer, status, ended = b"", None, None
    while status is None:
        now = time.monotonic()
        if ended is not None and now > ended + FAREWELL:
            _kill_tree(watch.pid)
        elif not watch.final and watch.deadline is not None and now > watch.deadline + GRACE:
            return _stop(watch, "timeout", "stopped at the time limit")
        elif not watch.final and watch.memory is not None and _resident_bytes(watch.pid) > watch.memory:
            return _stop(watch, "memory", "stopped at the memory limit")
        ready = ended is None and select.select([read_end], [], [], POLL)[0]
        if ready:
            chunk = os.read(read_end, 1 << 16)
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                watch.take(json.loads(line))
            if not chunk:
                ended = time.monotonic()
        elif ended is not None:
            time.sleep(0.005)
        if ended is not None:
            found, code = os.waitpid(watch.pid, os.WNOHANG)
            status = code if found else None
    if not os.WIFSIGNALED(status):
        return os.waitstatus_to_exitcode(status)
    _kill_tree(watch.pid)
    _restore_terminal()
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL and watch.answer("memory", "killed by the system, as when memory runs out"):
        return 3
    print(f"error: killed by signal {number}; this is a defect of qertify, please report", file=sys.stderr)
    return 2


def _stop(watch: _Watch, reason: str, note: str) -> int:
    _kill_tree(watch.pid)
    _restore_terminal()
    if not watch.answer(reason, note):
        print(f"error: {note}", file=sys.stderr)
        return 2
    return 3


def _die_with_parent(alive: int) -> None:
    """Block until the parent's end of the pipe closes, then end this process and all below it."""
    os.read(alive, 1)
    _kill_tree(os.getpid())


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
    children, found = _processes(), [pid]
    for process in found:
        found.extend(children.get(process, []))
    return found


def _kill_tree(pid: int) -> None:
    """Kill a process and everything it started; the top last, for it may be this process."""
    for process in reversed(_descendants(pid)):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process tree."""
    pages = 0
    for process in _descendants(pid):
        try:
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")
