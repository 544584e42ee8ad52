"""Two networks on one input as one program, coupled where they do the same thing.

The left network is a real one or a quantized one, the right one is quantized. Both are compiled over the same inputs, in
step. Where an activation of the left one corresponds to one of the right one, rows are added for what makes the pair
close: the difference of the values y − s·ŷ, alone and less a part of the difference of the accumulators z − ŝ·ẑ. Which
activations correspond, and with which scales, is a guess from samples (`pairing`); the ranges of the rows are proved
here, for any guess. (Tracking differences of two networks: Paulsen et al., ReluDiff, ICSE 2020; of a network and its
quantization: Zhang et al., QEBVerif, CAV 2023.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qertify.bounds.builder import Builder
from qertify.bounds.difference_range import LINK_PARTS, linked_difference, value_difference
from qertify.bounds.dual import Domains, prove
from qertify.bounds.fixed_point import RealForm, compact
from qertify.bounds.input_relation import InputRelation, input_form
from qertify.bounds.interior_point import first_multipliers
from qertify.bounds.program import Program
from qertify.bounds.sides import Bounds, Pair, QuantizedSide, RealSide
from qertify.network.network import Network
from qertify.network.real import RealNetwork
from qertify.network.tensor import FloatArray, IntegerArray
from qertify.specification.region import IntegerBox

SCALE_BITS = 14
"""Least number of bits of the scale of a quantized value in a row."""
OUTPUT_BITS = 40
"""The left network's outputs take at most this many bits."""
BATCH = 128
"""Paired accumulators whose ranges are tightened together."""


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


def compile_difference(
    left: RealNetwork | Network,
    right: Network,
    box: IntegerBox,
    relation: InputRelation | None,
    pairs: Sequence[Pair],
    outputs: Callable[[Builder, RealForm, FloatArray], tuple[Sequence[RealForm], int]],
    late: Callable[[], bool] = lambda: False,
) -> Joint:
    """Compile two networks over one box of the right one's codes.

    Args:
        relation: how the left network's input follows; None for a quantized network that reads the same codes.
        pairs: in topological order on both sides.
        outputs: makes the rows of interest from the left output and the right output's form (both one-dimensional),
            as forms of one element, all with the same number of fractional bits, which it returns too.
        late: asked between steps; the ranges at hand are kept once it is true.

    Raises:
        UnsupportedModelError: networks too large, or with numbers too large.
    """
    builder = Builder()
    middle = (box.low + box.high) // 2
    form = builder.add_inputs(box.low - middle, box.high - middle)
    form[0] += middle
    quantized = QuantizedSide(right, form, box.low, box.high)
    input_bits, error_index = 0, np.zeros(0, dtype=np.int64)
    if isinstance(left, RealNetwork):
        assert relation is not None
        value, error_index = input_form(builder, relation, form, box)
        input_bits = value.bits
        other = RealSide(left, value)
    else:
        other = QuantizedSide(left, form, box.low, box.high)
    for pair in pairs:
        _couple(builder, other, quantized, pair, late)
    other.advance(builder)
    quantized.advance(builder)
    value = compact(builder, other.output(builder).flat(), OUTPUT_BITS)
    rows, bits = outputs(builder, value, quantized.output(builder).flat().form)
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
    builder: Builder, left: RealSide | QuantizedSide, right: QuantizedSide, pair: Pair, late: Callable[[], bool]
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
    if isinstance(left, QuantizedSide):
        bounds[0] = _meet(bounds[0], left.range(pair.left))
    varies = [left.varies(pair.left, *bounds[0]), right.varies(pair.right, *bounds[1])]
    wanted = [left.unsettled(pair.left, *bounds[0]), varies[1], varies[0] | varies[1]]
    _tighten(builder, forms, bounds, wanted, late)
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
    shifts = value_difference(left, right, pair, raised, bounds[1], bounds[2], factor, scale, up)
    both = varies[0] & varies[1]
    if right.steps(pair.right)[0].upper is not None or not both.any():
        return
    apart = apart.widened(builder.rows)
    forms, ranges = [shift.form[:, both]], [(shifts[0][both], shifts[1][both])]
    slacks = [shift.slack[both]]
    unsettled = both & left.unsettled(pair.left, *bounds[0])
    if isinstance(left, RealSide) and unsettled.any():
        width = np.maximum(bounds[2][1] - bounds[2][0], 1)
        for end in (np.maximum(bounds[2][1], 0), np.maximum(-bounds[2][0], 0)):
            share = np.clip(np.round(LINK_PARTS * end / width), 0, LINK_PARTS)
            linked = linked_difference(right, pair, bounds[1], bounds[2], factor, scale, share)
            forms.append((LINK_PARTS * shift.form - share * apart.form)[:, unsettled])
            ranges.append((linked[0][unsettled], linked[1][unsettled]))
            slacks.append((LINK_PARTS * shift.slack + share * apart.slack)[unsettled])
    low, high = (np.concatenate([pair_[side] for pair_ in ranges]).astype(np.int64) for side in (0, 1))
    if isinstance(left, RealSide):
        builder.follow(builder.units, value.form[:, both].argmax(axis=0))
    builder.add_rows([None] * low.size, np.concatenate(forms, axis=1), low, high, np.concatenate(slacks))


def _tighten(
    builder: Builder,
    forms: Sequence[RealForm],
    bounds: list[Bounds],
    wanted: Sequence[np.ndarray],
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
            if late():
                return
            low[part], high[part] = _tightened(builder, form, low[part], high[part], part)
        bounds[index] = low, high


def _tightened(
    builder: Builder,
    form: RealForm,
    low: FloatArray,
    high: FloatArray,
    part: IntegerArray,
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
    bound = (prove(program, domains, first_multipliers(program, domains)).margin + limit).numpy().reshape(-1, 2)
    return np.maximum(low, bound[:, 0]), np.minimum(high, -bound[:, 1])
