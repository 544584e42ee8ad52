"""Float models that end with a softmax or an argmax: the class can be compared, a difference of outputs can't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct

pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper

from tests.conformance.onnx_models import FloatNetwork, quantized, save


def small() -> FloatNetwork:
    network = FloatNetwork(3, [4])
    network.output = network.dense(network.add("Relu", network.dense("x", 6, 4)), 3, 6)
    return network


@pytest.mark.parametrize("last", ["Softmax", "ArgMax"])
def test_classes_are_compared_and_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], last: str
) -> None:
    monkeypatch.chdir(tmp_path)
    network = small()
    quantized(network, Path("q.onnx"), "QDQ", "QUInt8", "QInt8", False)
    model: Any = network.model(network.output)
    model.graph.output[0].name = decided = "decided"
    attributes = {"axis": -1} | ({"keepdims": 0} if last == "ArgMax" else {})
    model.graph.node.append(helper.make_node(last, [network.output], [decided], name=last, **attributes))
    if last == "ArgMax":
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info(decided, TensorProto.INT64, ["n"]))
    save(model, Path("f.onnx"))
    np.save("x.npy", np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32))
    statuses: set[int] = set()
    for row, radius in ((1, "0.1"), (2, "0.1"), (3, "1"), (4, "1")):
        flags = ["equiv", "f.onnx", "q.onnx", "--input", f"x.npy[{row}]", "--radius", radius, "--radius-unit", "real"]
        statuses.add(run([*flags, "--top1", "--json"], Direct()))
        answer = json.loads(capsys.readouterr().out)
        if answer["counterexample"] is not None:
            assert "onnxruntime" in answer["counterexample"]["replayed_on"]
        assert run([*flags, "--max-delta"], Direct()) == 2
        assert f"this model returns their {last.lower()}" in capsys.readouterr().err
    assert {0, 1} <= statuses
