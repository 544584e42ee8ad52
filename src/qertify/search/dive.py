"""Down one path of a search tree, phase by phase, always into the part whose bound is worse.

Relaxations of such domains cheat less and less, and where the bound is worst is often where the worst inputs are: their
points are good starts for an attack. Nothing is proved here. (Diving, a heuristic of integer programming: T. Berthold, "Primal
heuristics for mixed integer programs", 2006.)
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from qertify.bounds.dual import Domains
from qertify.bounds.interior_point import Relaxation
from qertify.bounds.program import Program
from qertify.bounds.relaxers import Relaxer
from qertify.bounds.tighten import propagate
from qertify.search.branching import Gains, choose, parts


def dive(
    program: Program,
    relaxer: Relaxer,
    domain: Domains,
    relaxation: Relaxation,
    follow: Callable[[Tensor], None],
    late: Callable[[], bool],
    seconds: float,
) -> None:
    """Fix rectifiers until all are, or the bound is no violation any more; not at all if the time won't do.

    Args:
        domain, relaxation: where to start, batches of one.
        follow: gets the inputs of every relaxation on the way, (n,).
        late: asked at every step. seconds: that there are.
    """
    if program.divisor is None:
        return
    gains, begin = Gains(program), time.monotonic()
    steps = int(((program.divisor > 0) & (domain.low < 0) & (domain.high > 0)).sum())
    for done in range(steps):
        if late() or (time.monotonic() - begin) * steps > seconds * max(done, 1):
            return
        branch = choose(program, domain, relaxation, gains)
        unit = int(branch.unit)
        if bool(branch.fixed) or not bool(program.divisor[unit]):
            return
        ends = parts(program, domain.low[0], domain.high[0], unit, float(branch.threshold))
        low, high, empty = propagate(program, *(torch.stack(side) for side in zip(*ends, strict=True)))
        left = torch.nonzero(~empty)[:, 0]
        if not len(left):
            return
        domains = Domains(low[left], high[left], domain.objective.expand(len(left), -1), domain.limit.expand(len(left)))
        relaxations = relaxer.relax(domains)
        worst = relaxations.bound.argmin()[None]
        domain, relaxation = domains.pick(worst), relaxations.pick(worst)
        if float(relaxation.bound) > float(domain.limit):
            return
        follow(relaxation.inputs[0])
