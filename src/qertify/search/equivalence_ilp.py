"""Equivalence questions as integer programs of both networks and their common input, one case after the other.

(The program of both networks as the way to decide: Zhang et al., QEBVerif, CAV 2023.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from torch import Tensor

from qertify.bounds.difference import Joint
from qertify.bounds.program import Program as BoundProgram
from qertify.errors import UnsupportedModelError
from qertify.ilp.encode import Encoding
from qertify.ilp.engine import EXACT_SOLVER
from qertify.ilp.model import MAGNITUDE_LIMIT, Program, SolverAnswer, Status
from qertify.ilp.process import SolverProcesses
from qertify.ilp.solvers import EXACT_SOLVERS
from qertify.network.tensor import BoolArray, FloatArray
from qertify.options import Options
from qertify.result import Evidence, Reason
from qertify.search.comparison import Finding, text_of
from qertify.search.leaf import Closure, LeafAnswer
from qertify.search.program_ilp import FINER, encode_program
from qertify.specification.cases import Case

LEAF_SECONDS = 10.0
"""Most seconds that the integer solver spends on one leaf of the search."""
CONTINUOUS_SHARE = 3
"""The part of a case's time in which a floating-point solver takes the codes for real numbers."""
DEEPER = 10**5
"""A point that misses the limit is asked for once more, further inside by this part of the accumulator's range."""


@dataclass(frozen=True, slots=True)
class CaseAnswer:
    """What programs told about one case.

    Attributes:
        closed: no input does what the case says. bound: the least value of its accumulator, if that was asked for, or less.
        exact: whether the two are evidence, and not a floating-point solver's claim.
        reason: why the case is open, one line. limited: whether for want of time.
    """

    closed: bool
    exact: bool = True
    bound: int | None = None
    reason: str = ""
    limited: bool = False

    def also(self, earlier: CaseAnswer | None) -> CaseAnswer:
        """With the bound of an earlier answer to the same case, if that is better."""
        if earlier is None or earlier.bound is None or (self.bound is not None and self.bound >= earlier.bound):
            return self
        return replace(self, bound=earlier.bound)


@dataclass(frozen=True, slots=True)
class Answers:
    """What programs told about all cases.

    Attributes:
        closed: all are. exact, limited: as in `CaseAnswer`. bounds: those of the cases, in order.
        reasons: why some stay open, each once.
    """

    closed: bool
    exact: bool
    bounds: tuple[int | None, ...]
    reasons: tuple[str, ...]
    limited: bool

    def settle(self, finding: Finding, options: Options, bound: Fraction | None) -> str:
        """Enter them into what the search found out; ``bound``: the difference that follows from the bounds, if one does.

        Returns:
            a line that says how far it came.
        """
        finding.method, finding.solver = "ilp", options.solver
        if self.limited:
            finding.reason = Reason.TIMEOUT
        if self.closed or bound is not None:
            if self.exact or options.accept_solver_claims:
                finding.proved, finding.bound = self.closed, bound
                finding.evidence = Evidence.EXACT_SOLVER if self.exact else Evidence.SOLVER_CLAIM
            else:
                finding.reason = Reason.SOLVER_CLAIM
        outcome = "no violation" if self.closed else "open" if bound is None else f"at most {text_of(bound)}"
        return f"ilp ({options.solver}): {outcome} {'; '.join(self.reasons)}".rstrip()


def _all(answers: dict[int, CaseAnswer], cases: int) -> Answers:
    """Answers to the first of so many cases."""
    found = [answers[number] for number in sorted(answers)]
    return Answers(
        len(found) == cases and all(answer.closed for answer in found),
        all(answer.exact for answer in found),
        tuple(answer.bound for answer in found),
        tuple(dict.fromkeys(answer.reason for answer in found if answer.reason)),
        any(answer.limited for answer in found),
    )


def real_inputs(joint: Joint) -> BoolArray:
    """Which inputs of the program are real numbers, (n,): the errors; the others are integers."""
    codes = int(np.count_nonzero(joint.program.input_index >= 0))
    real: BoolArray = np.zeros(len(joint.program.input_index), dtype=bool)
    real[codes : codes + joint.error_index.size] = True
    return real


class JointSolver:
    """Asks solvers about the program of two networks; every point goes to ``consider``, as inputs of the program (1, n).

    Args:
        real: as `real_inputs`.
    """

    def __init__(
        self,
        program: BoundProgram,
        real: BoolArray,
        options: Options,
        processes: SolverProcesses,
        coupled: bool,
        consider: Callable[[FloatArray], None],
    ) -> None:
        self._joint, self._real, self._options, self._processes = program, real, options, processes
        self._coupled, self._consider = coupled, consider

    def ask(self, cases: Sequence[Case], deadline: float | None, enough: Callable[[], bool] | None) -> Answers:
        """All cases, with equal shares of the time: exclude them, or, without ``enough``, bound their accumulators.

        What the cases leave of the time is shared among those that were short of it, where that is much more.

        Args:
            enough: whether the points seen so far are enough.

        Raises:
            UnsupportedModelError: numbers too large for the program or for the solver.
        """
        answers: dict[int, CaseAnswer] = {}
        open_, longest = list(range(len(cases))), 0.0
        while open_ and (not answers or self._seconds(deadline) > 2 * longest * len(open_)):
            longest = max(self._seconds(deadline) / len(open_), 0.0)
            for position, number in enumerate(open_):
                until = None if deadline is None else time.monotonic() + self._seconds(deadline) / (len(open_) - position)
                answer = self.least(cases[number], until) if enough is None else self.close(cases[number], until, enough)
                answers[number] = answer.also(answers.get(number))
                if enough is not None and enough():
                    return _all(answers, len(cases))
            open_ = [number for number in open_ if answers[number].limited]
        return _all(answers, len(cases))

    @staticmethod
    def _seconds(deadline: float | None) -> float:
        return math.inf if deadline is None else deadline - time.monotonic()

    def close(self, case: Case, deadline: float | None, enough: Callable[[], bool]) -> CaseAnswer:
        """Exclude a case, or find points of it until they are enough.

        Raises:
            UnsupportedModelError: numbers too large for the program or for the solver.
        """
        solver, exact = self._options.solver, self._options.solver in EXACT_SOLVERS
        encoding = self._encode((case,))
        if encoding is None:
            return CaseAnswer(closed=True)
        answer = SolverAnswer(Status.LIMIT)
        for program, until in self._programs(encoding, deadline):
            answer = self._ask(encoding, program, solver, until)
            if answer.status is Status.INFEASIBLE:
                return CaseAnswer(closed=True, exact=exact)
            if enough():
                return CaseAnswer(closed=False)
        if answer.status is Status.FEASIBLE:
            deeper = self._encode((replace(case, limit=case.limit - self._step(case)),))
            if deeper is not None:
                self._ask(deeper, deeper.program, solver, deadline)
            return CaseAnswer(closed=False, reason=f"the point of {solver} is no counterexample")
        return CaseAnswer(closed=False, reason=answer.reason, limited=answer.status is Status.LIMIT)

    def least(self, case: Case, deadline: float | None) -> CaseAnswer:
        """Bound the accumulator of a case from below; limits are ignored.

        Raises:
            UnsupportedModelError: as `close`.
        """
        solver, exact = self._options.solver, self._options.solver in EXACT_SOLVERS
        encoding = self._encode((case,), minimise=True)
        if encoding is None:
            return CaseAnswer(closed=True)
        bounds, answer = list[int](), SolverAnswer(Status.LIMIT)
        for program, until in self._programs(encoding, deadline):
            answer = self._ask(encoding, program, solver, until)
            if answer.bound is not None:
                bounds.append((answer.bound - 1) // FINER)  # the accumulator was rounded
        limited = answer.status is Status.LIMIT
        return CaseAnswer(closed=False, exact=exact, bound=max(bounds, default=None), reason=answer.reason, limited=limited)

    def leaf(self, case: Case, low: Tensor, high: Tensor, deadline: float | None) -> Status:
        """What the integer solver says about a case within bounds on the accumulators, (N,) each."""
        try:
            encoding = encode_program(self._joint, (case,), self._real, coupled=self._coupled, low=low, high=high)
            if encoding is None:
                return Status.INFEASIBLE
            until = time.monotonic() + LEAF_SECONDS
            until = until if deadline is None else min(until, deadline)
            return self._ask(encoding, encoding.program, EXACT_SOLVER, until).status
        except UnsupportedModelError:
            return Status.FAILED

    def _encode(self, cases: Sequence[Case], minimise: bool = False) -> Encoding | None:
        return encode_program(self._joint, cases, self._real, coupled=self._coupled, minimise=minimise)

    def _programs(self, encoding: Encoding, deadline: float | None) -> list[tuple[Program, float | None]]:
        """What is asked, in order, and until when: a floating-point solver first takes codes for real numbers."""
        if self._options.solver in EXACT_SOLVERS:
            return [(encoding.program, deadline)]
        integer = encoding.program.integer.copy()
        integer[encoding.column] = False
        now = time.monotonic()
        until = None if deadline is None else now + (deadline - now) / CONTINUOUS_SHARE
        return [(replace(encoding.program, integer=integer), until), (encoding.program, deadline)]

    def _ask(self, encoding: Encoding, program: Program, solver: str, deadline: float | None) -> SolverAnswer:
        if solver in EXACT_SOLVERS and max(program.activity_limits(), default=0) >= MAGNITUDE_LIMIT:
            reason = f"a row may exceed the 64-bit integers that {solver} computes with"
            raise UnsupportedModelError("difference", "integer program", None, reason)
        answer = self._processes.solve(solver, program, deadline, seed=self._options.seed)
        if answer.values is not None:
            self._consider((encoding.inputs(answer.values) / np.where(self._real, FINER, 1))[None])
        return answer

    def _step(self, case: Case) -> int:
        program = self._joint
        outputs = program.output_units()
        width = max(float(program.high[outputs[index]] - program.low[outputs[index]]) for index, _ in case.weights)
        return int(width) // DEEPER + 1


def close_leaf(solver: JointSolver, deadline: float | None, case: Case, low: Tensor, high: Tensor) -> LeafAnswer:
    """A leaf of the search: closed if the integer solver says that it is empty; its points are only considered."""
    empty = solver.leaf(case, low, high, deadline) is Status.INFEASIBLE
    return LeafAnswer(Closure.EMPTY, None, EXACT_SOLVER) if empty else LeafAnswer(Closure.OPEN)
