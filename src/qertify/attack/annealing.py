"""Simulated annealing over single-input moves, on the exact objective: where rounding errors must line up.

A difference between a network and its quantization consists of many rounding errors, which gradients don't see. Many
chains run at once; each move changes one input of each chain and updates the first accumulators by one column.
(S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi, "Optimization by Simulated Annealing", Science 220, 1983.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qertify.bounds.program import Program

HOT, COLD = 0.03, 0.001
"""First and last temperature, relative to the start's objective."""


def anneal(
    program: Program,
    x: Tensor,
    objective: Tensor,
    moves: int,
    generator: torch.Generator,
    late: Callable[[], bool] = lambda: False,
) -> Tensor:
    """The best point of each chain.

    Args:
        program: with dense matrices; others are returned as they are.
        x: (chains, n) integers inside the box, the starts. objective: (chains, N), to be minimised as objective·z.
        moves: of each chain.
        late: asked at every move; the chains end when it is true.
    """
    if program.operators is not None or not len(program.input_low):
        return x
    chains = torch.arange(len(x), device=x.device)
    columns = program.input_matrix.T.contiguous()
    x, base = x.clone(), program.constant + x @ columns

    def evaluate(base: Tensor) -> Tensor:
        z, y = base, torch.zeros_like(base)
        for first, last in program.blocks:
            if first:
                z = base + y @ program.unit_matrix.T
            y[:, first:last] = program.block_values(first, last, z[:, first:last])
        return ((base + y @ program.unit_matrix.T) * objective).sum(-1)

    current = evaluate(base)
    best_x, best = x.clone(), current
    size = current.abs().clamp(min=1)
    for move in range(moves):
        if late():
            break
        temperature = size * HOT * (COLD / HOT) ** (move / moves)
        column = torch.randint(len(program.input_low), (len(x),), generator=generator).to(x.device)
        low, high = program.input_low[column], program.input_high[column]
        draw, luck = torch.rand(2, len(x), generator=generator, dtype=torch.float64).to(x.device)
        value = low + torch.floor(draw * (high - low + 1)).clamp(max=high - low)
        moved = base + (value - x[chains, column])[:, None] * columns[column]
        reached = evaluate(moved)
        accepted = luck < torch.exp(((current - reached) / temperature).clamp(max=0))
        base = torch.where(accepted[:, None], moved, base)
        current = torch.where(accepted, reached, current)
        x[chains[accepted], column[accepted]] = value[accepted]
        better = current < best
        best_x, best = torch.where(better[:, None], x, best_x), torch.where(better, current, best)
    return best_x
