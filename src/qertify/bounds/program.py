"""A network over a box as one affine system: the form in which bounds are searched and proved.

Every element of a staircase whose value is not constant on the box is a *unit* u with an accumulator z_u and a value
y_u = σ_u(z_u); each accumulator is an exact affine function of the inputs and of the values of earlier units,

    z = input_matrix · x + unit_matrix · y + constant.

Output accumulators are units without a value. All entries are integers, held exactly in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qertify.errors import UnsupportedModelError
from qertify.network.linear import EXACT_FLOAT64, bias_of, weight_of, weighted_sum
from qertify.network.network import Network
from qertify.network.nodes import (
    Add,
    Convolution,
    Dense,
    Input,
    Linear,
    Node,
    PoolSum,
    Rearrange,
    Staircase,
)
from qertify.network.ranges import Range, rearrange
from qertify.network.tensor import FloatArray, IntegerArray
from qertify.specification.cases import OutputView
from qertify.specification.region import IntegerBox

SIZE_LIMIT = 1 << 27
"""Largest number of matrix entries that one node's affine form may take while compiling (1 GiB of float64)."""


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Where one unit comes from, for branching, certificates and the ILP.

    Attributes:
        node: name of the node whose value is the accumulator.
        element: flat index in that node's value.
        label: the class, for an output accumulator; None for a hidden unit.
    """

    node: str
    element: int
    label: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A compiled network; N units, n inputs that vary. All tensors are float64 with integer entries.

    Attributes:
        units: the N units in topological order, output accumulators last.
        blocks: (first, last+1) of the units that are read by no unit of the same block, in order.
        input_index: int64 (n,), flat positions of the inputs that vary on the box.
        input_low, input_high: (n,).
        input_matrix: (N, n). unit_matrix: (N, N), strictly lower block triangular. constant: (N,).
        low, high: (N,), proved range of each accumulator on the whole box.
        thresholds: (N, K), rows padded with ±infinity to one common width; T_u(first_value_u + 1 + k) at k.
        first_value: (N,), least value of each staircase; 0 for output accumulators.
        spacing: (N,), distance of consecutive thresholds where even, else of the chord through them.
        unevenness: (N,), 0 where the thresholds are exactly even, else a bound on how far two deviations from a
            line differ, an integer.
        has_value: (N,), 1 for hidden units, 0 for output accumulators.
        equation_size: (N,), bound on |constant| + Σ|input_matrix|·max(|x|, 1) + Σ|unit_matrix|·max(|y|, 1), not an integer.
    """

    units: tuple[Unit, ...]
    blocks: tuple[tuple[int, int], ...]
    input_index: IntegerArray
    input_low: Tensor
    input_high: Tensor
    input_matrix: Tensor
    unit_matrix: Tensor
    constant: Tensor
    low: Tensor
    high: Tensor
    thresholds: Tensor
    first_value: Tensor
    spacing: Tensor
    unevenness: Tensor
    has_value: Tensor
    equation_size: Tensor

    def to(self, device: str) -> Program:
        """The same program with its tensors on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name in Program.__dataclass_fields__ if isinstance(value := getattr(self, name), Tensor)
        }
        return replace(self, **moved)

    def output_units(self) -> dict[int, int]:
        """Class → position of its accumulator among the units."""
        return {unit.label: position for position, unit in enumerate(self.units) if unit.label is not None}

    def values(self, z: Tensor) -> Tensor:
        """σ_u(z_u), shape (batch, N)."""
        return self.first_value + torch.searchsorted(self.thresholds, z.T.contiguous(), right=True).T * self.has_value

    def threshold(self, value: Tensor) -> Tensor:
        """T_u(value_u), shape (batch, N); −infinity at or below the least value, +infinity above the greatest."""
        position = (value - self.first_value).long()
        width = self.thresholds.shape[1]
        found = self.thresholds.gather(1, (position - 1).clamp(0, width - 1).T.contiguous()).T
        found = torch.where(position <= 0, -torch.inf, found)
        return torch.where(position > width, torch.inf, found)


@dataclass(slots=True)
class _Form:
    """An affine form of a node's value: rows are the constant, the inputs, then the units seen so far."""

    matrix: FloatArray  # (1 + n + units so far, *shape)

    def widened(self, rows: int) -> FloatArray:
        missing = rows - self.matrix.shape[0]
        return np.concatenate([self.matrix, np.zeros((missing, *self.matrix.shape[1:]))]) if missing else self.matrix


def _linear(node: Linear, matrices: list[FloatArray]) -> FloatArray:
    weight = weight_of(node)
    shifted = matrices[0].copy()
    shifted[0] -= node.zero_point
    result = weighted_sum(node, None if weight is None else weight.astype(np.float64), shifted)
    result[0] += bias_of(node)
    return result


def _rearrange(node: Rearrange, matrices: list[FloatArray]) -> FloatArray:
    result = rearrange(node, [matrix.astype(np.int64) for matrix in matrices]).astype(np.float64)
    result[1:, node.indices < 0] = 0.0
    return result


def _affine(node: Node, matrices: list[FloatArray]) -> FloatArray:
    match node:
        case Dense() | Convolution() | PoolSum():
            return _linear(node, matrices)
        case Add():
            return np.sum(matrices, axis=0)
        case Rearrange():
            return _rearrange(node, matrices)
        case _:
            reason = "the bound engine covers linear nodes and staircases; use --method ilp"
            raise UnsupportedModelError(node.name, type(node).__name__, None, reason)


def compile_program(
    network: Network, box: IntegerBox, known: dict[str, Range], view: OutputView, classes: tuple[int, ...]
) -> Program:
    """Compile a network over a box.

    Args:
        network: any network of linear nodes and staircases.
        box: the input region.
        known: the result of `ranges` on the box (batch of one).
        view: the output accumulators.
        classes: the classes whose accumulators become units.

    Raises:
        UnsupportedModelError: a node kind that is not covered, or a network too large for dense matrices.
    """
    low, high = box.low.reshape(-1), box.high.reshape(-1)
    varies = np.flatnonzero(low < high)
    form = np.zeros((1 + varies.size, low.size))
    form[0] = np.where(low == high, low, 0)
    form[1 + np.arange(varies.size), varies] = 1.0
    forms: dict[str, _Form] = {network.input.name: _Form(form.reshape(-1, *network.input_shape))}
    builder = _Builder(1 + varies.size)
    last_use = {name: node.name for node in network.nodes for name in node.inputs}
    for node in network.nodes:
        if isinstance(node, Input):
            continue
        if isinstance(node, Staircase) and node is network.output and node.inputs[0] == view.node:
            break
        rows = builder.rows
        if rows * int(np.prod(network.shapes[node.name])) > SIZE_LIMIT:
            reason = f"{rows} × {network.shapes[node.name]} coefficients are too many for dense matrices"
            raise UnsupportedModelError(node.name, type(node).__name__, None, reason)
        if isinstance(node, Staircase):
            forms[node.name] = _Form(builder.add_staircase(node, forms[node.inputs[0]].widened(rows), known[node.inputs[0]]))
        else:
            forms[node.name] = _Form(_affine(node, [forms[name].widened(rows) for name in node.inputs]))
        for name in node.inputs:
            if last_use[name] == node.name and name != view.node:
                forms.pop(name, None)
    outputs = forms[view.node].widened(builder.rows)
    builder.add_outputs(view, outputs, known[view.node], classes)
    return builder.finish(varies, low[varies], high[varies])


class _Builder:
    """Collects units and their affine forms."""

    def __init__(self, rows: int) -> None:
        self.first_unit_row = rows
        self.rows = rows
        self.units: list[Unit] = []
        self.blocks: list[tuple[int, int]] = []
        self.forms: list[FloatArray] = []
        self.ranges: list[tuple[IntegerArray, IntegerArray]] = []
        self.steps: list[tuple[NDArray[np.float64], int]] = []

    def add_staircase(self, node: Staircase, form: FloatArray, known: Range) -> FloatArray:
        """Turn the elements that are not constant into units; returns the affine form of the staircase's value."""
        low, high = known[0].reshape(-1), known[1].reshape(-1)
        row = np.broadcast_to(node.row, form.shape[1:]).reshape(-1)
        least, greatest = np.empty_like(low), np.empty_like(high)
        for index in range(node.steps.rows):
            mine = row == index
            least[mine], greatest[mine] = node.steps.value(index, low[mine]), node.steps.value(index, high[mine])
        chosen = np.flatnonzero(least < greatest)
        flat = form.reshape(form.shape[0], -1)
        result = np.zeros((self.rows + chosen.size, low.size))
        result[0] = np.where(least == greatest, least, 0)
        result[self.rows + np.arange(chosen.size), chosen] = 1.0
        start = len(self.units)
        for element in chosen:
            self.units.append(Unit(node.inputs[0], int(element)))
            first, last = int(least[element]) - node.steps.low, int(greatest[element]) - node.steps.low
            self.steps.append((node.steps.thresholds[row[element], first:last].astype(np.float64), int(least[element])))
        if chosen.size:
            self.blocks.append((start, len(self.units)))
        self.forms.append(flat[:, chosen])
        self.ranges.append((low[chosen], high[chosen]))
        self.rows += chosen.size
        return result.reshape(-1, *form.shape[1:])

    def add_outputs(self, view: OutputView, form: FloatArray, known: Range, classes: tuple[int, ...]) -> None:
        element = view.element[list(classes)]
        start = len(self.units)
        self.units += [Unit(view.node, int(e), label) for e, label in zip(element, classes, strict=True)]
        self.blocks.append((start, len(self.units)))
        self.forms.append(form.reshape(form.shape[0], -1)[:, element])
        self.ranges.append((known[0].reshape(-1)[element], known[1].reshape(-1)[element]))
        self.steps += [(np.empty(0), 0)] * len(classes)

    def finish(self, index: IntegerArray, low: IntegerArray, high: IntegerArray) -> Program:
        count = len(self.units)
        matrix = np.zeros((count, self.first_unit_row + count))
        start = 0
        for form in self.forms:
            matrix[start : start + form.shape[1], : form.shape[0]] = form.T
            start += form.shape[1]
        if count and np.abs(matrix).max() >= EXACT_FLOAT64:
            raise UnsupportedModelError(self.units[0].node, "Dense", "weight", "coefficients of 2⁵³ or more are not supported")
        width = max((len(steps) for steps, _ in self.steps), default=0)
        thresholds = np.full((count, max(width, 1)), np.inf)
        spacing, unevenness = np.ones(count), np.zeros(count)
        for unit, (steps, _) in enumerate(self.steps):
            thresholds[unit, : len(steps)] = steps
            if len(steps) > 1:
                spacing[unit] = (steps[-1] - steps[0]) / (len(steps) - 1)
                line = steps[0] + spacing[unit] * np.arange(len(steps))
                deviation = steps - line
                if np.any(np.diff(steps) != steps[1] - steps[0]):
                    unevenness[unit] = np.ceil(deviation.max() - deviation.min()) + 1  # +1 covers rounding of the line
        first_value = np.array([first for _, first in self.steps], dtype=np.float64)
        last_value = first_value + [len(steps) for steps, _ in self.steps]
        largest_x = np.maximum(np.maximum(np.abs(low), np.abs(high)), 1).astype(np.float64)
        largest_y = np.maximum(np.maximum(np.abs(first_value), np.abs(last_value)), 1)
        equation_size = np.abs(matrix) @ np.concatenate([[1.0], largest_x, largest_y])
        convert = torch.from_numpy
        bounds = [np.concatenate([pair[side] for pair in self.ranges]).astype(np.float64) for side in (0, 1)]
        return Program(
            units=tuple(self.units),
            blocks=tuple(self.blocks),
            input_index=index,
            input_low=convert(low.astype(np.float64)),
            input_high=convert(high.astype(np.float64)),
            input_matrix=convert(matrix[:, 1 : self.first_unit_row].copy()),
            unit_matrix=convert(matrix[:, self.first_unit_row :].copy()),
            constant=convert(matrix[:, 0].copy()),
            low=convert(bounds[0]),
            high=convert(bounds[1]),
            thresholds=convert(thresholds),
            first_value=convert(first_value),
            spacing=convert(spacing),
            unevenness=convert(unevenness),
            has_value=convert(np.array([float(unit.label is None) for unit in self.units])),
            equation_size=convert(equation_size),
        )
