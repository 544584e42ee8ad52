"""The table of solvers: name → "module:function", imported in the child process that runs it."""

from __future__ import annotations

from importlib.util import find_spec

from qertify.errors import InvalidInputError, MissingExtraError

SOLVERS: dict[str, str] = {
    "highs": "qertify.ilp.highs:solve",
    "cp-sat": "qertify.ilp.cp_sat:solve",
    "scip": "qertify.ilp.scip:solve",
    "gurobi": "qertify.ilp.gurobi:solve",
}

OPTIONAL: dict[str, str] = {"scip": "pyscipopt", "gurobi": "gurobipy"}
"""Solvers that an extra of their name brings → the package."""

EXACT_SOLVERS = frozenset({"cp-sat"})
"""Solvers that compute in integers, so that their INFEASIBLE is evidence; that of any other is only a claim."""


def installed(solver: str) -> bool:
    """Whether the package of a known solver is there."""
    return solver not in OPTIONAL or find_spec(OPTIONAL[solver]) is not None


def require_solver(solver: str) -> None:
    """Check that a solver can be used.

    Raises:
        InvalidInputError: a name that is not in the table.
        MissingExtraError: its package is not installed.
    """
    if solver not in SOLVERS:
        raise InvalidInputError(f"unknown solver '{solver}'; known: {', '.join(SOLVERS)}")
    if not installed(solver):
        raise MissingExtraError(f"the solver '{solver}'", solver)
