"""Cases of a violation as an integer program, exactly: a feasible point is an input that violates the property.

Every input element, accumulator and unstable value is a column. Nothing is relaxed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qertify.ilp.builder import Builder, ContradictionError, Term, Values
from qertify.ilp.model import Program
from qertify.ilp.rules import RULES, Context
from qertify.ilp.violation import encode_violation
from qertify.network.network import Network
from qertify.network.nodes import Input
from qertify.network.ranges import RULES as RANGES
from qertify.network.ranges import Range
from qertify.network.tensor import IntegerArray
from qertify.specification.cases import Case, OutputView
from qertify.specification.region import IntegerBox

Bounds = Mapping[str, tuple[IntegerArray, IntegerArray]]
"""Extra bounds on nodes: name → least and greatest values, of the node's shape or flat."""


@dataclass(frozen=True, slots=True, eq=False)
class Distance:
    """What is asked for is a violation at the least distance from a centre, in levels of the input.

    Attributes:
        centre: int64, the input shape.
        least, greatest: only distances of this range count.
    """

    centre: IntegerArray
    least: int
    greatest: int


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """A program and the way back from its points to inputs.

    Attributes:
        program: feasible ⇔ some case has a violation in the box within the bounds; its objective is the distance, if asked for.
        column: int64, shape (inputs,): column of each input element, −1 for a constant one.
        constant: int64, shape (inputs,): the constant ones.
        pattern: int64: columns of the staircase and table values; with them fixed only a lattice question is left.
    """

    program: Program
    column: IntegerArray
    constant: IntegerArray
    pattern: IntegerArray

    def inputs(self, values: IntegerArray) -> IntegerArray:
        """The input codes, flattened, of a point of the program."""
        codes = self.constant.copy()
        free = self.column >= 0
        codes[free] = values[self.column[free]]
        return codes


def encode(
    network: Network,
    box: IntegerBox,
    view: OutputView,
    cases: Sequence[Sequence[Case]],
    known: Mapping[str, Range],
    bounds: Bounds | None = None,
    encoding: str = "compact",
    distance: Distance | None = None,
    propagate: bool = True,
) -> Encoding | None:
    """Encode a case, or that one of several holds.

    Args:
        network, box: where to look for a violation.
        view: the network's output accumulators.
        cases: each as its single levels, in order (`Splitter.levels`); empty ones are out of reach.
        known: proved ranges of all nodes over the box, shape (1, *node shape).
        bounds: extra bounds on accumulators: only inputs that keep them count.
        encoding: of step functions and of the choice of a case, "compact" or "one-hot".
        distance: minimise the distance from a centre.
        propagate: carry the box and the bounds through the network by interval arithmetic; else only ``known`` limits nodes.

    Returns:
        the program, or None if exact interval arithmetic already shows that it has no solution.

    Raises:
        UnsupportedModelError: numbers too large for the program.
    """
    context = Context(Builder(), network.shapes, encoding)
    try:
        if not any(cases):
            raise ContradictionError
        values = _encode_nodes(network, box, view.node, known, bounds or {}, context, propagate)
        encode_violation(context.builder, values[view.node], view, [case for case in cases if case], encoding)
        inputs = values[network.input.name]
        radius = None if distance is None else _encode_distance(context.builder, inputs, distance)
        program, renumbered = context.builder.finish()
    except ContradictionError:
        return None
    if radius is not None:
        program.objective[renumbered[radius.column]] = 1
    column = np.where(inputs.column >= 0, renumbered[inputs.column], -1) if len(renumbered) else inputs.column
    pattern = renumbered[np.array(context.pattern, dtype=np.int64)]
    return Encoding(program, column, inputs.constant, pattern[pattern >= 0])


def _encode_distance(builder: Builder, inputs: Values, distance: Distance) -> Term:
    """The greatest distance of an input element, or more; minimised it is the distance.

    Raises:
        ContradictionError: a constant input beyond the greatest distance.
    """
    radius = builder.column(distance.least, distance.greatest, integer=True)
    for at, value in enumerate(distance.centre.reshape(-1).tolist()):
        builder.row([(1, inputs[at]), (-1, radius)], None, value)
        builder.row([(1, inputs[at]), (1, radius)], value, None)
    return radius


def _ancestors(network: Network, name: str) -> set[str]:
    needed = {name, network.input.name}
    for node in reversed(network.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return needed


def _encode_nodes(
    network: Network,
    box: IntegerBox,
    last: str,
    known: Mapping[str, Range],
    bounds: Bounds,
    context: Context,
    propagate: bool,
) -> dict[str, Values]:
    """Encode all nodes that ``last`` depends on; returns their elements.

    Raises:
        ContradictionError: the bounds contradict interval arithmetic.
    """
    builder, needed = context.builder, _ancestors(network, last)
    values: dict[str, Values] = {}
    tight: dict[str, Range] = {}
    for node in network.nodes:
        if node.name not in needed:
            continue
        builder.node = node.name
        low, high = known[node.name]
        if isinstance(node, Input):
            low, high = np.maximum(low, box.low), np.minimum(high, box.high)
        elif propagate:
            less, more = RANGES[type(node)](node, [tight[name] for name in node.inputs])
            low, high = np.maximum(low, less), np.minimum(high, more)
        _require(low, high)
        context.range[node.name] = low.reshape(-1), high.reshape(-1)
        values[node.name] = RULES[type(node)](context, node, [values[name] for name in node.inputs])
        constant = (values[node.name].column < 0).reshape(low.shape)
        low, high = (np.where(constant, values[node.name].constant.reshape(low.shape), bound) for bound in (low, high))
        context.range[node.name] = low.reshape(-1), high.reshape(-1)
        if node.name in bounds:
            less, more = (np.asarray(bound, dtype=np.int64).reshape(low.shape) for bound in bounds[node.name])
            for index in np.flatnonzero((less > low) | (more < high)).tolist():
                builder.restrict(values[node.name][index], int(less.flat[index]), int(more.flat[index]))
            low, high = np.maximum(low, less), np.minimum(high, more)
            _require(low, high)
            context.range[node.name] = low.reshape(-1), high.reshape(-1)
        tight[node.name] = low, high
    return values


def _require(low: IntegerArray, high: IntegerArray) -> None:
    if np.any(low > high):
        raise ContradictionError
