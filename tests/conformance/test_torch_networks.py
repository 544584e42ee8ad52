"""Whole networks: the reference evaluator and the real torch give the same integers, under each engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qertify.errors import UnsupportedModelError
from qertify.importers.torch_quantized import import_torch, load_torchscript
from qertify.runtimes.base import runtime_of
from qertify.runtimes.saturation import CpuClass, arithmetic_doubts
from qertify.runtimes.torch_arithmetic import Engine
from qertify.runtimes.torch_int8 import running
from tests.conformance.torch_models import ENGINES, NETWORKS, Eager, eager, fx, inputs

MANY, FEW = 10_000, 500


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(name, engine):
    torch.manual_seed(1)
    if name in NETWORKS:
        net = NETWORKS[name]()
        return net, fx(net, engine)
    net = Eager()
    return net, eager(net, engine, fuse=name == "eager")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [*NETWORKS, "eager", "eager not fused"])
def test_same_integers(name, engine):
    net, module = made(name, engine)
    network = import_torch(module, torch.zeros(1, *net.shape), engine.value)
    assert network.runtime_profile == f"torch-{engine.value}"
    assert arithmetic_doubts(network, CpuClass.VNNI) == ()
    replay = runtime_of(network).replay(module, inputs(net, MANY if name in NETWORKS and not engine.encloses else FEW))
    assert network.exactness == ("enclosure" if engine.encloses else "exact")
    assert np.count_nonzero(~replay.agrees) == 0
    assert min(len(np.unique(column)) for column in replay.outputs.T) > 10, "the inputs hardly move the outputs"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mobile", "eager"])
@pytest.mark.parametrize("make", [torch.jit.script, None])
def test_torchscript_file(tmp_path, name, engine, make):
    """Scripted and traced files hold different graphs; both import like the module."""
    net, module = made(name, engine)
    with running(engine):
        program = make(module) if make else torch.jit.trace(module, torch.zeros(1, *net.shape))
        torch.jit.save(program, tmp_path / "model.ts.pt")
    network = load_torchscript(tmp_path / "model.ts.pt", (1, *net.shape), trust_code=True, runtime=f"torch-{engine.value}")
    replay = runtime_of(network).replay(tmp_path / "model.ts.pt", inputs(net, FEW))
    assert replay.agrees.all()
    same = import_torch(module, torch.zeros(1, *net.shape), engine.value)
    codes = runtime_of(same).quantize_input(inputs(net, FEW))
    assert np.array_equal(replay.codes, codes)
    assert np.array_equal(runtime_of(same).replay(module, inputs(net, FEW)).reference, replay.reference)


@pytest.mark.parametrize("engine", ENGINES)
def test_packed_for_another_engine(engine):
    """Weights are packed again for the engine that is asked for."""
    other = next(item for item in ENGINES if item is not engine)
    net, module = made("residual", other)
    network = import_torch(module, torch.zeros(1, *net.shape), engine.value)
    replay = runtime_of(network).replay(module, inputs(net, FEW))
    assert replay.agrees.all()
    assert replay.runtime.endswith(engine.value)


def test_saturating_pairs_are_found():
    """fbgemm's depthwise kernel saturates in 16 bits on every CPU; the importer's note makes the proof fail."""
    engine = ENGINES[0]
    weight = torch.full((8, 1, 3, 3), 127, dtype=torch.int8)

    class Depthwise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.ao.nn.quantized.Conv2d(8, 8, 3, padding=1, groups=8)
            self.conv.set_weight_bias(torch._make_per_tensor_quantized_tensor(weight, 0.01, 0), torch.zeros(8))
            self.conv.scale = 5.0

        def forward(self, x):
            return self.conv(torch.quantize_per_tensor(x, 1.0, 0, torch.quint8)).dequantize()

    with running(engine):
        module = Depthwise().eval()
    network = import_torch(module, torch.zeros(1, 8, 4, 4))
    assert arithmetic_doubts(network, CpuClass.VNNI)
    x = np.full((1, 8, 4, 4), 255, dtype=np.float32)
    assert not runtime_of(network).replay(module, x).agrees[0]
    assert runtime_of(network).replay(module, x // 2).agrees[0]


class Ends(torch.nn.Module):
    """A convolution, a gate that is added to every position, a split, and a softmax at the end."""

    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.stem, self.gate = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 1)
        self.pool, self.head = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.gate(self.pool(x))
        a, b = x.split([3, 5], 1)
        return torch.softmax(self.head(self.pool(torch.cat([b, a], 1)[:, :, 1:5, ::2]).flatten(1)), 1)


def test_broadcast_sums_and_a_final_softmax():
    torch.manual_seed(0)
    module = fx(Ends(), Engine.FBGEMM)
    network = import_torch(module, torch.zeros(1, *Ends.shape))
    assert network.metadata["output"] == "softmax"
    replay = runtime_of(network).replay(module, inputs(Ends(), 2000))
    assert replay.agrees.all()
    assert len(np.unique(replay.predicted)) > 2
    orders = [np.argsort(-values, axis=1, kind="stable") for values in (replay.ordered, replay.reference)]
    assert np.array_equal(*orders)
    assert all(len(np.unique(a)) == len(np.unique(b)) for a, b in zip(replay.outputs, replay.reference, strict=True))


def test_broadcast_sums_are_refused_by_qnnpack():
    with pytest.raises(UnsupportedModelError, match="qnnpack does not broadcast"):
        import_torch(fx(Ends(), Engine.QNNPACK), torch.zeros(1, *Ends.shape), "qnnpack")
