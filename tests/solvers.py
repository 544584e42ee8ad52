"""The solvers of integer programs, those that are not installed marked as skipped."""

from __future__ import annotations

import pytest

from qertify.ilp.solvers import SOLVERS, installed


def needs(solver: str) -> pytest.MarkDecorator:
    """Skip, visibly, without an optional solver."""
    return pytest.mark.skipif(not installed(solver), reason=f"needs the extra '{solver}'")


ALL = [pytest.param(solver, marks=needs(solver)) for solver in SOLVERS]
"""Every solver, as parameters of a test."""
