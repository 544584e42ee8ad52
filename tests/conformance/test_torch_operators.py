"""Every operator beside the real torch, directed: inputs sit where candidate formulas disagree, and each test shows that at
least one rival formula would fail it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qertify.importers.torch_quantized import import_torch
from qertify.network.evaluate import evaluate
from qertify.runtimes.float32 import fma, round_half_even
from qertify.runtimes.torch_arithmetic import (
    Engine,
    NativeAddition,
    QnnpackAddition,
    dequantize,
    enclosed_linear,
    fbgemm_linear,
    float_mean_is_exact,
    product,
    qnnpack_bias,
    qnnpack_linear,
    quantize,
    quantize_after,
    quantize_inside,
)
from qertify.runtimes.torch_int8 import running
from tests.conformance.torch_models import ENGINES

F = np.float32
BYTE = np.arange(256)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensor(codes, scale, zero_point):
    codes = torch.from_numpy(np.ascontiguousarray(codes, dtype=np.uint8))
    return torch.ops.aten._make_per_tensor_quantized_tensor(codes, float(scale), int(zero_point))


def integers(quantized):
    return quantized.int_repr().numpy().astype(np.int64)


class Ends(nn.Module):
    """Quantize, one function of the quantized input, dequantize."""

    def __init__(self, function, scale, zero_point):
        super().__init__()
        self.function, self.scale, self.zero_point = function, float(scale), int(zero_point)

    def forward(self, x):
        return self.function(torch.quantize_per_tensor(x, self.scale, self.zero_point, torch.quint8)).dequantize()


def differing(function, codes, scale, zero_point, engine):
    """How many integers differ between torch and the imported network; codes (batch, *shape). Batches of one."""
    module = Ends(function, scale, zero_point).eval()
    network = import_torch(module, torch.zeros(1, *codes.shape[1:]), engine.value)
    with running(engine):
        real = np.concatenate([integers(function(tensor(row[None], scale, zero_point))).reshape(1, -1) for row in codes])
    return int(np.count_nonzero(evaluate(network, codes.astype(np.int64)) != real))


@pytest.mark.parametrize("engine", ENGINES)
def test_input_quantizer_and_dequantize(engine):
    random = np.random.default_rng(1)
    rivals = {"zero point after": 0, "division": 0, "rounded product": 0}
    for _ in range(40):
        scale, z = F(np.exp(random.uniform(-9, 2))), int(random.integers(0, 256))
        ties = ((np.arange(-3, 260) - z + 0.5) * np.float64(scale)).astype(F)
        x = np.concatenate([ties, np.nextafter(ties, F(np.inf)), np.nextafter(ties, F(-np.inf)), [0, -0.0, 3e38, -3e38, 1e-40]])
        x = x.astype(F)
        with running(engine):
            for step in (len(x), 7):  # long runs, and the short ends of kernels
                parts = [torch.quantize_per_tensor(t, float(scale), z, torch.quint8) for t in torch.from_numpy(x).split(step)]
                found = np.concatenate([integers(part) for part in parts])
                assert np.array_equal(np.clip(quantize(x, scale, z), 0, 255), found)
            assert np.array_equal(tensor(BYTE, scale, z).dequantize().numpy(), dequantize(BYTE, scale, z))
        with np.errstate(over="ignore"):
            others = (
                round_half_even(x / scale * F(1)) + z,
                round_half_even(x / scale + F(z)),
                quantize_inside(x, F(1) / scale, z),
            )
        for key, other in zip(rivals, others, strict=True):
            rivals[key] += np.count_nonzero(np.clip(other, 0, 255) != found)
    assert min(rivals.values()) > 0


KERNELS = {
    "linear": None,
    "dense": {"kernel": (4, 2, 2)},
    "pointwise": {"kernel": (16, 1, 1)},
    "depthwise": {"kernel": (1, 3, 3), "groups": 16, "padding": 1},
    "depthwise 5": {"kernel": (1, 5, 5), "groups": 8, "padding": 2},
    "depthwise odd": {"kernel": (1, 3, 3), "groups": 6, "padding": 1},
    "two channels a group": {"kernel": (1, 3, 3), "groups": 8, "padding": 1, "multiplier": 2},
    "groups": {"kernel": (4, 3, 3), "groups": 4, "padding": 1, "multiplier": 4},
    "odd groups": {"kernel": (3, 3, 3), "groups": 2, "padding": 1, "multiplier": 3},
}
LARGE = 63
"""Weights; pairs of products with any code stay within 16 bits."""


def reach(accumulators, taps, zero_point):
    """Codes (n, taps) with Σ (code − z)·weight = accumulator for weights LARGE … LARGE, 1; and which accumulators have any."""
    least = (accumulators + LARGE // 2) % LARGE - LARGE // 2
    rest, columns = (accumulators - least) // LARGE, []
    for _ in range(taps - 1):
        part = np.clip(rest, -zero_point, 255 - zero_point)
        columns.append(part)
        rest = rest - part
    return np.stack([*columns, least], axis=1)[rest == 0] + zero_point, rest == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_linear_and_convolution(engine, per_channel, kernel):
    random = np.random.default_rng(3)
    form = KERNELS[kernel]
    groups = 1 if form is None else form.get("groups", 1)
    channels = 9 if form is None else groups * form.get("multiplier", 1 if groups > 1 else 7)
    taps = 33 if form is None else int(np.prod(form["kernel"]))
    rivals = 0
    for _ in range(2):
        x_scale, y_scale = F(random.uniform(0.002, 0.05)), F(random.uniform(0.02, 0.3))
        weight_scale = np.broadcast_to(random.uniform(0.001, 0.02, channels if per_channel else 1), (channels,)).astype(F)
        bias, z_x, z_y = (
            (random.normal(size=channels) * 2).astype(F),
            int(random.integers(70, 180)),
            int(random.integers(0, 256)),
        )
        native = [fbgemm_linear(x_scale, weight_scale, bias, y_scale, z_y, flag) for flag in (False, True)]
        fixed, offset = qnnpack_linear(x_scale, weight_scale, y_scale, z_y), qnnpack_bias(x_scale, weight_scale, bias)[:, None]
        limit = min(int(300 * y_scale / (x_scale * weight_scale.min())), LARGE * (taps - 1) * 70)
        every = np.broadcast_to(np.arange(-limit, limit), (channels, 2 * limit))
        images = [np.clip(f, 0, 255) for f in (native[0](every), native[1](every), fixed(every + offset))]
        disputed = np.any([image != images[0] for image in images[1:]], axis=0)
        disputed |= np.diff(images[0], axis=1, append=0) != 0
        chosen = np.unique(np.concatenate([random.permutation(every[c, d])[:40] for c, d in enumerate(disputed)]))
        codes, ok = reach(chosen, taps, z_x)
        weight = torch.full((channels, taps), LARGE, dtype=torch.int8)
        weight[:, -1] = 1
        shape = (channels, taps) if form is None else (channels, *form["kernel"])
        make = torch.ops.aten._make_per_channel_quantized_tensor
        packed_weight = (
            make(weight.reshape(shape), torch.from_numpy(weight_scale.astype(np.float64)), torch.zeros(channels).long(), 0)
            if per_channel
            else torch.ops.aten._make_per_tensor_quantized_tensor(weight.reshape(shape), float(weight_scale[0]), 0)
        )
        with running(engine):
            if form is None:
                packed = torch.ops.quantized.linear_prepack(packed_weight, torch.from_numpy(bias))
                y = integers(torch.ops.quantized.linear(tensor(codes, x_scale, z_x), packed, float(y_scale), z_y))
            else:
                pad, x = form.get("padding", 0), np.repeat(codes.reshape(-1, 1, *form["kernel"]), groups, axis=1)
                packed = torch.ops.quantized.conv2d_prepack(
                    packed_weight, torch.from_numpy(bias), [1, 1], [pad, pad], [1, 1], groups
                )
                x = tensor(x.reshape(len(codes), -1, *form["kernel"][1:]), x_scale, z_x)
                y = integers(torch.ops.quantized.conv2d(x, packed, float(y_scale), z_y))[:, :, pad, pad]
        z = np.broadcast_to(chosen[ok], (channels, ok.sum()))
        exact = {Engine.FBGEMM: native[per_channel](z), Engine.QNNPACK: fixed(z + offset)}
        ends = [enclosed_linear(x_scale, weight_scale, bias, y_scale, z_y, upper)(z) for upper in (False, True)]
        low, high = np.clip([exact.get(engine, end) for end in ends], 0, 255)
        assert np.all(np.clip(y.T, low, high) == y.T)
        assert (high > low).mean() < 0.5, "the enclosure is wide even where candidates disagree"
        for other in (native[not per_channel](z), fixed(z + offset) if engine is not Engine.QNNPACK else native[0](z)):
            rivals += np.count_nonzero(np.clip(other, 0, 255) != y.T)
    assert rivals > 0


def pairs(count):
    """All 65,536 pairs of codes, as batches of ``count``."""
    a, b = (v.reshape(-1) for v in np.meshgrid(BYTE, BYTE, indexing="ij"))
    return [(a[i : i + count], b[i : i + count]) for i in range(0, len(a), count)]


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine is not Engine.QNNPACK])
def test_addition_that_broadcasts(engine):
    """Every pair of codes, one operand broadcast along either axis: each result follows one of the two formulas."""
    random = np.random.default_rng(9)
    for trial in range(6):
        scales = tuple(F(v) for v in (random.uniform(0.005, 0.1, 3) * (1, 1, 2) if trial else (0.5, 0.5, 1)))
        zeros = tuple(int(v) for v in random.integers(0, 256, 3))
        rules = [NativeAddition(scales, zeros, False, tail=tail) for tail in (False, True)]
        body, tail = (np.clip(rule(BYTE[:, None], BYTE[None, :]), 0, 255) for rule in rules)
        for width in (256, 7):  # vectors of the broadcast operand, and short rows
            a, b = tensor(BYTE[None, :, None], scales[0], zeros[0]), tensor(BYTE[None, None, :width], scales[1], zeros[1])
            with running(engine):
                y = integers(torch.ops.quantized.add(a, b, float(scales[2]), zeros[2]))[0]
            assert np.all((y == body[:, :width]) | (y == tail[:, :width]))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("relu", [False, True])
def test_addition(engine, relu):
    """Every pair of codes, in whole groups of elements and in tails; scales 1/2 make ties of half the pairs."""
    random = np.random.default_rng(7)
    op = torch.ops.quantized.add_relu if relu else torch.ops.quantized.add
    differ = {"tail": 0, "other engine": 0}
    for trial in range(6):
        drawn = random.uniform(0.005, 0.1, 3) * (1, 1, 2)
        scales = tuple(F(v) for v in (drawn if trial else (0.5, 0.5, 1)))
        zeros = tuple(int(v) for v in random.integers(0, 256, 3)) if trial else (100, 30, 41)
        native = [NativeAddition(scales, zeros, relu, tail=tail) for tail in (False, True)]
        fixed = QnnpackAddition(scales, zeros, relu)
        for size, rule in ((4096, native[0]), (63, native[1])):
            for a, b in pairs(size) if size > 63 else pairs(size)[:: 1 if trial == 0 else 9]:
                with running(engine):
                    y = integers(op(tensor(a, scales[0], zeros[0]), tensor(b, scales[1], zeros[1]), float(scales[2]), zeros[2]))
                low = zeros[2] if relu else 0
                ours = rule if engine is not Engine.QNNPACK else fixed
                assert np.array_equal(np.clip(ours(a, b), low, 255), y)
                differ["tail"] += np.count_nonzero(np.clip(native[0](a, b), low, 255) != np.clip(native[1](a, b), low, 255))
                other = fixed if engine is not Engine.QNNPACK else native[0]
                differ["other engine"] += np.count_nonzero(np.clip(other(a, b), low, 255) != y)
    assert min(differ.values()) > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("relu", [False, True])
def test_multiplication(engine, relu):
    random = np.random.default_rng(2)
    op = torch.ops.quantized.mul_relu if relu else torch.ops.quantized.mul
    rivals = 0
    for trial in range(8):
        scales, zeros = [F(v) for v in random.uniform(0.005, 0.1, 3)], [int(v) for v in random.integers(0, 256, 3)]
        scales[2] = F(scales[0] * scales[1] * random.uniform(30, 300))
        if trial == 0:  # half the pairs are ties
            scales, zeros = [F(0.5), F(0.5), F(0.5)], [100, 30, 41]
        function = product(*scales, zeros[2])
        for a, b in pairs(8192 + 63):
            with running(engine):
                y = integers(op(tensor(a, scales[0], zeros[0]), tensor(b, scales[1], zeros[1]), float(scales[2]), zeros[2]))
            low, p = zeros[2] if relu else 0, (a - zeros[0]) * (b - zeros[1])
            assert np.array_equal(np.clip(function(p), low, 255), y)
            multiplier = F(scales[0] * scales[1]) / scales[2]
            rivals += np.count_nonzero(np.clip(quantize_inside(p.astype(F), multiplier, zeros[2]), low, 255) != y)
    assert rivals > 0


def sums(elements, zero_point, random):
    """Codes (n, elements) whose sums are ties of the average, where there are any, and others."""
    every = np.arange(255 * elements + 1)
    ties = every[2 * every % elements == 0] if elements % 2 == 0 else every
    chosen = np.unique(np.concatenate([random.permutation(ties)[:150], random.permutation(every)[:50]]))
    codes = np.repeat(chosen[:, None] // elements, elements, axis=1)
    codes[np.arange(elements) < (chosen % elements)[:, None]] += 1
    return codes


def pool(kind, kernel, layout):
    def function(q):
        if layout == "last":
            q = q.contiguous(memory_format=torch.channels_last)
        match kind:
            case "average":
                return nn.functional.avg_pool2d(q, kernel)
            case "adaptive":
                return nn.functional.adaptive_avg_pool2d(q, (1, 1))
            case "mean":
                return q.mean([2, 3])
            case _:
                return q.mean((-1, -2), keepdim=True)

    return function


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize("kind", ["average", "adaptive", "mean", "mean, kept"])
def test_averages(engine, layout, kind):
    random = np.random.default_rng(4)
    for kernel in ((1, 2), (2, 3), (2, 5), (4, 6), (5, 10), (7, 7)):
        elements = kernel[0] * kernel[1]
        in_float = kind.startswith("mean") and layout == "last" and (engine is not Engine.QNNPACK or kind == "mean, kept")
        if in_float and not float_mean_is_exact(elements):
            continue  # refused, as the next test shows
        z, scale = int(random.integers(0, 256)), F(random.uniform(0.001, 0.3))
        codes = sums(elements, z, random)
        x = np.repeat(codes[:, None, :], 20, axis=1).reshape(len(codes), 20, *kernel)
        assert differing(pool(kind, kernel, layout), x, scale, z, engine) == 0, (kernel, z)


UNARY = {
    "relu": torch.relu,
    "relu6": nn.functional.relu6,
    "hardtanh": lambda q: nn.functional.hardtanh(q, -0.7, 0.9),
    "clamp": lambda q: torch.clamp(q, -0.3, 0.3),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": nn.functional.hardsigmoid,
    "hardswish": lambda q: torch.ops.quantized.hardswish(q, 0.03, 31),
    "leaky relu": lambda q: torch.ops.quantized.leaky_relu(q, 0.1, False, 0.05, 77),
    "elu": lambda q: torch.ops.quantized.elu(q, 0.02, 51, 1.0),
    "sigmoid with a tail": lambda q: torch.ops.quantized.sigmoid(q, 1 / 256, 3),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", UNARY)
def test_tables(engine, last, name):
    """All codes, in groups and in tails, in both memory layouts (where qnnpack's clamps move elements)."""
    random = np.random.default_rng(6)
    for shape in ((3, 5, 7), (64, 2, 2)):
        scale, z = F(random.uniform(0.01, 0.1)), int(random.integers(0, 256))
        size = int(np.prod(shape))
        codes = np.stack([np.resize(np.roll(BYTE, 37 * i), size) for i in range(6)]).reshape(-1, *shape)

        def function(q):
            return UNARY[name](q.contiguous(memory_format=torch.channels_last) if last else q)

        if engine is Engine.QNNPACK and name == "sigmoid with a tail":
            continue  # it only has sigmoids with zero point 0
        assert differing(function, codes, scale, z, engine) == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("last", [False, True])
def test_concatenation(engine, last):
    random = np.random.default_rng(8)
    for _ in range(4):
        scale, z = F(random.uniform(0.01, 0.1)), int(random.integers(0, 256))
        target, z_target = float(F(random.uniform(0.01, 0.1))), int(random.integers(0, 256))

        def function(q, target=target, z_target=z_target):
            q = q.contiguous(memory_format=torch.channels_last) if last else q
            return torch.ops.quantized.cat([q, torch.relu(q), q], 1, target, z_target)

        codes = np.stack([np.resize(np.roll(BYTE, i), 70 * 6) for i in range(0, 256, 60)]).reshape(-1, 70, 2, 3)
        assert differing(function, codes, scale, z, engine) == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_moves_and_max_pools(engine):
    random = np.random.default_rng(9)
    functions = [
        lambda q: nn.functional.max_pool2d(q, 3, stride=2, padding=1, ceil_mode=True),
        lambda q: nn.functional.max_pool2d(q.contiguous(memory_format=torch.channels_last), (2, 3), dilation=(2, 1)),
        lambda q: q.permute(0, 3, 1, 2).reshape(1, -1, 4).transpose(1, 2),
        lambda q: torch.flatten(q, 2).unsqueeze(1).squeeze(1)[:, 1:, ::2],
        swapped_halves,
        lambda q: torch.pixel_shuffle(q, 2),
        lambda q: nn.functional.avg_pool2d(q, 3, stride=2, padding=1),
        lambda q: nn.functional.adaptive_avg_pool2d(q, (3, 2)),
        requantized,
        lambda q: torch.relu(q[:, :1].expand(-1, 3, -1, -1)),
        lambda q: torch.sigmoid(q[:, ::2, 1:, ::3]),
        lambda q: torch.ops.quantized.mul(q, q.mean((2, 3), keepdim=True), 0.3, 5),
    ]
    for function in functions:
        assert differing(function, random.integers(0, 256, (40, 4, 6, 6)), F(0.05), 77, engine) == 0


def swapped_halves(q):
    first, second = q.chunk(2, dim=2)
    return torch.cat([second, first], 2)


def requantized(q):
    """A real number between two quantizers."""
    return torch.quantize_per_tensor(torch.relu(q.dequantize()), 0.07, 9, torch.quint8)


def test_rounding_of_the_last_step_matters():
    """The two quantizers inside kernels differ on ties with an odd zero point: without this the tests above prove little."""
    ties = np.array([0.5, 1.5, 2.5], dtype=F)
    assert not np.array_equal(quantize_after(ties, F(1), 1), quantize_inside(ties, F(1), 1))
    assert not np.array_equal(fma(F(0.1), F(0.3), F(-0.03)), F(F(0.1) * F(0.3)) + F(-0.03))
