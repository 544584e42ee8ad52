"""Compiling a network over a box into a `Program`: affine forms are pushed through the graph, exactly."""

from __future__ import annotations

from math import prod

import numpy as np

from qertify.bounds.builder import SIZE_LIMIT, Builder, widen
from qertify.bounds.program import Program
from qertify.errors import UnsupportedModelError
from qertify.network.linear import EXACT_FLOAT64, absolute_sum, bias_of, weight_of, weighted_sum
from qertify.network.network import Network
from qertify.network.nodes import (
    Add,
    Convolution,
    Dense,
    Input,
    Linear,
    Max,
    Node,
    PoolSum,
    Product,
    Rearrange,
    Staircase,
    Table,
)
from qertify.network.ranges import Range, rearrange
from qertify.network.tensor import FloatArray
from qertify.specification.cases import OutputView
from qertify.specification.region import IntegerBox


def compile_program(
    network: Network, box: IntegerBox, known: dict[str, Range], view: OutputView, classes: tuple[int, ...]
) -> Program:
    """Compile a network over a box.

    Args:
        network: any network.
        box: the input region.
        known: the result of `ranges` on the box (batch of one).
        view: the output accumulators.
        classes: the classes whose accumulators become units.

    Raises:
        UnsupportedModelError: a network too large for dense matrices, or with numbers too large for float64.
    """
    builder = Builder()
    forms = {network.input.name: builder.add_inputs(box.low, box.high)}
    last_use = {name: node.name for node in network.nodes for name in node.inputs}
    for node in network.nodes:
        if isinstance(node, Input):
            continue
        if isinstance(node, Staircase) and node is network.output and node.inputs[0] == view.node:
            break
        inputs = [widen(forms[name], builder.rows) for name in node.inputs]
        forms[node.name] = integer_form(builder, node, inputs, [known[name] for name in node.inputs], network.shapes[node.name])
        for name in node.inputs:
            if last_use[name] == node.name and name != view.node:
                forms.pop(name, None)
    builder.add_outputs(view, widen(forms[view.node], builder.rows), known[view.node], classes)
    return builder.finish()


def integer_form(
    builder: Builder, node: Node, inputs: list[FloatArray], known: list[Range], shape: tuple[int, ...]
) -> FloatArray:
    """The affine form of a node's value, from those of its inputs and their ranges; the node's units join the builder.

    Raises:
        UnsupportedModelError: too many coefficients for dense matrices, or numbers too large for float64.
    """
    if builder.rows * prod(shape) > SIZE_LIMIT:
        reason = f"{builder.rows} × {shape} coefficients are too many for dense matrices"
        raise UnsupportedModelError(node.name, type(node).__name__, None, reason)
    match node:
        case Dense() | Convolution() | PoolSum():
            return _linear(node, inputs[0])
        case Add():
            return np.sum(inputs, axis=0)
        case Rearrange():
            return rearranged(node, inputs)
        case Staircase():
            return builder.add_staircase(node, inputs[0], known[0])
        case Max():
            return builder.add_max(node, inputs[0], known[0])
        case Table():
            return builder.add_table(node, inputs[0], known[0])
        case Product():
            return builder.add_product(node, inputs, known)
        case Input():
            raise AssertionError("the input's form is given")


def _linear(node: Linear, form: FloatArray) -> FloatArray:
    weight = weight_of(node)
    shifted = form.copy()
    shifted[0] -= node.zero_point
    if absolute_sum(node, int(np.abs(shifted).max())) >= EXACT_FLOAT64:
        raise UnsupportedModelError(node.name, type(node).__name__, "weight", "coefficients of 2⁵³ or more are not supported")
    result = weighted_sum(node, None if weight is None else weight.astype(np.float64), shifted)
    result[0] += bias_of(node)
    return result


def rearranged(node: Rearrange, forms: list[FloatArray]) -> FloatArray:
    """The affine forms of the elements that a node picks."""
    result = rearrange(node, [form.astype(np.int64) for form in forms]).astype(np.float64)
    result[1:, node.indices < 0] = 0.0
    return result
