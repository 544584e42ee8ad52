"""A float ONNX model and its int8 version by onnxruntime, which both normalize their input, and images for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct

pytest.importorskip("onnxruntime")

import onnx

from tests.conformance.onnx_models import FloatNetwork
from tests.conformance.onnx_models import run as run_model

MEAN, STD = np.array([123.675, 116.28]).reshape(1, 2, 1, 1), np.array([58.395, 57.12]).reshape(1, 2, 1, 1)
IMAGES = ("--radius-unit", "pixel", "--std", "1/255", "--timeout", "10")
"""The model itself divides: it reads 0 … 255."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    folder = tmp_path_factory.mktemp("normalized")
    net = FloatNetwork(4, [2, 3, 3])
    x = net.add("Div", net.add("Sub", "x", net.constant(MEAN)), net.constant(STD))
    x = net.add("Flatten", net.add("Relu", net.convolution(x, 2, 2, 3, stride=2)))
    onnx.save(net.model(net.dense(x, 3, 8)), folder / "f.onnx")

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(np.random.default_rng(0).integers(0, 256, (20, 1, 2, 3, 3)).astype(np.float32))

        def get_next(self) -> Any:
            batch = next(self.left, None)
            return None if batch is None else {"x": batch}

    quantize_static(folder / "f.onnx", folder / "q.onnx", Reader(), quant_format=QuantFormat.QOperator)
    planted = onnx.load(folder / "q.onnx")
    for tensor in planted.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2:
            weight = onnx.numpy_helper.to_array(tensor).copy()
            weight[0, weight[0].argmin()] += 60
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    onnx.save(planted, folder / "planted.onnx")
    np.save(folder / "x.npy", np.random.default_rng(1).integers(0, 256, (3, 2, 3, 3)).astype(np.uint8))
    return folder


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    monkeypatch.chdir(folder)

    def call(*arguments: object) -> tuple[int, str, str]:
        status = run([str(argument) for argument in arguments], Direct())
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("region", "kind"),
    [
        (("--radius", "1/2", "--radius-unit", "real", "--timeout", "10"), "real_box"),
        (("--radius", "1", *IMAGES), "images"),
        (("--radius", "1", "--radius-unit", "levels", "--timeout", "10"), "codes"),
    ],
)
def test_from_the_question_to_a_replayed_difference(call: Callable[..., Any], region: tuple[str, ...], kind: str) -> None:
    asked = ("--input", "x.npy[0]", *region, "--json")
    _, out, _ = call("equiv", "f.onnx", "q.onnx", *asked, "--max-delta", "--method", "bounds")
    attained, proved = json.loads(out)["max_delta"]
    assert 0 < attained <= proved < 3 * attained
    status, out, _ = call("equiv", "f.onnx", "q.onnx", *asked, "--delta", f"{proved * 1.01:.9f}")
    answer = json.loads(out)
    assert (status, answer["verdict"], answer["region"]["kind"]) == (0, "equivalent", kind)
    for model, delta in (("q.onnx", attained * 0.98), ("planted.onnx", proved * 1.01)):
        status, out, _ = call("equiv", "f.onnx", model, *asked, "--delta", f"{delta:.9f}")
        answer = json.loads(out)
        assert (status, answer["verdict"]) == (1, "not_equivalent")
        found = answer["counterexample"]
        assert found["replayed_on"].count("onnxruntime") == 2
        x = np.array(found["input"], dtype=np.float32).reshape(1, 2, 3, 3)
        assert np.abs(run_model(Path("f.onnx"), x) - run_model(Path(model), x)).max() > delta - answer["float32_error"]
        image = np.load("x.npy")[0].astype(np.float64)
        assert kind == "codes" or np.abs(x[0] - image).max() <= (0.5 if kind == "real_box" else 1.0001)
        assert kind != "images" or np.abs(x - np.rint(x)).max() < 1e-4


def test_campaigns_of_images(call: Callable[..., Any]) -> None:
    asked = ("campaign", "q.onnx", "--float", "f.onnx", "--inputs", "x.npy", *IMAGES, "--radius", "0", "1", "--out", "r.db")
    status, out, err = call(*asked, "--delta", "1/1000", "2", "--json")
    found = json.loads(out)
    assert status == 0, err
    assert [(row["equivalent"], row["not_equivalent"]) for row in found["rows"]] == [(0, 3), (3, 0), (0, 3), (3, 0)]
    status, _, err = call(*asked, "--std", "1/128", "--delta", "1/1000", "2", "--resume")
    assert status == 2
    assert err.count("\n") == 1


BAD = {
    "a box of images": (("--lower", "x.npy[0]", "--upper", "x.npy[0]", *IMAGES), "--radius alone"),
    "images that are none": (("--radius", "1", "--radius-unit", "pixel", "--input", "real.npy"), "fractions"),
    "a scale of codes": (("--radius", "1", "--radius-unit", "levels", "--input-scale", "1/255"), "reads real numbers"),
    "a far region": (("--radius", "1", "--radius-unit", "pixel", "--std", "1e-30"), "too far"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(call: Callable[..., Any], name: str) -> None:
    arguments, expected = BAD[name]
    np.save("real.npy", np.full((2, 3, 3), 0.5))
    given = () if "--input" in arguments else ("--input", "x.npy[0]")
    status, out, err = call("equiv", "f.onnx", "q.onnx", *given, *arguments, "--max-delta")
    lines = [line for line in err.splitlines() if not line.startswith("region:")]
    assert (status, out, len(lines)) == (2, "", 1)
    assert expected in lines[0]
