"""What a part of the box says about paired activations: their ranges imply each other's, and those of the rows on them.

A program of two networks has rows for the difference of each pair of values, whose ranges were found from those of both
accumulators. Where a split makes one of these narrower, so become the others.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.difference_range import imply, linked_difference, rectified_range, value_difference
from qertify.bounds.forms import Bounds
from qertify.bounds.ladder import Ladder
from qertify.bounds.program import Program
from qertify.network.tensor import FloatArray, IntegerArray

PAIR = 2
"""The first columns of `Program.link_units` are the pair itself, the others rows on it."""


def narrow(program: Program, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds, (batch, N), made narrower where those of a pair's accumulators are narrower than on the whole box.

    All numbers are integers below 2⁵⁰ in float64, but for quotients, which are rounded outwards.
    """
    if program.link_units is None or program.link_numbers is None or not len(program.link_units):
        return low, high
    units = program.link_units.cpu().numpy()
    ends = np.stack([low.cpu().numpy(), high.cpu().numpy()], axis=-1)  # (batch, N, 2)
    root = np.stack([program.low.cpu().numpy(), program.high.cpu().numpy()], axis=-1)
    pair = units[:, :PAIR]
    domain, link = np.nonzero((ends[:, pair] != root[pair]).any(axis=(2, 3)))
    if not domain.size:
        return low, high
    found = ends[domain[:, None], pair[link]].reshape(-1, 2 * PAIR)
    state, index = np.unique(np.concatenate([link[:, None], found], axis=1), axis=0, return_inverse=True)
    found = _ranges(program, state[:, 0].astype(np.int64), (state[:, 1], state[:, 2]), (state[:, 3], state[:, 4]))
    ranges = found[index.reshape(-1)]  # (pairs that changed, columns, 2)
    for column in range(units.shape[1]):
        chosen = units[link, column] >= 0
        at = domain[chosen], units[link[chosen], column]
        ends[at] = np.stack(
            [np.maximum(ends[at][:, 0], ranges[chosen, column, 0]), np.minimum(ends[at][:, 1], ranges[chosen, column, 1])], -1
        )
    first, last = (torch.from_numpy(np.ascontiguousarray(ends[..., side])).to(low.device) for side in (0, 1))
    return first, last


def _ranges(program: Program, link: IntegerArray, own: Bounds, other: Bounds) -> FloatArray:
    """Ranges of pairs' accumulators and of the rows on them, (states, columns, 2), from ranges of z and ẑ, (states,) each."""
    assert program.link_units is not None
    assert program.link_numbers is not None
    stairs = program.link_units[:, 1]
    ladder = Ladder(program.thresholds[stairs].cpu().numpy(), program.first_value[stairs].cpu().numpy(), link)
    least, greatest, factor, up, scale, *shares = program.link_numbers.cpu().numpy()[link].T
    apart, bounds = (least, greatest), [own, other, (least, greatest)]
    imply(bounds, factor, up)
    own, other = (bounds[0][0] * up, bounds[0][1] * up), bounds[1]
    rows = [value_difference(rectified_range, ladder, own, other, apart, factor, scale)]
    rows += [linked_difference(ladder, own, other, apart, factor, scale, share) for share in shares]
    return np.stack([np.stack(item, axis=-1) for item in (*bounds[:PAIR], *rows)], axis=1)
