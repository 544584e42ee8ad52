"""A Dask cluster of real processes on the loopback address, for tests that kill parts of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "OMP_NUM_THREADS": "1",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class SmallCluster:
    """A scheduler and workers with one thread each."""

    def __init__(self, folder: Path, failures: int = 1) -> None:
        self.folder, self.port = folder, free_port()
        self.environment = {**os.environ, **ENVIRONMENT, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(failures)}
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start_scheduler()
        self.workers: list[subprocess.Popen[bytes]] = []

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}-{len(self.processes)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments], cwd=self.folder, env=self.environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        where = ("--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard", "--no-show")
        return self._start("scheduler", "scheduler", *where)

    def start_worker(self, nanny: bool = False) -> subprocess.Popen[bytes]:
        flags = ("--nthreads", "1", "--no-dashboard", "--preload", "tests.slow_pieces", "--death-timeout", "30")
        worker = self._start("worker", "worker", self.address, *flags, "--nanny" if nanny else "--no-nanny")
        self.workers.append(worker)
        return worker

    def restore(self, workers: int) -> None:
        """Start what has died; a worker whose scheduler died goes as well."""
        if self.scheduler.poll() is not None:
            self.scheduler = self.start_scheduler()
            for worker in self.workers:
                if worker.poll() is None:
                    kill(worker)
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < workers:
            self.start_worker()

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def small_cluster(folder: Path, workers: int = 2, nanny: bool = False, failures: int = 1) -> Generator[SmallCluster]:
    """``failures``: deaths of workers after which Dask gives up a piece, but for one."""
    cluster = SmallCluster(folder, failures)
    try:
        for _ in range(workers):
            cluster.start_worker(nanny)
        yield cluster
    finally:
        cluster.close()


def wait_until(condition: object, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
