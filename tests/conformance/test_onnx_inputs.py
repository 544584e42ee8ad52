"""Real inputs that a model normalizes before its first quantizer: the same codes as onnxruntime, and boxes exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from qertify.cli.main import run as command
from qertify.cli.supervisor import Direct
from qertify.errors import InvalidInputError, UnsupportedModelError
from qertify.importers.onnx_quantized import load_onnx
from qertify.network.storage import load as load_network
from qertify.network.storage import save as save_network
from qertify.runtimes.base import runtime_of
from qertify.search.comparison import EquivalenceQuery
from qertify.search.paired_input import grid
from qertify.specification.region import IntegerBox
from tests.conformance.onnx_models import model_of, run, save
from tests.conformance.test_onnx_islands import Graph

SHAPE = (3, 4, 5)
RANDOM = np.random.default_rng(3)
MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32).reshape(3, 1, 1)
DEVIATION = np.array([58.395, 57.12, 57.375], dtype=np.float32).reshape(3, 1, 1)


class RealGraph(Graph):
    """Graphs with a real input "x"."""

    def save(self, output: str, path: Path, kind: str = "int8", source: str = "float32") -> Path:
        return save(model_of(self.nodes, {"x": (source, ["n", *self.shape])}, (output, kind), self.constants, 19), path)


def standardized(g: Graph, x: str) -> str:
    return g.node("Div", g.node("Sub", x, g.constant(MEAN)), g.constant(DEVIATION))


def a_channel(g: Graph, x: str, index: int) -> str:
    bounds = [g.constant(np.array([end])) for end in (index, index + 1, 1)]
    part = g.node("Slice", x, *bounds)
    scaled = g.node("Mul", part, g.constant(np.float32(0.229 / 0.5 / 50 + index / 1000)))
    return g.node("Add", scaled, g.constant(np.float32((0.485 - 0.5) / 0.5)))


def folded(g: Graph, x: str) -> str:
    parameters = [RANDOM.uniform(0.5, 2, 3), RANDOM.normal(size=3), MEAN.reshape(-1), DEVIATION.reshape(-1) ** 2]
    return g.node("BatchNormalization", x, *(g.constant(p.astype(np.float32)) for p in parameters), epsilon=1e-3)


NORMALIZATIONS: dict[str, Callable[[Graph, str], str]] = {
    "standardized": standardized,
    "reversed, then standardized": lambda g, x: standardized(
        g, g.node("Slice", x, *(g.constant(np.array([end])) for end in (-1, -9, 1, -1)))
    ),
    "channels last": lambda g, x: standardized(
        g, g.node("Transpose", g.node("Reshape", x, g.constant(np.array([-1, 4, 5, 3]))), perm=[0, 3, 1, 2])
    ),
    "by factors": lambda g, x: g.node("Add", g.constant(np.float32([-1.8])), g.node("Mul", g.constant(np.float32(1 / 80)), x)),
    "a mean image": lambda g, x: g.node(
        "Mul", g.node("Sub", x, g.constant(RANDOM.uniform(100, 140, SHAPE).astype(np.float32))), g.constant(np.float32(0.02))
    ),
    "channel by channel": lambda g, x: g.node("Concat", *(a_channel(g, x, i) for i in range(3)), axis=1),
    "batch normalization": folded,
    "of a part only": lambda g, x: g.node(
        "Mul", g.node("Slice", x, *(g.constant(np.array([end])) for end in (0, 2, 1))), g.constant(np.float32(0.02))
    ),
}


def made(path: Path, name: str) -> Path:
    graph = RealGraph(SHAPE)
    codes = graph.requantized(NORMALIZATIONS[name](graph, "x"), 0.0186, -14)
    return graph.save(codes, path)


def neighbours(x: np.ndarray) -> np.ndarray:
    """Float32 numbers around each number."""
    steps = [x, np.nextafter(x, np.float32(-np.inf)), np.nextafter(x, np.float32(np.inf))]
    steps += [np.nextafter(steps[1], np.float32(-np.inf)), np.nextafter(steps[2], np.float32(np.inf))]
    return np.concatenate(steps)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_codes_at_all_thresholds(tmp_path: Path, name: str) -> None:
    path = made(tmp_path / "model.onnx", name)
    network = load_onnx(path)
    runtime = runtime_of(network)
    centres = runtime.real_input(np.broadcast_to(np.arange(-128, 128)[:, None, None, None], (256, *SHAPE)))
    low, high = centres[:-1], centres[1:]  # the threshold between two codes, by bisection on the runtime's own codes
    for _ in range(40):
        middle = (low + (high - low) / 2).astype(np.float32)
        below = runtime.quantize_input(middle) == runtime.quantize_input(low)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    x = neighbours(np.concatenate([low, RANDOM.uniform(0, 255, (500, *SHAPE)).astype(np.float32)]))
    replay = runtime.replay(path, x)
    assert network.exactness == "exact"
    assert len(np.unique(replay.outputs)) == 256
    assert replay.agrees.all()
    assert np.array_equal(replay.outputs, run(path, x))


def test_boxes_of_real_inputs(tmp_path: Path) -> None:
    """The image of a box is exact: its ends are reached, and no float32 number outside of it gives their codes' outer side."""
    path = made(tmp_path / "model.onnx", "standardized")
    runtime = runtime_of(load_onnx(path))
    centre = RANDOM.uniform(20, 230, SHAPE).astype(np.float32)
    for radius in (0, 0.37, 4):
        low, high = ([Fraction(v) + sign * Fraction(radius) for v in centre.reshape(-1).tolist()] for sign in (-1, 1))
        low, high = (np.array(side, dtype=object).reshape(SHAPE) for side in (low, high))
        box = runtime.integer_image(low, high)
        for codes in (box.low, box.high, RANDOM.integers(box.low, box.high + 1)):
            real = runtime.real_input(codes, low, high)
            assert np.all((real >= low.astype(float)) & (real <= high.astype(float)))
            assert np.array_equal(run(path, real[None]).reshape(SHAPE), codes)
        inside = RANDOM.uniform(low.astype(float), high.astype(float), (300, *SHAPE)).astype(np.float32)
        inside = np.clip(inside, centre - np.float32(radius), centre + np.float32(radius))
        codes = run(path, inside).reshape(-1, *SHAPE)
        assert np.all((codes >= box.low) & (codes <= box.high))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda g: g.node("Sub", g.constant(np.float32(1)), "x"), "only constants"),
        (lambda g: g.node("Mul", "x", g.constant(np.float32(-2))), "positive"),
        (lambda g: g.node("Mul", "x", g.constant(np.float32(0))), "positive"),
        (lambda g: g.node("Add", "x", g.constant(np.float32(1e9))), "too close"),
        (lambda g: g.node("Div", "x", g.constant(np.float32(3e38))), "too large"),
        (lambda g: g.node("Add", "x", "x"), "only constants"),
        (lambda g: g.node("Sigmoid", "x"), "real input"),
        (lambda g: g.node("Sub", "x", g.constant(np.zeros((1, 1, 3, 4, 5), np.float32))), "does not fit"),
        (
            lambda g: g.node(
                "Sub", g.node("Pad", "x", g.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))), g.constant(np.float32(1))
            ),
            "padded",
        ),
        (lambda g: g.node("Concat", "x", g.node("Mul", "x", g.constant(np.float32(2))), axis=1), "several ways"),
    ],
)
def test_what_is_no_normalization(tmp_path: Path, make: Callable[[Graph], str], reason: str) -> None:
    graph = RealGraph(SHAPE)
    path = graph.save(graph.requantized(make(graph), 0.02), tmp_path / "model.onnx")
    with pytest.raises(UnsupportedModelError, match=reason):
        load_onnx(path)


def test_images_of_bytes_are_codes(tmp_path: Path) -> None:
    graph = RealGraph(SHAPE)
    x = standardized(graph, graph.node("Cast", "x", to=1))
    path = graph.save(graph.requantized(x, 0.0186, -14), tmp_path / "model.onnx", source="uint8")
    network = load_onnx(path)
    x = np.broadcast_to(np.arange(256)[:, None, None, None], (256, *SHAPE)).astype(np.uint8)
    assert network.metadata["input"] == "codes"
    assert runtime_of(network).replay(path, x).agrees.all()


@pytest.mark.parametrize(("radius", "verdict"), [("0.002", "robust"), ("12", "non_robust")])
def test_questions_in_the_domain_of_the_original(
    tmp_path: Path, radius: str, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of images of 0 … 255: the counterexample is such an image, and the runtime gives it another class."""
    path = classifier(tmp_path)
    image = RANDOM.uniform(0, 255, SHAPE).astype(np.float32)
    np.save(tmp_path / "x.npy", image[None])
    question = ["verify", str(path), "--input", f"{tmp_path / 'x.npy'}[0]", "--radius", radius, "--radius-unit", "real"]
    command([*question, "--allow-float-islands", "--cpu-class", "vnni", "--json"], Direct())
    result = json.loads(capsys.readouterr().out)
    assert result["verdict"] == verdict
    if verdict == "non_robust":
        moved = np.array(result["counterexample"]["input"], dtype=np.float32).reshape(1, *SHAPE)
        assert np.abs(moved - image).max() <= 12 + 1e-4
        assert np.argmax(run(path, moved)) != np.argmax(run(path, image[None]))


def classifier(folder: Path) -> Path:
    graph = RealGraph(SHAPE)
    x = graph.dequantized(graph.requantized(standardized(graph, "x"), 0.0186, -14), 0.0186, -14)
    y = graph.node("Gemm", graph.node("Flatten", x), graph.weight(4, 60), graph.bias(4), transB=1)
    return graph.save(graph.requantized(y, 0.011), folder / "model.onnx")


def test_saved_networks_keep_the_normalization(tmp_path: Path) -> None:
    network = load_onnx(made(tmp_path / "model.onnx", "a mean image"))
    save_network(network, tmp_path / "model.qnet")
    x = RANDOM.uniform(0, 255, (50, *SHAPE)).astype(np.float32)
    again = load_network(tmp_path / "model.qnet")
    assert again.digest == network.digest
    assert np.array_equal(runtime_of(again).quantize_input(x), runtime_of(network).quantize_input(x))


def test_two_models_must_normalize_alike(tmp_path: Path) -> None:
    network = load_onnx(classifier(tmp_path), allow_float_islands=True)
    codes = np.zeros(SHAPE, dtype=np.int64)
    inputs = grid(network, IntegerBox(codes, codes))
    assert EquivalenceQuery(network, network, inputs, top1=True).inputs is inputs
    other = {key: value for key, value in network.metadata.items() if key != "input_steps"}
    with pytest.raises(InvalidInputError, match="different codes"):
        EquivalenceQuery(replace(network, metadata=other), network, inputs, top1=True)
