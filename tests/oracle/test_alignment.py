"""The attack that aligns roundings with a question's cases: judged by enumeration, and where gradients fail."""

from __future__ import annotations

import numpy as np
import pytest

from qertify.network.network import Network
from qertify.network.nodes import Dense, Input, Staircase, per_channel_rows
from qertify.network.staircase import Rounding, shift_steps
from qertify.network.tensor import QuantizationParameters
from qertify.options import Options
from qertify.queries.robustness import local_robustness
from qertify.search import stages
from qertify.search.portfolio import decide
from tests.oracle.random_networks import random_network, violated_somewhere


def test_small_violations_are_found_and_no_others() -> None:
    generator = np.random.default_rng(3)
    violated = found = 0
    for seed in range(60):
        network = random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        query = local_robustness(network, centre, int(generator.integers(1, 4)))
        truth = violated_somewhere(query.network, query.region, query.property)
        decision = decide(network, query.region, query.property, Options(seed=seed), plan=(stages.align,))
        assert truth or decision.counterexample is None
        violated += truth
        found += decision.counterexample is not None
    assert violated > 10
    assert found > violated / 2


def _two_classes(bias: int) -> Network:
    """Sixty coarse roundings, two hundred inputs; the other class wins the more easily, the greater the bias."""
    generator = np.random.default_rng(1)
    weight = generator.integers(-7, 8, size=(60, 200))
    rows = per_channel_rows(1, (60,))
    return Network(
        (
            Input("input", (200,), 0, 255),
            Dense("hidden", ("input",), weight, -128 * weight.sum(1), 0),
            Staircase("codes", ("hidden",), shift_steps(9, Rounding.HALF_TOWARD_POSITIVE, -8, 7), rows),
            Dense("scores", ("codes",), generator.integers(-7, 8, size=(2, 60)), np.array([0, bias]), 0),
            Staircase("output", ("scores",), shift_steps(3, Rounding.HALF_TOWARD_POSITIVE, -99, 99), per_channel_rows(1, (2,))),
        ),
        QuantizationParameters.of(1.0),
        QuantizationParameters.of(1.0),
        "test",
    )


@pytest.mark.parametrize(("radius", "bias"), [(1, -32), (2, -152)])
def test_roundings_line_up_where_gradients_find_nothing(radius: int, bias: int) -> None:
    network = _two_classes(bias)
    query = local_robustness(network, np.full(200, 128), radius, label=0)
    gradients = stages.attack(*stages.STRONG, False, "gradients")
    assert decide(network, query.region, query.property, Options(), plan=(gradients,)).counterexample is None
    assert decide(network, query.region, query.property, Options(), plan=(stages.align,)).counterexample is not None
