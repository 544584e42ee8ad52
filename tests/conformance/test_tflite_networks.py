"""Whole TFLite networks: the reference evaluator and the real LiteRT give the same integers, under every resolver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra 'tflite' is not installed")

from qertify.importers.tflite_quantized import load_tflite
from qertify.network.network import Network
from qertify.runtimes.base import runtime_of
from qertify.runtimes.litert_writer import NONE, RELU, RELU6, RELU_N1_TO_1, SAME, VALID
from tests.conformance.tflite_models import NETWORKS, RUNTIMES, Layer, RandomNetwork, saved

MANY, FEW = 10_000, 500


def replayed(path: Path, network: Network, count: int):
    """Inputs of varied contrast and brightness, on the runtime and the evaluator."""
    random = np.random.default_rng(5)
    shape, per_input = (count, *network.input_shape), (count,) + (1,) * len(network.input_shape)
    noise = random.normal(size=shape) * random.choice([10, 40, 80], per_input) + random.normal(size=per_input) * 30
    middle = (network.input.low + network.input.high + 1) // 2
    codes = np.clip(np.rint(noise) + middle, network.input.low, network.input.high).astype(np.int64)
    runtime = runtime_of(network)
    return runtime.replay(path, runtime.real_input(codes))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(tmp_path: Path, name: str, per_channel: bool, runtime: str) -> None:
    path = saved(NETWORKS[name](0, per_channel), tmp_path / "model.tflite")
    network = load_tflite(path, runtime)
    assert network.runtime_profile == runtime
    replay = replayed(path, network, MANY if per_channel else FEW)
    assert np.count_nonzero(~replay.agrees) == 0
    assert np.median([len(np.unique(column)) for column in replay.outputs.T]) > 20, "the inputs hardly move the outputs"


def test_the_runtimes_differ(tmp_path: Path) -> None:
    """Otherwise one importer for all three would pass the tests above."""
    path = saved(NETWORKS["cnn"](), tmp_path / "model.tflite")
    outputs = [replayed(path, load_tflite(path, runtime), 2000).outputs for runtime in RUNTIMES]
    assert all(np.any(outputs[a] != outputs[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def small(build: Callable[[RandomNetwork], object]) -> Callable[[], bytes]:
    """A graph on an image of 7 × 5 pixels and 3 channels that ends in the tensor ``build`` returns."""

    def make() -> bytes:
        net = RandomNetwork(3)
        result = build(net)
        return net.writer.finish([0], [getattr(result, "index", result)])

    return make


def image(net: RandomNetwork) -> Layer:
    return net.input(7, 5, 3)


def again() -> Layer:
    """The network's input once more, for a graph that reads it twice."""
    return Layer(0, (1, 7, 5, 3), np.float32(0.05), 3)


def constant_operand(op: str, shape: tuple[int, ...], first: bool):
    def build(net: RandomNetwork):
        x = image(net)
        data = net.random.integers(-100, 100, shape).astype(np.int8)
        constant = net.writer.constant(data, 0.03, 5)
        y = net.tensor(x.shape, 0.07, -11)
        operands = [constant, x.index] if first else [x.index, constant]
        net.writer.operator(op, operands, [y.index], f"{op.title()}Options")
        return y

    return build


def broadcast_operand(op: str):
    def build(net: RandomNetwork):
        x = image(net)
        return net.two(op, x, net.mean(x, keeps=True))

    return build


def byte_ends(net: RandomNetwork):
    """uint8 in, uint8 out, as converters write on request."""
    source = net.writer.tensor((1, 7, 5, 3), 0.05, 131, np.uint8)
    x = net.tensor((1, 7, 5, 3), 0.05, 3)
    net.writer.operator("QUANTIZE", [source], [x.index], "QuantizeOptions")
    y = net.dense(net.convolution(x, 5, 3), 6)
    target = net.writer.tensor(y.shape, y.scale, y.zero_point + 128, np.uint8)
    net.writer.operator("QUANTIZE", [y.index], [target], "QuantizeOptions")
    return target


def rows_of_dense(net: RandomNetwork):
    """A fully connected layer over the channels of every pixel."""
    x = image(net)
    values = {"keepNumDims": True, "fusedActivationFunction": RELU}
    return net.linear("FULLY_CONNECTED", x, (6, 3), 0, (1, 7, 5, 6), "FullyConnectedOptions", **values)


def sliced(net: RandomNetwork):
    """Every other row from the end, one column, the last two channels."""
    x = image(net)
    ranges = [net.writer.constant(np.array(part, np.int32)) for part in ([0, -1, 2, 1], [0, -8, 3, 0], [1, -2, 1, 1])]
    y = net.tensor((1, 4, 2), x.scale, x.zero_point)
    masks = {"beginMask": 1, "endMask": 0b1001, "shrinkAxisMask": 0b0100}
    net.writer.operator("STRIDED_SLICE", [x.index, *ranges], [y.index], "StridedSliceOptions", **masks)
    return y


def flattened_by_its_shape(net: RandomNetwork):
    """What converters write for a Flatten behind an open batch: its size is read off the shape."""
    x, writer = net.convolution(image(net), 4, 3), net.writer
    shape, size, target = (writer.tensor(s, None, 0, np.int32) for s in ((4,), (1,), (2,)))
    writer.operator("SHAPE", [x.index], [shape], "ShapeOptions", outType=2)
    ranges = [writer.constant(np.array([number], np.int32)) for number in (0, 1, 1)]
    writer.operator("STRIDED_SLICE", [shape, *ranges], [size], "StridedSliceOptions")
    operands = [size, writer.constant(np.array([-1], np.int32))]
    writer.operator("CONCATENATION", operands, [target], "ConcatenationOptions", axis=0)
    y = net.tensor((1, 140), x.scale, x.zero_point)
    writer.operator("RESHAPE", [x.index, target], [y.index], "ReshapeOptions")
    return net.dense(y, 5)


def greatest_of_the_image(net: RandomNetwork):
    x = net.convolution(image(net), 5, 1)
    y = net.tensor((1, 5), x.scale, x.zero_point)
    axes = net.writer.constant(np.array([1, 2], np.int32))
    net.writer.operator("REDUCE_MAX", [x.index, axes], [y.index], "ReducerOptions", keepDims=False)
    return y


def moved(
    op: str, options: str, constants: list[Any], shapes: list[tuple[int, ...]], taken: int = 0, at: int = 0, **values: Any
):
    """One of the results of an operator that moves elements; ``at``: position of the moved operand."""

    def build(net: RandomNetwork):
        x = net.convolution(image(net), 4, 3)
        results = [net.tensor(shape, x.scale, x.zero_point) for shape in shapes]
        operands = [net.writer.constant(np.array(numbers, np.int32)) for numbers in constants]
        operands.insert(at, x.index)
        net.writer.operator(op, operands, [y.index for y in results], options, **values)
        return results[taken]

    return build


SMALL = {
    "enlarged": moved("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions", [[14, 15]], [(1, 14, 15, 4)]),
    "enlarged from the centres": moved(
        "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions", [[11, 3]], [(1, 11, 3, 4)], halfPixelCenters=True
    ),
    "split": moved("SPLIT", "SplitOptions", [3], [(1, 7, 5, 2)] * 2, 1, 1, numSplits=2),
    "split in parts": moved("SPLIT_V", "SplitVOptions", [[3, 4], 1], [(1, 3, 5, 4), (1, 4, 5, 4)], 1, numSplits=2),
    "unpacked": moved("UNPACK", "UnpackOptions", [], [(1, 7, 4)] * 5, 3, num=5, axis=2),
    "gathered": moved("GATHER", "GatherOptions", [[3, 0, 3]], [(1, 7, 5, 3)], axis=3),
    "cut": moved("SLICE", "SliceOptions", [[0, 1, 2, 1], [1, 5, -1, 2]], [(1, 5, 3, 2)]),
    "depth to space": moved("DEPTH_TO_SPACE", "DepthToSpaceOptions", [], [(1, 14, 10, 1)], blockSize=2),
    "mirrored": moved("MIRROR_PAD", "MirrorPadOptions", [[[0, 0], [2, 1], [0, 3], [0, 0]]], [(1, 10, 8, 4)], mode=0),
    "sliced": sliced,
    "flattened by its shape": flattened_by_its_shape,
    "greatest of the image": greatest_of_the_image,
    "dilated": lambda net: net.convolution(image(net), 5, 3, dilation=2),
    "strides": lambda net: net.convolution(image(net), 4, 2, 2, SAME, RELU_N1_TO_1),
    "valid": lambda net: net.convolution(image(net), 4, 4, 3, VALID, NONE),
    "depthwise remainder": lambda net: net.depthwise(net.convolution(image(net), 11, 1), 3, 2, 1, RELU),
    "depthwise multiplier": lambda net: net.depthwise(image(net), 5, 1, 3, NONE),
    "average, padded": lambda net: net.pool("AVERAGE_POOL_2D", image(net), 3, 2, SAME),
    "average, valid": lambda net: net.pool("AVERAGE_POOL_2D", image(net), 4, 1, VALID),
    "maximum, padded": lambda net: net.pool("MAX_POOL_2D", image(net), 3, 2, SAME),
    "mean, axes kept": lambda net: net.mean(net.convolution(image(net), 21, 1), keeps=True),
    "mean, axes dropped": lambda net: net.mean(image(net), keeps=False),
    "transposed": lambda net: net.dense(net.transpose(image(net), 0, 3, 1, 2), 5),
    "reshaped": lambda net: net.convolution(net.reshape(image(net), 5, 3, 7), 4, 3),
    "three axes": lambda net: net.dense(net.transpose(net.reshape(image(net), 35, 3), 0, 2, 1), 5),
    "padded": lambda net: net.convolution(net.pad(image(net), 2, 1), 4, 3, padding=VALID),
    "along height": lambda net: net.concatenate(image(net), again(), 1),
    "along width": lambda net: net.concatenate(image(net), again(), 2),
    "along channels": lambda net: net.concatenate(image(net), again(), -1),
    "subtraction": lambda net: net.two("SUB", net.convolution(image(net), 4, 1), net.convolution(again(), 4, 3), RELU6),
    "sum with a constant": constant_operand("ADD", (1, 7, 5, 3), False),
    "sum with a row of constants": constant_operand("ADD", (3,), True),
    "difference with a constant": constant_operand("SUB", (1, 1, 1, 3), True),
    "product with a constant": constant_operand("MUL", (1, 1, 1, 1), False),
    "product with a row of constants": constant_operand("MUL", (3,), False),
    "broadcast sum": broadcast_operand("ADD"),
    "broadcast product": broadcast_operand("MUL"),
    "bytes": byte_ends,
    "rows": rows_of_dense,
    "clamp alone": lambda net: net.unary("RELU6", image(net), 0.03, -100),
    "tangent": lambda net: net.unary("TANH", net.convolution(image(net), 4, 1, activation=NONE), 1 / 128, 0),
    "requantized": lambda net: net.unary("QUANTIZE", image(net), 0.037, 19, "QuantizeOptions"),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", SMALL)
def test_small_graphs(tmp_path: Path, name: str, runtime: str) -> None:
    path = saved(small(SMALL[name])(), tmp_path / "model.tflite")
    network = load_tflite(path, runtime)
    replay = replayed(path, network, FEW)
    assert np.count_nonzero(~replay.agrees) == 0
    assert len(np.unique(replay.outputs)) > 3
