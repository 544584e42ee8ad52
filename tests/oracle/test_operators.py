"""Operator bounds against dense ones and against enumeration, on random networks with every node kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qertify.attack.gradient import forward, gradient
from qertify.bounds.chords import initial_multipliers
from qertify.bounds.compile import compile_program
from qertify.bounds.dual import Domains, prove
from qertify.bounds.operate import compile_operators
from qertify.bounds.program import Program
from qertify.bounds.tighten import retighten
from qertify.network.network import Network
from qertify.network.ranges import ranges
from qertify.search.branch_and_bound import BATCH, MEMORY, BranchAndBound
from qertify.search.leaf import Closure, LeafAnswer
from qertify.specification.cases import output_view
from qertify.specification.property import Classification
from qertify.specification.region import IntegerBox
from qertify.specification.splitting import splitter_of
from tests.oracle.random_graphs import random_graph

NETWORKS = 240
PER_TEST = 60


def _compiled(seed: int) -> tuple[Network, IntegerBox, Program, Program]:
    """A random network, a box of it, and both forms of its program."""
    generator = np.random.default_rng(seed)
    network = random_graph(generator)
    low = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
    box = IntegerBox(low, np.minimum(low + generator.integers(0, 3, size=low.shape), network.input.high))
    view = output_view(network)
    known, classes = ranges(network, box.low[None], box.high[None]), tuple(range(len(view.element)))
    dense = compile_program(network, box, known, view, classes)
    return network, box, dense, compile_operators(network, box, known, view, classes)


def _domains(program: Program, generator: np.random.Generator, count: int) -> Domains:
    """Random parts of the ranges, random objectives on any accumulators."""
    shape = (count, len(program.units))
    mix = torch.from_numpy(np.sort(generator.random((2, *shape)) * (generator.random(shape) < 0.4), axis=0))
    width = program.high - program.low
    low, high = program.low + (mix[0] * width).floor(), program.high - ((mix[1] - mix[0]) * width).floor()
    objective = torch.from_numpy(generator.integers(-2, 3, size=shape).astype(np.float64))
    return Domains(low, torch.maximum(low, high), objective, torch.zeros(count, dtype=torch.float64))


@pytest.mark.parametrize("start", range(0, NETWORKS, PER_TEST))
def test_both_forms_are_the_same_program(start: int) -> None:
    for seed in range(start, start + PER_TEST):
        _, _, dense, operators = _compiled(seed)
        assert [(u.node, u.element, u.label) for u in dense.units] == [(u.node, u.element, u.label) for u in operators.units]
        assert dense.blocks == operators.blocks
        assert np.array_equal(dense.input_index, operators.input_index)
        for name in ("input_low", "input_high", "constant", "low", "high", "first_value", "spacing", "unevenness", "has_value"):
            assert torch.equal(getattr(dense, name), getattr(operators, name)), f"seed {seed}: {name}"
        assert bool((operators.equation_size >= dense.equation_size).all()), f"seed {seed}"
        generator = np.random.default_rng(seed)
        total = torch.from_numpy(generator.integers(-9, 10, size=(5, len(dense.units))).astype(np.float64))
        for ours, theirs in zip(operators.products(total), dense.products(total), strict=True):
            assert torch.equal(ours, theirs), f"seed {seed}"
        x = torch.from_numpy(np.round(generator.random((7, len(dense.input_low)))))
        x = dense.input_low + x * (dense.input_high - dense.input_low)
        (z, y), (z_dense, y_dense) = forward(operators, x), forward(dense, x)
        assert torch.equal(z, z_dense)
        assert torch.equal(y, y_dense)
        leak = torch.full((7, 1), 0.25, dtype=torch.float64)
        assert torch.allclose(
            gradient(operators, y, total[:1].expand(7, -1), leak), gradient(dense, y, total[:1].expand(7, -1), leak)
        )


@pytest.mark.parametrize("start", range(0, NETWORKS, PER_TEST))
def test_bounds_are_equal_for_any_multipliers(start: int) -> None:
    finite = 0
    for seed in range(start, start + PER_TEST):
        _, _, dense, operators = _compiled(seed)
        generator = np.random.default_rng(seed)
        domains = _domains(dense, generator, 5)
        chords = initial_multipliers(operators, domains)
        assert torch.allclose(chords, initial_multipliers(dense, domains))
        wild = torch.from_numpy(generator.normal(size=chords.shape) * 10.0 ** generator.integers(-3, 4))
        for multipliers in (torch.zeros_like(chords), chords, wild):
            ours, theirs = prove(operators, domains, multipliers), prove(dense, domains, multipliers)
            same = ours.bits == theirs.bits
            assert torch.equal(ours.margin[same], theirs.margin[same]), f"seed {seed}"
            finite += int((same & torch.isfinite(ours.margin)).sum())
    assert finite > 10 * PER_TEST


def test_retightened_ranges_contain_every_point() -> None:
    """Inner ranges of domains, from the dual with chords, on the dense form."""
    tighter = 0
    for seed in range(NETWORKS):
        _, box, dense, _ = _compiled(seed)
        if bool((dense.input_index < 0).any()) or box.size > 1 << 12 or not dense.units:
            continue
        x = torch.from_numpy(box.points().reshape(box.size, -1)[:, dense.input_index].astype(np.float64))
        z, _ = forward(dense, x)
        domains = _domains(dense, np.random.default_rng(seed), 6)
        inside = ((z >= domains.low[:, None]) & (z <= domains.high[:, None])).all(-1)
        low, high = retighten(dense, domains.low, domains.high)
        contained = ((z >= low[:, None]) & (z <= high[:, None])).all(-1)
        assert bool((contained | ~inside).all()), f"seed {seed}"
        tighter += int((low > domains.low).sum() + (high < domains.high).sum())
    assert tighter > 20


def test_open_domains_keep_to_the_memory_limit() -> None:
    """With little memory the search goes deep instead of wide."""
    network, box, dense, _ = _compiled(0)
    known = ranges(network, box.low[None], box.high[None])
    splitter = splitter_of(network, Classification(0), known)

    def never(*_: object) -> None:
        return None

    def leaf(*_: object) -> LeafAnswer:
        return LeafAnswer(Closure.OPEN)

    row = 16 * len(dense.units) + 512
    for memory in (1, 400 * row, None):
        search = BranchAndBound(dense, splitter, (), never, leaf, memory=memory)
        assert search.dive_above * 2 * row <= max(memory or MEMORY, 2 * BATCH * row)
