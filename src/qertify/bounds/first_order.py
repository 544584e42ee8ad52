"""Multipliers for large programs: slopes of all staircases, improved by Adam.

λ_u = s_u·a_u, where a_u is how much the unit's value weighs and s_u the slope of a line under the staircase (a_u ≥ 0) or
above it (a_u < 0): with any slopes one backward pass gives multipliers, hence a bound. Its gradient needs no automatic
differentiation. Let x*, y*, z* be where the inner minima are attained; a forward pass with values y* + s·(z − z*) yields
z, and ∂g/∂s_u = a_u·(z_u − z*_u). Units whose range was cut by a split or a case also have a multiplier of their own.
(Backward relaxations with optimised slopes: Xu et al., "Fast and complete", ICLR 2021; multipliers of splits: Wang et al.,
"Beta-CROWN", NeurIPS 2021. Adam: Kingma & Ba, ICLR 2015.)

Everything here is float32 and nothing is trusted: `qertify.bounds.dual.prove` judges the result in integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qertify.bounds.dual import Domains, corners
from qertify.bounds.interior_point import Relaxation
from qertify.bounds.program import Program

ITERATIONS = 60
"""Steps, most of which a search that starts from the slopes of an earlier domain with the same objective needs as well."""
ENTRIES = 1 << 22
"""Most units times domains that are bounded together."""
RATE, MORE_RATE, DECAY = 0.1, 0.05, 0.95
"""First stride, first stride from such slopes, and what is left of a stride after each step."""
MOMENTS = (0.9, 0.95)
AVERAGE = 0.1
"""Weight of the newest point in the average that serves as primal point."""
PATIENCE = 30
"""Steps after which a domain is judged by what it has gained in them; in the first ones a search often loses."""


def single(program: Program) -> Program:
    """The same program in float32, for passes whose results are not trusted."""
    names = (
        "input_low", "input_high", "constant", "spacing", "unevenness", "has_value", "low", "high",
        "divisor", "slack", "coupled_corners", "input_matrix", "unit_matrix",
    )  # fmt: skip
    given = {name: getattr(program, name) for name in names}
    return replace(program, **{name: value.float() for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True, eq=False)
class Fans:
    """Slopes of lines that touch a staircase on its range, (batch, N) each: from ``…_least`` to ``…_least + …_width``.

    A line under a staircase may be as flat as its first step, one over it as its last one. A row that follows a rectifier takes
    a part of its weight over, from none to all, which is where the search starts if the rectifier has both phases.
    """

    under_least: Tensor
    under_width: Tensor
    over_least: Tensor
    over_width: Tensor
    chord: Tensor


def fans(program: Program, low: Tensor, high: Tensor) -> Fans:
    """The slopes worth trying on low … high."""
    first, last = program.values(low), program.values(high)
    rise = (last - first) * program.has_value
    start = torch.minimum(torch.maximum(program.threshold(first + 1), low), high)
    end = torch.maximum(torch.minimum(program.threshold(last), high), low)
    chord = torch.minimum(rise / (high - low).clamp(min=1), 1 / program.spacing)
    under_least = torch.where(start > low, 0.0, chord)
    over_least = torch.where(high > end, 0.0, chord)
    under, over = rise / (high - start + 1).clamp(min=1), rise / (end - low).clamp(min=1)
    if program.divisor is not None:
        rectifier, steepest = program.divisor > 0, 1 / program.divisor.clamp(min=1)
        unstable = (low < 0) & (high > 0)
        chord = torch.where(rectifier & ~unstable, torch.where(low >= 0, steepest, 0.0), chord)
        under_least = torch.where(rectifier, torch.where(unstable, 0.0, chord), under_least)
        over_least = torch.where(rectifier, chord, over_least)
        under, over = torch.where(rectifier, torch.where(unstable, steepest, chord), under), torch.where(rectifier, chord, over)
        if program.follows is not None and program.takes is not None:
            follows = program.follows >= 0
            chord = torch.where(follows, unstable[:, program.follows.clamp(min=0)].to(chord.dtype), chord)
            under = torch.where(follows, (program.takes >= 0).to(chord.dtype), under)
            over = torch.where(follows, (program.takes <= 0).to(chord.dtype), over)
    return Fans(under_least, (under - under_least).clamp(min=0), over_least, (over - over_least).clamp(min=0), chord)


class _Descent:
    """One batch of domains with its parameters and the moments of Adam.

    The parameters, (batch, 2 or 3, N), are slopes for a ≥ 0 and a < 0, each 0 … 1 in its fan, and, where a range is cut, the
    own multipliers. What domains have in common is kept once: `left`, `right` and `y`, (4, rows, N), and the fans, `least` and
    `width`, (rows, 2, N), have one row if all domains have the same ranges.

    Args:
        start: (batch, 3, N), slopes times spacing, and own multipliers; not a number where they are unknown.
        rate: first stride.
    """

    def __init__(self, program: Program, exact: Program, domains: Domains, start: Tensor, rate: float) -> None:
        self.program, self.rate = program, rate
        shared = domains.low.stride(0) == domains.high.stride(0) == 0
        low, high = (bound[:1] if shared else bound for bound in (domains.low, domains.high))
        z, y = (corner.movedim(-1, 0).float() for corner in corners(exact, low, high))
        self.left, self.right, self.y = torch.minimum(z[:4], z[4:]), torch.maximum(z[:4], z[4:]), y[:4]
        self.crowded = ((y[3] - y[0] > 3) & (exact.unevenness > 0)).float() * program.unevenness
        self.objective = domains.objective.float()
        fan = fans(exact, low, high)
        self.least = torch.stack([fan.under_least, fan.over_least], 1).float()
        self.width = torch.stack([fan.under_width, fan.over_width], 1).float()
        narrowed = (low > exact.low) | (high < exact.high)
        self.splits = narrowed.float() / program.spacing.clamp(min=1) if bool(narrowed.any()) else None
        wanted = torch.where(start[:, :2].isnan(), fan.chord[:, None].float(), start[:, :2] / program.spacing.clamp(min=1))
        self.parameters = ((wanted - self.least) / self.width.clamp(min=1e-12)).clamp_(0, 1)
        if self.splits is not None:
            self.parameters = torch.cat([self.parameters, start[:, 2:].nan_to_num()], 1)
        self.first, self.second = torch.zeros_like(self.parameters), torch.zeros_like(self.parameters)
        self.step = 0

    def slopes(self, parameters: Tensor, index: Tensor) -> Tensor:
        """What a later search may start from, (count, 3, N), for parameters of this batch, and of it domains ``index``."""
        least, width = (part[index] if len(part) > 1 else part for part in (self.least, self.width))
        chosen = parameters[index]
        found = (least + chosen[:, :2] * width) * self.program.spacing.clamp(min=1)
        return torch.cat([found, chosen[:, 2:] if self.splits is not None else torch.zeros_like(found[:, :1])], 1).half()

    def choose_start(self, follows: Tensor) -> None:
        """Let rows take no weight over in domains whose bound is better without."""
        kept = self.parameters
        bound = self.evaluate(advance=False)[0]
        slopes = (torch.arange(kept.shape[1], device=kept.device) < 2)[:, None]
        self.parameters = kept.masked_fill((follows >= 0) & slopes, 0.0)
        better = self.evaluate(advance=False)[0] > bound
        self.parameters = torch.where(better[:, None, None], self.parameters, kept)

    def pick(self, index: Tensor) -> None:
        """Keep some of the domains."""
        for name in ("objective", "parameters", "first", "second"):
            setattr(self, name, getattr(self, name)[index])
        if len(self.least) > 1:
            for name in ("crowded", "splits", "least", "width"):
                value = getattr(self, name)
                setattr(self, name, None if value is None else value[index])
            self.left, self.right, self.y = self.left[:, index], self.right[:, index], self.y[:, index]

    def evaluate(self, advance: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """g and λ, and the minimising inputs, accumulators and values; ``advance`` takes a step of Adam from there."""
        program, weight = self.program, torch.zeros_like(self.objective)
        multipliers, slope = torch.zeros_like(weight), torch.zeros_like(weight)
        lines = self.least + self.parameters[:, :2] * self.width

        def relax(first: int, last: int, a: Tensor) -> Tensor:
            mine = slice(first, last)
            part = torch.where(a >= 0, lines[:, 0, mine], lines[:, 1, mine])
            found = part * a
            if self.splits is not None:
                own = self.parameters[:, 2, mine] * self.splits[:, mine]
                part = part + own * a.sign()
                found += own * (a.abs() + self.objective[:, mine].abs())
            weight[:, mine], slope[:, mine], multipliers[:, mine] = a, part, found
            return found

        cost = program.backward(self.objective, relax)
        least, z, y = self._least_corner(weight, multipliers)
        x = program.least_point(cost)
        total = self.objective + multipliers
        bound = (total * program.constant).sum(-1) + (cost * x).sum(-1) + least.sum(-1)
        slack = 0.0 if program.slack is None else program.slack
        bound = bound - (multipliers.abs() * self.crowded).sum(-1) - (total.abs() * slack).sum(-1)
        if advance:
            z_penalised = z + multipliers.sign() * self.crowded + total.sign() * slack

            def linear(first: int, last: int, found: Tensor) -> Tensor:
                mine = slice(first, last)
                return y[:, mine] + slope[:, mine] * (found - z_penalised[:, mine])

            residual = program.forward(x, linear) - z_penalised
            self._ascend(weight, residual)
        return bound, multipliers, x, z, y

    def _least_corner(self, weight: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """min of weight·y − multipliers·z over the corners, and where: of each step, the end that λ prefers."""
        rightmost, corners_y = multipliers > 0, list(self.y)
        first, *others = (torch.where(rightmost, right, left) for left, right in zip(self.left, self.right, strict=True))
        where_z, where_y, least = first, corners_y[0], weight * corners_y[0] - multipliers * first
        for z, y in zip(others, corners_y[1:], strict=True):
            found = weight * y - multipliers * z
            better = found < least
            least = torch.minimum(found, least)
            where_z, where_y = torch.where(better, z, where_z), torch.where(better, y, where_y)
        return least, where_z, where_y

    def _ascend(self, weight: Tensor, residual: Tensor) -> None:
        self.step += 1
        gradient = torch.stack([weight.clamp(min=0), weight.clamp(max=0)], 1) * residual[:, None] * self.width
        if self.splits is not None:
            own = residual * self.splits * (weight.abs() + self.objective.abs())
            gradient = torch.cat([gradient, own[:, None]], 1)
        self.first.lerp_(gradient, 1 - MOMENTS[0])
        self.second.mul_(MOMENTS[1]).addcmul_(gradient, gradient, value=1 - MOMENTS[1])
        stride = self.rate * DECAY**self.step / (1 - MOMENTS[0] ** self.step)
        size = (self.second / (1 - MOMENTS[1] ** self.step)).sqrt_().add_(1e-20)
        self.parameters = self.parameters.addcdiv(self.first, size, value=stride)
        self.parameters[:, :2].clamp_(0, 1)


class FirstOrder:
    """Searches multipliers for one program; remembers slopes for each objective. Stops early once ``late()``."""

    def __init__(self, program: Program, late: Callable[[], bool] = lambda: False) -> None:
        self._program, self._fast, self._late = program, single(program), late
        self._memory: dict[tuple[tuple[int, float], ...], Tensor] = {}

    def relax(self, domains: Domains, iterations: int = ITERATIONS, start: Tensor | None = None) -> Relaxation:
        """Search for multipliers of a batch of domains, as many at a time as the memory allows.

        Args:
            iterations: most steps.
            start: `Relaxation.slopes` of domains that hold these, not a number where they are unknown.
        """
        size = max(1, ENTRIES // max(1, len(self._program.units)))
        remembered = self._start(domains)
        start = remembered if start is None else torch.where(start.isnan().all(-1, True).all(-2, True), remembered, start)
        slices = [slice(first, first + size) for first in range(0, len(domains), size)]
        parts = [self._relax(domains.pick(rows), iterations, start[rows]) for rows in slices]
        if len(parts) == 1:
            return parts[0]
        return Relaxation(*(torch.cat([getattr(part, name) for part in parts]) for name in Relaxation.__dataclass_fields__))

    def _start(self, domains: Domains) -> Tensor:
        """What was best for the same objectives before; for units that have the same range now."""
        unknown = torch.full((3, len(self._program.units)), torch.nan, dtype=torch.float16, device=domains.low.device)
        known = torch.stack([self._memory.get(_key(row), unknown) for row in domains.objective])
        narrowed = (domains.low > self._program.low) | (domains.high < self._program.high)
        return known.masked_fill(narrowed[:, None], torch.nan)

    def _relax(self, domains: Domains, iterations: int, start: Tensor) -> Relaxation:
        known = not bool(start.isnan().all(-1).all(-1).any())
        descent = _Descent(self._fast, self._program, domains, start.float(), MORE_RATE if known else RATE)
        if not known and self._program.follows is not None:
            descent.choose_start(self._program.follows)
        limit = domains.limit.float()
        result = None
        alive = torch.arange(len(domains), device=limit.device)
        before = torch.full_like(limit, -torch.inf)
        for step in range(iterations + 1):
            tried = descent.parameters
            bound, multipliers, x, z, y = descent.evaluate(advance=step < iterations)
            if result is None:
                result = Relaxation(multipliers, bound, x, z, y, descent.slopes(tried, alive))
            else:
                assert result.slopes is not None
                improved = bound > result.bound[alive]
                where = alive[improved]
                result.bound[where], result.multipliers[where] = bound[improved], multipliers[improved]
                result.slopes[where] = descent.slopes(tried, improved.nonzero()[:, 0])
                for kept, new in zip((result.inputs, result.z, result.y), (x, z, y), strict=True):
                    if len(alive) == len(domains):
                        kept.lerp_(new, AVERAGE)
                    else:
                        kept[alive] = kept[alive].lerp_(new, AVERAGE)
            enough = result.bound[alive] > limit[alive] + 0.5 + 1e-5 * limit[alive].abs()
            active = ~enough
            if known and step and step % PATIENCE == 0:  # a domain of a tree is better split than improved for ever
                gain, lack = result.bound[alive] - before[alive], limit[alive] - result.bound[alive]
                active &= gain * (iterations - step) / PATIENCE > lack
                before[alive] = result.bound[alive]
            if not bool(active.any()) or self._late():
                break
            if int(active.sum()) <= 0.7 * len(alive):
                alive = alive[active]
                descent.pick(active)
        assert result is not None
        assert result.slopes is not None
        for row, objective in enumerate(domains.objective):
            self._memory.setdefault(_key(objective), result.slopes[row].clone())
        names = ("multipliers", "bound", "inputs", "z", "y")
        return replace(result, **{name: getattr(result, name).double() for name in names})


def _key(objective: Tensor) -> tuple[tuple[int, float], ...]:
    """An objective by its entries that are not zero."""
    where = torch.nonzero(objective)[:, 0]
    return tuple(zip(where.tolist(), objective[where].tolist(), strict=True))
