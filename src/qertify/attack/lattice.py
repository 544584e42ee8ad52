"""Integer local search: exact steepest descent over single-input moves, from the best points of other searches.

Close to the boundary the counterexamples are lattice points that gradients step over. Every single-input change to an
end of its interval, or by one level, is evaluated exactly; plateaus are crossed by a smooth secondary objective.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qertify.bounds.program import Program

SMOOTH = 0.02
"""Weight of the smooth objective against the exact one."""


def _smooth_values(program: Program, z: Tensor) -> Tensor:
    """The staircases as clamped lines."""
    width = torch.isfinite(program.thresholds).sum(-1)
    line = (z - program.thresholds[:, 0]) / program.spacing + 0.5
    ramp = torch.minimum(line.clamp(min=0), width.to(line.dtype))
    return torch.where(program.has_value > 0, program.first_value + ramp, 0.0)


def _score(program: Program, base: Tensor, objective: Tensor) -> Tensor:
    """Exact objective plus a little of the smooth one; base is constant + input_matrix·x, (batch, N)."""
    z, y, smooth = base, torch.zeros_like(base), torch.zeros_like(base)
    smooth_z = base
    for start, stop in program.blocks:
        if start:
            z, smooth_z = base + y @ program.unit_matrix.T, base + smooth @ program.unit_matrix.T
        y[:, start:stop] = program.values(z)[:, start:stop]
        smooth[:, start:stop] = _smooth_values(program, smooth_z)[:, start:stop]
    return z @ objective + SMOOTH * (smooth_z @ objective)


def descend(program: Program, x: Tensor, objective: Tensor, moves: int) -> Tensor:
    """Improve one point by its best single-input move, again and again.

    Args:
        x: (n,) integers inside the box. objective: (N,), to be minimised as objective·z.
        moves: most moves.

    Returns:
        the points visited, (visited, n), the start first.
    """
    visited = [x]
    low, high = program.input_low, program.input_high
    z = program.constant + program.input_matrix @ x
    current = float(_score(program, z[None], objective)[0])
    for _ in range(moves):
        shifts = torch.stack([low - x, high - x, (low - x).clamp(min=-1), (high - x).clamp(max=1)])
        candidates = z + (shifts[:, :, None] * program.input_matrix.T[None]).reshape(-1, len(z))
        scores = _score(program, candidates, objective)
        best = int(scores.argmin())
        if float(scores[best]) >= current - 1e-9:
            break
        current = float(scores[best])
        kind, index = divmod(best, len(x))
        x = x.clone()
        x[index] += shifts[kind, index]
        z = candidates[best]
        visited.append(x)
    return torch.stack(visited)
