"""A TorchScript file through the command line: nothing without trust, a verdict confirmed on torch with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.runtimes.torch_arithmetic import Engine
from qertify.runtimes.torch_int8 import running
from tests.conformance.torch_models import Mlp, fx, inputs

FLAGS = ("--trust-code", "--input-shape", "1,20")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = fx(Mlp(), Engine.FBGEMM)
    with running(Engine.FBGEMM):
        torch.jit.save(torch.jit.script(module), "m.ts.pt")
    np.save("x.npy", inputs(Mlp(), 6))

    def call(*arguments: object) -> tuple[int, str, str]:
        status = run([str(argument) for argument in arguments], Direct())
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_file_is_a_program(call: Callable[..., Any]) -> None:
    for command in (("info",), ("eval", "--inputs", "x.npy"), ("verify", "--input", "x.npy[0]", "--radius", "1")):
        status, out, err = call(command[0], "m.ts.pt", *command[1:])
        assert (status, out) == (2, "")
        assert "is a program; give --trust-code" in err
    status, _, err = call("info", "m.ts.pt", "--trust-code")
    assert status == 2
    assert "--input-shape" in err
    status, _, err = call("info", "m.ts.pt", *FLAGS, "--runtime", "torch-tpu")
    assert status == 2
    assert "unknown quantized engine 'tpu'" in err


@pytest.mark.parametrize("runtime", ["torch-fbgemm", "torch-qnnpack"])
def test_counterexamples_are_confirmed_on_torch(call: Callable[..., Any], runtime: str) -> None:
    verdicts = set()
    for row, radius in ((0, "0.01"), (0, "2"), (1, "2")):
        status, out, _ = call("verify", "m.ts.pt", *FLAGS, "--runtime", runtime, "--input", f"x.npy[{row}]", "--radius", radius,
                              "--radius-unit", "real", "--cpu-class", "vnni", "--timeout", "20", "--json")  # fmt: skip
        answer = json.loads(out)
        assert answer["runtime_profile"] == runtime
        verdicts.add(answer["verdict"])
        if answer["verdict"] == "non_robust":
            found = answer["counterexample"]
            assert status == 1
            assert found["replayed_on"] == f"torch {torch.__version__} {runtime.removeprefix('torch-')}"
            real = np.array(found["input"], dtype=np.float32)
            assert np.abs(real.astype(np.float64) - np.load("x.npy")[row]).max() <= 2
    assert verdicts == {"robust", "non_robust"}
