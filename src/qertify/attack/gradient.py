"""Counterexample search by signed gradients through the staircases (straight-through), batched over cases and restarts.

The forward pass is exact (integers); the backward pass replaces every staircase by the line through its thresholds.
(Straight-through gradients: Bengio et al., 2013; projected signed steps: Madry et al., ICLR 2018.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qertify.bounds.program import Program

LEAST_LEAK = 0.01
"""Slope outside a staircase's range, relative to inside: lets saturated units recover. Drawn from here to one for each path."""

STEEPEST = 1e-3
"""Least spacing of thresholds that a gradient sees; several of them may be one."""


def forward(program: Program, x: Tensor) -> tuple[Tensor, Tensor]:
    """Accumulators and values at integer inputs, exact: x (batch, n) → z and y, both (batch, N)."""
    y = torch.zeros(len(x), len(program.units), dtype=x.dtype, device=x.device)

    def step(first: int, last: int, z: Tensor) -> Tensor:
        y[:, first:last] = program.block_values(first, last, z)
        return y[:, first:last]

    return program.forward(x, step), y


def gradient(program: Program, y: Tensor, objective: Tensor, leak: Tensor) -> Tensor:
    """Straight-through gradient of objective·z with respect to the inputs, (batch, n); leak is (batch, 1)."""
    slope = torch.where(program.inside(y), 1.0, leak) / program.spacing.clamp(min=STEEPEST) * program.has_value
    return program.backward(objective, lambda first, last, weight: weight * slope[:, first:last])


def signed_gradient(
    program: Program,
    x: Tensor,
    objective: Tensor,
    steps: int,
    generator: torch.Generator,
    reach: float = 0.5,
    late: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, Tensor]:
    """Descend on objective·z from every start, with strides that shrink to one level, moving half of the inputs at a time.

    Args:
        x: (batch, n) integer inputs inside the box.
        objective: (batch, N).
        steps: number of gradient steps.
        generator: of the paths' randomness.
        reach: first stride, as a part of each input's width.
        late: asked at every step; the paths end when it is true.

    Returns:
        the best inputs on each path, (batch, n), and their objectives, (batch,).
    """
    width = program.input_high - program.input_low
    leak = LEAST_LEAK ** torch.rand(len(x), 1, generator=generator, dtype=torch.float64).to(x.device)
    best_x, best = x, torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for step in range(steps + 1):
        z, y = forward(program, x)
        reached = (objective * z).sum(-1)
        better = reached < best
        best_x, best = torch.where(better[:, None], x, best_x), torch.where(better, reached, best)
        if late():
            break
        if step < steps:
            stride = (width * reach * (1 - step / steps)).ceil().clamp(min=1)
            moved = (torch.rand(x.shape, generator=generator) < 0.5).to(x.device)
            x = x - stride * moved * gradient(program, y, objective, leak).sign()
            x = program.inside_box(x)
    return best_x, best


def random_starts(program: Program, count: int, generator: torch.Generator) -> Tensor:
    """The centre, then half random corners and half random points; integers, (count, n)."""
    low, high = program.input_low, program.input_high
    mix = torch.rand(count, len(low), generator=generator, dtype=torch.float64).to(low.device)
    mix[: count // 2] = mix[: count // 2].round()
    points = torch.floor(low + mix * (high - low) + 0.5)
    points[0] = torch.floor((low + high) / 2)
    return torch.minimum(torch.maximum(points, low), high)
