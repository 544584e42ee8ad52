"""Whole networks: the reference evaluator and the real onnxruntime give the same integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from onnx import helper

from qertify.errors import UnsupportedModelError
from qertify.importers.onnx_quantized import load_onnx
from qertify.network.nodes import Staircase
from qertify.network.staircase import Steps
from qertify.network.tensor import as_integers
from qertify.runtimes.base import runtime_of
from tests.conformance.onnx_models import NETWORKS, FloatNetwork, mlp, quantized

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
        with pytest.raises(UnsupportedModelError, match=r"'Conv0'.*runs in float.*'Conv2'"):
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


def activations(seed=0):
    """Every activation that is known through its codes, and products of a tensor with its own gate."""
    net = FloatNetwork(seed, [3, 6, 6])
    x = net.add("HardSwish", net.convolution("x", 6, 3, 3))
    x = net.add("HardSigmoid", net.convolution(x, 6, 6, 3), alpha=0.1666, beta=0.5)
    x = net.add("Tanh", net.convolution(x, 6, 6, 3))
    y = net.convolution(x, 6, 6, 3)
    x = net.add("Relu", net.add("Mul", y, net.add("Sigmoid", y)))
    x = net.add("LeakyRelu", net.convolution(x, 6, 6, 3), alpha=0.2)
    net.output = net.dense(net.add("Flatten", net.add("GlobalAveragePool", x)), 10, 6)
    return net


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_activations_between_integers(tmp_path, form):
    path = quantized(activations(), tmp_path / "model.onnx", form, "QUInt8", "QInt8", True)
    network = load_onnx(path)
    random = np.random.default_rng(6)
    x = random.normal(size=(1500, 3, 6, 6)) + random.normal(size=(1500, 1, 1, 1))
    replay = runtime_of(network).replay(path, x.astype(np.float32))
    assert replay.agrees.all()
    assert min(len(np.unique(column)) for column in replay.outputs.T) > 10


def cut(seed=0):
    """Slices, also backwards and with steps, and splits, even and uneven."""
    net = FloatNetwork(seed, [4, 8, 8])

    def integers(*values):
        name = f"constant{len(net.constants)}"
        net.constants[name] = np.array(values, dtype=np.int64)
        return name

    x = net.add("Relu", net.convolution("x", 6, 4, 3))
    x = net.add("Slice", x, integers(1, -1), integers(9, -100), integers(2, 3), integers(2, -1))
    parts = [f"part{i}" for i in range(3)]
    net.nodes.append(helper.make_node("Split", [x, integers(1, 3, 2)], parts, name="split", axis=1))
    x = net.add("Relu", net.convolution(net.add("Concat", parts[2], parts[0], axis=1), 5, 3, 3))
    y = net.add("Add", net.convolution(parts[1], 5, 3, 1), x)
    net.output = net.dense(net.add("Flatten", net.add("GlobalAveragePool", y)), 10, 5)
    return net


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_slices_and_splits(tmp_path, form):
    path = quantized(cut(), tmp_path / "model.onnx", form, "QUInt8", "QInt8", True)
    network = load_onnx(path)
    x = np.random.default_rng(8).normal(size=(1500, 4, 8, 8))
    replay = runtime_of(network).replay(path, x.astype(np.float32))
    assert replay.agrees.all()
    assert min(len(np.unique(column)) for column in replay.outputs.T) > 10


def test_a_wrong_threshold_is_noticed(tmp_path):
    """The comparison can fail: one threshold of a hidden layer moved by one."""
    path = quantized(mlp(), tmp_path / "model.onnx", "QDQ", "QUInt8", "QInt8", False)
    network = load_onnx(path)
    at = next(i for i, node in enumerate(network.nodes) if isinstance(node, Staircase))
    nodes = list(network.nodes)
    steps = nodes[at].steps
    nodes[at] = replace(nodes[at], steps=Steps(as_integers(steps.thresholds + 1), steps.low))
    broken = replace(network, nodes=tuple(nodes))
    x = np.random.default_rng(0).normal(size=(MANY, 20)).astype(np.float32)
    assert not runtime_of(broken).replay(path, x).agrees.all()
