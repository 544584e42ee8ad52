"""Attacks on the difference of two networks, in their common program; the judge sees every candidate."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from qertify.attack.annealing import anneal
from qertify.attack.gradient import random_starts, signed_gradient
from qertify.attack.lattice import descend
from qertify.bounds.difference import Joint
from qertify.bounds.program import Program
from qertify.search.comparison import Judge
from qertify.search.domains import root_domains
from qertify.specification.cases import Case

RESTARTS, STEPS = 16, 40
"""Of the gradient attack on each output and sign."""
DESCENTS, ROUNDS = 6, 60
"""Best points of that attack that local search improves, and its rounds."""
CHAINS, MOVES, ANNEALING_SECONDS = 48, 2000, 4.0
"""Of simulated annealing, from the attack's best points."""
POLISH_STEPS, POLISH_REACH = 8, 0.1
"""Of short descents from points of a relaxation."""


def polish(
    program: Program, inputs: Tensor, objective: Tensor, generator: torch.Generator, late: Callable[[], bool]
) -> tuple[Tensor, Tensor]:
    """Inputs at the ends of short descents from points of a relaxation, (batch, n), and their objectives, (batch,)."""
    inside = program.inside_box(torch.nan_to_num(inputs).round())
    return signed_gradient(program, inside, objective, POLISH_STEPS, generator, POLISH_REACH, late)


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


def attack_differences(
    joint: Joint,
    cases: tuple[Case, ...],
    judge: Judge,
    generator: torch.Generator,
    late: Callable[[], bool],
    enough: Callable[[], bool],
) -> str:
    """Push every row of the difference down: signed gradients, local search, and annealing from the best points.

    Args:
        enough: asked between the three.

    Returns:
        a line that says how far it came.
    """
    program = joint.program
    domains = root_domains(program, list(cases))
    starts = random_starts(program, RESTARTS, generator)
    points, reached = signed_gradient(
        program,
        starts.repeat(len(domains), 1),
        domains.objective.repeat_interleave(RESTARTS, 0),
        STEPS,
        generator,
        late=late,
    )
    judge.judge(*judge.query.inputs.points(joint, points.numpy()))
    best, which = reached.view(len(domains), RESTARTS).min(1)
    for case in best.argsort()[:DESCENTS].tolist():
        if enough() or late():
            break
        start = points[case * RESTARTS + int(which[case])]
        path = descend(program, start, domains.objective[case], ROUNDS, late)
        judge.judge(*judge.query.inputs.points(joint, path.numpy()))
    if not enough() and not late():
        chosen = best.argsort()[:DESCENTS].repeat_interleave(CHAINS // DESCENTS)
        ranked = reached.view(len(domains), RESTARTS).argsort(1)[chosen, torch.arange(len(chosen)) % RESTARTS]
        pause = time.monotonic() + ANNEALING_SECONDS
        ends = anneal(
            program,
            points[chosen * RESTARTS + ranked],
            domains.objective[chosen],
            MOVES,
            generator,
            lambda: late() or time.monotonic() > pause,
        )
        judge.judge(*judge.query.inputs.points(joint, ends.numpy()))
    return f"attack: a difference of {float(judge.attained):.6g}"
