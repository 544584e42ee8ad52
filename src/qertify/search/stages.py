"""The stages of a decision. Each takes what is known about a question, and may settle it; none may guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from qertify.attack.gradient import random_starts, signed_gradient
from qertify.attack.hardening import harden
from qertify.bounds.compile import compile_program
from qertify.bounds.dual import Domains, prove
from qertify.bounds.operate import compile_operators
from qertify.bounds.program import Program
from qertify.bounds.refine import FEW, MANY, refine
from qertify.bounds.relaxers import relaxer_of
from qertify.bounds.tighten import tighten
from qertify.errors import UnsupportedModelError
from qertify.ilp.engine import EXACT_SOLVER
from qertify.ilp.model import Status
from qertify.network.network import Network
from qertify.network.nodes import Max, Staircase
from qertify.network.tensor import IntegerArray
from qertify.options import Method
from qertify.result import Evidence
from qertify.search.domains import root_domains
from qertify.search.question import Question
from qertify.specification.cases import Case

QUICK = (8, 6)
"""Restarts and gradient steps of the first attack."""
STRONG = (48, 16)
"""Restarts and gradient steps of the attack before the search."""
FULL_RESTARTS = 4096
"""Units from which an attack takes fewer restarts."""
OPERATORS_ABOVE = 2000
"""Activations above which a network's equations are operators."""
MATRICES_UP_TO = 400
"""Most units of a large network with which the search goes over to matrices."""
REFINE_SECONDS, REFINE_SHARE = 30.0, 0.3
"""Most seconds, and largest part of the time that is left, for tighter ranges of a large network."""
TIGHTEN_LIMIT = 400
"""Most units whose ranges are tightened one by one with dual bounds."""
LEAF_SECONDS = 20.0
"""Most seconds that the integer solver spends on one leaf."""
ENUMERATION_LIMIT = 1 << 14
"""Largest number of inputs that are simply enumerated."""
EARLY_SWEEP, SWEEP_LIMIT = 1 << 32, 1 << 37
"""Most inputs times parameters of a box that is enumerated before the first turn of a search, and before what follows the
second one: about two seconds, and about a minute."""
SWEEP_CHUNK = 1 << 14
HARDENING = ((None, 2, 60), (3, 8, 200))
"""Cases, paths a case and steps of the attack with hardening staircases: all cases, then the most promising."""
ATTACK_SECONDS, ATTACK_SHARE = 10.0, 0.2
"""Most seconds that it takes, or that aligning roundings takes; or part of the time that is left."""

Stage = Callable[[Question], None]


def enumerate(question: Question) -> None:
    """Every point of a small box."""
    if question.cases and question.box.size <= ENUMERATION_LIMIT:
        _enumerate(question)


def early_sweep(question: Question) -> None:
    """Every point of a box that takes a second or two."""
    work = question.box.size * max(1, question.network.parameter_count)
    if question.cases and question.box.size <= 16 * ENUMERATION_LIMIT and work <= EARLY_SWEEP:
        _enumerate(question)


def sweep(question: Question) -> None:
    """Every point of a box that is small for what one evaluation costs: networks with few inputs."""
    if question.cases and question.box.size * max(1, question.network.parameter_count) <= SWEEP_LIMIT:
        _enumerate(question)


def _enumerate(question: Question) -> None:
    box, decision, safe = question.box, question.decision, True
    for start in range(0, box.size, SWEEP_CHUNK):
        if question.late():
            return
        found, all_safe = question.try_codes(box.points(start, start + SWEEP_CHUNK))
        safe = safe and all_safe
        if found is not None:
            decision.counterexample = found
            break
    if safe:
        decision.evidence = Evidence.EXACT_SEARCH
    decision.method = "enumeration"
    outcome = "no violation" if safe else "open for an enclosure" if decision.counterexample is None else "counterexample"
    question.say(f"enumeration: {box.size} inputs, {outcome}")


def interval(question: Question) -> None:
    """Exact interval arithmetic: no case of the violation is within reach."""
    if not question.cases:
        question.decision.evidence, question.decision.method = Evidence.EXACT_BOUNDS, "interval"
    question.say(f"interval: {len(question.cases)} case(s) of the violation are within reach")


def compile_cases(question: Question, operators: bool | None = None) -> bool:
    """Make the program of the open cases; False if the network is outside the bound engine.

    Args:
        operators: whether its equations are operators; by default they are for large networks, and where matrices would be too
            large. Certificates and other workers prefer matrices.
    """
    if operators is None:
        apart = question.options.keep_proof or question.executor is not None
        large = _activations(question.network) > OPERATORS_ABOVE
        forms = (compile_operators,) if large and not apart else (compile_program, compile_operators)
    else:
        forms = (compile_operators,) if operators else (compile_program,)
    classes = tuple(sorted(frozenset[int]().union(*(case.indices for case in question.cases))))
    for form in forms:
        try:
            program = form(question.network, question.box, question.known, question.splitter.view, classes)
        except UnsupportedModelError as error:
            if form is forms[-1] and question.options.method is not Method.AUTO:
                raise
            question.say(f"bounds: {error}")
        else:
            question.program = program.to(question.options.device)
            return True
    return False


def _activations(network: Network) -> int:
    return sum(prod(network.shapes[node.name]) for node in network.nodes if isinstance(node, Staircase | Max))


def attack(restarts: int, steps: int, hardened: bool, name: str) -> Callable[[Question], None]:
    def stage(question: Question) -> None:
        if not question.cases or (question.program is None and not compile_cases(question)):
            return
        program = question.program
        assert program is not None
        domains = root_domains(program, [part for case in question.cases for part in question.splitter.objectives(case)])
        count = max(1, restarts * FULL_RESTARTS // max(FULL_RESTARTS, len(program.units)))
        starts = random_starts(program, count, question.generator)
        every_start = starts.repeat(len(domains), 1)
        points, reached = signed_gradient(
            program,
            every_start,
            domains.objective.repeat_interleave(count, 0),
            steps,
            question.generator,
            late=question.late,
        )
        found = question.replay(points)
        if found is None and hardened:
            found = _harden(question, domains, points.reshape(len(domains), count, -1), reached.reshape(len(domains), count))
        if found is not None:
            question.decision.counterexample, question.decision.method = found, "attack"
        question.say(f"{name}: {'counterexample' if found is not None else 'none found'} ({len(points)} points)")

    return stage


def share_of_time(question: Question, most: float, share: float) -> float:
    """The time at which so many seconds, or such a part of what is left of the question's, are over."""
    now = time.monotonic()
    return now + (most if question.deadline is None else min(most, (question.deadline - now) * share))


def _harden(question: Question, domains: Domains, points: Tensor, reached: Tensor) -> IntegerArray | None:
    """Go on from points, (cases, count, n), that reach objectives (cases, count), through staircases that harden."""
    assert question.program is not None
    until = share_of_time(question, ATTACK_SECONDS, ATTACK_SHARE)
    gap = reached.amin(1) - domains.limit
    for cases, paths, steps in HARDENING:
        order = gap.argsort()[:cases]
        starts = points[order, :paths]
        ends, attained = harden(
            question.program,
            starts.flatten(0, 1),
            domains.objective[order].repeat_interleave(starts.shape[1], 0),
            steps,
            lambda: question.late() or time.monotonic() > until,
        )
        found = question.replay(ends)
        if found is not None:
            return found
        gap[order] = attained.reshape(len(order), -1).amin(1) - domains.limit[order]
    return None


def align(question: Question) -> None:
    """The attack that aligns rounding errors."""
    ready = question.cases and (question.program is not None or compile_cases(question))
    if not ready or (aligned := question.aligned()) is None:
        return
    found = aligned.search(share_of_time(question, ATTACK_SECONDS, ATTACK_SHARE))
    if found is not None:
        question.decision.counterexample, question.decision.method = found, "attack"
    question.say(f"aligned roundings: {'counterexample' if found is not None else 'none found'}")


def narrow(question: Question) -> None:
    """Let the splitter know the program's ranges of the output accumulators."""
    program = question.program
    assert program is not None
    low, high = question.splitter.low.copy(), question.splitter.high.copy()
    for label, unit in program.output_units().items():
        low[label], high[label] = int(program.low[unit]), int(program.high[unit])
    question.splitter = question.splitter.narrowed(low, high)


def dual(question: Question, few: int = FEW) -> None:
    """Dual bounds of every case at the root; closed cases are dropped. ``few``: as in `refine`."""
    if not question.cases or (question.program is None and not compile_cases(question)):
        return
    program = question.program
    assert program is not None
    if program.operators is not None and not question.options.keep_proof:
        program = _refine(question, program, few)
    elif len(program.blocks) > 2 and len(program.units) <= TIGHTEN_LIMIT:
        log = question.decision.proof
        question.program = program = tighten(program, question.late, None if log is None else log.tighten)
        narrow(question)
        question.cases = question.splitter.cases()
    if question.cases:
        variants = [question.splitter.objectives(case) for case in question.cases]
        domains = root_domains(program, [variant for several in variants for variant in several])
        feasible = (domains.low <= domains.high).all(-1)
        relaxation = relaxer_of(program, question.late).relax(domains)
        proof = prove(program, domains, relaxation.multipliers)
        closed = (proof.margin >= 0) | ~feasible
        left: list[Case] = []
        margins: list[Tensor] = []
        first = 0
        shortfall = proof.margin / (domains.objective.abs() * (program.high - program.low)).sum(-1).clamp(min=1)
        for several in variants:
            mine = slice(first, first := first + len(several))
            if not bool(closed[mine].any()):
                best = int(shortfall[mine].argmax())
                left.append(several[best])
                margins.append(proof.margin[mine][best])
            elif question.decision.proof is not None:
                best = int(torch.where(feasible, proof.margin, torch.inf)[mine].argmax())
                question.decision.proof.close(several[best], proof, mine.start + best)
        if left:
            worst = int(torch.stack(margins).argmin())
            question.decision.margin, question.decision.nearest = _margin(margins[worst]), left[worst].competitor
        question.cases = tuple(left)
        if question.cases and question.options.method is not Method.BOUNDS:
            found = question.polish(relaxation.inputs, domains.objective)
            if found is not None:
                question.decision.counterexample, question.decision.method = found, "attack"
    if not question.cases:
        question.decision.evidence, question.decision.method = Evidence.EXACT_BOUNDS, "bounds"
    question.say(f"dual bounds: {len(question.cases)} case(s) stay open")


def dual_again(question: Question) -> None:
    """The same for what is open of a large network, with better multipliers for the ranges of its units."""
    if question.refined and question.cases:
        dual(question, MANY)


def _refine(question: Question, program: Program, few: int) -> Program:
    """Tighter ranges of a large network's nodes, and the program that they make; no cases may be left."""
    until = share_of_time(question, REFINE_SECONDS, REFINE_SHARE)

    def late() -> bool:
        return question.late() or time.monotonic() > until

    question.known = refine(question.network, question.known, program, late, few)
    low, high = (bound[0].reshape(-1)[question.splitter.view.element] for bound in question.known[question.splitter.view.node])
    question.splitter = question.splitter.narrowed(low, high)
    question.cases = question.splitter.cases()
    question.refined = True
    if question.cases:
        compile_cases(question, operators=True)
    fresh = question.program or program
    question.say(f"refined ranges: {len(program.units)} units, then {len(fresh.units)}")
    return fresh


def _margin(margin: Tensor) -> int | None:
    return int(margin) if bool(torch.isfinite(margin)) else None


def ilp(question: Question) -> None:
    """The open cases as integer programs, each with the solver that was asked for."""
    if question.cases:
        _solve_cases(question, question.options.solver, question.deadline)


def last_resort(question: Question) -> None:
    """Counterexamples from the floating-point solver in a third of the time, then proofs from the integer solver.

    A claim of the first is remembered, never believed.
    """
    now = time.monotonic()
    _solve_cases(question, "highs", now + LEAF_SECONDS if question.deadline is None else now + (question.deadline - now) / 3)
    claimed = question.decision.evidence is Evidence.SOLVER_CLAIM
    if question.decision.counterexample is None and (claimed or question.decision.evidence is None):
        question.decision.evidence = None
        _solve_cases(question, EXACT_SOLVER, question.deadline)
        if claimed and not question.decision.settled:
            question.decision.evidence = Evidence.SOLVER_CLAIM


def _solve_cases(question: Question, solver: str, deadline: float | None) -> None:
    decision = question.decision
    answer = question.engine().decide(question.cases, solver, deadline)
    if answer.status is Status.FEASIBLE:
        decision.counterexample, decision.method, decision.solver = answer.counterexample, "ilp", solver
    elif answer.status is Status.INFEASIBLE:
        exact = Evidence.EXACT_SOLVER if answer.solvers else Evidence.EXACT_BOUNDS
        decision.evidence, decision.method, decision.solver = exact if answer.exact else Evidence.SOLVER_CLAIM, "ilp", solver
    question.say(f"ilp ({solver}): {answer.status.name.lower()} {answer.reason}".rstrip())


quick_attack: Stage = attack(*QUICK, False, "attack")
strong_attack: Stage = attack(*STRONG, True, "strong attack")
