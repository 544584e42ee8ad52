"""A small network with every node kind."""

from __future__ import annotations

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
from qertify.network.staircase import Rounding, Steps, shift_steps
from qertify.network.tensor import QuantizationParameters, as_integers


def every_kind(seed: int = 0) -> Network:
    """Input (2, 6, 6) → grouped, dilated, strided convolution → … → 3 outputs; each node kind once or more."""
    generator = np.random.default_rng(seed)

    def integers(*shape: int, bound: int = 8) -> np.ndarray:
        return as_integers(generator.integers(-bound, bound, size=shape))

    rows = np.sort(generator.integers(-60, 60, size=(4, 7)), axis=1)
    nodes: tuple[Node, ...] = (
        Input("input", (2, 6, 6), 0, 15),
        Convolution("conv", ("input",), integers(4, 1, 3, 2), integers(4), Window((3, 2), (1, 2), (1, 0, 2, 1), (1, 2)), 3, 2),
        Staircase("requantize", ("conv",), Steps(as_integers(rows), -2), per_channel_rows(4, (4, 7, 3))),
        Max("pool", ("requantize",), Window((2, 2), (1, 1), (1, 0, 0, 1), (2, 1))),
        PoolSum("average", ("requantize",), Window((2, 2), (1, 1), (1, 0, 0, 1), (2, 1)), zero_point=1),
        Add("residual", ("pool", "average", "pool")),
        Product("gate", ("residual", "pool"), (2, -1)),
        Table("activation", ("gate",), integers(1, 40, bound=20), -20, per_channel_rows(1, (4, 6, 3))),
        Rearrange("flat", ("activation", "average"), as_integers(generator.permutation(145)[:30] - 1), fill=5),
        Dense("dense", ("flat",), integers(3, 30), integers(3, bound=50), zero_point=-2),
        Staircase("output", ("dense",), shift_steps(4, Rounding.HALF_EVEN, -32, 31), per_channel_rows(1, (3,))),
    )
    return Network(nodes, QuantizationParameters.of(0.5, 3), QuantizationParameters.of(0.25), "test", {"seed": str(seed)})
