"""Small float networks and their int8 forms, made by PyTorch's own tools on random calibration data."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qertify.runtimes.torch_arithmetic import Engine
from qertify.runtimes.torch_int8 import running

ENGINES = tuple(Engine)


class Cnn(nn.Module):
    """Convolutions, one of them strided and dilated, max and average pooling."""

    shape = (1, 10, 10)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(6, 20, 3, padding=2, dilation=2), nn.ReLU(), nn.AvgPool2d(2, stride=1, padding=1),
            nn.Conv2d(20, 8, 3, stride=2, groups=2),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


class Mlp(nn.Module):
    shape = (20,)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))

    def forward(self, x):
        return self.body(x)


class Residual(nn.Module):
    """Two residual blocks, one with a projection; tensors whose size is no multiple of 64; a global average."""

    shape = (2, 7, 7)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 9, 3, padding=1), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(9, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 9, 3, padding=1))
        self.b = nn.Sequential(nn.Conv2d(9, 12, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1))
        self.short = nn.Conv2d(9, 12, 1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.a(x))
        x = self.b(x) + self.short(x)
        return self.head(torch.flatten(self.pool(x), 1))


class Mobile(nn.Module):
    """An inverted residual block with a depthwise convolution, hard-swish, a gate, a concatenation, moved axes."""

    shape = (3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6()
        self.expand, self.act2 = nn.Conv2d(8, 16, 1), nn.ReLU6()
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        with torch.no_grad():  # one large weight a channel: no pair of products saturates in fbgemm's depthwise kernel
            self.depth.weight.mul_(0.5)[:, :, 1, 1] = 0.3
        self.swish, self.project = nn.Hardswish(), nn.Conv2d(16, 8, 1)
        self.gate, self.pool = nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d((2, 3))
        self.leaky = nn.LeakyReLU(0.125)
        self.head = nn.Linear(96, 10)

    def forward(self, x):
        x = self.act(self.stem(x))
        y = self.project(self.swish(self.depth(self.act2(self.expand(x)))))
        x = x + y
        y = torch.sigmoid(self.gate(self.pool(x)))
        x = self.leaky(self.pool(x)) * y
        x = torch.cat([x, y], 1).permute(0, 2, 3, 1)
        return self.head(x.reshape(x.size(0), -1))


NETWORKS = {"mlp": Mlp, "cnn": Cnn, "residual": Residual, "mobile": Mobile}


def fx(net: nn.Module, engine: Engine, seed: int = 0) -> nn.Module:
    """Quantized by the FX tool with the engine's default configuration."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.manual_seed(seed)
    example = 4 * torch.randn(32, *net.shape)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(net.eval(), get_default_qconfig_mapping(engine.value), (example,))
        prepared(example)
        with running(engine):
            return convert_fx(prepared)


class Eager(nn.Module):
    """A network with explicit quantizers and functional modules, as the eager tool needs it."""

    shape = (2, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.first, self.relu = nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(inplace=True)
        self.second = nn.Conv2d(5, 5, 3, padding=1)
        self.f, self.g, self.h = (torch.ao.nn.quantized.FloatFunctional() for _ in range(3))
        self.pool, self.head = nn.MaxPool2d(3, stride=2), nn.Linear(40, 7)

    def forward(self, x):
        x = self.relu(self.first(self.quant(x)))
        x = self.f.add_relu(x, self.second(x))
        y = self.pool(x)
        x = self.g.cat([y, self.h.mul(y, y)], 1)
        return self.dequant(self.head(x.reshape(x.shape[0], -1)))


def eager(net: nn.Module, engine: Engine, fuse: bool = True, seed: int = 0) -> nn.Module:
    """Quantized by the eager tool with full 8-bit ranges and one weight scale for all channels."""
    from torch.ao.quantization import MinMaxObserver, QConfig, convert, default_weight_observer, fuse_modules, prepare

    torch.manual_seed(seed)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        net = copy.deepcopy(net).eval()
        net = fuse_modules(net, [["first", "relu"]]) if fuse else net
        net.qconfig = QConfig(MinMaxObserver.with_args(dtype=torch.quint8), default_weight_observer)
        prepared = prepare(net)
        prepared(torch.randn(32, *net.shape))
        with running(engine):
            return convert(prepared)


def inputs(net: nn.Module, count: int) -> NDArray[np.float32]:
    """Random inputs of several spreads around several centres, some of them far outside the calibrated range."""
    random = np.random.default_rng(5)
    per_input = (count,) + (1,) * len(net.shape)
    x = random.normal(size=(count, *net.shape)) * random.choice([0.3, 1, 3], size=per_input) + random.normal(size=per_input)
    return x.astype(np.float32)
