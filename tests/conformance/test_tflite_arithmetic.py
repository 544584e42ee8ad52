"""Directed tests of LiteRT's kernels: inputs on which the candidate formulas disagree, operator by operator.

A requantization is monotone, so agreement just below and at every threshold of the formula is agreement everywhere.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra 'tflite' is not installed")

from qertify.errors import UnsupportedModelError
from qertify.network.staircase import steps_from_function
from qertify.runtimes.litert import PROFILES, Quantized, unary_table
from qertify.runtimes.litert_arithmetic import Addition, Kernels, Lanes, average, clamp, linear, mean, product, quantize
from qertify.runtimes.litert_writer import RELU6, RELU_N1_TO_1, SAME, VALID, Writer
from tests.conformance.tflite_models import RUNTIMES, execute, execute_all, is_delegated, single

F = np.float32
LARGEST = 1 << 27
CODES = np.arange(-128, 128)


def scales(random: np.random.Generator, trial: int) -> tuple[np.float32, ...]:
    """Input, weight and output scale: powers of two (all ties are exact), ordinary ones, and ones with a multiplier above 1."""
    match trial % 4:
        case 0:
            return tuple(F(2.0 ** -int(random.integers(low, high))) for low, high in ((2, 6), (3, 8), (0, 4)))
        case 3:
            return F(random.uniform(0.5, 2)), F(random.uniform(0.5, 2)), F(random.uniform(0.1, 0.5))
        case _:
            return tuple(F(np.exp(random.uniform(low, high))) for low, high in ((-5, -2), (-7, -3), (-3, 0)))


def accumulators(op: str, scale: tuple[np.float32, ...], zero_point: int, random: np.random.Generator) -> np.ndarray:
    """Just below and at every threshold of every kernel's formula."""
    found = []
    for kernels in Kernels:
        for channels in (1, 8):
            function = linear(kernels, op, (scale[0], np.array(scale[1:2]), scale[2]), zero_point, channels).function
            at = steps_from_function(lambda z: function(np.repeat(z, channels, 0))[:1], 1, -128, 127).thresholds[0]  # noqa: B023
            found += [at - 1, at]
    points = np.unique(np.concatenate(found))
    return random.permutation(points[np.abs(points) < LARGEST])


def with_accumulators(op: str, form: str, scale: tuple[np.float32, ...], zero_point: int, z: np.ndarray) -> bytes:
    """One linear operator, zero weights, whose biases are the accumulators: one channel each."""
    n, writer = len(z), Writer()
    per_channel = form != "one scale"
    weight_scale = np.full(n if per_channel else 1, scale[1])
    if op == "FULLY_CONNECTED":
        shapes, weight, axis, options = ([1, 4], [1, n]), (n, 4), 0, "FullyConnectedOptions"
    elif op == "CONV_2D":
        size = 1 if form == "pointwise" else 3
        shapes, weight, axis, options = ([1, 3, 3, 2], [1, 3, 3, n]), (n, size, size, 2), 0, "Conv2DOptions"
    else:
        size, inputs = (5, n) if form == "large" else (3, 1 if form == "multiplier" else n)
        shapes, weight, axis, options = ([1, 3, 3, inputs], [1, 3, 3, n]), (1, size, size, n), 3, "DepthwiseConv2DOptions"
    x = writer.tensor(shapes[0], scale[0], 3)
    w = writer.constant(np.zeros(weight, np.int8), weight_scale, 0, axis)
    b = writer.constant(z.astype(np.int32), weight_scale * scale[0])
    y = writer.tensor(shapes[1], scale[2], zero_point)
    values = {} if op == "FULLY_CONNECTED" else {"padding": SAME, "strideW": 1, "strideH": 1}
    if op == "DEPTHWISE_CONV_2D":
        values["depthMultiplier"] = n // shapes[0][3]
    writer.operator(op, [x, w, b], [y], options, **values)
    return writer.finish([x], [y])


FORMS = [("FULLY_CONNECTED", form) for form in ("one scale", "channels")]
FORMS += [("CONV_2D", form) for form in ("one scale", "channels", "pointwise")]
FORMS += [("DEPTHWISE_CONV_2D", form) for form in ("one scale", "channels", "large", "multiplier")]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("op", "form"), FORMS)
def test_linear(op: str, form: str, runtime: str) -> None:
    random = np.random.default_rng(1)
    kernels, told_apart = PROFILES[runtime], 0
    for trial in range(12):
        scale, zero_point = scales(random, trial), int(random.integers(-128, 128))
        every = accumulators(op, scale, zero_point, random)
        sizes = [len(every)] if op != "DEPTHWISE_CONV_2D" else [len(every), 1, 3, 7, 9, 15, 20, 31]
        for size in sizes:
            z = every[:size]
            inputs = {"FULLY_CONNECTED": (4,), "CONV_2D": (3, 3, 2)}.get(op, (3, 3, 1 if form == "multiplier" else len(z)))
            x = np.full((1, *inputs), 3, np.int8)
            got = execute(with_accumulators(op, form, scale, zero_point, z), runtime, x).reshape(-1, len(z))
            weight = np.full(1 if form == "one scale" else len(z), scale[1])
            if len(z) == 1:
                weight = weight[:1]
            images = {k: linear(k, op, (scale[0], weight, scale[2]), zero_point, len(z)) for k in Kernels}
            images = {k: np.clip(scaling.function(z[:, None]), -128, 127)[:, 0] for k, scaling in images.items()}
            np.testing.assert_array_equal(got, np.broadcast_to(images[kernels], got.shape))
            told_apart += min(np.count_nonzero(images[kernels] != image) for k, image in images.items() if k is not kernels)
    assert told_apart > 100, "the points hardly tell the kernels apart"


def sums_image(sums: np.ndarray, height: int, width: int) -> np.ndarray:
    """One image of codes whose channels have these sums, shape (1, 1, height, width, channels)."""
    n = height * width
    base, rest = np.divmod(sums, n)
    codes = base[None, :] + (np.arange(n)[:, None] < rest[None, :])
    return codes.reshape(1, height, width, len(sums)).astype(np.int8)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("keeps", [False, True])
def test_mean(keeps: bool, runtime: str) -> None:
    random = np.random.default_rng(2)
    kernels, told_apart = PROFILES[runtime], 0
    for height, width in ((7, 7), (4, 4), (3, 5), (1, 1), (2, 13), (10, 10), (56, 56), (128, 128)):
        for trial in range(6 if height < 50 else 2):
            n = height * width
            every = np.arange(-128 * n, 127 * n + 1, 1 if n < 1000 else 97)
            x = (F(2.0 ** -int(random.integers(2, 6))) if trial % 3 == 0 else F(np.exp(random.uniform(-5, -2))), 0)
            ratio = [2.0 ** int(random.integers(-2, 2)), random.integers(1, 5) / 2, np.exp(random.uniform(-1.5, 1))][trial % 3]
            x = (x[0], int(random.integers(-128, 128)) if trial % 2 else 0)
            y = (F(x[0] * F(ratio)), int(random.integers(-128, 128)))
            for channels in (len(every), 1, 5, 15, 17, 31) if n < 1000 else (300,):
                images = {k: np.clip(mean(k, x, y, n, 1, keeps).function(every[None]), -128, 127)[0] for k in Kernels}
                odd = np.flatnonzero(np.ptp(np.stack(list(images.values())), axis=0))
                chosen = random.choice(odd if odd.size and channels < 32 else len(every), channels)
                chosen = random.permutation(len(every))[:20_000] if channels == len(every) else chosen
                sums = every[chosen]
                target = [1, 1, 1, len(sums)] if keeps else [1, len(sums)]
                axes = np.array([1, 2], np.int32)
                shape = [1, height, width, len(sums)]
                model = single("MEAN", [(shape, *x)], (target, *y), "ReducerOptions", (axes,), keepDims=keeps)
                got = execute(model, runtime, sums_image(sums, height, width)[None, 0])[0]
                expected = mean(kernels, x, y, n, len(sums), keeps).function(sums[:, None].astype(np.int64))[:, 0]
                np.testing.assert_array_equal(got, np.clip(expected, -128, 127))
                told_apart += odd.size
    assert told_apart > 1000


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_average(runtime: str) -> None:
    for height, width in ((2, 2), (3, 3), (7, 7), (1, 3), (5, 4), (16, 16), (20, 17), (60, 50)):
        n = height * width
        spread, dense = (9000, 3 * n) if n < 1000 else (400, n // 2 + 50)
        sums = np.unique(np.concatenate([np.arange(dense - 100, dense), np.linspace(-128 * n, 127 * n, spread).astype(int)]))
        sums = np.unique(np.concatenate([sums, -sums[np.abs(sums) < 127 * n]]))
        shape, target = [1, height, width, len(sums)], [1, 1, 1, len(sums)]
        values = {"padding": VALID, "strideW": 1, "strideH": 1, "filterWidth": width, "filterHeight": height}
        model = single("AVERAGE_POOL_2D", [(shape, 0.05, 3)], (target, 0.05, 3), "Pool2DOptions", **values)
        got = execute(model, runtime, sums_image(sums, height, width))[0]
        np.testing.assert_array_equal(got, average(n)(sums))
        assert not is_delegated(model)


PAIRS = (np.repeat(CODES, 256), np.tile(CODES, 256))


def operand_scales(random: np.random.Generator, trial: int) -> tuple[tuple[np.float32, ...], tuple[int, ...]]:
    chosen = [F(2.0 ** -int(random.integers(2, 6))) if trial % 3 == 0 else F(np.exp(random.uniform(-5, -2))) for _ in range(3)]
    if trial % 5 == 4:
        chosen[1] = F(chosen[1] * F(2.0 ** -int(random.integers(1, 7))))
    return tuple(chosen), tuple(int(z) for z in random.integers(-128, 128, 3))


def block_images(kernels: Kernels, op: str, s: tuple[np.float32, ...], z: tuple[int, ...]) -> list[np.ndarray]:
    """Codes of every pair, as whole blocks of elements and the remainder compute them."""
    functions = [Addition(kernels, s, z, op == "SUB", in_block) for in_block in (True, False)]
    return [np.clip(function(*PAIRS), -128, 127) for function in functions]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("op", ["ADD", "SUB"])
def test_addition_on_every_pair(op: str, runtime: str) -> None:
    random = np.random.default_rng(3)
    kernels = PROFILES[runtime]
    for trial in range(16):
        s, z = operand_scales(random, trial)
        model = single(
            op, [([1, 1 << 16], s[0], z[0]), ([1, 1 << 16], s[1], z[1])], ([1, 1 << 16], s[2], z[2]), f"{op.title()}Options"
        )
        got = execute_all(model, runtime, *(side.astype(np.int8)[None] for side in PAIRS))[0]
        expected = block_images(kernels, op, s, z)[0 if op == "ADD" and kernels is Kernels.BUILTIN else 1]
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("op", ["ADD", "SUB"])
def test_the_remainder_of_an_optimized_addition(op: str) -> None:
    """Whole blocks of ADD shift before they multiply; the remainder, and all of SUB, multiply first."""
    random = np.random.default_rng(8)
    tried = 0
    for trial in range(400):
        s, z = operand_scales(random, trial)
        blocks, scalar = block_images(Kernels.BUILTIN, op, s, z)
        odd = np.flatnonzero(blocks != scalar)
        if not odd.size:
            continue
        tried += 1
        for n in (15, 16, 37):
            chosen, whole = np.resize(odd, n), n // Lanes.ADDITION * Lanes.ADDITION if op == "ADD" else 0
            model = single(op, [([1, n], s[0], z[0]), ([1, n], s[1], z[1])], ([1, n], s[2], z[2]), f"{op.title()}Options")
            got = execute_all(model, "litert-builtin", *(side[chosen].astype(np.int8)[None] for side in PAIRS))[0]
            np.testing.assert_array_equal(got, np.where(np.arange(n) < whole, blocks[chosen], scalar[chosen]))
        if tried == 5:
            break
    assert tried, "no pair tells whole blocks and the remainder apart"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_multiplication_on_every_pair(runtime: str) -> None:
    random = np.random.default_rng(4)
    for trial in range(20):
        s, z = operand_scales(random, trial)
        if s[0] * s[1] / s[2] > 0.4:
            s = (s[0], s[1], F(s[0] * s[1] * 4))
        for n in (1 << 16, 37):
            chosen = random.permutation(1 << 16)[:n]
            model = single("MUL", [([1, n], s[0], z[0]), ([1, n], s[1], z[1])], ([1, n], s[2], z[2]), "MulOptions")
            a, b = (side[chosen] for side in PAIRS)
            got = execute_all(model, runtime, a.astype(np.int8)[None], b.astype(np.int8)[None])[0]
            expected = product(PROFILES[runtime], s, z[2])((a - z[0]) * (b - z[1]))
            np.testing.assert_array_equal(got, np.clip(expected, -128, 127))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("activation", [RELU6, RELU_N1_TO_1])
def test_bounds_of_activations(activation: int, runtime: str) -> None:
    """Scales at which bound / scale is a tie, or a rounding away from one."""
    random = np.random.default_rng(5)
    least, greatest = (0.0, 6.0) if activation == RELU6 else (-1.0, 1.0)
    for k in range(1, 120):
        scale, z = F(2 * greatest) / F(2 * k + 1), int(random.integers(-128, 20))
        expected = [np.clip(clamp(PROFILES[runtime], bound, scale, z), -128, 127) for bound in (least, greatest)]
        ones = [([1, 2], F(1), 0)] * 2
        extremes = [np.array([[-128, 127]], np.int8), np.array([[127, 127]], np.int8)]
        model = single("MUL", ones, ([1, 2], scale, z), "MulOptions", fusedActivationFunction=activation)
        np.testing.assert_array_equal(execute_all(model, runtime, *extremes)[0], expected)
        sums = [([1, 2], F(scale * 4), 0)] * 2
        model = single("ADD", sums, ([1, 2], scale, z), "AddOptions", fusedActivationFunction=activation)
        np.testing.assert_array_equal(execute_all(model, runtime, extremes[0], extremes[0])[0], expected)
        for op in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
            values = {"padding": VALID, "strideW": 2, "strideH": 1, "filterWidth": 2, "filterHeight": 1}
            values["fusedActivationFunction"] = activation
            model = single(op, [([1, 1, 4, 1], scale, z)], ([1, 1, 2, 1], scale, z), "Pool2DOptions", **values)
            kernels = PROFILES[runtime] if is_delegated(model) or runtime != "litert-xnnpack" else Kernels.BUILTIN
            bounds = [np.clip(clamp(kernels, bound, scale, z), -128, 127) for bound in (least, greatest)]
            codes = np.array([-128, -128, 127, 127], np.int8).reshape(1, 1, 4, 1)
            np.testing.assert_array_equal(execute(model, runtime, codes)[0], bounds)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_quantize_near_ties(runtime: str) -> None:
    random = np.random.default_rng(6)
    for trial in range(40):
        s = F(2.0 ** -int(random.integers(0, 8))) if trial % 3 == 0 else F(np.exp(random.uniform(-6, 1)))
        z = int(random.integers(-128, 128))
        halves = (s * (np.arange(-300, 300) - z + 0.5).astype(F)).astype(F)
        above, below = [halves], [halves]
        for _ in range(4):
            above.append(np.nextafter(above[-1], F(np.inf)))
            below.append(np.nextafter(below[-1], F(-np.inf)))
        x = np.concatenate([*above, *below, np.array([0.0, -0.0, 1e-40, -1e-40, s * 2.0**29, -s * 2.0**29], F)])
        model = single("QUANTIZE", [([1, len(x)], None, 0, F)], ([1, len(x)], s, z), "QuantizeOptions")
        expected = np.clip(quantize(PROFILES[runtime], x, s, z), -128, 127)
        np.testing.assert_array_equal(execute(model, runtime, x[None])[0], expected)


UNARY = [
    ("LOGISTIC", "", {}, (F(1 / 256), -128)),
    ("TANH", "", {}, (F(1 / 128), 0)),
    ("HARD_SWISH", "HardSwishOptions", {}, None),
    ("LEAKY_RELU", "LeakyReluOptions", {"alpha": 0.1}, None),
    ("RELU", "", {}, None),
    ("RELU6", "", {}, None),
    ("QUANTIZE", "QuantizeOptions", {}, None),
]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("op", "options", "values", "fixed"), UNARY)
def test_tables_hold_at_every_position(op, options, values, fixed, runtime) -> None:
    random = np.random.default_rng(7)
    taken = is_delegated(single(op, [([1, 8], 0.05, 3)], ([1, 8], *(fixed or (0.05, 3))), options, **values))
    kernels = PROFILES[runtime] if taken or runtime != "litert-xnnpack" else Kernels.BUILTIN
    for shape in ((37,), (3, 5, 7), (8, 8, 2)):
        for _ in range(3):
            x = Quantized(-128, F(np.exp(random.uniform(-5, -2))), int(random.integers(-100, 100)))
            scale, zero_point = fixed or (F(np.exp(random.uniform(-5, -2))), int(random.integers(-100, 100)))
            table = unary_table("node", op, (options, values), kernels, shape, x, Quantized(-128, scale, zero_point))
            model = single(op, [((1, *shape), x.scale, x.zero_point)], ((1, *shape), scale, zero_point), options, **values)
            codes = random.integers(-128, 128, (60, *shape)).astype(np.int8)
            expected = table.values[np.broadcast_to(table.row, codes.shape), codes.astype(int) + 128]
            np.testing.assert_array_equal(execute(model, runtime, codes), expected.reshape(60, -1))


def test_dequantize_depends_on_the_position_in_optimized_kernels_only() -> None:
    x, real = Quantized(-128, F(0.0371), 17), Quantized(0, None, 0)
    rows = {}
    for kernels in Kernels:
        for n in (5, 8, 10):
            rows[kernels, n] = len(unary_table("node", "DEQUANTIZE", ("DequantizeOptions", {}), kernels, (n,), x, real).values)
    assert {key for key, count in rows.items() if count > 1} == {(Kernels.BUILTIN, 10)}


def test_a_table_of_kernels_that_do_not_take_the_operator_is_refused() -> None:
    x = Quantized(-128, F(0.05), 0)
    with pytest.raises(UnsupportedModelError, match="XNNPACK does not take it"):
        unary_table("node", "HARD_SWISH", ("HardSwishOptions", {}), Kernels.XNNPACK, (8,), x, x)


def test_round_trip_of_the_writer() -> None:
    """The helper numbers tensors and operators in order, as the importer's names rely on."""
    from qertify.importers.tflite_file import read_graph

    writer = Writer()
    tensors = [writer.tensor((1, 4), 0.1) for _ in range(4)]
    for source, target in pairwise(tensors):
        writer.operator("RELU", [source], [target])
    graph = read_graph(writer.finish(tensors[:1], tensors[-1:]))
    assert [node.name for node in graph.operators] == ["0:RELU", "1:RELU", "2:RELU"]
    assert (graph.input, graph.output) == (0, 3)
