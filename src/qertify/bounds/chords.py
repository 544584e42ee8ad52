"""Multipliers made in one pass from the last block of units to the first: chords of all staircases."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from qertify.bounds.dual import Domains, corners, value
from qertify.bounds.program import Program


class Following(Enum):
    """Which rows take the weights of rectifiers over that have both phases."""

    NONE = "none"
    VALUES = "values"
    """Those of the difference of values alone."""
    LINKS = "links"
    """Those of the difference less a part of that of the accumulators, each for the sign that it is made for."""


def initial_multipliers(program: Program, domains: Domains, following: Following = Following.NONE) -> Tensor:
    """λ_u = a_u · (slope of the chord of σ_u), from the last block to the first. Shape (batch, N).

    Args:
        following: the weight that rows take over goes on from there.
    """
    slope = _chords(program, domains)
    falling = slope
    if following is not Following.NONE and program.follows is not None and program.takes is not None:
        partner = program.follows.clamp(min=0)
        unstable = (domains.low[:, partner] < 0) & (domains.high[:, partner] > 0) & (program.follows >= 0)
        rising_rows, falling_rows = (
            unstable & ((program.takes == 0) | (program.takes == sign) & (following is Following.LINKS)) for sign in (1, -1)
        )
        slope, falling = torch.where(rising_rows, 1.0, slope), torch.where(falling_rows, 1.0, slope)
    result = torch.zeros_like(domains.objective)

    def follow(start: int, stop: int, weight: Tensor) -> Tensor:
        result[:, start:stop] = weight * torch.where(weight > 0, slope[:, start:stop], falling[:, start:stop])
        return result[:, start:stop]

    program.backward(domains.objective, follow)
    return result


def _chords(program: Program, domains: Domains) -> Tensor:
    first, last = program.values(domains.low), program.values(domains.high)
    slope = (last - first) / (domains.high - domains.low).clamp(min=1)
    return torch.minimum(slope, 1 / program.spacing) * program.has_value


def first_multipliers(program: Program, domains: Domains) -> Tensor:
    """The best of these, domain by domain."""
    result = initial_multipliers(program, domains)
    if program.follows is None:
        return result
    z, y = corners(program, domains.low, domains.high)
    best = value(program, domains, z, y, result)
    for following in (Following.VALUES, Following.LINKS):
        others = initial_multipliers(program, domains, following)
        found = value(program, domains, z, y, others)
        result = torch.where((found > best)[:, None], others, result)
        best = torch.maximum(best, found)
    return result
