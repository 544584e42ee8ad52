"""PT2E graphs: quantizers bit for bit, sums within tight enclosures, whole networks; and that enclosures may be wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qertify.importers.registry import load_model
from qertify.importers.torch_quantized import import_torch
from qertify.network.nodes import Staircase
from qertify.runtimes.base import runtime_of
from qertify.runtimes.torch_arithmetic import dequantize, quantize_decomposed
from tests.conformance.pt2e_models import OPS, QUANTIZERS, Between, exported, pt2e
from tests.conformance.torch_models import NETWORKS, inputs

MANY = 2_000
SCALES = [0.1, 0.05, 1 / 3, 0.003915, 1.7e-5, 123.4]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("zero_point", [0, 7, 255])
def test_quantizers_at_ties(scale: float, zero_point: int) -> None:
    middle = ((np.arange(-300, 600) + 0.5) * scale).astype(np.float32)
    x, offsets = [], range(-4, 5)
    for offset in offsets:
        moved = middle
        for _ in range(abs(offset)):
            moved = np.nextafter(moved, np.float32(np.copysign(np.inf, offset)))
        x.append(moved)
    x = np.concatenate([*x, np.array([3e38, -3e38, 0, -0.0, 1e-44], dtype=np.float32)])
    found = OPS.quantize_per_tensor(torch.from_numpy(x), scale, zero_point, 0, 255, torch.uint8).numpy()
    assert np.array_equal(np.clip(quantize_decomposed(x, scale, zero_point), 0, 255), found)
    codes = torch.arange(256).to(torch.uint8)
    back = OPS.dequantize_per_tensor(codes, scale, zero_point, 0, 255, torch.uint8).numpy()
    assert np.array_equal(dequantize(np.arange(256), np.float32(scale), zero_point), back)


def agrees(module: nn.Module, x: np.ndarray, exactness: str | None = None) -> None:
    program = exported(module)
    network = import_torch(program, torch.zeros(1, *module.shape))
    replay = runtime_of(network).replay(program, x)
    assert np.count_nonzero(~replay.agrees) == 0
    assert exactness is None or network.exactness == exactness


def every_code(module: Between) -> np.ndarray:
    """Inputs that hold every code at every position."""
    codes = (np.arange(256)[:, None] + 37 * np.arange(int(np.prod(module.shape)))[None]) % 256
    return ((codes - module.zero_point) * module.scale).reshape(-1, *module.shape).astype(np.float32)


EXACT = {
    "relu": lambda m, x: torch.relu(x),
    "hardtanh": lambda m, x: functional.hardtanh(x, -0.3, 0.7),
    "relu6": lambda m, x: functional.relu6(x),
    "numbers": lambda m, x: (1.5 - x) * 0.3 / 0.7 + 0.1,
    "buffer": lambda m, x: x * m.a,
    "itself": lambda m, x: x * functional.hardtanh(x),
    "pool": lambda m, x: functional.max_pool2d(x, 2, 1, 1),
    "pool of a falling function": lambda m, x: functional.max_pool2d(-x, 2),
    "moves": lambda m, x: x.permute(0, 3, 2, 1)[:, 1:].transpose(1, 2).flatten(1),
    "pad": lambda m, x: functional.pad(x, (1, 0, 2, 1)),
    "cat": lambda m, x: torch.cat([x, x[:, :1]], 1),
    "add": lambda m, x: x + x.transpose(2, 3),
    "sub": lambda m, x: x - torch.relu(x).transpose(2, 3),
    "add relu": lambda m, x: torch.relu(x + x.transpose(2, 3)),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_operators(name: str) -> None:
    module = Between(EXACT[name], (2, 4, 4), a=torch.tensor([0.3]))
    agrees(module, every_code(module), "exact")


ENCLOSED = {
    "sigmoid": lambda m, x: torch.sigmoid(x),
    "hardswish": lambda m, x: functional.hardswish(x),
    "average": lambda m, x: functional.avg_pool2d(x, 2, 1),
    "average without padding": lambda m, x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average by another number": lambda m, x: functional.avg_pool2d(x, 3, 2, 1, divisor_override=7),
    "adaptive": lambda m, x: functional.adaptive_avg_pool2d(x, (2, 1)),
    "mean": lambda m, x: x.mean((2, 3)),
    "product": lambda m, x: x * x.transpose(2, 3),
    "gate": lambda m, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "sum of sums": lambda m, x: torch.relu(functional.avg_pool2d(x, 2) + functional.max_pool2d(x, 2)),
    "average of clamped sums": lambda m, x: functional.avg_pool2d(torch.relu(functional.avg_pool2d(x, 2)), 2),
    "function of sums": lambda m, x: functional.hardswish(functional.avg_pool2d(x, 2)),
    "maximum of sums": lambda m, x: functional.max_pool2d(functional.avg_pool2d(x, 2), 2),
    "joined": lambda m, x: torch.cat([functional.avg_pool2d(x, 2), functional.max_pool2d(x, 2)], 1).flatten(1),
    "shifted": lambda m, x: functional.avg_pool2d(x, 2) + m.a,
}


@pytest.mark.parametrize("out", [(0.07, 3), None])
@pytest.mark.parametrize("name", ENCLOSED)
def test_enclosed_operators(name: str, out: tuple[float, int] | None) -> None:
    module = Between(ENCLOSED[name], (2, 4, 4), out=out, a=torch.tensor([0.3]))
    agrees(module, every_code(module))


@pytest.mark.parametrize("terms", [3, 64, 700])
def test_directed_sums(terms: int) -> None:
    """Sums next to every threshold: torch lies inside the pair, and the pair is open only next to ties."""
    weight = torch.full((1, terms), 127.0)
    weight[:, -1] = 1
    scale, zero_point, w = 0.05, 10, 0.013
    module = Between(
        lambda m, x: functional.linear(x, m.weight, m.bias),
        (terms,), scale, zero_point, (0.05 * 0.013 * 127 * 3, 128), weight=weight * w, bias=torch.tensor([0.0017]),
    )  # fmt: skip
    program = exported(module)
    network = import_torch(program, torch.zeros(1, terms))
    staircase = next(node for node in network.nodes if isinstance(node, Staircase))
    assert staircase.upper is not None
    gap = staircase.steps.thresholds - staircase.upper.thresholds
    assert gap.min() >= 0
    if terms < 100:  # the bound for sums in any order grows with the square of their length
        assert gap.max() <= np.median(np.diff(staircase.steps.thresholds)) / 20
    x = []
    for steps in range(-60, 60):  # accumulators 127·k + j of codes centred on the zero point
        for j in range(-4, 5):
            codes = np.zeros(terms, dtype=np.int64)
            k = steps * 3 // 2
            codes[: terms - 1] = np.clip(np.diff(np.linspace(0, k, terms).round()), -10, 245)
            codes[-1] = j
            x.append(codes * np.float32(scale))
    replay = runtime_of(network).replay(program, np.array(x, dtype=np.float32))
    assert np.count_nonzero(~replay.agrees) == 0
    assert len(np.unique(replay.outputs)) > 4


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, quantizer: str) -> None:
    pytest.importorskip("torchao")
    torch.manual_seed(1)
    net = NETWORKS[name]()
    module = pt2e(net, quantizer)
    network = import_torch(module, torch.zeros(1, *net.shape))
    assert (network.runtime_profile, network.exactness) == ("torch-pt2e", "enclosure")
    assert network.metadata["output"] == ("float32" if quantizer == "x86" else "dequantized")
    replay = runtime_of(network).replay(module, inputs(net, MANY if name != "mobile" else 300))
    assert np.count_nonzero(~replay.agrees) == 0
    assert min(len(np.unique(column)) for column in replay.outputs.T) > 10, "the inputs hardly move the outputs"


@pytest.mark.parametrize("fold", [True, False])
def test_files(tmp_path, fold: bool) -> None:
    """A file gives the network of the module; weights may be stored as codes, or as float numbers with their quantizers."""
    pytest.importorskip("torchao")
    torch.manual_seed(1)
    net = NETWORKS["cnn"]()
    module = pt2e(net, "x86", fold=fold)
    torch.export.save(torch.export.export(module, (torch.zeros(1, *net.shape),)), tmp_path / "m.pt2")
    network = load_model(tmp_path / "m.pt2")
    assert network.digest == import_torch(module, torch.zeros(1, *net.shape)).digest
    replay = runtime_of(network).replay(tmp_path / "m.pt2", inputs(net, 100))
    assert replay.agrees.all()


def test_wrong_sums_are_noticed() -> None:
    """The comparison with torch fails once a threshold of the network is moved away."""
    module = Between(ENCLOSED["average"], (2, 4, 4))
    program = exported(module)
    network = import_torch(program, torch.zeros(1, 2, 4, 4))
    nodes = [
        replace(node, steps=replace(node.steps, thresholds=node.steps.thresholds + 40), upper=None)
        if isinstance(node, Staircase) else node
        for node in network.nodes
    ]  # fmt: skip
    moved = replace(network, nodes=tuple(nodes))
    assert not runtime_of(moved).replay(program, every_code(module)).agrees.all()
