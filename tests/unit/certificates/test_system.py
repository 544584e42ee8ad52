"""The checker's own equations against the reference evaluator, on every input of tiny networks with every node kind."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from qertify.certificates.bounds import values
from qertify.certificates.system import System, build
from qertify.certificates.violation import outputs_of
from qertify.errors import UnsupportedModelError
from qertify.network.evaluate import evaluate_nodes
from qertify.network.network import Network
from qertify.network.nodes import Product, Table
from qertify.specification.region import IntegerBox, linf_ball
from tests.oracle.random_graphs import random_graph
from tests.oracle.random_networks import random_network

SEEDS = range(120)


def equations(network: Network, generator: np.random.Generator) -> tuple[System, IntegerBox]:
    centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
    box = linf_ball(centre, int(generator.integers(0, 3)), network.input.low, network.input.high)
    outputs = outputs_of(network)
    return build(network, box.low, box.high, outputs.node, outputs.element), box


def accumulators(system: System, network: Network, box: IntegerBox, points: np.ndarray) -> np.ndarray:
    """z of every unit, block by block, from the equations alone; additional inputs are zero."""
    low, high = box.low.reshape(-1), box.high.reshape(-1)
    x = np.zeros((len(points), len(system.input_low)), dtype=np.int64)
    varies = np.flatnonzero(low < high)
    x[:, : varies.size] = points.reshape(len(points), -1)[:, varies]
    z = np.zeros((len(points), len(system.units)), dtype=np.int64)
    y = np.zeros((len(points), len(system.units)), dtype=np.int64)
    for start, stop in system.blocks:
        z[:] = x @ system.input_matrix.values.T + y @ system.unit_matrix.values.T + system.constant
        known = values(system, z, start, stop)
        y[:, start : start + known.shape[1]] = known
    return z


@pytest.mark.parametrize("graphs", [False, True])
def test_equations_equal_the_evaluator(graphs: bool) -> None:
    generator = np.random.default_rng(11 + graphs)
    seen: Counter[str] = Counter()
    for _ in SEEDS:
        network = random_graph(generator) if graphs else random_network(generator)
        system, box = equations(network, generator)
        if box.size > 1 << 12:
            continue
        points = box.points()
        truth = evaluate_nodes(network, points)
        outputs = outputs_of(network)
        enclosed = any(isinstance(node, Table | Product) for node in network.nodes)
        z = accumulators(system, network, box, points)
        found = truth[outputs.node].reshape(len(points), -1)[:, outputs.element]
        for position, unit in enumerate(system.units):
            if unit.owner and unit.accumulator >= 0:
                owner = network.by_name[unit.owner]
                exact = truth[owner.inputs[0]].reshape(len(points), -1)[:, unit.accumulator]
            elif not unit.owner:
                exact = found[:, unit.accumulator]
            else:
                continue
            assert exact.min() >= unit.low
            assert exact.max() <= unit.high
            if not enclosed:
                assert np.array_equal(z[:, position], exact), f"{unit.owner} {unit.accumulator}"
            seen[type(network.by_name[unit.owner]).__name__ if unit.owner else "output", enclosed] += 1  # type: ignore[index]
    assert min(seen.values()) > 20, seen


def test_refuses_what_it_does_not_cover() -> None:
    from dataclasses import replace

    from qertify.certificates.system import require_covered
    from qertify.network.nodes import Staircase

    network = random_network(np.random.default_rng(0))
    steps = next(node for node in network.nodes if isinstance(node, Staircase))
    enclosed = replace(network, nodes=tuple(replace(n, upper=n.steps) if n is steps else n for n in network.nodes))
    with pytest.raises(UnsupportedModelError, match=steps.name):
        require_covered(enclosed)
