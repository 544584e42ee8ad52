"""Every operator beside the real onnxruntime, directed: inputs sit where candidate formulas disagree, on both sides of
every threshold, and each test shows that at least one rival formula would fail it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from onnx import helper

from qertify.importers.onnx_quantized import load_onnx
from qertify.network.evaluate import evaluate
from qertify.network.nodes import Staircase
from qertify.runtimes.float32 import fma, round_half_even
from qertify.runtimes.onnxruntime_arithmetic import Addition, dequantize, linear_multiplier, quantize, requantize_linear
from tests.conformance.onnx_models import model_of, run, save, single

F = np.float32
KINDS = ("uint8", "int8")
LINEAR_OPERANDS = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
SCHEMES = (("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8"))


def scales(random, count, low=-7.0, high=0.0):
    return np.exp(random.uniform(low, high, size=count)).astype(F)


def rivals(z, x_scale, weight_scale, y_scale, zero_point):
    """Other plausible formulas for a linear operator: order of the scales, double precision, other ties, z inside."""
    exact = z * (np.float64(x_scale) * np.float64(weight_scale) / np.float64(y_scale))
    ours = linear_multiplier(x_scale, np.atleast_1d(weight_scale), y_scale)[0]
    return {
        "other order": round_half_even(z.astype(F) * F(x_scale * F(weight_scale / y_scale))) + zero_point,
        "double": np.rint(exact).astype(np.int64) + zero_point,
        "half away": (np.sign(z) * np.floor(np.abs(F(z.astype(F) * ours)) + F(0.5))).astype(np.int64) + zero_point,
        "zero point inside": round_half_even(fma(z.astype(F), ours, F(zero_point))),
    }


def critical(multipliers, zero_point, low, high):
    """Accumulators around every threshold: shape (rows, n)."""
    from qertify.network.staircase import steps_from_function

    steps = steps_from_function(requantize_linear(multipliers, zero_point), len(multipliers), low, high)
    t = steps.thresholds
    return np.unique(np.concatenate([t - 2, t - 1, t, t + 1], axis=1), axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_input_quantizer(tmp_path, kind):
    random = np.random.default_rng(1)
    limits, misses = np.iinfo(kind), 0
    for scale in scales(random, 12):
        zero_point = int(random.integers(limits.min, limits.max + 1))
        ties = ((np.arange(limits.min, limits.max + 1) - zero_point + 0.5) * np.float64(scale)).astype(F)
        x = np.concatenate(
            [ties, np.nextafter(ties, F(np.inf)), np.nextafter(ties, F(-np.inf)), [F(1e30), F(-1e30), F(0), F(-0.0)]]
        )
        node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
        model = model_of([node], {"x": ("float32", ["n", 1])}, ("y", kind), {"s": scale, "z": np.dtype(kind).type(zero_point)})
        path = save(model, tmp_path / "q.onnx")
        ours = np.clip(quantize(x, scale, zero_point), limits.min, limits.max)
        assert np.array_equal(run(path, x[:, None])[:, 0], ours)
        rival = round_half_even(fma(x, F(1 / scale), F(zero_point)))
        misses += np.count_nonzero(np.clip(rival, limits.min, limits.max) != ours)
    assert misses > 0


@pytest.mark.parametrize("op", ["QLinearConv", "QGemm"])
@pytest.mark.parametrize(("activation", "weight"), SCHEMES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_linear_with_bias(tmp_path, op, activation, weight, per_channel):
    """Biases put each output channel on one critical accumulator; a single input adds 0 or ±1 to it."""
    random = np.random.default_rng(2)
    limits = np.iinfo(activation)
    caught = set()
    for large in (False, False, True):
        x_scale, y_scale = scales(random, 2, *((-12, -9) if large else (-5, 0)))
        if large:
            y_scale = F(y_scale * 500)
        z_x, z_y = (int(random.integers(limits.min, limits.max + 1)) for _ in range(2))
        weight_scales = scales(random, 3 if per_channel else 1, -5, -2)
        multipliers = linear_multiplier(x_scale, weight_scales, y_scale)
        points = critical(multipliers, z_y, limits.min, limits.max).reshape(len(multipliers), -1)
        points = points[:, np.abs(points).max(axis=0) < (1 << 31) - 300]
        bias = points.reshape(-1).astype(np.int32)
        channel_scales = np.repeat(weight_scales, points.shape[1])
        kernel = np.ones((bias.size, 1), dtype=weight)
        for row, scale in enumerate(weight_scales):
            mine = points[row]
            ours = np.clip(requantize_linear(multipliers[row : row + 1], z_y)(mine[None])[0], limits.min, limits.max)
            for name, rival in rivals(mine, x_scale, scale, y_scale, z_y).items():
                if np.any(np.clip(rival, limits.min, limits.max) != ours):
                    caught.add(name)
        constants = {"xs": x_scale, "xz": np.dtype(activation).type(z_x), "ys": y_scale, "yz": np.dtype(activation).type(z_y)}
        constants |= {"ws": channel_scales if per_channel else weight_scales[0], "b": bias}
        constants["wz"] = np.zeros(bias.size if per_channel else (), dtype=weight)
        constants["w"] = kernel[:, :, None, None] if op == "QLinearConv" else kernel
        names = ["x", "xs", "xz", "w", "ws", "wz"]
        names += ["ys", "yz", "b"] if op == "QLinearConv" else ["b", "ys", "yz"]
        shape, attributes = ([1, 1, 1], {}) if op == "QLinearConv" else ([1], {"transB": 1})
        path = single(tmp_path / "m.onnx", op, names, constants, shape, activation, **attributes)
        x = np.clip(np.array([z_x - 1, z_x, z_x + 1]), limits.min, limits.max).astype(activation).reshape(3, *shape)
        assert np.array_equal(evaluate(load_onnx(path), x), run(path, x))
    assert {"other order", "double", "half away"} <= caught


@pytest.mark.parametrize(("activation", "weight"), SCHEMES)
def test_matrix_product(tmp_path, activation, weight):
    """Weights 127, …, 127, 1 reach any accumulator."""
    random = np.random.default_rng(3)
    limits, size = np.iinfo(activation), 40
    caught = set()
    for _ in range(4):
        x_scale, weight_scale, y_scale = scales(random, 3, -4, -1)
        y_scale = F(y_scale * 60)
        z_x, z_y, z_w = 128 + limits.min, int(random.integers(limits.min, limits.max + 1)), 0 if weight == "int8" else 100
        multiplier = linear_multiplier(x_scale, weight_scale[None], y_scale)
        targets = critical(multiplier, z_y, limits.min, limits.max)[0]
        targets = targets[np.abs(targets) < 127 * 127 * (size - 1)]
        ours = np.clip(requantize_linear(multiplier, z_y)(targets[None])[0], limits.min, limits.max)
        for name, rival in rivals(targets, x_scale, weight_scale, y_scale, z_y).items():
            if np.any(np.clip(rival, limits.min, limits.max) != ours):
                caught.add(name)
        hundreds, ones = np.divmod(targets, 127)
        share, rest = np.divmod(hundreds, size - 1)
        x = np.empty((len(targets), size), dtype=np.int64)
        x[:, :-1] = share[:, None] + (np.arange(size - 1)[None, :] < rest[:, None])
        x[:, -1] = ones
        x = np.clip(x + z_x, limits.min, limits.max).astype(activation)
        column = np.array([127] * (size - 1) + [1]) + z_w
        kernel = np.stack([column, 2 * z_w - column], axis=1).clip(np.iinfo(weight).min, np.iinfo(weight).max).astype(weight)
        assert np.array_equal((x.astype(np.int64) - z_x) @ (kernel[:, 0].astype(np.int64) - z_w), targets)
        constants = {"xs": x_scale, "xz": x.dtype.type(z_x), "w": kernel, "ws": weight_scale, "wz": kernel.dtype.type(z_w)}
        constants |= {"ys": y_scale, "yz": x.dtype.type(z_y)}
        path = single(tmp_path / "m.onnx", "QLinearMatMul", LINEAR_OPERANDS, constants, [size], activation)
        assert np.array_equal(evaluate(load_onnx(path), x), run(path, x))
    assert {"double", "half away"} <= caught


@cache
def additions(kind, count):
    """Scales, zero points and a pair of codes on which the order of the operands matters."""
    random, limits = np.random.default_rng(4), np.iinfo(kind)
    codes, found = np.arange(limits.min, limits.max + 1), []
    while len(found) < count:
        s_a, s_b, s_c = scales(random, 3, -3, 0)
        s_b = s_a if len(found) % 2 else s_b
        z = tuple(int(v) for v in random.integers(limits.min, limits.max + 1, size=3))
        one = Addition((s_a, s_b, s_c), z)(codes[:, None], codes[None, :])
        two = Addition((s_b, s_a, s_c), (z[1], z[0], z[2]))(codes[None, :], codes[:, None])
        differ = np.argwhere(np.clip(one, limits.min, limits.max) != np.clip(two, limits.min, limits.max))
        if len(differ):
            found.append(((s_a, s_b, s_c), z, codes[differ[0]]))
    return found


def addition_constants(kind, s, z):
    number = np.dtype(kind).type
    return {"sa": s[0], "za": number(z[0]), "sb": s[1], "zb": number(z[1]), "sc": s[2], "zc": number(z[2])}


@pytest.mark.parametrize("kind", KINDS)
def test_addition_on_all_pairs(tmp_path, kind):
    """x is split into two rows of 256 codes; the second one is shuffled in the batch so that all pairs meet."""
    limits = np.iinfo(kind)
    codes = np.arange(limits.min, limits.max + 1)
    for s, z, _ in additions(kind, 4):
        nodes = [
            helper.make_node(
                "QLinearConv", ["x", "one", "zero", f"w{i}", "one", "wz", "one", "zero"], [f"x{i}"], name=f"pick{i}"
            )
            for i in range(2)
        ]
        operands = ["x0", "sa", "za", "x1", "sb", "zb", "sc", "zc"]
        nodes.append(helper.make_node("QLinearAdd", operands, ["y"], domain="com.microsoft", name="add"))
        constants = addition_constants(kind, s, z) | {"one": F(1), "zero": np.dtype(kind).type(0), "wz": np.int8(0)}
        constants |= {f"w{i}": np.eye(2, dtype=np.int8)[i].reshape(1, 2, 1, 1) for i in range(2)}
        path = save(model_of(nodes, {"x": (kind, ["n", 2, 1, 256])}, ("y", kind), constants), tmp_path / "m.onnx")
        x = np.stack([np.broadcast_to(codes[None, :], (256, 256)), np.broadcast_to(codes[:, None], (256, 256))], axis=1)
        x = x[:, :, None, :].astype(kind)
        expected = np.clip(Addition(s, z)(x[:, 0, 0].astype(np.int64), x[:, 1, 0].astype(np.int64)), limits.min, limits.max)
        real = run(path, x)
        assert np.array_equal(real, expected)
        assert np.array_equal(evaluate(load_onnx(path), x), real)


@pytest.mark.parametrize("constant", [(1,), (1, 3, 1, 1), (70,), (2, 70), (1, 3, 2, 70)])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_addition_of_a_constant(tmp_path, kind, constant, first):
    """Which operand is exchanged when one is broadcast: pairs where the two orders differ."""
    random = np.random.default_rng(5)
    for s, z, (a, b) in additions(kind, 4):
        value = np.full(constant, a if first else b).astype(kind)
        if constant == (1, 3, 1, 1):
            value[0, 1] += 1
        operands = ["c", "sa", "za", "x", "sb", "zb", "sc", "zc"] if first else ["x", "sa", "za", "c", "sb", "zb", "sc", "zc"]
        constants = addition_constants(kind, s, z) | {"c": value}
        path = single(tmp_path / "m.onnx", "QLinearAdd", operands, constants, [3, 2, 70], kind)
        x = np.full((3, 3, 2, 70), b if first else a).astype(kind)
        x[1] += 1
        x[2] = random.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, size=x[2].shape)
        assert np.array_equal(evaluate(load_onnx(path), x), run(path, x))


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("first", [True, False])
def test_broadcast_of_computed_operands(tmp_path, op, first):
    """A channel-wise gate, computed by global average pooling, added to or multiplied with its own input."""
    random = np.random.default_rng(6)
    for s, z, _ in additions("uint8", 4):
        constants = addition_constants("uint8", s, z) | {"one": F(1)}
        pool = helper.make_node(
            "QLinearGlobalAveragePool", ["x", "one", "za", "one", "za"], ["p"], domain="com.microsoft", name="p"
        )
        gate, image = (["p", "sa", "za"], ["x", "sb", "zb"]) if first else (["p", "sb", "zb"], ["x", "sa", "za"])
        operands = [*(gate + image if first else image + gate), "sc", "zc"]
        both = helper.make_node(op, operands, ["y"], domain="com.microsoft", name="both")
        path = save(model_of([pool, both], {"x": ("uint8", ["n", 4, 8, 8])}, ("y", "uint8"), constants), tmp_path / "m.onnx")
        x = random.integers(0, 256, size=(200, 4, 8, 8)).astype(np.uint8)
        assert np.array_equal(evaluate(load_onnx(path), x), run(path, x))


@pytest.mark.parametrize("kind", KINDS)
def test_multiplication(tmp_path, kind):
    random = np.random.default_rng(7)
    limits = np.iinfo(kind)
    codes = np.arange(limits.min, limits.max + 1)
    inside = 0
    for _ in range(6):
        s_a, s_b = scales(random, 2, -4, 0)
        s_c = F(s_a * s_b * 2.0 ** random.integers(5, 9)) if random.random() < 0.5 else F(s_a * s_b * random.uniform(30, 200))
        z = tuple(int(v) for v in random.integers(limits.min, limits.max + 1, size=3))
        constants = addition_constants(kind, (s_a, s_b, s_c), z) | {"c": codes.astype(kind).reshape(256, 1)}
        path = single(
            tmp_path / "m.onnx", "QLinearMul", ["x", "sa", "za", "c", "sb", "zb", "sc", "zc"], constants, [256, 1], kind
        )
        x = np.broadcast_to(codes.astype(kind)[:, None, None], (256, 256, 1))
        real = run(path, np.ascontiguousarray(x))
        assert np.array_equal(evaluate(load_onnx(path), x), real)
        p = (codes[:, None] - z[0]) * (codes[None, :] - z[1])
        rival = round_half_even(p.astype(F) * F(F(s_a * s_b) / s_c)) + z[2]
        inside += np.count_nonzero(np.clip(rival, limits.min, limits.max) != real)
    assert inside > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [0, 1])
def test_global_average(tmp_path, kind, last):
    random = np.random.default_rng(8)
    limits = np.iinfo(kind)
    for height, width in ((3, 3), (2, 4), (7, 7)):
        n = height * width
        x_scale = scales(random, 1, -4, -1)[0]
        y_scale = F(x_scale) if height == 2 else F(x_scale * random.uniform(0.5, 2))
        z_x, z_y = (int(v) for v in random.integers(limits.min, limits.max + 1, size=2))
        constants = {"xs": x_scale, "xz": np.dtype(kind).type(z_x), "ys": y_scale, "yz": np.dtype(kind).type(z_y)}
        shape = [height, width, 1] if last else [1, height, width]
        operands = ["x", "xs", "xz", "ys", "yz"]
        path = single(tmp_path / "m.onnx", "QLinearGlobalAveragePool", operands, constants, shape, kind, channels_last=last)
        totals = np.arange(n * limits.min, n * limits.max + 1)  # every sum there is
        share, rest = np.divmod(totals, n)
        x = share[:, None] + (np.arange(n)[None, :] < rest[:, None])
        x = x.astype(kind).reshape(-1, *shape)
        assert np.array_equal(evaluate(load_onnx(path), x), run(path, x))


@pytest.mark.parametrize("op", ["QLinearSigmoid", "QLinearLeakyRelu"])
@pytest.mark.parametrize("kind", KINDS)
def test_tables(tmp_path, op, kind):
    """The table read off the runtime is what it computes at every position of tensors of several lengths."""
    random = np.random.default_rng(9)
    limits = np.iinfo(kind)
    for length in (1, 7, 64, 515):
        x_scale, y_scale = scales(random, 2, -5, -2)
        z = random.integers(limits.min, limits.max + 1, size=2).astype(kind)
        constants = {"xs": x_scale, "xz": z[0], "ys": F(1 / 256) if op == "QLinearSigmoid" else y_scale, "yz": z[1]}
        attributes = {"alpha": 0.3} if op == "QLinearLeakyRelu" else {}
        path = single(tmp_path / "m.onnx", op, ["x", "xs", "xz", "ys", "yz"], constants, [length], kind, **attributes)
        codes = np.arange(limits.min, limits.max + 1).astype(kind)
        x = np.stack([np.resize(np.roll(codes, shift), length) for shift in range(256)])
        network = load_onnx(path)
        assert all(not isinstance(node, Staircase) or node.steps.high <= limits.max for node in network.nodes)
        assert np.array_equal(evaluate(network, x), run(path, x))


@pytest.mark.parametrize("kind", KINDS)
def test_concatenation(tmp_path, kind):
    limits, misses = np.iinfo(kind), 0
    for s, z, _ in additions(kind, 4):
        constants = addition_constants(kind, s, z)
        operands = ["sc", "zc", "x", "sa", "za", "x", "sb", "zb"]
        path = single(tmp_path / "m.onnx", "QLinearConcat", operands, constants, [2, 128], kind, axis=1)
        x = np.arange(limits.min, limits.max + 1).astype(kind).reshape(1, 2, 128)
        real = run(path, x)
        assert np.array_equal(evaluate(load_onnx(path), x), real)
        formula = quantize(dequantize(x.astype(np.int64).reshape(-1), s[0], z[0]), s[2], z[2])
        misses += np.count_nonzero(np.clip(formula, limits.min, limits.max) != real[0, :256])
    assert misses == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attributes", [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [0, 1, 1, 0], "dilations": [2, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [2, 2], "strides": [3, 3], "auto_pad": "SAME_LOWER"},
])  # fmt: skip
def test_max_pool(tmp_path, kind, attributes):
    path = single(tmp_path / "m.onnx", "MaxPool", ["x"], {}, [3, 9, 8], kind, **attributes)
    x = np.random.default_rng(11).integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, size=(50, 3, 9, 8)).astype(kind)
    assert np.array_equal(evaluate(load_onnx(path), x), run(path, x))


@pytest.mark.parametrize(("activation", "weight"), SCHEMES)
@pytest.mark.parametrize("form", [
    {"pads": [1, 1, 1, 1]},
    {"strides": [2, 1], "pads": [0, 1, 2, 0]},
    {"dilations": [2, 2], "group": 2},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2], "group": 4},
    {"axes": 1, "pads": [1, 1], "strides": [2]},
])  # fmt: skip
def test_convolution_shapes(tmp_path, activation, weight, form):
    """Padding with the zero point, strides, dilation, groups, weights with their own zero points, one spatial axis."""
    random = np.random.default_rng(12)
    limits, attributes = np.iinfo(activation), dict(form)
    axes = attributes.pop("axes", 2)
    spatial, groups = [9, 8][:axes], attributes.get("group", 1)
    kernel = random.integers(np.iinfo(weight).min, np.iinfo(weight).max + 1, size=(8, 4 // groups, *[3] * axes)).astype(weight)
    z_w = 0 if weight == "int8" else 131
    constants = {"xs": F(0.02), "xz": np.dtype(activation).type(limits.min + 77), "ws": F(0.011), "wz": kernel.dtype.type(z_w)}
    constants |= {
        "w": kernel,
        "ys": F(0.13),
        "yz": np.dtype(activation).type(3),
        "b": random.integers(-9000, 9000, size=8).astype(np.int32),
    }
    operands = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    path = single(tmp_path / "m.onnx", "QLinearConv", operands, constants, [4, *spatial], activation, **attributes)
    x = random.integers(limits.min, limits.max + 1, size=(300, 4, *spatial)).astype(activation)
    assert np.array_equal(evaluate(load_onnx(path), x), run(path, x))


def test_matrix_product_over_the_last_axis(tmp_path):
    random = np.random.default_rng(13)
    constants = {"xs": F(0.02), "xz": np.uint8(9), "w": random.integers(-128, 128, size=(6, 5)).astype(np.int8)}
    constants |= {"ws": scales(random, 5), "wz": np.zeros(5, np.int8), "ys": F(3.0), "yz": np.uint8(120)}
    path = single(tmp_path / "m.onnx", "QLinearMatMul", LINEAR_OPERANDS, constants, [3, 4, 6], "uint8")
    x = random.integers(0, 256, size=(300, 3, 4, 6)).astype(np.uint8)
    assert np.array_equal(evaluate(load_onnx(path), x), run(path, x))
