"""The levels of staircases."""

from __future__ import annotations

import numpy as np

from qertify.bounds.ladder import Ladder


def test_levels_and_their_spans() -> None:
    ladder = Ladder(np.array([[0.0, 10.0], [5.0, np.inf]]), np.array([-1.0, 7.0]), np.array([0, 0, 0, 1, 1]))
    level = ladder.level(np.array([-3.0, 0.0, 10.0, 4.0, 5.0]))
    assert level.tolist() == [-1, 0, 1, 7, 8]
    low, high = ladder.span(level)
    assert low.tolist() == [-np.inf, 0, 10, -np.inf, 5]
    assert high.tolist() == [-1, 9, np.inf, 4, np.inf]


def test_a_staircase_of_one_level_has_it_everywhere() -> None:
    ladder = Ladder(np.zeros((1, 0)), np.array([3.0]), np.zeros(2, dtype=np.int64))
    level = ladder.level(np.array([-5.0, 5.0]))
    assert level.tolist() == [3, 3]
    assert [end.tolist() for end in ladder.span(level)] == [[-np.inf] * 2, [np.inf] * 2]
