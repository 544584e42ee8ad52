"""Small int8 TFLite models made on the spot from random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.runtimes.litert import PROFILES, RESOLVERS, _delegated, _interpreter, run
from qertify.runtimes.litert_writer import NONE, RELU, RELU6, SAME, VALID, Writer

F = np.float32
Shape = tuple[int, ...]
RUNTIMES = tuple(PROFILES)


def execute(content: bytes, runtime: str, x: ArrayLike) -> NDArray[Any]:
    """What LiteRT computes under a profile's resolver, batches row by row, flattened to (batch, outputs)."""
    return run(content, RESOLVERS[PROFILES[runtime]], np.asarray(x))


def execute_all(content: bytes, runtime: str, *operands: NDArray[Any]) -> NDArray[Any]:
    """One run with several inputs, in the file's own shapes."""
    interpreter = _interpreter(content, RESOLVERS[PROFILES[runtime]])
    for detail, operand in zip(interpreter.get_input_details(), operands, strict=True):
        interpreter.set_tensor(detail["index"], operand)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def is_delegated(content: bytes) -> bool:
    return bool(_delegated(_interpreter(content, "AUTO")))


def single(
    op: str,
    inputs: list[tuple[Any, ...]],
    output: tuple[Any, ...],
    options: str = "",
    constants: tuple[Any, ...] = (),
    **values: Any,
) -> bytes:
    """One operator; inputs and output as (shape, scale, zero point[, type]), constants as arrays or (array, scale)."""
    writer = Writer()
    sources = [writer.tensor(*item) for item in inputs]
    fixed = [writer.constant(*(item if isinstance(item, tuple) else (item,))) for item in constants]
    target = writer.tensor(*output)
    writer.operator(op, sources + fixed, [target], options, **values)
    return writer.finish(sources, [target])


@dataclass
class Layer:
    """A tensor of a network under construction."""

    index: int
    shape: Shape
    scale: np.float32
    zero_point: int


@dataclass
class RandomNetwork:
    """Operators with random weights; output scales such that codes use their range."""

    seed: int
    per_channel: bool = True
    writer: Writer = field(default_factory=Writer)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def tensor(self, shape: Shape, scale: float | np.floating[Any], zero_point: int) -> Layer:
        return Layer(self.writer.tensor(shape, F(scale), zero_point), shape, F(scale), zero_point)

    def input(self, *shape: int) -> Layer:
        return self.tensor((1, *shape), 0.05, 3)

    def real_input(self, *shape: int) -> tuple[int, Layer]:
        """A float32 input, and its codes."""
        source = self.writer.tensor((1, *shape), None, 0, np.float32)
        codes = self.tensor((1, *shape), 0.05, 3)
        self.writer.operator("QUANTIZE", [source], [codes.index], "QuantizeOptions")
        return source, codes

    def dequantized(self, x: Layer) -> int:
        target = self.writer.tensor(x.shape, None, 0, np.float32)
        self.writer.operator("DEQUANTIZE", [x.index], [target], "DequantizeOptions")
        return target

    def linear(
        self,
        op: str,
        x: Layer,
        weight: Shape,
        axis: int,
        shape: Shape,
        options: str,
        contrast: float = 1.0,
        **values: Any,
    ) -> Layer:
        """One linear operator; more contrast for an input that hardly varies."""
        channels, fan_in = weight[axis], int(np.prod(weight)) // weight[axis]
        activation = values.get("fusedActivationFunction", NONE)
        scales = self.random.uniform(0.5, 1, channels if self.per_channel else 1) * 0.01
        data = self.random.integers(-127, 128, weight).astype(np.int8)
        spread = float(x.scale * scales.mean() * np.sqrt(fan_in) * 74 * 50)
        bias = self.random.normal(size=channels) * 0.3 * spread / (x.scale * scales)
        w = self.writer.constant(data, scales, 0, axis)
        b = self.writer.constant(bias.astype(np.int32), x.scale * scales.astype(F))
        y = self.tensor(
            shape, spread / 45, int(self.random.integers(-128, -90)) if activation else int(self.random.integers(-20, 20))
        )
        if activation == RELU6:
            y.scale = F(6 / 255)
            self.writer.tensors[y.index].quantization.scale = np.array([y.scale])
            factor = F(3 / spread)
            for index in (w, b):
                quantization = self.writer.tensors[index].quantization
                quantization.scale = quantization.scale * factor
        self.writer.operator(op, [x.index, w, b], [y.index], options, **values)
        return y

    def dense(self, x: Layer, outputs: int, activation: int = NONE, contrast: float = 1.0) -> Layer:
        fan_in = int(np.prod(x.shape))
        values = {"fusedActivationFunction": activation, "contrast": contrast}
        return self.linear("FULLY_CONNECTED", x, (outputs, fan_in), 0, (1, outputs), "FullyConnectedOptions", **values)

    def convolution(
        self,
        x: Layer,
        channels: int,
        size: int,
        stride: int = 1,
        padding: int = SAME,
        activation: int = RELU,
        dilation: int = 1,
    ) -> Layer:
        shape = (1, *self._spatial(x, size, stride, padding, dilation), channels)
        values = {"padding": padding, "strideW": stride, "strideH": stride, "fusedActivationFunction": activation}
        values |= {"dilationHFactor": dilation, "dilationWFactor": dilation}
        return self.linear("CONV_2D", x, (channels, size, size, x.shape[3]), 0, shape, "Conv2DOptions", **values)

    def depthwise(self, x: Layer, size: int, stride: int = 1, multiplier: int = 1, activation: int = RELU6) -> Layer:
        channels = x.shape[3] * multiplier
        shape = (1, *self._spatial(x, size, stride, SAME), channels)
        values = {"padding": SAME, "strideW": stride, "strideH": stride, "fusedActivationFunction": activation}
        values |= {"depthMultiplier": multiplier}
        return self.linear("DEPTHWISE_CONV_2D", x, (1, size, size, channels), 3, shape, "DepthwiseConv2DOptions", **values)

    def _spatial(self, x: Layer, size: int, stride: int, padding: int, dilation: int = 1) -> tuple[int, ...]:
        reach = dilation * (size - 1) + 1
        return tuple(-(-n // stride) if padding == SAME else (n - reach) // stride + 1 for n in x.shape[1:3])

    def pool(self, op: str, x: Layer, size: int, stride: int, padding: int = VALID) -> Layer:
        y = self.tensor((1, *self._spatial(x, size, stride, padding), x.shape[3]), x.scale, x.zero_point)
        values = {"padding": padding, "strideW": stride, "strideH": stride, "filterWidth": size, "filterHeight": size}
        self.writer.operator(op, [x.index], [y.index], "Pool2DOptions", **values)
        return y

    def mean(self, x: Layer, keeps: bool) -> Layer:
        y = self.tensor(
            (1, 1, 1, x.shape[3]) if keeps else (1, x.shape[3]), x.scale * F(0.4), int(self.random.integers(-60, 0))
        )
        axes = self.writer.constant(np.array([1, 2], np.int32))
        self.writer.operator("MEAN", [x.index, axes], [y.index], "ReducerOptions", keepDims=keeps)
        return y

    def two(self, op: str, a: Layer, b: Layer, activation: int = NONE) -> Layer:
        scale = a.scale / 2 if op == "MUL" else np.hypot(a.scale, b.scale) * F(0.6)
        y = self.tensor(a.shape, scale, int(self.random.integers(-40, 20)))
        self.writer.operator(op, [a.index, b.index], [y.index], f"{op.title()}Options", fusedActivationFunction=activation)
        return y

    def unary(self, op: str, x: Layer, scale: float, zero_point: int, options: str = "", **values: Any) -> Layer:
        y = self.tensor(x.shape, scale, zero_point)
        self.writer.operator(op, [x.index], [y.index], options, **values)
        return y

    def reshape(self, x: Layer, *shape: int) -> Layer:
        y = self.tensor((1, *shape), x.scale, x.zero_point)
        target = self.writer.constant(np.array([1, *shape], np.int32))
        self.writer.operator("RESHAPE", [x.index, target], [y.index], "ReshapeOptions", newShape=[1, *shape])
        return y

    def pad(self, x: Layer, before: int, after: int) -> Layer:
        shape = (1, x.shape[1] + before + after, x.shape[2] + before + after, x.shape[3])
        y = self.tensor(shape, x.scale, x.zero_point)
        widths = self.writer.constant(np.array([[0, 0], [before, after], [before, after], [0, 0]], np.int32))
        self.writer.operator("PAD", [x.index, widths], [y.index], "PadOptions")
        return y

    def transpose(self, x: Layer, *order: int) -> Layer:
        y = self.tensor(tuple(x.shape[axis] for axis in order), x.scale, x.zero_point)
        axes = self.writer.constant(np.array(order, np.int32))
        self.writer.operator("TRANSPOSE", [x.index, axes], [y.index], "TransposeOptions")
        return y

    def concatenate(self, a: Layer, b: Layer, axis: int) -> Layer:
        shape = tuple(n + m if i == axis % len(a.shape) else n for i, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)))
        y = self.tensor(shape, a.scale, a.zero_point)
        self.writer.operator("CONCATENATION", [a.index, b.index], [y.index], "ConcatenationOptions", axis=axis)
        return y


def mlp(seed: int = 0, per_channel: bool = False) -> bytes:
    """Real inputs, int8 outputs."""
    net = RandomNetwork(seed, per_channel)
    source, x = net.real_input(20)
    x = net.dense(net.dense(x, 33, RELU), 24, RELU)
    return net.writer.finish([source], [net.dense(x, 10).index])


def cnn(seed: int = 0, per_channel: bool = True) -> bytes:
    """Convolutions, maximum and average pooling, a flatten whose order of axes matters."""
    net = RandomNetwork(seed, per_channel)
    x = net.input(11, 9, 2)
    x = net.pool("MAX_POOL_2D", net.convolution(x, 6, 3), 2, 2, SAME)
    x = net.convolution(net.pad(x, 1, 0), 10, 3, 2, VALID)
    x = net.pool("AVERAGE_POOL_2D", x, 2, 1, SAME)
    x = net.reshape(x, int(np.prod(x.shape)))
    return net.writer.finish([0], [net.dense(x, 10).index])


def residual(seed: int = 0, per_channel: bool = True) -> bytes:
    """Two residual blocks, one of them with a projection, and a mean over the image."""
    net = RandomNetwork(seed, per_channel)
    x = net.convolution(net.input(8, 8, 2), 8, 3)
    y = net.convolution(net.convolution(x, 8, 3), 8, 3, activation=NONE)
    x = net.two("ADD", y, x, RELU)
    y = net.convolution(net.convolution(x, 12, 3, 2), 12, 3, activation=NONE)
    x = net.two("ADD", net.convolution(x, 12, 1, 2, activation=NONE), y, RELU)
    return net.writer.finish([0], [net.dense(net.mean(x, keeps=False), 10, contrast=5).index])


def mobile(seed: int = 0, per_channel: bool = True) -> bytes:
    """An inverted residual block with depthwise convolutions and ReLU6, a gate, real inputs and outputs."""
    net = RandomNetwork(seed, per_channel)
    source, x = net.real_input(8, 8, 3)
    x = net.convolution(x, 8, 3, 2, activation=RELU6)
    y = net.depthwise(net.convolution(x, 20, 1, activation=RELU6), 3)
    y = net.convolution(y, 8, 1, activation=NONE)
    x = net.two("ADD", y, x)
    gate = net.unary("LOGISTIC", net.convolution(net.mean(x, keeps=True), 8, 1, activation=NONE), 1 / 256, -128)
    x = net.two("MUL", x, gate)
    y = net.unary("HARD_SWISH", net.depthwise(x, 3, 2, 2, NONE), 0.04, -110, "HardSwishOptions")
    y = net.convolution(y, 4, 1, activation=NONE)
    y = net.concatenate(y, net.unary("LEAKY_RELU", y, y.scale, y.zero_point, "LeakyReluOptions", alpha=0.125), 3)
    x = net.mean(net.transpose(y, 0, 2, 1, 3), keeps=True)
    x = net.dense(x, 8)
    return net.writer.finish([source], [net.dequantized(x)])


NETWORKS = {"mlp": mlp, "cnn": cnn, "residual": residual, "mobile": mobile}


def saved(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path
