"""Tiny random float networks, and quantized versions of them."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

from qertify.network.network import Network
from qertify.network.nodes import Add, Dense, Input, Max, Node, Rearrange, Staircase, Window, per_channel_rows
from qertify.network.real import (
    RealAverage,
    RealConvolution,
    RealDense,
    RealInput,
    RealNetwork,
    RealNode,
    RealScale,
    Relu,
    as_reals,
)
from qertify.network.staircase import steps_from_function
from qertify.network.tensor import QuantizationParameters, as_integers


def _float32(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return as_reals(generator.normal(size=shape).astype(np.float32))


def random_float_network(generator: np.random.Generator, inputs: int, outputs: int) -> RealNetwork:
    """Dense and rectifier layers, 1–3 of them; sometimes an image in between with every other node kind."""
    nodes: list[RealNode] = [RealInput("x", (inputs,))]
    width = inputs
    if inputs == 4 and generator.random() < 0.5:
        window, pool = Window((2, 2), padding=(1, 1, 0, 0)), Window((2, 1))
        nodes += [
            Rearrange("image", ("x",), np.arange(4).reshape(1, 2, 2)),
            RealConvolution("conv", ("image",), _float32(generator, 2, 1, 2, 2), _float32(generator, 2), window),
            RealScale("norm", ("conv",), _float32(generator, 2, 1, 1), _float32(generator, 2, 1, 1)),
            Relu("relu", ("norm",)),
            Add("sum", ("relu", "conv")),
            Max("max", ("sum",), pool)
            if generator.random() < 0.5
            else RealAverage("average", ("sum",), pool, np.array([[[2]]])),
        ]
        width = 2 * 1 * 2
        nodes.append(Rearrange("flat", (nodes[-1].name,), np.arange(width)))
    for layer in range(int(generator.integers(1, 4))):
        size = int(generator.integers(2, 5))
        nodes.append(RealDense(f"dense{layer}", (nodes[-1].name,), _float32(generator, size, width), _float32(generator, size)))
        nodes.append(Relu(f"relu{layer}", (nodes[-1].name,)))
        width = size
    nodes.append(RealDense("out", (nodes[-1].name,), _float32(generator, outputs, width), _float32(generator, outputs)))
    return RealNetwork(tuple(nodes))


def quantized_pair(
    generator: np.random.Generator, inputs: int, outputs: int, hidden: tuple[int, ...] | None = None
) -> tuple[RealNetwork, Network]:
    """A dense float network and an integer network that approximates it, coarsely."""
    hidden = hidden or tuple(generator.integers(2, 5, size=int(generator.integers(1, 3))).tolist())
    sizes = [inputs, *hidden, outputs]
    scale, zero = 1.0 / 16, int(generator.integers(0, 3))
    left: list[RealNode] = [RealInput("x", (inputs,))]
    right: list[Node] = [Input("x", (inputs,), 0, 7)]
    input_scale, input_zero = scale, zero
    for layer, (fan_in, size) in enumerate(itertools.pairwise(sizes)):
        weight, bias = _float32(generator, size, fan_in), _float32(generator, size)
        left.append(RealDense(f"dense{layer}", (left[-1].name,), weight, bias))
        step = 0.25
        codes, shift = np.round(weight / step).astype(np.int64), np.round(bias / (step * scale)).astype(np.int64)
        right.append(Dense(f"dense{layer}", (right[-1].name,), as_integers(codes), as_integers(shift), zero))
        last = layer == len(sizes) - 2
        if last:
            break
        left.append(Relu(f"relu{layer}", (left[-1].name,)))
        factor, target = step * scale, 0.125
        steps = steps_from_function(lambda z, f=factor / target: np.floor(z * f + 0.5).astype(np.int64), 1, 0, 15, 1 << 16)
        right.append(Staircase(f"steps{layer}", (right[-1].name,), steps, per_channel_rows(1, (size,))))
        scale, zero = target, 0
    network = Network(
        tuple(right), QuantizationParameters.of(input_scale, input_zero), QuantizationParameters.of(0.25 * scale), "test"
    )
    return RealNetwork(tuple(left)), network


def pieces(network: RealNetwork, low: Fraction, high: Fraction) -> list[Fraction]:
    """Points between which a dense network of one input is affine, both ends among them, exactly."""
    points = [low, high]
    for depth in range(len(network.nodes)):
        node = network.nodes[depth]
        if not isinstance(node, Relu):
            continue
        values = [_forward(network, depth, point) for point in points]
        kinks: list[Fraction] = []
        for (start, before), (stop, after) in itertools.pairwise(zip(points, values, strict=True)):
            for a, b in zip(before, after, strict=True):
                if a * b < 0:
                    kinks.append(start + (stop - start) * a / (a - b))
        points = sorted({*points, *kinks})
    return points


def _forward(network: RealNetwork, until: int, x: Fraction) -> list[Fraction]:
    """The values before node ``until`` of a chain of dense and rectifier nodes."""
    value = [x]
    for node in network.nodes[1:until]:
        match node:
            case RealDense():
                rows = zip(node.weight.tolist(), node.bias.tolist(), strict=True)
                value = [sum((Fraction(w) * v for w, v in zip(row, value, strict=True)), Fraction(b)) for row, b in rows]
            case Relu():
                value = [max(v, Fraction(0)) for v in value]
            case _:
                raise AssertionError(node)
    return value


def exact_outputs(network: RealNetwork, x: Fraction) -> list[Fraction]:
    """The outputs of such a chain."""
    return _forward(network, len(network.nodes), x)
