"""The radius question as one integer program, in which the radius is a variable; posed with the care of a robustness query."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from qertify.ilp.engine import engine_for
from qertify.ilp.nearest import nearest_violation
from qertify.ilp.process import SolverProcesses
from qertify.options import Options
from qertify.queries.robustness import RobustnessQuery, counterexample_of
from qertify.result import Counterexample, Evidence
from qertify.runtimes.saturation import CpuClass, arithmetic_doubts, host_cpu_class
from qertify.specification.judge import Run


@dataclass(frozen=True, slots=True)
class NearestResult:
    """What one integer program told about the radius.

    Attributes:
        verified: robust at this radius; one less than was asked about where nothing is known.
        evidence: what that rests on, possibly only a floating-point solver's claim.
        counterexample: replayed, not always the nearest one.
    """

    verified: int
    evidence: Evidence
    counterexample: Counterexample | None = None


def nearest_counterexample(
    query: RobustnessQuery,
    least: int,
    options: Options,
    say: Callable[[str], None] = lambda _: None,
    run: Run | None = None,
) -> NearestResult | None:
    """Minimise the distance of a violation in the query's ball; nothing if its arithmetic is in doubt there.

    Args:
        query: the largest ball that counts; its radius in levels.
        least: a distance below which there is no violation.
        options: solver, encoding and limits.
        say: gets one line.
        run: as `qertify.queries.robustness.verify`.

    Raises:
        UnsupportedModelError: numbers too large for integer programs.
    """
    cpu_class = host_cpu_class() if options.cpu_class is None else CpuClass(options.cpu_class)
    if arithmetic_doubts(query.network, cpu_class, query.region):
        return None
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    with SolverProcesses(options.memory) as processes:
        engine = replace(
            engine_for(query.network, query.region, query.property, processes, seed=options.seed, encoding=options.encoding),
            run=run,
        )
        found = nearest_violation(engine, query.centre, least, int(query.radius), options.solver, deadline)
    proof = Evidence.EXACT_SOLVER if found.solver else Evidence.EXACT_BOUNDS
    say(
        f"ilp ({options.solver}): no violation within {found.free}{'' if found.exact else ' is claimed'}, "
        f"{'a' if found.counterexample is not None else 'no'} counterexample {found.reason}".rstrip()
    )
    return NearestResult(
        found.free,
        proof if found.exact else Evidence.SOLVER_CLAIM,
        None if found.counterexample is None else counterexample_of(query, found.counterexample, run),
    )
