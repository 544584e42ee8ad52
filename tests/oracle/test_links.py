"""What parts of the box say about paired activations, against enumeration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qertify.attack.gradient import forward
from qertify.bounds.difference import compile_difference
from qertify.bounds.links import narrow
from qertify.bounds.pairing import find_pairs
from qertify.search.difference_rows import DifferenceRows
from qertify.search.paired_input import grid
from qertify.specification.region import IntegerBox
from tests.oracle.random_pairs import quantized_pair


@pytest.mark.parametrize("seed", range(12))
def test_no_input_of_a_part_is_lost(seed: int) -> None:
    generator = np.random.default_rng(seed)
    left, right = quantized_pair(generator, 6, 2, ((9,), (8, 9))[seed % 2])
    low = generator.integers(0, 6, 6)
    box = IntegerBox(low, low + 2)
    inputs = grid(right, box)
    codes = generator.integers(0, 8, (48, 6))
    pairs = find_pairs(left, right, inputs.stand_for(codes).astype(np.float64), codes)
    program = compile_difference(left, right, box, inputs.relation, pairs, DifferenceRows(left, right, (0, 1))).program
    shifts = box.points(0, box.size) - (box.low + box.high) // 2
    given = torch.zeros(len(shifts), len(program.input_low), dtype=torch.float64)
    given[:, : shifts.shape[1]] = torch.from_numpy(shifts)
    z = forward(program, given)[0]
    assert program.slack is not None
    assert program.link_units is not None
    units, narrower = program.link_units[:, :2], 0
    if not len(units):
        pytest.skip("no kink is within reach")
    parts = 24
    low, high = program.low.repeat(parts, 1), program.high.repeat(parts, 1)
    for part in range(parts):
        for unit in units[generator.integers(0, len(units), 2), generator.integers(0, 2, 2)].tolist():
            end = float(generator.choice(z[:, unit].numpy()))
            side = low if generator.random() < 0.5 else high
            side[part, unit] = np.floor(end) if side is low else np.ceil(end)
    found = narrow(program, low, high)
    for part in range(parts):
        inside = ((z >= low[part]) & (z <= high[part]))[:, units.reshape(-1)].all(1)
        rest = z[inside]
        slack = 2 * program.slack
        assert bool(((rest >= found[0][part] - slack) & (rest <= found[1][part] + slack)).all())
        narrower += int((found[0][part] > low[part]).sum() + (found[1][part] < high[part]).sum())
    assert narrower > parts


def test_the_whole_box_stays_as_it_is() -> None:
    generator = np.random.default_rng(0)
    left, right = quantized_pair(generator, 6, 2, (9,))
    box = IntegerBox(np.full(6, 2), np.full(6, 4))
    inputs, codes = grid(right, box), generator.integers(0, 8, (48, 6))
    pairs = find_pairs(left, right, inputs.stand_for(codes).astype(np.float64), codes)
    program = compile_difference(left, right, box, inputs.relation, pairs, DifferenceRows(left, right, (0, 1))).program
    low, high = program.low[None], program.high[None]
    assert narrow(program, low, high)[0] is low
    assert narrow(program, low, high)[1] is high
