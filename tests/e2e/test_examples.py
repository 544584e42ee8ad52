"""The examples of quantized formats: they train, quantize and verify, and what they save goes through the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def execute(name: str, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), "--out", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "module", "file", "flags"),
    [
        ("onnx_int8.py", "onnxruntime", "cnn_int8.onnx", ()),
        ("torch_int8.py", "torch", "cnn_int8.ts.pt", ("--trust-code", "--input-shape", "1,1,8,8")),
        ("pt2e_int8.py", "torchao", "cnn_int8.pt2", ()),
        ("tflite_int8.py", "ai_edge_litert", "mlp_int8.tflite", ()),
    ],
)
def test_both_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name, module, file, flags
) -> None:
    for needed in (module, "sklearn"):
        pytest.importorskip(needed)
    shown = execute(name, tmp_path)
    assert "0 of 400 outputs differ" in shown
    if "CPU class vnni" in shown and "unknown" not in shown:
        assert re.search(r"grey levels: robust in", shown)
    for digit, found in re.findall(r"digit (\d), .* non_robust in .*, seen as (\d) by (?:onnxruntime|torch|LiteRT) ", shown):
        assert digit != found
    assert "non_robust" in shown
    monkeypatch.chdir(tmp_path)
    verdicts = set()
    for row, radius in ((0, "1/2"), (2, "1/16"), (3, "1/16")):
        run(["verify", file, *flags, "--input", f"images.npy[{row}]", "--labels", "labels.npy", "--radius", radius,
             "--cpu-class", "vnni", "--timeout", "20", "--json"], Direct())  # fmt: skip
        answer = json.loads(capsys.readouterr().out)
        verdicts.add(answer["verdict"])
        if answer["verdict"] == "non_robust":
            assert answer["counterexample"]["replayed_on"].startswith(("onnxruntime", "torch", "LiteRT"))
    assert {"robust", "non_robust"} <= verdicts
