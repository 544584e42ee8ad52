"""What exporters and quantizers write around the usual layers: onnxruntime computes the same integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from onnx import helper

from qertify.errors import UnsupportedModelError
from qertify.importers.onnx_quantized import load_onnx
from qertify.network.evaluate import evaluate_interval
from qertify.runtimes.base import runtime_of
from tests.conformance.onnx_models import model_of, run, save
from tests.conformance.test_onnx_islands import Graph

CHANNELS = 3
EVERY_CODE = np.arange(-128, 128, dtype=np.int8)
RANDOM = np.random.default_rng(5)


def numbers(low: float, high: float, *shape: int) -> np.ndarray:
    return np.random.default_rng(7).uniform(low, high, size=shape).astype(np.float32)


def normalized(g: Graph, x: str) -> str:
    parameters = [numbers(0.5, 2, CHANNELS), numbers(-1, 1, CHANNELS), numbers(-1, 1, CHANNELS), numbers(0.2, 2, CHANNELS)]
    parameters[0][1] *= -1
    return g.node("BatchNormalization", x, *map(g.constant, parameters), epsilon=1e-3)


EXACT: dict[str, Callable[[Graph, str], str]] = {
    "batch normalization": normalized,
    "batch normalization, then a clip": lambda g, x: g.node(
        "Clip", normalized(g, x), g.constant(np.float32(-1)), g.constant(np.float32(1.5))
    ),
    "slopes a channel": lambda g, x: g.node("PRelu", x, g.constant(numbers(-0.5, 0.5, CHANNELS, 1))),
    "factors and shifts a channel": lambda g, x: g.node(
        "Add", g.node("Mul", x, g.constant(numbers(-2, 2, 1, CHANNELS, 1))), g.constant(numbers(-1, 1, CHANNELS, 1))
    ),
    "divided by numbers a position": lambda g, x: g.node("Div", g.constant(numbers(1, 2, 1)), g.node("Exp", x)),
    "error function": lambda g, x: g.node("Erf", x),
    "maximum with constants": lambda g, x: g.node("Max", x, g.constant(numbers(-1, 1, CHANNELS, 1))),
}


@pytest.mark.parametrize("name", EXACT)
def test_maps_of_single_codes(tmp_path: Path, name: str) -> None:
    graph = Graph((CHANNELS, 256))
    y = EXACT[name](graph, graph.dequantized("x"))
    path = graph.save(graph.requantized(y, 0.017), tmp_path / "model.onnx")
    network = load_onnx(path)
    codes = np.stack([RANDOM.permuted(np.broadcast_to(EVERY_CODE, (CHANNELS, 256)), axis=1) for _ in range(8)])
    replay = runtime_of(network).replay(path, codes)
    assert network.exactness == "exact"
    assert replay.agrees.all()
    assert len(np.unique(replay.outputs)) > 20


MOVES: dict[str, Callable[[Graph, str], str]] = {
    "reshape that allows zeros": lambda g, x: g.node("Reshape", x, g.constant(np.array([-1, 4, 36])), allowzero=1),
    "maximum over the image": lambda g, x: g.node("ReduceMax", x, g.constant(np.array([-1, -2])), keepdims=0),
    "maximum over channels": lambda g, x: g.node("ReduceMax", x, g.constant(np.array([1])), keepdims=1),
    "global maximum": lambda g, x: g.requantized(g.node("GlobalMaxPool", g.dequantized(x, 0.05, 3)), 0.05),
    "reflected": lambda g, x: g.node("Pad", x, g.constant(np.array([0, 0, 2, 1, 0, 0, 0, 3])), mode="reflect"),
    "enlarged": lambda g, x: g.node("Resize", x, "", g.constant(np.array([1, 1, 2, 3], np.float32)), mode="nearest"),
    "enlarged by other steps": lambda g, x: g.node(
        "Resize",
        x,
        "",
        g.constant(np.array([1, 1, 1.7, 0.6], np.float32)),
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    "enlarged to a size": lambda g, x: g.node(
        "Resize", x, "", "", g.constant(np.array([1, 4, 11, 9])), mode="nearest", coordinate_transformation_mode="align_corners"
    ),
    "depth to space": lambda g, x: g.node("DepthToSpace", x, blocksize=2, mode="CRD"),
    "space to depth": lambda g, x: g.node("SpaceToDepth", x, blocksize=3),
    "gathered": lambda g, x: g.node("Gather", x, g.constant(np.array([3, 0, -3])), axis=1),
    "a row gathered": lambda g, x: g.node("Gather", x, g.constant(np.array(2)), axis=2),
    "tiled": lambda g, x: g.node("Tile", x, g.constant(np.array([1, 2, 1, 3]))),
    "expanded": lambda g, x: g.node(
        "Expand", g.node("Unsqueeze", x, g.constant(np.array([2]))), g.constant(np.array([1, 1, 3, 1, 1]))
    ),
    "edges repeated": lambda g, x: g.node("Pad", x, g.constant(np.array([0, 1, 2, 0, 0, 0, 1, 3])), mode="edge"),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves(tmp_path: Path, name: str) -> None:
    graph = Graph((4, 6, 6))
    path = graph.save(MOVES[name](graph, graph.requantized(graph.dequantized("x"), 0.05)), tmp_path / "model.onnx")
    network = load_onnx(path)
    replay = runtime_of(network).replay(path, RANDOM.integers(-128, 128, size=(200, 4, 6, 6)).astype(np.int8))
    assert network.exactness == "exact"
    assert replay.agrees.all()


MEANS: dict[str, tuple[tuple[int, ...], Callable[[Graph, str], str]]] = {
    "mean over the image": ((4, 6, 6), lambda g, x: g.node("ReduceMean", x, g.constant(np.array([-1, -2])), keepdims=1)),
    "mean over channels and rows": ((4, 6, 6), lambda g, x: g.node("ReduceMean", x, g.constant(np.array([1, 2])), keepdims=0)),
    "mean over a signal": ((4, 9), lambda g, x: g.node("ReduceMean", x, g.constant(np.array([2])), keepdims=0)),
    "flattened global average": ((4, 6, 6), lambda g, x: g.node("Flatten", g.node("GlobalAveragePool", x))),
    "average of a signal": ((4, 9), lambda g, x: g.node("AveragePool", x, kernel_shape=[3], strides=[2], pads=[1, 1])),
    "transposed convolution": (
        (4, 6, 6),
        lambda g, x: g.node(
            "ConvTranspose",
            x,
            g.constant(numbers(-0.3, 0.3, 4, 3, 3, 2)),
            g.constant(numbers(-1, 1, 3)),
            strides=[2, 3],
            pads=[1, 0, 2, 1],
            output_padding=[1, 0],
            dilations=[1, 2],
        ),
    ),
    "transposed convolution in groups": (
        (4, 6, 6),
        lambda g, x: g.node("ConvTranspose", x, g.constant(numbers(-0.3, 0.3, 4, 2, 2, 2)), strides=[2, 2], group=2),
    ),
    "transposed convolution of a signal": (
        (4, 9),
        lambda g, x: g.node("ConvTranspose", x, g.constant(numbers(-0.3, 0.3, 4, 3, 5)), strides=[3], pads=[2, 1]),
    ),
    "kernel that depends on the position": ((4, 9), lambda g, x: g.node("Elu", x, alpha=0.7)),
    "sigmoid after a mean": (
        (4, 6, 6),
        lambda g, x: g.node("Sigmoid", g.node("ReduceMean", x, g.constant(np.array([2, 3])), keepdims=0)),
    ),
}


@pytest.mark.parametrize("name", MEANS)
def test_enclosed_operators(tmp_path: Path, name: str) -> None:
    shape, make = MEANS[name]
    graph = Graph(shape)
    path = graph.save(graph.requantized(make(graph, graph.dequantized("x")), 0.011), tmp_path / "model.onnx")
    network = load_onnx(path, allow_float_islands=True)
    codes = RANDOM.integers(-128, 128, size=(1000, *shape)).astype(np.int8)
    codes[:300] = codes[:300, :, :1] if len(shape) == 2 else codes[:300, :, :1, :1]
    replay = runtime_of(network).replay(path, codes)
    low, high = evaluate_interval(network, codes)
    assert replay.agrees.all()
    assert len(np.unique(replay.outputs)) > 20
    assert (high - low).mean() < 0.3


def test_an_enclosure_that_turns_out_exact_needs_no_flag(tmp_path: Path) -> None:
    graph = Graph((2, 3, 3))
    pooled = graph.node("GlobalAveragePool", graph.dequantized("x"))
    path = graph.save(graph.requantized(pooled, 0.0371 / 2.3), tmp_path / "model.onnx")
    assert load_onnx(path).exactness == "exact"


# Float32 at the end of the network.


def products(path: Path, op: str, per_channel: bool, bias: bool, terms: int = 300, spread: int = 1 << 24) -> Path:
    random = np.random.default_rng(11)
    size = 12 if per_channel else 1
    weight = random.integers(-128, 128, size=(terms, 12)).astype(np.int8)
    scale = (2.0 ** random.uniform(-12, -4, size=size)).astype(np.float32)
    constants = {"xs": np.float32(0.0173), "xz": np.uint8(31), "w": weight, "ws": scale if per_channel else scale[0]}
    constants["wz"] = np.zeros(size, dtype=np.int8) if per_channel else np.int8(0)
    operands = ["x", "xs", "xz", "w", "ws", "wz"] if op == "QGemm" else ["x", "w", "xs", "ws", "xz", "wz"]
    if bias:
        gemm = random.integers(-spread, spread, size=12).astype(np.int32)
        constants["b"] = gemm if op == "QGemm" else random.normal(size=12).astype(np.float32)
        operands.append("b")
    node = helper.make_node(op, operands, ["y"], name="product", domain="com.microsoft")
    return save(model_of([node], {"x": ("uint8", ["n", terms])}, ("y", "float32"), constants), path)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("op", ["QGemm", "MatMulIntegerToFloat"])
def test_products_without_a_quantizer(tmp_path: Path, op: str, per_channel: bool, bias: bool) -> None:
    path = products(tmp_path / "model.onnx", op, per_channel, bias)
    network = load_onnx(path, allow_float_islands=True)
    replay = runtime_of(network).replay(path, RANDOM.integers(0, 256, size=(400, 300)).astype(np.uint8))
    assert replay.agrees.all()
    assert network.metadata["output"] == ("float32" if per_channel or bias else "dequantized")


def test_one_scale_and_no_rounding_of_accumulators_is_exact(tmp_path: Path) -> None:
    path = products(tmp_path / "small.onnx", "QGemm", False, True, terms=200, spread=1 << 10)
    network = load_onnx(path)
    x = RANDOM.integers(0, 256, size=(400, 200)).astype(np.uint8)
    replay = runtime_of(network).replay(path, x)
    assert network.exactness == "exact"
    assert network.metadata["output"] == "dequantized"
    assert replay.agrees.all()
    assert np.array_equal(replay.outputs, run(path, x))


def test_quantized_products_with_a_float_bias_are_exact(tmp_path: Path) -> None:
    path = products(tmp_path / "float.onnx", "MatMulIntegerToFloat", True, True)
    import onnx

    model = onnx.load(path)
    model.graph.node[0].output[0] = "p"
    model.graph.node.append(helper.make_node("QuantizeLinear", ["p", "qs", "qz"], ["y"]))
    for name, value in (("qs", np.float32(0.9)), ("qz", np.uint8(120))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    path = save(model, tmp_path / "model.onnx")
    network = load_onnx(path)
    replay = runtime_of(network).replay(path, RANDOM.integers(0, 256, size=(3000, 300)).astype(np.uint8))
    assert network.exactness == "exact"
    assert replay.agrees.all()
    assert len(np.unique(replay.outputs)) > 100


ENDS: dict[str, tuple[str, Callable[[Graph, str], str]]] = {
    "another unit": ("ranks", lambda g, x: g.node("Mul", x, g.constant(np.float32(-1.7)))),
    "a factor a class": ("ranks", lambda g, x: g.node("Mul", x, g.constant(numbers(0.2, 2, 10)))),
    "log softmax": ("softmax", lambda g, x: g.node("LogSoftmax", x, axis=1)),
    "arg max": ("argmax", lambda g, x: g.node("ArgMax", x, axis=1, keepdims=0)),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_follows_the_last_codes(tmp_path: Path, name: str) -> None:
    kind, make = ENDS[name]
    graph = Graph((10,))
    y = make(graph, graph.dequantized(graph.requantized(graph.dequantized("x"), 0.09)))
    path = graph.save(y, tmp_path / "model.onnx", kind="int64" if kind == "argmax" else "float32")
    network = load_onnx(path)
    replay = runtime_of(network).replay(path, RANDOM.integers(-128, 128, size=(3000, 10)).astype(np.int8))
    assert (network.exactness, network.metadata["output"]) == ("exact", kind)
    assert replay.agrees.all()


def test_outputs_of_one_scale_a_class(tmp_path: Path) -> None:
    """Different codes of different classes stand for equal numbers: ties count as the runtime sees them."""
    graph = Graph((4,))
    scales = graph.constant(np.array([0.1, 0.2, 0.4, 0.3], dtype=np.float32))
    zeros = graph.constant(np.array([0, 3, -5, 0], dtype=np.int8))
    y = graph.node("DequantizeLinear", graph.requantized(graph.dequantized("x"), 0.5), scales, zeros, axis=1)
    path = graph.save(y, tmp_path / "model.onnx", kind="float32")
    network = load_onnx(path)
    replay = runtime_of(network).replay(path, RANDOM.integers(-128, 128, size=(3000, 4)).astype(np.int8))
    largest = np.sort(replay.outputs, axis=1)
    assert (largest[:, -1] == largest[:, -2]).any()
    assert (network.exactness, network.metadata["output"]) == ("exact", "ranks")
    assert replay.agrees.all()
    assert np.array_equal(replay.predicted, np.argmax(replay.reference, axis=1))


TAILS: dict[str, Callable[[Graph, str], str]] = {
    "two convolutions": lambda g, x: spread(g, g.node("Relu", spread(g, x, 6)), 3, 6),
    "moved between": lambda g, x: dense(g, flat(g, g.node("MaxPool", spread(g, x, 6), kernel_shape=[2, 2])), 5, 6 * 25),
    "residual": lambda g, x: (lambda y: g.node("Add", spread(g, y, 4), y))(g.node("Relu", spread(g, x, 4))),
    "three dense layers": lambda g, x: dense(g, g.node("Tanh", dense(g, dense(g, flat(g, x), 7, 144), 6, 7)), 5, 6),
}


def flat(g: Graph, x: str) -> str:
    return g.node("Flatten", x)


def dense(g: Graph, x: str, outputs: int, inputs: int) -> str:
    limit = 1.5 * inputs**-0.5
    return g.node("Gemm", x, *(g.constant(numbers(-limit, limit, *size)) for size in ((outputs, inputs), (outputs,))), transB=1)


def spread(g: Graph, x: str, channels: int, source: int = 4) -> str:
    """A convolution whose scales differ from channel to channel."""
    weight = numbers(-0.3, 0.3, channels, source, 3, 3) * numbers(0.5, 2, channels, 1, 1, 1)
    return g.node("Conv", x, g.constant(weight), pads=[1] * 4)


@pytest.mark.parametrize("name", TAILS)
def test_layers_in_float_one_after_the_other(tmp_path: Path, name: str) -> None:
    graph = Graph((4, 6, 6))
    path = graph.save(graph.requantized(TAILS[name](graph, graph.dequantized("x")), 0.05), tmp_path / "model.onnx")
    network = load_onnx(path, allow_float_islands=True)
    codes = RANDOM.integers(-128, 128, size=(300, 4, 6, 6)).astype(np.int8)
    replay = runtime_of(network).replay(path, codes)
    low, high = evaluate_interval(network, codes)
    assert replay.agrees.all()
    assert len(np.unique(replay.outputs)) > 20
    assert (high - low).mean() < 5


def test_scores_of_layers_in_float(tmp_path: Path) -> None:
    """A network whose last layers were left out of the quantization."""
    graph = Graph((12,))
    path = graph.save(
        dense(graph, graph.node("Relu", dense(graph, graph.dequantized("x"), 3, 12)), 5, 3),
        tmp_path / "model.onnx",
        kind="float32",
    )
    with pytest.raises(UnsupportedModelError, match=r"Gemm.*--allow-float-islands"):
        load_onnx(path)
    network = load_onnx(path, allow_float_islands=True)
    replay = runtime_of(network).replay(path, RANDOM.integers(-128, 128, size=(3000, 12)).astype(np.int8))
    low, high = evaluate_interval(network, replay.codes)
    assert replay.agrees.all()
    assert (high - low).mean() < 3


def test_what_has_numbers_a_channel_is_moved(tmp_path: Path) -> None:
    graph = Graph((CHANNELS, 4, 4))
    y = graph.node("MaxPool", normalized(graph, graph.dequantized("x")), kernel_shape=[2, 2])
    path = graph.save(graph.requantized(graph.node("Flatten", y), 0.02), tmp_path / "model.onnx")
    network = load_onnx(path)
    replay = runtime_of(network).replay(path, RANDOM.integers(-128, 128, size=(500, CHANNELS, 4, 4)).astype(np.int8))
    assert network.exactness == "exact"
    assert replay.agrees.all()
