"""Relaxations along one path of a search tree."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.difference import compile_difference
from qertify.bounds.pairing import find_pairs
from qertify.bounds.program import Program
from qertify.bounds.relaxers import relax_well, relaxer_of
from qertify.search.difference_rows import DifferenceRows
from qertify.search.dive import dive
from qertify.search.domains import root_domains
from qertify.search.paired_input import grid
from qertify.specification.region import IntegerBox
from tests.oracle.random_pairs import quantized_pair


def _dive(program: Program, rows: DifferenceRows, seconds: float) -> list[Tensor]:
    domain = root_domains(program, rows.cases({(0, 1): 0}))
    relaxer, found = relaxer_of(program), list[Tensor]()
    dive(program, relaxer, domain, relax_well(relaxer, domain), found.append, lambda: False, seconds)
    return found


def test_every_phase_gives_a_point_of_the_box() -> None:
    generator = np.random.default_rng(1)
    left, right = quantized_pair(generator, 6, 2, (9,))
    box = IntegerBox(np.full(6, 1), np.full(6, 6))
    inputs, codes = grid(right, box), generator.integers(0, 8, (48, 6))
    pairs, rows = (
        find_pairs(left, right, inputs.stand_for(codes).astype(np.float64), codes),
        DifferenceRows(left, right, (0, 1)),
    )
    program = compile_difference(left, right, box, inputs.relation, pairs, rows).program
    assert program.divisor is not None
    open_ = int(((program.divisor > 0) & (program.low < 0) & (program.high > 0)).sum())
    points = _dive(program, rows, 60.0)
    assert 1 < len(points) <= open_
    inside = torch.stack(points)
    assert bool(((inside >= program.low.new_tensor(-3.001)) & (inside <= 3.001)).all())
    assert len(_dive(program, rows, 0.0)) < len(points)  # it would not come to the bottom
