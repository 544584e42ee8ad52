"""The checker's own view of violations and cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qertify.certificates.format import Claim, Region
from qertify.certificates.violation import Atom, Outputs, atoms, summarise, violated
from qertify.network.staircase import Steps

NOWHERE = Region(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), 0)


@pytest.mark.parametrize("ties", ["first", "last", "violation"])
@pytest.mark.parametrize("target", [None, 0, 2])
@pytest.mark.parametrize("thresholds", [[[-2, 1, 3]], [[-2, -2, 2], [0, 1, 2], [-1, 2, 2]], None])
def test_atoms_are_exactly_the_violation(ties: str, target: int | None, thresholds: list[list[int]] | None) -> None:
    claim = Claim("robust", 1, target, ties, NOWHERE)
    steps = None if thresholds is None else Steps(np.array(thresholds), -1)
    row = np.arange(3) if steps is not None and steps.rows == 3 else np.zeros(3, dtype=np.int64)
    outputs = Outputs("z", np.arange(3), steps, row)
    parts = atoms(claim, outputs).values()
    for z in itertools.product(range(-4, 6), repeat=3):
        codes = np.array([[z[k] if steps is None else int(steps.value(int(row[k]), np.array(z[k]))) for k in range(3)]])
        inside = any(part.within(list(z), list(z)) for part in parts)
        assert inside == bool(violated(claim, codes)[0]), z


def test_a_summary_covers_its_atoms() -> None:
    parts = [Atom({0: 3}, {1: 5}), Atom({0: 4}, {1: 7, 2: 0})]
    summary = summarise(parts, ((0, 2), (1, -1)), 3)
    assert (summary.upper, summary.lower, summary.limit) == ({0: 4}, {1: 5}, max(2 * 3 - 5, 2 * 4 - 7))
    assert summarise([], (), 3).empty


@pytest.mark.parametrize(
    "weights",
    [
        ((2, 1),),
        ((1, 1),),
        ((3, -1),),
        ((-1, -1),),
        tuple([(0, 1 << 60)] * 8),  # 2⁶³ together: would wrap
    ],
)
def test_objectives_that_prove_nothing_are_refused(weights: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="objective"):
        summarise([Atom({0: 3}, {1: 5})], weights, 3)


def test_a_weight_given_twice_counts_twice() -> None:
    summary = summarise([Atom({0: 3}, {1: 5})], ((0, 1), (0, 1)), 3)
    assert (summary.weights, summary.limit) == ({0: 2}, 6)
