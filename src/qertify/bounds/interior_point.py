"""Multipliers by a batched primal-dual interior-point method.

The best λ of `qertify.bounds.dual` is the dual optimum of the linear program over the convex hulls of all staircases.
Each unit is a convex combination (weights w) of its corners, each input lies in its interval, and coupled pairs of inputs
are convex combinations (weights v) of theirs; the normal equations of
Mehrotra's predictor-corrector method are then N×N, one system a domain, and are solved in batch. The dual iterates are
feasible from the start, so every one of them yields a valid bound, and 6–8 iterations usually reach the optimum to
within a unit. Nothing here is trusted: `qertify.bounds.dual.prove` judges the result in integers.
(S. Mehrotra, "On the implementation of a primal-dual interior point method", SIAM J. Optim. 2, 1992.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from qertify.bounds.dual import EXACT, Domains, corners, magnitude, value
from qertify.bounds.program import Program

ITERATIONS = 12
ACCURACY = 0.1
OUTER_LIMIT = 1 << 25
"""Largest number of entries of the table of outer products (256 MiB of float64)."""
NORMAL_LIMIT = 1 << 24
"""Largest number of entries of the normal matrices of a batch (128 MiB of float64)."""
UNIT_LIMIT = 3000
"""Most units for which steps are taken; a step takes time in proportion to their cube."""
HULL = (0, 4, 1, 3, 6, 7)
"""Those of the `corners` that span the hull of an even staircase, with the least value at 0 and the greatest at 3."""
STEP_FRACTION = 0.97
REGULARIZATION = 1e-9


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


class Following(Enum):
    """Which rows take the weights of rectifiers over that have both phases."""

    NONE = "none"
    VALUES = "values"
    """Those of the difference of values alone."""
    LINKS = "links"
    """Those of the difference less a part of that of the accumulators, each for the sign that it is made for."""


def initial_multipliers(program: Program, domains: Domains, following: Following = Following.NONE) -> Tensor:
    """λ_u = a_u · (slope of the chord of σ_u), from the last block to the first. Shape (batch, N).

    Args:
        following: the weight that rows take over goes on from there.
    """
    slope = _chords(program, domains)
    falling = slope
    if following is not Following.NONE and program.follows is not None and program.takes is not None:
        partner = program.follows.clamp(min=0)
        unstable = (domains.low[:, partner] < 0) & (domains.high[:, partner] > 0) & (program.follows >= 0)
        rising_rows, falling_rows = (
            unstable & ((program.takes == 0) | (program.takes == sign) & (following is Following.LINKS)) for sign in (1, -1)
        )
        slope, falling = torch.where(rising_rows, 1.0, slope), torch.where(falling_rows, 1.0, slope)
    result = torch.zeros_like(domains.objective)

    def follow(start: int, stop: int, weight: Tensor) -> Tensor:
        result[:, start:stop] = weight * torch.where(weight > 0, slope[:, start:stop], falling[:, start:stop])
        return result[:, start:stop]

    program.backward(domains.objective, follow)
    return result


def _chords(program: Program, domains: Domains) -> Tensor:
    first, last = program.values(domains.low), program.values(domains.high)
    slope = (last - first) / (domains.high - domains.low).clamp(min=1)
    return torch.minimum(slope, 1 / program.spacing) * program.has_value


def first_multipliers(program: Program, domains: Domains) -> Tensor:
    """The best of these, domain by domain."""
    result = initial_multipliers(program, domains)
    if program.follows is None:
        return result
    z, y = corners(program, domains.low, domains.high)
    best = value(program, domains, z, y, result)
    for following in (Following.VALUES, Following.LINKS):
        others = initial_multipliers(program, domains, following)
        found = value(program, domains, z, y, others)
        result = torch.where((found > best)[:, None], others, result)
        best = torch.maximum(best, found)
    return result


def _longest(relative_change: Tensor) -> Tensor:
    """The longest step that keeps value·(1 + step·relative_change) ≥ 0, given the least relative change, per domain."""
    return torch.where(relative_change < 0, -1 / relative_change, torch.inf)


class _Gram:
    """matrix · diag(d) · matrixᵀ for a batch of d.

    As long as the table fits, all outer products of the matrix's columns are kept, so that one matrix product gives the
    triangles of the whole batch: several times faster than scaling the matrix once a domain. ``kind`` is the table's type.
    """

    def __init__(self, matrix: Tensor, kind: torch.dtype) -> None:
        rows = torch.nonzero((matrix != 0).any(1))[:, 0]
        columns = torch.nonzero((matrix != 0).any(0))[:, 0]
        self._matrix, self._columns, self._size = matrix[rows][:, columns], columns, matrix.shape[0]
        first, second = torch.tril_indices(len(rows), len(rows), device=matrix.device)
        self._below = rows[first] * self._size + rows[second]
        self._fits = len(first) * len(columns) <= OUTER_LIMIT
        self._table = (self._matrix[first] * self._matrix[second]).T.to(kind).contiguous() if self._fits else self._matrix
        self._rows = rows

    def add_to(self, normal: Tensor, d: Tensor) -> None:
        """Add the lower triangle to normal, (batch, N, N), in place; d is (batch, columns of the matrix)."""
        if not self._columns.numel():
            return
        d = d[:, self._columns]
        if self._fits:
            most = d.amax(1, keepdim=True)
            triangle = ((d / most).to(self._table.dtype) @ self._table) * most
            normal.view(len(normal), -1).index_add_(1, self._below, triangle)
        else:
            square = (self._matrix[None] * d[:, None, :]) @ self._matrix.T
            normal[:, self._rows[:, None], self._rows[None, :]] += square


def _kind(program: Program) -> torch.dtype:
    """Of the table: directions need not be exact, single precision is twice as fast; coefficients of reals differ too much."""
    return torch.float32 if program.divisor is None else torch.float64


class _Inputs:
    """The inputs of a program: those that are free in their intervals, n of them, and m coupled pairs with their corners."""

    def __init__(self, program: Program) -> None:
        count, device = program.input_matrix.shape[1], program.input_matrix.device
        empty = torch.zeros(0, 2, dtype=torch.long, device=device)
        self._pairs = empty if program.coupled is None else program.coupled
        free = torch.ones(count, dtype=torch.bool, device=device)
        free[self._pairs.reshape(-1)] = False
        self._free, self._count = torch.nonzero(free)[:, 0], count
        self.low, self.high = program.input_low[free], program.input_high[free]
        self.matrix = program.input_matrix[:, free]
        self.gram = _Gram(self.matrix, _kind(program))
        self._first, self._second = (program.input_matrix[:, column] for column in self._pairs.T)
        none = torch.zeros(0, 8, 2, dtype=torch.float64, device=device)
        self.corners = none if program.coupled_corners is None else program.coupled_corners

    def pair_cost(self, total: Tensor) -> Tensor:
        """Reduced cost of every corner of the pairs, (batch, m, 8), for multipliers of the equations (batch, N)."""
        first, second = (total @ self._first)[..., None], (total @ self._second)[..., None]
        return first * self.corners[..., 0] + second * self.corners[..., 1]

    def flow(self, weights: Tensor) -> Tensor:
        """What weighted corners, (batch, m, 8), add to the accumulators, (batch, N)."""
        mean = torch.einsum("bmk,mkc->cbm", weights, self.corners)
        return mean[0] @ self._first.T + mean[1] @ self._second.T

    def add_to(self, normal: Tensor, d: Tensor, centre: Tensor) -> None:
        """Add the pairs' part of the normal matrices, (batch, N, N), in place."""
        if not len(self._pairs):
            return
        off = self.corners - centre[:, :, None, :]
        aa, ab, bb = (torch.einsum("bmk,bmk,bmk->bm", d, off[..., i], off[..., j]) for i, j in ((0, 0), (0, 1), (1, 1)))
        for row in range(len(normal)):
            mixed = self._first * ab[row]
            normal[row] += (self._first * aa[row] + self._second * ab[row]) @ self._first.T
            normal[row] += (mixed + self._second * bb[row]) @ self._second.T

    def all(self, x: Tensor, weights: Tensor) -> Tensor:
        """Every input, (batch, inputs)."""
        result = x.new_empty(len(x), self._count)
        result[:, self._free] = x
        for side in (0, 1):
            result[:, self._pairs[:, side]] = (weights * self.corners[..., side]).sum(-1)
        return result


def _slacks(cost: Tensor) -> Tensor:
    """Positive slacks for the costs of corners, (batch, count, 8)."""
    shift = (cost.amax(-1) - cost.amin(-1)).mean(-1, keepdim=True).nan_to_num() * 0.3 + 1e-6
    return cost - (cost.amin(-1) - shift)[..., None]


class _Iterate:
    """The primal-dual point of a batch of domains.

    Primal: x, w, v. Dual: λ, with slacks p, q of the input bounds, s of w and t of v.
    """

    def __init__(self, program: Program, domains: Domains, inputs: _Inputs, values: _Gram) -> None:
        self.program, self.domains, self.inputs, self.value_gram = program, domains, inputs, values
        self.z, self.y = corners(program, domains.low, domains.high)
        if not bool(program.unevenness.any()):
            self.z, self.y = self.z[..., list(HULL)], self.y[..., list(HULL)]
        batch, units, corner_count = self.z.shape
        self.multipliers = first_multipliers(program, domains)
        self.linked = bool(program.unit_matrix.any())
        self.x = ((inputs.low + inputs.high) / 2).expand(batch, -1).clone()
        self.w = torch.full((batch, units, corner_count), 1 / corner_count, dtype=torch.float64, device=self.z.device)
        self.v = torch.full((batch, *inputs.corners.shape[:2]), 1 / corner_count, dtype=torch.float64, device=self.z.device)
        costs, cost, pair_cost = self._costs()
        shift = costs.abs().mean(-1, keepdim=True).nan_to_num() * 0.3 + 1e-6
        self.p = costs.clamp(min=0) + shift
        self.q = (-costs).clamp(min=0) + shift
        self.s, self.t = _slacks(cost), _slacks(pair_cost)

    def _costs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Reduced costs of the free inputs, (batch, n), and of every corner, (batch, N, 8) and (batch, m, 8)."""
        total = self.domains.objective + self.multipliers
        slope = total @ self.program.unit_matrix
        cost = slope[..., None] * self.y - self.multipliers[..., None] * self.z
        return total @ self.inputs.matrix, cost, self.inputs.pair_cost(total)

    def all_inputs(self) -> Tensor:
        """Every input of the program, (batch, n)."""
        return self.inputs.all(self.x, self.v)

    def pick(self, keep: Tensor) -> None:
        """Drop the domains that are done."""
        self.domains = self.domains.pick(keep)
        for name in ("z", "y", "multipliers", "x", "w", "v", "p", "q", "s", "t"):
            setattr(self, name, getattr(self, name)[keep])

    def gap(self) -> Tensor:
        """The duality gap of a primal feasible point; an estimate before."""
        below, above = self.x - self.inputs.low, self.inputs.high - self.x
        return (below * self.p + above * self.q).sum(-1) + (self.w * self.s).sum((-1, -2)) + (self.v * self.t).sum((-1, -2))

    def advance(self) -> None:
        """One predictor-corrector step."""
        program = self.program
        inputs, units, pairs = self.inputs.matrix, program.unit_matrix, self.inputs
        below, above = self.x - pairs.low, pairs.high - self.x
        count = 2 * self.x.shape[1] + self.w[0].numel() + self.v[0].numel()
        gap = self.gap()
        mean_y, mean_z = (self.w * self.y).sum(-1), (self.w * self.z).sum(-1)
        residual = program.constant + self.x @ inputs.T + mean_y @ units.T - mean_z + pairs.flow(self.v)
        missing, pairs_missing = 1 - self.w.sum(-1), 1 - self.v.sum(-1)
        freedom = 1 / (self.p / below + self.q / above)
        d = self.w / self.s
        total = d.sum(-1)
        centre_y, centre_z = (d * self.y).sum(-1) / total, (d * self.z).sum(-1) / total
        off_y, off_z = self.y - centre_y[..., None], self.z - centre_z[..., None]
        d_off_y = d * off_y
        yy, yz, zz = (d_off_y * off_y).sum(-1), (d_off_y * off_z).sum(-1), (d * off_z * off_z).sum(-1)
        normal = torch.zeros(len(gap), len(units), len(units), dtype=gap.dtype, device=gap.device)
        self.inputs.gram.add_to(normal, freedom)
        self.value_gram.add_to(normal, yy)
        pair_d = self.v / self.t
        pair_total = pair_d.sum(-1)
        pair_centre = torch.einsum("bmk,mkc->bmc", pair_d, pairs.corners) / pair_total[..., None]
        pairs.add_to(normal, pair_d, pair_centre)
        if self.linked:
            normal -= units * yz[:, None, :]  # below the diagonal, which is all that is factorised
        torch.diagonal(normal, dim1=1, dim2=2).add_(zz)
        scale = torch.diagonal(normal, dim1=1, dim2=2).clamp(min=1e-12).rsqrt()
        normal.mul_(scale[:, :, None]).mul_(scale[:, None, :])
        torch.diagonal(normal, dim1=1, dim2=2).add_(REGULARIZATION)
        factor = torch.linalg.cholesky_ex(normal)[0]

        def solve(
            for_p: Tensor | float, for_q: Tensor | float, for_w: Tensor | float, for_v: Tensor | float
        ) -> tuple[Tensor, ...]:
            push = for_p / below - for_q / above - self.p + self.q
            e = for_w / self.s - self.w
            lack = (missing - e.sum(-1)) / total
            flow_y, flow_z = (self.y * e).sum(-1) + centre_y * lack * total, (self.z * e).sum(-1) + centre_z * lack * total
            pair_e = for_v / self.t - self.v
            pair_lack = (pairs_missing - pair_e.sum(-1)) / pair_total
            pair_flow = pairs.flow(pair_e + pair_d * pair_lack[..., None])
            right = residual + (freedom * push) @ inputs.T + flow_y @ units.T - flow_z + pair_flow
            change = scale * torch.cholesky_solve((scale * right)[..., None], factor)[..., 0]
            slope = change @ units
            drift = slope[..., None] * self.y - change[..., None] * self.z
            level = lack + (d * drift).sum(-1) / total
            dx = freedom * (push - change @ inputs)
            dp, dq = (for_p - self.p * dx) / below - self.p, (for_q + self.q * dx) / above - self.q
            ds = drift - level[..., None]
            pair_drift = pairs.pair_cost(change)
            pair_level = pair_lack + (pair_d * pair_drift).sum(-1) / pair_total
            dt = pair_drift - pair_level[..., None]
            return change, dx, dp, dq, ds, e - d * ds, dt, pair_e - pair_d * dt

        def steps(dx: Tensor, dp: Tensor, dq: Tensor, ds: Tensor, dw: Tensor, dt: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
            primal = [dx / below, -dx / above, (dw / self.w).flatten(1), (dv / self.v).flatten(1)]
            dual = [dp / self.p, dq / self.q, (ds / self.s).flatten(1), (dt / self.t).flatten(1)]
            return _longest(torch.cat(primal, dim=1).amin(-1)), _longest(torch.cat(dual, dim=1).amin(-1))

        _, dx, dp, dq, ds, dw, dt, dv = solve(0.0, 0.0, 0.0, 0.0)
        primal, dual = (step.clamp(max=1)[:, None] for step in steps(dx, dp, dq, ds, dw, dt, dv))
        after = ((below + primal * dx) * (self.p + dual * dp) + (above - primal * dx) * (self.q + dual * dq)).sum(-1)
        after = after + ((self.w + primal[..., None] * dw) * (self.s + dual[..., None] * ds)).sum((-1, -2))
        after = after + ((self.v + primal[..., None] * dv) * (self.t + dual[..., None] * dt)).sum((-1, -2))
        aim = ((after / gap).clamp(0, 1) ** 3 * gap / count)[:, None]
        corrected = (aim - dx * dp, aim + dx * dq, aim[..., None] - dw * ds, aim[..., None] - dv * dt)
        change, dx, dp, dq, ds, dw, dt, dv = solve(*corrected)
        primal, dual = ((STEP_FRACTION * step).clamp(max=1)[:, None] for step in steps(dx, dp, dq, ds, dw, dt, dv))
        self.x, self.w, self.v = self.x + primal * dx, self.w + primal[..., None] * dw, self.v + primal[..., None] * dv
        self.multipliers = self.multipliers + dual * change
        self.p, self.q, self.s = self.p + dual * dp, self.q + dual * dq, self.s + dual[..., None] * ds
        self.t = self.t + dual[..., None] * dt


class InteriorPoint:
    """Searches multipliers for one program; keeps what depends on the program only. Stops early once ``late()``."""

    def __init__(self, program: Program, late: Callable[[], bool] = lambda: False) -> None:
        self._late = late
        self._program = program
        self._inputs, self._values = _Inputs(program), _Gram(program.unit_matrix, _kind(program))

    def relax(self, domains: Domains, iterations: int = ITERATIONS, accuracy: float = ACCURACY) -> Relaxation:
        """Search for the best multipliers of a batch of domains, as many at a time as the memory allows.

        A domain leaves the batch as soon as its bound passes the limit, or can't be expected to any more.

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
        iterate = _Iterate(program, domains, self._inputs, self._values)
        batch = len(domains)
        best = value(program, domains, iterate.z, iterate.y, iterate.multipliers)
        result = Relaxation(iterate.multipliers.clone(), best, iterate.all_inputs(), *_means(iterate))
        alive = torch.arange(batch, device=best.device)
        for _ in range(self._steps(iterations)):
            if self._late():
                break
            iterate.advance()
            bound = value(program, iterate.domains, iterate.z, iterate.y, iterate.multipliers)
            finite = torch.isfinite(bound) & torch.isfinite(iterate.gap())
            # runaway multipliers (degenerate or empty domains) round to noise; the proof could not hold them either
            sane = magnitude(program, iterate.domains, iterate.multipliers) < EXACT / 64
            improved = finite & sane & (bound > result.bound[alive])
            where = alive[improved]
            result.multipliers[where] = iterate.multipliers[improved]
            result.bound[where] = bound[improved]
            where = alive[finite]
            result.inputs[where] = iterate.all_inputs()[finite]
            mean_z, mean_y = _means(iterate)
            result.z[where], result.y[where] = mean_z[finite], mean_y[finite]
            lack = iterate.domains.limit - result.bound[alive]
            gap = iterate.gap()
            active = finite & (lack > -1) & (gap > 1e-3) & (gap > accuracy * lack)
            if not bool(active.any()):
                break
            if not bool(active.all()):
                alive = alive[active]
                iterate.pick(active)
        return result


def _means(iterate: _Iterate) -> tuple[Tensor, Tensor]:
    return (iterate.w * iterate.z).sum(-1), (iterate.w * iterate.y).sum(-1)
