"""The stages of a decision, from cheap to complete: each may settle the question, none may guess.

attack → interval bounds → dual bounds → stronger attack → branch and bound, whose leaves go to an exact solver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qertify.attack.gradient import random_starts, signed_gradient
from qertify.attack.lattice import descend
from qertify.bounds.compile import compile_program
from qertify.bounds.dual import prove
from qertify.bounds.interior_point import InteriorPoint
from qertify.bounds.program import Program
from qertify.bounds.tighten import tighten
from qertify.errors import ReplayError, UnsupportedModelError
from qertify.ilp.engine import EXACT_SOLVER, IlpEngine
from qertify.ilp.model import Status
from qertify.ilp.process import SolverProcesses
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.ranges import Range, ranges
from qertify.network.tensor import IntegerArray
from qertify.options import Method, Options
from qertify.result import Evidence, Reason
from qertify.search.branch_and_bound import BranchAndBound, Closure, LeafAnswer, SearchTree, root_domains
from qertify.specification.cases import Case, CaseSplitter, OutputView, output_view
from qertify.specification.property import Classification
from qertify.specification.region import IntegerBox

QUICK = (8, 6)
"""Restarts and gradient steps of the first attack."""
STRONG = (48, 16)
"""Restarts and gradient steps of the attack before the search."""
TIGHTEN_LIMIT = 400
"""Most units whose ranges are tightened one by one with dual bounds."""
POLISH_STEPS = 8
POLISH_REACH = 0.1
LEAF_SECONDS = 20.0
"""Most seconds that the integer solver spends on one leaf."""
ENUMERATION_LIMIT = 1 << 14
"""Largest number of inputs that are simply enumerated."""
DESCENTS = 2
DESCENT_MOVES = 15


@dataclass(slots=True)
class Decision:
    """What the portfolio found; exactly one of proof, counterexample and reason is set.

    Attributes:
        evidence: set if the property is proved.
        counterexample: replayed input codes, flattened, if it is refuted.
        reason: set if it is undecided.
        method: the stage that decided.
    """

    evidence: Evidence | None = None
    counterexample: IntegerArray | None = None
    reason: Reason | None = None
    method: str = ""
    nodes: int = 0
    solver: str | None = None
    margin: int | None = None
    nearest: int | None = None
    tree: SearchTree | None = None
    explanation: list[str] = field(default_factory=list[str])

    @property
    def settled(self) -> bool:
        return self.evidence is not None or self.counterexample is not None


@dataclass(slots=True)
class _State:
    """What the stages share about one question."""

    network: Network
    box: IntegerBox
    property: Classification
    options: Options
    deadline: float | None
    say: Callable[[str], None]
    view: OutputView
    known: dict[str, Range]
    splitter: CaseSplitter
    cases: tuple[Case, ...]
    generator: torch.Generator
    decision: Decision
    processes: SolverProcesses
    program: Program | None = None

    def engine(self) -> IlpEngine:
        """The integer programs of this question."""
        return IlpEngine(
            self.network, self.box, self.property, self.splitter, self.known, self.processes, seed=self.options.seed
        )

    def replay_codes(self, candidates: IntegerArray) -> IntegerArray | None:
        """The first candidate, (batch, *input shape), that violates the property in exact integers."""
        violated = self.property.violated(evaluate(self.network, candidates))
        if not violated.any():
            return None
        found = candidates[violated]
        if self.property.target is not None:  # prefer one on which the target wins outright
            wins = self.property.ties.predicted(evaluate(self.network, found)) == self.property.target
            found = found[wins] if wins.any() else found
        if not self.box.contains(found[:1])[0]:
            raise ReplayError("a counterexample leaves the input region; please report this defect")
        return found[0]

    def replay(self, candidates: Tensor) -> IntegerArray | None:
        """`replay_codes` for points in the program's inputs, (batch, n)."""
        assert self.program is not None
        codes = np.broadcast_to(self.box.low.reshape(-1), (len(candidates), self.box.low.size)).copy()
        real = self.program.input_index >= 0
        codes[:, self.program.input_index[real]] = self._inside(candidates).cpu().numpy()[:, real].astype(np.int64)
        return self.replay_codes(self.box.clip(codes.reshape(-1, *self.network.input_shape)))

    def polish(self, candidates: Tensor, objective: Tensor) -> IntegerArray | None:
        """Replay the ends of short descents from some candidates, (batch, n), on their objectives, (batch, N)."""
        assert self.program is not None
        return self.replay(signed_gradient(self.program, self._inside(candidates), objective, POLISH_STEPS, POLISH_REACH)[0])

    def _inside(self, candidates: Tensor) -> Tensor:
        assert self.program is not None
        inside = torch.minimum(torch.maximum(candidates, self.program.input_low), self.program.input_high)
        return torch.nan_to_num(inside).round()

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline


def decide(
    network: Network,
    box: IntegerBox,
    property_: Classification,
    options: Options,
    say: Callable[[str], None] = lambda _: None,
    deadline: float | None = None,
) -> Decision:
    """Decide whether the property holds on the whole box.

    Args:
        network, box, property_: the question.
        options: method, solver, seed and limits.
        say: gets one line a stage.
        deadline: of `time.monotonic`.

    Raises:
        UnsupportedModelError: the chosen method does not cover the network.
        InvalidInputError: the label or target is no class.
    """
    property_.check(network.output_size)
    decision = Decision()

    def explain(line: str) -> None:
        decision.explanation.append(line)
        say(line)

    view = output_view(network)
    known = ranges(network, box.low[None], box.high[None])
    low, high = (bound[0].reshape(-1)[view.element] for bound in known[view.node])
    splitter = CaseSplitter(view, property_, low, high)
    generator = torch.Generator().manual_seed(options.seed)
    with SolverProcesses(options.memory) as processes, _threads():
        state = _State(
            network,
            box,
            property_,
            options,
            deadline,
            explain,
            view,
            known,
            splitter,
            splitter.cases(),
            generator,
            decision,
            processes,
        )
        for stage in _STAGES[options.method]:
            if state.late():
                decision.reason = Reason.TIMEOUT
                return decision
            stage(state)
            if decision.settled:
                return decision
    decision.reason = Reason.TIMEOUT if state.late() else Reason.UNSUPPORTED
    return decision


def _enumerate(state: _State) -> None:
    """Every point of a small box."""
    if state.cases and state.box.size <= ENUMERATION_LIMIT:
        found = state.replay_codes(state.box.points())
        state.decision.counterexample, state.decision.method = found, "enumeration"
        state.decision.evidence = Evidence.EXACT_SEARCH if found is None else None
        state.say(f"enumeration: {state.box.size} inputs, {'no violation' if found is None else 'counterexample'}")


@contextmanager
def _threads() -> Generator[None]:
    """One thread: the tensors here are small, and threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _interval(state: _State) -> None:
    """Exact interval arithmetic: no case of the violation is within reach."""
    if not state.cases:
        state.decision.evidence, state.decision.method = Evidence.EXACT_BOUNDS, "interval"
    state.say(f"interval: {len(state.cases)} case(s) of the violation are within reach")


def _compile(state: _State) -> bool:
    """Make the program of the open cases; False if the network is outside the bound engine."""
    classes = {case.label for case in state.cases} | {case.competitor for case in state.cases}
    try:
        state.program = compile_program(
            state.network, state.box, state.known, state.view, tuple(sorted(label for label in classes if label is not None))
        ).to(state.options.device)
    except UnsupportedModelError as error:
        if state.options.method is not Method.AUTO:
            raise
        state.say(f"bounds: {error}")
        return False
    return True


def _attack(restarts: int, steps: int, descents: int, name: str) -> Callable[[_State], None]:
    def stage(state: _State) -> None:
        if not state.cases or (state.program is None and not _compile(state)):
            return
        program = state.program
        assert program is not None
        domains = root_domains(program, list(state.cases))
        starts = random_starts(program, restarts, state.generator)
        every_start = starts.repeat(len(domains), 1)
        points, reached = signed_gradient(program, every_start, domains.objective.repeat_interleave(restarts, 0), steps)
        found = state.replay(points)
        order = (reached.reshape(len(domains), restarts) - domains.limit[:, None]).argsort(dim=1)
        urgent = (reached.reshape(len(domains), restarts).amin(1) - domains.limit).argsort()
        for case in urgent[:descents].tolist():
            if found is not None or state.late():
                break
            for start in order[case, :descents].tolist():
                visited = descend(program, points[case * restarts + start], domains.objective[case], DESCENT_MOVES)
                found = found if found is not None else state.replay(visited)
        if found is not None:
            state.decision.counterexample, state.decision.method = found, "attack"
        state.say(f"{name}: {'counterexample' if found is not None else 'none found'} ({len(points)} points)")

    return stage


def _dual(state: _State) -> None:
    """Dual bounds of every case at the root; closed cases are dropped."""
    if not state.cases or (state.program is None and not _compile(state)):
        return
    program = state.program
    assert program is not None
    if len(program.blocks) > 2 and len(program.units) <= TIGHTEN_LIMIT:
        state.program = program = tighten(program)
        outputs = program.output_units()
        low, high = state.splitter.low.copy(), state.splitter.high.copy()
        for label, unit in outputs.items():
            low[label], high[label] = int(program.low[unit]), int(program.high[unit])
        state.splitter = CaseSplitter(state.view, state.property, low, high)
        state.cases = state.splitter.cases()
    if state.cases:
        domains = root_domains(program, list(state.cases))
        feasible = (domains.low <= domains.high).all(-1)
        relaxation = InteriorPoint(program).relax(domains)
        proof = prove(program, domains, relaxation.multipliers)
        closed = (proof.margin >= 0) | ~feasible
        worst = int(proof.margin.argmin())
        if not bool(closed.all()):
            state.decision.margin, state.decision.nearest = _margin(proof.margin[worst]), state.cases[worst].competitor
        state.cases = tuple(case for case, shut in zip(state.cases, closed.tolist(), strict=True) if not shut)
        if state.cases and state.options.method is not Method.BOUNDS:
            found = state.polish(relaxation.inputs, domains.objective)
            if found is not None:
                state.decision.counterexample, state.decision.method = found, "attack"
    if not state.cases:
        state.decision.evidence, state.decision.method = Evidence.EXACT_BOUNDS, "bounds"
    state.say(f"dual bounds: {len(state.cases)} case(s) stay open")


def _margin(margin: Tensor) -> int | None:
    return int(margin) if bool(torch.isfinite(margin)) else None


def _search(state: _State) -> None:
    """Branch and bound on the open cases."""
    program, decision = state.program, state.decision
    if program is None:
        return

    def leaf(case: Case, low: Tensor, high: Tensor) -> LeafAnswer:
        return _solve_leaf(state, case, low, high)

    search = BranchAndBound(
        program, state.splitter, state.cases, state.polish, leaf, state.options.keep_proof, state.options.memory
    )
    last = time.monotonic()

    def report(progress: BranchAndBound) -> None:
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            state.say(f"search: {progress.nodes} domains bounded, {progress.open} open")

    outcome = search.run(state.deadline, report=report)
    decision.nodes, decision.tree = outcome.nodes, outcome.tree
    if outcome.counterexample is not None:
        decision.counterexample, decision.method = outcome.counterexample, "bab"
    elif outcome.proved:
        solvers = outcome.leaf_solvers - {"enumeration"}
        decision.evidence = Evidence.EXACT_SOLVER if solvers else Evidence.EXACT_SEARCH
        decision.solver = ", ".join(sorted(solvers)) or None
        decision.method = "bab"
    elif outcome.margin is not None and outcome.nearest is not None:
        decision.margin = int(outcome.margin) if np.isfinite(outcome.margin) else None
        decision.nearest = outcome.nearest.competitor
    state.say(f"search: {outcome.nodes} domains bounded, {search.open} open")


def _solve_leaf(state: _State, case: Case, low: Tensor, high: Tensor) -> LeafAnswer:
    """A domain on which every value is fixed asks for a lattice point: enumerate a small box, else ask an integer solver."""
    if state.box.size <= ENUMERATION_LIMIT:
        found = state.replay_codes(state.box.points())
        return LeafAnswer(Closure.EMPTY if found is None else Closure.COUNTEREXAMPLE, found, "enumeration")
    program = state.program
    assert program is not None
    bounds: dict[str, tuple[IntegerArray, IntegerArray]] = {}
    for unit, least, greatest in zip(program.units, low.tolist(), high.tolist(), strict=True):
        if not unit.node:  # inside a maximum: the solver is asked about a larger domain, which is as good if it is empty
            continue
        if unit.node not in bounds:
            bounds[unit.node] = state.known[unit.node][0].reshape(-1).copy(), state.known[unit.node][1].reshape(-1).copy()
        bounds[unit.node][0][unit.element], bounds[unit.node][1][unit.element] = int(least), int(greatest)
    until = time.monotonic() + LEAF_SECONDS
    answer = state.engine().decide_case(
        case, EXACT_SOLVER, until if state.deadline is None else min(until, state.deadline), bounds
    )
    if answer.status is Status.FEASIBLE:
        return LeafAnswer(Closure.COUNTEREXAMPLE, answer.counterexample, EXACT_SOLVER)
    if answer.status is Status.INFEASIBLE and answer.exact:
        return LeafAnswer(Closure.EMPTY, None, ", ".join(sorted(answer.solvers)) or "interval")
    return LeafAnswer(Closure.OPEN)


def _ilp(state: _State) -> None:
    """The open cases as integer programs, each with the solver that was asked for."""
    if state.cases:
        _solve_cases(state, state.options.solver, state.deadline)


def _last_resort(state: _State) -> None:
    """Counterexamples from the floating-point solver in a third of the time, then proofs from the integer solver.

    A claim of the first is remembered, never believed.
    """
    now = time.monotonic()
    _solve_cases(state, "highs", now + LEAF_SECONDS if state.deadline is None else now + (state.deadline - now) / 3)
    claimed = state.decision.evidence is Evidence.SOLVER_CLAIM
    if state.decision.counterexample is None and (claimed or state.decision.evidence is None):
        state.decision.evidence = None
        _solve_cases(state, EXACT_SOLVER, state.deadline)
        if claimed and not state.decision.settled:
            state.decision.evidence = Evidence.SOLVER_CLAIM


def _solve_cases(state: _State, solver: str, deadline: float | None) -> None:
    decision = state.decision
    answer = state.engine().decide(state.cases, solver, deadline)
    if answer.status is Status.FEASIBLE:
        decision.counterexample, decision.method, decision.solver = answer.counterexample, "ilp", solver
    elif answer.status is Status.INFEASIBLE:
        exact = Evidence.EXACT_SOLVER if answer.solvers else Evidence.EXACT_BOUNDS
        decision.evidence, decision.method, decision.solver = exact if answer.exact else Evidence.SOLVER_CLAIM, "ilp", solver
    state.say(f"ilp ({solver}): {answer.status.name.lower()} {answer.reason}".rstrip())


_QUICK_ATTACK = _attack(*QUICK, 0, "attack")
_STRONG_ATTACK = _attack(*STRONG, DESCENTS, "strong attack")
_STAGES: dict[Method, tuple[Callable[[_State], None], ...]] = {
    Method.AUTO: (_interval, _enumerate, _QUICK_ATTACK, _dual, _STRONG_ATTACK, _search, _last_resort),
    Method.ATTACK: (_QUICK_ATTACK, _STRONG_ATTACK),
    Method.BOUNDS: (_interval, _dual),
    Method.BAB: (_interval, _dual, _search),
    Method.ILP: (_interval, _ilp),
}
"""The stages of each method, in order."""
