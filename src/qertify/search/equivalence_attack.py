"""Attacks on the difference of two networks, in their common program; the judge sees every candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from qertify.search.domains import root_domains
from qertify.specification.cases import Case

RESTARTS, FEW_RESTARTS, STEPS = 16, 3, 40
"""Of the gradient attack on each output and sign; fewer starts for programs of many units."""
MANY_UNITS = 1500
CLIMBS = 8
"""Best starts whose steps are aligned."""
DESCENTS, ROUNDS = 6, 60
"""Best points of that attack that local search improves, and its rounds."""
CHAINS, MOVES = 48, 2000
"""Of simulated annealing, from the attack's best points."""
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
    x = np.clip((low + mix * (high - low)).astype(np.float32), inputs.low, inputs.high)
    judge.judge(x, inputs.quantize(x))


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


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """Integer points that an attack ended at, (count, n), their objectives, (count, N), and what those are there, (count,)."""

    points: Tensor
    objective: Tensor
    values: Tensor

    def best(self, count: int) -> Reached:
        """The points with the least objectives."""
        order = self.values.argsort()[:count]
        return Reached(self.points[order], self.objective[order], self.values[order])


def attack_differences(
    joint: Joint, cases: tuple[Case, ...], judge: Judge, generator: torch.Generator, late: Callable[[], bool]
) -> Reached:
    """Push every row of the difference down: by signed gradients, and by aligning the steps where the program allows that."""
    program = joint.program
    objective = root_domains(program, list(cases)).objective
    restarts = RESTARTS if len(program.units) <= MANY_UNITS else FEW_RESTARTS
    starts = random_starts(program, restarts, generator).repeat(len(objective), 1)
    objective = objective.repeat_interleave(restarts, 0)
    points, values = signed_gradient(program, starts, objective, STEPS, generator, late=late)
    judge.judge(*judge.query.inputs.points(joint, points.numpy()))
    reached = Reached(points, objective, values)
    if Aligner.supports(program) and not late():
        aligner = Aligner(program, SoftRows, generator, late)
        starts, hopes = aligner.starts(starts, objective, STEPS)
        reached = climb_differences(joint, aligner, Reached(starts, objective, hopes).best(CLIMBS), reached, judge)
    return reached


def climb_differences(joint: Joint, aligner: Aligner, starts: Reached, reached: Reached, judge: Judge) -> Reached:
    """Climb from starts, whose values are what may be hoped for, in order; what is reached joins what was before."""
    for start, objective, hope in zip(starts.points, starts.objective, starts.values, strict=True):
        if hope >= reached.values.min():
            break
        points = aligner.climb(start, objective)
        if len(points):
            judge.judge(*judge.query.inputs.points(joint, points.numpy()))
            value = forward(joint.program, points[:1])[0] @ objective
            reached = Reached(
                torch.cat([reached.points, points[:1]]),
                torch.cat([reached.objective, objective[None]]),
                torch.cat([reached.values, value]),
            )
    return reached


def refine_differences(
    joint: Joint,
    reached: Reached,
    judge: Judge,
    generator: torch.Generator,
    late: Callable[[], bool],
    enough: Callable[[], bool],
) -> None:
    """Local search and annealing from the best ends of `attack_differences`; ``enough`` is asked in between."""
    program = joint.program
    best = reached.best(DESCENTS)
    for point, objective in zip(best.points, best.objective, strict=True):
        if enough() or late():
            return
        path = descend(program, point, objective, ROUNDS, late)
        judge.judge(*judge.query.inputs.points(joint, path.numpy()))
    if enough() or late():
        return
    best = reached.best(CHAINS)
    ends = anneal(program, best.points, best.objective, MOVES, generator, late)
    judge.judge(*judge.query.inputs.points(joint, ends.numpy()))
