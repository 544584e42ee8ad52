"""A verdict is withheld where the runtime's integers are not proved to be the exact ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qertify.network.network import Network
from qertify.network.nodes import Dense, Input, Staircase, per_channel_rows
from qertify.network.staircase import Rounding, shift_steps
from qertify.network.tensor import QuantizationParameters, as_integers
from qertify.options import Options
from qertify.queries.robustness import local_robustness, verify
from qertify.result import Reason, Verdict

UNIT = QuantizationParameters.of(1.0)


def _network(weight: int, bits: int = 32) -> Network:
    dense = Dense("layer", ("x",), as_integers([[weight, weight], [0, 1]]), as_integers([0, 0]), accumulator_bits=bits)
    steps = shift_steps(4, Rounding.HALF_EVEN, -128, 127)
    kernels = {"layer": {"activation": "uint8", "weight": "int8", "weight_zero_point": 0}}
    nodes = (Input("x", (2,), 0, 255), dense, Staircase("y", ("layer",), steps, per_channel_rows(1, (2,))))
    return Network(nodes, UNIT, UNIT, "onnxruntime", {"kernels": json.dumps(kernels)})


@pytest.mark.parametrize(("weight", "cpu_class", "trusted"), [(127, "vnni", True), (127, "avx2", False), (60, "avx2", True)])
def test_saturation_of_pairs(weight: int, cpu_class: str, trusted: bool) -> None:
    result = verify(local_robustness(_network(weight), np.array([200, 200]), 1), Options(cpu_class=cpu_class))
    assert result.cpu_class == cpu_class
    if trusted:
        assert result.verdict is Verdict.ROBUST
    else:
        assert (result.verdict, result.reason) == (Verdict.UNKNOWN, Reason.ARITHMETIC)
        assert "saturates" in result.explanation[0]


def test_pairs_that_the_region_keeps_small() -> None:
    result = verify(local_robustness(_network(127), np.array([3, 3]), 1, label=0), Options(cpu_class="avx2"))
    assert result.verdict is not Verdict.UNKNOWN


def test_overflow() -> None:
    result = verify(local_robustness(_network(127, bits=16), np.array([200, 200]), 1), Options(cpu_class="vnni"))
    assert (result.verdict, result.reason) == (Verdict.UNKNOWN, Reason.ARITHMETIC)
