"""The engines on an equivalence query: enumeration, attack on the difference, joint bounds, branch and bound, programs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.difference import Joint
from qertify.bounds.dual import prove
from qertify.bounds.interior_point import Relaxation
from qertify.bounds.relaxers import Relaxer, relax_well, relaxer_of
from qertify.errors import ReplayError
from qertify.ilp.process import SolverProcesses
from qertify.network.network import Network
from qertify.network.tensor import FloatArray, IntegerArray
from qertify.options import Method, Options
from qertify.parallel.executor import Executor
from qertify.parallel.programs import can_travel
from qertify.result import Evidence, Reason
from qertify.search.branch_and_bound import BranchAndBound
from qertify.search.branching import Gains
from qertify.search.comparison import EquivalenceQuery, Finding, Judge, text_of
from qertify.search.difference_rows import ClassRows, DifferenceRows
from qertify.search.dive import dive
from qertify.search.domains import root_domains
from qertify.search.equivalence_attack import DifferenceAttack, attack_classes, polish, sample
from qertify.search.equivalence_grid import enumerate_grid
from qertify.search.equivalence_ilp import JointSolver, close_leaf, real_inputs
from qertify.search.equivalence_program import joint_program
from qertify.search.equivalence_root import Root, root_of
from qertify.search.leaf import open_leaf
from qertify.search.portfolio import one_thread
from qertify.search.sharing import Shared, program_context, run_shared
from qertify.specification.cases import Case
from qertify.specification.splitting import OneLevel

SAMPLES = 24
ENUMERATION_LIMIT = 1 << 17
"""Most inputs of a grid that are simply enumerated."""
BOUNDS_FIRST = 1500
"""Most units without rows for which bounds take less time than an attack, and come first."""
ROOT_ACCURACY = 0.01
ATTACK_SECONDS, MORE_SECONDS = 5.0, 15.0
"""Most seconds for an attack; for the one that the greatest difference is left to."""
DIVE_SHARE = 0.5
"""Part of the time for a stronger attack in which it follows relaxations."""
RANGES_SHARE = 0.7
"""Part of the time that is left for ranges of inner differences."""
FIRST_EXCESS = Fraction(1, 50)
"""Relative distance to what is attained that the first search for the least delta aims at."""
CLOSE = Fraction(1, 10**6)
"""Relative distance of attained and proved differences that ends the search for the least delta."""


def search(
    query: EquivalenceQuery,
    judge: Judge,
    margin: Fraction,
    options: Options,
    say: Callable[[str], None],
    deadline: float | None,
    executor: Executor | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Finding:
    """Decide the query.

    Args:
        margin: by how much the original's outputs may be off from real arithmetic.
        executor, stopped: as `qertify.queries.equivalence.equivalence`.
    """
    with one_thread(), SolverProcesses(options.memory) as processes:
        return _Search(query, judge, margin, options, say, deadline, processes, executor, stopped).run()


class _Search:
    def __init__(
        self,
        query: EquivalenceQuery,
        judge: Judge,
        margin: Fraction,
        options: Options,
        say: Callable[[str], None],
        deadline: float | None,
        processes: SolverProcesses,
        executor: Executor | None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._query, self._judge, self._margin, self._options = query, judge, margin, options
        self._processes, self._leaf_solvers, self._executor = processes, frozenset[str](), executor
        self._show, self._deadline, self._stopped = say, deadline, stopped
        self._finding = Finding()
        self._margins: dict[Case, float] | None = None
        self._generator = torch.Generator().manual_seed(options.seed)
        networks = (query.original, query.quantized)
        self._exact = all(network.exactness == "exact" for network in networks if isinstance(network, Network))
        self._differences = DifferenceRows(query.original, query.quantized, query.outputs)
        self._classes = ClassRows(query.original, query.quantized)
        self._every = [(row, sign) for row in range(len(query.outputs)) for sign in (1, -1)]

    def _late(self) -> bool:
        return self._stopped() or (self._deadline is not None and time.monotonic() > self._deadline)

    def _left(self) -> float:
        """Seconds until the deadline."""
        return math.inf if self._deadline is None else self._deadline - time.monotonic()

    def _share(self) -> float:
        """Seconds for an attack: a fifth of the time that is left, or `ATTACK_SECONDS`."""
        return min(ATTACK_SECONDS, self._left() / 5)

    def _say(self, line: str) -> None:
        self._finding.explanation.append(line)
        self._show(line)

    def _refuted(self) -> bool:
        """Whether the judge has seen a counterexample; an enclosure's does not count, since the runtime may differ."""
        if not self._exact:
            return False
        if self._query.top1:
            return self._judge.disagreement is not None
        return self._query.delta is not None and self._judge.attained > self._query.delta + self._margin

    def run(self) -> Finding:
        finding = self._finding
        if self._options.method is not Method.ILP:
            sample(self._judge, SAMPLES, self._options.seed)
        if self._refuted():
            finding.method = "sampling"
        elif not self._enumerate():
            self._analyse()
        judge = self._judge
        if self._exact and judge.attained >= 0:
            finding.attained = max(judge.attained - self._margin, Fraction(0))
            if finding.bound is not None and finding.bound < judge.attained:
                raise ReplayError("an input differs by more than was proved possible; please report this defect")
        if self._refuted():
            finding.refuted, finding.proved = True, False
            finding.found = judge.disagreement if self._query.top1 else judge.worst
        elif self._query.delta is None and not self._query.top1 and finding.bound is not None and self._exact:
            finding.found = judge.worst
            finding.proved = finding.bound <= judge.attained * (1 + CLOSE) + self._margin
        if self._leaf_solvers and finding.evidence is Evidence.EXACT_SEARCH:
            finding.evidence, finding.solver = Evidence.EXACT_SOLVER, ", ".join(sorted(self._leaf_solvers))
        if finding.proved or finding.refuted:
            finding.reason = None
        elif finding.reason is None:
            finding.reason = Reason.TIMEOUT if self._late() else Reason.UNSUPPORTED if self._exact else Reason.ENCLOSURE
        return finding

    def _enumerate(self) -> bool:
        """Every input of a small grid; False if it is not small."""
        inputs = self._query.inputs
        exhaustive = self._options.method in (Method.AUTO, Method.BAB)
        if not (inputs.is_grid and exhaustive and self._exact and inputs.box.size <= ENUMERATION_LIMIT):
            return False
        enumerate_grid(self._judge, self._finding, self._margin, self._late, self._refuted)
        self._say(f"enumeration: {inputs.box.size} inputs, largest difference {float(self._judge.attained):.6g}")
        return True

    def _compile(self, coupled: bool) -> Joint:
        rows, dense = self._classes if self._query.top1 else self._differences, self._options.method is Method.ILP or None
        until = time.monotonic() + self._left() * RANGES_SHARE
        joint, pairs = joint_program(self._query, rows, coupled, dense, self._options.seed, lambda: time.monotonic() > until)
        self._say(f"joint program: {len(joint.program.units)} units and rows, {pairs} pair(s) of layers")
        return joint

    def _analyse(self) -> None:
        if self._options.method is Method.ILP:
            self._solve(self._compile(self._options.coupled))
        elif self._query.top1:
            self._decide_class(self._compile(coupled=True))
        else:
            self._decide_difference()

    def _programs(self, joint: Joint, coupled: bool) -> JointSolver:
        def consider(points: FloatArray) -> None:
            self._judge.judge(*self._query.inputs.points(joint, points))

        return JointSolver(joint.program, real_inputs(joint), self._options, self._processes, coupled, consider)

    def _solve(self, joint: Joint) -> None:
        """Integer programs, case by case."""
        query, rows, bits = self._query, self._differences, joint.output_bits
        if query.top1:
            cases = self._classes.cases(self._margin, bits)
        else:
            delta = Fraction(0) if query.delta is None else query.delta - self._margin
            cases = rows.cases({key: rows.limit(key[0], delta, bits) for key in self._every})
        asked = query.top1 or query.delta is not None
        answers = self._programs(joint, self._options.coupled).ask(cases, self._deadline, self._refuted if asked else None)
        bound: Fraction | None = None
        if not asked and None not in answers.bounds:
            ends = [rows.difference(row, end or 0, bits) for (row, _), end in zip(self._every, answers.bounds, strict=True)]
            bound = max(*ends, Fraction(0)) + self._margin
        self._say(answers.settle(self._finding, self._options, bound))

    def _decide_difference(self) -> None:
        query, finding, method = self._query, self._finding, self._options.method
        allowed = None if query.delta is None else query.delta - self._margin
        plain = self._compile(coupled=False)
        attack = DifferenceAttack(plain, self._differences, self._judge, self._generator, self._late)
        root, small = None, plain.program.operators is None and len(plain.program.units) <= BOUNDS_FIRST
        if query.delta is not None and method is not Method.ATTACK and small:
            root = root_of(self._compile(coupled=True), self._differences, self._every, allowed)
            if root.closed:
                self._note(root)
                return
        attack.begin(self._share())
        if method is Method.ATTACK and not self._refuted():
            attack.go_on(self._left(), self._refuted)
        self._say(f"attack: a difference of {float(self._judge.attained):.6g}")
        if self._refuted() or method is Method.ATTACK:
            finding.method = "attack"
            return
        root = root or root_of(self._compile(coupled=True), self._differences, self._every, allowed)
        if root.closed:
            self._note(root)
            return
        program, domains = root.joint.program, root.domains
        relaxer = relaxer_of(program, self._late)
        relaxation = relax_well(relaxer, domains, ROOT_ACCURACY)
        root.margins = torch.maximum(root.margins, prove(program, domains, relaxation.multipliers).margin)
        self._candidates(root.joint, relaxation.inputs, domains.objective)
        bounds = self._note(root)
        if self._refuted() or root.closed or method is Method.BOUNDS:
            return
        self._attack_on(attack, root, relaxer, relaxation)
        self._say(f"stronger attack: a difference of {float(self._judge.attained):.6g}")
        if self._refuted():
            finding.method = "attack"
        elif query.delta is None:
            self._squeeze(root.joint, bounds)
        else:
            margins = zip(self._every, root.cases, root.margins.tolist(), strict=True)
            left = {key: case for key, case, margin in margins if margin < 0}
            finding.proved = self._search(root.joint, tuple(left.values()), self._deadline, query.delta + self._margin)
            self._tighten(root.joint, bounds, left, finding.proved)
            if finding.proved:
                finding.evidence, finding.method = Evidence.EXACT_SEARCH, "bab"

    def _attack_on(self, attack: DifferenceAttack, root: Root, relaxer: Relaxer, relaxation: Relaxation) -> None:
        """From relaxations of the row and sign with the worst bound, and from the best points so far."""
        # without a delta, a greater difference is half of the answer
        seconds = min(MORE_SECONDS, self._left() / 2) if self._query.delta is None else self._share()
        until = time.monotonic() + seconds
        worst = root.margins.argmin()[None]

        def late() -> bool:
            return self._late() or self._refuted() or time.monotonic() > until

        def follow(inputs: Tensor) -> None:
            attack.follow(inputs, int(worst), late)

        domain, relaxation = root.domains.pick(worst), relaxation.pick(worst)
        dive(root.joint.program, relaxer, domain, relaxation, follow, late, seconds * DIVE_SHARE)
        attack.go_on(until - time.monotonic(), self._refuted)

    def _note(self, root: Root) -> dict[tuple[int, int], Fraction | None]:
        """Remember and return what is proved of every row and sign."""
        finding, rows = self._finding, self._differences
        ends = (root.margins + root.domains.limit).tolist()  # one less than ⌈g⌉: below g
        bounds = {
            key: max(rows.difference(key[0], end, root.joint.output_bits), Fraction(0)) if np.isfinite(end) else None
            for key, end in zip(self._every, ends, strict=True)
        }
        finding.bound = self._greatest(bounds.values())
        finding.method, finding.evidence = "bounds", Evidence.EXACT_BOUNDS
        finding.proved = root.closed and self._query.delta is not None
        self._say(f"bounds: at most {text_of(finding.bound)}, at least {float(self._judge.attained):.6g}")
        return bounds

    def _greatest(self, bounds: Collection[Fraction | None]) -> Fraction | None:
        """What bounds of all rows and signs mean for the difference."""
        known = [bound for bound in bounds if bound is not None]
        return max(known) + self._margin if len(known) == len(bounds) else None

    def _tighten(
        self, joint: Joint, bounds: dict[tuple[int, int], Fraction | None], cases: dict[tuple[int, int], Case], proved: bool
    ) -> None:
        """Enter what a search left open of some rows and signs, at worst."""
        finding = self._finding
        for key, case in cases.items():
            margin = 0.0 if proved else self._margins.get(case, 0.0) if self._margins else -np.inf
            if np.isfinite(margin):
                reached = self._differences.difference(key[0], min(margin, 0.0) + case.limit, joint.output_bits)
                known = bounds[key]
                bounds[key] = reached if known is None else min(known, reached)
        bound = self._greatest(bounds.values())
        if bound is not None and (finding.bound is None or bound < finding.bound):
            finding.bound, finding.evidence, finding.method = bound, Evidence.EXACT_SEARCH, "bab"

    def _squeeze(self, joint: Joint, bounds: dict[tuple[int, int], Fraction | None]) -> None:
        """Bring the proved difference down towards the attained one, by searches for differences in between."""
        finding, judge = self._finding, self._judge
        excess = FIRST_EXCESS
        while finding.bound is not None and not self._late():
            aim = (judge.attained + self._margin) * (1 + excess)
            if finding.bound <= aim and excess <= CLOSE:
                return
            keys = [key for key, bound in bounds.items() if bound is None or bound + self._margin > aim]
            limits = {key: self._differences.limit(key[0], aim - self._margin, joint.output_bits) for key in keys}
            cases = self._differences.cases(limits)
            seen = judge.attained
            proved = not keys or self._search(joint, cases, self._deadline, (aim - self._margin) * (1 + FIRST_EXCESS), True)
            self._tighten(joint, bounds, dict(zip(keys, cases, strict=True)), proved)
            self._say(f"search: {float(judge.attained):.6g} … {text_of(finding.bound)}, {finding.nodes} domains")
            if proved:
                excess /= 10
            elif judge.attained <= seen * (1 + FIRST_EXCESS):  # what is left differs by rounding to fixed point, or is late
                return

    def _decide_class(self, joint: Joint) -> None:
        finding, program = self._finding, joint.program
        cases = self._classes.cases(self._margin, joint.output_bits)
        attack_classes(joint, self._judge, self._generator, self._late)
        if self._refuted() or self._options.method is Method.ATTACK:
            finding.method = "attack"
            return
        domains = root_domains(program, list(cases))
        possible = (domains.low <= domains.high).all(-1)
        open_ = [case for case, here in zip(cases, possible.tolist(), strict=True) if here]
        if open_:
            domains = domains.pick(possible)
            relaxation = relax_well(relaxer_of(program, self._late), domains)
            margins = prove(program, domains, relaxation.multipliers).margin
            open_ = [case for case, margin in zip(open_, margins.tolist(), strict=True) if margin < 0]
            self._candidates(joint, relaxation.inputs, domains.objective)
        finding.method, finding.evidence = "bounds", Evidence.EXACT_BOUNDS
        self._say(f"bounds: {len(open_)} of {len(cases)} pairs of classes stay open")
        finding.proved = not open_
        if open_ and not self._refuted() and self._options.method is not Method.BOUNDS:
            finding.evidence, finding.method = Evidence.EXACT_SEARCH, "bab"
            finding.proved = self._search(joint, tuple(open_), self._deadline, None)

    def _candidates(self, joint: Joint, inputs: Tensor, objective: Tensor) -> None:
        """Judge the ends of short descents from points of a relaxation."""
        points, _ = polish(joint.program, inputs, objective, self._generator, self._late)
        self._judge.judge(*self._query.inputs.points(joint, points.numpy()))

    def _search(
        self,
        joint: Joint,
        cases: tuple[Case, ...],
        deadline: float | None,
        target: Fraction | None,
        squeezing: bool = False,
    ) -> bool:
        """Branch and bound; True if the cases are excluded. Stops at a difference above the target, or a disagreement."""
        judge, program, options = self._judge, joint.program, self._options

        def found() -> IntegerArray | None:
            found = judge.disagreement if target is None else judge.worst if judge.attained > target else None
            return None if found is None or not self._exact else found[1].reshape(-1)

        def replay(candidates: Tensor, objective: Tensor) -> IntegerArray | None:
            self._candidates(joint, candidates, objective)
            return found()

        def from_worker(points: Tensor) -> IntegerArray | None:
            judge.judge(*self._query.inputs.points(joint, points.numpy()))
            return found()

        gains = Gains(program)  # while squeezing, a leaf's own bound is good enough, and costs nothing
        solver = None if squeezing or program.operators is not None else self._programs(joint, coupled=True)
        leaf = open_leaf if solver is None else partial(close_leaf, solver, deadline)
        tree = BranchAndBound(program, OneLevel(), cases, replay, leaf, memory=options.memory, gains=gains)
        last = time.monotonic()

        def report(progress: BranchAndBound) -> None:
            nonlocal last
            if time.monotonic() - last > 1:
                last = time.monotonic()
                self._show(f"search: {progress.nodes} domains bounded, {progress.open} open")

        if self._executor is None or self._executor.size < 2 or not can_travel(program):
            outcome = tree.run(deadline, report=report, stopped=self._stopped)
        else:
            context = program_context(program, cases, real_inputs(joint).tolist(), options.seed, not squeezing)
            shared = Shared(context, program, OneLevel(), gains, deadline, self._stopped, self._say, from_worker)
            outcome, self._finding.reason = run_shared(self._executor, shared, tree, report)
        self._finding.nodes += outcome.nodes
        self._margins = outcome.margins
        self._leaf_solvers |= outcome.leaf_solvers
        return outcome.proved
