"""SCIP: a floating-point branch-and-cut solver. Its INFEASIBLE is a claim, its points must be replayed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyscipopt

from qertify.ilp.model import NO_HIGH, NO_LOW, Program, SolverAnswer, Status

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
    bounds = zip(program.low.tolist(), program.high.tolist(), program.integer.tolist(), strict=True)
    columns = [model.addVar(lb=low, ub=high, vtype="I" if integer else "C") for low, high, integer in bounds]
    starts, entries, coefficients = program.starts.tolist(), program.columns.tolist(), program.coefficients.tolist()
    for row, (low, high) in enumerate(zip(program.row_low.tolist(), program.row_high.tolist(), strict=True)):
        part = slice(starts[row], starts[row + 1])
        total = pyscipopt.quicksum(a * columns[j] for j, a in zip(entries[part], coefficients[part], strict=True))
        if low != NO_LOW:
            model.addCons(total >= low if high == NO_HIGH else (total <= high) >= low)
        elif high != NO_HIGH:
            model.addCons(total <= high)
    chosen = np.flatnonzero(program.objective).tolist()
    model.setObjective(pyscipopt.quicksum(int(program.objective[j]) * columns[j] for j in chosen))
    model.optimize()
    native = str(model.getStatus())
    status = status_of(native)
    if status is Status.FEASIBLE or (status is Status.LIMIT and model.getNSols()):
        best = model.getBestSol()
        values = np.rint(np.array([model.getSolVal(best, column) for column in columns], dtype=np.float64))
        inside = np.clip(values.astype(np.int64), program.low, program.high)
        return SolverAnswer(Status.FEASIBLE, inside, optimal=status is Status.FEASIBLE)
    return SolverAnswer(status, reason="" if status is Status.INFEASIBLE else f"SCIP ended with {native}")
