"""The table of solvers: name → "module:function", imported in the child process that runs it."""

from __future__ import annotations

SOLVERS: dict[str, str] = {
    "highs": "qertify.ilp.highs:solve",
    "cp-sat": "qertify.ilp.cp_sat:solve",
}

EXACT_SOLVERS = frozenset({"cp-sat"})
"""Solvers that compute in integers, so that their INFEASIBLE is evidence; that of any other is only a claim."""
