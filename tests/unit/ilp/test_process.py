"""Solvers in child processes: limits, crashes, interrupts, statuses. None of them may look like an answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qertify.errors import InvalidInputError, MissingExtraError
from qertify.ilp.builder import Builder
from qertify.ilp.model import Program, SolverAnswer, Status
from qertify.ilp.process import SolverProcesses
from qertify.ilp.solvers import OPTIONAL
from qertify.options import Options
from tests.solvers import ALL, needs


def hard_program(seed: int = 0) -> Program:
    """A market split problem: six equations over fifty binaries, far beyond a few seconds."""
    generator, builder = np.random.default_rng(seed), Builder()
    columns = [builder.binary() for _ in range(50)]
    for weights in generator.integers(0, 100, size=(6, 50)).tolist():
        builder.row(list(zip(weights, columns, strict=True)), sum(weights) // 2, sum(weights) // 2)
    return builder.finish()[0]


def easy_program(low: int, high: int) -> Program:
    """low ≤ 3x + 5y ≤ high, x and y in 0 … 2."""
    builder = Builder()
    x, y = builder.column(0, 2, integer=True), builder.column(0, 2, integer=True)
    builder.row([(3, x), (5, y)], low, high)
    return builder.finish()[0]


@pytest.fixture(scope="module")
def processes() -> Iterator[SolverProcesses]:
    with SolverProcesses() as children:
        yield children


@pytest.mark.parametrize("solver", ALL)
def test_answers(processes: SolverProcesses, solver: str) -> None:
    answer = processes.solve(solver, easy_program(11, 11))
    assert answer.status is Status.FEASIBLE
    assert answer.values is not None
    assert answer.values.tolist() == [2, 1]
    child = processes.process_id(solver)
    assert processes.solve(solver, easy_program(7, 7)).status is Status.INFEASIBLE
    assert processes.process_id(solver) == child, "the child is reused"


@pytest.mark.parametrize("solver", ALL)
def test_objective(processes: SolverProcesses, solver: str) -> None:
    program = easy_program(4, 20)
    program.objective[:] = [2, 7]
    answer = processes.solve(solver, program)
    assert answer.values is not None
    assert answer.values.tolist() == [2, 0]
    assert answer.optimal
    assert answer.bound in ((4,) if solver == "cp-sat" else (3, 4))


def test_cp_sat_gives_the_bound_it_proved_when_time_runs_out(processes: SolverProcesses) -> None:
    """Of the market split problem no point is found, but how few ones a point may have is bounded."""
    program = hard_program()
    program.objective[:] = 3
    answer = processes.solve("cp-sat", program, time.monotonic() + 1.5)
    assert not answer.optimal
    assert answer.bound is not None
    assert 0 < answer.bound <= 3 * len(program.objective)
    assert processes.solve("cp-sat", easy_program(11, 11)).bound is None, "no objective, no bound"


def test_numbers_too_large_for_cp_sat_are_refused(processes: SolverProcesses) -> None:
    builder = Builder()
    x = builder.column(0, 1 << 40, integer=True)
    builder.row([(1 << 40, x)], 1, None)
    answer = processes.solve("cp-sat", builder.finish()[0])
    assert answer.status is Status.FAILED
    assert "64-bit" in answer.reason


@pytest.mark.parametrize("solver", ALL)
def test_time_limit(processes: SolverProcesses, solver: str) -> None:
    processes.solve(solver, easy_program(11, 11))
    start = time.monotonic()
    answer = processes.solve(solver, hard_program(), start + 1.0)
    assert answer.status is Status.LIMIT, answer
    assert answer.reason
    assert time.monotonic() - start < 3.5


def test_a_solver_that_ignores_its_limit_is_killed(processes: SolverProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qertify.ilp.process.GRACE", 0.3)
    processes.solve("cp-sat", easy_program(11, 11))
    child = processes.process_id("cp-sat")
    assert child is not None
    os.kill(child, signal.SIGSTOP)
    start = time.monotonic()
    answer = processes.solve("cp-sat", easy_program(11, 11), start + 0.2)
    assert answer.status is Status.LIMIT
    assert 0.4 < time.monotonic() - start < 1.5
    assert not _alive(child)
    assert processes.solve("cp-sat", easy_program(7, 7)).status is Status.INFEASIBLE, "a new child is started"


def test_a_killed_child_is_a_failure(processes: SolverProcesses) -> None:
    processes.solve("highs", easy_program(11, 11))
    child = processes.process_id("highs")
    assert child is not None
    killer = threading.Timer(0.4, os.kill, (child, signal.SIGKILL))
    killer.start()
    answer = processes.solve("highs", hard_program())
    assert answer.status is Status.FAILED
    assert "SIGKILL" in answer.reason
    assert processes.solve("highs", easy_program(7, 7)).status is Status.INFEASIBLE


def test_an_interrupt_ends_the_child() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with SolverProcesses() as processes:
        processes.solve("cp-sat", easy_program(11, 11))
        child = processes.process_id("cp-sat")
        assert child is not None
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                processes.solve("cp-sat", hard_program())
        finally:
            signal.signal(signal.SIGALRM, before)
        assert not _alive(child)


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import threading, time\n"
        "from qertify.ilp.process import SolverProcesses\n"
        "from tests.unit.ilp.test_process import easy_program, hard_program\n"
        "children = SolverProcesses()\n"
        "children.solve('cp-sat', easy_program(11, 11))\n"
        "threading.Thread(target=children.solve, args=('cp-sat', hard_program()), daemon=True).start()\n"
        "time.sleep(0.5)\n"
        "print(children.process_id('cp-sat'), flush=True)\n"
        "time.sleep(60)\n"
    )
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 5
    while _alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in "ZX"


def test_a_memory_limit_is_no_answer() -> None:
    with SolverProcesses(memory=96 << 20) as processes:
        answer = processes.solve("cp-sat", easy_program(7, 7))
    assert answer.status in (Status.LIMIT, Status.FAILED)
    assert answer.reason
    assert "\n" not in answer.reason


def test_a_missing_package_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "highspy.py").write_text("raise ImportError('no such solver here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with SolverProcesses() as processes:
        answer = processes.solve("highs", easy_program(7, 7))
    assert answer.status is Status.FAILED
    assert "no such solver here" in answer.reason


def test_unknown_solver(processes: SolverProcesses) -> None:
    with pytest.raises(InvalidInputError, match="unknown solver 'cplex'; known: highs, cp-sat, scip, gurobi"):
        processes.solve("cplex", easy_program(7, 7))


@pytest.mark.parametrize("solver", OPTIONAL)
def test_a_solver_that_is_not_installed_names_its_extra(
    processes: SolverProcesses, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qertify.ilp.solvers.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=rf"solver '{solver}' needs .* pip install 'qertify\[{solver}\]'"):
        processes.solve(solver, easy_program(7, 7))
    with pytest.raises(MissingExtraError):
        Options(solver=solver)


@needs("gurobi")
def test_a_limited_licence_is_one_clear_line(processes: SolverProcesses) -> None:
    builder = Builder()
    total = [(1, builder.binary()) for _ in range(2001)]
    builder.row(total, 1, 1)
    answer = processes.solve("gurobi", builder.finish()[0])
    if answer.status is Status.FEASIBLE:
        pytest.skip("this Gurobi licence has no size limit")
    assert answer.status is Status.FAILED
    assert answer.reason == "the Gurobi licence is limited to small programs, and this one has 2001 variables and 1 rows"
    assert processes.solve("gurobi", easy_program(11, 11)).status is Status.FEASIBLE, "the child goes on"


@pytest.mark.parametrize("solver", ALL)
def test_rows_of_every_kind_and_empty_programs(processes: SolverProcesses, solver: str) -> None:
    """One-sided, two-sided and equality rows, a row without limits, a constant objective and no column at all."""
    builder = Builder()
    x, y = builder.column(-5, 5, integer=True), builder.column(-5, 5, integer=False)
    builder.row([(2, x), (1, y)], None, None)
    builder.row([(1, x), (1, y)], 3, None)
    builder.row([(1, x), (-1, y)], None, -3)
    builder.row([(1, x), (2, y)], -9, 6)
    answer = processes.solve(solver, builder.finish()[0])
    assert answer.values is not None
    assert answer.values.tolist() == [0, 3]
    assert processes.solve(solver, Builder().finish()[0]).status is Status.FEASIBLE


STATUS_LISTS = {
    "highs": "import highspy; names = [n for n in dir(highspy.HighsModelStatus) if n[0] == 'k']",
    "cp_sat": "from ortools.sat.python import cp_model; names = [n for n in dir(cp_model.CpSolverStatus) if n.isupper()]",
    "scip": "import pyscipopt; names = [n.lower() for n in dir(pyscipopt.SCIP_STATUS) if n.isupper()]",
    "gurobi": "from gurobipy import GRB; names = [n for n in dir(GRB.Status) if n.isupper()]",
}


@pytest.mark.parametrize(
    ("module", "infeasible", "failed"),
    [
        ("highs", "kInfeasible", 11),
        ("cp_sat", "INFEASIBLE", 1),
        pytest.param("scip", "infeasible", 3, marks=needs("scip")),
        pytest.param("gurobi", "INFEASIBLE", 10, marks=needs("gurobi")),
    ],
)
def test_every_native_status_is_mapped_or_failed(module: str, infeasible: str, failed: int) -> None:
    """Only the solver's own word for infeasible is INFEASIBLE; what nobody knows is FAILED; torch is not loaded."""
    code = (
        f"import sys; from qertify.ilp import worker; from qertify.ilp.{module} import status_of, STATUSES;"
        f" {STATUS_LISTS[module]}\n"
        "print([n for n in names if status_of(n).value == 'infeasible'], set(STATUSES) - set(names), status_of('new').value,"
        " sum(status_of(n).value == 'failed' for n in names), 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == f"['{infeasible}'] set() failed {failed} False"


def test_answers_are_consistent() -> None:
    with pytest.raises(ValueError, match="feasible"):
        SolverAnswer(Status.FEASIBLE)
    with pytest.raises(ValueError, match="feasible"):
        SolverAnswer(Status.INFEASIBLE, np.zeros(1, dtype=np.int64))
