"""Worker processes: started, fed, watched, killed. Knows lines of JSON, not questions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qertify.errors import WorkerError

CHUNK = 1 << 16
COMMAND = (sys.executable, "-P", "-m", "qertify.campaign.worker")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""What numerical libraries read; each worker gets one thread."""


class WorkerLostError(Exception):
    """The process is gone; the text says why."""


@dataclass(slots=True, eq=False)
class Worker:
    """One process.

    Attributes:
        command: starts it.
        task: what it works on, None while it is idle; belongs to the caller.
        since: when it got that, of `time.monotonic`.
        ready: whether it has read the model.
    """

    command: tuple[str, ...]
    greeting: dict[str, Any]
    process: subprocess.Popen[bytes] = field(init=False)
    task: Any = None
    since: float = 0.0
    ready: bool = False
    _received: bytearray = field(default_factory=bytearray)
    _stderr: Any = None

    def __post_init__(self) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        try:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0, start_new_session=True,
                env=_environment(os.environ),
            )  # fmt: skip
        except OSError as error:
            self._stderr.close()
            raise WorkerError(f"can't start a worker process: {error.strerror or error}") from error
        self.since = time.monotonic()

    @property
    def replies(self) -> int:
        """The descriptor to wait on."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def greet(self) -> None:
        """Name the model.

        Raises:
            WorkerLostError: so does `send`.
        """
        self.send(self.greeting)

    def send(self, message: dict[str, Any]) -> None:
        """Hand over one line; the worker must be idle, so that it reads at once."""
        assert self.process.stdin is not None
        data = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self.process.stdin.fileno(), data) :]
        except OSError as error:
            raise WorkerLostError(self.epitaph()) from error

    def receive(self) -> dict[str, Any] | None:
        """One reply if it is complete; called when there is something to read.

        Raises:
            WorkerLostError: the process has ended.
        """
        part = os.read(self.replies, CHUNK)
        if not part:
            raise WorkerLostError(self.epitaph())
        self._received += part
        if not self._received.endswith(b"\n"):
            return None
        line, self._received = bytes(self._received), bytearray()
        return json.loads(line)

    def epitaph(self) -> str:
        """Why it died, one line."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "it closed its pipes"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        cause = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        return f"{cause}: {lines[-1]}" if lines else cause

    def resident_bytes(self) -> int:
        """Resident memory, 0 where it can't be told. Its solvers' processes have limits of their own."""
        try:
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return 0

    def kill(self) -> None:
        """End it now; the solvers that it started end when their pipes close."""
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._stderr):
            if stream is not None:
                stream.close()


def system_out_of_memory_kills() -> int:
    """How many processes the system has killed so far because memory ran out; 0 where it can't be told."""
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):
        return 0


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    return {**inherited, **dict.fromkeys(THREADS, "1")}
