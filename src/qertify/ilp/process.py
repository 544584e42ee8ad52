"""Solvers in child processes, with a hard kill: two solvers can't share a process, and one overruns its time limit."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Self

import numpy as np

from qertify.errors import SolverError
from qertify.ilp.model import Program, SolverAnswer, Status
from qertify.ilp.solvers import require_solver
from qertify.ilp.worker import GRACE, LENGTHS, frame

CHUNK = 1 << 16


class _Lost(Exception):
    """The child is gone or must go; the text says why."""


class _Worker:
    """One child process running one solver."""

    def __init__(self, solver: str, memory: int | None) -> None:
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the child)
        command = [sys.executable, "-P", "-m", "qertify.ilp.worker", solver, *([] if memory is None else [str(memory)])]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, bufsize=0, start_new_session=True
            )
        except OSError as error:
            self.stderr.close()
            raise SolverError(f"can't start a process for solver '{solver}': {error.strerror or error}") from error
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)

    def exchange(self, message: bytes, deadline: float | None) -> tuple[dict[str, Any], bytes]:
        """Send one frame, receive one.

        Raises:
            _Lost: the child died, or did not answer by ``deadline``.
            TimeoutError: as `_Lost`, for the deadline.
        """
        source, sink = self.process.stdout, self.process.stdin
        assert source is not None
        assert sink is not None
        pending, received = memoryview(message), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            selector.register(sink, selectors.EVENT_WRITE)
            while True:
                for key, _ in selector.select(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    if key.fileobj is sink:
                        pending = pending[self._write(pending) :]
                        if not pending:
                            selector.unregister(sink)
                    else:
                        part = os.read(source.fileno(), CHUNK)
                        if not part:
                            raise _Lost(self._epitaph())
                        received += part
                        if (reply := _parse(received)) is not None:
                            return reply
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError

    def _write(self, data: memoryview) -> int:
        assert self.process.stdin is not None
        try:
            return os.write(self.process.stdin.fileno(), data[:CHUNK])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _Lost(self._epitaph()) from error

    def _epitaph(self) -> str:
        """Why the child died, one line."""
        try:
            code = self.process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            return "the solver's process closed its pipes"
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"the solver's process ended with {cause}" + (f": {lines[-1]}" if lines else "")

    def kill(self) -> None:
        """End the child and everything it started, now."""
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.stderr.close()


def _parse(received: bytearray) -> tuple[dict[str, Any], bytes] | None:
    """The frame in ``received``, or None while it is incomplete."""
    if len(received) < LENGTHS.size:
        return None
    text, body = LENGTHS.unpack_from(received)
    middle = LENGTHS.size + text
    if len(received) < middle + body:
        return None
    return json.loads(received[LENGTHS.size : middle]), bytes(received[middle : middle + body])


class SolverProcesses:
    """Child processes, one a solver, started when first needed and reused; use as a context manager.

    Not for use by several threads at once.
    """

    def __init__(self, memory: int | None = None) -> None:
        """``memory``: limit of each child's address space in bytes, None for none."""
        self._memory = memory
        self._workers: dict[str, _Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all children."""
        for solver in list(self._workers):
            self._discard(solver)

    def _discard(self, solver: str) -> None:
        if (worker := self._workers.pop(solver, None)) is not None:
            worker.kill()

    def process_id(self, solver: str) -> int | None:
        """The child that runs a solver, if it was started."""
        worker = self._workers.get(solver)
        return None if worker is None else worker.process.pid

    def solve(
        self, solver: str, program: Program, deadline: float | None = None, threads: int = 1, seed: int = 0
    ) -> SolverAnswer:
        """Solve a program; returns at most `GRACE` seconds after the deadline. A child that dies makes a FAILED answer.

        Args:
            solver: a name in `SOLVERS`.
            deadline: of `time.monotonic`; the time to start the child counts.
            threads, seed: of the solver.

        Raises:
            InvalidInputError: an unknown solver.
            MissingExtraError: a solver that is not installed.
            SolverError: no process can be started.
        """
        require_solver(solver)
        if deadline is not None and time.monotonic() >= deadline:
            return SolverAnswer(Status.LIMIT, reason="no time left")
        if solver not in self._workers:
            self._workers[solver] = _Worker(solver, self._memory)
        header = {"deadline": deadline, "threads": threads, "seed": seed}
        kill_at = None if deadline is None else deadline + GRACE
        try:
            reply, body = self._workers[solver].exchange(frame(header, program.to_bytes()), kill_at)
            values = np.frombuffer(body, dtype="<i8").astype(np.int64)
            status = Status(reply["status"])
            if status is Status.FEASIBLE and values.shape != program.low.shape:
                raise _Lost(f"a point of {len(values)} values for {len(program.low)} columns")
            point = values if status is Status.FEASIBLE else None
            return SolverAnswer(status, point, reply["optimal"], reply["reason"], reply["bound"])
        except TimeoutError:
            self._discard(solver)
            return SolverAnswer(Status.LIMIT, reason=f"killed {GRACE:g} s after its time limit")
        except (_Lost, ValueError, KeyError) as error:
            self._discard(solver)
            return SolverAnswer(Status.FAILED, reason=str(error))
        except BaseException:
            self._discard(solver)
            raise
