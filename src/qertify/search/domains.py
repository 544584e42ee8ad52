"""Domains of a search: a case of the violation with bounds on accumulators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qertify.bounds.dual import Domains
from qertify.bounds.program import Program
from qertify.specification.cases import Case


@dataclass(frozen=True, slots=True, eq=False)
class Subproblem:
    """A domain on its own, as it is handed from one search to another: may the case occur where low ≤ z ≤ high?

    Attributes:
        case: what must be shown impossible.
        low, high: (N,) bounds on the accumulators of the program.
        margin: best margin proved for a domain that holds it, −∞ if none was.
        depth: number of splits that made it.
        stuck: a leaf that its solver could not decide; no search will get further.
    """

    case: Case
    low: Tensor
    high: Tensor
    margin: float = -torch.inf
    depth: int = 0
    stuck: bool = False


def root_domains(program: Program, cases: Sequence[Case]) -> Domains:
    """The domain of each case: the whole box with the case's bounds on output accumulators."""
    low, high = (bound.repeat(len(cases), 1) for bound in (program.low, program.high))
    objective, limit = objectives(program, cases)
    outputs = program.output_units()
    for row, case in enumerate(cases):
        for index, bound in case.upper:
            high[row, outputs[index]] = min(float(high[row, outputs[index]]), bound)
        for index, bound in case.lower:
            low[row, outputs[index]] = max(float(low[row, outputs[index]]), bound)
    return Domains(low, high, objective, limit)


def objectives(program: Program, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
    """The inequality of each case, as (batch, N) weights and (batch,) limits."""
    outputs = program.output_units()
    objective = torch.zeros(len(cases), len(program.units), dtype=torch.float64, device=program.low.device)
    for row, case in enumerate(cases):
        for index, weight in case.weights:
            objective[row, outputs[index]] = weight
    limit = torch.tensor([float(case.limit) for case in cases], dtype=torch.float64, device=program.low.device)
    return objective, limit


def level_bounds(program: Program, levels: Sequence[Case]) -> tuple[Tensor, Tensor]:
    """What each level demands of the accumulators: none above the first, none below the second, (levels, N) each."""
    upper = torch.full((len(levels), len(program.units)), torch.inf, dtype=torch.float64, device=program.low.device)
    lower, outputs = -upper, program.output_units()
    for row, level in enumerate(levels):
        for index, bound in level.upper:
            upper[row, outputs[index]] = bound
        for index, bound in level.lower:
            lower[row, outputs[index]] = bound
    return upper, lower


def root_subproblems(program: Program, cases: Sequence[Case]) -> tuple[Subproblem, ...]:
    """One subproblem a case: the property-based partition."""
    domains = root_domains(program, cases)
    return tuple(Subproblem(case, domains.low[row], domains.high[row]) for row, case in enumerate(cases))
