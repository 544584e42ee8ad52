"""Worker processes of this machine: started, fed, watched, killed, replaced. Knows lines of JSON, not questions."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qertify.errors import QertifyError, WorkerError
from qertify.parallel.executor import ATTEMPTS, GRACE, MODEL_CHANGED, LostError, Message, Reply
from qertify.result import Reason

CHUNK = 1 << 20
COMMAND = (sys.executable, "-P", "-m", "qertify.parallel.worker")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""What numerical libraries read; each worker gets one thread."""
FALSE_STARTS = 3
"""Workers in a row that may die before they have read the model."""
POLL = 0.2


class WorkerLostError(Exception):
    """The process is gone; the text says why."""


@dataclass(slots=True, eq=False)
class _Job:
    """A piece on its way."""

    piece: Message
    seconds: float | None
    reply: Reply = field(default_factory=Future)
    attempt: int = 1


@dataclass(slots=True, eq=False)
class Worker:
    """One process.

    Attributes:
        command: starts it.
        greeting: names the model.
        job: what it works on, None while it is idle.
        since: when it got that, of `time.monotonic`.
        ready: whether it has read the model.
    """

    command: tuple[str, ...]
    greeting: Message
    process: subprocess.Popen[bytes] = field(init=False)
    job: _Job | None = None
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

    def send(self, message: Message) -> None:
        """Hand over one line; a worker reads at once, even while it works."""
        assert self.process.stdin is not None
        data = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self.process.stdin.fileno(), data) :]
        except OSError as error:
            raise WorkerLostError(self.epitaph()) from error

    def receive(self) -> Message | None:
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


class Processes:
    """An executor of local processes, each with one thread. They are started when there is something to do.

    Args:
        size: most processes at a time.
        greeting: names the model; the first line that each of them reads.
        digest: of the model; a worker that read another one is an error.
        memory: bytes that one worker may take, None for no limit.
        command: starts a worker, which speaks as `qertify.parallel.worker` does.
    """

    def __init__(
        self,
        size: int,
        greeting: Message,
        digest: str,
        memory: int | None = None,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self.size = size
        self._greeting, self._digest, self._memory, self._command = greeting, digest, memory, command
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._stopped: set[Reply] = set()
        self._broken: QertifyError | None = None
        self._closing = False
        self._wanted = 0
        self._workers: list[Worker] = []
        self._false_starts = 0
        self._out_of_memory = system_out_of_memory_kills()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def ready(self) -> int:
        """Workers that have read the model."""
        return 0 if self._broken is not None else sum(worker.ready for worker in list(self._workers))

    @property
    def idle(self) -> int:
        """Ready workers with nothing to do and nothing waiting for them."""
        with self._lock:
            free = sum(worker.ready and worker.job is None for worker in self._workers)
            return 0 if self._broken is not None else max(0, free - len(self._waiting))

    def prepare(self) -> None:
        """Start all processes now, while the caller still has something to do itself."""
        with self._lock:
            self._wanted = self.size
        self._wake()

    def submit(self, piece: Message, seconds: float | None = None) -> Reply:
        """As `qertify.parallel.executor.Executor.submit`."""
        job = _Job(piece, seconds)
        with self._lock:
            broken = LostError(Reason.INTERRUPTED, "no more work is taken") if self._closing else self._broken
            if broken is None:
                self._waiting.append(job)
        if broken is not None:
            job.reply.set_exception(broken)
        self._wake()
        return job.reply

    def stop(self, replies: Iterable[Reply]) -> None:
        """As `qertify.parallel.executor.Executor.stop`."""
        wanted = set(replies)
        with self._lock:
            dropped = [job for job in self._waiting if job.reply in wanted]
            self._waiting = deque(job for job in self._waiting if job.reply not in wanted)
            self._stopped |= wanted
        for job in dropped:
            job.reply.set_exception(LostError(Reason.INTERRUPTED, "stopped before it was begun"))
        self._wake()

    def close(self) -> None:
        """Kill all workers; returns when they are gone."""
        with self._lock:
            self._closing = True
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        with suppress(OSError):  # the pipe is closed once the thread has ended
            os.write(self._wake_write, b"x")

    def _serve(self) -> None:
        """The thread that owns the workers."""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._wake_read, selectors.EVENT_READ)
                while not self._closing:
                    self._staff(selector)
                    spoken = {key.data for key, _ in selector.select(POLL)}
                    if None in spoken:
                        os.read(self._wake_read, CHUNK)
                    self._pass_on_stops()
                    for worker in list(self._workers):
                        if not self._attend(worker, worker in spoken):
                            selector.unregister(worker.replies)
                            worker.kill()
                            self._workers.remove(worker)
        except Exception as error:
            self._break(error if isinstance(error, QertifyError) else WorkerError(f"{type(error).__name__}: {error}"))
        finally:
            for worker in self._workers:
                worker.kill()
            self._break(self._broken or WorkerError("no more work is taken"))
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _break(self, error: QertifyError) -> None:
        """Fail everything that is open, and all that follows."""
        with self._lock:
            self._broken = error
            jobs = [*self._waiting, *(worker.job for worker in self._workers if worker.job is not None)]
            self._waiting.clear()
        for worker in self._workers:
            worker.job = None
        for job in jobs:
            job.reply.set_exception(LostError(Reason.INTERRUPTED, "closed") if self._closing else error)

    def _staff(self, selector: selectors.BaseSelector) -> None:
        """Start workers for what waits."""
        idle = sum(worker.job is None for worker in self._workers)
        wanted = max(len(self._waiting) - idle, self._wanted - len(self._workers))
        for _ in range(min(wanted, self.size - len(self._workers))):
            worker = Worker(self._command, self._greeting)
            self._workers.append(worker)
            selector.register(worker.replies, selectors.EVENT_READ, worker)
            with suppress(WorkerLostError):  # its end is seen on the pipe that it answers on
                worker.greet()

    def _pass_on_stops(self) -> None:
        with self._lock:
            stopped, self._stopped = self._stopped, set()
        for worker in self._workers:
            if worker.job is not None and worker.job.reply in stopped:
                with suppress(WorkerLostError):
                    worker.send({"stop": True})

    def _attend(self, worker: Worker, speaks: bool) -> bool:
        """Take what a worker says, or look at its limits; False if it must be replaced."""
        job = worker.job
        try:
            if speaks:
                if (message := worker.receive()) is not None:
                    return self._take(worker, message)
            elif job is None and worker.ready:
                self._feed(worker)
            elif job is not None and job.seconds is not None and time.monotonic() - worker.since > job.seconds + GRACE:
                self._give_up(worker, job, Reason.TIMEOUT, "killed at the time limit")
                return False
            elif job is not None and self._memory is not None and worker.resident_bytes() > self._memory:
                self._give_up(worker, job, Reason.MEMORY, "killed at the memory limit")
                return False
        except WorkerLostError as lost:
            self._mourn(worker, str(lost))
            return False
        return True

    def _take(self, worker: Worker, message: Message) -> bool:
        if not worker.ready:
            if "error" in message:
                raise WorkerError(message["error"])
            if message["ready"] != self._digest:
                raise WorkerError(f"{self._greeting['model']}: {MODEL_CHANGED}")
            worker.ready, self._false_starts = True, 0
            self._feed(worker)
            return True
        job, worker.job = worker.job, None
        assert job is not None
        if "memory" in message:
            self._give_up(worker, job, Reason.MEMORY, "memory ran out")
            return False
        if "error" in message:
            job.reply.set_exception(WorkerError(message["error"]))
        else:
            job.reply.set_result(message | {"attempts": job.attempt})
        self._feed(worker)
        return True

    def _feed(self, worker: Worker) -> None:
        """Give an idle worker its next piece.

        Raises:
            WorkerLostError: it is gone.
        """
        with self._lock:
            if not self._waiting:
                return
            worker.job, worker.since = self._waiting.popleft(), time.monotonic()
        worker.send(worker.job.piece)

    def _mourn(self, worker: Worker, why: str) -> None:
        """A worker died by itself: try its piece once more, or put down that it can't be answered."""
        job, worker.job = worker.job, None
        if not worker.ready:
            self._false_starts += 1
            if self._false_starts >= FALSE_STARTS:
                raise WorkerError(f"worker processes die before they have read the model; the last one: {why}")
        elif job is not None and job.attempt < ATTEMPTS:
            job.attempt += 1
            with self._lock:
                self._waiting.appendleft(job)
        elif job is not None:
            kills = system_out_of_memory_kills()
            reason = Reason.MEMORY if kills > self._out_of_memory else Reason.WORKER_LOST
            self._out_of_memory = kills
            self._give_up(worker, job, reason, f"the worker {why}, {job.attempt} times")

    def _give_up(self, worker: Worker, job: _Job, reason: Reason, why: str) -> None:
        worker.job = None
        job.reply.set_exception(LostError(reason, why, job.attempt, time.monotonic() - worker.since))


def system_out_of_memory_kills() -> int:
    """How many processes the system has killed so far because memory ran out; 0 where it can't be told."""
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):
        return 0


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    return {**inherited, **dict.fromkeys(THREADS, "1")}
