"""The table of solvers: name → "module:function", imported in the child process that runs it."""

from __future__ import annotations

SOLVERS: dict[str, str] = {
    "highs": "qertify.ilp.highs:solve",
    "cp-sat": "qertify.ilp.cp_sat:solve",
}
