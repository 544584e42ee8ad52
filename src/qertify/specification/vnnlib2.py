"""VNN-LIB 2.0 properties of one network, or of two with equal inputs, by the `vnnlib` package; its floats are never used."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from math import prod
from typing import Any, Literal

from qertify.errors import InvalidInputError, MissingExtraError
from qertify.specification.formula import (
    Connective,
    Formula,
    Linear,
    Specification,
    compare,
    number,
    specification,
    with_equal_inputs,
)
from qertify.specification.vnnlib import decimal, product

_COMPARISONS = {
    "LessEqual": "<=",
    "GreaterEqual": ">=",
    "LessThan": "<",
    "GreaterThan": ">",
    "Equal": "=",
    "NotEqual": "!=",
}


def read_version_2(text: str) -> Specification:
    """Read a property. Elements of a tensor are numbered in C order.

    Raises:
        InvalidInputError: refused by the package, more than two networks, two with different inputs, several tensors, or
            hidden nodes.
        MissingExtraError: the package is not installed.
    """
    try:
        package: Any = importlib.import_module("vnnlib")
    except ImportError as error:
        raise MissingExtraError("reading VNN-LIB 2.0", "vnnlib") from error
    try:
        query = package.parse_query_string(text)
    except package.VNNLibException as error:
        raise InvalidInputError(_complaint(str(error))) from error
    except (ValueError, IndexError, OverflowError, RuntimeError) as error:  # of its parser, which is written in C++
        raise InvalidInputError("can't be read by the vnnlib package: a character or a number that it does not know") from error
    networks = query.networks
    if len(networks) > 2:
        raise InvalidInputError(f"speaks of {len(networks)} networks; one, or two with equal inputs, can be decided")
    sizes: list[tuple[int, int]] = []
    for network in networks:
        if network.hidden:
            raise InvalidInputError("speaks of hidden nodes; only inputs and outputs can be constrained")
        if network.equal_to:
            raise InvalidInputError(
                f"says that network {network.name} is {network.equal_to} itself; only different ones are compared"
            )
        if len(network.inputs) != 1 or len(network.outputs) != 1:
            found = f"{len(network.inputs)} input and {len(network.outputs)} output tensors"
            raise InvalidInputError(f"declares {found}; one of each is needed")
        sizes.append((prod(network.inputs[0].shape), prod(network.outputs[0].shape)))
    inputs, outputs = sizes[0]
    order = {network.name: position for position, network in enumerate(networks)}
    assertions = [_formula(assertion.expr, _Variables(order, sizes[0])) for assertion in query.assertions]
    if len(networks) == 1:
        return specification(inputs, outputs, assertions)
    if sizes[0] != sizes[1]:
        raise InvalidInputError(f"speaks of networks with {sizes[0]} and {sizes[1]} inputs and outputs; they must be the same")
    return replace(specification(inputs, 2 * outputs, with_equal_inputs(inputs, assertions)), networks=2)


@dataclass(frozen=True, slots=True)
class _Variables:
    """Numbers variables: those of the second network follow those of the first.

    Attributes:
        order: name of a network → 0 or 1.
        sizes: inputs and outputs of each.
    """

    order: dict[str, int]
    sizes: tuple[int, int]

    def number(self, node: Any) -> Linear:
        """One element of a tensor."""
        letter: Literal["X", "Y"] = "X" if node.kind.name == "Input" else "Y"
        index = 0
        for position, size in zip(node.indices, node.shape, strict=True):
            index = index * size + position
        index += self.order[node.network_name] * self.sizes[letter == "Y"]
        return Linear({(letter, index): Fraction(1)}, Fraction(0))


def _complaint(text: str) -> str:
    """The package's message; for a wrong property it is a JSON object."""
    try:
        first = json.loads(text)["errors"][0]
        return f"line {first['line']}: {first['message']} '{first['offendingSymbol']}'. {first['hint']}"
    except (ValueError, KeyError, IndexError, TypeError):
        return text


def _formula(node: Any, variables: _Variables) -> Formula:
    kind = type(node).__name__
    if kind in ("And", "Or"):
        return Connective(kind == "Or", tuple(_formula(member, variables) for member in node.args))
    if kind in _COMPARISONS:
        return compare(_COMPARISONS[kind], _linear(node.lhs, variables), _linear(node.rhs, variables))
    raise InvalidInputError(f"'{str(node)[:60]}' is not understood")


def _linear(node: Any, variables: _Variables) -> Linear:
    match type(node).__name__:
        case "Var":
            return variables.number(node)
        case "Float" | "Int" | "IntExpr" | "Literal":
            return number(decimal(node.lexeme))
        case "Negate":
            return _linear(node.expr, variables).times(Fraction(-1))
        case "Plus":
            return reduce(Linear.plus, _all(node.args, variables))
        case "Minus":
            return reduce(lambda left, right: left.plus(right, -1), _all(node.rest, variables), _linear(node.head, variables))
        case "Multiply":
            return reduce(product, _all(node.args, variables))
        case _:
            raise InvalidInputError(f"'{str(node)[:60]}' is not understood")


def _all(nodes: Any, variables: _Variables) -> list[Linear]:
    return [_linear(node, variables) for node in nodes]
