"""Enclosures: staircases of which only a lower and an upper one are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qertify.errors import InvalidNetworkError
from qertify.network.evaluate import evaluate, evaluate_interval
from qertify.network.network import Network
from qertify.network.nodes import Staircase
from qertify.network.ranges import full_range, ranges
from qertify.network.staircase import Steps, gap_of
from qertify.network.storage import load, save
from qertify.network.tensor import as_integers
from tests.unit.network.samples import every_kind


def enclosed(network: Network, upper: Steps, name: str = "output") -> Network:
    nodes = tuple(replace(node, upper=upper) if node.name == name else node for node in network.nodes)
    return replace(network, nodes=nodes)


def lowered(steps: Steps, by: int) -> Steps:
    return Steps(as_integers(steps.thresholds - by), steps.low)


def output_steps(network: Network) -> Steps:
    assert isinstance(network.output, Staircase)
    return network.output.steps


def test_exactness_and_digest_tell_an_enclosure() -> None:
    exact = every_kind()
    narrow, wide = (enclosed(exact, lowered(output_steps(exact), by)) for by in (0, 3))
    assert (exact.exactness, narrow.exactness, wide.exactness) == ("exact", "enclosure", "enclosure")
    assert len({exact.digest, narrow.digest, wide.digest}) == 3


def test_files_keep_the_upper_staircase(tmp_path: Path) -> None:
    network = enclosed(every_kind(), lowered(output_steps(every_kind()), 2))
    save(network, tmp_path / "network.qnet")
    assert load(tmp_path / "network.qnet").digest == network.digest


@pytest.mark.parametrize("wrong", ["above", "range", "rows"])
def test_an_upper_staircase_must_fit_and_lie_above(wrong: str) -> None:
    network = every_kind()
    steps = output_steps(network)
    upper = {
        "above": lowered(steps, -1),
        "range": Steps(steps.thresholds, steps.low + 1),
        "rows": Steps(as_integers(np.repeat(steps.thresholds, 3, axis=0)), steps.low),
    }[wrong]
    with pytest.raises(InvalidNetworkError, match="enclosure"):
        enclosed(network, upper)


def test_ranges_reach_the_upper_staircase() -> None:
    network = every_kind()
    wide = enclosed(network, lowered(output_steps(network), 5))
    x = np.random.default_rng(0).integers(0, 16, size=(50, 2, 6, 6))
    z = ranges(network, x, x)["dense"][0]
    low, high = evaluate_interval(wide, x)
    assert np.array_equal(low, evaluate(network, x))
    assert np.array_equal(low, evaluate(wide, x))
    upper = lowered(output_steps(network), 5)
    assert np.array_equal(high, upper.value(0, z))
    assert np.any(high > low)
    full_low, full_high = ranges(wide, *full_range(wide))["output"]
    assert np.all(full_low <= low)
    assert np.all(full_high >= high)


def test_the_widest_gap_is_that_of_enumeration() -> None:
    generator = np.random.default_rng(1)
    for _ in range(100):
        lower = np.sort(generator.integers(-20, 20, size=(1, 6)), axis=1)
        above = np.maximum.accumulate(lower - generator.integers(0, 6, size=lower.shape), axis=1)
        steps, upper = Steps(as_integers(lower), -2), Steps(as_integers(above), -2)
        low, high = np.sort(generator.integers(-25, 25, size=2)).tolist()
        z = np.arange(low, high + 1)
        assert gap_of(steps, upper, 0, low, high) == (upper.value(0, z) - steps.value(0, z)).max()
        assert gap_of(steps, None, 0, low, high) == 0
