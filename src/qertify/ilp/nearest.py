"""The nearest violation as one integer program, in which the distance from the centre is what is minimised."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from qertify.ilp.encode import Distance
from qertify.ilp.engine import EXACT_SOLVER, IlpEngine
from qertify.ilp.model import Status
from qertify.ilp.relaxations import fixed_pattern
from qertify.ilp.solvers import EXACT_SOLVERS
from qertify.network.tensor import IntegerArray

REPAIR_SECONDS = 20.0
"""Most seconds that the integer solver spends on repairing a rounded point."""


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """What one program told about the distance of violations.

    Attributes:
        free: no violation is this near or nearer; less than was asked about where nothing is known.
        exact: whether that is evidence; if not, it is a floating-point solver's claim and proves nothing.
        counterexample: int64, the network's input shape: input codes that violate the property, replayed; not always the
            nearest ones. An enclosure's nearest possible violation need not be one.
        solver: the solver whose word ``free`` is; "" if interval arithmetic sufficed.
        reason: why no answer came, one line.
    """

    free: int
    exact: bool
    counterexample: IntegerArray | None = None
    solver: str = ""
    reason: str = ""


def nearest_violation(
    engine: IlpEngine, centre: IntegerArray, least: int, greatest: int, solver: str, deadline: float | None
) -> Nearest:
    """Find the nearest violation of the engine's question among those at distances least … greatest.

    The counterexample and the bound are independent: each stands when the other is missing.

    Args:
        engine: its box holds every input that counts at distances up to ``greatest``.
        centre: int64, the input shape.
        least: a distance below which there is no violation.
        solver, deadline: as `IlpEngine.decide`.

    Raises:
        UnsupportedModelError: numbers too large for integer programs.
        SolverError: the solver's process can't be started.
    """
    encoding = engine.encode(engine.splitter.cases(), distance=Distance(centre, least, greatest))
    if encoding is None:
        return Nearest(greatest, exact=True)
    exact = solver in EXACT_SOLVERS
    answer = engine.solve(encoding.program, solver, deadline)
    if answer.status is Status.INFEASIBLE:
        return Nearest(greatest, exact, solver=solver)
    free, found = least - 1, None
    if answer.bound is not None:
        free = max(free, answer.bound - 1)
    if answer.values is not None:
        if answer.optimal:
            free = max(free, int(encoding.program.objective @ answer.values) - 1)
        found = engine.replay(encoding, answer.values)
        if found is None and exact and engine.network.exactness == "exact":
            return Nearest(least - 1, exact, solver=solver, reason=f"the point of {solver} is not a counterexample")
        if found is None and not exact:
            until = time.monotonic() + REPAIR_SECONDS
            until = until if deadline is None else min(until, deadline)
            repaired = engine.solve(fixed_pattern(encoding, answer.values), EXACT_SOLVER, until)
            found = None if repaired.values is None else engine.replay(encoding, repaired.values)
    if found is not None and exact:
        free = min(free, int(np.abs(found - centre).max()) - 1)
    return Nearest(free, exact, found, solver, answer.reason)
