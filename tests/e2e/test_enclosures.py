"""The command line on networks that are only enclosed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from qertify.importers.onnx_quantized import load_onnx
from qertify.network.storage import save
from tests.conformance.onnx_models import FloatNetwork, quantized
from tests.e2e.test_onnx import call as call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small network with an average pool, which onnxruntime computes in float; inputs in x.npy."""
    net = FloatNetwork(0, [1, 6, 6])
    x = net.add("AveragePool", net.add("Relu", net.convolution("x", 3, 1, 3)), kernel_shape=[2, 2], strides=[2, 2])
    net.output = net.dense(net.add("Flatten", x), 4, 27)
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(3, 1, 6, 6)).astype(np.float32))
    return quantized(net, tmp_path / "pooled.onnx", "QDQ", "QUInt8", "QInt8", True)


def ask(call: Callable[..., Any], name: str, radius: str, *flags: str) -> tuple[int, dict[str, Any]]:
    status, out, _ = call("verify", name, "--input", "x.npy[0]", "--radius", radius, "--radius-unit", "real",
                          "--cpu-class", "vnni", "--timeout", "20", "--json", *flags)  # fmt: skip
    return status, json.loads(out)


def test_the_flag_is_named_and_needed(call: Callable[..., Any], model: Path) -> None:
    status, out, err = call("info", model.name)
    assert (status, out) == (2, "")
    assert "'AveragePool2' (QLinearAveragePool)" in err
    assert "--allow-float-islands" in err
    assert len(err.strip().splitlines()) == 1
    status, out, _ = call("info", model.name, "--allow-float-islands", "--json")
    description = json.loads(out)
    assert status == 0
    assert description["exactness"] == "enclosure"
    assert json.loads(description["metadata"]["enclosed"]) == ["AveragePool2"]
    assert all(entry["absent"] for entry in description["saturation"]["vnni"])
    assert "enclosure" in call("info", model.name, "--allow-float-islands")[1]


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnx-spec"])
def test_verdicts(call: Callable[..., Any], model: Path, runtime: str) -> None:
    flags = ("--allow-float-islands", "--runtime", runtime)
    status, robust = ask(call, model.name, "1e-3", *flags)
    assert (status, robust["verdict"], robust["exactness"]) == (0, "robust", "enclosure")
    status, refuted = ask(call, model.name, "2", *flags)
    assert (status, refuted["verdict"]) == (1, "non_robust")
    assert refuted["runtime_profile"] == runtime
    found = refuted["counterexample"]
    assert found["replayed_on"].startswith("onnxruntime" if runtime == "onnxruntime" else "onnx.reference")
    assert found["predicted"] != refuted["label"]


def test_without_a_runtime_nothing_is_refuted(call: Callable[..., Any], model: Path) -> None:
    save(load_onnx(model, allow_float_islands=True), model.with_suffix(".qnet"))
    status, out, _ = call("verify", "pooled.qnet", "--input", "x.npy[0]", "--radius", "255", "--radius-unit", "levels",
                          "--cpu-class", "vnni", "--timeout", "5", "--json", "--method", "attack")  # fmt: skip
    answer = json.loads(out)
    assert (status, answer["verdict"], answer["reason"]) == (3, "unknown", "enclosure")
    assert answer["counterexample"] is None
