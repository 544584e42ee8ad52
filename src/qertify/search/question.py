"""One question on its way through the stages: what is known about it, and how candidates are replayed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qertify.attack.aligned import Aligner
from qertify.attack.gradient import signed_gradient
from qertify.attack.lattice import descend
from qertify.bounds.program import Program
from qertify.errors import ReplayError
from qertify.ilp.engine import IlpEngine
from qertify.ilp.process import SolverProcesses
from qertify.network.network import Network
from qertify.network.ranges import Range
from qertify.network.tensor import IntegerArray
from qertify.options import Options
from qertify.parallel.executor import Executor
from qertify.result import Evidence, Reason
from qertify.search.alignment import Alignment
from qertify.search.branch_and_bound import BranchAndBound
from qertify.search.journal import Journal
from qertify.search.proof import ProofLog
from qertify.search.tree import SearchTree
from qertify.specification.cases import Case
from qertify.specification.judge import Judge, Run
from qertify.specification.region import IntegerBox
from qertify.specification.splitting import Property, Splitter

POLISH_STEPS = 8
POLISH_REACH = 0.1
"""First stride of a polishing descent, as a part of each input's width."""
DESCENT_ROUNDS = 100
DESCENT_PAUSE = 4.0
"""Time between two local searches, as a multiple of what the last one took."""
LEVELS = 1024
"""Most levels of a case that an attack tells apart."""


@dataclass(slots=True)
class Decision:
    """What the portfolio found; exactly one of proof, counterexample and reason is set.

    Attributes:
        evidence: set if the property is proved.
        counterexample: replayed input codes, flattened, if it is refuted.
        reason: set if it is undecided.
        method: the stage that decided.
        tree, proof: what a certificate is written from, if they were kept.
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
    proof: ProofLog | None = None
    explanation: list[str] = field(default_factory=list[str])

    @property
    def settled(self) -> bool:
        return self.evidence is not None or self.counterexample is not None


@dataclass(slots=True)
class Question:
    """What the stages share about one question."""

    network: Network
    box: IntegerBox
    property: Property
    options: Options
    deadline: float | None
    say: Callable[[str], None]
    known: dict[str, Range]
    splitter: Splitter
    cases: tuple[Case, ...]
    generator: torch.Generator
    decision: Decision
    processes: SolverProcesses
    program: Program | None = None
    refined: bool = False
    last_descent: float = np.inf
    next_descent: float = np.inf
    descents: int = 0
    tree: BranchAndBound | None = None
    alignment: Alignment | None = None
    run: Run | None = None
    executor: Executor | None = None
    journal: Journal | None = None
    stopped: Callable[[], bool] = lambda: False

    def engine(self) -> IlpEngine:
        """The integer programs of this question."""
        return IlpEngine(
            self.network,
            self.box,
            self.property,
            self.splitter,
            self.known,
            self.processes,
            seed=self.options.seed,
            encoding=self.options.encoding,
            run=self.run,
        )

    def replay_codes(self, candidates: IntegerArray) -> IntegerArray | None:
        """The first candidate, (batch, *input shape), that is judged to violate the property."""
        return self.try_codes(candidates)[0]

    def try_codes(self, candidates: IntegerArray) -> tuple[IntegerArray | None, bool]:
        """`replay_codes`, and whether the property is proved to hold at every candidate."""
        judgement = Judge(self.network, self.property, self.run).judge(candidates)
        if not judgement.violated.any():
            return None, bool(judgement.safe.all())
        convincing = judgement.violated & self.property.convincing(judgement.outputs)
        found = candidates[convincing if convincing.any() else judgement.violated]
        if not self.box.contains(found[:1])[0]:
            raise ReplayError("a counterexample leaves the input region; please report this defect")
        return found[0], False

    def replay(self, candidates: Tensor) -> IntegerArray | None:
        """`replay_codes` for points in the program's inputs, (batch, n)."""
        assert self.program is not None
        codes = np.broadcast_to(self.box.low.reshape(-1), (len(candidates), self.box.low.size)).copy()
        real = self.program.input_index >= 0
        codes[:, self.program.input_index[real]] = self._inside(candidates).cpu().numpy()[:, real].astype(np.int64)
        return self.replay_codes(self.box.clip(codes.reshape(-1, *self.network.input_shape)))

    def put_off_descents(self, seconds: float) -> None:
        """Local search may begin so many seconds from now; never before this is called."""
        self.last_descent = time.monotonic()
        self.next_descent = self.last_descent + seconds

    def polish(self, candidates: Tensor, objective: Tensor) -> IntegerArray | None:
        """Replay the ends of short descents from candidates, (batch, n), on their objectives, (batch, N).

        From time to time the best end is improved by local search or by aligned roundings, which cost more.
        """
        assert self.program is not None
        inside = self._inside(candidates)
        points, reached = signed_gradient(
            self.program, inside, objective, POLISH_STEPS, self.generator, POLISH_REACH, self.late
        )
        found = self.replay(points)
        start = time.monotonic()
        if found is None and start >= self.next_descent:
            best = int((reached / objective.abs().amax(-1).clamp(min=1)).argmin())
            aligned = self.aligned()
            self.descents += 1
            if aligned is None or self.descents % 3 == 0:
                found = self.replay(descend(self.program, points[best], objective[best], DESCENT_ROUNDS, self.late))
            else:
                found = aligned.climb(points[best], objective[best])
                found = aligned.explore(start + (start - self.last_descent) / DESCENT_PAUSE) if found is None else found
            self.put_off_descents(DESCENT_PAUSE * (time.monotonic() - start))
        return found

    def aligned(self) -> Alignment | None:
        """The attack that aligns rounding errors; None where the program has none to align or is too large."""
        program = self.program
        if program is None or not Aligner.supports(program):
            return None
        if self.alignment is None or self.alignment.program is not program:
            parts = tuple(part for case in self.cases for part in self.splitter.objectives(case))
            levels = tuple(
                level
                for case in self.cases
                for level in (self.splitter.levels(case) if case.last - case.first < LEVELS else (case,))
            )
            self.alignment = Alignment(program, parts, levels, self.replay, self.generator, self.late)
        return self.alignment

    def _inside(self, candidates: Tensor) -> Tensor:
        assert self.program is not None
        inside = torch.minimum(torch.maximum(candidates, self.program.input_low), self.program.input_high)
        return torch.nan_to_num(inside).round()

    def late(self) -> bool:
        return self.stopped() or (self.deadline is not None and time.monotonic() > self.deadline)
