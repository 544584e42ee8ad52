"""Branch and bound: a loop over bounds, branches, replays and leaves.

A domain is one case of the violation with bounds on accumulators. It is closed by an integer bound, by an interval
contradiction, or by an exact solver at a leaf where every value is fixed; otherwise it is split at a threshold, or its
levels are bisected. The parts of a split cover the domain, so a tree whose leaves are all closed is a proof.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.dual import Domains, Proof, prove
from qertify.bounds.program import Program
from qertify.bounds.relaxers import batch_of, relax_parts, relaxer_of
from qertify.bounds.tighten import propagate, retighten
from qertify.network.tensor import IntegerArray
from qertify.search.branching import Gains, choose, parts
from qertify.search.domains import Subproblem, level_bounds, objectives, root_domains
from qertify.search.leaf import Closure, Leaf
from qertify.search.tree import SearchOutcome, SearchTree, least_margins
from qertify.specification.cases import Case
from qertify.specification.splitting import Bisector

BATCH = 96
CANDIDATES = 24
"""Domains of a batch whose primal points are tried as counterexamples."""
SMALL = 400
"""Units above which fewer of them are tried."""
RETIGHTEN_LIMIT = 400
"""Most units with which inner ranges are tightened again in every domain."""
MEMORY = 1 << 30
"""Bytes that the open domains may take where no limit is given."""
DIVE_ABOVE = 20_000
"""Open domains above which the search goes deep instead of wide, to bound memory."""


Replay = Callable[[Tensor, Tensor], IntegerArray | None]
"""Candidates (batch, n) in the program's inputs and their objectives (batch, N) → a replayed counterexample or None."""


@dataclass(slots=True)
class _Open:
    """A domain that waits to be split."""

    case: Case
    low: Tensor
    high: Tensor
    margin: float
    depth: int
    node: int
    unit: int
    threshold: float
    cheat: float
    fixed: bool
    bisect: bool
    slopes: Tensor | None


@dataclass(slots=True)
class _Waiting:
    """A domain that waits to be bounded; ``parent`` and ``side`` say which split made it, ``margin`` what is proved of it."""

    case: Case
    low: Tensor
    high: Tensor
    depth: int
    node: int
    parent: _Open | None = None
    side: int = 0
    margin: float = -np.inf
    start: Tensor | None = None


class BranchAndBound:
    """One search. `run` may be called again after a time-out, to go on.

    Args:
        program: the compiled network.
        splitter: bisects cases.
        cases: what must be shown impossible.
        replay: checks candidate counterexamples exactly.
        leaf: decides domains whose values are all fixed.
        keep_tree: keep the search tree and the multipliers.
        memory: bytes that the open domains may take, None for no limit.
        gains: what splits have brought in earlier searches of the program; is added to.
    """

    def __init__(
        self,
        program: Program,
        splitter: Bisector,
        cases: tuple[Case, ...],
        replay: Replay,
        leaf: Leaf,
        keep_tree: bool = False,
        memory: int | None = None,
        gains: Gains | None = None,
    ) -> None:
        self._program, self._splitter, self._replay, self._leaf = program, splitter, replay, leaf
        self._relaxer = relaxer_of(program, self._late)
        self._batch = min(BATCH, batch_of(program))
        self._candidates = max(2, CANDIDATES * SMALL // max(SMALL, len(program.units)))
        self._gains = gains or Gains(program)
        self._tree = SearchTree() if keep_tree else None
        integral = program.operators is None and program.divisor is None
        self._retightens = integral and not keep_tree and len(program.blocks) > 2 and len(program.units) <= RETIGHTEN_LIMIT
        self._queue: list[tuple[float, int, _Open]] = []
        self._stuck: list[_Open] = []
        self._levels: dict[Case, tuple[Tensor, Tensor, Tensor]] = {}
        self._counter = 0
        self._deadline: float | None = None
        self._stopped: Callable[[], bool] = lambda: False
        self._nodes = 0
        self._leaf_solvers: set[str] = set()
        row_bytes = (16 if program.operators is None else 22) * len(program.units) + 512
        self._dive_above = max(self._batch, min(DIVE_ABOVE, (MEMORY if memory is None else memory) // row_bytes // 2))
        self._diving = False
        nodes = [-1 if self._tree is None else self._tree.add(-1, case, None) for case in cases]
        domains = root_domains(program, list(cases))
        self._waiting: list[_Waiting] = [
            _Waiting(case, domains.low[row], domains.high[row], 0, nodes[row]) for row, case in enumerate(cases)
        ]

    def _late(self) -> bool:
        return self._stopped() or (self._deadline is not None and time.monotonic() > self._deadline)

    @property
    def program(self) -> Program:
        """What is searched."""
        return self._program

    @property
    def gains(self) -> Gains:
        """What its splits have brought."""
        return self._gains

    @property
    def dive_above(self) -> int:
        """Open domains above which the search goes deep instead of wide."""
        return self._dive_above

    @property
    def nodes(self) -> int:
        """Domains bounded so far."""
        return self._nodes

    @property
    def open(self) -> int:
        """Domains neither closed nor split yet."""
        return len(self._queue) + len(self._waiting) + len(self._stuck)

    @property
    def leaf_solvers(self) -> frozenset[str]:
        """Who closed leaves so far."""
        return frozenset(self._leaf_solvers)

    def credit(self, solver: str) -> None:
        """Say that a solver may have closed leaves of this search before it was taken up."""
        self._leaf_solvers.add(solver)

    def add(self, subproblems: Iterable[Subproblem]) -> None:
        """Search these domains, too."""
        self._waiting += [_Waiting(item.case, item.low, item.high, item.depth, -1, margin=item.margin) for item in subproblems]

    def hand_over(self) -> list[Subproblem]:
        """Take all open domains out of the search, split where it was about to split them."""
        items = [item for _, _, item in sorted(self._queue, key=lambda entry: entry[:2])]
        found = [Subproblem(item.case, item.low, item.high, item.margin, item.depth) for item in self._waiting]
        found += [Subproblem(item.case, item.low, item.high, item.margin, item.depth, True) for item in self._stuck]
        self._waiting, self._queue, self._stuck = [], [], []
        for item in items:
            if item.fixed and not item.bisect:
                found.append(Subproblem(item.case, item.low, item.high, item.margin, item.depth))
                continue
            self._divide(item)
            found += [Subproblem(part.case, part.low, part.high, item.margin, part.depth) for part in self._waiting]
            self._waiting = []
        return found

    def run(
        self,
        deadline: float | None = None,
        max_nodes: int | None = None,
        report: Callable[[BranchAndBound], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        pause: float | None = None,
    ) -> SearchOutcome:
        """Search until every domain is closed, a counterexample replays, or a limit is reached.

        Args:
            deadline: of `time.monotonic`.
            max_nodes: total number of domains to bound.
            report: called after every batch.
            stopped: polled; once it is true, the search ends, and the domains at hand stay as they were.
            pause: of `time.monotonic`; what is begun by then is finished first, unlike at the deadline.
        """
        self._deadline, self._stopped = deadline, stopped
        while self._waiting or self._queue:
            over = pause is not None and time.monotonic() > pause
            if over or self._late() or (max_nodes is not None and self._nodes >= max_nodes):
                return self._outcome(None)
            found = self._bound(self._waiting[: self._batch]) if self._bounds_next() else self._split()
            if found is not None:
                return self._outcome(found)
            if report is not None:
                report(self)
        return self._outcome(None)

    def _bounds_next(self) -> bool:
        """Whether what waits is at least as urgent as what could be split: always so, but for domains from elsewhere."""
        if not self._waiting or not self._queue or self._diving:
            return bool(self._waiting)
        return self._waiting[0].margin <= self._queue[0][2].margin

    def _outcome(self, counterexample: IntegerArray | None) -> SearchOutcome:
        left = [item for _, _, item in self._queue] + self._stuck
        worst = min(left, key=lambda item: item.margin, default=None)
        return SearchOutcome(
            proved=counterexample is None and not left and not self._waiting,
            counterexample=counterexample,
            nodes=self._nodes,
            leaf_solvers=frozenset(self._leaf_solvers),
            margin=None if worst is None else worst.margin,
            nearest=self._waiting[0].case if worst is None and self._waiting else None if worst is None else worst.case,
            tree=self._tree,
            margins=None
            if counterexample is not None
            else least_margins((item.case, item.margin) for item in [*left, *self._waiting]),
        )

    def _bound(self, batch: list[_Waiting]) -> IntegerArray | None:
        """Bound domains, drop the closed ones, queue the rest with their branches."""
        self._waiting = self._waiting[len(batch) :]
        cases = [item.case for item in batch]
        low, high, empty = propagate(
            self._program, torch.stack([item.low for item in batch]), torch.stack([item.high for item in batch])
        )
        self._nodes += len(batch)
        if self._tree is not None:
            for row in torch.nonzero(empty)[:, 0].tolist():
                self._tree.closed_by[batch[row].node] = "interval"
        if self._retightens and not bool(empty.all()):
            good = torch.nonzero(~empty)[:, 0]
            low[good], high[good] = retighten(self._program, low[good], high[good])
            empty |= (low > high).any(-1)
        kept = torch.nonzero(~empty)[:, 0]
        if not len(kept):
            return None
        domains = Domains(low[kept], high[kept], *objectives(self._program, [cases[row] for row in kept.tolist()]))
        relaxation = relax_parts(self._relaxer, domains, [batch[row].start for row in kept.tolist()])
        if self._stopped():  # it ended too early: to split all of these would be a waste
            self._waiting[:0] = batch
            self._nodes -= len(batch)
            return None
        proof = prove(self._program, domains, relaxation.multipliers)
        self._record(proof, [batch[row].node for row in kept.tolist()])
        self._learn([batch[row] for row in kept.tolist()], proof.margin)
        is_open = proof.margin < 0
        if not bool(is_open.any()):
            return None
        cost, _ = self._program.products(domains.objective + relaxation.multipliers)
        corner = torch.where(cost > 0, self._program.input_low, self._program.input_high)
        hopeful = torch.nonzero(is_open)[:, 0]
        hopeful = hopeful[proof.margin[hopeful].argsort()[: self._candidates]]
        objective = domains.objective[hopeful]
        found = self._replay(torch.cat([relaxation.inputs[hopeful], corner[hopeful]]), torch.cat([objective, objective]))
        if found is not None:  # all that is open stays so
            for row in torch.nonzero(is_open)[:, 0].tolist():
                self._waiting.append(replace(batch[int(kept[row])], margin=float(proof.margin[row])))
            return found
        branches = choose(self._program, domains, relaxation, self._gains)
        for row in torch.nonzero(is_open)[:, 0].tolist():
            parent = batch[int(kept[row])]
            case = parent.case
            fixed = bool(branches.fixed[row])
            item = _Open(
                case=case,
                low=domains.low[row].clone(),
                high=domains.high[row].clone(),
                margin=max(float(proof.margin[row]), parent.margin),  # what holds for the whole holds here
                depth=parent.depth,
                node=parent.node,
                unit=int(branches.unit[row]),
                threshold=float(branches.threshold[row]),
                cheat=float(branches.score[row]),
                fixed=fixed,
                bisect=not case.single and (fixed or self._output_cheat(case, relaxation.z[row]) > float(branches.score[row])),
                slopes=None if relaxation.slopes is None else relaxation.slopes[row].clone(),
            )
            self._push(item)
        return None

    def _learn(self, batch: list[_Waiting], margin: Tensor) -> None:
        """Record what the splits that made these domains have gained."""
        rows = [
            (item.side > 0, item.parent.unit, item.parent.margin, item.parent.cheat, float(value))
            for item, value in zip(batch, margin.tolist(), strict=True)
            if item.parent is not None and item.parent.cheat > 0
        ]
        if rows:
            table = torch.tensor(rows, dtype=torch.float64, device=margin.device)
            gain = (table[:, 4].clamp(max=0) - table[:, 2]).clamp(min=0) / table[:, 3]
            self._gains.record(table[:, 0].long(), table[:, 1].long(), gain)

    def _output_cheat(self, case: Case, z: Tensor) -> float:
        """How far the relaxation's output accumulators, (N,), are from a violation at any single level of the case."""
        if case not in self._levels:
            upper, lower = level_bounds(self._program, self._splitter.levels(case))
            told = torch.nonzero((torch.isfinite(upper) | torch.isfinite(lower)).any(0))[:, 0]
            self._levels[case] = told, upper[:, told], lower[:, told]
        told, upper, lower = self._levels[case]
        if not len(told):
            return 0.0
        return float(torch.maximum(z[told] - upper, lower - z[told]).amax(1).amin().clamp(min=0))

    def _record(self, proof: Proof, nodes: list[int]) -> None:
        if self._tree is None:
            return
        for row in torch.nonzero(proof.margin >= 0)[:, 0].tolist():
            self._tree.closed_by[nodes[row]] = "bound"
            self._tree.multipliers[nodes[row]] = (proof.multipliers[row].cpu().numpy().astype(np.int64), int(proof.bits[row]))

    def _push(self, item: _Open) -> None:
        self._counter += 1
        priority = -float(item.depth) if self._diving else item.margin
        heapq.heappush(self._queue, (priority, self._counter, item))

    def _split(self) -> IntegerArray | None:
        """Replace the most urgent domains by their parts."""
        if self._diving != (len(self._queue) > self._dive_above):
            self._diving = not self._diving
            items = [item for _, _, item in self._queue]
            self._queue = []
            for item in items:
                self._push(item)
        later, self._waiting = self._waiting, []
        found = self._split_most_urgent()
        self._waiting += later
        return found

    def _split_most_urgent(self) -> IntegerArray | None:
        for _ in range(min(max(1, self._batch // 2), len(self._queue))):
            _, _, item = heapq.heappop(self._queue)
            if item.bisect or not item.fixed:
                self._divide(item)
                continue
            answer = self._leaf(item.case, item.low, item.high)
            if answer.closure is Closure.COUNTEREXAMPLE:
                self._stuck.append(item)
                return answer.counterexample
            if answer.closure is Closure.EMPTY:
                self._leaf_solvers.add(answer.by)
                self._mark(item, answer.by)
            else:
                self._stuck.append(item)
        return None

    def _divide(self, item: _Open) -> None:
        """Let the parts of a domain wait in its place."""
        self._mark(item, "split")
        if item.bisect:
            for case in self._splitter.bisect(item.case):
                self._wait_case(item, case)
            return
        if item.slopes is not None:
            item.slopes[:, item.unit] = torch.nan
        both = parts(self._program, item.low, item.high, item.unit, item.threshold)
        for side, (low, high) in zip((-1, 1), both, strict=True):
            split = (item.unit, int(item.threshold), side)
            node = -1 if self._tree is None else self._tree.add(item.node, item.case, split)
            self._waiting.append(_Waiting(item.case, low, high, item.depth + 1, node, item, side, item.margin, item.slopes))

    def _wait_case(self, item: _Open, case: Case) -> None:
        node = -1 if self._tree is None else self._tree.add(item.node, case, None)
        fresh = root_domains(self._program, [case])
        low, high = torch.maximum(item.low, fresh.low[0]), torch.minimum(item.high, fresh.high[0])
        self._waiting.append(_Waiting(case, low, high, item.depth + 1, node, start=item.slopes))

    def _mark(self, item: _Open, closed_by: str) -> None:
        if self._tree is not None:
            self._tree.closed_by[item.node] = closed_by
