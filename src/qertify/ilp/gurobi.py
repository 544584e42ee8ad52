"""Gurobi: a floating-point branch-and-cut solver. Its INFEASIBLE is a claim, its points must be replayed."""

from __future__ import annotations

from typing import Any

import gurobipy
import numpy as np
from gurobipy import GRB

from qertify.ilp.floating import floating
from qertify.ilp.model import Program, SolverAnswer, Status

TOLERANCE = 1e-9

STATUSES: dict[str, Status] = {
    "OPTIMAL": Status.FEASIBLE,
    "INFEASIBLE": Status.INFEASIBLE,
    "TIME_LIMIT": Status.LIMIT,
    "MEM_LIMIT": Status.LIMIT,
    "NODE_LIMIT": Status.LIMIT,
    "ITERATION_LIMIT": Status.LIMIT,
    "WORK_LIMIT": Status.LIMIT,
    "SOLUTION_LIMIT": Status.LIMIT,
    "INTERRUPTED": Status.LIMIT,
}
"""Native status → status; any other is FAILED."""

NAMES: dict[int, str] = {getattr(GRB.Status, name): name for name in dir(GRB.Status) if name.isupper()}


def status_of(native: str) -> Status:
    return STATUSES.get(native, Status.FAILED)


def solve(program: Program, time_limit: float | None, threads: int, seed: int) -> SolverAnswer:
    """Solve a program.

    Args:
        program: any program that the licence admits, else the answer is FAILED; numbers beyond 2⁵³ lose digits here, as
            everything Gurobi says is checked elsewhere.
        time_limit: seconds, None for none.
        threads: number of threads.
        seed: of its random choices.
    """
    try:
        with gurobipy.Env(params={"OutputFlag": 0}) as environment, gurobipy.Model(env=environment) as model:
            return _solve(model, program, time_limit, threads, seed)
    except gurobipy.GurobiError as error:
        return SolverAnswer(Status.FAILED, reason=_explain(error, program))


def _explain(error: gurobipy.GurobiError, program: Program) -> str:
    """One line."""
    if error.errno == GRB.Error.SIZE_LIMIT_EXCEEDED:
        size = f"{len(program.low)} variables and {len(program.row_low)} rows"
        return f"the Gurobi licence is limited to small programs, and this one has {size}"
    text = " ".join(str(error).split())
    return f"no Gurobi licence: {text}" if error.errno == GRB.Error.NO_LICENSE else f"Gurobi: {text}"


def _solve(model: Any, program: Program, time_limit: float | None, threads: int, seed: int) -> SolverAnswer:
    model.Params.Threads = threads
    model.Params.Seed = seed
    model.Params.IntFeasTol = model.Params.FeasibilityTol = TOLERANCE
    if time_limit is not None:
        model.Params.TimeLimit = time_limit
    kinds = [GRB.INTEGER if integer else GRB.CONTINUOUS for integer in program.integer.tolist()]
    scaled = floating(program)
    box = {"lb": scaled.low.tolist(), "ub": scaled.high.tolist(), "obj": scaled.objective.tolist()}
    columns = list(model.addVars(len(kinds), vtype=kinds, **box).values())
    starts, entries, coefficients = program.starts.tolist(), program.columns.tolist(), scaled.coefficients.tolist()
    for row, (low, high) in enumerate(zip(scaled.row_low.tolist(), scaled.row_high.tolist(), strict=True)):
        part = slice(starts[row], starts[row + 1])
        total = gurobipy.LinExpr(coefficients[part], [columns[j] for j in entries[part]])
        if low == high:
            model.addLConstr(total, GRB.EQUAL, low)
            continue
        if low != -np.inf:
            model.addLConstr(total, GRB.GREATER_EQUAL, low)
        if high != np.inf:
            model.addLConstr(total, GRB.LESS_EQUAL, high)
    model.optimize()
    native = NAMES.get(model.Status, str(model.Status))
    status = status_of(native)
    known = status in (Status.FEASIBLE, Status.LIMIT) and np.any(program.objective)
    bound = scaled.bound(float(model.ObjBound)) if known else None
    if status is Status.FEASIBLE or (status is Status.LIMIT and model.SolCount):
        point = scaled.values(np.array([column.X for column in columns], dtype=np.float64), program)
        return SolverAnswer(Status.FEASIBLE, point, optimal=status is Status.FEASIBLE, bound=bound)
    return SolverAnswer(status, reason="" if status is Status.INFEASIBLE else f"Gurobi ended with {native}", bound=bound)
