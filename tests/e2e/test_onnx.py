"""An ONNX model through the command line: real inputs in, a verdict confirmed on onnxruntime out."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct

pytest.importorskip("onnxruntime")

from tests.conformance.onnx_models import mlp, quantized
from tests.conformance.onnx_models import run as run_model


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    network = mlp()
    quantized(network, tmp_path / "m.onnx", "QDQ", "QUInt8", "QInt8", False)
    inputs = np.random.default_rng(0).standard_normal((6, *network.shape)).astype(np.float32)
    np.save(tmp_path / "x.npy", inputs)

    def call(*arguments: object) -> tuple[int, str, str]:
        status = run([str(argument) for argument in arguments], Direct())
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_eval_agrees_with_the_runtime(call: Callable[..., Any]) -> None:
    status, out, _ = call("eval", "m.onnx", "--inputs", "x.npy", "--json")
    assert status == 0
    expected = run_model(Path("m.onnx"), np.load("x.npy")).reshape(6, -1).argmax(axis=1)
    assert json.loads(out)["predicted"] == expected.tolist()


def test_counterexamples_are_confirmed_on_the_runtime(call: Callable[..., Any]) -> None:
    verdicts = set()
    for row in range(6):
        status, out, _ = call("verify", "m.onnx", "--input", f"x.npy[{row}]", "--radius", "1.5", "--json", "--timeout", "5",
                              "--save-counterexample", "ce.npy")  # fmt: skip
        answer = json.loads(out)
        verdicts.add(answer["verdict"])
        assert (answer["radius"], answer["radius_unit"]) == ("3/2", "real")
        if answer["verdict"] == "non_robust":
            found = answer["counterexample"]
            assert status == 1
            assert found["replayed_on"].startswith("onnxruntime ")
            real = np.load("ce.npy")
            assert real.dtype == np.float32
            assert real.reshape(-1).tolist() == found["input"]
            assert np.abs(real - np.load("x.npy")[row]).max() <= 1.5
            assert run_model(Path("m.onnx"), real[None]).reshape(-1).argmax() == found["predicted"] != answer["label"]
    assert "non_robust" in verdicts


def test_a_real_radius_is_the_nearest_counterexample(call: Callable[..., Any]) -> None:
    flags = ("m.onnx", "--input", "x.npy[2]")
    status, out, _ = call("radius", *flags, "--radius-unit", "real", "--json", "--timeout", "20")
    answer = json.loads(out)
    assert status == 0
    assert answer["exact"]
    assert answer["radius_unit"] == "real"
    assert answer["verified_radius"] < answer["refuted_radius"]
    assert answer["verified_below"] == answer["refuted_at"]
    found = answer["counterexample"]
    assert found["replayed_on"].startswith("onnxruntime ")
    distance = np.abs(np.array(found["input"]) - np.load("x.npy")[2].astype(np.float64)).max()
    assert distance == float(Fraction(answer["refuted_at"]))
    for radius, expected in ((answer["verified_radius"], 0), (answer["refuted_radius"], 1), (answer["refuted_at"], 1)):
        assert call("verify", *flags, "--radius", radius, "--radius-unit", "real")[0] == expected
    status, out, _ = call("radius", *flags, "--radius-unit", "real", "--max-radius", "1/1000")
    assert (status, out.split(":")[0]) == (0, "RADIUS 0.001")
    assert call("radius", *flags, "--max-radius", "1/2")[0] == 2
    assert "certify one radius" in call("radius", *flags, "--radius-unit", "real", "--certificate", "c.cert")[2]
    assert call("radius", *flags, "--radius-unit", "pixel")[0] == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--radius", "1"), "name the unit with --radius-unit"),
        (("--radius", "1", "--radius-unit", "pixel"), "holds fractions"),
        (("--radius", "0.1", "--input-range", "100", "101"), "region is empty"),
        (("--radius", "0.1", "--bits", "8"), "--bits has no meaning"),
        (("--radius", "0.1", "--input-shape", "1,x"), "input shape"),
    ],
)
def test_one_line_for_bad_flags(call: Callable[..., Any], flags: tuple[str, ...], words: str) -> None:
    status, out, err = call("verify", "m.onnx", "--input", "x.npy[0]", *flags)
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_levels_and_boxes(call: Callable[..., Any]) -> None:
    x = np.load("x.npy")
    np.save("low.npy", x[0] - 0.01)
    np.save("high.npy", x[0] + np.float32(0.01))
    for flags, unit in (
        (("--radius", "1", "--radius-unit", "levels"), "levels"),
        (("--lower", "low.npy", "--upper", "high.npy"), "real"),
        (("--radius", "0.05", "--input-range", "-10", "10"), "real"),
    ):
        status, out, _ = call("verify", "m.onnx", "--input", "x.npy[0]", *flags, "--json", "--timeout", "5")
        assert status in (0, 1, 3)
        assert json.loads(out)["radius_unit"] == unit
