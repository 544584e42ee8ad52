"""Inputs on which rounding errors line up: linear programs over the inputs that keep accumulators just at their steps.

What a quantized network does besides its real counterpart is a sum of many rounding errors, and gradients see none of
them. But as long as no accumulator of the first staircases crosses a threshold (the inputs then form a *cell*), their
values are constants and everything before them is linear; the best point of a cell is a vertex of a linear program, and a
vertex that lies at the far end of a step says which cell is better. That is repeated until no cell next to it is, and the
vertex is rounded to integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qertify.attack.annealing import anneal
from qertify.attack.gradient import STEEPEST, forward
from qertify.attack.lattice import smooth_values
from qertify.attack.patterns import pattern_program
from qertify.bounds.program import Program
from qertify.network.tensor import FloatArray

SIZE_LIMIT = 1 << 22
"""Most inputs times first staircases, for the matrix of a linear program."""
CLIMBS = 8
"""Most linear programs from one start."""
AHEAD = 0.3
"""A vertex this close to the far end of a step, as a part of the step, tries the next one."""
STRICT = 0.02
"""An accumulator that is outside its cell by this part of a step costs as much as a whole step may bring."""
EDGE = 1e-6
"""Distance from a threshold, in steps, that keeps rounding errors of a linear program from crossing it."""
KEPT = 0.4
"""Distance from a threshold that is left for rounding the inputs, in its expected effects."""
ROUNDINGS = 64
"""Roundings of one vertex that are tried."""
REPAIRED, REPAIRS = 8, 40
"""How many of them are repaired, and by how many changes at most."""
ENTRIES = 1 << 17
"""Most inputs times first staircases that are looked at for one change."""
FIRST_CHANGES, LEAST_CHANGES = 20, 4
"""How many steps may change at once: at first, and at least."""
NEAR = 1.5
"""How far away, in steps, a step may be that is tried next."""
KICKED = 8
"""How many change at random where annealing finds nothing better."""
CHAINS, MOVES = 24, 60
"""Of the annealing that chooses them."""
SECONDS = 5.0
"""Most time for one linear program."""


class Rows(Protocol):
    """minimise cost·x + penalty·(how far matrix·x is outside low … high) over a box."""

    def solve(
        self, cost: FloatArray, penalty: FloatArray, low: FloatArray, high: FloatArray, seconds: float
    ) -> tuple[FloatArray, FloatArray] | None:
        """The point, and what each row costs that has to be greater by one; or None."""
        ...


RowsOf = Callable[[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray], Rows]
"""The solver for a matrix (rows, n), a box, (n,) each, and cuts·x ≤ limits, (cuts, n) and (cuts,)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Vertex:
    """The best point of a cell.

    Attributes:
        x: (n,), real numbers. reached: the objective there.
        low, high: the ends of the cell. weight: how much a step of each row matters. price: of the rows; (rows,) each.
        cost: of the inputs, (n,).
    """

    x: Tensor
    reached: float
    low: Tensor
    high: Tensor
    weight: Tensor
    price: Tensor
    cost: Tensor


class Aligner:
    """Aligns the steps of one program.

    Args:
        program: with dense matrices; others are not supported, see `supports`.
        rows: makes the solver.
        generator: of random roundings and moves.
    """

    def __init__(self, program: Program, rows: RowsOf, generator: torch.Generator) -> None:
        self._program, self._generator = program, generator
        self._stairs, self._first = _staircases(program), _first_staircases(program)
        self._matrix = program.input_matrix[self._first]
        self._constant = program.constant[self._first]
        self._step = program.spacing[self._first].clamp(min=1)
        cuts, limits = _cuts(program)
        box = program.input_low.numpy(), program.input_high.numpy()
        self._rows = rows(self._matrix.numpy(), *box, cuts.numpy(), limits.numpy())

    @staticmethod
    def supports(program: Program) -> bool:
        """Whether there are steps to align, in a program of moderate size."""
        if program.operators is not None or program.input_low.device.type != "cpu":
            return False
        return 0 < len(_first_staircases(program)) * len(program.input_low) <= SIZE_LIMIT

    def starts(
        self, x: Tensor, objective: Tensor, steps: int, late: Callable[[], bool] = lambda: False
    ) -> tuple[Tensor, Tensor]:
        """Signed gradients on lines through the steps, all moved in the favourable direction by half a step.

        Args:
            x: (batch, n) inside the box. objective: (batch, N), to be minimised as objective·z.
            late: asked at every step.

        Returns:
            the best points, (batch, n), and what the objective would be if all steps could be aligned, (batch,).
        """
        program = self._program
        width, shift = program.input_high - program.input_low, torch.zeros(len(x), len(program.units), dtype=x.dtype)
        y = torch.zeros_like(shift)

        def lines(first: int, last: int, z: Tensor) -> Tensor:
            y[:, first:last] = smooth_values(program, first, last, z + shift[:, first:last])
            return y[:, first:last]

        best_x, best = x, torch.full((len(x),), torch.inf, dtype=x.dtype)
        for step in range(steps):
            if step and late():
                break
            z = program.forward(x, lines)
            reached = (objective * z).sum(-1)
            better = reached < best
            best_x, best = torch.where(better[:, None], x, best_x), torch.where(better, reached, best)
            value, total = self._weights(y, objective)
            shift = torch.where(self._stairs, -value.sign() * program.spacing / 2, 0.0)
            moved = torch.rand(x.shape, generator=self._generator) < 0.5
            stride = width / 2 * (1 - step / steps)
            x = program.inside_box(x - stride * moved * (total @ program.input_matrix).sign())
        return best_x, best

    def climb(self, x: Tensor, objective: Tensor, late: Callable[[], bool] = lambda: False, variations: int = 0) -> Tensor:
        """From cell to better cell.

        Args:
            x: (n,), real numbers or integers in the box. objective: (N,). late: asked at every linear program.
            variations: how often cells further away are tried, which differ at several steps.

        Returns:
            integer points inside the box, (k, n), the best one first; none if there is no time for one.
        """
        best: _Vertex | None = None
        for _ in range(CLIMBS):
            found = None if late() else self._vertex(x, objective)
            if found is None or (best is not None and found.reached >= best.reached - abs(best.reached) * 1e-9):
                break
            best, x = found, found.x
        if best is None:
            return x.new_zeros(0, len(x))
        points = self._rounded(best)
        if variations:
            points = torch.cat([points, self._rounded(self._vary(best, objective, late, variations))])
        points = self._program.inside_box(points)
        return points[(forward(self._program, points)[0] @ objective).argsort()]

    def _vary(self, vertex: _Vertex, objective: Tensor, late: Callable[[], bool], variations: int) -> _Vertex:
        """The best vertex of a walk from cell to better cell, which goes on from a worse one next to the best where it ends."""
        most = len(self._first)
        best, here, many = vertex, vertex, min(FIRST_CHANGES, most)
        for _ in range(variations):
            if late():
                break
            found = self._varied(here, objective, many)
            if found is not None and found.reached < here.reached:
                here, many = found, min(many + 3, most)
                best = here if here.reached < best.reached else best
            elif many > LEAST_CHANGES:
                many //= 2
            else:
                here, many = self._kicked(best, objective) or best, min(FIRST_CHANGES, most)
        return best

    def _kicked(self, vertex: _Vertex, objective: Tensor) -> _Vertex | None:
        """The best point of a cell in which a few steps are others, at random."""
        z, y = (item[0] for item in forward(self._program, vertex.x[None]))
        below, above = self._next_to(z, y)
        chosen = torch.rand(len(self._first), generator=self._generator).argsort()[:KICKED]
        up = torch.rand(len(chosen), generator=self._generator) < above[chosen] / (above + below)[chosen].clamp(min=1)
        values = y[self._first].clone()
        values[chosen] += torch.where(up, above[chosen], -below[chosen])
        return self._vertex(vertex.x, objective, values)

    def _varied(self, vertex: _Vertex, objective: Tensor, many: int) -> _Vertex | None:
        """The best point of a cell in which some of the steps, ``many`` at most, are the next ones.

        Which ones is found by annealing: what the values do in later units is computed, what they cost in the linear program
        is taken from its prices.
        """
        program, first = self._program, self._first
        z, y = (item[0] for item in forward(program, vertex.x[None]))
        code, chosen = y[first], torch.rand(len(first), generator=self._generator).argsort()[:many]
        below, above = self._next_to(z, y)
        low, high = code.clone(), code.clone()
        low[chosen] -= below[chosen]
        high[chosen] += above[chosen]
        inner, kept = pattern_program(program, first, z, y, vertex.price * self._step, low, high)
        goal = torch.cat([objective[kept], torch.ones(1, dtype=objective.dtype)])
        ends = anneal(inner, code.repeat(CHAINS, 1), goal.repeat(CHAINS, 1), MOVES, self._generator)
        best = ends[(forward(inner, ends)[0] @ goal).argmin()]
        return None if torch.equal(best, code) else self._vertex(vertex.x, objective, best)

    def _next_to(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where the step before and the one after are within reach, 1 or 0, (rows,) each, from accumulators and values (N,).

        A rectifier's flat part is no step: its far end may be anywhere, and prices are those of small changes.
        """
        first, reach = self._first, NEAR * self._step
        down, up = self._program.threshold(y[None])[0, first], self._program.threshold(y[None] + 1)[0, first]
        return (z[first] - down < reach).to(z.dtype), (up - z[first] < reach).to(z.dtype)

    def _weights(self, y: Tensor, objective: Tensor) -> tuple[Tensor, Tensor]:
        """What values and accumulators weigh in the objective, (batch, N) each, to first order, steps being lines."""
        program = self._program
        slope = program.inside(y) / program.spacing.clamp(min=STEEPEST) * program.has_value
        value = torch.zeros_like(slope)

        def fill(first: int, last: int, weight: Tensor) -> Tensor:
            value[:, first:last] = weight
            return weight * slope[:, first:last]

        program.backward(objective, fill)
        return value, objective + value * slope

    def _vertex(self, x: Tensor, objective: Tensor, values: Tensor | None = None) -> _Vertex | None:
        """The best point of a cell: that with the given values of the rows, (rows,), or the one at or next to a point, (n,)."""
        program, first = self._program, self._first
        z, y = forward(program, x[None])
        value, total = self._weights(y, objective[None])
        weight = value[0, first]
        up = weight < 0
        if values is None:
            ahead = z.clone()
            ahead[0, first] += torch.where(up, AHEAD, -AHEAD) * self._step
            code = program.values(ahead)
        else:
            code = y.clone()
            code[0, first] = values
        low, high = program.threshold(code)[0, first], program.threshold(code + 1)[0, first] - 1
        fractions = 1 + torch.count_nonzero(program.input_low < program.input_high).clamp(max=len(first))
        noise = KEPT * (self._matrix.square().mean(1) * fractions / 12).sqrt()
        edge, kept = (
            torch.minimum(part, (high - low) / 4).clamp(min=0) for part in (EDGE * self._step, noise + EDGE * self._step)
        )
        inner_low, inner_high = torch.where(up, low + kept, low + edge), torch.where(up, high - edge, high - kept)
        linear = total[0].clone()
        linear[first] = 0
        cost = linear @ program.input_matrix
        size = weight.abs() + weight.abs().amax() * 1e-3
        found = self._rows.solve(
            cost.numpy(),
            (size / (STRICT * self._step)).numpy(),
            (inner_low - self._constant).numpy(),
            (inner_high - self._constant).numpy(),
            SECONDS,
        )
        if found is None:
            return None
        point, price = (torch.from_numpy(item) for item in found)
        point = torch.minimum(torch.maximum(point, program.input_low), program.input_high)
        return _Vertex(point, float(forward(program, point[None])[0][0] @ objective), low, high, size, price, cost)

    def _rounded(self, vertex: _Vertex) -> Tensor:
        """Roundings of a vertex to integers that stay in its cell where they can: one input after the other, in any order."""
        x, low, high = vertex.x, vertex.low, vertex.high
        below = (x + 1e-6).floor()
        part = x - below
        open_ = torch.nonzero(part > 1e-6)[:, 0]
        points = below.repeat(ROUNDINGS, 1)
        z = (self._constant + self._matrix @ x).repeat(ROUNDINGS, 1)
        order = torch.rand(ROUNDINGS, len(open_), generator=self._generator).argsort(1)
        scale, rows = vertex.weight / vertex.weight.amax() / self._step, torch.arange(ROUNDINGS)

        def outside(z: Tensor) -> Tensor:
            return (scale * ((low - z).clamp(min=0) + (z - high).clamp(min=0))).square().sum(-1)

        for position in range(len(open_)):
            index = open_[order[:, position]]
            column, rest = self._matrix.T[index], part[index][:, None]
            down, up = z - rest * column, z + (1 - rest) * column
            upwards = outside(up) < outside(down)
            z = torch.where(upwards[:, None], up, down)
            points[rows, index] += upwards
        best = outside(z).argsort()[:REPAIRED]
        return torch.cat([self._repaired(vertex, points[best], z[best]), points])

    def _repaired(self, vertex: _Vertex, points: Tensor, z: Tensor) -> Tensor:
        """Integer points, (count, n), with accumulators (count, rows), moved into the cell by changes of single inputs by one.

        What is minimised is the objective of the linear program. Of many inputs only some are tried, at random.
        """
        program = self._program
        penalty = vertex.weight / (STRICT * self._step)
        effect, low, high = penalty[:, None] * self._matrix, penalty * vertex.low, penalty * vertex.high
        largest, most = effect.abs().amax(1), max(1, ENTRIES // len(penalty))
        points = points.clone()
        for x, at in zip(points, penalty * z, strict=True):  # one at a time: what that takes stays in the processor's cache
            for _ in range(REPAIRS):
                tried = slice(None)
                if len(x) > most:
                    tried = torch.rand(len(x), generator=self._generator).argsort()[:most]
                near = torch.nonzero((at - low < largest) | (high - at < largest))[:, 0]  # others stay inside whatever moves
                here, ends = at[near, None], (low[near, None], high[near, None])
                before = (here - here.clamp(*ends)).abs().sum()
                change, cost = effect[near][:, tried], vertex.cost[tried]
                gains: list[tuple[float, int, int]] = []
                for sign, room in ((1, x[tried] < program.input_high[tried]), (-1, x[tried] > program.input_low[tried])):
                    moved = torch.add(here, change, alpha=sign)
                    after = (moved - moved.clamp(*ends)).abs_().sum(0) + sign * cost
                    least, move = torch.where(room, after, torch.inf).min(0)
                    gains.append((float(before - least), int(move), sign))
                gain, move, sign = max(gains)
                if gain <= 0:
                    break
                index = move if isinstance(tried, slice) else int(tried[move])
                at += sign * effect[:, index]
                x[index] += sign
        return points


def _staircases(program: Program) -> Tensor:
    """Whether a unit is a staircase, (N,)."""
    stairs = program.has_value > 0
    return stairs if program.divisor is None else stairs & (program.divisor == 0)


def _first_staircases(program: Program) -> Tensor:
    """Positions of the staircases that read inputs only."""
    return torch.nonzero(_staircases(program) & (program.unit_matrix == 0).all(1))[:, 0]


def _cuts(program: Program) -> tuple[Tensor, Tensor]:
    """What coupled pairs of inputs satisfy besides the box: cuts·x ≤ limits, one for each of its corners that they miss."""
    count = len(program.input_low)
    if program.coupled is None or program.coupled_corners is None:
        return torch.zeros(0, count, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    pairs, corners = torch.arange(len(program.coupled)), program.coupled_corners
    cuts: list[Tensor] = []
    limits: list[Tensor] = []
    for sign in torch.cartesian_prod(torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0])).double():
        first, second = (corners * sign).unbind(-1)  # the corner of the box is where both are greatest
        last = first == first.amax(1, keepdim=True)
        end, top = torch.where(last, second, -torch.inf).amax(1), second.amax(1)
        before = torch.where(second == top[:, None], first, -torch.inf).amax(1)
        normal = torch.stack([top - end, first.amax(1) - before], dim=1) * sign
        misses = torch.nonzero(normal.abs().amin(1) > 0)[:, 0]
        cut = torch.zeros(len(misses), count, dtype=torch.float64)
        size = normal[misses].abs().amax(1)
        cut[pairs[: len(misses), None], program.coupled[misses]] = normal[misses] / size[:, None]
        cuts.append(cut)
        limits.append((corners[misses] * normal[misses][:, None]).sum(-1).amax(1) / size)
    return torch.cat(cuts), torch.cat(limits)
