"""SCIP: a floating-point branch-and-cut solver. Its INFEASIBLE is a claim, its points must be replayed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyscipopt

from qertify.ilp.floating import floating
from qertify.ilp.model import Program, SolverAnswer, Status

TOLERANCE = 1e-9

STATUSES: dict[str, Status] = {
    "optimal": Status.FEASIBLE,
    "infeasible": Status.INFEASIBLE,
    "timelimit": Status.LIMIT,
    "memlimit": Status.LIMIT,
    "nodelimit": Status.LIMIT,
    "totalnodelimit": Status.LIMIT,
    "stallnodelimit": Status.LIMIT,
    "gaplimit": Status.LIMIT,
    "primallimit": Status.LIMIT,
    "duallimit": Status.LIMIT,
    "sollimit": Status.LIMIT,
    "bestsollimit": Status.LIMIT,
    "restartlimit": Status.LIMIT,
    "userinterrupt": Status.LIMIT,
}
"""Native status → status; any other is FAILED."""


def status_of(native: str) -> Status:
    return STATUSES.get(native, Status.FAILED)


def solve(program: Program, time_limit: float | None, threads: int, seed: int) -> SolverAnswer:
    """Solve a program.

    Args:
        program: any program; numbers beyond 2⁵³ lose digits here, as everything SCIP says is checked elsewhere.
        time_limit: seconds, None for none; SCIP may overrun it.
        threads: ignored, SCIP's search runs on one thread.
        seed: of its random choices.
    """
    model: Any = pyscipopt.Model()
    model.hideOutput()
    model.setParam("numerics/feastol", TOLERANCE)
    model.setParam("randomization/randomseedshift", seed)
    if time_limit is not None:
        model.setParam("limits/time", time_limit)
    scaled = floating(program)
    bounds = zip(scaled.low.tolist(), scaled.high.tolist(), program.integer.tolist(), strict=True)
    columns = [model.addVar(lb=low, ub=high, vtype="I" if integer else "C") for low, high, integer in bounds]
    starts, entries, coefficients = program.starts.tolist(), program.columns.tolist(), scaled.coefficients.tolist()
    for row, (low, high) in enumerate(zip(scaled.row_low.tolist(), scaled.row_high.tolist(), strict=True)):
        part = slice(starts[row], starts[row + 1])
        total = pyscipopt.quicksum(a * columns[j] for j, a in zip(entries[part], coefficients[part], strict=True))
        if low != -np.inf:
            model.addCons(total >= low if high == np.inf else (total <= high) >= low)
        elif high != np.inf:
            model.addCons(total <= high)
    chosen = np.flatnonzero(program.objective).tolist()
    model.setObjective(pyscipopt.quicksum(float(scaled.objective[j]) * columns[j] for j in chosen))
    model.optimize()
    native = str(model.getStatus())
    status = status_of(native)
    known = status in (Status.FEASIBLE, Status.LIMIT) and bool(chosen)
    bound = scaled.bound(float(model.getDualbound())) if known else None
    if status is Status.FEASIBLE or (status is Status.LIMIT and model.getNSols()):
        best = model.getBestSol()
        values = np.array([model.getSolVal(best, column) for column in columns], dtype=np.float64)
        return SolverAnswer(Status.FEASIBLE, scaled.values(values, program), optimal=status is Status.FEASIBLE, bound=bound)
    return SolverAnswer(status, reason="" if status is Status.INFEASIBLE else f"SCIP ended with {native}", bound=bound)
