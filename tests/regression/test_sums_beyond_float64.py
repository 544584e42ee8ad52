"""Interval propagation sums in float64: a network whose sums reach 2⁵³ must be refused by the bounds, not rounded."""

from __future__ import annotations

import numpy as np
import pytest

from qertify.bounds.compile import compile_program
from qertify.errors import UnsupportedModelError
from qertify.network.network import Network
from qertify.network.nodes import Dense, Input
from qertify.network.ranges import ranges
from qertify.network.tensor import QuantizationParameters, as_integers
from qertify.specification.cases import output_view
from qertify.specification.region import IntegerBox


@pytest.mark.parametrize(("weight", "refused"), [(1 << 40, False), (1 << 48, True)])
def test_large_sums(weight: int, refused: bool) -> None:
    """Each coefficient is far below 2⁵³; only their sum times the inputs is not."""
    dense = Dense("z", ("x",), as_integers([[weight] * 8, [1] * 8]), as_integers([1, 0]), accumulator_bits=62)
    unit = QuantizationParameters.of(1.0)
    network = Network((Input("x", (8,), 0, 7), dense), unit, unit, "test")
    box = IntegerBox(np.zeros(8, dtype=np.int64), np.full(8, 7))
    known = ranges(network, box.low[None], box.high[None])
    if refused:
        with pytest.raises(UnsupportedModelError, match="2⁵²"):
            compile_program(network, box, known, output_view(network), (0, 1))
    else:
        compile_program(network, box, known, output_view(network), (0, 1))
