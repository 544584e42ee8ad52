"""Tighter accumulator ranges: by interval arithmetic on values, and by the dual with one unit as objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qertify.bounds.chords import initial_multipliers
from qertify.bounds.dual import Domains, Proof, prove
from qertify.bounds.interior_point import InteriorPoint
from qertify.bounds.links import narrow
from qertify.bounds.program import Program, Unit

BATCH = 256
RETIGHTEN_BATCH = 2048


def propagate(program: Program, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersect accumulator bounds with what pairs and then interval arithmetic imply, block by block; not for operators.

    All numbers are integers below 2⁵³ in float64 (coefficients and ranges are checked when the program is compiled), so
    nothing is rounded.

    Args:
        low, high: (batch, N).

    Returns:
        the new low and high, and whether each domain is empty, (batch,). Bounds of empty domains are left inconsistent.
    """
    if len(program.blocks) < 2 or program.operators is not None:
        return low, high, (low > high).any(-1)
    low, high = (end.clone() for end in narrow(program, low, high))
    inputs_low, inputs_high = input_range(program)
    positive, negative = program.unit_matrix.clamp(min=0), program.unit_matrix.clamp(max=0)
    slack = torch.zeros_like(program.constant) if program.slack is None else program.slack
    first, last = program.value_range(low, high)
    for start, stop in program.blocks[1:]:
        more, less = positive[start:stop], negative[start:stop]
        least, greatest = (
            (inputs_low + program.constant - slack)[start:stop],
            (inputs_high + program.constant + slack)[start:stop],
        )
        low[:, start:stop] = torch.maximum(low[:, start:stop], first @ more.T + last @ less.T + least)
        high[:, start:stop] = torch.minimum(high[:, start:stop], last @ more.T + first @ less.T + greatest)
        first, last = program.value_range(low, high)
    return low, high, (low > high).any(-1)


def input_range(program: Program) -> tuple[Tensor, Tensor]:
    """Least and greatest input_matrix · x on the box, (N,) each."""
    positive, negative = program.input_matrix.clamp(min=0), program.input_matrix.clamp(max=0)
    least = positive @ program.input_low + negative @ program.input_high
    greatest = positive @ program.input_high + negative @ program.input_low
    return least, greatest


Keep = Callable[[int, Tensor, float, Proof, Tensor], None]
"""Gets the proofs of ranges: block, units, sign, the proof, and which rows of it improve a range."""


def with_row(program: Program, weights: Tensor, limit: float) -> Program:
    """A program of matrices with one more unit, the last: weights·z, (N,) integers, of which ``limit`` is the upper end."""
    reach = weights.abs() @ torch.maximum(program.low.abs(), program.high.abs())
    count = len(program.units)
    unit_matrix = program.unit_matrix.new_zeros(count + 1, count + 1)
    unit_matrix[:count, :count], unit_matrix[count, :count] = program.unit_matrix, weights @ program.unit_matrix
    more = {
        "constant": weights @ program.constant,
        "low": -reach,
        "high": reach.clamp(max=limit),
        "first_value": 0,
        "spacing": 1,
        "unevenness": 0,
        "has_value": 0,
        "equation_size": weights.abs() @ program.equation_size,
    }

    def longer(name: str, value: Any) -> Tensor:
        return torch.cat([getattr(program, name), reach.new_tensor([value])])

    parts: dict[str, Any] = {name: longer(name, value) for name, value in more.items()}
    return replace(
        program,
        units=(*program.units, Unit("", -1)),
        blocks=(*program.blocks[:-1], (program.blocks[-1][0], count + 1)),
        input_matrix=torch.cat([program.input_matrix, (weights @ program.input_matrix)[None]]),
        unit_matrix=unit_matrix,
        thresholds=torch.cat([program.thresholds, torch.full_like(program.thresholds[:1], torch.inf)]),
        **parts,
    )


def tighten(
    program: Program, late: Callable[[], bool] = lambda: False, keep: Keep | None = None, first_block: int = 1
) -> Program:
    """Tighten the root ranges of all units from a block on with dual bounds, block by block.

    The result's accumulator ranges hold on the whole box: each was proved in integers. Once ``late()``, the multipliers at
    hand are used.
    """
    integral = 1 if program.divisor is None else 0  # a margin is rounded up to the next integer, which holds for integers only
    relaxer = InteriorPoint(program, late)  # of which only the equations matter
    for start, stop in program.blocks[first_block:]:
        chosen = torch.arange(start, stop)
        low, high = program.low.clone(), program.high.clone()
        for sign in (1.0, -1.0):
            for part in chosen.split(BATCH):
                count = len(part)
                objective = torch.zeros(count, len(program.units), dtype=torch.float64, device=low.device)
                objective[torch.arange(count), part] = sign
                limit = (program.high if sign > 0 else -program.low)[part]
                domains = Domains(program.low.expand(count, -1), program.high.expand(count, -1), objective, limit)
                proof = prove(program, domains, relaxer.relax(domains).multipliers)
                bound = proof.margin + limit + integral
                if keep is not None:
                    keep(start, part, sign, proof, bound > (program.low if sign > 0 else -program.high)[part])
                if sign > 0:
                    low[part] = torch.maximum(low[part], bound)
                else:
                    high[part] = torch.minimum(high[part], -bound)
        program = replace(program, low=low, high=high)
    return program


def retighten(program: Program, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of hidden units behind the first block in each domain, by the dual with the slopes of chords.

    After splits in one block the ranges of the next are narrower than interval arithmetic can tell.

    Args:
        low, high: (batch, N), none empty.

    Returns:
        the new low and high, proved in integers.
    """
    hidden = [(start, stop) for start, stop in program.blocks[1:] if bool(program.has_value[start:stop].all())]
    low, high = low.clone(), high.clone()
    for start, stop in hidden:
        first, last = program.value_range(low, high)
        rows, units = torch.nonzero((last > first)[:, start:stop], as_tuple=True)
        units = units + start
        for part in torch.arange(len(rows)).split(RETIGHTEN_BATCH):
            row, unit = rows[part], units[part]
            objective = torch.zeros(len(part), len(program.units), dtype=torch.float64, device=low.device)
            objective[torch.arange(len(part)), unit] = 1.0
            for sign in (1.0, -1.0):
                limit = torch.zeros_like(objective[:, 0])
                domains = Domains(low[row], high[row], sign * objective, limit)
                bound = prove(program, domains, initial_multipliers(program, domains)).margin + 1
                if sign > 0:
                    low[row, unit] = torch.maximum(low[row, unit], bound)
                else:
                    high[row, unit] = torch.minimum(high[row, unit], -bound)
    return low, high
