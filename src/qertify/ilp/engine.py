"""The ILP engine: cases of a violation as integer programs, solved in child processes, every answer judged exactly.

A counterexample counts only after the reference evaluator confirmed it, an infeasibility only as what its solver can
give: evidence from an integer solver or from interval arithmetic, a claim from a floating-point one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from qertify.ilp.encode import Bounds, Distance, Encoding, encode
from qertify.ilp.model import Program, SolverAnswer, Status
from qertify.ilp.process import SolverProcesses
from qertify.ilp.relaxations import binaries_only, fixed_pattern, rounding_margin
from qertify.ilp.solvers import EXACT_SOLVERS
from qertify.network.network import Network
from qertify.network.ranges import Range, ranges
from qertify.network.tensor import IntegerArray
from qertify.specification.cases import Case
from qertify.specification.judge import Judge, Run
from qertify.specification.region import IntegerBox
from qertify.specification.splitting import Property, Splitter, splitter_of

EXACT_SOLVER = "cp-sat"
"""The integer solver that repairs rounded points."""

EARLY = 0.1
"""Seconds before its limit at which a solver that ends without an answer is taken to have given up for another reason."""


@dataclass(frozen=True, slots=True, eq=False)
class IlpAnswer:
    """What the engine found out.

    Attributes:
        status: FEASIBLE with a counterexample, INFEASIBLE if there is none, LIMIT or FAILED if that stays open.
        exact: whether INFEASIBLE is evidence; if not, it is a floating-point solver's claim and proves nothing.
        counterexample: int64, the network's input shape: input codes in the box that violate the property, replayed.
        solvers: the solvers whose word the answer rests on; empty if interval arithmetic sufficed.
        reason: why LIMIT or FAILED, one line.
        open: cases that stayed undecided.
    """

    status: Status
    exact: bool = False
    counterexample: IntegerArray | None = None
    solvers: frozenset[str] = frozenset()
    reason: str = ""
    open: tuple[Case, ...] = ()

    def __post_init__(self) -> None:
        if (self.status is Status.FEASIBLE) != (self.counterexample is not None):
            raise ValueError("feasible needs a replayed counterexample")


@dataclass(frozen=True, slots=True)
class Stage:
    """One way to ask about a case.

    Attributes:
        program: what the solver gets.
        conclusive: whether its infeasibility is that of the case.
        repair: whether a rounded point that is no counterexample is given to the integer solver.
        slot: seconds for one case in the first round, where there are several stages.
    """

    program: Callable[[Encoding], Program]
    conclusive: bool
    repair: bool = False
    slot: float = 1.0


def _itself(encoding: Encoding) -> Program:
    return encoding.program


EXACT_STAGES = (Stage(_itself, conclusive=True),)
"""An integer solver is asked about the program itself."""

FLOATING_STAGES = (
    Stage(binaries_only, conclusive=True, slot=3.0),
    Stage(partial(rounding_margin, factor=2.0), conclusive=False),
    Stage(partial(rounding_margin, factor=0.5), conclusive=False),
    Stage(_itself, conclusive=True, repair=True),
)
"""A floating-point solver settles most cases by a relaxation, and finds most counterexamples by rounding with a margin."""

PLAIN_STAGES = (Stage(_itself, conclusive=True, repair=True),)
"""A floating-point solver is asked about the program itself, as published methods do."""


@dataclass(frozen=True, slots=True, eq=False)
class IlpEngine:
    """One question, ready to be asked case by case; as branch and bound does at its leaves.

    Attributes:
        network, box, property: the question.
        splitter: of the question's cases.
        known: proved ranges of all nodes over the box, shape (1, *node shape).
        processes: where the solvers run.
        threads, seed: of the solvers.
        encoding: "compact", or "one-hot": the published encoding, asked as it was published, all cases in one program.
        propagate: whether programs use interval arithmetic over the box, besides ``known``.
        run: the real runtime, for an enclosure.
    """

    network: Network
    box: IntegerBox
    property: Property
    splitter: Splitter
    known: Mapping[str, Range]
    processes: SolverProcesses
    threads: int = 1
    seed: int = 0
    encoding: str = "compact"
    propagate: bool = True
    run: Run | None = None

    def decide_case(self, case: Case, solver: str, deadline: float | None, bounds: Bounds | None = None) -> IlpAnswer:
        """Decide whether one case has a violation in the box; as `decide`."""
        return self.decide((case,), solver, deadline, bounds)

    def decide(self, cases: Sequence[Case], solver: str, deadline: float | None, bounds: Bounds | None = None) -> IlpAnswer:
        """Decide whether any of the cases has a violation in the box.

        Every stage asks about all open cases before the next one begins, so that one hard case does not keep an easy
        counterexample from being found. Time is shared out evenly, or, where there are several stages, given in slots
        that double from round to round.

        Args:
            cases: cases of this question, of one level or many; all levels of each are encoded, exactly.
            solver: name of the solver.
            deadline: of `time.monotonic`, None for none.
            bounds: extra bounds on accumulators (name → least, greatest): then only inputs that keep them are asked about.
                A counterexample violates the property in any case.

        Raises:
            UnsupportedModelError: numbers too large for integer programs.
            SolverError: the solver's process can't be started.
        """
        together = self.encoding == "one-hot"
        pending = [
            (part, encoding)
            for part in ([tuple(cases)] if together else [(case,) for case in cases])
            if (encoding := self.encode(part, bounds)) is not None
        ]
        if not pending:
            return IlpAnswer(Status.INFEASIBLE, exact=True)
        stages = EXACT_STAGES if solver in EXACT_SOLVERS else PLAIN_STAGES if together else FLOATING_STAGES
        failed: list[tuple[tuple[Case, ...], str]] = []
        reason, patience = "no time left", 1
        while pending and not _late(deadline):
            for stage in stages:
                queue, pending = pending, []
                for position, (part, encoding) in enumerate(queue):
                    until = (
                        _share(deadline, len(queue) - position)
                        if len(stages) == 1
                        else _earlier(deadline, patience * stage.slot)
                    )
                    answer = self._ask(stage, encoding, solver, until)
                    if answer.status is Status.FEASIBLE:
                        return answer
                    if answer.status is Status.INFEASIBLE:
                        continue
                    reason = answer.reason
                    gave_up = until is None or time.monotonic() < until - EARLY
                    if stage is stages[-1] and (answer.status is Status.FAILED or gave_up):  # more time would not help
                        failed.append((part, answer.reason))
                    else:
                        pending.append((part, encoding))
            patience *= 2
        left = tuple(case for part, _ in [*failed, *pending] for case in part)
        if failed:
            return IlpAnswer(Status.FAILED, reason=failed[0][1], open=left)
        if pending:
            return IlpAnswer(Status.LIMIT, reason=reason, open=left)
        return IlpAnswer(Status.INFEASIBLE, solver in EXACT_SOLVERS, solvers=frozenset({solver}))

    def encode(self, cases: Sequence[Case], bounds: Bounds | None = None, distance: Distance | None = None) -> Encoding | None:
        """The program in which one of the cases holds; None if interval arithmetic shows that none does."""
        levels = [self.splitter.levels(case) for case in cases]
        return encode(
            self.network, self.box, self.splitter.view, levels, self.known, bounds, self.encoding, distance, self.propagate
        )

    def _ask(self, stage: Stage, encoding: Encoding, solver: str, deadline: float | None) -> IlpAnswer:
        """One stage on one case. INFEASIBLE and FEASIBLE are final; anything else leaves the case open."""
        answer = self.solve(stage.program(encoding), solver, deadline)
        if answer.status is Status.INFEASIBLE and stage.conclusive:
            return IlpAnswer(Status.INFEASIBLE, solver in EXACT_SOLVERS, solvers=frozenset({solver}))
        if answer.values is None:
            return IlpAnswer(Status.LIMIT if answer.status is Status.INFEASIBLE else answer.status, reason=answer.reason)
        found = self.replay(encoding, answer.values)
        if found is None and stage.repair:
            solver = EXACT_SOLVER
            answer = self.solve(fixed_pattern(encoding, answer.values), solver, deadline)
            found = None if answer.values is None else self.replay(encoding, answer.values)
        if found is not None:
            return IlpAnswer(Status.FEASIBLE, counterexample=found, solvers=frozenset({solver}))
        if answer.status is Status.LIMIT:
            return IlpAnswer(Status.LIMIT, reason=answer.reason)
        return IlpAnswer(Status.FAILED, reason=f"the point of {solver} is not a counterexample")

    def solve(self, program: Program, solver: str, deadline: float | None) -> SolverAnswer:
        return self.processes.solve(solver, program, deadline, self.threads, self.seed)

    def replay(self, encoding: Encoding, values: IntegerArray) -> IntegerArray | None:
        """The inputs of a solver's point, if they lie in the box and are judged to violate the property."""
        codes = encoding.inputs(values).reshape(1, *self.network.input_shape)
        judge = Judge(self.network, self.property, self.run)
        if not self.box.contains(codes)[0] or not judge.judge(codes).violated[0]:
            return None
        return codes[0]


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _earlier(deadline: float | None, seconds: float) -> float:
    """The deadline, or that many seconds from now."""
    end = time.monotonic() + seconds
    return end if deadline is None else min(end, deadline)


def _share(deadline: float | None, parts: int) -> float | None:
    """The time at which an equal part of what is left is spent."""
    if deadline is None:
        return None
    now = time.monotonic()
    return now + max(0.0, deadline - now) / parts


def engine_for(
    network: Network,
    box: IntegerBox,
    property_: Property,
    processes: SolverProcesses,
    known: Mapping[str, Range] | None = None,
    threads: int = 1,
    seed: int = 0,
    encoding: str = "compact",
) -> IlpEngine:
    """Prepare a question.

    Args:
        known: proved ranges of all nodes over the box, shape (1, *node shape); None for those of interval arithmetic.

    Raises:
        UnsupportedModelError: output codes that can't be compared.
        InvalidInputError: the property does not fit the network's outputs.
    """
    property_.check(network.output_size)
    known = ranges(network, box.low[None], box.high[None]) if known is None else known
    splitter = splitter_of(network, property_, known)
    return IlpEngine(network, box, property_, splitter, known, processes, threads, seed, encoding)


def decide_case(
    network: Network,
    box: IntegerBox,
    property_: Property,
    case: Case,
    known: Mapping[str, Range],
    solver: str,
    deadline: float | None,
    bounds: Bounds | None = None,
) -> IlpAnswer:
    """Decide one case in a process of its own; see `IlpEngine.decide_case`, which reuses processes."""
    with SolverProcesses() as processes:
        return engine_for(network, box, property_, processes, known).decide_case(case, solver, deadline, bounds)


def decide(
    network: Network,
    box: IntegerBox,
    property_: Property,
    solver: str,
    deadline: float | None,
    memory: int | None = None,
    threads: int = 1,
    seed: int = 0,
    encoding: str = "compact",
) -> IlpAnswer:
    """Decide a property on a box with integer programs only.

    Args:
        network, box, property_: the question.
        solver: name of the solver.
        deadline: of `time.monotonic`, None for none; passed by at most the grace of the solver's process.
        memory: limit of the solver's process in bytes, None for none.
        threads, seed: of the solver.
        encoding: "compact" or "one-hot".

    Raises:
        UnsupportedModelError: output codes that can't be compared, or numbers too large for integer programs.
        InvalidInputError: an unknown solver, or a property that does not fit the network's outputs.
        MissingExtraError: a solver that is not installed.
        SolverError: its process can't be started.
    """
    with SolverProcesses(memory) as processes:
        engine = engine_for(network, box, property_, processes, threads=threads, seed=seed, encoding=encoding)
        return engine.decide(engine.splitter.cases(), solver, deadline)
