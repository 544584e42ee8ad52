"""Aligned steps against enumeration, and against signed gradients, which do not see rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qertify.attack import aligned
from qertify.attack.aligned import Aligner
from qertify.attack.gradient import forward, random_starts, signed_gradient
from qertify.attack.lattice import descend
from qertify.attack.patterns import pattern_program
from qertify.bounds.difference import compile_difference
from qertify.bounds.program import Program
from qertify.ilp.soft_rows import SoftRows
from qertify.network.network import Network
from qertify.network.nodes import Dense, Input, Staircase, per_channel_rows
from qertify.network.real import RealDense, RealInput, RealNetwork, Relu, as_reals
from qertify.network.staircase import Rounding, shift_steps
from qertify.network.tensor import QuantizationParameters, as_integers
from qertify.search.difference_rows import DifferenceRows
from qertify.search.paired_input import grid, interval
from qertify.specification.region import IntegerBox
from tests.oracle.random_pairs import quantized_pair


def _program(left: RealNetwork, right: Network, box: IntegerBox) -> Program:
    rows = DifferenceRows(left, right, tuple(range(right.output_size)))
    return compile_difference(left, right, box, grid(right, box).relation, (), rows).program


def _objective(program: Program, sign: int) -> Tensor:
    objective = torch.zeros(len(program.units), dtype=torch.float64)
    objective[program.output_units()[0]] = sign
    return objective


def _least(program: Program, points: Tensor, objective: Tensor) -> float:
    return float((forward(program, points)[0] @ objective).min())


def _aligned(program: Program, objective: Tensor, seed: int, climbs: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    aligner = Aligner(program, SoftRows, generator)
    starts, hopes = aligner.starts(random_starts(program, 8, generator), objective.repeat(8, 1), 30)
    return torch.cat([aligner.climb(starts[row], objective) for row in hopes.argsort()[:climbs].tolist()])


def _pair(seed: int, inputs: int = 40, hidden: int = 16, reach: int = 3) -> Program:
    """Hidden units that stay active, whose steps are far wider than what an input does in one level."""
    generator = np.random.default_rng(seed)
    weight, bias = generator.integers(-60, 61, (hidden, inputs)), np.full(hidden, 60_000)
    output = generator.integers(-30, 31, (1, hidden))
    steps = shift_steps(9, Rounding.HALF_TOWARD_POSITIVE, 0, 1 << 12)
    right = Network(
        (
            Input("x", (inputs,), 0, 255),
            Dense("hidden", ("x",), as_integers(weight), as_integers(bias)),
            Staircase("steps", ("hidden",), steps, per_channel_rows(1, (hidden,))),
            Dense("out", ("steps",), as_integers(output), as_integers(np.zeros(1, dtype=np.int64))),
        ),
        QuantizationParameters.of(1 / 256),
        QuantizationParameters.of(2.0**-12),
        "test",
    )
    left = RealNetwork(
        (
            RealInput("x", (inputs,)),
            RealDense("hidden", ("x",), as_reals(weight / 128), as_reals(bias / 2.0**15)),
            Relu("relu", ("hidden",)),
            RealDense("out", ("relu",), as_reals(output / 64), as_reals(np.zeros(1))),
        )
    )
    centre = generator.integers(50, 200, inputs)
    return _program(left, right, IntegerBox(centre - reach, centre + reach))


def test_small_programs_are_brought_near_their_optimum() -> None:
    near = 0
    for seed in range(12):
        program = _pair(seed, inputs=4, hidden=2, reach=4)
        side = torch.arange(-4, 5, dtype=torch.float64)
        errors = torch.zeros(len(side) ** 4, len(program.input_low) - 4, dtype=torch.float64)
        every = torch.cat([torch.cartesian_prod(side, side, side, side), errors], dim=1)
        objective = _objective(program, 1 - 2 * (seed % 2))
        truth = _least(program, every, objective)
        points = _aligned(program, objective, seed)
        path = descend(program, points[(forward(program, points)[0] @ objective).argmin()], objective, 20)
        reached = _least(program, path, objective)
        assert truth <= reached <= 0.8 * truth < 0
        near += reached <= 0.9 * truth
    assert near >= 8


def test_points_are_integers_inside_the_box() -> None:
    program = _pair(0)
    points = _aligned(program, _objective(program, 1), 0)
    assert len(points)
    assert torch.equal(points, points.round())
    assert bool(((program.input_low <= points) & (points <= program.input_high)).all())


def test_more_is_found_than_by_gradients() -> None:
    """Nothing but rounding separates these networks."""
    for seed in range(4):
        program = _pair(seed)
        objective = _objective(program, 1)
        generator = torch.Generator().manual_seed(seed)
        starts = random_starts(program, 64, generator)
        points, _ = signed_gradient(program, starts, objective.repeat(64, 1), 40, generator)
        plain, better = (_least(program, found, objective) for found in (points, _aligned(program, objective, seed, 2)))
        assert better < 1.3 * plain < 0


def test_roundings_are_repaired() -> None:
    """By the measure of the linear program, on average."""
    for seed in range(4):
        program, objective = _pair(seed), _objective(_pair(seed), 1)
        aligner = Aligner(program, SoftRows, torch.Generator().manual_seed(seed))
        vertex = aligner._vertex((program.input_low + program.input_high) / 2, objective)
        assert vertex is not None
        first = aligned._first_staircases(program)
        points = aligner._rounded(vertex)
        z = forward(program, points)[0][:, first]
        outside = (vertex.low - z).clamp(min=0) + (z - vertex.high).clamp(min=0)
        size = outside @ (vertex.weight / (aligned.STRICT * program.spacing[first])) + (points - vertex.x) @ vertex.cost
        repaired, plain = size.split([aligned.REPAIRED, aligned.ROUNDINGS])
        assert torch.equal(points, points.round())
        assert repaired.mean() < plain.mean() / 2


def test_the_far_end_of_a_flat_part_is_no_next_step() -> None:
    program = _pair(0)
    aligner = Aligner(program, SoftRows, torch.Generator().manual_seed(0))
    first = aligned._first_staircases(program)
    least = program.threshold(program.first_value[None] + 1)[0, first]
    z = torch.zeros(len(program.units), dtype=torch.float64)
    for away, above in ((0.5, 1.0), (5.0, 0.0)):
        z[first] = least - away * program.spacing[first]
        found = aligner._next_to(z, program.first_value)
        assert [side.unique().tolist() for side in found] == [[0.0], [above]]
    z[first] = least + 0.5 * program.spacing[first]
    below, above = aligner._next_to(z, program.first_value + 1)
    assert bool((below == 1).all())
    assert bool((above == 1).any())


def test_programs_without_steps_are_refused() -> None:
    program = _pair(0)
    assert Aligner.supports(program)
    assert not Aligner.supports(replace(program, has_value=torch.zeros_like(program.has_value)))


def test_a_late_climb_finds_nothing() -> None:
    program = _pair(0)
    aligner = Aligner(program, SoftRows, torch.Generator().manual_seed(0))
    assert not len(aligner.climb((program.input_low + program.input_high) / 2, _objective(program, 1), lambda: True))


def test_cuts_keep_what_real_inputs_can_be() -> None:
    left, right = quantized_pair(np.random.default_rng(1), 3, 1)
    inputs = interval(right, np.full(3, -0.1), np.array([0.2, 0.21, 0.35]))
    program = compile_difference(left, right, inputs.box, inputs.relation, (), DifferenceRows(left, right, (0,))).program
    cuts, limits = aligned._cuts(program)
    assert program.coupled is not None
    assert program.coupled_corners is not None
    assert 0 < len(cuts) <= 4 * len(program.coupled)
    for pair, corners in zip(program.coupled, program.coupled_corners, strict=True):
        x = torch.zeros(len(corners), len(program.input_low), dtype=torch.float64)
        x[:, pair] = corners
        own = (cuts[:, pair] != 0).any(1)
        assert bool((x @ cuts[own].T <= limits[own] + 1e-9).all())
        ends = torch.stack([corners.amin(0), corners.amax(0)])
        box = torch.cartesian_prod(ends[:, 0], ends[:, 1])
        outside = ((box[:, None] != corners[None]).any(-1)).all(1)
        x[: len(box), pair] = box
        assert torch.equal((x[: len(box)] @ cuts[own].T > limits[own] + 1e-9).any(1), outside)


def test_rows_may_be_left_at_a_price() -> None:
    rows = SoftRows(np.array([[1.0, 1.0]]), np.zeros(2), np.full(2, 4.0), np.zeros((0, 2)), np.zeros(0))
    none, one = np.array([-np.inf]), np.array([1.0])
    cheap = rows.solve(np.array([-1.0, -2.0]), one * 0.5, none, one, 5.0)
    dear = rows.solve(np.array([-1.0, -2.0]), one * 1.5, none, one, 5.0)
    dearest = rows.solve(np.array([-1.0, -2.0]), one * 3.0, none, one, 5.0)
    answers = [(found[0].tolist(), found[1].tolist()) for found in (cheap, dear, dearest) if found is not None]
    assert answers == [([4, 4], [-0.5]), ([0, 4], [-1.5]), ([0, 1], [-2])]
    inside = rows.solve(np.zeros(2), one, np.array([5.0]), np.array([6.0]), 5.0)
    assert inside is not None
    assert 5 <= inside[0].sum() <= 6
    cut = SoftRows(np.array([[1.0, 1.0]]), np.zeros(2), np.full(2, 4.0), np.array([[0.0, 1.0]]), np.array([3.0]))
    found = cut.solve(np.array([-1.0, -2.0]), one * 0.5, none, one, 5.0)
    assert found is not None
    assert found[0].tolist() == [4, 3]


def test_a_program_of_values_does_what_the_whole_does() -> None:
    for seed in range(12):
        generator = np.random.default_rng(seed)
        left, right = quantized_pair(generator, 3, 2)
        program = _program(left, right, IntegerBox(np.zeros(3, np.int64), np.full(3, 7)))
        if not Aligner.supports(program):
            continue
        first = aligned._first_staircases(program)
        x = random_starts(program, 6, torch.Generator().manual_seed(seed))
        z, y = forward(program, x)
        low, high = y[:, first].amin(0), y[:, first].amax(0)
        price = torch.arange(len(first), dtype=torch.float64)
        inner, kept = pattern_program(program, first, z[0], y[0], price, low, high)
        found = forward(inner, y[:1, first])[0][0]
        assert torch.equal(found[:-1], z[0, kept])
        assert found[-1] == price @ y[0, first]
        moved = torch.minimum(y[0, first] + 1, high)
        forced = _with_values(program, x[0], first, moved)
        assert torch.allclose(forward(inner, moved[None])[0][0, :-1], forced[kept], rtol=1e-12, atol=1e-6)


def _with_values(program: Program, x: Tensor, first: Tensor, values: Tensor) -> Tensor:
    """Accumulators where some units are given their values."""

    def fill(start: int, stop: int, z: Tensor) -> Tensor:
        y = program.block_values(start, stop, z)
        for unit, value in zip(first.tolist(), values.tolist(), strict=True):
            if start <= unit < stop:
                y[:, unit - start] = value
        return y

    return program.forward(x[None], fill)[0]
