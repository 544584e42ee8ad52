"""Small real networks, and what they mean, spelled out in fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.network.nodes import Add, Max, Rearrange, Window
from qertify.network.real import (
    RealAverage,
    RealConvolution,
    RealDense,
    RealInput,
    RealNetwork,
    RealScale,
    Relu,
    as_reals,
)


def numbers(generator: np.random.Generator, *shape: int, spread: float = 0.0) -> NDArray[np.float64]:
    """Random float32 numbers; ``spread``: standard deviation of their binary exponents."""
    values = generator.standard_normal(shape) * np.exp2(np.round(generator.standard_normal(shape) * spread))
    return as_reals(values.astype(np.float32))


def every_real_kind(seed: int = 0, spread: float = 0.0) -> RealNetwork:
    """Input (2, 5, 6) → grouped, dilated, strided convolution → … → 3 outputs; each node kind once or more."""
    generator = np.random.default_rng(seed)

    def random(*shape: int) -> NDArray[np.float64]:
        return numbers(generator, *shape, spread=spread)

    window = Window((3, 2), (1, 2), (2, 1, 1, 0), (2, 1))
    nodes = (
        RealInput("x", (2, 5, 6)),
        RealConvolution("conv", ("x",), random(4, 1, 3, 2), random(4), window, groups=2),  # (4, 4, 3)
        RealScale("scale", ("conv",), random(4, 1, 1), random(1, 4, 1)),
        Relu("relu", ("scale",)),
        RealAverage("average", ("relu",), Window((3, 3), (1, 1), (1, 0, 0, 1)), np.array([[6, 3], [9, 5], [9, 7]])),
        Max("max", ("conv",), Window((2, 2), (1, 1), (0, 0, 0, 0))),  # (4, 3, 2)
        Add("sum", ("average", "max", "average")),
        Rearrange("moved", ("sum", "relu"), np.array([0, -1, 7, 23, 24, 50, 7])),
        RealDense("dense", ("moved",), random(3, 7), random(3)),
    )
    return RealNetwork(nodes)


def meaning(network: RealNetwork, x: NDArray[Any]) -> list[Fraction]:
    """The outputs at one input by the definition of every node kind, one element at a time."""
    values: dict[str, NDArray[np.object_]] = {}
    for node in network.nodes:
        operands = [values[name] for name in node.inputs]
        shape = network.shapes[node.name]
        result = np.empty(shape, dtype=object)
        for index in np.ndindex(*shape):
            result[index] = _element(node, operands, index, x, shape)
        values[node.name] = result
    return list(values[network.output.name].reshape(-1))


def _element(node: Any, operands: list[Any], index: tuple[int, ...], x: Any, shape: tuple[int, ...]) -> Fraction:
    def inside(channel: int) -> list[tuple[tuple[int, int], Fraction | None]]:
        window, (top, left, _, _) = node.window, node.window.padding
        found = []
        for i, j in product(range(window.kernel[0]), range(window.kernel[1])):
            row = index[1] * window.stride[0] - top + i * window.dilation[0]
            column = index[2] * window.stride[1] - left + j * window.dilation[1]
            height, width = operands[0].shape[1:]
            value = operands[0][channel, row, column] if 0 <= row < height and 0 <= column < width else None
            found.append(((i, j), value))
        return found

    def at(values: Any) -> Fraction:
        return Fraction(np.broadcast_to(values, shape)[index].item())

    match node:
        case RealInput():
            value = x[index]
            return value if isinstance(value, Fraction) else Fraction(float(value))
        case RealDense():
            terms = (Fraction(w) * y for w, y in zip(node.weight[index[0]].tolist(), operands[0], strict=True))
            return sum(terms, start=Fraction(float(node.bias[index[0]])))
        case RealConvolution():
            per_group, per_out = operands[0].shape[0] // node.groups, node.weight.shape[0] // node.groups
            total = Fraction(float(node.bias[index[0]]))
            for channel in range(per_group):
                for (i, j), value in inside(index[0] // per_out * per_group + channel):
                    total += Fraction(float(node.weight[index[0], channel, i, j])) * (value or 0)
            return total
        case RealAverage():
            return sum((value or Fraction(0) for _, value in inside(index[0])), start=Fraction(0)) / at(node.divisor)
        case RealScale():
            return operands[0][index] * at(node.factor) + at(node.shift)
        case Relu():
            return max(operands[0][index], Fraction(0))
        case Add():
            return sum((operand[index] for operand in operands), start=Fraction(0))
        case Max():
            return max(value for _, value in inside(index[0]) if value is not None)
        case Rearrange():
            flat = [value for operand in operands for value in operand.reshape(-1)]
            return flat[node.indices[index]] if node.indices[index] >= 0 else Fraction(0)
        case _:
            raise AssertionError(type(node))
