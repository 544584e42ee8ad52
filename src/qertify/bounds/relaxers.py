"""Which search for multipliers serves which program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from qertify.bounds import first_order, interior_point
from qertify.bounds.dual import Domains
from qertify.bounds.interior_point import Relaxation
from qertify.bounds.program import Program

FIRST_ORDER_ABOVE = 800
"""Units of a program of two networks above which an interior-point step takes longer than a whole first-order search."""
ROOT_ITERATIONS = 25
"""Interior-point steps for bounds that are an answer by themselves."""


class Relaxer(Protocol):
    """Proposes multipliers for batches of domains of one program."""

    def relax(self, domains: Domains) -> Relaxation: ...


def relaxer_of(program: Program, late: Callable[[], bool] = lambda: False) -> Relaxer:
    """First-order steps where the equations are operators or couple many units, an interior-point method elsewhere."""
    form = first_order.FirstOrder if _is_large(program) else interior_point.InteriorPoint
    return form(program, late)


def _is_large(program: Program) -> bool:
    return program.operators is not None or (program.follows is not None and len(program.units) > FIRST_ORDER_ABOVE)


def batch_of(program: Program) -> int:
    """How many domains are worth bounding together, by the memory that they take."""
    count = max(1, len(program.units))
    if _is_large(program):
        return max(2, first_order.ENTRIES // count)
    return max(2, interior_point.NORMAL_LIMIT // (2 * count**2))


def relax_well(relaxer: Relaxer, domains: Domains, accuracy: float = interior_point.ACCURACY) -> Relaxation:
    """With more steps than domains of a tree get; an interior-point method also ends at another accuracy."""
    if isinstance(relaxer, interior_point.InteriorPoint):
        return relaxer.relax(domains, ROOT_ITERATIONS, accuracy)
    return relaxer.relax(domains)


def relax_parts(relaxer: Relaxer, domains: Domains, start: list[Tensor | None]) -> Relaxation:
    """Domains that are parts of others, with those's `Relaxation.slopes` as a start, (3, N) each, where there are any."""
    given = next((item for item in start if item is not None), None)
    if given is None or not isinstance(relaxer, first_order.FirstOrder):
        return relaxer.relax(domains)
    unknown = torch.full_like(given, torch.nan)
    return relaxer.relax(domains, start=torch.stack([unknown if item is None else item for item in start]))
