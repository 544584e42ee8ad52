"""A part of a builder: what some variables depend on, and rows over nothing else."""

from __future__ import annotations

import numpy as np
import torch

from qertify.bounds.builder import Builder


def two_networks() -> tuple[Builder, np.ndarray, np.ndarray]:
    """Two inputs, two rectifiers of each of two networks, a row over one network and a row over both that follows."""
    builder, ends = Builder(), (np.array([-4, -4]), np.array([4, 4]))
    form = builder.add_inputs(np.array([0, 0]), np.array([3, 3]))
    own, other = (
        builder.add_rectifiers(name, np.arange(2), form * factor, *ends, 1, np.zeros(2))
        for name, factor in (("a", 1), ("b", 2))
    )
    for rows in (other[:1], np.array([own[0], other[0]])):
        mixed = np.zeros((builder.rows, 1))
        mixed[rows, 0] = 1.0
        follows = own[:1] if len(rows) > 1 else None
        builder.add_rows([None], mixed, np.array([-9]), np.array([9]), np.zeros(1), follows)
    return builder, own, other


def test_one_network_is_left_with_its_own_rows() -> None:
    builder, own, other = two_networks()
    needed = np.zeros(builder.rows, dtype=bool)
    needed[other[1]] = True
    part = builder.part(needed).finish()
    assert [unit.node for unit in part.units] == ["b", "b", ""]
    assert part.follows is None
    assert part.blocks == ((0, 2), (2, 3))
    assert part.input_matrix.tolist() == [[2, 0], [0, 2], [0, 0]]
    assert part.unit_matrix[2].tolist() == [1, 0, 0]
    needed[own[0]] = True
    whole = builder.part(needed).finish()
    assert len(whole.units) == 6
    assert whole.follows is not None
    assert whole.follows.tolist() == [-1] * 5 + [0]
    assert builder.finish().unit_matrix.equal(whole.unit_matrix)


def test_what_is_added_to_a_part_is_not_in_the_whole() -> None:
    builder, own, _ = two_networks()
    needed = np.zeros(builder.rows, dtype=bool)
    needed[own] = True
    part, before = builder.part(needed), builder.units
    form = np.zeros((part.rows, 1))
    form[own, 0] = [1, -1]
    part.add_rows([None], form, np.array([-9]), np.array([9]), np.zeros(1))
    assert (part.units, builder.units) == (3, before)
    assert part.finish().unit_matrix[2].tolist() == [1, -1, 0]


def test_passes_agree_with_the_matrices() -> None:
    builder, _, _ = two_networks()
    program = builder.finish()
    total = torch.arange(1.0, 7.0, dtype=torch.float64)[None]
    inputs, units = program.products(total)
    assert inputs.equal(total @ program.input_matrix)
    assert units.equal(total @ program.unit_matrix)
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    z = program.forward(x, lambda first, last, z: z)
    values = torch.cat([z[:, :4], torch.zeros(1, 2)], 1)
    assert z.equal(program.constant + x @ program.input_matrix.T + values @ program.unit_matrix.T)
