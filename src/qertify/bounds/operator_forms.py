"""Values of two networks as operators: `Forms` for pairs too large for matrices."""

from __future__ import annotations

import numpy as np
import torch

from qertify.bounds.fixed_point import Extent
from qertify.bounds.forms import Bounds, Coupling, JointInput, Mixture, OutputRows, Value, output_mixtures
from qertify.bounds.input_relation import InputRelation, input_terms
from qertify.bounds.operate import Lowering
from qertify.bounds.operate_real import Named, constant, lower_real, rectified
from qertify.bounds.operator_builder import OperatorBuilder, coefficients
from qertify.bounds.operators import (
    AddOperator,
    Followed,
    InputOperator,
    LinearOperator,
    PickOperator,
    SlopeOperator,
    UnitsOperator,
)
from qertify.bounds.program import Program, Unit
from qertify.network.network import Network
from qertify.network.nodes import Node
from qertify.network.ranges import Range
from qertify.network.real import RealDense, RealNode, as_reals
from qertify.network.tensor import FloatArray, IntegerArray
from qertify.specification.region import IntegerBox

OUTPUTS, CODES, REALS = "outputs", "codes", "reals"


class OperatorForms:
    """Values by the name of the operator that computes them: `Named`."""

    knows_differences = False

    def __init__(self, builder: OperatorBuilder | None = None) -> None:
        self.builder = builder or OperatorBuilder()

    @property
    def units(self) -> int:
        return len(self.builder.units)

    def part(self, mixture: Mixture) -> OperatorForms:
        return OperatorForms(self.builder.fork())

    def inputs(self, box: IntegerBox, relation: InputRelation | None) -> JointInput:
        builder, middle = self.builder, (box.low + box.high) // 2
        low, high = (box.low - middle).reshape(-1), (box.high - middle).reshape(-1)
        varies = np.flatnonzero(low < high)
        builder.add_inputs(varies, low[varies], high[varies])
        builder.steps.append(InputOperator(CODES, coefficients(middle.reshape(-1)), torch.from_numpy(varies)))
        codes = _integers(CODES, box.low, box.high)
        if relation is None:
            return JointInput(codes, None, 0, np.zeros(0, dtype=np.int64))
        terms = input_terms(relation, box)
        least, greatest = (end.reshape(-1).astype(np.int64) for end in (terms.low, terms.high))
        errors = builder.add_errors(terms.constant.reshape(-1).astype(np.int64), least, greatest)
        builder.steps.append(SlopeOperator(REALS, (CODES,), (coefficients(terms.factor.reshape(-1)),), errors))
        if len(terms.pairs):
            builder.couple(terms.pairs, terms.corners)
        first = terms.factor * box.low + terms.constant + terms.low - terms.slack
        last = terms.factor * box.high + terms.constant + terms.high + terms.slack
        gross = terms.factor * codes.extent.gross + np.abs(terms.constant)
        gross = gross + np.maximum(np.abs(terms.low), np.abs(terms.high)) + terms.slack
        real = Named(REALS, Extent(first, last, terms.slack, gross, terms.bits))
        return JointInput(codes, real, terms.bits, terms.error_index)

    def integer(self, network: Network, node: Node, values: dict[str, Value], known: dict[str, Range], side: str) -> Named:
        builder, source = self.builder, network.input.name
        if not any(step.name == f"{side}:{source}" for step in builder.steps if isinstance(step, AddOperator)):
            builder.steps.append(AddOperator(f"{side}:{source}", (_named(values[source]).name,)))
        Lowering(builder, network, known, f"{side}:").lower(node)
        return _integers(f"{side}:{node.name}", known[node.name][0][0], known[node.name][1][0])

    def real(self, node: RealNode, inputs: list[Value], shape: tuple[int, ...]) -> Named:
        return lower_real(self.builder, f"real:{node.name}", node, [_named(value) for value in inputs])

    def rectified(self, name: str, value: Value, low: FloatArray, high: FloatArray) -> Named:
        return rectified(self.builder, f"real:{name}", _named(value), low, high)

    def range(self, mixture: Mixture) -> Bounds:
        ends = [
            np.stack([factor * extent.low.reshape(-1), factor * extent.high.reshape(-1)])
            for value, factor in mixture.terms
            for extent in [_named(value).extent]
        ]
        return np.sum([end.min(0) for end in ends], axis=0), np.sum([end.max(0) for end in ends], axis=0)

    def add_rows(
        self,
        mixture: Mixture,
        elements: IntegerArray,
        low: FloatArray,
        high: FloatArray,
        follows: Value | None = None,
        takes: int = 0,
    ) -> None:
        builder, name = self.builder, f"rows{self.units}"
        sources = tuple(_named(value).name for value, _ in mixture.terms)
        slopes = tuple(coefficients(factor) for _, factor in mixture.terms)
        size = mixture.terms[0][1].size
        builder.steps.append(SlopeOperator(name, sources, slopes, constant(np.zeros(size))))
        units = [Unit("", -1)] * elements.size
        ends, slack = (low.astype(np.int64), high.astype(np.int64)), mixture.slack[elements]
        if follows is None:
            builder.add_outputs(units, name, size, elements, ends, slack)
            return
        followed = _named(follows).name
        factor = next(factor for value, factor in mixture.terms if value is follows)
        step = next(step for step in builder.steps if isinstance(step, UnitsOperator) and step.name == followed)
        place = np.full(size, -1, dtype=np.int64)
        place[step.chosen.numpy()] = step.first + np.arange(len(step.chosen))
        following = Followed(followed, torch.from_numpy(elements), float(factor[elements[0]]))
        builder.add_outputs(units, name, size, elements, ends, slack, following, place[elements], takes)

    def link(self, units: IntegerArray, numbers: FloatArray) -> None:
        """Not for operators."""

    def note(self, coupling: Coupling) -> None:
        """Not for operators."""

    def add_outputs(self, left: Value, right: Value, outputs: OutputRows) -> int:
        builder, own, other = self.builder, _named(left), _named(right)
        rows = output_mixtures(own.computed, own.bits, other.computed, outputs)
        count, sizes = rows.constant.size, (own.size, other.size)
        total = sum(sizes)
        pick = PickOperator("both", (own.name, other.name), sizes, torch.arange(total), coefficients(np.zeros(1)))
        weight = np.concatenate([rows.own, rows.other]).T
        node = RealDense(OUTPUTS, ("both",), as_reals(weight), as_reals(rows.constant))
        zero = coefficients(np.zeros(1))
        step = LinearOperator(
            OUTPUTS, "both", node, coefficients(weight), coefficients(rows.constant), zero, (total,), (count,)
        )
        builder.steps += [pick, step]
        low, high = (np.concatenate([own.computed[side], other.computed[side]]) for side in (0, 1))
        slack = rows.slack + own.slack.reshape(-1) @ np.abs(rows.own)
        positive, negative = np.maximum(weight, 0), np.minimum(weight, 0)
        least = positive @ low + negative @ high + rows.constant - slack
        greatest = positive @ high + negative @ low + rows.constant + slack
        units = [Unit("", -1, label) for label in range(count)]
        builder.add_outputs(units, OUTPUTS, count, np.arange(count), (least.astype(np.int64), greatest.astype(np.int64)), slack)
        return rows.bits

    def finish(self) -> Program:
        return self.builder.finish()


def _integers(name: str, low: IntegerArray, high: IntegerArray) -> Named:
    """An integer value between two ends."""
    least, greatest = low.astype(np.float64), high.astype(np.float64)
    return Named(name, Extent(least, greatest, np.zeros(low.shape), np.maximum(np.abs(least), np.abs(greatest)), 0))


def _named(value: Value) -> Named:
    assert isinstance(value, Named)
    return value
