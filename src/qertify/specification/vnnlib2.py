"""VNN-LIB 2.0 properties of one network, through the `vnnlib` package's syntax tree; its floats are never used."""

from __future__ import annotations

import importlib
import json
from fractions import Fraction
from functools import reduce
from math import prod
from typing import Any, Literal

from qertify.errors import InvalidInputError, MissingExtraError
from qertify.specification.formula import Connective, Formula, Linear, Specification, compare, number, specification
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
        InvalidInputError: refused by the package, several networks or tensors, or hidden nodes.
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
    if len(query.networks) != 1:
        raise InvalidInputError(f"speaks of {len(query.networks)} networks; a property of one network is needed")
    (network,) = query.networks
    if network.hidden:
        raise InvalidInputError("speaks of hidden nodes; only inputs and outputs can be constrained")
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        found = f"{len(network.inputs)} input and {len(network.outputs)} output tensors"
        raise InvalidInputError(f"declares {found}; one of each is needed")
    sizes = [prod(tensor.shape) for tensor in (network.inputs[0], network.outputs[0])]
    return specification(sizes[0], sizes[1], [_formula(assertion.expr) for assertion in query.assertions])


def _complaint(text: str) -> str:
    """The package's message; for a wrong property it is a JSON object."""
    try:
        first = json.loads(text)["errors"][0]
        return f"line {first['line']}: {first['message']} '{first['offendingSymbol']}'. {first['hint']}"
    except (ValueError, KeyError, IndexError, TypeError):
        return text


def _formula(node: Any) -> Formula:
    kind = type(node).__name__
    if kind in ("And", "Or"):
        return Connective(kind == "Or", tuple(_formula(member) for member in node.args))
    if kind in _COMPARISONS:
        return compare(_COMPARISONS[kind], _linear(node.lhs), _linear(node.rhs))
    raise InvalidInputError(f"'{str(node)[:60]}' is not understood")


def _linear(node: Any) -> Linear:
    match type(node).__name__:
        case "Var":
            return _variable(node)
        case "Float" | "Int" | "IntExpr" | "Literal":
            return number(decimal(node.lexeme))
        case "Negate":
            return _linear(node.expr).times(Fraction(-1))
        case "Plus":
            return reduce(Linear.plus, map(_linear, node.args))
        case "Minus":
            return reduce(lambda left, right: left.plus(right, -1), map(_linear, node.rest), _linear(node.head))
        case "Multiply":
            return reduce(product, map(_linear, node.args))
        case _:
            raise InvalidInputError(f"'{str(node)[:60]}' is not understood")


def _variable(node: Any) -> Linear:
    letter: Literal["X", "Y"] = "X" if node.kind.name == "Input" else "Y"
    index = 0
    for position, size in zip(node.indices, node.shape, strict=True):
        index = index * size + position
    return Linear({(letter, index): Fraction(1)}, Fraction(0))
