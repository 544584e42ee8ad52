"""A network over a box as affine equations between its steps, derived from scratch for checking a proof.

Every element of a staircase that is not constant on the box is a *unit* with an accumulator z and a value y = σ(z); every
accumulator, and every output, is an affine function of the inputs and of the values of earlier units. The coefficients are
found backwards: starting from an accumulator, coefficients are moved through the network, node by node, until only inputs
and units are left. A table or product is replaced by an affine function and an additional input within the range of the
error; max(a, b, …) becomes a + max(b − a, 0) + …, each term a unit.

The order of units is part of the certificate format: staircases and maxima in the network's order; within a staircase its
elements in C order; within a maximum first all second members, then all third ones, …, where the members of each window are
sorted by their greatest value, descending (equal ones by position). The staircase that makes the outputs has no units.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np

from qertify.certificates.backward import RULES, AffineForm, Coefficients, Forms, MaximumForm, StepsForm, pull
from qertify.certificates.exact import WIDE, Integers, Matrix, add, narrow, times
from qertify.errors import UnsupportedModelError
from qertify.network.linear import windows
from qertify.network.network import Network
from qertify.network.nodes import (
    Max,
    Node,
    Product,
    Staircase,
    Table,
)
from qertify.network.ranges import ranges
from qertify.network.tensor import IntegerArray

SIZE_LIMIT = 1 << 27
"""Most coefficients of all units together."""
TABLE_LIMIT = 1 << 16
CHUNK = 1 << 22
"""Most coefficients on their way through one node."""


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One step function. ``thresholds`` are those within reach: y = first_value + number of thresholds ≤ z.

    Attributes:
        owner: name of the staircase or maximum; "" for an output.
        accumulator: flat index of z in the input of a staircase; −1 in a maximum; the output's number for an output.
        low, high: interval bounds of z.
        even: the thresholds are evenly spaced.
    """

    owner: str
    accumulator: int
    low: int
    high: int
    thresholds: IntegerArray
    first_value: int
    even: bool


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """N units, the outputs' accumulators last; n inputs that vary. z = input_matrix·x + unit_matrix·y + constant.

    Attributes:
        blocks: (first, last+1) of units that don't read each other, in order.
        low, high: (N,), bounds of z that hold on the whole box.
        hidden: number of units before the outputs.
    """

    units: tuple[Unit, ...]
    blocks: tuple[tuple[int, int], ...]
    hidden: int
    input_low: IntegerArray
    input_high: IntegerArray
    input_matrix: Matrix
    unit_matrix: Matrix
    constant: Integers
    low: IntegerArray
    high: IntegerArray


def require_covered(network: Network) -> None:
    """Refuse what certificates can't speak of.

    Raises:
        UnsupportedModelError: naming the node.
    """
    for node in network.nodes:
        if type(node) not in RULES:
            raise UnsupportedModelError(node.name, type(node).__name__, None, "certificates don't cover such nodes yet")
        if isinstance(node, Staircase) and node.upper is not None:
            raise UnsupportedModelError(node.name, "Staircase", "upper", "certificates don't cover enclosures yet")
    if not network.output_quantization.per_tensor:
        output, reason = network.output, "certificates don't cover classes with different output scales yet"
        raise UnsupportedModelError(output.name, type(output).__name__, "scale", reason)


def build(network: Network, low: IntegerArray, high: IntegerArray, view: str, outputs: IntegerArray) -> System:
    """Derive the equations.

    Args:
        low, high: the box, of the input's shape.
        view: the node whose values are the outputs' accumulators.
        outputs: flat index of each output's accumulator there.

    Raises:
        UnsupportedModelError: a network that is too large, or with numbers that are.
    """
    return _Builder(network, low, high).build(view, outputs)


class _Builder:
    def __init__(self, network: Network, low: IntegerArray, high: IntegerArray) -> None:
        self.network, self.known = network, ranges(network, low[None], high[None])
        self.base, self.varies = low.reshape(-1), np.flatnonzero((low < high).reshape(-1))
        self.forms = Forms(network, self.base, self.varies)
        self.input_ranges = [(low.reshape(-1)[self.varies], high.reshape(-1)[self.varies])]
        self.columns = self.varies.size
        self.units: list[Unit] = []
        self.blocks: list[tuple[int, int]] = []
        self.starts: list[tuple[str, IntegerArray, IntegerArray | None]] = []
        self.earlier: dict[int, list[int]] = {}

    def build(self, view: str, outputs: IntegerArray) -> System:
        for node in self.network.nodes:
            match node:
                case Staircase():
                    if node is not self.network.output:
                        self._staircase(node)
                case Max():
                    self._maximum(node)
                case Table():
                    self._table(node)
                case Product():
                    self._product(node)
                case _:
                    pass
        hidden = len(self.units)
        ends = [bound.reshape(-1)[outputs] for bound in self.known[view]]
        nothing = np.zeros(0, dtype=np.int64)
        self._block(
            view,
            outputs,
            None,
            [
                Unit("", number, int(low), int(high), nothing, 0, True)
                for number, (low, high) in enumerate(zip(*ends, strict=True))
            ],
        )
        count = len(self.units)
        if count * (count + self.columns) > SIZE_LIMIT:
            reason = f"{count} units over {self.columns} inputs are too many for a certificate"
            raise UnsupportedModelError(self.network.output.name, "network", None, reason)
        rows = [self._equations(position) for position in range(len(self.starts))]
        lows, highs = (np.concatenate([pair[side] for pair in self.input_ranges]) for side in (0, 1))
        return System(
            tuple(self.units),
            tuple(self.blocks),
            hidden,
            lows,
            highs,
            Matrix(np.concatenate([row.inputs for row in rows])),
            Matrix(np.concatenate([row.units for row in rows])),
            np.concatenate([row.constant for row in rows]),
            np.array([unit.low for unit in self.units], dtype=np.int64),
            np.array([unit.high for unit in self.units], dtype=np.int64),
        )

    def _range(self, name: str) -> tuple[IntegerArray, IntegerArray]:
        low, high = self.known[name]
        return low.reshape(-1), high.reshape(-1)

    def _block(self, source: str, plus: IntegerArray, minus: IntegerArray | None, units: list[Unit]) -> IntegerArray:
        """Add units whose accumulators are elements of a node, or differences of them; returns their positions."""
        first = len(self.units)
        self.units += units
        if units:
            self.blocks.append((first, len(self.units)))
            self.starts.append((source, plus, minus))
        return np.arange(first, len(self.units))

    def _staircase(self, node: Staircase) -> None:
        low, high = self._range(node.inputs[0])
        row = np.broadcast_to(node.row, self.network.shapes[node.name]).reshape(-1)
        least, greatest = self._range(node.name)
        open_ = np.flatnonzero(least < greatest)
        units: list[Unit] = []
        for element in open_.tolist():
            first, last = int(least[element]), int(greatest[element])
            steps = node.steps.thresholds[row[element], first - node.steps.low : last - node.steps.low]
            units.append(Unit(node.name, element, int(low[element]), int(high[element]), steps, first, _evenly_spaced(steps)))
        positions = self._block(node.inputs[0], open_, None, units)
        self.forms.by_node[node.name] = StepsForm(open_, positions, np.where(least == greatest, least, 0))

    def _maximum(self, node: Max) -> None:
        low, high = self._range(node.inputs[0])
        shape = self.network.shapes[node.inputs[0]]
        members = windows(np.arange(low.size).reshape(1, *shape), node.window, fill=-1)[0]
        members = members.reshape(-1, members.shape[-1] * members.shape[-2])
        order = np.argsort(np.where(members >= 0, -high[members], WIDE), axis=1, kind="stable")
        members = np.take_along_axis(members, order, axis=1)
        base, terms = members[:, 0].copy(), list[tuple[IntegerArray, IntegerArray]]()
        least, greatest = low[base], high[base]
        for member in members[:, 1:].T:
            down, up = low[member] - greatest, high[member] - least
            wins = np.flatnonzero((member >= 0) & (down >= 0))
            open_ = np.flatnonzero((member >= 0) & (down < 0) & (up > 0))
            units = [
                Unit(node.name, -1, int(down[element]), reach, np.arange(1, reach + 1), 0, True)
                for element, reach in zip(open_.tolist(), up[open_].tolist(), strict=True)
            ]
            positions = self._block(node.inputs[0], member[open_], base[open_], units)
            for place, element in enumerate(open_.tolist()):
                self.earlier[int(positions[place])] = [
                    int(unit) for chosen, added in terms for unit in added[chosen == element]
                ]
            terms = [(chosen[keep], added[keep]) for chosen, added in terms for keep in [~np.isin(chosen, wins)]]
            terms.append((open_, positions))
            base[wins] = member[wins]
            least = np.where(member >= 0, np.maximum(least, low[member]), least)
            greatest = np.where(member >= 0, np.maximum(greatest, high[member]), greatest)
        self.forms.by_node[node.name] = MaximumForm(base, terms)

    def _table(self, node: Table) -> None:
        low, high = self._range(node.inputs[0])
        row = np.broadcast_to(node.row, self.network.shapes[node.name]).reshape(-1)
        found: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        lines: list[tuple[int, int, int]] = []
        for key in zip(row.tolist(), low.tolist(), high.tolist(), strict=True):
            if key not in found:
                index, first, last = key
                if last - first > TABLE_LIMIT:
                    raise UnsupportedModelError(node.name, "Table", None, f"its input varies by more than {TABLE_LIMIT}")
                codes = np.arange(first, last + 1)
                values = node.values[index, np.clip(codes - node.first, 0, node.values.shape[1] - 1)]
                slope = round(Fraction(int(values[-1]) - int(values[0]), max(1, last - first)))
                errors = add(values, times(codes, np.array(-slope, dtype=object)))
                found[key] = slope, int(errors.min()), int(errors.max())
            lines.append(found[key])
        slope, least, greatest = np.array(lines, dtype=np.int64).T
        self._affine(node, [slope], np.zeros_like(slope), least, greatest)

    def _product(self, node: Product) -> None:
        middles: list[IntegerArray] = []
        halves: list[tuple[IntegerArray, IntegerArray]] = []
        for name, zero_point in zip(node.inputs, node.zero_points, strict=True):
            low, high = (bound - zero_point for bound in self._range(name))
            middles.append((low + high) // 2)
            halves.append((low - middles[-1], high - middles[-1]))
        corners = np.stack([narrow(times(a, b)) for a in halves[0] for b in halves[1]])
        constant = -narrow(times(middles[0], middles[1]))
        for middle, zero_point in zip(reversed(middles), node.zero_points, strict=True):
            constant = constant - zero_point * middle
        self._affine(node, middles[::-1], constant, corners.min(axis=0), corners.max(axis=0))

    def _affine(
        self, node: Node, slopes: list[IntegerArray], constant: IntegerArray, least: IntegerArray, greatest: IntegerArray
    ) -> None:
        open_ = np.flatnonzero(least < greatest)
        columns = self.columns + np.arange(open_.size)
        self.columns += open_.size
        self.input_ranges.append((least[open_], greatest[open_]))
        self.forms.by_node[node.name] = AffineForm(slopes, constant + np.where(least == greatest, least, 0), open_, columns)

    def _pull(self, source: str, start: Integers) -> Coefficients:
        return pull(self.forms, source, start, self.columns, len(self.units))

    def _equations(self, position: int) -> Coefficients:
        """The equations of one block, several units at a time."""
        (source, plus, minus), (first, last) = self.starts[position], self.blocks[position]
        size = prod(self.network.shapes[source])
        chunk = max(1, CHUNK // max(prod(shape) for shape in self.network.shapes.values()))
        parts: list[Coefficients] = []
        for row in range(0, last - first, chunk):
            start = _one_hot(plus[row : row + chunk], size)
            parts.append(self._pull(source, start if minus is None else start - _one_hot(minus[row : row + chunk], size)))
        joined = Coefficients(
            np.concatenate([part.inputs for part in parts]),
            np.concatenate([part.units for part in parts]),
            np.concatenate([part.constant for part in parts]),
        )
        for row in range(last - first):
            joined.units[row, self.earlier.get(first + row, [])] -= 1
        return joined


def _one_hot(positions: IntegerArray, size: int) -> IntegerArray:
    """(count, size), one 1 a row."""
    result = np.zeros((positions.size, size), dtype=np.int64)
    result[np.arange(positions.size), positions] = 1
    return result


def _evenly_spaced(steps: IntegerArray) -> bool:
    return steps.size < 3 or bool(np.all(np.diff(steps) == steps[1] - steps[0]))
