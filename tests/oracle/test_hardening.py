"""The attack through hardening staircases: what it says it reaches, it reaches, and rounding is not beyond it."""

from __future__ import annotations

import numpy as np
import torch

from qertify.attack.gradient import forward, random_starts, signed_gradient
from qertify.attack.hardening import harden
from qertify.bounds.compile import compile_program
from qertify.bounds.operate import compile_operators
from qertify.bounds.program import Program
from qertify.network.network import Network
from qertify.network.nodes import Dense, Input, Staircase, per_channel_rows
from qertify.network.ranges import ranges
from qertify.network.staircase import Rounding, shift_steps
from qertify.network.tensor import QuantizationParameters
from qertify.specification.cases import output_view
from qertify.specification.region import IntegerBox
from tests.oracle.random_graphs import random_graph

PATHS, STEPS = 4, 40


def _programs(network: Network, box: IntegerBox) -> list[Program]:
    view, known = output_view(network), ranges(network, box.low[None], box.high[None])
    classes = tuple(range(len(view.element)))
    return [form(network, box, known, view, classes) for form in (compile_program, compile_operators)]


def _objectives(program: Program, generator: np.random.Generator) -> torch.Tensor:
    """A random objective on the outputs for each path."""
    objective = torch.zeros(PATHS, len(program.units), dtype=torch.float64)
    outputs = list(program.output_units().values())
    objective[:, outputs] = torch.from_numpy(generator.integers(-2, 3, size=len(outputs)).astype(np.float64))
    return objective


def test_what_is_reached_is_exact_and_no_worse_than_the_start() -> None:
    improved = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        network = random_graph(generator)
        low = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        box = IntegerBox(low, np.minimum(low + generator.integers(0, 4, size=low.shape), network.input.high))
        for program in _programs(network, box):
            starts = random_starts(program, PATHS, torch.Generator().manual_seed(seed))
            objective = _objectives(program, generator)
            x, reached = harden(program, starts, objective, STEPS)
            assert torch.equal(x, x.round())
            assert bool(((x >= program.input_low) & (x <= program.input_high)).all())
            assert torch.equal((objective * forward(program, x)[0]).sum(-1), reached)
            before = (objective * forward(program, starts)[0]).sum(-1)
            assert bool((reached <= before).all())
            improved += int((reached < before).any())
    assert improved > 10


def test_rounding_errors_are_aligned_where_gradients_see_none() -> None:
    """Two hundred coarse roundings, four hundred inputs of three values."""
    generator = np.random.default_rng(0)
    weight = generator.integers(-9, 10, size=(200, 400))
    network = Network(
        (
            Input("input", (400,), 0, 255),
            Dense("hidden", ("input",), weight, generator.integers(-99, 100, size=200), 128),
            Staircase("codes", ("hidden",), shift_steps(9, Rounding.HALF_EVEN, -128, 127), per_channel_rows(1, (200,))),
            Dense("scores", ("codes",), generator.integers(-9, 10, size=(2, 200)), np.zeros(2, dtype=np.int64), 0),
        ),
        QuantizationParameters.of(1.0),
        QuantizationParameters.of(1.0),
        "test",
    )
    centre = generator.integers(100, 156, size=400)
    for program in _programs(network, IntegerBox(centre - 1, centre + 1)):
        starts = random_starts(program, PATHS, torch.Generator().manual_seed(0))
        objective = torch.zeros(PATHS, len(program.units), dtype=torch.float64)
        objective[:, list(program.output_units().values())] = torch.tensor([1.0, -1.0], dtype=torch.float64)
        at_centre = float((objective * forward(program, starts)[0]).sum(-1)[0])
        _, reached = harden(program, starts, objective, 150)
        _, by_slopes = signed_gradient(program, starts, objective, 150, torch.Generator().manual_seed(0))
        assert at_centre - float(reached.min()) > 1.4 * (at_centre - float(by_slopes.min()))
