"""One of two networks on its way into a common program: its forms so far, and what its activations do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qertify.bounds.builder import Builder, widen
from qertify.bounds.compile import integer_form
from qertify.bounds.fixed_point import RealForm, real_form, rectified
from qertify.network.network import Network
from qertify.network.nodes import Input, Staircase
from qertify.network.ranges import RULES, Range
from qertify.network.real import RealInput, RealNetwork
from qertify.network.tensor import BoolArray, FloatArray, IntegerArray

Bounds = tuple[FloatArray, FloatArray]
"""Least and greatest values, element by element."""


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
    """A real network on its way into a builder."""

    def __init__(self, network: RealNetwork, value: RealForm) -> None:
        self._network, self.forms = network, {network.input.name: value}
        self._todo = [node for node in network.nodes if not isinstance(node, RealInput)]

    def accumulator(self, builder: Builder, name: str) -> RealForm:
        """What the activation ``name`` reads, once everything before it is compiled."""
        self.advance(builder, name)
        return self.forms[self._network.by_name[name].inputs[0]].widened(builder.rows)

    def advance(self, builder: Builder, until: str | None = None) -> None:
        while self._todo and self._todo[0].name != until:
            node = self._todo.pop(0)
            inputs = [self.forms[name] for name in node.inputs]
            self.forms[node.name] = real_form(builder, node, inputs, self._network.shapes[node.name])

    def activate(self, builder: Builder, name: str, low: FloatArray, high: FloatArray) -> RealForm:
        """Compile the activation ``name``, whose accumulator lies in low … high."""
        self._todo.pop(0)
        value = self.forms[self._network.by_name[name].inputs[0]].widened(builder.rows)
        self.forms[name] = rectified(builder, name, value, low, high)
        return self.forms[name]

    def varies(self, _name: str, _low: FloatArray, high: FloatArray) -> BoolArray:
        """Which elements of the activation are not constant."""
        return high > 0

    def unsettled(self, _name: str, low: FloatArray, high: FloatArray) -> BoolArray:
        """Which elements' ranges are worth tightening."""
        return (low < 0) & (high > 0)

    def value_range(self, _name: str, low: FloatArray, high: FloatArray, _up: float) -> Bounds:
        """Range of the activation's value where its accumulator times ``up`` lies in low … high; times ``up``, too."""
        return np.maximum(low, 0), np.maximum(high, 0)

    def output(self, builder: Builder) -> RealForm:
        return self.forms[self._network.output.name].widened(builder.rows)


class QuantizedSide:
    """A quantized network on its way into a builder; its accumulators and values are integers."""

    def __init__(self, network: Network, form: FloatArray, low: IntegerArray, high: IntegerArray) -> None:
        self.network, self.forms = network, {network.input.name: form}
        self.known: dict[str, Range] = {network.input.name: (low[None], high[None])}
        self._todo = [node for node in network.nodes if not isinstance(node, Input)]

    def accumulator(self, builder: Builder, name: str) -> RealForm:
        self.advance(builder, name)
        form = widen(self.forms[self.network.by_name[name].inputs[0]], builder.rows)
        return RealForm(form, np.zeros(form.shape[1:]), 0)

    def advance(self, builder: Builder, until: str | None = None) -> None:
        while self._todo and self._todo[0].name != until:
            self._compile(builder)

    def _compile(self, builder: Builder) -> None:
        node = self._todo.pop(0)
        given = [self.known[name] for name in node.inputs]
        inputs = [widen(self.forms[name], builder.rows) for name in node.inputs]
        self.forms[node.name] = integer_form(builder, node, inputs, given, self.network.shapes[node.name])
        self.known[node.name] = RULES[type(node)](node, given)

    def range(self, name: str) -> tuple[FloatArray, FloatArray]:
        """What interval arithmetic knows of the accumulator of the activation ``name``."""
        low, high = self.known[self.network.by_name[name].inputs[0]]
        return low.reshape(-1).astype(np.float64), high.reshape(-1).astype(np.float64)

    def activate(self, builder: Builder, name: str, low: FloatArray, high: FloatArray) -> RealForm:
        source = self.network.by_name[name].inputs[0]
        self.known[source] = (low.astype(np.int64)[None], high.astype(np.int64)[None])
        self._compile(builder)
        form = self.forms[name]
        return RealForm(form, np.zeros(form.shape[1:]), 0)

    def steps(self, name: str) -> tuple[Staircase, IntegerArray]:
        node = self.network.by_name[name]
        assert isinstance(node, Staircase)
        return node, np.broadcast_to(node.row, self.network.shapes[name]).reshape(-1)

    def varies(self, name: str, low: FloatArray, high: FloatArray) -> BoolArray:
        return step_values(*self.steps(name), low) < step_values(*self.steps(name), high)

    unsettled = varies

    def value_range(self, name: str, low: FloatArray, high: FloatArray, up: float) -> Bounds:
        low, high = np.ceil(low / up), np.floor(high / up)
        return step_values(*self.steps(name), low) * up, step_values(*self.steps(name), high) * up

    def output(self, builder: Builder) -> RealForm:
        form = widen(self.forms[self.network.output.name], builder.rows)
        return RealForm(form, np.zeros(form.shape[1:]), 0)


def step_values(node: Staircase, row: IntegerArray, z: FloatArray) -> FloatArray:
    result = np.empty(z.shape)
    for index in range(node.steps.rows):
        mine = row == index
        result[mine] = node.steps.value(index, z[mine].astype(np.int64))
    return result
