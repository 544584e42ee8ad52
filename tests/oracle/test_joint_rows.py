"""What kinks can do together, against enumeration and samples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from qertify.attack.gradient import forward
from qertify.bounds import joint_rows
from qertify.bounds.difference import compile_difference
from qertify.bounds.joint_kinks import greatest_sum
from qertify.bounds.pairing import find_pairs
from qertify.search.difference_rows import DifferenceRows
from qertify.search.paired_input import grid
from qertify.specification.region import IntegerBox
from tests.oracle.random_pairs import quantized_pair


@pytest.mark.parametrize("seed", range(20))
def test_a_sum_of_sizes_is_bounded(seed: int) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((generator.integers(1, 9), generator.integers(1, 11))) * 10.0 ** generator.integers(
        -3, 12
    )
    matrix[generator.random(matrix.shape) < 0.3] = 0
    error = np.abs(matrix).max() * 0.01 * generator.random(len(matrix))
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=matrix.shape[1])))
    greatest = float(np.abs(signs @ matrix.T).sum(1).max() + error.sum())
    bound = greatest_sum(matrix, error)
    assert greatest <= bound <= 1.3 * greatest + 1e-30  # 1.78 is the worst there can be


def test_a_sum_of_many_sizes_is_far_below_that_of_entries() -> None:
    matrix = np.random.default_rng(0).standard_normal((20, 60))
    assert greatest_sum(matrix, np.zeros(20)) < 0.4 * np.abs(matrix).sum()


@pytest.mark.parametrize("seed", range(12))
def test_all_rows_hold_on_every_input(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_rows, "WORTH", np.inf)
    generator = np.random.default_rng(seed)
    hidden = ((9,), (8, 9), (6, 7, 8))[seed % 3]
    left, right = quantized_pair(generator, 6, 2, hidden)
    low = generator.integers(0, 6, 6)
    box = IntegerBox(low, low + 2)
    inputs = grid(right, box)
    codes = generator.integers(0, 8, (48, 6))
    pairs = find_pairs(left, right, inputs.stand_for(codes).astype(np.float64), codes)
    joint = compile_difference(left, right, box, inputs.relation, pairs, DifferenceRows(left, right, (0, 1)))
    program = joint.program
    shifts = box.points(0, box.size) - joint.middle
    given = torch.zeros(len(shifts), len(program.input_low), dtype=torch.float64)
    given[:, : shifts.shape[1]] = torch.from_numpy(shifts)  # numbers on the grid are float32 ones, without errors
    z = forward(program, given)[0]
    assert program.slack is not None
    assert bool(((z >= program.low - 2 * program.slack) & (z <= program.high + 2 * program.slack)).all())
    outputs = list(program.output_units().values())
    assert program.follows is not None
    assert len(pairs) < len(hidden) or bool((program.follows[[row - 2 for row in outputs]] >= 0).all())
