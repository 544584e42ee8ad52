"""What a program does with the values of its first staircases, as a program that reads those values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.program import Program


def pattern_program(
    program: Program, first: Tensor, z: Tensor, y: Tensor, price: Tensor, low: Tensor, high: Tensor
) -> tuple[Program, Tensor]:
    """The units that depend on some units' values, as a function of these; all else stays as it is at one point.

    Args:
        first: positions of the units whose values are the inputs, m of them.
        z, y: (N,), accumulators and values at the point.
        price: (m,), what one more of each value costs elsewhere. low, high: (m,), the range of the values.

    Returns:
        a program whose last unit is the total price, and the positions of the others in the old one.
    """
    reads = torch.zeros(len(program.units), dtype=torch.bool)
    reads[first] = True
    for start, stop in program.blocks:
        reads[start:stop] |= (program.unit_matrix[start:stop, reads] != 0).any(1)
    reads[first] = False
    kept = torch.nonzero(reads)[:, 0]
    own = program.unit_matrix[kept]
    rest = z[kept] - own[:, first] @ y[first] - own[:, kept] @ y[kept]
    ends = [int(torch.searchsorted(kept, stop)) for _, stop in program.blocks]
    blocks = [(start, stop) for start, stop in zip([0, *ends], ends, strict=False) if start < stop]

    def extended(values: Tensor, last: float) -> Tensor:
        return torch.cat([values[kept], torch.full_like(values[:1], last)])

    matrix = torch.zeros(len(kept) + 1, len(kept) + 1, dtype=own.dtype)
    matrix[:-1, :-1] = own[:, kept]
    result = replace(
        program,
        units=(*(program.units[unit] for unit in kept.tolist()), program.units[-1]),
        blocks=(*blocks, (len(kept), len(kept) + 1)),
        input_index=np.arange(len(first)),
        input_low=low,
        input_high=high,
        input_matrix=torch.cat([own[:, first], price[None]]),
        unit_matrix=matrix,
        constant=torch.cat([rest, torch.zeros(1, dtype=rest.dtype)]),
        low=extended(program.low, -torch.inf),
        high=extended(program.high, torch.inf),
        thresholds=extended(program.thresholds, torch.inf),
        first_value=extended(program.first_value, 0.0),
        spacing=extended(program.spacing, 1.0),
        unevenness=extended(program.unevenness, 0.0),
        has_value=extended(program.has_value, 0.0),
        equation_size=extended(program.equation_size, torch.inf),
        divisor=None if program.divisor is None else extended(program.divisor, 0.0),
        slack=None,
        follows=None,
        link_units=None,
        link_numbers=None,
        coupled=None,
        coupled_corners=None,
    )
    return result, kept
