"""Whole networks: the reference evaluator and the real onnxruntime give the same integers."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from qertify.errors import UnsupportedModelError
from qertify.importers.onnx_quantized import load_onnx
from qertify.runtimes.base import runtime_of
from tests.conformance.onnx_models import NETWORKS, quantized

MANY, FEW = 10_000, 600
CASES = [
    (net, form, activation, weight, per_channel, MANY if (form, weight, per_channel) == ("QDQ", "QInt8", True) else FEW)
    for net in NETWORKS
    for form in ("QOperator", "QDQ")
    for activation, weight in (("QUInt8", "QInt8"), ("QInt8", "QInt8"), ("QUInt8", "QUInt8"))
    for per_channel in ((False, True) if form == "QDQ" else (net in ("cnn", "mobile"),))
]
PARTLY_FLOAT = {("residual", "QDQ", "QInt8"), ("mobile", "QDQ", "QInt8")}
"""Networks that onnxruntime 1.31 keeps partly in float."""


@pytest.mark.parametrize(("net", "form", "activation", "weight", "per_channel", "count"), CASES)
def test_same_integers(tmp_path, net, form, activation, weight, per_channel, count):
    path = quantized(NETWORKS[net](), tmp_path / "model.onnx", form, activation, weight, per_channel)
    if (net, form, activation) in PARTLY_FLOAT:
        with pytest.raises(UnsupportedModelError, match=r"Conv.*runs in float.*'Add"):
            load_onnx(path)
        return
    network = load_onnx(path)
    random = np.random.default_rng(5)
    shape, per_input = (count, *network.input_shape), (count,) + (1,) * len(network.input_shape)
    x = random.normal(size=shape) * random.choice([0.3, 1, 3], size=per_input) + random.normal(size=per_input)
    replay = runtime_of(network).replay(path, x.astype(np.float32))
    assert np.count_nonzero(~replay.agrees) == 0
    levels = [len(np.unique(column)) for column in replay.outputs.T]
    assert min(levels) > 10, "the inputs hardly move the outputs"
