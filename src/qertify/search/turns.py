"""Branch and bound as a stage, and as turns between the attacks: neither waits long for the other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.program import Program
from qertify.bounds.tighten import tighten, with_row
from qertify.ilp.engine import EXACT_SOLVER
from qertify.ilp.model import Status
from qertify.network.tensor import IntegerArray
from qertify.parallel.partition import pack
from qertify.result import Evidence, Reason
from qertify.search import stages
from qertify.search.branch_and_bound import BranchAndBound
from qertify.search.domains import root_domains
from qertify.search.journal import go_on, search_digest
from qertify.search.leaf import Closure, LeafAnswer
from qertify.search.question import Question
from qertify.search.sharing import share_search
from qertify.search.tree import SearchOutcome
from qertify.specification.cases import Case

WORK = 1 << 23
"""What a turn of 1 may take: domains times entries of the program's matrices; about a fifth of a second."""
FIRST_DESCENT = 0.5
"""Seconds of a search before local search may take a part of its time."""
NARROWINGS, PAYS = 4, 0.97
"""Most rounds of ranges for a case, and the part of the levels that may be left if there is to be another."""
NARROWING_SECONDS, NARROWING_SHARE = 5.0, 0.1
"""Most seconds in which such rounds are begun; or part of the time that is left."""
LEAST_TURN, MOST_TURN = 4, 128
"""Fewest and most domains of a turn of 1."""


def turn(length: int) -> stages.Stage:
    """Branch and bound on the open cases for a while; `search` goes on where it stops. Only on matrices."""

    def stage(question: Question) -> None:
        program = question.program
        if program is None or program.operators is not None or not question.cases or _is_begun(question, program):
            return
        tree, size = _tree(question, program), max(1, len(program.units) * (len(program.units) + len(program.input_low)))
        domains = length * min(max(LEAST_TURN, WORK // size), MOST_TURN)
        outcome = tree.run(question.deadline, max_nodes=tree.nodes + domains, stopped=question.stopped)
        _conclude(question, tree, outcome)

    return stage


def _is_begun(question: Question, program: Program) -> bool:
    """Whether the journal holds what an earlier search left open."""
    return question.journal is not None and bool(question.journal.read(_digest(question, program)))


def _digest(question: Question, program: Program) -> str:
    return search_digest(question.network, question.box, question.property, program)


def narrow_cases(question: Question) -> None:
    """Ranges of all accumulators where a case's inequality holds, for the open domains of that case.

    The inequality becomes a row with its limit as upper end, and every unit is minimised and maximised by the dual, again and
    again while that pays. Certificates have no place for such ranges.
    """
    tree, program = question.tree, question.program
    if tree is None or program is None or tree.program is not program or question.options.keep_proof or not tree.open:
        return
    if program.operators is not None or program.divisor is not None or len(program.units) > stages.TIGHTEN_LIMIT:
        return
    until = stages.share_of_time(question, NARROWING_SECONDS, NARROWING_SHARE)
    open_, ranges = tree.hand_over(), dict[Case, tuple[Tensor, Tensor]]()
    for case, _ in Counter(item.case for item in open_ if item.case.weights).most_common():
        if question.late() or time.monotonic() > until:
            break
        ranges[case] = narrow_case(program, case, question.late)
    for item in open_:
        low, high = ranges.get(item.case, (item.low, item.high))
        tree.add([replace(item, low=torch.maximum(item.low, low), high=torch.minimum(item.high, high))])
    question.say(f"ranges under a case's inequality: {len(ranges)} case(s)")


def narrow_case(program: Program, case: Case, late: Callable[[], bool] = lambda: False) -> tuple[Tensor, Tensor]:
    """Bounds of the accumulators, (N,) each, at all violations of a case; the lower one is above where there are none."""
    domain = root_domains(program, [case])
    if bool((domain.low > domain.high).any()):
        return domain.low[0], domain.high[0]
    inside = replace(program, low=domain.low[0], high=domain.high[0])
    row = with_row(inside, domain.objective[0], float(domain.limit[0]))
    width = float(_levels(row))
    for _ in range(NARROWINGS):
        row = tighten(row, late, first_block=0)
        if bool((row.low > row.high).any()) or float(_levels(row)) > PAYS * width:
            break
        width = float(_levels(row))
    return row.low[:-1], row.high[:-1]


def _levels(program: Program) -> Tensor:
    """How many steps all units together can take."""
    first, last = program.value_range(program.low[None], program.high[None])
    return (last - first).sum()


def search(question: Question) -> None:
    """Branch and bound on the open cases; on matrices if the units that are left are few enough for them."""
    program = question.program
    if program is None:
        return
    if question.refined and program.operators is not None and len(program.units) <= stages.MATRICES_UP_TO:
        stages.compile_cases(question, operators=False)
        program = question.program or program
    tree, last = _tree(question, program), time.monotonic()

    def report(progress: BranchAndBound) -> None:
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            question.say(f"search: {progress.nodes} domains bounded, {progress.open} open")

    # a certificate needs the whole tree
    journal, digest, pause = None if question.options.keep_proof else question.journal, "", None
    if journal is not None:
        digest = _digest(question, program)
        pause = go_on(journal, digest, tree, program)
    alone = question.refined or program.operators is not None  # workers make matrices, with plain ranges
    shared = None if alone else share_search(question, tree, tree.gains, report, digest)
    outcome = shared or tree.run(question.deadline, report=report, stopped=question.stopped, pause=pause)
    if journal is not None and shared is None and not outcome.proved and outcome.counterexample is None:
        left = tree.hand_over()
        if any(not item.stuck for item in left) and (question.deadline is None or time.monotonic() < question.deadline):
            journal.write(digest, None, {0: pack(left)})
            question.decision.reason = Reason.INTERRUPTED
    _conclude(question, tree, outcome)


def _tree(question: Question, program: Program) -> BranchAndBound:
    """The search of a question, begun or gone on with."""
    if question.tree is None or question.tree.program is not program:
        options = question.options
        question.tree = BranchAndBound(
            program,
            question.splitter,
            question.cases,
            question.polish,
            partial(solve_leaf, question),
            options.keep_proof,
            options.memory,
        )
        question.put_off_descents(FIRST_DESCENT)
    return question.tree


def _conclude(question: Question, tree: BranchAndBound, outcome: SearchOutcome) -> None:
    """Take over what the search found out."""
    decision = question.decision
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
    question.say(f"search: {outcome.nodes} domains bounded, {tree.open} open")


def solve_leaf(question: Question, case: Case, low: Tensor, high: Tensor) -> LeafAnswer:
    """A domain on which every value is fixed asks for a lattice point: enumerate a small box, else ask an integer solver."""
    if question.box.size <= stages.ENUMERATION_LIMIT:
        found, safe = question.try_codes(question.box.points())
        if found is not None:
            return LeafAnswer(Closure.COUNTEREXAMPLE, found, "enumeration")
        if safe:
            return LeafAnswer(Closure.EMPTY, None, "enumeration")
    program = question.program
    assert program is not None
    bounds: dict[str, tuple[IntegerArray, IntegerArray]] = {}
    for unit, least, greatest in zip(program.units, low.tolist(), high.tolist(), strict=True):
        if not unit.node:  # inside a maximum: the solver is asked about a larger domain, which is as good if it is empty
            continue
        if unit.node not in bounds:
            bounds[unit.node] = question.known[unit.node][0].reshape(-1).copy(), question.known[unit.node][1].reshape(-1).copy()
        bounds[unit.node][0][unit.element], bounds[unit.node][1][unit.element] = int(least), int(greatest)
    until = time.monotonic() + stages.LEAF_SECONDS
    answer = question.engine().decide_case(
        case, EXACT_SOLVER, until if question.deadline is None else min(until, question.deadline), bounds
    )
    if answer.status is Status.FEASIBLE:
        return LeafAnswer(Closure.COUNTEREXAMPLE, answer.counterexample, EXACT_SOLVER)
    if answer.status is Status.INFEASIBLE and answer.exact:
        return LeafAnswer(Closure.EMPTY, None, ", ".join(sorted(answer.solvers)) or "interval")
    return LeafAnswer(Closure.OPEN)
