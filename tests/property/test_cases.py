"""The case split covers exactly the violations, for every pair of accumulators and every tie rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qertify.network.staircase import Rounding, Steps, shift_steps
from qertify.network.tensor import as_integers
from qertify.specification.cases import Case, CaseSplitter, OutputView
from qertify.specification.property import Classification, Ties

REACH = range(-6, 7)


def _necessary(case: Case, z: tuple[int, ...]) -> bool:
    linear = sum(weight * z[index] for index, weight in case.weights) <= case.limit
    return linear and all(z[i] <= b for i, b in case.upper) and all(z[i] >= b for i, b in case.lower)


def _splitters(seed: int):
    generator = np.random.default_rng(seed)
    for ties in Ties:
        for kind in range(4):
            low = int(generator.integers(-3, 1))
            high = low + int(generator.integers(1, 6))
            if kind == 0:
                steps: Steps | None = shift_steps(
                    int(generator.integers(0, 3)), list(Rounding)[int(generator.integers(5))], low, high
                )
                row = np.zeros(3, dtype=np.int64)
            elif kind == 1:
                steps, row = None, np.zeros(3, dtype=np.int64)
            else:
                gaps = generator.integers(0 if kind == 3 else 1, 4, size=(3, high - low))
                steps = Steps(as_integers(np.cumsum(gaps, axis=1) + generator.integers(-8, 2, size=(3, 1))), low)
                row = np.arange(3)
            view = OutputView("z", np.arange(3), steps, row)
            target = int(generator.integers(0, 2)) if generator.random() < 0.3 else None
            limits = np.full(3, REACH[0]), np.full(3, REACH[-1])
            yield CaseSplitter(
                view, Classification(2 if target is not None else int(generator.integers(3)), target, ties), *limits
            )


@pytest.mark.parametrize("seed", range(5))
def test_cases_cover_the_violation_and_single_levels_are_exact(seed: int) -> None:
    grid = np.array(list(itertools.product(REACH, REACH, REACH)))
    for splitter in _splitters(seed):
        steps = splitter.view.steps
        outputs = (
            grid if steps is None else np.stack([steps.value(int(splitter.view.row[k]), grid[:, k]) for k in range(3)], axis=1)
        )
        truth = splitter.property.violated(outputs)
        cases = splitter.cases()
        covered = np.array([any(_necessary(case, tuple(z)) for case in cases) for z in grid.tolist()])
        assert not np.any(truth & ~covered)
        singles = [part for case in cases for part in splitter.levels(case)]
        exact = np.array([any(_necessary(case, tuple(z)) for case in singles) for z in grid.tolist()])
        assert np.array_equal(exact, truth)
        for case in cases:
            if not case.single:
                halves = splitter.bisect(case)
                levels = [(part.first, part.last) for half in halves for part in splitter.levels(half)]
                assert levels == [(part.first, part.last) for part in splitter.levels(case)]
