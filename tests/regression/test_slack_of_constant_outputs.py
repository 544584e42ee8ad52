"""An output that is a constant up to its slack is still off by as much: bounds without that were a little too narrow."""

from __future__ import annotations

import numpy as np
import pytest

from qertify.bounds import difference
from qertify.network.network import Network
from qertify.network.nodes import Dense, Input
from qertify.network.real import RealDense, RealInput, RealNetwork, as_reals
from qertify.network.tensor import QuantizationParameters, as_integers
from qertify.options import Method, Options
from qertify.queries.equivalence import equivalence
from qertify.search.comparison import EquivalenceQuery
from qertify.search.paired_input import grid
from qertify.specification.region import IntegerBox


@pytest.mark.parametrize("limit", [difference.DENSE_LIMIT, 0], ids=["matrices", "operators"])
def test_bounds_hold_at_single_inputs(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference, "DENSE_LIMIT", limit)
    unit = QuantizationParameters.of(1 / 255)
    layer = Dense("y", ("x",), as_integers([[3]]), as_integers([7]))
    quantized = Network((Input("x", (1,), 0, 255), layer), unit, unit, "fixed-point")
    original = RealNetwork((RealInput("x", (1,)), RealDense("y", ("x",), as_reals([[3.3]]), as_reals([0.037]))))
    for code in range(3, 60):
        inputs = grid(quantized, IntegerBox(*np.array([[code], [code]])))
        exact = equivalence(EquivalenceQuery(original, quantized, inputs)).max_delta
        found = equivalence(EquivalenceQuery(original, quantized, inputs), Options(method=Method.BOUNDS)).max_delta
        assert found is not None
        assert found[1] is not None
        assert exact is not None
        assert exact[1] is not None
        assert exact[0] <= found[1]
        assert found[1] == pytest.approx(exact[1], abs=1e-3)
