"""Two networks on one input as one program, coupled where they do the same thing.

The left network is a real one or a quantized one, the right one is quantized. Both are compiled over the same inputs, in
step. Where an activation of the left one corresponds to one of the right one, rows are added for what makes the pair
close: the difference of the values y − s·ŷ, alone and less a part of the difference of the accumulators z − ŝ·ẑ. Which
activations correspond, and with which scales, is a guess from samples (`pairing`); the ranges of the rows are proved
here, for any guess. (Tracking differences of two networks: Paulsen et al., ReluDiff, ICSE 2020; of a network and its
quantization: Zhang et al., QEBVerif, CAV 2023.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qertify.bounds.builder import Builder, widen
from qertify.bounds.compile import integer_form
from qertify.bounds.dual import Domains, prove
from qertify.bounds.fixed_point import EXACT_FORM, RealForm, real_form, rectified
from qertify.bounds.input_relation import InputRelation, input_form
from qertify.bounds.interior_point import InteriorPoint
from qertify.bounds.program import Program
from qertify.network.network import Network
from qertify.network.nodes import Input, Staircase
from qertify.network.ranges import RULES, Range
from qertify.network.real import RealInput, RealNetwork
from qertify.network.tensor import BoolArray, FloatArray, IntegerArray
from qertify.specification.region import IntegerBox

SCALE_BITS = 14
"""Least number of bits of the scale of a quantized value in a row."""
BATCH = 48
"""Paired accumulators whose ranges are tightened together."""
TIGHTEN_ITERATIONS = 5
LINK_PARTS = 16
"""Slopes of rows that link the difference of two values to that of their accumulators are multiples of 1 / this."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """The program of two networks; its inputs are the codes, counted from ``middle``, and then the errors.

    Attributes:
        program: the outputs of interest are rows, labelled 0, 1, ….
        middle: int64, of the input's shape.
        bits: (input, output) fractional bits: of an error, and of a row.
        error_index: int64, flat positions of the inputs that the program's errors belong to, in order.
    """

    program: Program
    middle: IntegerArray
    input_bits: int
    output_bits: int
    error_index: IntegerArray


class _Real:
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


class _Quantized:
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
        return _values(*self.steps(name), low) < _values(*self.steps(name), high)

    unsettled = varies

    def value_range(self, name: str, low: FloatArray, high: FloatArray, up: float) -> Bounds:
        low, high = np.ceil(low / up), np.floor(high / up)
        return _values(*self.steps(name), low) * up, _values(*self.steps(name), high) * up

    def output(self, builder: Builder) -> RealForm:
        form = widen(self.forms[self.network.output.name], builder.rows)
        return RealForm(form, np.zeros(form.shape[1:]), 0)


def _values(node: Staircase, row: IntegerArray, z: FloatArray) -> FloatArray:
    result = np.empty(z.shape)
    for index in range(node.steps.rows):
        mine = row == index
        result[mine] = node.steps.value(index, z[mine].astype(np.int64))
    return result


def compile_difference(
    left: RealNetwork | Network,
    right: Network,
    box: IntegerBox,
    relation: InputRelation | None,
    pairs: Sequence[Pair],
    outputs: Callable[[Builder, RealForm, FloatArray], tuple[Sequence[RealForm], int]],
    optimise: int,
    late: Callable[[], bool] = lambda: False,
) -> Joint:
    """Compile two networks over one box of the right one's codes.

    Args:
        relation: how the left network's input follows; None for a quantized network that reads the same codes.
        pairs: in topological order on both sides.
        outputs: makes the rows of interest from the left output and the right output's form (both one-dimensional),
            as forms of one element, all with the same number of fractional bits, which it returns too.
        optimise: most units for which the ranges of paired accumulators are tightened with optimised multipliers.
        late: asked between steps; the ranges at hand are kept once it is true.

    Raises:
        UnsupportedModelError: networks too large, or with numbers too large.
    """
    builder = Builder()
    middle = (box.low + box.high) // 2
    form = builder.add_inputs(box.low - middle, box.high - middle)
    form[0] += middle
    quantized = _Quantized(right, form, box.low, box.high)
    input_bits, error_index = 0, np.zeros(0, dtype=np.int64)
    if isinstance(left, RealNetwork):
        assert relation is not None
        value, error_index = input_form(builder, relation, form, box)
        input_bits = value.bits
        other = _Real(left, value)
    else:
        other = _Quantized(left, form, box.low, box.high)
    for pair in pairs:
        _couple(builder, other, quantized, pair, optimise, late)
    other.advance(builder)
    quantized.advance(builder)
    rows, bits = outputs(builder, other.output(builder).flat(), quantized.output(builder).flat().form)
    merged = RealForm(np.stack([row.form for row in rows], axis=1), np.array([row.slack for row in rows]), bits)
    low, high = merged.range(builder)
    builder.add_rows(range(len(rows)), merged.form, low.astype(np.int64), high.astype(np.int64), merged.slack)
    return Joint(builder.finish(), middle, input_bits, bits, error_index)


def scaled_difference(left: RealForm, right: FloatArray, scale: FloatArray) -> tuple[RealForm, FloatArray]:
    """left − scale·right, with the scale rounded to an integer.

    Args:
        left: any shape; gets more fractional bits where the scale needs them.
        right: form of integers, (rows, *shape). scale: float64, broadcastable to the shape.

    Returns:
        the form of left · 2^bits − S·right, and S = round(scale·2^bits).
    """
    size = np.abs(scale)
    least = float(size[size > size.max(initial=0.0) / 64].min(initial=np.inf))
    needed = SCALE_BITS - int(np.frexp(least)[1]) if np.isfinite(least) else left.bits
    left = left.raised(max(left.bits, needed))
    rounded = np.round(scale * 2.0**left.bits)
    return RealForm(left.form - rounded * right, left.slack, left.bits), rounded


def _meet(first: Bounds, second: Bounds) -> Bounds:
    return np.maximum(first[0], second[0]), np.minimum(first[1], second[1])


def _couple(
    builder: Builder, left: _Real | _Quantized, right: _Quantized, pair: Pair, optimise: int, late: Callable[[], bool]
) -> None:
    """Compile the two activations of a pair and add their rows."""
    right.advance(builder, pair.right)
    left.advance(builder, pair.left)
    own, other = left.accumulator(builder, pair.left), right.accumulator(builder, pair.right)
    own_shape, other_shape = own.slack.shape, other.slack.shape
    own, other = own.flat(), other.flat()
    apart, factor = scaled_difference(own, other.form, pair.accumulator_scale)
    up = 2.0 ** (apart.bits - own.bits)
    forms = (own, other, apart)
    bounds = [form.range(builder) for form in forms]
    bounds[1] = _meet(bounds[1], right.range(pair.right))
    if isinstance(left, _Quantized):
        bounds[0] = _meet(bounds[0], left.range(pair.left))
    varies = [left.varies(pair.left, *bounds[0]), right.varies(pair.right, *bounds[1])]
    wanted = [left.unsettled(pair.left, *bounds[0]), varies[1], varies[0] | varies[1]]
    _tighten(builder, forms, bounds, wanted, optimise, late)
    ends = np.stack([factor * bounds[1][0], factor * bounds[1][1]])
    implied = np.floor((ends.min(0) + bounds[2][0]) / up), np.ceil((ends.max(0) + bounds[2][1]) / up)
    bounds[0] = _meet(bounds[0], implied)
    varies = [left.varies(pair.left, *bounds[0]), right.varies(pair.right, *bounds[1])]
    value = left.activate(builder, pair.left, *(bound.reshape(own_shape) for bound in bounds[0])).flat()
    code = right.activate(builder, pair.right, *(bound.reshape(other_shape) for bound in bounds[1])).flat()
    value, code = value.widened(builder.rows), code.widened(builder.rows)
    scale = np.round(pair.value_scale * 2.0**apart.bits)
    shift = value.raised(apart.bits)
    shift = RealForm(shift.form - scale * code.form, shift.slack, apart.bits)
    raised = bounds[0][0] * up, bounds[0][1] * up
    shifts = _value_difference(left, right, pair, raised, bounds[1], bounds[2], factor, scale, up)
    both = varies[0] & varies[1]
    if right.steps(pair.right)[0].upper is not None or not both.any():
        return
    apart = apart.widened(builder.rows)
    forms, ranges = [shift.form[:, both]], [(shifts[0][both], shifts[1][both])]
    slacks = [shift.slack[both]]
    unsettled = both & left.unsettled(pair.left, *bounds[0])
    if isinstance(left, _Real) and unsettled.any():
        width = np.maximum(bounds[2][1] - bounds[2][0], 1)
        for end in (np.maximum(bounds[2][1], 0), np.maximum(-bounds[2][0], 0)):
            share = np.clip(np.round(LINK_PARTS * end / width), 0, LINK_PARTS)
            linked = _linked_difference(right, pair, bounds[1], bounds[2], factor, scale, share)
            forms.append((LINK_PARTS * shift.form - share * apart.form)[:, unsettled])
            ranges.append((linked[0][unsettled], linked[1][unsettled]))
            slacks.append((LINK_PARTS * shift.slack + share * apart.slack)[unsettled])
    low, high = (np.concatenate([pair_[side] for pair_ in ranges]).astype(np.int64) for side in (0, 1))
    builder.add_rows([None] * low.size, np.concatenate(forms, axis=1), low, high, np.concatenate(slacks))


def _levels(right: _Quantized, pair: Pair, other: Bounds) -> Iterator[tuple[FloatArray, FloatArray, FloatArray, BoolArray]]:
    """Level after level of the right activation: the level, and the accumulators that have it, where there are any."""
    node, row = right.steps(pair.right)
    first, last = _values(node, row, other[0]), _values(node, row, other[1])
    infinite = np.full((node.steps.rows, 1), np.inf)
    thresholds = np.concatenate([-infinite, node.steps.thresholds.astype(np.float64), infinite], axis=1)
    for step in range(int((last - first).max(initial=0)) + 1):
        level = np.minimum(first + step, last)
        position = (level - node.steps.low).astype(np.int64)
        low = np.maximum(other[0], thresholds[row, position])
        high = np.minimum(other[1], thresholds[row, position + 1] - 1)
        yield level, low, high, low <= high


def _linked_difference(
    right: _Quantized, pair: Pair, other: Bounds, apart: Bounds, factor: FloatArray, scale: float, share: FloatArray
) -> Bounds:
    """The range of parts·(rectifier − scale·right value) − share·D, D the difference of the accumulators, 0 ≤ share ≤ parts.

    With z = D + factor·ẑ the rectifier is convex in D and in ẑ: the greatest value is at a corner, the least one at the
    least factor·ẑ and an end or the kink of D.
    """
    least, greatest = np.full(factor.shape, np.inf), np.full(factor.shape, -np.inf)
    for level, low, high, possible in _levels(right, pair, other):
        ends = np.stack([factor * low, factor * high])
        below, above = ends.min(0), ends.max(0)
        offset = LINK_PARTS * scale * level
        for difference in (apart[0], apart[1], np.clip(-below, apart[0], apart[1])):
            value = LINK_PARTS * np.maximum(difference + below, 0) - share * difference - offset
            least = np.where(possible, np.minimum(least, value), least)
        for difference in apart:
            value = LINK_PARTS * np.maximum(difference + above, 0) - share * difference - offset
            greatest = np.where(possible, np.maximum(greatest, value), greatest)
    return least, greatest


def _value_difference(
    left: _Real | _Quantized,
    right: _Quantized,
    pair: Pair,
    own: Bounds,
    other: Bounds,
    apart: Bounds,
    factor: FloatArray,
    scale: float,
    up: float,
) -> Bounds:
    """The range of left value − scale·right value, level after level of the right value."""
    least, greatest = np.full(factor.shape, np.inf), np.full(factor.shape, -np.inf)
    for level, low, high, possible in _levels(right, pair, other):
        ends = np.stack([factor * low, factor * high])
        own_low = np.maximum(own[0], ends.min(0) + apart[0])
        own_high = np.minimum(own[1], ends.max(0) + apart[1])
        possible = possible & (own_low <= own_high)
        own_low, own_high = np.where(possible, own_low, own[0]), np.where(possible, own_high, own[0])
        value_low, value_high = left.value_range(pair.left, own_low, own_high, up)
        least = np.where(possible, np.minimum(least, value_low - scale * level), least)
        greatest = np.where(possible, np.maximum(greatest, value_high - scale * level), greatest)
    empty = least > greatest  # can't be on a box that is not empty; leaves the row without force
    return np.where(empty, -EXACT_FORM, least), np.where(empty, EXACT_FORM, greatest)


def _tighten(
    builder: Builder,
    forms: Sequence[RealForm],
    bounds: list[Bounds],
    wanted: Sequence[np.ndarray],
    optimise: int,
    late: Callable[[], bool],
) -> None:
    """Dual bounds of the wanted elements of several forms, in place, if there are units yet that make them better."""
    if not builder.units or late():
        return
    for index, (form, chosen) in enumerate(zip(forms, wanted, strict=True)):
        elements = np.flatnonzero(chosen)
        low, high = (bound.copy() for bound in bounds[index])
        for start in range(0, elements.size, BATCH):
            part = elements[start : start + BATCH]
            low[part], high[part] = _tightened(builder, form, low[part], high[part], part, optimise, late)
        bounds[index] = low, high


def _tightened(
    builder: Builder,
    form: RealForm,
    low: FloatArray,
    high: FloatArray,
    part: IntegerArray,
    optimise: int,
    late: Callable[[], bool],
) -> Bounds:
    """Dual bounds of some elements of a form, which lie in low … high."""
    fork = builder.fork()
    fork.add_rows([None] * part.size, form.form[:, part], low.astype(np.int64), high.astype(np.int64), form.slack[part])
    program = fork.finish()
    count = 2 * part.size
    objective = torch.zeros(count, len(program.units), dtype=torch.float64)
    objective[torch.arange(count), builder.units + torch.arange(count) // 2] = (
        torch.tensor([1.0, -1.0]).double().repeat(part.size)
    )
    limit = torch.from_numpy(np.stack([high, -low], axis=1).reshape(-1))
    domains = Domains(program.low.expand(count, -1), program.high.expand(count, -1), objective, limit)
    iterations = TIGHTEN_ITERATIONS if len(program.units) <= optimise else 0
    found = InteriorPoint(program, late).relax(domains, iterations)
    bound = (prove(program, domains, found.multipliers).margin + limit).numpy().reshape(-1, 2)
    return np.maximum(low, bound[:, 0]), np.minimum(high, -bound[:, 1])
