"""CP-SAT: computes in integers, so its INFEASIBLE is evidence; it is a named part of what is trusted."""

from __future__ import annotations

from math import floor, isfinite
from typing import Any

import numpy as np
from ortools.sat.python import cp_model

from qertify.ilp.model import MAGNITUDE_LIMIT, Program, SolverAnswer, Status

STATUSES: dict[str, Status] = {
    "OPTIMAL": Status.FEASIBLE,
    "FEASIBLE": Status.FEASIBLE,
    "INFEASIBLE": Status.INFEASIBLE,
    "UNKNOWN": Status.LIMIT,
}
"""Native status → status; any other is FAILED."""


def status_of(native: str) -> Status:
    return STATUSES.get(native, Status.FAILED)


def solve(program: Program, time_limit: float | None, threads: int, seed: int) -> SolverAnswer:
    """Solve a program in integers.

    Args:
        program: any program whose row activities fit 61 bits, else the answer is FAILED.
        time_limit: seconds, None for none.
        threads: number of workers.
        seed: of its random choices.
    """
    if max(program.activity_limits(), default=0) >= MAGNITUDE_LIMIT:
        return SolverAnswer(Status.FAILED, reason="a row may exceed the 64-bit integers that CP-SAT computes with")
    model: Any = cp_model.CpModel()
    bounds = zip(program.low.tolist(), program.high.tolist(), strict=True)
    columns = [model.new_int_var(low, high, "") for low, high in bounds]
    starts, entries, coefficients = program.starts.tolist(), program.columns.tolist(), program.coefficients.tolist()
    for row, sides in enumerate(zip(program.row_low.tolist(), program.row_high.tolist(), strict=True)):
        part = slice(starts[row], starts[row + 1])
        total = cp_model.LinearExpr.weighted_sum([columns[j] for j in entries[part]], coefficients[part])
        model.add_linear_constraint(total, *sides)
    if np.any(program.objective):
        model.minimize(cp_model.LinearExpr.weighted_sum(columns, program.objective.tolist()))
    solver: Any = cp_model.CpSolver()
    if time_limit is not None:
        solver.parameters.max_time_in_seconds = time_limit
    solver.parameters.num_workers = threads
    solver.parameters.random_seed = seed % (1 << 31)
    native = str(solver.status_name(solver.solve(model)))
    status = status_of(native)
    reason = "" if status is Status.INFEASIBLE else f"CP-SAT ended with {native} {model.validate()}".strip()
    known = status in (Status.FEASIBLE, Status.LIMIT) and np.any(program.objective)
    bound = floor(solver.best_objective_bound) if known and isfinite(solver.best_objective_bound) else None
    if status is Status.FEASIBLE:
        values = np.array([solver.value(column) for column in columns], dtype=np.int64)
        return SolverAnswer(status, values, optimal=native == "OPTIMAL", bound=bound)
    return SolverAnswer(status, reason=reason, bound=bound)
