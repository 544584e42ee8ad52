"""One of two networks on its way into a common program: its values so far, and what its activations do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qertify.bounds.forms import Bounds, Forms, Value
from qertify.bounds.ladder import Ladder
from qertify.network.network import Network
from qertify.network.nodes import Input, Staircase
from qertify.network.ranges import RULES, Range
from qertify.network.real import RealInput, RealNetwork
from qertify.network.tensor import BoolArray, FloatArray, IntegerArray


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two activations that do the same thing.

    Attributes:
        left: name of a `Relu` of a real network, or of a `Staircase`. right: name of a `Staircase`.
        accumulator_scale: ŝ, flattened: left accumulator ≈ ŝ · right accumulator + constant.
        value_scale: s: left value ≈ s · right value + constant.
    """

    left: str
    right: str
    accumulator_scale: FloatArray
    value_scale: float


class RealSide:
    """A real network on its way into forms."""

    def __init__(self, network: RealNetwork, forms: Forms, value: Value) -> None:
        self._network, self._forms, self._values = network, forms, {network.input.name: value}
        self._pending = [node for node in network.nodes if not isinstance(node, RealInput)]

    def accumulator(self, name: str) -> Value:
        """What the activation ``name`` reads, once everything before it is compiled."""
        self.advance(name)
        return self._values[self._network.by_name[name].inputs[0]]

    def advance(self, until: str | None = None) -> None:
        while self._pending and self._pending[0].name != until:
            node = self._pending.pop(0)
            inputs = [self._values[name] for name in node.inputs]
            self._values[node.name] = self._forms.real(node, inputs, self._network.shapes[node.name])

    def activate(self, name: str, low: FloatArray, high: FloatArray) -> Value:
        """Compile the activation ``name``, whose accumulator lies in low … high, flat."""
        self._pending.pop(0)
        self._values[name] = self._forms.rectified(name, self._values[self._network.by_name[name].inputs[0]], low, high)
        return self._values[name]

    def varies(self, _name: str, _low: FloatArray, high: FloatArray) -> BoolArray:
        """Which elements of the activation are not constant."""
        return high > 0

    def unsettled(self, _name: str, low: FloatArray, high: FloatArray) -> BoolArray:
        """Which elements' ranges are worth tightening."""
        return (low < 0) & (high > 0)

    kinked = unsettled

    def output(self) -> Value:
        self.advance()
        return self._values[self._network.output.name]


class QuantizedSide:
    """A quantized network on its way into forms; its accumulators and values are integers.

    Args:
        side: tells its nodes from those of another network.
    """

    def __init__(self, network: Network, forms: Forms, side: str, value: Value, low: IntegerArray, high: IntegerArray) -> None:
        self._network, self._forms, self._side, self._values = network, forms, side, {network.input.name: value}
        self._known: dict[str, Range] = {network.input.name: (low[None], high[None])}
        self._pending = [node for node in network.nodes if not isinstance(node, Input)]

    def accumulator(self, name: str) -> Value:
        self.advance(name)
        return self._values[self._network.by_name[name].inputs[0]]

    def advance(self, until: str | None = None) -> None:
        while self._pending and self._pending[0].name != until:
            self._compile()

    def _compile(self) -> Value:
        node = self._pending.pop(0)
        self._known[node.name] = RULES[type(node)](node, [self._known[name] for name in node.inputs])
        self._values[node.name] = self._forms.integer(self._network, node, self._values, self._known, self._side)
        return self._values[node.name]

    def range(self, name: str) -> Bounds:
        """What interval arithmetic knows of the accumulator of the activation ``name``."""
        low, high = self._known[self._network.by_name[name].inputs[0]]
        return low.reshape(-1).astype(np.float64), high.reshape(-1).astype(np.float64)

    def activate(self, name: str, low: FloatArray, high: FloatArray) -> Value:
        source = self._network.by_name[name].inputs[0]
        shape = (1, *self._network.shapes[source])
        self._known[source] = (low.astype(np.int64).reshape(shape), high.astype(np.int64).reshape(shape))
        return self._compile()

    def staircase(self, name: str) -> Staircase:
        node = self._network.by_name[name]
        assert isinstance(node, Staircase)
        return node

    def ladder(self, name: str) -> Ladder:
        """The levels of an activation."""
        node = self.staircase(name)
        row = np.broadcast_to(node.row, self._network.shapes[name]).reshape(-1)
        least = np.full(node.steps.rows, float(node.steps.low))
        return Ladder(node.steps.thresholds.astype(np.float64), least, row.astype(np.int64))

    def varies(self, name: str, low: FloatArray, high: FloatArray) -> BoolArray:
        ladder = self.ladder(name)
        return ladder.level(low) < ladder.level(high)

    unsettled = varies

    def kinked(self, name: str, low: FloatArray, high: FloatArray) -> BoolArray:
        """Which elements vary and can be at an end of their staircase."""
        ladder, steps = self.ladder(name), self.staircase(name).steps
        least, greatest = ladder.level(low), ladder.level(high)
        return (least < greatest) & ((least == steps.low) | (greatest == steps.high))

    def bends(self, name: str, low: FloatArray, _high: FloatArray) -> BoolArray:
        """Which elements of an activation that varies can also be at their least level, as below a rectifier's kink."""
        return self.ladder(name).level(low) == self.staircase(name).steps.low

    def value_range(self, name: str, low: FloatArray, high: FloatArray, up: float) -> Bounds:
        low, high = np.ceil(low / up), np.floor(high / up)
        ladder = self.ladder(name)
        return ladder.level(low) * up, ladder.level(high) * up

    def output(self) -> Value:
        self.advance()
        return self._values[self._network.output.name]
