"""The attack on a question by inputs whose rounding errors line up, told what a violation at its nearest level still lacks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qertify.attack.aligned import Aligner
from qertify.attack.gradient import forward, random_starts
from qertify.bounds.program import Program
from qertify.ilp.soft_rows import SoftRows
from qertify.network.tensor import IntegerArray
from qertify.search.domains import level_bounds, root_domains
from qertify.specification.cases import Case

STARTS, STEPS = 8, 20
"""Starts a case in every round, and their steps."""
ROUNDS = 3
FEW, MANY = 3, 24
"""Starts of a round that are gone on from: in the first round even if they promise no violation, and at most."""
TURNS = 4
"""Objectives in a row from one start."""
KEPT = 0.25
"""What a bound that holds weighs against one that does not."""
NEAREST, TRIES, SHAKEN = 4, 5, 0.3
"""Near misses that are kept, changes of them that are tried at a time, and the most inputs that change, as a part."""

Replay = Callable[[Tensor], IntegerArray | None]
"""Candidates (batch, n) in the program's inputs → a replayed counterexample or None."""


@dataclass(frozen=True, slots=True, eq=False)
class _Miss:
    """A point, (n,), how far it is from a violation, and the objective, (N,), that led to it."""

    lack: float
    x: Tensor
    objective: Tensor


class Alignment:
    """Aligns the rounding errors of one program for some cases of a violation.

    Args:
        program: one that `Aligner.supports`.
        cases: of which one is to happen, with what is worth minimising for each; their ``levels`` alike.
        replay: checks candidates exactly.
        generator: of random starts, moves and roundings.
        late: polled.
    """

    def __init__(
        self,
        program: Program,
        cases: tuple[Case, ...],
        levels: tuple[Case, ...],
        replay: Replay,
        generator: torch.Generator,
        late: Callable[[], bool],
    ) -> None:
        self.program = program
        self._replay, self._generator, self._late = replay, generator, late
        self._aligner = Aligner(program, SoftRows, generator)
        self._domains = root_domains(program, cases)
        self._near: list[_Miss] = []
        self._upper, self._lower = level_bounds(program, levels)

    def search(self, until: float) -> IntegerArray | None:
        """A counterexample from starts of its own; none is begun after ``until``, of `time.monotonic`."""
        domains, count = self._domains, len(self._domains) * STARTS
        objective = domains.objective.repeat_interleave(STARTS, 0)
        for number in range(ROUNDS):
            points, promised = self._aligner.starts(random_starts(self.program, count, self._generator), objective, STEPS)
            lack = promised - domains.limit.repeat_interleave(STARTS)
            promising = int((lack <= 0).sum())
            if number and not promising:
                break
            hopeful = min(MANY, promising if number else max(FEW, promising))
            for row in lack.argsort()[:hopeful].tolist():
                if self._late() or time.monotonic() > until:
                    return None
                found = self.climb(points[row], objective[row])
                if found is not None:
                    return found
        return None

    def climb(self, x: Tensor, objective: Tensor) -> IntegerArray | None:
        """A counterexample next to a point, (n,), first by an objective, (N,), then by what is missing from a violation."""
        for _ in range(TURNS):
            points = self._aligner.climb(x, objective)
            if not len(points):
                return None
            found = self._replay(points)
            if found is not None:
                return found
            x, before = points[0], objective
            lack, objective = self._missing(forward(self.program, points[:1])[0][0])
            self._near = sorted([*self._near, _Miss(lack, x, before)], key=lambda miss: miss.lack)[:NEAREST]
            if not bool(objective.any()) or torch.equal(objective, before):
                return None
        return None

    def explore(self, until: float) -> IntegerArray | None:
        """A counterexample from the nearest misses so far, some inputs of which are changed; no try begins after ``until``."""
        program = self.program
        for _ in range(TRIES if self._near else 0):
            if time.monotonic() > until:
                break
            nearest = self._near[int(torch.randint(len(self._near), (1,), generator=self._generator))]
            part, fresh = SHAKEN * self._random(1), random_starts(program, 1, self._generator)[0]
            x = torch.where(self._random(len(fresh)) < part, fresh, nearest.x)
            found = None if self._late() else self.climb(x, nearest.objective)
            if found is not None:
                return found
        return None

    def _random(self, count: int) -> Tensor:
        return torch.rand(count, generator=self._generator)

    def _missing(self, z: Tensor) -> tuple[float, Tensor]:
        """How far z, (N,), is from the nearest level of a violation, and weights, (N,), whose decrease leads there."""
        over, under = (z - self._upper).clamp(min=0), (self._lower - z).clamp(min=0)
        lack, level = (over + under).sum(-1).min(0)
        held = KEPT * (torch.isfinite(self._upper[level]).double() - torch.isfinite(self._lower[level]).double())
        return float(lack), torch.where(over[level] > 0, 1.0, torch.where(under[level] > 0, -1.0, held))
