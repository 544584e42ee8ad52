"""How the time is shared among the cases of an integer program."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from qertify.search.equivalence_ilp import CaseAnswer, JointSolver
from qertify.specification.cases import Case

CASES = tuple(Case(row, None, 0, 0, ((row, 1),), 0) for row in range(3))


def _solver(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Case, float | None], CaseAnswer]) -> JointSolver:
    monkeypatch.setattr(JointSolver, "close", lambda _self, case, until, _enough: answer(case, until))
    monkeypatch.setattr(JointSolver, "least", lambda _self, case, until: answer(case, until))
    return JointSolver.__new__(JointSolver)


def test_what_cases_leave_goes_to_those_that_were_short_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: list[float] = []

    def answer(case: Case, until: float | None) -> CaseAnswer:
        assert until is not None
        seconds.append(until - time.monotonic())
        short = case is CASES[0] and len(seconds) < 4
        return CaseAnswer(closed=not short, limited=short, bound=-len(seconds))

    solver = _solver(monkeypatch, answer)
    answers = solver.ask(CASES, time.monotonic() + 90, lambda: False)
    assert answers.closed
    assert not answers.limited
    assert answers.bounds == (-1, -2, -3)  # the better one of each case
    assert seconds == pytest.approx([30, 45, 90, 90], abs=1)  # pyright: ignore


def test_every_case_is_asked_once_when_it_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = _solver(monkeypatch, lambda _case, _until: CaseAnswer(closed=False, limited=True))
    for deadline in (time.monotonic() - 1, None):
        answers = solver.ask(CASES, deadline, None)
        assert answers.bounds == (None, None, None)
        assert answers.limited
        assert not answers.closed
