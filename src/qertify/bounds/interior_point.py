"""Multipliers by a batched primal-dual interior-point method.

The best λ of `qertify.bounds.dual` is the dual optimum of the linear program over the convex hulls of all staircases.
Each unit's point (z, y) is a convex combination of its hull's corners, so is each coupled pair of inputs, and every other
input lies in its interval; the normal equations of Mehrotra's predictor-corrector method are then N×N, one system a
domain, and are solved in batch. The dual iterates are feasible from the start, so every one of them yields a valid bound,
and 6–8 iterations usually reach the optimum to within a unit. Nothing here is trusted: `qertify.bounds.dual.prove` judges
the result in integers.
(S. Mehrotra, "On the implementation of a primal-dual interior point method", SIAM J. Optim. 2, 1992.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qertify.bounds.chords import first_multipliers
from qertify.bounds.dual import EXACT, Domains, corners, magnitude, value
from qertify.bounds.program import Program

ITERATIONS = 12
ACCURACY = 0.1
OUTER_LIMIT = 1 << 25
"""Largest number of entries of the table of outer products (128 MiB of float32)."""
NORMAL_LIMIT = 1 << 24
"""Largest number of entries of the normal matrices of a batch (128 MiB of float64)."""
UNIT_LIMIT = 3000
"""Most units for which steps are taken; a step takes time in proportion to their cube."""
LARGE = 1 << 13
"""Entries from which single precision saves time; on smaller programs it only loses some empty domains."""
HULL = (0, 4, 1, 3, 6, 7)
"""Those of the `corners` that span the hull of an even staircase, with the least value at 0 and the greatest at 3."""
STEP_FRACTION = 0.97
CROWDED = 0.75
"""Part of a batch that may be left before those that are done are dropped; dropping copies all."""


@dataclass(frozen=True, slots=True, eq=False)
class Relaxation:
    """What the search learns about a batch of domains.

    Attributes:
        multipliers: (batch, N), the best λ found.
        bound: (batch,), g at that λ in floating point; proves nothing.
        inputs: (batch, n), the primal point: a candidate counterexample once rounded.
        z, y: (batch, N), the primal point's accumulators and values.
        slopes: (batch, 3, N), what a search on a part of the domain may start from; None where it starts afresh.
    """

    multipliers: Tensor
    bound: Tensor
    inputs: Tensor
    z: Tensor
    y: Tensor
    slopes: Tensor | None = None

    def pick(self, rows: Tensor) -> Relaxation:
        """Of some of the domains."""
        slopes = None if self.slopes is None else self.slopes[rows]
        return Relaxation(self.multipliers[rows], self.bound[rows], self.inputs[rows], self.z[rows], self.y[rows], slopes)


REGULARIZATION = {torch.float32: 1e-6, torch.float64: 1e-9}


def _longest(value: Tensor, change: Tensor, fraction: float = 1.0) -> Tensor:
    """That part of the longest step that keeps all of value + step·change ≥ 0, at most 1; (batch, 1)."""
    return -fraction / (change / value).amin(1, keepdim=True).clamp(max=-fraction)


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    """The solution of factor·factorᵀ·x = right, (batch, N)."""
    half = torch.linalg.solve_triangular(factor, right[..., None], upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)[..., 0]


class _Gram:
    """matrix · diag(d) · matrixᵀ for a batch of d.

    As long as the table fits, all outer products of the matrix's columns are kept, so that one matrix product gives the
    triangles of the whole batch: several times faster than scaling the matrix once a domain.
    """

    def __init__(self, matrix: Tensor) -> None:
        rows = torch.nonzero((matrix != 0).any(1))[:, 0]
        columns = torch.nonzero((matrix != 0).any(0))[:, 0]
        self._matrix, self._columns, self._size = matrix[rows][:, columns], columns, matrix.shape[0]
        self._all = len(columns) == matrix.shape[1]
        first, second = torch.tril_indices(len(rows), len(rows), device=matrix.device)
        self._below = rows[first] * self._size + rows[second]
        self._fits = len(first) * len(columns) <= OUTER_LIMIT
        self._table = (self._matrix[first] * self._matrix[second]).T.contiguous() if self._fits else self._matrix
        self._rows = rows

    def add_to(self, normal: Tensor, d: Tensor) -> None:
        """Add the lower triangle to normal, (batch, N, N), in place; d is (batch, columns of the matrix)."""
        if not self._columns.numel():
            return
        d = d if self._all else d[:, self._columns]
        if self._fits:
            normal.view(len(normal), -1).index_add_(1, self._below, d @ self._table)
        else:
            square = (self._matrix[None] * d[:, None, :]) @ self._matrix.T
            normal[:, self._rows[:, None], self._rows[None, :]] += square


class _Form:
    """What depends on the program only.

    Inputs are either free in their intervals, n of them, or coupled pairs. A *hull* is a unit's or, after the N units, a
    pair's, H of them; its coordinates are y and z of the unit, or both inputs.
    """

    def __init__(self, program: Program) -> None:
        # directions need not be exact; coefficients of reals differ too much
        integral = program.divisor is None and program.slack is None
        self.kind = torch.float32 if integral and program.input_matrix.numel() >= LARGE else torch.float64
        count, device = program.input_matrix.shape[1], program.input_matrix.device
        empty = torch.zeros(0, 2, dtype=torch.long, device=device)
        self._pairs = empty if program.coupled is None else program.coupled
        free = torch.ones(count, dtype=torch.bool, device=device)
        free[self._pairs.reshape(-1)] = False
        self._free, self._count = torch.nonzero(free)[:, 0], count
        self.low, self.high = (end[free].to(self.kind) for end in (program.input_low, program.input_high))
        self.inputs = program.input_matrix[:, free].to(self.kind)
        self.units = program.unit_matrix.to(self.kind)
        self.pairs = program.input_matrix[:, self._pairs.T.reshape(-1)].to(self.kind)
        pair_corners = torch.zeros(0, 8, 2) if program.coupled_corners is None else program.coupled_corners
        self.pair_corners = pair_corners.to(device, self.kind).permute(2, 1, 0)  # (2, 8, m)
        self.constant = program.constant.to(self.kind) + self.inputs @ self.low
        self.input_gram, self.unit_gram = _Gram(self.inputs), _Gram(self.units)
        self.linked = torch.nonzero((self.units != 0).any(1))[:, 0]
        self.even = not bool(program.unevenness.any()) and not len(self._pairs)

    def price(self, multipliers: Tensor, total: Tensor) -> Tensor:
        """What each coordinate of each hull costs, (batch, 2, H), for multipliers and total weights of the equations."""
        units = torch.stack([total @ self.units, -multipliers], dim=1)
        if not len(self._pairs):
            return units
        return torch.cat([units, (total @ self.pairs).unflatten(1, (2, -1))], dim=2)

    def flow(self, point: Tensor) -> Tensor:
        """What the hulls' points, (batch, 2, H), leave in the equations, (batch, N)."""
        count = len(self.units)
        result = torch.addmm(-point[:, 1, :count], point[:, 0, :count], self.units.T)
        return torch.addmm(result, point[:, :, count:].flatten(1), self.pairs.T) if len(self._pairs) else result

    def normal(self, freedom: Tensor, yy: Tensor, yz: Tensor, zz: Tensor) -> Tensor:
        """The normal matrices, (batch, N, N), up to the diagonal, from the inputs' freedom and the hulls' moments."""
        count = len(self.units)
        result = torch.zeros(len(freedom), count, count, dtype=self.kind, device=freedom.device)
        self.input_gram.add_to(result, freedom)
        self.unit_gram.add_to(result, yy[:, :count])
        if len(self.linked):
            result[:, self.linked] -= self.units[self.linked] * yz[:, None, :count]
        first, second = self.pairs.chunk(2, dim=1)
        for row in range(len(result) if len(self._pairs) else 0):
            aa, ab, bb = yy[row, count:], yz[row, count:], zz[row, count:]
            result[row] += (first * aa + second * ab) @ first.T + (first * ab + second * bb) @ second.T
        torch.diagonal(result, dim1=1, dim2=2).add_(zz[:, :count])
        return result

    def all_inputs(self, below: Tensor, points: Tensor) -> Tensor:
        """Every input, (batch, inputs), from what the free ones are above their least value and the hulls' points."""
        x = below.double() + self.low
        if not len(self._pairs):
            return x
        result = x.new_empty(len(x), self._count)
        result[:, self._free] = x
        result[:, self._pairs.T] = points[:, :, len(self.units) :].double()
        return result


class _Iterate:
    """The primal-dual point of a batch of domains.

    Attributes:
        corners: (batch, 2, C, H).
        primal: (batch, K): each free input above its least and below its greatest value, and the weights of corners.
        dual: (batch, K), the slacks that belong to them.
        multipliers, least: λ, (batch, N), and the least cost of each hull, (batch, H).
        points: (batch, 2, H), the hulls' weighted means.
        residual: (batch, N), what the equations lack at the primal point.
    """

    def __init__(self, program: Program, domains: Domains, form: _Form) -> None:
        self.program, self.domains, self.form = program, domains, form
        z, y = corners(program, domains.low, domains.high)
        crowded = (y[..., 3] - y[..., 0] > 3) & (program.unevenness > 0)
        picked = list(HULL) if form.even else list(range(8))
        batch, units, kind = len(domains), len(program.units), form.kind
        hulls = units + form.pair_corners.shape[2]
        self.corners = torch.empty(batch, 2, len(picked), hulls, dtype=kind, device=z.device)
        self.corners[:, 0, :, :units], self.corners[:, 1, :, :units] = y[..., picked].mT, z[..., picked].mT
        if not form.even:
            self.corners[..., units:] = form.pair_corners
        self.penalty = torch.where(crowded, program.unevenness, 0.0).to(kind)
        self.objective = domains.objective.to(kind)
        self.multipliers = first_multipliers(program, domains).to(kind)
        total = self.objective + self.multipliers
        slope, price = total @ form.inputs, form.price(self.multipliers, total)
        cost = (price[:, :, None] * self.corners).sum(1)
        width = form.high - form.low
        middle = (width / 2).expand(batch, -1)
        weight = torch.full((batch, cost[0].numel()), 1 / len(picked), dtype=kind, device=z.device)
        self.primal = torch.cat([middle, middle, weight], dim=1)
        shift = slope.abs().mean(-1, keepdim=True).nan_to_num() * 0.3 + 1e-6
        spread = (cost.amax(1) - cost.amin(1)).mean(-1, keepdim=True).nan_to_num() * 0.3 + 1e-6
        self.least = cost.amin(1) - spread
        slack = (cost - self.least[:, None]).flatten(1)
        self.dual = torch.cat([slope.clamp(min=0) + shift, (-slope).clamp(min=0) + shift, slack], dim=1)
        self.points = self.corners.mean(2)
        self.residual = form.constant + middle @ form.inputs.T + form.flow(self.points)

    def pick(self, keep: Tensor) -> None:
        """Drop the domains that are done."""
        self.domains = self.domains.pick(keep)
        for name in ("corners", "penalty", "objective", "multipliers", "primal", "dual", "least", "points", "residual"):
            setattr(self, name, getattr(self, name)[keep])

    def gap(self) -> Tensor:
        """The duality gap of a primal feasible point; an estimate before."""
        return torch.linalg.vecdot(self.primal, self.dual)

    def bound(self) -> Tensor:
        """A bound on the objective, (batch,): nearly g(λ), from below."""
        form, count = self.form, len(self.form.low)
        total = self.objective + self.multipliers
        result = total @ form.constant - self.dual[:, count : 2 * count] @ (form.high - form.low) + self.least.sum(-1)
        if self.program.slack is not None:
            result -= total.abs() @ self.program.slack
        return (result - (self.multipliers.abs() * self.penalty).sum(-1)).double()

    def point(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every input, (batch, inputs), and z and y of the units, (batch, N) each."""
        form = self.form
        points = self.points[:, :, : len(form.units)].double()
        return form.all_inputs(self.primal[:, : len(form.low)], self.points), points[:, 1], points[:, 0]

    def advance(self) -> None:
        """One predictor-corrector step."""
        form, count = self.form, len(self.form.low)
        gap = self.gap()[:, None]
        ratio = self.dual / self.primal
        freedom = 1 / (ratio[:, :count] + ratio[:, count : 2 * count])
        d = (1 / ratio[:, 2 * count :]).view(len(gap), *self.corners.shape[2:])
        total = d.sum(1)
        centre = (d[:, None] * self.corners).sum(2) / total[:, None]
        off = self.corners - centre[:, :, None]
        weighted = d[:, None] * off
        moments = (weighted * off).sum(2)
        normal = form.normal(freedom, moments[:, 0], (weighted[:, 0] * off[:, 1]).sum(1), moments[:, 1])
        diagonal = torch.diagonal(normal, dim1=1, dim2=2)
        diagonal.mul_(1 + REGULARIZATION[form.kind]).clamp_(min=1e-12)
        factor, failed = torch.linalg.cholesky_ex(normal)
        torch.diagonal(factor, dim1=1, dim2=2).masked_fill_((failed > 0)[:, None], torch.nan)  # leaves the batch

        def solve(push: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
            """Changes of λ, of the hulls' least costs and points, of ``primal`` and ``dual``, for an aim of products over
            ``primal``, less ``dual``."""
            first, second, rest = push[:, :count], push[:, count : 2 * count], push[:, 2 * count :].view_as(d)
            drive = first - second
            e = rest * d
            given = (e[:, None] * self.corners).sum(2) - centre * e.sum(1)[:, None]
            right = self.residual + (freedom * drive) @ form.inputs.T + form.flow(given)
            change = _solve(factor, right)
            price = form.price(change, change)
            lack = -e.sum(1) / total
            level = lack + (price * centre).sum(1)
            slack = (price[:, :, None] * self.corners).sum(1) - level[:, None]
            dx = freedom * (drive - change @ form.inputs)
            weights = e - d * slack
            primal = torch.cat([dx, -dx, weights.flatten(1)], dim=1)
            dual = torch.addcmul(push, ratio, primal, value=-1)
            dual[:, 2 * count :] = slack.flatten(1)
            return change, level, weights, primal, dual

        _, _, _, primal, dual = solve(-self.dual)
        along, across = _longest(self.primal, primal), _longest(self.dual, dual)
        product = primal * dual
        mixed = torch.linalg.vecdot(primal, self.dual)[:, None]
        after = gap + along * mixed - across * (gap + mixed) + along * across * product.sum(1, keepdim=True)
        aim = (after / gap).clamp(0, 1) ** 3 * gap / self.primal.shape[1]
        change, level, weights, primal, dual = solve((aim - product) / self.primal - self.dual)
        along, across = _longest(self.primal, primal, STEP_FRACTION), _longest(self.dual, dual, STEP_FRACTION)
        self.primal = torch.addcmul(self.primal, along, primal)
        self.dual = torch.addcmul(self.dual, across, dual)
        self.multipliers = torch.addcmul(self.multipliers, across, change)
        self.least = torch.addcmul(self.least, across, level)
        self.points = self.points + along[:, None] * (weights[:, None] * self.corners).sum(2)
        self.residual = self.residual * (1 - along)


class InteriorPoint:
    """Searches multipliers for one program; keeps what depends on the program only. Stops early once ``late()``."""

    def __init__(self, program: Program, late: Callable[[], bool] = lambda: False) -> None:
        self._late = late
        self._program = program
        self._form = _Form(program)

    def relax(self, domains: Domains, iterations: int = ITERATIONS, accuracy: float = ACCURACY) -> Relaxation:
        """Search for the best multipliers of a batch of domains, as many at a time as the memory allows.

        A domain is done as soon as its bound passes the limit, or can't be expected to any more.

        Args:
            iterations: most interior-point steps.
            accuracy: a search ends once its gap is this part of what the bound lacks to the limit.
        """
        size = max(1, NORMAL_LIMIT // max(1, len(self._program.units)) ** 2)
        parts = [self._relax(domains.pick(rows), iterations, accuracy) for rows in torch.arange(len(domains)).split(size)]
        if len(parts) == 1:
            return parts[0]
        names = ("multipliers", "bound", "inputs", "z", "y")
        return Relaxation(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def _steps(self, iterations: int) -> int:
        """None without a free input, where nothing is to gain, or with too many units, where a step takes too long."""
        rows, inputs = self._program.input_matrix.shape
        return iterations if inputs and rows <= UNIT_LIMIT else 0

    def _relax(self, domains: Domains, iterations: int, accuracy: float) -> Relaxation:
        program = self._program
        iterate = _Iterate(program, domains, self._form)
        multipliers = iterate.multipliers.double().clone()
        bound = value(program, domains, *corners(program, domains.low, domains.high), multipliers)
        result = Relaxation(multipliers, bound, *iterate.point())
        rows = torch.arange(len(domains), device=multipliers.device)
        active = torch.ones_like(rows, dtype=torch.bool)
        for _ in range(self._steps(iterations)):
            if self._late():
                break
            iterate.advance()
            bound, gap, multipliers = iterate.bound(), iterate.gap(), iterate.multipliers.double()
            finite = torch.isfinite(bound) & torch.isfinite(gap)
            # runaway multipliers (degenerate or empty domains) round to noise; the proof could not hold them either
            sane = magnitude(program, iterate.domains, multipliers) < EXACT / 64
            improved = finite & sane & (bound > result.bound[rows])
            result.multipliers[rows[improved]] = multipliers[improved]
            result.bound[rows[improved]] = bound[improved]
            lack = iterate.domains.limit - result.bound[rows]
            goes_on = finite & (lack > -1) & (gap > 1e-3) & (gap > accuracy * lack)
            ends = active & finite & ~goes_on
            if bool(ends.any()):
                self._keep(result, iterate, rows, ends)
            active &= goes_on
            left = int(active.sum())
            if not left:
                return result
            if left < CROWDED * len(rows):
                iterate.pick(active)
                rows, active = rows[active], active[active]
        self._keep(result, iterate, rows, active)
        return result

    @staticmethod
    def _keep(result: Relaxation, iterate: _Iterate, rows: Tensor, which: Tensor) -> None:
        """Take over the primal points of some domains."""
        for known, found in zip((result.inputs, result.z, result.y), iterate.point(), strict=True):
            known[rows[which]] = found[which]
