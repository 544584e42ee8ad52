"""Attacks on the difference of two networks, in their common program; the judge sees every candidate."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qertify.attack.aligned import Aligner
from qertify.attack.annealing import anneal
from qertify.attack.gradient import forward, random_starts, signed_gradient
from qertify.attack.lattice import descend
from qertify.bounds.difference import Joint
from qertify.bounds.program import Program
from qertify.ilp.soft_rows import SoftRows
from qertify.search.comparison import Judge
from qertify.search.difference_rows import DifferenceRows
from qertify.search.domains import root_domains

RESTARTS, FEW_RESTARTS, STEPS = 16, 3, 40
"""Of the gradient attack on each output and sign; fewer starts for programs of many units."""
MANY_UNITS = 1500
CLIMBS = 8
"""Most starts from which steps are aligned, at a time."""
ROUNDS, DESCENTS, DESCENT_ROUNDS = 4, 2, 60
"""Of an attack that goes on: local searches from the best points, and new starts."""
VARIATIONS = 40
"""Of the steps that are aligned from such a point."""
CHAINS, MOVES = 48, 2000
"""Of simulated annealing, from the best points in the end."""
POLISH_STEPS, POLISH_REACH = 8, 0.1
"""Of short descents from points of a relaxation."""


def polish(
    program: Program, inputs: Tensor, objective: Tensor, generator: torch.Generator, late: Callable[[], bool]
) -> tuple[Tensor, Tensor]:
    """Inputs at the ends of short descents from points of a relaxation, (batch, n), and their objectives, (batch,)."""
    inside = program.inside_box(torch.nan_to_num(inputs).round())
    return signed_gradient(program, inside, objective, POLISH_STEPS, generator, POLISH_REACH, late)


def sample(judge: Judge, count: int, seed: int) -> None:
    """The middle and random points of the region."""
    box, inputs = judge.query.inputs.box, judge.query.inputs
    random = np.random.default_rng(seed)
    if inputs.low is None or inputs.high is None:
        codes = random.integers(box.low, box.high + 1, (count, *box.low.shape))
        codes[0] = (box.low + box.high) // 2
        judge.judge(inputs.stand_for(codes), codes)
        return
    low, high = inputs.low.astype(np.float64), inputs.high.astype(np.float64)
    mix = random.random((count, *low.shape))
    mix[0] = 0.5
    judge.judge(*inputs.nearest(low + mix * (high - low)))


def attack_classes(joint: Joint, judge: Judge, generator: torch.Generator, late: Callable[[], bool]) -> None:
    """Push one network's winner across its boundary while the other's stays: mixes of the two rows of a pair."""
    program = joint.program
    outputs = program.output_units()
    pairs = len(outputs) // 2
    sizes = torch.maximum(program.low.abs(), program.high.abs()).clamp(min=1)
    objective = torch.zeros(4 * pairs, len(program.units), dtype=torch.float64)
    for pair in range(pairs):
        own, other = outputs[pair], outputs[pairs + pair]
        for index, (a, b) in enumerate(((1, -1), (-1, 1), (1, 1), (-1, -1))):
            objective[4 * pair + index, own] = a / sizes[own]
            objective[4 * pair + index, other] = b / sizes[other]
    starts = random_starts(program, 4, generator).repeat(len(objective), 1)
    points, _ = signed_gradient(program, starts, objective.repeat_interleave(4, 0), STEPS // 2, generator, late=late)
    judge.judge(*judge.query.inputs.points(joint, points.numpy()))


class DifferenceAttack:
    """Inputs on which every row of the difference is low, and then high; the judge sees the best ones.

    Args:
        stopped: asked in between; all ends soon when it is true.
    """

    def __init__(
        self,
        joint: Joint,
        rows: DifferenceRows,
        judge: Judge,
        generator: torch.Generator,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stopped = stopped
        self._joint, self._judge, self._generator, self._program = joint, judge, generator, joint.program
        keys = [(row, sign) for row in range(len(rows.outputs)) for sign in (1, -1)]
        self._objective = root_domains(joint.program, rows.cases(dict.fromkeys(keys, 0))).objective
        self._aligner = Aligner(joint.program, SoftRows, generator) if Aligner.supports(joint.program) else None
        self._restarts = RESTARTS if len(joint.program.units) <= MANY_UNITS else FEW_RESTARTS
        self._points: list[tuple[float, Tensor, Tensor]] = []  # what the objective is there, the point, the objective

    def begin(self, seconds: float) -> None:
        """Align steps where the program allows that; signed gradients if there is time."""
        start = time.monotonic()
        self._align(seconds, CLIMBS)
        late = self._until(start + seconds)
        if late() and self._points:
            return
        starts, objective = self._starts()
        points, values = signed_gradient(self._program, starts, objective, STEPS, self._generator, late=late)
        self._note(points, objective, values)

    def go_on(self, seconds: float, enough: Callable[[], bool]) -> None:
        """Local search, new starts and annealing, from the best points so far; ``enough`` is asked in between."""
        start = time.monotonic()
        late = self._until(start + seconds)
        tried: list[Tensor] = []
        for _ in range(ROUNDS):
            if enough() or late():
                return
            best = [entry for entry in self._best() if not any(entry[1] is point for point in tried)][:DESCENTS]
            for _, point, objective in best:
                if enough() or late():
                    return
                tried.append(point)
                self._climb(point, objective, late, VARIATIONS)
                path = descend(self._program, point, objective, DESCENT_ROUNDS, late)
                self._note(path[-1:], objective[None], (forward(self._program, path[-1:])[0] @ objective))
            if not enough():
                self._align(start + seconds - time.monotonic(), CLIMBS)
        if enough() or late():
            return
        best = self._best()[:CHAINS]
        points, objective = torch.stack([entry[1] for entry in best]), torch.stack([entry[2] for entry in best])
        ends = anneal(self._program, points, objective, MOVES, self._generator, late)
        self._note(ends, objective, (forward(self._program, ends)[0] * objective).sum(-1))

    def follow(self, inputs: Tensor, objective: int, late: Callable[[], bool]) -> None:
        """Climb from a point of a relaxation, (n,), for the objective of this number: of rows, each with both signs."""
        x = torch.nan_to_num(inputs[: len(self._program.input_low)])
        self._climb(self._program.inside_box(x[None])[0], self._objective[objective], late)

    def _starts(self) -> tuple[Tensor, Tensor]:
        """Random points for every objective, and the objectives."""
        starts = random_starts(self._program, self._restarts, self._generator)
        return starts.repeat(len(self._objective), 1), self._objective.repeat_interleave(self._restarts, 0)

    def _align(self, seconds: float, climbs: int) -> None:
        """Climb from the starts that promise most, as long as they promise more than what is reached."""
        if self._aligner is None:
            return
        begin = time.monotonic()
        starts, objective = self._starts()
        starts, hopes = self._aligner.starts(starts, objective, STEPS, self._until(begin + seconds / 2))
        for row in hopes.argsort()[:climbs].tolist():
            late = self._until(begin + seconds)
            if late() or (self._points and hopes[row] >= self._best()[0][0]):
                return
            self._climb(starts[row], objective[row], late)

    def _climb(self, start: Tensor, objective: Tensor, late: Callable[[], bool], variations: int = 0) -> None:
        """Note where aligned steps lead from a start."""
        if self._aligner is None:
            return
        points = self._aligner.climb(start, objective, late, variations)[:1]
        if len(points):
            self._note(points, objective[None], forward(self._program, points)[0] @ objective)

    def _note(self, points: Tensor, objective: Tensor, values: Tensor) -> None:
        """Show points to the judge and remember them."""
        self._judge.judge(*self._judge.query.inputs.points(self._joint, points.numpy()))
        self._points += zip(values.tolist(), points, objective, strict=True)

    def _best(self) -> list[tuple[float, Tensor, Tensor]]:
        return sorted(self._points, key=lambda entry: entry[0])

    def _until(self, moment: float) -> Callable[[], bool]:
        return lambda: self._stopped() or time.monotonic() > moment
