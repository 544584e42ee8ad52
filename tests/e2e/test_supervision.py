"""The command as a process: limits, interrupts and crashes of an engine that misbehaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.cli.main import run
from qertify.cli.render import render_answer
from qertify.cli.supervisor import Direct, _Watch
from tests.files import comparison_model, model_flags

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="supervision needs fork")

ENGINES = {
    # PyDLL keeps the interpreter's lock: no thread of this process can run meanwhile
    "stuck": "ctypes.PyDLL(None).sleep(60)",
    "child": "subprocess.run(['sleep', '61'])",
    "talks": "progress('stage one: done'); time.sleep(60)",
    "hungry": "hoard = [bytearray(1 << 20) for _ in range(700)]; time.sleep(60)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "crashes": "os.kill(os.getpid(), signal.SIGSEGV)",
}
"""What stands in for the engine: Python code."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    comparison_model(tmp_path / "m.h5")
    np.save(tmp_path / "x.npy", np.array([[15, 0], [9, 4]]))
    return tmp_path


def start(folder: Path, engine: str, *flags: str) -> subprocess.Popen[str]:
    """``qertify verify`` with a stand-in engine, in its own process group."""
    code = f"""
import ctypes, os, signal, subprocess, sys, time
from qertify.cli import main

def verify(query, options, progress, *_):
    {ENGINES[engine]}

def run(arguments, channel, run=main.run):  # in the supervised child, as the engine is
    from qertify.queries import robustness
    robustness.verify = verify
    return run(arguments, channel)

main.run = run
sys.exit(main.main())
"""
    command = [sys.executable, "-c", code, "verify", "m.h5", *model_flags(), "--input", "x.npy[1]", "--radius", "6", *flags]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=40)
    return process.returncode, out, err


def group_is_gone(process: subprocess.Popen[str]) -> bool:
    """Whether every process that the command started has ended."""
    for _ in range(300):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("engine", ["stuck", "child"])
def test_the_time_limit_is_hard(folder: Path, engine: str) -> None:
    begin = time.monotonic()
    process = start(folder, engine, "--timeout", "8", "--json")
    status, out, _ = finish(process)
    assert 7.9 < time.monotonic() - begin < 30  # far below the stand-in engine's minute
    assert status == 3
    answer = json.loads(out)
    assert (answer["verdict"], answer["reason"]) == ("unknown", "timeout")
    assert len(answer["model_digest"]) == 64
    assert (answer["label"], answer["radius"]) == (0, "6")
    assert group_is_gone(process)


def test_a_limit_shorter_than_the_start(folder: Path) -> None:
    status, out, _ = finish(start(folder, "stuck", "--timeout", "0.05", "--json"))
    assert status in (2, 3)  # 2 only when the command line was not read within the limit and its grace
    if status == 3:
        assert json.loads(out)["reason"] == "timeout"


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Read stderr up to a line that contains the words."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"'{words}' was never said")


def test_interrupt(folder: Path) -> None:
    process = start(folder, "talks", "--json", "-v")
    wait_for(process, "stage one")
    process.send_signal(signal.SIGINT)
    status, out, _ = finish(process)
    assert status == 130
    answer = json.loads(out)
    assert (answer["verdict"], answer["reason"]) == ("unknown", "interrupted")
    assert "stage one: done" in answer["explanation"]
    assert group_is_gone(process)


def test_interrupt_of_the_whole_group_as_a_terminal_does_it(folder: Path) -> None:
    process = start(folder, "child")
    wait_for(process, "region:")
    os.killpg(process.pid, signal.SIGINT)
    status, out, err = finish(process)
    assert status == 130
    assert out.startswith("UNKNOWN: interrupted")
    assert "Traceback" not in err
    assert group_is_gone(process)


def test_nothing_outlives_a_killed_supervisor(folder: Path) -> None:
    process = start(folder, "child")
    wait_for(process, "region:")
    process.kill()
    process.wait()
    assert group_is_gone(process)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_the_memory_limit_is_hard(folder: Path) -> None:
    begin = time.monotonic()
    process = start(folder, "hungry", "--memory", "0.6", "--json")
    status, out, _ = finish(process)
    assert status == 3
    assert json.loads(out)["reason"] == "memory"
    assert time.monotonic() - begin < 30
    assert group_is_gone(process)


def test_a_killed_engine_is_unknown(folder: Path) -> None:
    status, out, _ = finish(start(folder, "killed", "--json"))
    assert status == 3
    assert json.loads(out)["reason"] == "memory"


def test_a_crash_is_a_defect(folder: Path) -> None:
    status, out, err = finish(start(folder, "crashes", "--json"))
    assert status == 2
    assert out == ""
    assert err.splitlines()[-1].startswith("error: killed by signal 11; this is a defect of qertify")


def test_a_reader_that_goes_away_and_a_terminal_of_another_encoding(folder: Path) -> None:
    np.save(folder / "many.npy", np.zeros((20_000, 2), dtype=int))
    command = [sys.executable, "-m", "qertify", "eval", "m.h5", *model_flags(), "--inputs", "many.npy"]
    process = subprocess.Popen([*command, "--json"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.read(1) == "{"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=30) == 0
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, env=ascii_only)
    assert (found.returncode, found.stderr) == (0, "")
    assert "? 19980 more rows" in found.stdout


def test_the_real_command_end_to_end(folder: Path) -> None:
    command = [sys.executable, "-m", "qertify", "verify", "m.h5", *model_flags(), "--radius", "6", "--json", "--timeout", "30"]
    verdicts = {}
    for row in (0, 1):
        found = subprocess.run([*command, "--input", f"x.npy[{row}]"], cwd=folder, capture_output=True, text=True, timeout=60)
        assert len(found.stderr.splitlines()) == 1  # the region
        verdicts[row] = (found.returncode, json.loads(found.stdout)["verdict"])
    assert verdicts == {0: (0, "robust"), 1: (1, "non_robust")}
    wrong = subprocess.run([*command, "--input", "none.npy"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    shown = subprocess.run([sys.executable, "-m", "qertify", "--version"], capture_output=True, text=True, timeout=60)
    assert (shown.returncode, shown.stdout.split()[0]) == (0, "qertify")


@dataclass
class Told(Direct):
    """What a command says to its supervisor, in order."""

    said: list[tuple[str, Any]] = field(default_factory=list)

    def limit(self, timeout: float | None, memory: int | None) -> float | None:
        self.said.append(("limit", timeout))
        return timeout

    def draft(self, answer: dict[str, Any], as_json: bool) -> None:
        self.said.append(("draft", answer))


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "missing.h5", "--input", "x.npy[1]", "--radius", "6"],
        ["radius", "missing.h5", "--input", "x.npy[1]"],
        ["radius", "missing.h5", "--input", "x.npy[1]", "--radius-unit", "real", "--max-radius", "1/3"],
        ["vnnlib", "missing.h5", "missing.vnnlib"],
        ["equiv", "missing.onnx", "missing.h5", "--input", "x.npy[1]", "--delta", "1/2", "--radius", "1"],
    ],
    ids=lambda command: " ".join(command[::5]),
)
def test_a_command_has_an_answer_before_it_has_a_limit(command: list[str]) -> None:
    """However little time there is: the limit may be over when the model has not been read."""
    channel = Told()
    assert run([*command, "--timeout", "1"], channel) == 2
    (first, answer), limit, *_ = channel.said
    assert (first, limit) == ("draft", ("limit", 1.0))
    assert answer["reason"] == "timeout"
    assert answer["model_digest"] is None
    assert "UNKNOWN: the time limit was reached" in render_answer(json.loads(json.dumps(answer)), False, False)


def test_a_limit_without_any_answer_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    child = subprocess.Popen(["sleep", "60"])
    read_end, write_end = os.pipe()
    os.close(write_end)
    assert _Watch(child.pid, read_end, time.monotonic()).stop("timeout", "stopped at the time limit", 3) == 3
    assert capsys.readouterr().err == "error: stopped at the time limit\n"
    assert child.wait(10) == -signal.SIGKILL
    os.close(read_end)
