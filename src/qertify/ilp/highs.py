"""HiGHS: a floating-point branch-and-cut solver. Its INFEASIBLE is a claim, its points must be replayed."""

from __future__ import annotations

from typing import Any

import highspy
import numpy as np

from qertify.ilp.model import NO_HIGH, NO_LOW, Program, SolverAnswer, Status

TOLERANCE = 1e-9

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
    }
    if time_limit is not None:
        options["time_limit"] = time_limit
    for name, value in options.items():
        if solver.setOptionValue(name, value) != highspy.HighsStatus.kOk:
            return SolverAnswer(Status.FAILED, reason=f"HiGHS refuses the option {name} = {value}")
    if solver.passModel(_native(program)) == highspy.HighsStatus.kError:
        return SolverAnswer(Status.FAILED, reason="HiGHS refuses the program")
    solver.run()
    native = str(solver.getModelStatus().name)
    status = status_of(native)
    found = solver.getInfo().primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    if status is Status.FEASIBLE or (status is Status.LIMIT and found):
        values = np.rint(np.asarray(solver.getSolution().col_value, dtype=np.float64))
        if values.shape != program.low.shape or not np.all(np.isfinite(values)):
            return SolverAnswer(Status.FAILED, reason=f"HiGHS says {native} but gives no point")
        inside = np.clip(values.astype(np.int64), program.low, program.high)
        return SolverAnswer(Status.FEASIBLE, inside, optimal=status is Status.FEASIBLE)
    return SolverAnswer(status, reason="" if status is Status.INFEASIBLE else f"HiGHS ended with {native}")


def _native(program: Program) -> Any:
    """The program as a HighsLp."""
    columns, rows = len(program.low), len(program.row_low)
    lp: Any = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns, rows
    lp.col_cost_ = program.objective.astype(np.float64)
    lp.col_lower_, lp.col_upper_ = program.low.astype(np.float64), program.high.astype(np.float64)
    lp.row_lower_ = np.where(program.row_low == NO_LOW, -highspy.kHighsInf, program.row_low.astype(np.float64))
    lp.row_upper_ = np.where(program.row_high == NO_HIGH, highspy.kHighsInf, program.row_high.astype(np.float64))
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.num_col_, lp.a_matrix_.num_row_ = columns, rows
    lp.a_matrix_.start_ = program.starts.astype(np.int32)
    lp.a_matrix_.index_ = program.columns.astype(np.int32)
    lp.a_matrix_.value_ = program.coefficients.astype(np.float64)
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    lp.integrality_ = [kinds[flag] for flag in program.integer.tolist()]
    return lp
