"""Lagrangian dual bounds, evaluated in exact integers.

For a linear objective c on accumulators and ANY multipliers λ,

    g(λ) = (c+λ)·constant + Σ_i min_{x_i} ((c+λ)·input_matrix)_i·x_i + Σ_u min_{z∈[L_u,U_u]} (a_u·σ_u(z) − λ_u·z),
    a = (c+λ)·unit_matrix

is a lower bound of c·z over the domain: every accumulator equation is relaxed with its multiplier, the rest separates.
λ may come from anywhere; here it is rounded to multiples of 2^−s and g is computed in float64 on integers, where every
partial sum is proved to stay below 2⁵³, so that no operation rounds; where that leaves too few bits for λ, the same is
done in int64. (The dual of staircase-constrained networks follows Dvijotham et al., UAI 2018; its integer evaluation is
what makes it a proof.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qertify.bounds.program import Program

EXACT = float(1 << 52)
"""Partial sums must stay below half of 2⁵³; the half pays for rounding in the computation of the bound on them itself."""
WIDE_EXACT = float(1 << 61)
"""The same for sums in int64."""
MAX_SCALE_BITS = 40
ENOUGH_BITS = 16
"""With fewer bits of λ than this, float64 is not used."""
FINE_BITS = 28
"""The same where rows take part that link values to accumulators: their multipliers are as small as their numbers are large."""


@dataclass(frozen=True, slots=True, eq=False)
class Domains:
    """A batch of questions: is min c·z > limit on the part of the box where low ≤ z ≤ high?

    Attributes:
        low, high: (batch, N) bounds on the accumulators, low ≤ high.
        objective: (batch, N) integers c.
        limit: (batch,) integers.
    """

    low: Tensor
    high: Tensor
    objective: Tensor
    limit: Tensor

    def __len__(self) -> int:
        return self.limit.shape[0]

    def pick(self, index: Tensor | slice) -> Domains:
        """A sub-batch, by positions or mask."""
        return Domains(self.low[index], self.high[index], self.objective[index], self.limit[index])

    @staticmethod
    def concatenate(parts: list[Domains]) -> Domains:
        return Domains(
            torch.cat([part.low for part in parts]),
            torch.cat([part.high for part in parts]),
            torch.cat([part.objective for part in parts]),
            torch.cat([part.limit for part in parts]),
        )


def corners(program: Program, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The corners of every unit's graph on [low, high] at which a·σ(z) − λ·z can be least.

    With evenly spaced thresholds the inner steps are collinear, so the two first and the two last steps suffice, each at
    its left and its right end; uneven ones are paid for by `Program.unevenness`.

    Returns:
        z and y, both (batch, N, 8).
    """
    if len(low) > 1 and low.stride(0) == high.stride(0) == 0:  # one domain again and again
        z, y = corners(program, low[:1], high[:1])
        return z.expand(len(low), -1, -1), y.expand(len(low), -1, -1)
    first, last = program.values(low), program.values(high)
    picked = (first, torch.minimum(first + 1, last), torch.maximum(last - 1, first), last)
    left = [torch.maximum(program.threshold(value), low) for value in picked]
    right = [torch.minimum(program.threshold(value + 1) - 1, high) for value in picked]
    y = torch.stack(picked, dim=-1)
    z, y = torch.cat([torch.stack(left, dim=-1), torch.stack(right, dim=-1)], dim=-1), torch.cat([y, y], dim=-1)
    if program.divisor is None:
        return z, y
    rectifier, divisor = program.divisor[:, None] > 0, program.divisor.clamp(min=1)
    below, above = torch.floor(low / divisor) * divisor, torch.ceil(high / divisor) * divisor  # y is an integer there
    kink = torch.minimum(below.clamp(min=0), above)
    kinked = torch.stack([below, kink, kink, above] * 2, dim=-1)
    return torch.where(rectifier, kinked, z), torch.where(rectifier, kinked.clamp(min=0) / divisor[:, None], y)


def value(program: Program, domains: Domains, z: Tensor, y: Tensor, multipliers: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """g(λ) in plain float64, times ``scale`` if λ is; exact exactly when all terms are integers below 2⁵³.

    Args:
        z, y: the `corners`.
        multipliers: (batch, N), λ·scale.
        scale: scalar or (batch, 1).

    Returns:
        (batch,).
    """
    total = domains.objective * scale + multipliers
    inputs, slope = program.products(total)
    result = total @ program.constant
    result = result + program.least_inputs(inputs)
    if program.slack is not None:
        result = result - total.abs() @ program.slack
    return result + _unit_terms(program, slope, multipliers, z, y).sum(-1)


def _unit_terms(program: Program, slope: Tensor, multipliers: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """min over z of a·σ(z) − λ·z for every unit, (batch, N), from its corners."""
    if z.stride(0) == y.stride(0) == 0:  # one domain again and again
        z, y = z[:1], y[:1]
    crowded = (y[..., 3] - y[..., 0] > 3) & (program.unevenness > 0)
    corner, *others = zip(z.movedim(-1, 0).contiguous(), y.movedim(-1, 0).contiguous(), strict=True)
    least = slope * corner[1] - multipliers * corner[0]
    for corner in others:
        least = torch.minimum(least, slope * corner[1] - multipliers * corner[0])
    return least - torch.where(crowded, multipliers.abs() * program.unevenness.to(least.dtype), 0)


def magnitude(program: Program, domains: Domains, multipliers: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """A bound on every partial sum in `value`, (batch,), up to its own relative rounding error (far below one half)."""
    total = domains.objective.abs() * scale + multipliers.abs()
    largest_z = torch.maximum(program.low.abs(), program.high.abs()).clamp(min=1)
    return total @ program.equation_size + multipliers.abs() @ (largest_z + program.unevenness)


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """The integers behind a batch of bounds: multipliers / 2^bits are the λ used.

    Attributes:
        multipliers: (batch, N), integers.
        bits: (batch,), the scale s of each domain.
        margin: (batch,), ⌈g⌉ − limit − 1: the property holds on the domain exactly when this is ≥ 0.
    """

    multipliers: Tensor
    bits: Tensor
    margin: Tensor


def _narrow(program: Program, domains: Domains, z: Tensor, y: Tensor, multipliers: Tensor, bits: Tensor) -> Tensor:
    """⌈g(λ)⌉ of `value`, exact; dividing by a power of two does not round."""
    scale = torch.exp2(bits)
    return torch.ceil(value(program, domains, z, y, multipliers, scale[:, None]) / scale)


def _wide_products(program: Program, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`Program.products` of int64 in int64, and whether each row of them is exact.

    The integers are split into parts so short that float64 products of the parts do not round.
    """
    reach = max(program.reach(), 1.0)
    width, shift = int(math.log2(EXACT / reach)), 0
    if width < 2:
        return (*program.products(total.double() * 0), torch.zeros(len(total), dtype=torch.bool, device=total.device))
    half = 1 << (width - 1)
    inputs, slope = (product.long() for product in program.products(total.double() * 0))
    while bool(total.any()):
        part = ((total + half) & (2 * half - 1)) - half
        products = program.products(part.double())
        inputs, slope = inputs + (products[0].long() << shift), slope + (products[1].long() << shift)
        total, shift = (total - part) >> width, shift + width
    return inputs, slope, torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)


def _wide_value(program: Program, domains: Domains, z: Tensor, y: Tensor, multipliers: Tensor, bits: Tensor) -> Tensor:
    """⌈g(λ)⌉ of `value` in int64, as float64; multipliers are λ·2^bits. −∞ where a product may round.

    `magnitude` must have been proved to stay below `WIDE_EXACT`.
    """
    multipliers, bits = multipliers.long(), bits.long()
    total = (domains.objective.long() << bits[:, None]) + multipliers
    inputs, slope, exact = _wide_products(program, total)
    result = (total * program.constant.long()).sum(-1)
    result += program.least_inputs(inputs)
    if program.slack is not None:
        result -= (total.abs() * program.slack.long()).sum(-1)
    result += _unit_terms(program, slope, multipliers, z.long(), y.long()).sum(-1)
    return torch.where(exact, -((-result) >> bits).double(), -torch.inf)


def prove(program: Program, domains: Domains, multipliers: Tensor, corner: tuple[Tensor, Tensor] | None = None) -> Proof:
    """Round λ to integers and evaluate g exactly.

    Args:
        multipliers: (batch, N), λ in float; entries that are not finite count as 0.
        corner: the `corners` of the domains, when at hand.

    Returns:
        the proof; margins are −∞ when the magnitude bound fails, which proves nothing and is never wrong.
    """
    z, y = corners(program, domains.low, domains.high) if corner is None else corner
    clean = torch.nan_to_num(multipliers, nan=0.0, posinf=0.0, neginf=0.0)
    size = magnitude(program, domains, clean).clamp(min=1)
    bits = torch.log2(EXACT / 4 / size).floor().clamp(0, MAX_SCALE_BITS)
    wide = bits < ENOUGH_BITS
    if program.takes is not None:
        wide |= (bits < FINE_BITS) & (clean[:, program.takes != 0] != 0).any(-1)
    bits = torch.where(wide, torch.log2(WIDE_EXACT / 4 / size).floor().clamp(0, MAX_SCALE_BITS), bits)
    scale = torch.exp2(bits)
    rounded = torch.round(clean * scale[:, None])
    proved = magnitude(program, domains, rounded, scale[:, None]) + domains.limit.abs() * scale < torch.where(
        wide, WIDE_EXACT, EXACT
    )
    bound = torch.full_like(domains.limit, -torch.inf)
    for rows, evaluate in ((proved & ~wide, _narrow), (proved & wide, _wide_value)):
        if bool(rows.any()):
            part = slice(None) if bool(rows.all()) else rows  # everything is not copied
            mine = domains.pick(part)
            ends = [end[:1].expand(len(mine), -1, -1) if end.stride(0) == 0 else end[part] for end in (z, y)]  # not copied
            bound[part] = evaluate(program, mine, ends[0], ends[1], rounded[part], bits[part])
    return Proof(rounded, bits, bound - domains.limit - 1)
