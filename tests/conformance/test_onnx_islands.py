"""Float islands: the real onnxruntime, and the standard's reference implementation, stay within the enclosures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from onnx import helper

from qertify.errors import InvalidInputError, UnsupportedModelError
from qertify.importers.onnx_quantized import load_onnx
from qertify.network.evaluate import evaluate, evaluate_interval
from qertify.options import Options
from qertify.queries.robustness import local_robustness, verify
from qertify.result import Verdict
from qertify.runtimes.base import runner, runtime_of
from tests.conformance.onnx_models import NETWORKS, FloatNetwork, model_of, quantized, save

RANDOM = np.random.default_rng(0)
SHAPE = (4, 6, 6)


class Graph:
    """Codes of type int8 → DequantizeLinear → float operators → QuantizeLinear → codes; int8 stays in float in onnxruntime."""

    def __init__(self, shape: tuple[int, ...] = SHAPE) -> None:
        self.random = np.random.default_rng(1)
        self.shape, self.nodes, self.constants = shape, [], {}

    def node(self, op: str, *operands: str, domain: str = "", **attributes: Any) -> str:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(operands), [name], name=name, domain=domain, **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def dequantized(self, codes: str, scale: float = 0.0371, zero_point: int = -7) -> str:
        return self.node("DequantizeLinear", codes, self.constant(np.float32(scale)), self.constant(np.int8(zero_point)))

    def requantized(self, x: str, scale: float, zero_point: int = 3) -> str:
        return self.node("QuantizeLinear", x, self.constant(np.float32(scale)), self.constant(np.int8(zero_point)))

    def weight(self, *shape: int) -> str:
        scales = self.random.uniform(0.001, 0.01, size=shape[0]).astype(np.float32)
        codes, zeros = self.random.integers(-127, 128, size=shape).astype(np.int8), np.zeros(shape[0], dtype=np.int8)
        return self.node("DequantizeLinear", *map(self.constant, (codes, scales, zeros)), axis=0)

    def bias(self, size: int) -> str:
        codes = self.random.integers(-5000, 5000, size=size).astype(np.int32)
        return self.node("DequantizeLinear", self.constant(codes), self.constant(np.float32(1e-4)))

    def save(self, output: str, path: Path, kind: str = "int8") -> Path:
        return save(model_of(self.nodes, {"x": ("int8", ["n", *self.shape])}, (output, kind), self.constants, 19), path)


def convolution(g: Graph, x: str, **attributes: Any) -> str:
    return g.node("Conv", x, g.weight(5, 4 // attributes.get("group", 1), 3, 3), g.bias(5), **attributes)


def flat(g: Graph, x: str) -> str:
    return g.node("Flatten", x)


def residual(g: Graph, x: str) -> str:
    return g.node("Relu", g.node("Add", g.node("Conv", x, g.weight(4, 4, 1, 1), g.bias(4)), x))


def two_convolutions(g: Graph, x: str) -> str:
    return g.node("Add", *(g.node("Conv", x, g.weight(4, 4, 1, 1), g.bias(4)) for _ in range(2)))


def gated(g: Graph, x: str) -> str:
    pooled = g.requantized(g.node("GlobalAveragePool", x), 0.02, -5)
    return g.node("Mul", x, g.dequantized(pooled, 0.02, -5))


def after_relu(g: Graph, x: str) -> str:
    """A convolution of a clamped tensor: its numbers are those of other codes."""
    return g.node("Conv", g.node("Relu", x), g.weight(4, 4, 1, 1), g.bias(4))


def after_doubling(g: Graph, x: str) -> str:
    """A convolution of numbers that are no codes' own."""
    odd = g.node("Mul", x, g.constant(np.float32(1.2345)))
    return g.node("Conv", g.node("Add", odd, g.constant(np.float32(0.017))), g.weight(4, 4, 1, 1), g.bias(4))


def float_weights(g: Graph, x: str) -> str:
    return g.node("Conv", x, g.constant(g.random.normal(size=(4, 4, 1, 1)).astype(np.float32)))


def biased_product(g: Graph, x: str) -> str:
    weight = g.constant((g.random.normal(size=(144, 5)) * 0.1).astype(np.float32))
    product = g.node("MatMul", flat(g, x), weight)
    return g.node("Add", product, g.constant(g.random.normal(size=5).astype(np.float32)))


ISLANDS: dict[str, tuple[Any, float]] = {
    "convolution": (lambda g, x: convolution(g, x, pads=[1, 1, 1, 1]), 0.05),
    "strided": (lambda g, x: convolution(g, x, strides=[2, 2], pads=[1, 0, 0, 1]), 0.05),
    "dilated": (lambda g, x: convolution(g, x, dilations=[2, 2]), 0.05),
    "clipped": (lambda g, x: g.node("Clip", convolution(g, x), g.constant(np.float32(0)), g.constant(np.float32(3))), 0.03),
    "pooled": (
        lambda g, x: g.node("MaxPool", g.dequantized(g.requantized(convolution(g, x), 0.05)), kernel_shape=[2, 2]),
        0.05,
    ),
    "joined": (lambda g, x: g.node("Concat", x, g.dequantized(g.requantized(x, 0.05)), axis=1), 0.06),
    "gemm": (lambda g, x: g.node("Gemm", flat(g, x), g.weight(5, 144), g.bias(5), transB=1), 0.1),
    "matmul": (biased_product, 0.1),
    "average": (lambda g, x: g.node("AveragePool", x, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]), 0.03),
    "padded average": (
        lambda g, x: g.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        0.03,
    ),
    "global average": (lambda g, x: g.node("GlobalAveragePool", x), 0.03),
    "mean": (lambda g, x: g.node("ReduceMean", x, g.constant(np.array([2, 3])), keepdims=0), 0.01),
    "residual": (residual, 0.05),
    "two convolutions": (two_convolutions, 0.05),
    "gated": (gated, 0.05),
    "after ReLU": (after_relu, 0.05),
    "after arithmetic": (after_doubling, 0.05),
    "float weights": (float_weights, 0.05),
}


def built(name: str, path: Path) -> Path:
    make, scale = ISLANDS[name]
    graph = Graph()
    x = make(graph, graph.dequantized("x"))
    return graph.save(graph.requantized(x, scale), path)


@pytest.mark.parametrize(("runtime", "rows"), [("onnxruntime", 1500), ("onnx-spec", 12)])
@pytest.mark.parametrize("name", ISLANDS)
def test_the_runtime_stays_within_the_enclosure(tmp_path: Path, name: str, runtime: str, rows: int) -> None:
    path = built(name, tmp_path / "model.onnx")
    network = load_onnx(path, runtime=runtime, allow_float_islands=True)
    codes = RANDOM.integers(-128, 128, size=(rows, *SHAPE)).astype(np.int8)
    codes[: rows // 3] = codes[: rows // 3, :, :1, :1]  # sums of equal numbers reach far
    replay = runtime_of(network).replay(path, codes)
    low, high = evaluate_interval(network, codes)
    assert replay.agrees.all()
    assert len(np.unique(replay.outputs)) > 10, "the inputs hardly move the outputs"
    assert (high - low).mean() < 0.3, "the enclosure is wide"
    if network.exactness == "enclosure":
        assert json.loads(network.metadata["enclosed"])
    assert network.runtime_profile == runtime


def test_ties_of_averages_need_an_enclosure(tmp_path: Path) -> None:
    """onnxruntime rounds some ties of QLinearAveragePool up, others down: neither staircase alone would do."""
    graph = Graph((8, 6, 6))
    operands = [graph.constant(np.float32(0.1)), graph.constant(np.int8(2)), graph.constant(np.float32(0.1))]
    y = graph.node(
        "QLinearAveragePool", "x", *operands, graph.constant(np.int8(2)), domain="com.microsoft", kernel_shape=[2, 2]
    )
    path = graph.save(y, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedModelError, match="--allow-float-islands"):
        load_onnx(path)
    network = load_onnx(path, allow_float_islands=True)
    codes = RANDOM.integers(-128, 128, size=(3000, 8, 6, 6)).astype(np.int8)
    replay = runtime_of(network).replay(path, codes)
    assert replay.agrees.all()
    low, high = evaluate_interval(network, codes)
    assert (replay.outputs > low).any()
    assert (replay.outputs < high).any()


def test_sums_of_two_tensors_stay_exact(tmp_path: Path) -> None:
    graph = Graph()
    other = graph.dequantized(graph.requantized(graph.node("Tanh", graph.dequantized("x")), 0.01, 1), 0.01, 1)
    path = graph.save(graph.requantized(graph.node("Relu", graph.node("Sub", graph.dequantized("x"), other)), 0.04),
                      tmp_path / "model.onnx")  # fmt: skip
    network = load_onnx(path)
    assert network.exactness == "exact"
    codes = RANDOM.integers(-128, 128, size=(2000, *SHAPE)).astype(np.int8)
    assert runtime_of(network).replay(path, codes).agrees.all()


@pytest.mark.parametrize(("net", "form"), [("residual", "QDQ"), ("mobile", "QDQ")])
def test_whole_networks_stay_within(tmp_path: Path, net: str, form: str) -> None:
    path = quantized(NETWORKS[net](), tmp_path / "model.onnx", form, "QInt8", "QInt8", True)
    network = load_onnx(path, allow_float_islands=True)
    x = np.random.default_rng(3).normal(size=(1500, *network.input_shape)).astype(np.float32)
    replay = runtime_of(network).replay(path, x)
    assert network.exactness == "enclosure"
    assert replay.agrees.all()
    assert (replay.ordered != evaluate(network, replay.codes)).any(), "the enclosure was not needed"


def small(seed: int = 0) -> FloatNetwork:
    net = FloatNetwork(seed, [1, 6, 6])
    x = net.add("Relu", net.convolution("x", 3, 1, 3))
    x = net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    net.output = net.dense(net.add("Flatten", x), 4, 27)
    return net


def test_verdicts_on_an_enclosure(tmp_path: Path) -> None:
    """Robust by proof, non-robust by runs of onnxruntime; the two never contradict each other."""
    path = quantized(small(), tmp_path / "model.onnx", "QDQ", "QUInt8", "QInt8", True)
    network = load_onnx(path, allow_float_islands=True)
    runtime, run = runtime_of(network), runner(network, path)
    seen = set()
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(1, 1, 6, 6)).astype(np.float32)
        centre = runtime.quantize_input(x)[0]
        for radius in (1, 12):
            result = verify(local_robustness(network, centre, radius), Options(timeout=2), run=run)
            seen.add(result.verdict)
            assert result.exactness == "enclosure"
            if result.verdict is Verdict.NON_ROBUST:
                assert result.counterexample is not None
                codes = np.array(result.counterexample.levels).reshape(1, 1, 6, 6)
                outputs = runtime.replay(path, runtime.real_input(codes)).ordered[0]
                assert int(np.argmax(outputs)) != result.label
            assert verify(local_robustness(network, centre, radius), Options(timeout=0.5)).verdict in (
                Verdict.ROBUST,
                Verdict.UNKNOWN,
            )
    assert {Verdict.ROBUST, Verdict.NON_ROBUST} <= seen


def test_an_unknown_runtime_is_named(tmp_path: Path) -> None:
    path = built("gemm", tmp_path / "model.onnx")
    with pytest.raises(InvalidInputError, match="'torch-fbgemm'"):
        load_onnx(path, runtime="torch-fbgemm")


def test_quantized_operators_are_not_in_the_standard(tmp_path: Path) -> None:
    path = quantized(small(), tmp_path / "model.onnx", "QOperator", "QUInt8", "QInt8", True)
    with pytest.raises(UnsupportedModelError, match="onnx-spec covers QDQ files"):
        load_onnx(path, runtime="onnx-spec")
