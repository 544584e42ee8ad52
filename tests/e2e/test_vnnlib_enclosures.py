"""``qertify vnnlib`` on networks that are only enclosed: proofs hold for every run, counterexamples are runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from qertify.importers.onnx_quantized import load_onnx
from qertify.network.evaluate import evaluate_interval
from qertify.network.storage import save
from qertify.runtimes.base import runtime_of
from qertify.specification.vnnlib import read_vnnlib
from tests.conformance.onnx_models import FloatNetwork, quantized
from tests.conformance.test_onnx_exports import products
from tests.e2e.test_onnx import call as call

SAVED = ("--cpu-class", "vnni", "--json", "--timeout", "2")
FLAGS = ("--allow-float-islands", *SAVED)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small network with an average pool, which onnxruntime computes in float."""
    net = FloatNetwork(0, [1, 4, 4])
    x = net.add("AveragePool", net.add("Relu", net.convolution("x", 2, 1, 3)), kernel_shape=[2, 2], strides=[1, 1])
    net.output = net.dense(net.add("Flatten", x), 3, 18)
    return quantized(net, tmp_path / "pooled.onnx", "QDQ", "QUInt8", "QInt8", True)


def write(folder: Path, centre: np.ndarray, radius: float, violation: str) -> None:
    lines = [f"(declare-const X_{i} Real)" for i in range(centre.size)] + [f"(declare-const Y_{i} Real)" for i in range(3)]
    for i, value in enumerate(centre.reshape(-1).tolist()):
        lines += [f"(assert (>= X_{i} {value - radius:.9f}))", f"(assert (<= X_{i} {value + radius:.9f}))"]
    (folder / "p.vnnlib").write_text("\n".join([*lines, f"(assert {violation})"]))


def test_verdicts_hold_for_the_runtime(call: Callable[..., Any], model: Path) -> None:
    """Random constraints, each near what samples attain, against runs of the real thing."""
    network = load_onnx(model, allow_float_islands=True)
    runtime, generator, seen = runtime_of(network), np.random.default_rng(0), set[str]()
    for _ in range(8):
        centre = generator.normal(size=(1, 4, 4)).astype(np.float32)
        radius = float(generator.choice([0.01, 0.3]))
        inputs = centre + generator.uniform(-radius, radius, size=(200, 1, 4, 4)).astype(np.float32) * np.float32(0.999)
        replay = runtime.replay(model, inputs)
        factors = generator.integers(-2, 3, size=(2, 3))
        attained = replay.outputs @ factors.T
        bounds = np.quantile(attained, generator.choice([0.0, 0.2]), axis=0) - generator.choice([0.0, 0.3])
        terms = [
            f"(<= (+ {' '.join(f'(* {a} Y_{i})' for i, a in enumerate(row))}) {bound:.6f})"
            for row, bound in zip(factors.tolist(), bounds.tolist(), strict=True)
        ]
        write(model.parent, centre, radius, f"(and {' '.join(terms)})")
        violated = bool(np.all(attained <= np.round(bounds, 6), axis=1).any())
        status, out, _ = call("vnnlib", model.name, "p.vnnlib", *FLAGS)
        answer = json.loads(out)
        seen.add(answer["verdict"])
        assert answer["exactness"] == "enclosure"
        assert status == {"unsat": 0, "sat": 1, "unknown": 3}[answer["verdict"]]
        if answer["verdict"] == "sat":
            found = answer["counterexample"]
            assert found["replayed_on"].startswith("onnxruntime ")
            again = runtime.replay(model, np.array(found["input"], dtype=np.float32).reshape(1, 1, 4, 4))
            assert again.outputs[0].tolist() == [float(value) for value in found["output"]]
        elif answer["verdict"] == "unknown":
            assert answer["reason"] in ("enclosure", "timeout")
        else:
            assert not violated
    assert {"sat", "unsat"} <= seen


def test_what_runs_disprove_is_not_claimed(call: Callable[..., Any], model: Path) -> None:
    """A violation that the enclosure allows and the runtime never shows is unknown."""
    network = load_onnx(model, allow_float_islands=True)
    runtime, generator = runtime_of(network), np.random.default_rng(1)
    meaning = network.output_quantization
    for _ in range(200):
        x = generator.normal(size=(1, 4, 4)).astype(np.float32)
        codes = runtime.quantize_input(x[None])
        low = evaluate_interval(network, codes)[0][0]
        ran = runtime.replay(model, x[None]).ordered[0]
        if (open_ := np.flatnonzero(low < ran)).size:
            break
    else:
        pytest.fail("no input whose enclosure is wider than the run below")
    output = int(open_[0])
    half = float(meaning.scale[0]) * (float(low[output]) + 0.5 - float(meaning.zero_point[0]))
    write(model.parent, x, 0.0, f"(<= Y_{output} {half:.9f})")
    text = (model.parent / "p.vnnlib").read_text()
    for i, value in enumerate(x.reshape(-1).tolist()):
        text = text.replace(f"X_{i} {value:.9f}", f"X_{i} {value:.30f}")
    (model.parent / "p.vnnlib").write_text(text)
    assert read_vnnlib(model.parent / "p.vnnlib").inputs == 16
    status, out, _ = call("vnnlib", model.name, "p.vnnlib", *FLAGS, "--method", "attack")
    assert (status, json.loads(out)["reason"]) == (3, "enclosure")


def test_without_a_runtime_nothing_is_sat(call: Callable[..., Any], model: Path) -> None:
    save(load_onnx(model, allow_float_islands=True), model.with_suffix(".qnet"))
    write(model.parent, np.zeros((1, 4, 4)), 1.0, "(>= Y_0 -1000)")
    status, out, _ = call("vnnlib", "pooled.qnet", "p.vnnlib", *SAVED)
    assert (status, json.loads(out)["reason"]) == (3, "enclosure")
    status, out, _ = call("vnnlib", model.name, "p.vnnlib", *FLAGS)
    answer = json.loads(out)
    assert (status, answer["verdict"], answer["counterexample"]["holds_in_runtime"]) == (1, "sat", True)
    write(model.parent, np.zeros((1, 4, 4)), 1.0, "(>= Y_0 1000)")
    status, out, _ = call("vnnlib", "pooled.qnet", "p.vnnlib", *SAVED)
    assert (status, json.loads(out)["verdict"]) == (0, "unsat")


def test_scores_in_float32_are_compared_with_each_other_only(call: Callable[..., Any], tmp_path: Path) -> None:
    """Their order is enclosed, their size isn't: against runs of all inputs of small boxes."""
    path = products(tmp_path / "scores.onnx", "QGemm", True, True, terms=3, spread=1 << 12)
    network = load_onnx(path, allow_float_islands=True)
    runtime, generator, seen = runtime_of(network), np.random.default_rng(2), set[str]()
    names = [*(f"X_{i}" for i in range(3)), *(f"Y_{i}" for i in range(12))]
    head = "\n".join(f"(declare-const {name} Real)" for name in names)
    for choose in (np.argmax, np.argmin, np.argmax):
        low = generator.integers(0, 250, size=3)
        box = " ".join(f"(>= X_{i} {first}) (<= X_{i} {first + 4})" for i, first in enumerate(low.tolist()))
        inputs = (low + np.array(list(itertools.product(range(5), repeat=3)))).astype(np.uint8)
        outputs = runtime.replay(path, inputs).outputs
        label = int(choose(outputs.mean(axis=0)))
        beaten = " ".join(f"(>= Y_{j} Y_{label})" for j in range(12) if j != label)
        (tmp_path / "p.vnnlib").write_text(f"{head}\n(assert (and {box}))\n(assert (or {beaten}))")
        status, out, _ = call("vnnlib", path.name, "p.vnnlib", *FLAGS)
        answer = json.loads(out)
        seen.add(answer["verdict"])
        truth = bool((np.delete(outputs, label, axis=1).max(axis=1) >= outputs[:, label]).any())
        if answer["verdict"] != "unknown":
            assert (status, answer["verdict"]) == ((1, "sat") if truth else (0, "unsat"))
        else:
            assert answer["reason"] in ("enclosure", "timeout")
    assert {"sat", "unsat"} <= seen
    (tmp_path / "p.vnnlib").write_text(f"{head}\n(assert (and {box}))\n(assert (>= Y_0 0.5))")
    status, _, err = call("vnnlib", path.name, "p.vnnlib", *FLAGS)
    assert (status, "'one output is the only greatest'" in err.splitlines()[-1]) == (2, True)
