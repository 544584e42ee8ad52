"""A pixel is pixel/255 to the float network and pixel/256 to the quantized one, and codes end where real inputs don't."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from qertify.network.network import Network
from qertify.network.nodes import Dense, Input
from qertify.network.real import RealDense, RealInput, RealNetwork, as_reals
from qertify.network.tensor import QuantizationParameters, as_integers
from qertify.options import Options
from qertify.queries.equivalence import equivalence
from qertify.search.comparison import EquivalenceQuery
from qertify.search.paired_input import grid, interval
from qertify.specification.region import linf_ball

FLOAT = RealNetwork((RealInput("x", (1,)), RealDense("y", ("x",), as_reals([[1.0]]), as_reals([0.0]))))
SCALE = QuantizationParameters.of(1 / 256)
QUANTIZED = Network(
    (Input("x", (1,), 0, 255), Dense("y", ("x",), as_integers([[1]]), as_integers([0]))), SCALE, SCALE, "fixed-point"
)
STEP = Fraction(1, 255)


@pytest.mark.parametrize("pixel", [0, 1, 128, 254, 255])
def test_codes_scaled_two_ways(pixel: int) -> None:
    inputs = grid(QUANTIZED, linf_ball(np.array([pixel]), 3, 0, 255), STEP)
    codes = range(max(0, pixel - 3), min(255, pixel + 3) + 1)
    worst = max(abs(Fraction(float(np.float32(code / 255))) - Fraction(code, 256)) for code in codes)
    answer = equivalence(EquivalenceQuery(FLOAT, QUANTIZED, inputs), Options())
    assert answer.max_delta == (pytest.approx(float(worst)), pytest.approx(float(worst)))


@pytest.mark.parametrize("pixel", [0, 1, 128, 254, 255])
@pytest.mark.parametrize("reach", [Fraction(3), Fraction(1, 4), Fraction(5, 2)])
def test_no_real_input_is_cut_off(pixel: int, reach: Fraction) -> None:
    """Real inputs beyond the first and the last code, and between codes, count."""
    low, high = (pixel - reach) * STEP, (pixel + reach) * STEP
    inputs = interval(QUANTIZED, np.array([low], dtype=object), np.array([high], dtype=object), STEP)
    worst = Fraction(0)
    for code in range(256):
        least = low if code == 0 else max(low, (code - Fraction(1, 2)) * STEP)
        greatest = high if code == 255 else min(high, (code + Fraction(1, 2)) * STEP)
        if least <= greatest:
            worst = max(worst, *(abs(end - Fraction(code, 256)) for end in (least, greatest)))
    answer = equivalence(EquivalenceQuery(FLOAT, QUANTIZED, inputs), Options(timeout=5))
    assert answer.max_delta is not None
    assert answer.max_delta[1] is not None
    assert answer.max_delta[0] <= float(worst) <= answer.max_delta[1] * (1 + 1e-12)
    assert answer.max_delta[1] <= float(worst) * 1.01
    assert answer.max_delta[0] >= float(worst) * 0.9
