"""Tiny random networks whose every input can be enumerated."""

from __future__ import annotations

import itertools

import numpy as np

from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.nodes import Dense, Input, Node, Staircase, per_channel_rows
from qertify.network.staircase import Rounding, Steps, shift_steps
from qertify.network.tensor import QuantizationParameters, as_integers
from qertify.specification.property import Classification
from qertify.specification.region import IntegerBox


def random_network(generator: np.random.Generator, *, uneven: bool | None = None) -> Network:
    """A dense network: 2–4 inputs of 2–4 bits, 1–3 layers, 2–4 bit weights; staircases even or not, outputs clamped or raw."""
    bits = int(generator.integers(2, 5))
    sizes = [int(generator.integers(2, 5)) for _ in range(int(generator.integers(2, 5)))]
    sizes[0] = int(generator.integers(2, 5))
    nodes: list[Node] = [Input("input", (sizes[0],), 0, 2 ** int(generator.integers(2, 4)) - 1)]
    rounding = list(Rounding)[int(generator.integers(len(Rounding)))]
    half = 1 << (bits - 1)
    for position, (fan_in, width) in enumerate(itertools.pairwise(sizes)):
        last = position == len(sizes) - 2
        weight = generator.integers(-half, half, size=(width, fan_in))
        bias = generator.integers(-half, half, size=width) << int(generator.integers(0, 3))
        zero_point = int(generator.integers(0, 3))
        dense = Dense(f"dense{position}", (nodes[-1].name,), as_integers(weight), as_integers(bias), zero_point)
        nodes.append(dense)
        if last and generator.random() < 0.2:
            break
        low, high = (-half, half - 1) if last else (0, 2**bits - 1)
        irregular = generator.random() < 0.5 if uneven is None else uneven
        if irregular:
            rows = width if generator.random() < 0.5 else 1
            gaps = generator.integers(0 if generator.random() < 0.3 else 1, 7, size=(rows, high - low))
            steps = Steps(as_integers(np.cumsum(gaps, axis=1) + generator.integers(-12, 8, size=(rows, 1))), low)
        else:
            rows, steps = 1, shift_steps(int(generator.integers(0, 4)), rounding, low, high)
        nodes.append(Staircase(f"steps{position}", (dense.name,), steps, per_channel_rows(rows, (width,))))
    scale = QuantizationParameters.of(1.0)
    return Network(tuple(nodes), scale, scale, "test")


def violated_somewhere(network: Network, box: IntegerBox, property_: Classification) -> bool:
    """The truth, by enumeration."""
    return bool(property_.violated(evaluate(network, box.points())).any())
