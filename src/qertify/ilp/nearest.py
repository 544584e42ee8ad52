"""The nearest violation as one integer program, in which the distance from the centre is what is minimised."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from qertify.ilp.encode import Distance, Encoding
from qertify.ilp.engine import EXACT_SOLVER, IlpEngine
from qertify.ilp.model import Status
from qertify.ilp.relaxations import fixed_pattern, rounding_margin
from qertify.ilp.solvers import EXACT_SOLVERS
from qertify.network.tensor import IntegerArray

MARGINS = (2.0, 0.5)
"""Margins with which a floating-point solver looks for counterexamples by rounding, before it gets the program itself."""
MARGIN_SECONDS = 20.0
"""Most seconds for each."""
SHARE = 4
"""The part of what is left of the time that each may take."""
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
    known: IntegerArray | None = None
    if not exact and engine.encoding == "compact":
        for factor in MARGINS:
            known = _rounded(engine, encoding, factor, solver, deadline)
            if known is not None:
                greatest = int(np.abs(known - centre).max()) - 1
                if greatest < least:
                    return Nearest(greatest, exact=True, counterexample=known)
                encoding = _below(encoding, greatest)
                break
    answer = engine.solve(encoding.program, solver, deadline)
    if answer.status is Status.INFEASIBLE:
        return Nearest(greatest, exact, known, solver)
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
    return Nearest(free, exact, known if found is None else found, solver, answer.reason)


def _rounded(engine: IlpEngine, encoding: Encoding, factor: float, solver: str, deadline: float | None) -> IntegerArray | None:
    """A counterexample by rounding with a margin, in a part of the time."""
    now = time.monotonic()
    until = now + (MARGIN_SECONDS if deadline is None else min(MARGIN_SECONDS, (deadline - now) / SHARE))
    answer = engine.solve(rounding_margin(encoding, factor), solver, until)
    return None if answer.values is None else engine.replay(encoding, answer.values)


def _below(encoding: Encoding, greatest: int) -> Encoding:
    """The same with another greatest distance."""
    high = encoding.program.high.copy()
    high[np.flatnonzero(encoding.program.objective)] = greatest
    return replace(encoding, program=replace(encoding.program, high=high))
