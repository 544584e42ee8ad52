"""An executor on a Dask cluster: the same pieces, as text, to workers on any machine.

A piece and its reply are text in JSON; the only function that is ever sent is `work` of this module, by its name. What Dask's
own wire does beyond that (its control messages are pickled in part) is the reason for loopback addresses and TLS.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from qertify.errors import MissingExtraError, QertifyError, WorkerError
from qertify.parallel.executor import ATTEMPTS, MODEL_CHANGED, LostError, Message, Reply
from qertify.parallel.place import Slurm
from qertify.parallel.processes import THREADS
from qertify.parallel.worker import Desk
from qertify.result import Reason

CONNECT_SECONDS = 20.0
RECONNECT_SECONDS = 20.0
"""How long a lost scheduler may take to come back, with workers."""
WORKERLESS_SECONDS = 120.0
"""How long there may be work and no worker."""
LOOK_SECONDS = 0.5
GRACE = 15.0
"""Seconds past its limit at which a worker is given up: the piece may have waited, and been tried before."""
NEARLY_ALL = 0.7
"""Part of its memory at which a worker was last seen that died of the lack of it."""
STOPPED = "qertify_stopped"
"""Attribute of a Dask worker: the numbers of the pieces that have been stopped."""


@lru_cache(maxsize=2)
def _desk(greeting: str) -> Desk:
    return Desk(json.loads(greeting))


def work(greeting: str, digest: str, number: str, piece: str) -> str:
    """Answer a piece; runs on a worker, in text and out text."""
    from distributed import get_worker

    stops: set[str] = _stops(get_worker())
    try:
        desk = _desk(greeting)
        if desk.network.digest != digest:
            return json.dumps({"error": f"{desk.model}: {MODEL_CHANGED}"})
    except QertifyError as error:
        return json.dumps({"error": str(error)})
    return json.dumps(desk.answer(json.loads(piece), lambda: number in stops))


async def mark_stopped(numbers: list[str], dask_worker: Any = None) -> None:
    """Remember which pieces have been stopped; runs on a worker beside what it works on, which can't be cancelled."""
    _stops(dask_worker).update(numbers)


def _stops(worker: Any) -> set[str]:
    if not hasattr(worker, STOPPED):
        setattr(worker, STOPPED, set())
    return getattr(worker, STOPPED)


@dataclass(slots=True, eq=False)
class _Job:
    """A piece on its way."""

    number: str
    piece: str
    seconds: float | None
    since: float
    reply: Reply = field(default_factory=Future)
    task: Any = None
    attempt: int = 1
    stopped: bool = False


def _age(job: _Job) -> float:
    return time.monotonic() - job.since


class DaskExecutor:
    """Pieces on a Dask cluster whose workers have one thread each and qertify installed.

    A worker that dies is Dask's concern: its pieces are tried elsewhere, a bounded number of times. When the scheduler dies,
    the connection is sought again for a while, and everything that is open is sent again; after that, all open pieces fail.

    Args:
        address: of the scheduler, such as tcp://127.0.0.1:8786 or tls://login:8786, or a cluster object of Dask.
        greeting: names the model; its file must be readable on all workers by the same path.
        digest: of the model.

    Raises:
        MissingExtraError: `distributed` is not installed.
        WorkerError: no scheduler answers.
    """

    def __init__(self, address: Any, greeting: Message, digest: str) -> None:
        self._address, self._greeting, self._digest = address, json.dumps(greeting), digest
        self._client = self._connect(CONNECT_SECONDS)
        self._lock = threading.RLock()
        self._jobs: dict[Reply, _Job] = {}
        self._threads: dict[str, int] = {}
        self._memory: dict[str, float] = {}
        self._broken: Exception | None = None
        self._closed = threading.Event()
        self._busy_since = time.monotonic()
        self._look()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _connect(self, seconds: float) -> Any:
        try:
            from distributed import Client
        except ImportError as error:
            raise MissingExtraError("work on a cluster", "dask") from error
        try:
            return Client(self._address, timeout=seconds, set_as_default=False)
        except (OSError, TimeoutError, ValueError, ImportError) as error:
            raise WorkerError(f"no scheduler answers at {self._address} ({type(error).__name__}: {error})") from error

    @property
    def dashboard(self) -> str:
        """Where a browser sees the cluster at work."""
        return str(self._client.dashboard_link)

    @property
    def ready(self) -> int:
        """Threads of all workers."""
        return sum(self._threads.values())

    @property
    def size(self) -> int:
        """The same, and at least 1."""
        return max(1, self.ready)

    @property
    def idle(self) -> int:
        """Threads with nothing to do and nothing waiting for them."""
        with self._lock:
            return max(0, self.ready - len(self._jobs))

    def submit(self, piece: Message, seconds: float | None = None) -> Reply:
        """As `qertify.parallel.executor.Executor.submit`."""
        job = _Job(uuid4().hex, json.dumps(piece), seconds, time.monotonic())
        with self._lock:
            if self._broken is None:
                self._jobs[job.reply] = job
                with suppress(Exception):  # the watcher finds what was not sent, and the scheduler, again
                    self._send(job)
                return job.reply
        job.reply.set_exception(self._broken)
        return job.reply

    def stop(self, replies: Iterable[Reply]) -> None:
        """As `qertify.parallel.executor.Executor.stop`."""
        with self._lock:
            for reply in replies:
                if reply in self._jobs:
                    self._jobs[reply].stopped = True
        self._mark()

    def close(self) -> None:
        """Leave the cluster; what is open fails."""
        self._closed.set()
        self._watcher.join()
        self._break(LostError(Reason.INTERRUPTED, "closed"))
        with suppress(Exception):
            self._client.close(timeout=5)

    def _mark(self) -> None:
        """Tell all workers which pieces have been stopped; again and again, since a piece may have moved meanwhile."""
        with self._lock:
            numbers = [job.number for job in self._jobs.values() if job.stopped]
        if numbers and self._broken is None:
            with suppress(Exception):  # a worker that is not reached now is reached the next time
                self._client.run(mark_stopped, numbers, wait=False, on_error="ignore")

    def _send(self, job: _Job) -> None:
        job.task = self._client.submit(
            work, self._greeting, self._digest, job.number, job.piece, key=f"qertify-{job.number}-{job.attempt}", pure=False
        )
        client = self._client
        job.task.add_done_callback(lambda task: self._done(job, task, client))

    def _done(self, job: _Job, task: Any, client: Any) -> None:
        """A task has ended; one that was cancelled was lost with the scheduler, and is left to the watcher."""
        if task.status == "cancelled" or client is not self._client or job.task is not task:
            return
        from distributed import KilledWorker

        try:
            message = json.loads(task.result())
        except KilledWorker as killed:
            if job.attempt < ATTEMPTS:  # Dask blames all pieces that a worker had been sent; one more chance
                job.attempt += 1
                with suppress(Exception):
                    self._send(job)
                return
            self._fail(job, self._lost(killed, job))
            return
        except Exception as error:
            self._fail(job, LostError(Reason.WORKER_LOST, f"{type(error).__name__}: {error}", job.attempt, _age(job)))
            return
        if "memory" in message:
            self._fail(job, LostError(Reason.MEMORY, "memory ran out", job.attempt, _age(job)))
        elif "error" in message:
            self._fail(job, WorkerError(message["error"]))
        else:
            self._forget(job)
            with suppress(InvalidStateError):
                job.reply.set_result(message | {"attempts": job.attempt})

    def _lost(self, killed: Any, job: _Job) -> LostError:
        """Nobody says why a worker died; one that was short of memory has most likely been killed for that."""
        last = self._memory.get(str(getattr(killed.last_worker, "address", "")), 0.0)
        reason = Reason.MEMORY if last > NEARLY_ALL else Reason.WORKER_LOST
        return LostError(reason, "every worker that worked on it died", job.attempt, _age(job))

    def _forget(self, job: _Job) -> None:
        with self._lock:
            self._jobs.pop(job.reply, None)

    def _fail(self, job: _Job, error: Exception) -> None:
        self._forget(job)
        with suppress(InvalidStateError):
            job.reply.set_exception(error)

    def _break(self, error: Exception) -> None:
        with self._lock:
            self._broken = error
            jobs, self._jobs = list(self._jobs.values()), {}
            self._threads = {}
        for job in jobs:
            with suppress(Exception):
                job.task.cancel()
            self._fail(job, error)

    def _look(self) -> None:
        """Who is there?"""
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        self._threads = {address: int(item["nthreads"]) for address, item in workers.items()}
        for address, item in workers.items():
            if limit := item.get("memory_limit"):
                self._memory[address] = float(item.get("metrics", {}).get("memory", 0)) / limit
        if self._threads or not self._jobs:
            self._busy_since = time.monotonic()

    def _watch(self) -> None:
        """The thread that notices what Dask does not tell. When it ends, whyever, no piece stays open."""
        try:
            self._watch_until_closed()
        finally:
            if not self._closed.is_set() and self._broken is None:
                self._break(WorkerError(f"the connection to {self._address} broke down; what has been decided is kept"))

    def _watch_until_closed(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            try:
                with self._lock:
                    sent = [job.task is not None and job.task.status != "cancelled" for job in self._jobs.values()]
                if self._client.status != "running" or not all(sent):
                    raise OSError("lost")
                self._look()
            except Exception:
                if self._closed.is_set() or not self._reconnect():
                    return
            if time.monotonic() - self._busy_since > WORKERLESS_SECONDS:
                self._break(WorkerError(f"no worker has been there for {WORKERLESS_SECONDS:.0f} s"))
                return
            self._give_up_late_ones()
            self._mark()

    def _reconnect(self) -> bool:
        """Find the scheduler again and send all that is open once more; False after a while."""
        self._threads = {}
        deadline = time.monotonic() + RECONNECT_SECONDS
        old = self._client
        while time.monotonic() < deadline and not self._closed.is_set():
            with suppress(Exception):
                client = self._connect(max(1.0, min(5.0, deadline - time.monotonic())))
                with self._lock:
                    self._client = client
                    self._look()
                    for job in self._jobs.values():
                        job.since = time.monotonic()
                        self._send(job)
                with suppress(Exception):
                    old.close(timeout=1)
                return True
            self._closed.wait(LOOK_SECONDS)
        self._break(WorkerError(f"the scheduler at {self._address} is lost; what has been decided is kept"))
        return False

    def _give_up_late_ones(self) -> None:
        """Give up pieces far past their limit, with the workers that hang on them."""
        now = time.monotonic()
        with self._lock:
            late = [job for job in self._jobs.values() if job.seconds is not None and now - job.since > job.seconds + GRACE]
            for job in late:
                del self._jobs[job.reply]
        if not late:
            return
        keys = {job.task.key for job in late if job.task is not None}
        with suppress(Exception):
            at = [address for address, tasks in self._client.processing().items() if keys & set(map(str, tasks))]
            self._client.restart_workers(at, raise_for_error=False)
        for job in late:
            with suppress(Exception):
                job.task.cancel()
            self._fail(job, LostError(Reason.TIMEOUT, "given up at the time limit", 1, now - job.since))


@contextmanager
def slurm_cluster(slurm: Slurm) -> Generator[Any]:
    """A Dask cluster in SLURM jobs, with TLS between all of its parts; its credentials are made for it and end with it.

    Raises:
        MissingExtraError: `dask_jobqueue` or `cryptography` is not installed.
    """
    try:
        from dask_jobqueue.slurm import SLURMCluster
        from distributed import Security

        security = Security.temporary()
    except ImportError as error:
        raise MissingExtraError("--cluster slurm", "slurm") from error
    cluster = SLURMCluster(
        cores=slurm.cores,
        processes=slurm.cores,
        memory=slurm.memory,
        walltime=slurm.walltime,
        queue=slurm.queue,
        account=slurm.account,
        interface=slurm.interface,
        protocol="tls://",
        security=security,
        shared_temp_directory=str(Path.home()),
        job_script_prologue=[f"export {name}=1" for name in THREADS],
    )
    try:
        cluster.scale(jobs=slurm.jobs)
        yield cluster
    finally:
        cluster.close(timeout=10)
