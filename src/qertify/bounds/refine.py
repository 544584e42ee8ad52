"""Tighter ranges for large programs: interval arithmetic and dual bounds, staircase after staircase.

The relaxation of a unit is loose only where a flat phase of its staircase is within reach, so only such units are bounded
one by one, with the multipliers of one backward pass each; how many depends on the time. All bounds are proved in integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.dual import Domains, prove
from qertify.bounds.first_order import FirstOrder
from qertify.bounds.program import Program
from qertify.network.network import Network
from qertify.network.nodes import Input, Staircase
from qertify.network.ranges import RULES, Range

FEW, MANY, STEPS = 80, 400, 12
"""Up to so many units of a block, at first and once more, get multipliers from so many steps of the first-order search; more
units, from none."""
FLAT = 1.5
"""Length from which the constant part at an end of a range counts as a phase, in steps."""
ENTRIES = 1 << 21
"""Most units times objectives that are bounded together."""


def refine(
    network: Network, known: dict[str, Range], program: Program, late: Callable[[], bool] = lambda: False, few: int = FEW
) -> dict[str, Range]:
    """Ranges of all nodes over the program's box, at least as tight as the known ones.

    Args:
        known: ranges of all nodes, (1, *node shape), that the program was compiled with.
        program: with operators.
        late: asked before every batch; after that, interval arithmetic goes on alone.
        few: most units of a block that get better multipliers than those of chords.
    """
    refined: dict[str, Range] = {}
    blocks = _blocks(network, program)
    for node in network.nodes:
        low, high = known[node.name]
        if not isinstance(node, Input):
            least, greatest = RULES[type(node)](node, [refined[name] for name in node.inputs])
            low, high = np.maximum(low, least), np.minimum(high, greatest)
        if node.name in blocks:
            start, stop = blocks[node.name]
            elements = np.array([unit.element for unit in program.units[start:stop]], dtype=np.int64)
            flat_low, flat_high = low.reshape(-1).copy(), high.reshape(-1).copy()
            program = _with_ranges(program, start, stop, flat_low[elements], flat_high[elements])
            if start:
                program = _tightened(program, start, stop, late, few)
                flat_low[elements], flat_high[elements] = (
                    bound[start:stop].cpu().numpy().astype(np.int64) for bound in (program.low, program.high)
                )
            low, high = flat_low.reshape(low.shape), flat_high.reshape(high.shape)
        refined[node.name] = low, high
    return refined


def _blocks(network: Network, program: Program) -> dict[str, tuple[int, int]]:
    """Accumulator node → its first block of units, for nodes that a staircase reads."""
    sources = {node.inputs[0] for node in network.nodes if isinstance(node, Staircase)}
    result: dict[str, tuple[int, int]] = {}
    for start, stop in program.blocks:
        unit = program.units[start]
        if unit.node in sources and unit.label is None:
            result.setdefault(unit.node, (start, stop))
    return result


def _with_ranges(program: Program, start: int, stop: int, least: np.ndarray, greatest: np.ndarray) -> Program:
    low, high = program.low.clone(), program.high.clone()
    low[start:stop] = torch.from_numpy(least.astype(np.float64)).to(low.device)
    high[start:stop] = torch.from_numpy(greatest.astype(np.float64)).to(high.device)
    return replace(program, low=low, high=high)


def loose(program: Program) -> Tensor:
    """Which units have a flat phase within reach besides other values, bool (N,)."""
    low, high = program.low[None], program.high[None]
    first, last = program.values(low), program.values(high)
    flat = torch.maximum(program.threshold(first + 1) - low, high - program.threshold(last)) > FLAT * program.spacing
    return ((first < last) & flat)[0]


def _tightened(program: Program, start: int, stop: int, late: Callable[[], bool], few: int) -> Program:
    """Dual bounds for the loose units of one block, the widest first."""
    head = program.head(start)
    width = torch.where(loose(program)[start:stop], (head.high - head.low)[start:] / head.spacing[start:], 0.0)
    order = width.argsort(descending=True)[: int((width > 0).sum())] + start
    low, high = program.low.clone(), program.high.clone()
    relaxer = FirstOrder(head, late)
    for part in order.split(max(1, ENTRIES // stop)):
        if late() or not len(part):
            break
        for sign in (1.0, -1.0):
            bound = _bound(head, part, sign, relaxer, STEPS if len(order) <= few else 0)
            if sign > 0:
                low[part] = torch.maximum(low[part], bound)
            else:
                high[part] = torch.minimum(high[part], -bound)
    return replace(program, low=low, high=high)


def _bound(head: Program, part: Tensor, sign: float, relaxer: FirstOrder, steps: int) -> Tensor:
    """Proved lower bounds of sign·z for units ``part``."""
    count = len(part)
    objective = torch.zeros(count, len(head.units), dtype=torch.float64, device=head.low.device)
    objective[torch.arange(count), part] = sign
    limit = (head.high if sign > 0 else -head.low)[part]
    domains = Domains(head.low.expand(count, -1), head.high.expand(count, -1), objective, limit)
    return prove(head, domains, relaxer.relax(domains, steps).multipliers).margin + limit + 1
