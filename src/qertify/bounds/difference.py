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
from functools import partial

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.chords import Following, initial_multipliers
from qertify.bounds.difference_range import (
    LINK_PARTS,
    imply,
    linked_difference,
    rectified_range,
    rounding_range,
    value_difference,
)
from qertify.bounds.dual import Domains, prove
from qertify.bounds.first_order import FirstOrder
from qertify.bounds.forms import Bounds, Coupling, DenseForms, Forms, Mixture, OutputRows, Value
from qertify.bounds.input_relation import InputRelation
from qertify.bounds.operator_forms import OperatorForms
from qertify.bounds.program import Program
from qertify.bounds.sides import Pair, QuantizedSide, RealSide
from qertify.network.network import Network
from qertify.network.nodes import Staircase
from qertify.network.real import RealNetwork, Relu
from qertify.network.tensor import BoolArray, FloatArray, IntegerArray
from qertify.specification.region import IntegerBox

SCALE_BITS = 14
"""Least number of bits of the scale of a quantized value in a row."""
BATCH, ENTRIES = 128, 1 << 19
"""Most paired accumulators, and objectives times units, whose ranges are tightened together."""
FEW_UNITS, STEPS = 800, 10
"""Up to so many units a first-order search of so many steps tightens ranges."""
DENSE_LIMIT = 3000
"""Most activations of both networks together for matrices."""


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
    relation: InputRelation,
    pairs: Sequence[Pair],
    outputs: OutputRows,
    late: Callable[[], bool] = lambda: False,
    dense: bool | None = None,
) -> Joint:
    """Compile two networks over one box of the right one's codes.

    Args:
        relation: how the left network's input follows; a quantized one reads the same codes.
        pairs: in topological order on both sides.
        late: asked between steps; the ranges at hand are kept once it is true.
        dense: whether the equations are matrices; None for matrices where they are affordable.

    Raises:
        UnsupportedModelError: networks too large, or with numbers too large.
    """
    if dense is None:
        dense = activations(left) + activations(right) <= DENSE_LIMIT
    forms = DenseForms() if dense else OperatorForms()
    given = forms.inputs(box, relation if isinstance(left, RealNetwork) else None)
    quantized = QuantizedSide(right, forms, "right", given.codes, box.low, box.high)
    if isinstance(left, RealNetwork):
        assert given.real is not None
        other = RealSide(left, forms, given.real)
    else:
        other = QuantizedSide(left, forms, "left", given.codes, box.low, box.high)
    for pair in pairs:
        _couple(forms, other, quantized, pair, late)
    bits = forms.add_outputs(other.output(), quantized.output(), outputs)
    return Joint(forms.finish(), (box.low + box.high) // 2, given.bits, bits, given.error_index)


def activations(network: RealNetwork | Network) -> int:
    """How many values of activations a network has."""
    kinds = Relu if isinstance(network, RealNetwork) else Staircase
    return sum(int(np.prod(network.shapes[node.name])) for node in network.nodes if isinstance(node, kinds))


def _meet(first: Bounds, second: Bounds) -> Bounds:
    return np.maximum(first[0], second[0]), np.minimum(first[1], second[1])


def _scaled_difference(left: Value, right: Value, scale: FloatArray) -> tuple[Mixture, FloatArray]:
    """left − scale·right, with the scale rounded to an integer.

    Args:
        left: gets more fractional bits where the scale needs them. right: integers.
        scale: float64, (elements,).

    Returns:
        left · 2^bits − S·right, and S = round(scale·2^bits).
    """
    size = np.abs(scale)
    least = float(size[size > size.max(initial=0.0) / 64].min(initial=np.inf))
    needed = SCALE_BITS - int(np.frexp(least)[1]) if np.isfinite(least) else left.bits
    bits = max(left.bits, needed)
    factor = np.round(scale * 2.0**bits)
    return Mixture(((left, np.full(scale.shape, 2.0 ** (bits - left.bits))), (right, -factor)), bits), factor


def _couple(forms: Forms, left: RealSide | QuantizedSide, right: QuantizedSide, pair: Pair, late: Callable[[], bool]) -> None:
    """Compile the two activations of a pair and add their rows."""
    other, own = right.accumulator(pair.right), left.accumulator(pair.left)
    apart, factor = _scaled_difference(own, other, pair.accumulator_scale)
    up, one = 2.0 ** (apart.bits - own.bits), np.ones(factor.shape)
    mixtures = (Mixture(((own, one),), own.bits), Mixture(((other, one),), 0), apart)
    bounds = [forms.range(mixture) for mixture in mixtures]
    bounds[1] = _meet(bounds[1], right.range(pair.right))
    if isinstance(left, QuantizedSide):
        bounds[0] = _meet(bounds[0], left.range(pair.left))
    few = [0 < forms.part(mixture).units <= FEW_UNITS for mixture in mixtures]
    for index, side, name in ((0, left, pair.left), (1, right, pair.right)):
        for how, wanted in ((CHORDS, side.unsettled), (SEARCH, side.kinked))[: 1 + few[index]]:
            bounds[index] = _tighten(forms, mixtures[index], bounds[index], wanted(name, *bounds[index]), how, late)
    how = LINKS if few[2] else VALUES
    bounds[2] = _tighten(forms, mixtures[2], bounds[2], _open(left, right, pair, bounds), how, late)
    imply(bounds, factor, up)
    varies = [left.varies(pair.left, *bounds[0]), right.varies(pair.right, *bounds[1])]
    ladder = right.ladder(pair.right)
    values = rectified_range if isinstance(left, RealSide) else partial(left.value_range, pair.left, up=up)
    units = np.cumsum(varies[0]) - 1 + forms.units
    value = left.activate(pair.left, *bounds[0])
    units = np.stack([units, np.cumsum(varies[1]) - 1 + forms.units, *-np.ones((3, factor.size), np.int64)])
    code = right.activate(pair.right, *bounds[1])
    scale = np.round(pair.value_scale * 2.0**apart.bits)
    raised = bounds[0][0] * up, bounds[0][1] * up
    if right.staircase(pair.right).upper is not None:
        return
    raise_ = 2.0 ** (apart.bits - value.bits)
    both = varies[0] & varies[1]
    shifts = value_difference(values, ladder, raised, bounds[1], bounds[2], factor, scale)
    shift = Mixture(((value, raise_ * one), (code, -scale * one)), apart.bits)
    if both.any():
        follows = value if isinstance(left, RealSide) else None
        units[2, both] = np.arange(np.count_nonzero(both)) + forms.units
        forms.add_rows(shift, np.flatnonzero(both), shifts[0][both], shifts[1][both], follows)
    if isinstance(left, QuantizedSide):
        return
    unsettled, open_ = left.unsettled(pair.left, *bounds[0]), _open(left, right, pair, bounds)
    width = np.maximum(bounds[2][1] - bounds[2][0], 1)
    shares: list[FloatArray] = []
    for takes, end in ((1, np.maximum(bounds[2][1], 0)), (-1, np.maximum(-bounds[2][0], 0))):
        share = np.clip(np.round(LINK_PARTS * end / width), 0, LINK_PARTS)
        low, high = linked_difference(ladder, raised, bounds[1], bounds[2], factor, scale, share)
        parts = ((value, LINK_PARTS * raise_ * one), (code, -LINK_PARTS * scale * one))
        linked = Mixture((*parts, (own, -share * up), (other, share * factor)), apart.bits)
        for follows, chosen in ((value, unsettled), (code, open_ & ~unsettled)):
            if (elements := np.flatnonzero(chosen)).size:
                units[3 + len(shares), elements] = np.arange(elements.size) + forms.units
                forms.add_rows(linked, elements, low[elements], high[elements], follows, takes)
        shares.append(share)
    linked = both & open_
    numbers = np.stack([*bounds[2], factor, up * one, scale * one, *shares])
    forms.link(units[:, linked].T, numbers[:, linked].T)
    elements = np.flatnonzero(varies[0] | varies[1])
    twist = Mixture(((value, 2 * raise_ * one), (code, -2 * scale * one), (own, -up * one), (other, factor)), apart.bits)
    room, reach = np.minimum(-raised[0], raised[1]), np.maximum(np.abs(bounds[2][0]), np.abs(bounds[2][1]))
    low, high = rounding_range(ladder, bounds[1], factor, scale, open_)
    forms.note(
        Coupling(
            value, code, apart, twist, Mixture(((other, factor),), 0), elements,
            room[elements], open_[elements], reach[elements], low[elements], high[elements], raise_, float(scale),
        )
    )  # fmt: skip


def _open(left: RealSide | QuantizedSide, right: QuantizedSide, pair: Pair, bounds: list[Bounds]) -> BoolArray:
    """Where a kink is within reach of one of two accumulators; elsewhere their difference is that of the values."""
    unsettled, varies = left.unsettled(pair.left, *bounds[0]), right.varies(pair.right, *bounds[1])
    return unsettled | varies & (right.bends(pair.right, *bounds[1]) | isinstance(left, QuantizedSide))


@dataclass(frozen=True, slots=True)
class _How:
    """Which multipliers of one pass to try, and whether to search on where the last of them are not better than the first."""

    kinds: tuple[Following, ...]
    search: bool


CHORDS, VALUES = _How((Following.NONE,), False), _How((Following.NONE, Following.VALUES), False)
SEARCH, LINKS = _How((), True), _How((Following.NONE, Following.LINKS), True)


def _tighten(forms: Forms, mixture: Mixture, bounds: Bounds, wanted: BoolArray, how: _How, late: Callable[[], bool]) -> Bounds:
    """Dual bounds of the wanted elements of a mixture, if they can be better than intervals."""
    elements = np.flatnonzero(wanted)
    if not elements.size or (not forms.units and forms.knows_differences):
        return bounds
    low, high = (bound.copy() for bound in bounds)
    for part in np.split(elements, range(BATCH, elements.size, BATCH)):
        if late():
            break
        low[part], high[part] = _tightened(forms, mixture, low[part], high[part], part, how, late)
    return low, high


def _tightened(
    forms: Forms, mixture: Mixture, low: FloatArray, high: FloatArray, part: IntegerArray, how: _How, late: Callable[[], bool]
) -> Bounds:
    """Dual bounds of some elements of a mixture, which lie in low … high."""
    asked = forms.part(mixture)
    earlier = asked.units
    asked.add_rows(mixture, part, low, high)
    program = asked.finish()
    units = len(program.units)
    best = torch.from_numpy(np.stack([low, -high]))
    kinds = how.kinds if program.follows is not None else how.kinds[:1]

    def questions(objective: Tensor, limit: Tensor) -> Domains:
        return Domains(program.low.expand(len(limit), -1), program.high.expand(len(limit), -1), objective, limit)

    for rows in torch.arange(part.size).split(max(1, ENTRIES // units)):
        if late():
            break
        objective = torch.zeros(len(rows), units, dtype=torch.float64)
        objective[torch.arange(len(rows)), earlier + rows] = 1.0
        objective = torch.cat([objective, -objective])
        # no bound is expected to pass the other end of the range, so that no search ends before its steps do
        limit = -best[:, rows].flip(0).flatten()
        domains, found = questions(objective, limit), best[:, rows].flatten()
        tried = [prove(program, domains, _both(program, domains, kind)).margin + limit for kind in kinds]
        for bound in tried:
            found = torch.maximum(found, bound)
        if how.search:
            rest = torch.nonzero(tried[0] >= tried[-1])[:, 0] if tried else torch.arange(len(limit))
            if len(rest):
                domains = questions(objective[rest], limit[rest])
                multipliers = FirstOrder(program, late).relax(domains, STEPS).multipliers
                found[rest] = torch.maximum(found[rest], prove(program, domains, multipliers).margin + limit[rest])
        best[:, rows] = found.view(2, -1)
    return best[0].numpy(), -best[1].numpy()


def _both(program: Program, domains: Domains, kind: Following) -> Tensor:
    """Multipliers of one pass for objectives and then, as many, their opposites."""
    half = slice(len(domains) // 2)
    if kind is Following.LINKS:
        return initial_multipliers(program, domains, kind)
    above = initial_multipliers(program, domains.pick(half), kind)
    return torch.cat([above, -above])
