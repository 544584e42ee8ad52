"""Layers that int8 modules of PyTorch hold besides the usual ones: the same integers as the module."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qertify.importers.torch_quantized import import_torch
from qertify.network.evaluate import evaluate_interval
from qertify.runtimes.base import runtime_of
from qertify.runtimes.torch_arithmetic import Engine
from tests.conformance.torch_models import ENGINES, fx, inputs


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Signal(nn.Module):
    """Convolutions and pools along one axis."""

    shape = (3, 21)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(3, 2, padding=1),
            nn.Conv1d(8, 20, 3, stride=2, dilation=2, groups=2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(20, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


class Preactivated(nn.Module):
    """Normalizations that no convolution precedes, shuffled channels, a mean, and the logarithm of a softmax."""

    shape = (4, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (self.normalization(c) for c in (4, 20))
        self.wide, self.head = nn.Conv2d(4, 20, 3, padding=1), nn.Linear(20, 6)

    @staticmethod
    def normalization(channels: int) -> nn.BatchNorm2d:
        result = nn.BatchNorm2d(channels)
        for tensor in (result.weight, result.bias, result.running_mean):
            nn.init.normal_(tensor)
        return result

    def forward(self, x):
        x = self.wide(torch.relu(self.first(x)))
        x = torch.channel_shuffle(self.second(x), 4).mean([2, 3])
        return torch.log_softmax(self.head(x), 1)


class Argmax(nn.Module):
    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 5)

    def forward(self, x):
        return self.body(x).argmax(1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("network", "kind"), [(Signal, "dequantized"), (Preactivated, "softmax"), (Argmax, "argmax")])
def test_same_integers(network: type[nn.Module], kind: str, engine: Engine) -> None:
    torch.manual_seed(2)
    net = network()
    module = fx(net, engine)
    imported = import_torch(module, torch.zeros(1, *net.shape), engine.value)
    replay = runtime_of(imported).replay(module, inputs(net, 400))
    assert imported.metadata["output"] == kind
    assert replay.agrees.all()
    assert len(np.unique(replay.reference)) > 4


def test_a_float_mean_is_enclosed() -> None:
    """Of an even count of elements, channels last: torch sums in float32, and where a tie falls depends on the order."""
    torch.manual_seed(2)
    module = fx(Preactivated(), Engine.FBGEMM)
    imported = import_torch(module, torch.zeros(1, *Preactivated.shape))
    codes = runtime_of(imported).quantize_input(inputs(Preactivated(), 200))
    low, high = evaluate_interval(imported, codes)
    assert imported.exactness == "enclosure"
    assert 0 < (high - low).mean() < 2


def quantized(channels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.quantize_per_tensor(torch.randn(channels, 4, generator=generator), 0.02, 0, torch.qint8)


class AfterRelu(nn.Module):
    """Tables of tensors whose least code is the zero point, since a ReLU was fused into what computed them."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.quant = torch.ao.nn.quantized.Quantize(0.05, 62, torch.quint8)
        self.linear = torch.ao.nn.intrinsic.quantized.LinearReLU(4, 3)
        self.linear.set_weight_bias(quantized(3, 1), torch.randn(3))
        self.linear.scale, self.linear.zero_point, self.end = 0.03, 50, end

    def forward(self, x):
        q = self.quant(x)
        y = self.linear(q)
        if self.end == "cat":
            return torch.cat([q, y], 1)
        if self.end == "sigmoid":
            return torch.sigmoid(y)
        return torch.quantize_per_tensor(y.dequantize(), 0.07, 9, torch.quint8)


@pytest.mark.parametrize("end", ["cat", "sigmoid", "requantized"])
def test_tables_after_a_fused_relu(end: str) -> None:
    """They were once read from the wrong end."""
    module = AfterRelu(end).eval()
    imported = import_torch(module, torch.zeros(1, 4))
    x = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    assert runtime_of(imported).replay(module, x).agrees.all()


class Between(nn.Module):
    """One function between two layers."""

    shape = (3, 5, 5)

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Conv2d(3, 4, 3), function, nn.LazyLinear(6)

    def forward(self, x):
        return self.last(torch.flatten(self.function(self.first(x)), 1))


FUNCTIONS = {
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "slopes a channel": nn.PReLU(4),
    "softsign": nn.Softsign(),
    "a number added": lambda x: x + 1.5,
    "a number multiplied": lambda x: x * 0.7,
    "enlarged to a size": lambda x: nn.functional.interpolate(x, size=(7, 4)),
    "rolled and repeated": lambda x: torch.roll(x, 1, 2).flip(3).repeat(1, 2, 1, 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_between_layers(name: str) -> None:
    torch.manual_seed(3)
    net = Between(FUNCTIONS[name])
    net(torch.zeros(1, *net.shape))
    module = fx(net, Engine.FBGEMM)
    network = import_torch(module, torch.zeros(1, *net.shape), "fbgemm")
    replay = runtime_of(network).replay(module, inputs(net, 200))
    assert network.exactness == "exact"
    assert replay.agrees.all()
