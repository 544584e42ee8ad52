"""The ILP engine: cases of a violation as integer programs, solved in child processes, every answer judged exactly.

A counterexample counts only after the reference evaluator confirmed it, an infeasibility only as what its solver can
give: evidence from an integer solver or from interval arithmetic, a claim from a floating-point one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qertify.ilp.encode import Bounds, Encoding, encode
from qertify.ilp.model import Program, SolverAnswer, Status
from qertify.ilp.process import SolverProcesses
from qertify.ilp.solvers import EXACT_SOLVERS
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.ranges import Range, ranges
from qertify.network.tensor import IntegerArray
from qertify.specification.cases import Case, CaseSplitter, output_view
from qertify.specification.property import Classification
from qertify.specification.region import IntegerBox

EXACT_SOLVER = "cp-sat"
"""The integer solver that repairs rounded points."""


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


@dataclass(frozen=True, slots=True, eq=False)
class IlpEngine:
    """One question, ready to be asked case by case; as branch and bound does at its leaves.

    Attributes:
        network, box, property: the question.
        splitter: of the question's cases.
        known: proved ranges of all nodes over the box, shape (1, *node shape).
        processes: where the solvers run.
        threads, seed: of the solvers.
    """

    network: Network
    box: IntegerBox
    property: Classification
    splitter: CaseSplitter
    known: Mapping[str, Range]
    processes: SolverProcesses
    threads: int = 1
    seed: int = 0

    def decide_case(self, case: Case, solver: str, deadline: float | None, bounds: Bounds | None = None) -> IlpAnswer:
        """Decide whether one case has a violation in the box.

        A floating-point solver is asked about a relaxation first, in which only the binaries are integers: that settles
        most cases in a fraction of the time, and its rounded inputs often are a counterexample already.

        Args:
            case: a case of this question, of one level or many; all its levels are encoded, exactly.
            solver: name of the solver.
            deadline: of `time.monotonic`, None for none.
            bounds: extra bounds on accumulators (name → least, greatest): then only inputs that keep them are asked about.
                A counterexample violates the property in any case.

        Raises:
            UnsupportedModelError: numbers too large for integer programs.
            SolverError: the solver's process can't be started.
        """
        levels = self.splitter.levels(case)
        encoding = encode(self.network, self.box, self.splitter.view, levels, self.known, bounds)
        if encoding is None:
            return IlpAnswer(Status.INFEASIBLE, exact=True)
        if solver not in EXACT_SOLVERS:
            answer = self._solve(_relaxation(encoding.program), solver, _share(deadline, 2))
            if answer.status is Status.INFEASIBLE:
                return IlpAnswer(answer.status, solvers=frozenset({solver}))
            found = None if answer.values is None else self._replay(encoding, answer.values)
            if found is not None:
                return IlpAnswer(Status.FEASIBLE, counterexample=found, solvers=frozenset({solver}))
        answer = self._solve(encoding.program, solver, deadline)
        if answer.status is Status.INFEASIBLE:
            return IlpAnswer(answer.status, solver in EXACT_SOLVERS, solvers=frozenset({solver}))
        if answer.values is None:
            return IlpAnswer(answer.status, reason=answer.reason, open=(case,))
        found = self._replay(encoding, answer.values)
        if found is None and solver not in EXACT_SOLVERS:
            solver = EXACT_SOLVER
            answer = self._solve(_with_pattern(encoding, answer.values), solver, deadline)
            found = None if answer.values is None else self._replay(encoding, answer.values)
        if found is not None:
            return IlpAnswer(Status.FEASIBLE, counterexample=found, solvers=frozenset({solver}))
        if answer.status is Status.LIMIT:
            return IlpAnswer(Status.LIMIT, reason=answer.reason, open=(case,))
        return IlpAnswer(Status.FAILED, reason=f"the point of {solver} is not a counterexample", open=(case,))

    def decide(self, cases: Sequence[Case], solver: str, deadline: float | None) -> IlpAnswer:
        """Decide whether any of the cases has a violation; as `decide_case`.

        Time is shared out evenly among the open cases, again and again while some is left, so that one hard case does
        not keep an easy counterexample from being found.
        """
        exact, solvers, pending = True, frozenset[str](), list(cases)
        failed: list[IlpAnswer] = []
        late = IlpAnswer(Status.LIMIT, reason="no time left")
        while pending and not (deadline is not None and time.monotonic() >= deadline):
            queue, pending = pending, []
            for position, case in enumerate(queue):
                answer = self.decide_case(case, solver, _share(deadline, len(queue) - position))
                if answer.status is Status.FEASIBLE:
                    return answer
                if answer.status is Status.INFEASIBLE:
                    exact, solvers = exact and answer.exact, solvers | answer.solvers
                elif answer.status is Status.LIMIT and deadline is not None:
                    late = answer
                    pending.append(case)
                else:
                    failed.append(answer)
        open_ = (*pending, *(case for answer in failed for case in answer.open))
        if open_:
            return replace(failed[0] if failed else late, open=open_)
        return IlpAnswer(Status.INFEASIBLE, exact, solvers=solvers)

    def _solve(self, program: Program, solver: str, deadline: float | None) -> SolverAnswer:
        return self.processes.solve(solver, program, deadline, self.threads, self.seed)

    def _replay(self, encoding: Encoding, values: IntegerArray) -> IntegerArray | None:
        """The inputs of a solver's point, if they lie in the box and violate the property in the reference evaluator."""
        codes = encoding.inputs(values).reshape(1, *self.network.input_shape)
        if not self.box.contains(codes)[0] or not self.property.violated(evaluate(self.network, codes))[0]:
            return None
        return codes[0]


def _share(deadline: float | None, parts: int) -> float | None:
    """The time at which an equal part of what is left is spent."""
    if deadline is None:
        return None
    now = time.monotonic()
    return now + max(0.0, deadline - now) / parts


def _relaxation(program: Program) -> Program:
    """The program in which only columns of two values have to be integers."""
    return replace(program, integer=program.integer & (program.high - program.low == 1))


def _with_pattern(encoding: Encoding, values: IntegerArray) -> Program:
    """The program with the staircase values fixed to those of a point: a question about the input lattice only."""
    low, high = encoding.program.low.copy(), encoding.program.high.copy()
    fixed = encoding.pattern
    low[fixed] = high[fixed] = np.clip(values[fixed], low[fixed], high[fixed])
    return replace(encoding.program, low=low, high=high)


def engine_for(
    network: Network,
    box: IntegerBox,
    property_: Classification,
    processes: SolverProcesses,
    known: Mapping[str, Range] | None = None,
    threads: int = 1,
    seed: int = 0,
) -> IlpEngine:
    """Prepare a question.

    Args:
        known: proved ranges of all nodes over the box, shape (1, *node shape); None for those of interval arithmetic.

    Raises:
        UnsupportedModelError: output codes that can't be compared.
        InvalidInputError: the label or target is no class.
    """
    property_.check(network.output_size)
    view = output_view(network)
    known = ranges(network, box.low[None], box.high[None]) if known is None else known
    low, high = (bound[0].reshape(-1)[view.element] for bound in known[view.node])
    return IlpEngine(network, box, property_, CaseSplitter(view, property_, low, high), known, processes, threads, seed)


def decide_case(
    network: Network,
    box: IntegerBox,
    property_: Classification,
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
    property_: Classification,
    solver: str,
    deadline: float | None,
    memory: int | None = None,
    threads: int = 1,
    seed: int = 0,
) -> IlpAnswer:
    """Decide a property on a box with integer programs only.

    Args:
        network, box, property_: the question.
        solver: name of the solver.
        deadline: of `time.monotonic`, None for none; passed by at most the grace of the solver's process.
        memory: limit of the solver's process in bytes, None for none.
        threads, seed: of the solver.

    Raises:
        UnsupportedModelError: output codes that can't be compared, or numbers too large for integer programs.
        InvalidInputError: the label or target is no class.
        SolverError: an unknown solver, or its process can't be started.
    """
    with SolverProcesses(memory) as processes:
        engine = engine_for(network, box, property_, processes, threads=threads, seed=seed)
        return engine.decide(engine.splitter.cases(), solver, deadline)
