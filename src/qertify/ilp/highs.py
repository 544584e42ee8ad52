"""HiGHS: a floating-point branch-and-cut solver. Its INFEASIBLE is a claim, its points must be replayed."""

from __future__ import annotations

from typing import Any

import highspy
import numpy as np

from qertify.ilp.floating import FloatingProgram, floating
from qertify.ilp.model import Program, SolverAnswer, Status

TOLERANCE = 1e-9
GAP = 1e-7
"""Relative distance from the least objective at which a point is optimal."""

STATUSES: dict[str, Status] = {
    "kOptimal": Status.FEASIBLE,
    "kModelEmpty": Status.FEASIBLE,
    "kInfeasible": Status.INFEASIBLE,
    "kTimeLimit": Status.LIMIT,
    "kIterationLimit": Status.LIMIT,
    "kSolutionLimit": Status.LIMIT,
    "kMemoryLimit": Status.LIMIT,
    "kInterrupt": Status.LIMIT,
    "kHighsInterrupt": Status.LIMIT,
}
"""Native status → status; any other is FAILED."""


def status_of(native: str) -> Status:
    return STATUSES.get(native, Status.FAILED)


def solve(program: Program, time_limit: float | None, threads: int, seed: int) -> SolverAnswer:
    """Solve a program.

    Args:
        program: any program; numbers beyond 2⁵³ lose digits here, as everything HiGHS says is checked elsewhere.
        time_limit: seconds, None for none; HiGHS may overrun it by far.
        threads: number of threads.
        seed: of its random choices.
    """
    solver: Any = highspy.Highs()
    options: dict[str, Any] = {
        "output_flag": False,
        "threads": threads,
        "random_seed": seed,
        "mip_feasibility_tolerance": TOLERANCE,
        "primal_feasibility_tolerance": TOLERANCE,
        "mip_rel_gap": GAP,
    }
    if time_limit is not None:
        options["time_limit"] = time_limit
    for name, value in options.items():
        if solver.setOptionValue(name, value) != highspy.HighsStatus.kOk:
            return SolverAnswer(Status.FAILED, reason=f"HiGHS refuses the option {name} = {value}")
    scaled = floating(program)
    if solver.passModel(_native(program, scaled)) == highspy.HighsStatus.kError:
        return SolverAnswer(Status.FAILED, reason="HiGHS refuses the program")
    solver.run()
    native = str(solver.getModelStatus().name)
    status = status_of(native)
    known = status in (Status.FEASIBLE, Status.LIMIT) and np.any(program.objective) and np.any(program.integer)
    bound = scaled.bound(solver.getInfo().mip_dual_bound) if known else None
    if status is Status.FEASIBLE and np.any(program.objective) and not known:
        bound = scaled.bound(solver.getInfo().objective_function_value)
    found = solver.getInfo().primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    if status is Status.FEASIBLE or (status is Status.LIMIT and found):
        values = np.asarray(solver.getSolution().col_value, dtype=np.float64)
        if values.shape != program.low.shape or not np.all(np.isfinite(values)):
            return SolverAnswer(Status.FAILED, reason=f"HiGHS says {native} but gives no point")
        return SolverAnswer(Status.FEASIBLE, scaled.values(values, program), optimal=status is Status.FEASIBLE, bound=bound)
    return SolverAnswer(status, reason="" if status is Status.INFEASIBLE else f"HiGHS ended with {native}", bound=bound)


def _native(program: Program, scaled: FloatingProgram) -> Any:
    """The program as a HighsLp."""
    columns, rows = len(program.low), len(program.row_low)
    lp: Any = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns, rows
    lp.col_cost_ = scaled.objective
    lp.col_lower_, lp.col_upper_ = scaled.low, scaled.high
    lp.row_lower_, lp.row_upper_ = scaled.row_low, scaled.row_high
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.num_col_, lp.a_matrix_.num_row_ = columns, rows
    lp.a_matrix_.start_ = program.starts.astype(np.int32)
    lp.a_matrix_.index_ = program.columns.astype(np.int32)
    lp.a_matrix_.value_ = scaled.coefficients
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    lp.integrality_ = [kinds[flag] for flag in program.integer.tolist()]
    return lp
