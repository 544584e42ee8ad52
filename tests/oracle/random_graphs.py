"""Tiny random networks with every node kind, small enough to enumerate."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from qertify.network.network import Network
from qertify.network.nodes import (
    Add,
    Convolution,
    Dense,
    Input,
    Max,
    Node,
    PoolSum,
    Product,
    Rearrange,
    Staircase,
    Table,
    Window,
    per_channel_rows,
)
from qertify.network.staircase import Rounding, Steps, shift_steps, steps_from_function
from qertify.network.tensor import QuantizationParameters, as_integers

Shape = tuple[int, int, int]


class _Graph:
    """A graph under construction; each method appends nodes and returns (name, shape) of the last."""

    def __init__(self, generator: np.random.Generator, shape: Shape) -> None:
        self.generator = generator
        self.nodes: list[Node] = [Input("input", shape, 0, int(generator.choice([1, 2, 3])))]

    def add(self, make: Callable[[str], Node]) -> str:
        self.nodes.append(make(f"n{len(self.nodes)}"))
        return self.nodes[-1].name

    def integer(self, low: int, high: int) -> int:
        return int(self.generator.integers(low, high))

    def staircase(self, source: str, channels: int, axes: int) -> str:
        """Requantize to a few levels: by a shift, by a real multiplier per channel, or at arbitrary thresholds."""
        low = self.integer(-3, 2)
        high = low + self.integer(1, 8)
        rows = channels if self.generator.random() < 0.5 else 1
        kind = self.integer(0, 3)
        if kind == 0:
            rows, steps = 1, shift_steps(self.integer(0, 3), list(Rounding)[self.integer(0, len(Rounding))], low, high)
        elif kind == 1:
            factor = self.generator.uniform(0.15, 1.6, size=(rows, 1))
            steps = steps_from_function(lambda z: np.floor(z * factor).astype(np.int64), rows, low, high, 1 << 20)
        else:
            gaps = self.generator.integers(0, 5, size=(rows, high - low))
            steps = Steps(as_integers(np.cumsum(gaps, axis=1) + self.generator.integers(-8, 4, size=(rows, 1))), low)
        row = per_channel_rows(rows, (channels,) + (1,) * (axes - 1))
        return self.add(lambda name: Staircase(name, (source,), steps, row))

    def table(self, source: str, channels: int) -> str:
        rows = channels if self.generator.random() < 0.5 else 1
        values = as_integers(self.generator.integers(-4, 5, size=(rows, self.integer(1, 9))))
        first = self.integer(-4, 2)
        return self.add(lambda name: Table(name, (source,), values, first, per_channel_rows(rows, (channels, 1, 1))))

    def window(self, shape: Shape, kernel: int) -> Window:
        top, left, bottom, right = (self.integer(0, kernel) for _ in range(4))
        reach = min(shape[1], shape[2])
        dilation = 1 if kernel == 1 or reach < 3 else self.integer(1, 3)
        return Window((kernel, kernel), (self.integer(1, 3), self.integer(1, 3)), (top, left, bottom, right), (dilation, 1))

    def convolution(self, source: str, shape: Shape) -> tuple[str, Shape]:
        kernel = self.integer(1, 3)
        groups = shape[0] if self.generator.random() < 0.4 else 1
        out = groups * self.integer(1, 3)
        weight = as_integers(self.generator.integers(-3, 4, size=(out, shape[0] // groups, kernel, kernel)))
        bias = as_integers(self.generator.integers(-5, 6, size=out))
        window, zero_point = self.window(shape, kernel), self.integer(-1, 2)
        name = self.add(lambda name: Convolution(name, (source,), weight, bias, window, zero_point, groups))
        new = (out, *window.output_size(shape[1], shape[2]))
        return self.staircase(name, out, 3), new

    def pool_sum(self, source: str, shape: Shape) -> tuple[str, Shape]:
        window, zero_point = self.window(shape, 2), self.integer(-1, 2)
        name = self.add(lambda name: PoolSum(name, (source,), window, zero_point))
        return self.staircase(name, shape[0], 3), (shape[0], *window.output_size(shape[1], shape[2]))

    def maximum(self, source: str, shape: Shape) -> tuple[str, Shape]:
        window = self.window(shape, 2)
        return self.add(lambda name: Max(name, (source,), window)), (
            shape[0],
            *window.output_size(shape[1], shape[2]),
        )

    def branch(self, source: str, shape: Shape) -> str:
        return self.table(source, shape[0]) if self.generator.random() < 0.5 else self.staircase(source, shape[0], 3)

    def sum(self, source: str, shape: Shape) -> tuple[str, Shape]:
        others = tuple(self.branch(source, shape) for _ in range(self.integer(1, 3)))
        name = self.add(lambda name: Add(name, (source, *others, *others[:1])))
        return (self.staircase(name, shape[0], 3) if self.generator.random() < 0.7 else name), shape

    def product(self, source: str, shape: Shape) -> tuple[str, Shape]:
        other = source if self.generator.random() < 0.2 else self.branch(source, shape)
        zero_points = (self.integer(-2, 3), self.integer(-2, 3))
        name = self.add(lambda name: Product(name, (source, other), zero_points))
        return self.staircase(name, shape[0], 3), shape

    def lookup(self, source: str, shape: Shape) -> tuple[str, Shape]:
        return self.table(source, shape[0]), shape

    def rearranged(self, source: str, shape: Shape) -> tuple[str, Shape]:
        indices = as_integers(self.generator.integers(-1, prod(shape), size=shape))
        fill = self.integer(-2, 3)
        return self.add(lambda name: Rearrange(name, (source,), indices, fill)), shape


def random_graph(generator: np.random.Generator) -> Network:
    """A network of 1–3 random blocks on a tiny image, then a dense layer and an output staircase (or none)."""
    shape: Shape = (int(generator.integers(1, 3)), 2, int(generator.integers(2, 4)) if generator.random() < 0.5 else 2)
    graph, source = _Graph(generator, shape), "input"
    blocks = (graph.convolution, graph.pool_sum, graph.maximum, graph.sum, graph.product, graph.lookup, graph.rearranged)
    for _ in range(int(generator.integers(1, 4))):
        fitting = [block for block in blocks if min(shape[1:]) >= 2 or block in blocks[3:]]
        source, shape = fitting[int(generator.integers(len(fitting)))](source, shape)
    size, classes = prod(shape), int(generator.integers(2, 4))
    flat = graph.add(lambda name: Rearrange(name, (source,), as_integers(np.arange(size))))
    weight, bias = (
        as_integers(generator.integers(-3, 4, size=(classes, size))),
        as_integers(generator.integers(-4, 5, size=classes)),
    )
    last = graph.add(lambda name: Dense(name, (flat,), weight, bias, int(generator.integers(-1, 2))))
    if generator.random() < 0.8:
        last = graph.staircase(last, classes, 1)
    if generator.random() < 0.3:
        order = as_integers(generator.permutation(classes))
        graph.add(lambda name: Rearrange(name, (last,), order))
    scale = QuantizationParameters.of(1.0)
    return Network(tuple(graph.nodes), scale, scale, "test")
