"""The solvers of integer programs, those that are not installed marked as skipped."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext

import pytest

from qertify.ilp.process import SolverProcesses
from qertify.ilp.solvers import SOLVERS, installed


def needs(solver: str) -> pytest.MarkDecorator:
    """Skip, visibly, without an optional solver."""
    return pytest.mark.skipif(not installed(solver), reason=f"needs the extra '{solver}'")


ALL = [pytest.param(solver, marks=needs(solver)) for solver in SOLVERS]
"""Every solver, as parameters of a test."""


@contextmanager
def shared_solvers() -> Generator[SolverProcesses]:
    """Solver processes that every question uses, in place of new ones for each."""
    with SolverProcesses() as processes, pytest.MonkeyPatch.context() as patch:
        for module in ("search.portfolio", "queries.nearest"):
            patch.setattr(f"qertify.{module}.SolverProcesses", lambda _=None: nullcontext(processes))
        yield processes
