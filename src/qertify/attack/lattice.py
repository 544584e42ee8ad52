"""Integer local search: exact steepest descent over single-input moves and groups of them, from points of other searches.

Close to the boundary the counterexamples are lattice points that gradients step over. Every single-input change to an
end of its interval, or by one level, is evaluated exactly; plateaus are crossed by a smooth secondary objective.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qertify.bounds.program import Program

SMOOTH = 0.02
"""Weight of the smooth objective against the exact one."""

SIZE_LIMIT = 1 << 20
"""Largest number of inputs times units for which all moves are scored at once."""
TOGETHER = (1, 2, 4, 8, 16, 32, 64)
"""How many of the best moves are tried in one step."""


def smooth_values(program: Program, first: int, last: int, z: Tensor) -> Tensor:
    """The staircases of units first … last − 1 as clamped lines."""
    mine = slice(first, last)
    thresholds, has_value = program.thresholds[mine], program.has_value[mine]
    width = torch.isfinite(thresholds).sum(-1)
    line = (z - thresholds[:, 0]) / program.spacing[mine] + 0.5
    ramp = torch.minimum(line.clamp(min=0), width.to(line.dtype))
    smooth = torch.where(has_value > 0, program.first_value[mine] + ramp, 0.0)
    if program.divisor is None:
        return smooth
    return torch.where(program.divisor[mine] > 0, program.block_values(first, last, z), smooth)


def _score(program: Program, base: Tensor, objective: Tensor) -> Tensor:
    """Exact objective plus a little of the smooth one; base is constant + input_matrix·x, (batch, N)."""
    y, smooth = torch.zeros_like(base), torch.zeros_like(base)
    score = torch.zeros_like(base[:, 0])
    for first, last in program.blocks:
        mine = slice(first, last)
        z = smooth_z = base[:, mine]
        if first:
            matrix = program.unit_matrix[mine, :first].T
            z, smooth_z = z + y[:, :first] @ matrix, z + smooth[:, :first] @ matrix
        score += (z + SMOOTH * smooth_z) @ objective[mine]
        y[:, mine] = program.block_values(first, last, z)
        smooth[:, mine] = smooth_values(program, first, last, smooth_z)
    return score


def descend(program: Program, x: Tensor, objective: Tensor, rounds: int, late: Callable[[], bool] = lambda: False) -> Tensor:
    """Improve one point by its best single-input moves, as many of them together as pay, again and again.

    Args:
        x: (n,) integers inside the box. objective: (N,), to be minimised as objective·z.
        rounds: most rounds; each scores every single-input move.
        late: asked at every round; the search ends when it is true.

    Returns:
        the points visited, (visited, n), the start first.
    """
    visited = [x]
    if program.operators is not None or len(x) * len(program.units) > SIZE_LIMIT:
        return torch.stack(visited)
    low, high, columns = program.input_low, program.input_high, program.input_matrix.T
    z = program.constant + program.input_matrix @ x
    current = float(_score(program, z[None], objective)[0])
    for _ in range(rounds):
        if late():
            break
        shifts = torch.stack([low - x, high - x, (low - x).clamp(min=-1), (high - x).clamp(max=1)])
        scores = _score(program, (z + shifts[:, :, None] * columns).reshape(-1, len(z)), objective).reshape(len(shifts), -1)
        least, kind = scores.min(0)
        order = least.argsort()[: TOGETHER[-1]]
        together = torch.zeros(len(TOGETHER), len(x), dtype=x.dtype, device=x.device)
        for row, count in enumerate(TOGETHER):
            chosen = order[:count]
            together[row, chosen] = shifts[kind[chosen], chosen]
        candidates = z + together @ columns
        scores = _score(program, candidates, objective)
        best = int(scores.argmin())
        if float(scores[best]) >= current - 1e-9:
            break
        current, x, z = float(scores[best]), x + together[best], candidates[best]
        visited.append(x)
    return torch.stack(visited)
