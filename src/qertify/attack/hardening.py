"""Counterexample search through staircases that harden: from the lines through their thresholds to their exact steps.

Signed gradients see the slope of a staircase, never its rounding, although the errors of a few hundred roundings can be
aligned by thousands of inputs. Here every step is a ramp around its threshold. As long as ramps are wide, their slope is that
of the staircase; as they narrow, only accumulators next to a threshold feel it, and are driven to the side that pays.
(Graduated non-convexity: Blake & Zisserman, "Visual Reconstruction", 1987. Adam: Kingma & Ba, ICLR 2015.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qertify.attack.gradient import forward
from qertify.bounds.first_order import single
from qertify.bounds.program import Program

NARROWEST = 0.05
"""Width of the last ramps, in steps."""
HARDENED = 0.9
"""Part of the steps after which ramps are as narrow as that."""
RATE, DECAY = 0.12, 0.7
"""First stride, as a part of each input's width, and how much of it is lost until the last step."""
MOMENTS = (0.8, 0.95)
EXAMINE = 10
"""Steps between two exact evaluations."""


def harden(
    program: Program,
    x: Tensor,
    objective: Tensor,
    steps: int,
    late: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, Tensor]:
    """Descend on objective·z from every start by Adam, on real inputs and ramps, with exact looks at rounded inputs.

    Args:
        x: (batch, n) integer inputs inside the box.
        objective: (batch, N).
        steps: number of gradient steps.
        late: asked at every step; the paths end when it is true.

    Returns:
        the best integer inputs on each path, (batch, n), and their objectives, (batch,).
    """
    best_x, best = x, (objective * forward(program, x)[0]).sum(-1)
    fast = program if program.operators is None else single(program)
    origin = torch.nan_to_num(program.threshold(program.first_value[None] + 1)[0], posinf=0.0, neginf=0.0)
    last = program.value_range(program.low[None], program.high[None])[1][0]
    point, weight, origin, last = (item.to(fast.low.dtype) for item in (x, objective, origin, last))
    width = fast.input_high - fast.input_low
    first, second = torch.zeros_like(point), torch.zeros_like(point)
    for step in range(1, steps + 1):
        if late():
            break
        ramp = max(NARROWEST, 1 - (1 - NARROWEST) * step / (steps * HARDENED))
        slope = _gradient(fast, point, weight, ramp, origin, last)
        first = MOMENTS[0] * first + (1 - MOMENTS[0]) * slope
        second = MOMENTS[1] * second + (1 - MOMENTS[1]) * slope**2
        stride = RATE * (1 - DECAY * step / steps) * width
        point = fast.inside_box(point - stride * first / (second.sqrt() + 1e-30))
        if step % EXAMINE == 0 or step == steps:
            rounded = program.inside_box(point.double().round())
            reached = (objective * forward(program, rounded)[0]).sum(-1)
            better = reached < best
            best_x, best = torch.where(better[:, None], rounded, best_x), torch.where(better, reached, best)
    return best_x, best


def _gradient(program: Program, x: Tensor, objective: Tensor, ramp: float, origin: Tensor, last: Tensor) -> Tensor:
    """Gradient of objective·z, (batch, n), where the steps of width ``spacing`` from ``origin`` on are ramps."""
    slopes = torch.zeros_like(objective)

    def step(start: int, stop: int, z: Tensor) -> Tensor:
        mine = slice(start, stop)
        least, spacing = program.first_value[mine].to(z.dtype), program.spacing[mine].clamp(min=1e-3)
        position = (z - origin[mine]) / spacing + 1  # k at the k-th threshold
        nearest = position.round().clamp(min=1)
        rise = (position - nearest) / ramp + 0.5
        y = torch.minimum(least + nearest - 1 + rise.clamp(0, 1), last[mine]) * program.has_value[mine]
        slopes[:, mine] = ((rise > 0) & (rise < 1) & (y < last[mine])) / (ramp * spacing) * program.has_value[mine]
        if program.divisor is not None:
            rectifier, divisor = program.divisor[mine] > 0, program.divisor[mine].clamp(min=1).to(z.dtype)
            y = torch.where(rectifier, z.clamp(min=0) / divisor, y)
            slopes[:, mine] = torch.where(rectifier, (z > 0) / divisor, slopes[:, mine])
        return y

    program.forward(x, step)
    return program.backward(objective, lambda start, stop, weight: weight * slopes[:, start:stop])
