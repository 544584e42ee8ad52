"""Values of two networks on their way into one program, and what can be asked of them: here in dense matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qertify.bounds.builder import Builder
from qertify.bounds.compile import integer_form
from qertify.bounds.fixed_point import RealForm, compact, form_range, real_form, rectified
from qertify.bounds.input_relation import InputRelation, input_terms
from qertify.bounds.joint_rows import PairForms, add_joint_rows
from qertify.bounds.program import Program
from qertify.network.network import Network
from qertify.network.nodes import Node
from qertify.network.ranges import Range
from qertify.network.real import RealNode
from qertify.network.tensor import BoolArray, FloatArray, IntegerArray
from qertify.specification.region import IntegerBox

OUTPUT_BITS = 40
"""The left network's outputs take at most this many bits."""

Bounds = tuple[FloatArray, FloatArray]
"""Least and greatest values, element by element."""


class Value(Protocol):
    """A node's value in units of 2^−bits, known up to a slack, integers of its shape; the rest is the business of `Forms`."""

    @property
    def slack(self) -> FloatArray: ...

    @property
    def bits(self) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Σ coefficient · value, element by element, in units of 2^−bits.

    Attributes:
        terms: values of equally many elements, and integers, (elements,).
    """

    terms: tuple[tuple[Value, FloatArray], ...]
    bits: int

    @property
    def slack(self) -> FloatArray:
        return np.sum([np.abs(factor) * value.slack.reshape(-1) for value, factor in self.terms], axis=0)


@dataclass(frozen=True, slots=True, eq=False)
class JointInput:
    """The common input: codes, what a real left network reads, its bits, and which elements' errors vary."""

    codes: Value
    real: Value | None
    bits: int
    error_index: IntegerArray


OutputRows = Callable[[Builder, RealForm, FloatArray], tuple[Sequence[RealForm], int]]
"""Makes the rows of interest from the left output and the right output's form, both one-dimensional, in a builder: as forms
of one element, all with the same number of fractional bits, which it returns too."""


@dataclass(frozen=True, slots=True, eq=False)
class Coupling:
    """Paired activations of a real and a quantized network, as far as one of them varies.

    Attributes:
        value, code: y and ŷ. apart: D, the difference of their accumulators, and twist: 2·(raise·y − scale·ŷ) − D.
        scaled: factor·ẑ.
        elements: which ones. room: as in `PairForms`; y has a kink within reach where it is positive.
        open, reach, low, high, raise_, scale: as in `PairForms`.
    """

    value: Value
    code: Value
    apart: Mixture
    twist: Mixture
    scaled: Mixture
    elements: IntegerArray
    room: FloatArray
    open: BoolArray
    reach: FloatArray
    low: FloatArray
    high: FloatArray
    raise_: float
    scale: float


class Forms(Protocol):
    """Collects the values of both networks, units and rows."""

    @property
    def units(self) -> int:
        """How many units and rows there are."""
        ...

    @property
    def knows_differences(self) -> bool:
        """Whether `range` of a difference is as narrow as can be told without units."""
        ...

    def part(self, mixture: Mixture) -> Forms:
        """A copy to which more can be added; perhaps only of what a mixture depends on, and of rows over nothing else."""
        ...

    def inputs(self, box: IntegerBox, relation: InputRelation | None) -> JointInput:
        """The codes of a box, and with a relation the reals that go with them."""
        ...

    def integer(self, network: Network, node: Node, values: dict[str, Value], known: dict[str, Range], side: str) -> Value:
        """Compile a node of a quantized network, from values and ranges of its inputs; ``known`` holds its own, too."""
        ...

    def real(self, node: RealNode, inputs: list[Value], shape: tuple[int, ...]) -> Value:
        """Compile a node of a real network."""
        ...

    def rectified(self, name: str, value: Value, low: FloatArray, high: FloatArray) -> Value:
        """max(value, 0), where value · 2^bits lies in low … high."""
        ...

    def range(self, mixture: Mixture) -> Bounds:
        """Integers around a mixture."""
        ...

    def add_rows(
        self,
        mixture: Mixture,
        elements: IntegerArray,
        low: FloatArray,
        high: FloatArray,
        follows: Value | None = None,
        takes: int = 0,
    ) -> None:
        """Rows: elements of a mixture, whose ranges are known; they may follow one of its terms, values of rectifiers.

        Args:
            takes: as in `Program`.
        """
        ...

    def link(self, units: IntegerArray, numbers: FloatArray) -> None:
        """Say which units and rows belong to pairs, as in `Program`, where that is supported."""
        ...

    def note(self, coupling: Coupling) -> None:
        """Take a pair into account when outputs are added, where that is supported."""
        ...

    def add_outputs(self, left: Value, right: Value, outputs: OutputRows) -> int:
        """The rows of interest, labelled 0, 1, …; returns their fractional bits."""
        ...

    def finish(self) -> Program:
        """The program of everything added so far."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class OutputMixtures:
    """Rows left @ own + right @ other + constant ± slack of two networks' outputs, all integers, in units of 2^−bits."""

    own: FloatArray
    other: FloatArray
    constant: FloatArray
    slack: FloatArray
    bits: int


def output_mixtures(left: Bounds, bits: int, right: Bounds, outputs: OutputRows) -> OutputMixtures:
    """What ``outputs`` makes of outputs in these ranges; the left ones are in units of 2^−bits."""
    builder = Builder()
    low, high = (np.concatenate([own, other]) for own, other in zip(left, right, strict=True))
    high = np.maximum(high, low + 1)  # what is constant up to its slack has a factor, too
    given = builder.add_inputs(low.astype(np.int64), high.astype(np.int64))
    count = left[0].size
    rows, bits = outputs(builder, RealForm(given[:, :count], np.zeros(count), bits), given[:, count:])
    form = np.stack([row.form for row in rows], axis=1)
    return OutputMixtures(form[1 : count + 1], form[count + 1 :], form[0], np.array([float(row.slack) for row in rows]), bits)


class DenseForms:
    """Values as affine forms over all inputs and units: `RealForm`."""

    knows_differences = True

    def __init__(self, builder: Builder | None = None) -> None:
        self.builder = builder or Builder()
        self._couplings: list[Coupling] = []

    @property
    def units(self) -> int:
        return self.builder.units

    def part(self, mixture: Mixture) -> DenseForms:
        needed = np.zeros(self.builder.rows, dtype=bool)
        for value, _ in mixture.terms:
            form = _dense(value).flat().form
            needed[: len(form)] |= (form != 0).any(axis=1)
        return DenseForms(self.builder.part(needed))

    def inputs(self, box: IntegerBox, relation: InputRelation | None) -> JointInput:
        builder, middle = self.builder, (box.low + box.high) // 2
        form = builder.add_inputs(box.low - middle, box.high - middle)
        form[0] += middle
        codes = RealForm(form, np.zeros(middle.shape), 0)
        if relation is None:
            return JointInput(codes, None, 0, np.zeros(0, dtype=np.int64))
        terms = input_terms(relation, box)
        form = form * terms.factor
        form[0] += terms.constant
        low, high = (end.reshape(-1).astype(np.int64) for end in (terms.low, terms.high))
        form = builder.add_errors(form.reshape(len(form), -1), low, high).reshape(-1, *middle.shape)
        if len(terms.pairs):
            builder.couple(terms.pairs, terms.corners)
        return JointInput(codes, RealForm(form, terms.slack, terms.bits), terms.bits, terms.error_index)

    def integer(self, network: Network, node: Node, values: dict[str, Value], known: dict[str, Range], side: str) -> RealForm:
        inputs = [_dense(values[name]).widened(self.builder.rows).form for name in node.inputs]
        form = integer_form(self.builder, node, inputs, [known[name] for name in node.inputs], network.shapes[node.name])
        return RealForm(form, np.zeros(form.shape[1:]), 0)

    def real(self, node: RealNode, inputs: list[Value], shape: tuple[int, ...]) -> RealForm:
        return real_form(self.builder, node, [_dense(value) for value in inputs], shape)

    def rectified(self, name: str, value: Value, low: FloatArray, high: FloatArray) -> RealForm:
        return rectified(self.builder, name, _dense(value).widened(self.builder.rows), low, high)

    def _mixed(self, mixture: Mixture, elements: IntegerArray | slice) -> FloatArray:
        """Form of some elements of a mixture."""
        result = np.zeros((self.builder.rows, mixture.terms[0][1][elements].size))
        for value, factor in mixture.terms:
            form = _dense(value).flat().form[:, elements]
            result[: len(form)] += form * factor[elements]
        return result

    def range(self, mixture: Mixture) -> Bounds:
        low, high = form_range(self.builder, self._mixed(mixture, slice(None)))
        return low - mixture.slack, high + mixture.slack

    def add_rows(
        self,
        mixture: Mixture,
        elements: IntegerArray,
        low: FloatArray,
        high: FloatArray,
        follows: Value | None = None,
        takes: int = 0,
    ) -> None:
        followed = None if follows is None else _dense(follows).flat().form[:, elements].argmax(axis=0)
        ends, form = (low.astype(np.int64), high.astype(np.int64)), self._mixed(mixture, elements)
        self.builder.add_rows([None] * elements.size, form, *ends, mixture.slack[elements], followed, takes)

    def link(self, units: IntegerArray, numbers: FloatArray) -> None:
        self.builder.link(units, numbers)

    def note(self, coupling: Coupling) -> None:
        self._couplings.append(coupling)

    def _rows_of(self, value: Value, elements: IntegerArray) -> IntegerArray:
        """Where units' values are in forms, 0 for constant ones."""
        form = _dense(value).flat().form[:, elements].copy()
        form[0] = 0.5
        return np.where(form.max(axis=0) == 1, form.argmax(axis=0), 0)

    def _pair_forms(self, pair: Coupling) -> PairForms:
        own, other = self._rows_of(pair.value, pair.elements), self._rows_of(pair.code, pair.elements)
        apart, twist = (
            RealForm(self._mixed(mixture, pair.elements), mixture.slack[pair.elements], mixture.bits)
            for mixture in (pair.apart, pair.twist)
        )
        return PairForms(
            own, other, np.where(pair.room > 0, own, other), pair.room, pair.open, apart, twist,
            self._mixed(pair.scaled, pair.elements), pair.reach, pair.low, pair.high, pair.raise_, pair.scale,
        )  # fmt: skip

    def add_outputs(self, left: Value, right: Value, outputs: OutputRows) -> int:
        builder = self.builder
        own = compact(builder, _dense(left).widened(builder.rows).flat(), OUTPUT_BITS)
        other = _dense(right).widened(builder.rows).flat().form
        rows = output_mixtures(form_range(builder, own.form), own.bits, form_range(builder, other), outputs)
        form = own.form @ rows.own + other @ rows.other
        form[0] += rows.constant
        if self._couplings:
            add_joint_rows(builder, form, [self._pair_forms(pair) for pair in self._couplings])
        merged = RealForm(form, rows.slack + own.slack @ np.abs(rows.own), rows.bits).widened(builder.rows)
        low, high = merged.range(builder)
        builder.add_rows(range(rows.constant.size), merged.form, low.astype(np.int64), high.astype(np.int64), merged.slack)
        return rows.bits

    def finish(self) -> Program:
        return self.builder.finish()


def _dense(value: Value) -> RealForm:
    assert isinstance(value, RealForm)
    return value
