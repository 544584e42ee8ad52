"""Every bound contains what enumeration finds, whatever the multipliers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qertify.bounds.compile import compile_program
from qertify.bounds.dual import Domains, prove
from qertify.bounds.interior_point import InteriorPoint
from qertify.bounds.program import Program
from qertify.bounds.tighten import propagate, tighten
from qertify.network.evaluate import evaluate_nodes
from qertify.network.network import Network
from qertify.network.ranges import ranges
from qertify.network.tensor import IntegerArray
from qertify.specification.cases import output_view
from qertify.specification.region import IntegerBox
from tests.oracle.random_networks import random_network

NETWORKS = 250


def _compiled(seed: int) -> tuple[Network, IntegerBox, Program, IntegerArray]:
    """A random program and the accumulators of its units at every input, (points, N)."""
    generator = np.random.default_rng(seed)
    while True:
        network = random_network(generator)
        low = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        box = IntegerBox(low, np.minimum(low + generator.integers(0, 4, size=low.shape), network.input.high))
        view = output_view(network)
        program = compile_program(
            network, box, ranges(network, box.low[None], box.high[None]), view, tuple(range(len(view.element)))
        )
        values = evaluate_nodes(network, box.points())
        points = np.stack([values[unit.node].reshape(box.size, -1)[:, unit.element] for unit in program.units], axis=1)
        return network, box, program, points


def _random_domains(program: Program, points: IntegerArray, generator: np.random.Generator, count: int) -> Domains:
    """Domains around random points, so that none is empty."""
    z = torch.from_numpy(points.astype(np.float64))
    low, high = program.low.repeat(count, 1), program.high.repeat(count, 1)
    for row in range(count):
        anchor = z[int(generator.integers(len(z)))]
        for unit in np.flatnonzero(generator.random(len(program.units)) < 0.5):
            other = z[int(generator.integers(len(z))), unit]
            low[row, unit] = torch.maximum(low[row, unit], torch.minimum(anchor[unit], other))
            high[row, unit] = torch.minimum(high[row, unit], torch.maximum(anchor[unit], other))
    objective = torch.from_numpy(generator.integers(-2, 3, size=low.shape).astype(np.float64))
    return Domains(low, high, objective, torch.from_numpy(generator.integers(-30, 30, size=count).astype(np.float64)))


def _least(domains: Domains, points: IntegerArray) -> torch.Tensor:
    """min objective·z over the points in each domain, by enumeration."""
    z = torch.from_numpy(points.astype(np.float64))
    inside = ((z >= domains.low[:, None]) & (z <= domains.high[:, None])).all(-1)
    return torch.where(inside, domains.objective @ z.T, torch.inf).amin(1)


@pytest.mark.parametrize("start", range(0, NETWORKS, 50))
def test_dual_bounds_hold_for_any_multipliers(start: int) -> None:
    tight = 0
    for seed in range(start, start + 50):
        _, _, program, points = _compiled(seed)
        generator = np.random.default_rng(seed)
        domains = _random_domains(program, points, generator, 6)
        least = _least(domains, points)
        found = InteriorPoint(program).relax(domains)
        wild = torch.from_numpy(generator.normal(size=domains.low.shape) * 10.0 ** generator.integers(-3, 9))
        wild[0, 0] = torch.nan
        wild[-1, -1] = torch.inf
        for multipliers in (found.multipliers, wild, torch.zeros_like(wild)):
            margin = prove(program, domains, multipliers).margin
            assert bool((margin + domains.limit + 1 <= least).all()), f"seed {seed}"
        assert bool(torch.isfinite(prove(program, domains, found.multipliers).margin).all())
        tight += int((prove(program, domains, found.multipliers).margin + domains.limit + 1 >= least - 2).sum())
    assert tight > 50, "the search for multipliers has stopped working"


@pytest.mark.parametrize("start", range(0, NETWORKS, 50))
def test_ranges_and_propagation_contain_every_point(start: int) -> None:
    for seed in range(start, start + 50):
        network, box, program, points = _compiled(seed)
        for name, (low, high) in ranges(network, box.low[None], box.high[None]).items():
            reached = evaluate_nodes(network, box.points())[name]
            assert bool((reached >= low).all() and (reached <= high).all())
        z = torch.from_numpy(points.astype(np.float64))
        tightened = tighten(program)
        assert bool((z >= tightened.low).all() and (z <= tightened.high).all())
        domains = _random_domains(program, points, np.random.default_rng(seed), 6)
        low, high, empty = propagate(program, domains.low, domains.high)
        for row in range(len(domains)):
            inside = ((z >= domains.low[row]) & (z <= domains.high[row])).all(-1)
            assert not (bool(empty[row]) and bool(inside.any()))
            assert bool(((z[inside] >= low[row]) & (z[inside] <= high[row])).all())


def test_a_threshold_moved_by_one_is_caught() -> None:
    """Fault injection: the containment check above must notice a program that is off by one."""
    caught = 0
    for seed in range(NETWORKS):
        _, _, program, points = _compiled(seed)
        if not len(program.blocks) or not bool(program.has_value.any()):
            continue
        broken = replace(program, thresholds=program.thresholds + 1)
        domains = _random_domains(program, points, np.random.default_rng(seed), 12)
        margin = prove(broken, domains, InteriorPoint(broken).relax(domains).multipliers).margin
        caught += int((margin + domains.limit + 1 > _least(domains, points)).any())
    assert caught > 10


def test_numbers_too_large_for_exact_arithmetic_prove_nothing() -> None:
    _, _, program, points = _compiled(3)
    huge = replace(
        program, equation_size=program.equation_size + 2.0**60, low=program.low + 2.0**60, high=program.high + 2.0**60
    )
    domains = _random_domains(program, points, np.random.default_rng(0), 4)
    proof = prove(huge, domains, torch.ones_like(domains.low))
    assert bool((proof.margin == -torch.inf).all())
