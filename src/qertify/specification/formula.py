"""Formulas over a network's inputs X and outputs Y, and what they mean: input boxes, each with a violation on outputs.

Everything is exact: numbers are fractions, strict inequalities stay strict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, TypeAlias

from qertify.errors import InvalidInputError
from qertify.specification.linear import Constraint, Disjunction

CONJUNCTION_LIMIT = 20_000
ATOM_LIMIT = 2_000_000
"""Largest disjunctive normal form: its conjunctions, and the inequalities in all of them together."""
NUMBER_LIMIT = 4096
"""Most bits of a numerator or denominator."""

Variable: TypeAlias = tuple[Literal["X", "Y"], int]


@dataclass(frozen=True, slots=True)
class Linear:
    """constant + Σ coefficient · variable; no coefficient is zero.

    Raises:
        InvalidInputError: a number of more than 4,096 bits.
    """

    coefficients: dict[Variable, Fraction]
    constant: Fraction

    def __post_init__(self) -> None:
        for value in (self.constant, *self.coefficients.values()):
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > NUMBER_LIMIT:
                raise InvalidInputError(f"holds a number of more than {NUMBER_LIMIT} bits")

    def plus(self, other: Linear, factor: Fraction | int = 1) -> Linear:
        """self + factor · other."""
        result = dict(self.coefficients)
        for variable, coefficient in other.coefficients.items():
            total = result.get(variable, Fraction(0)) + factor * coefficient
            if total:
                result[variable] = total
            else:
                result.pop(variable, None)
        return Linear(result, self.constant + factor * other.constant)

    def times(self, factor: Fraction) -> Linear:
        return Linear({v: factor * c for v, c in self.coefficients.items()} if factor else {}, factor * self.constant)


def number(value: Fraction | int) -> Linear:
    """A constant."""
    return Linear({}, Fraction(value))


@dataclass(frozen=True, slots=True)
class Atom:
    """left ≤ 0, or left < 0 if strict."""

    left: Linear
    strict: bool

    def negated(self) -> Atom:
        return Atom(self.left.times(Fraction(-1)), not self.strict)


@dataclass(frozen=True, slots=True)
class Connective:
    """All of the members hold, or any of them."""

    any: bool
    members: tuple[Formula, ...]


Formula: TypeAlias = Atom | Connective


def compare(operator: str, left: Linear, right: Linear) -> Formula:
    """left operator right, for <=, >=, <, >, = and !=."""
    difference = left.plus(right, -1)
    match operator:
        case "<=":
            return Atom(difference, False)
        case "<":
            return Atom(difference, True)
        case ">=":
            return Atom(difference.times(Fraction(-1)), False)
        case ">":
            return Atom(difference.times(Fraction(-1)), True)
        case "=":
            return Connective(False, (compare("<=", left, right), compare(">=", left, right)))
        case _:
            return Connective(True, (compare("<", left, right), compare(">", left, right)))


def negated(formula: Formula) -> Formula:
    """The opposite."""
    if isinstance(formula, Atom):
        return formula.negated()
    return Connective(not formula.any, tuple(negated(member) for member in formula.members))


_Conjunctions: TypeAlias = list[tuple[Atom, ...]]


def _normal_form(formula: Formula) -> _Conjunctions:
    """The formula as a disjunction of conjunctions."""
    if isinstance(formula, Atom):
        return [(formula,)]
    parts = [_normal_form(member) for member in formula.members]
    if formula.any:
        return _checked([conjunction for part in parts for conjunction in part])
    # what all conjunctions share is joined once, or a thousand bounds would be copied a thousand times
    result: _Conjunctions = [tuple(atom for part in parts if len(part) == 1 for atom in part[0])]
    for part in parts:
        if len(part) != 1:
            _require(len(result) * len(part), sum(map(len, result)) * len(part) + sum(map(len, part)) * len(result))
            result = [(*first, *second) for first in result for second in part]
    return result


def _checked(conjunctions: _Conjunctions) -> _Conjunctions:
    _require(len(conjunctions), sum(map(len, conjunctions)))
    return conjunctions


def _require(conjunctions: int, atoms: int) -> None:
    if conjunctions > CONJUNCTION_LIMIT or atoms > ATOM_LIMIT:
        raise InvalidInputError(
            f"its disjunctive normal form has more than {CONJUNCTION_LIMIT} conjunctions or {ATOM_LIMIT} inequalities"
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """One side of an input's interval; the value itself is left out if strict."""

    value: Fraction
    strict: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A box of inputs and what is a violation there.

    Attributes:
        low, high: one bound an input, in C order.
        violation: on the outputs.
    """

    low: tuple[Bound, ...]
    high: tuple[Bound, ...]
    violation: Disjunction


@dataclass(frozen=True, slots=True)
class Specification:
    """When a property is violated: some input of some part has outputs in the part's violation.

    Attributes:
        inputs, outputs: how many it declares; outputs of several networks follow each other.
        parts: at least one.
        networks: that read the same inputs.
    """

    inputs: int
    outputs: int
    parts: tuple[Part, ...]
    networks: int = 1


def specification(inputs: int, outputs: int, assertions: Sequence[Formula]) -> Specification:
    """The parts of a conjunction of formulas.

    Raises:
        InvalidInputError: contradictory or missing input bounds, input constraints other than bounds, constraints that mix
            inputs and outputs, or a normal form that is too large.
    """
    parts: dict[tuple[tuple[Bound, ...], tuple[Bound, ...]], list[tuple[Constraint, ...]]] = {}
    empty: int | None = None
    for conjunction in _normal_form(Connective(False, tuple(assertions))):
        low: list[Bound | None] = [None] * inputs
        high: list[Bound | None] = [None] * inputs
        constraints: list[Constraint] = []
        possible = True
        for atom in conjunction:
            kinds = {kind for kind, _ in atom.left.coefficients}
            if not kinds:
                possible &= atom.left.constant < 0 or (atom.left.constant == 0 and not atom.strict)
            elif kinds == {"Y"}:
                constraints.append(_constraint(atom))
            else:
                _bound(atom, low, high)
        if not possible:
            continue
        box = _complete(low, "lower"), _complete(high, "upper")
        hole = next((i for i, (least, most) in enumerate(zip(*box, strict=True)) if _empty(least, most)), None)
        if hole is None:
            parts.setdefault(box, []).append(tuple(constraints))
        else:
            empty = hole
    if not parts:
        where = "its constraints" if empty is None else f"the bounds of X_{empty}"
        raise InvalidInputError(f"is contradictory: no input fulfils {where}")
    return Specification(
        inputs, outputs, tuple(Part(*box, tuple(dict.fromkeys(violation))) for box, violation in parts.items())
    )


def with_equal_inputs(inputs: int, assertions: Sequence[Formula]) -> list[Formula]:
    """The assertions about two networks, X_inputs + i of the second one replaced by X_i, which it must be asserted to equal.

    Raises:
        InvalidInputError: inputs that are not said to be equal, one by one and unconditionally.
    """
    said: set[tuple[int, int]] = set()
    rest: list[Formula] = []
    for formula in _conjuncts(assertions):
        match formula:
            case Atom(Linear(coefficients, Fraction(numerator=0)), False) if (
                len(coefficients) == 2 and sum(coefficients.values()) == 0
            ):
                low, high = sorted(coefficients)
                if low[0] == high[0] == "X" and high[1] == low[1] + inputs:
                    said.add((low[1], 1 if coefficients[low] > 0 else -1))
                    continue
            case _:
                pass
        rest.append(formula)
    for index in range(inputs):
        if not {(index, 1), (index, -1)} <= said:
            raise InvalidInputError(
                f"does not say that both networks read the same input {index}; two networks are only compared on equal inputs"
            )
    return [_merged(formula, inputs) for formula in rest]


def _conjuncts(formulas: Iterable[Formula]) -> Iterable[Formula]:
    """What is asserted, conjunctions taken apart."""
    for formula in formulas:
        if isinstance(formula, Connective) and not formula.any:
            yield from _conjuncts(formula.members)
        else:
            yield formula


def _merged(formula: Formula, inputs: int) -> Formula:
    if isinstance(formula, Connective):
        return Connective(formula.any, tuple(_merged(member, inputs) for member in formula.members))
    result = number(formula.left.constant)
    for (kind, index), factor in formula.left.coefficients.items():
        result = result.plus(Linear({(kind, index % inputs if kind == "X" else index): factor}, Fraction(0)))
    return Atom(result, formula.strict)


def _constraint(atom: Atom) -> Constraint:
    coefficients = sorted((index, factor) for (_, index), factor in atom.left.coefficients.items())
    return Constraint(tuple(coefficients), -atom.left.constant, atom.strict)


def _bound(atom: Atom, low: list[Bound | None], high: list[Bound | None]) -> None:
    """Tighten the bounds of an input."""
    if len(atom.left.coefficients) > 1:
        names = ", ".join(f"{kind}_{index}" for kind, index in list(atom.left.coefficients)[:4])
        raise InvalidInputError(f"relates {names} in one constraint; inputs may only be bounded one by one, by constants")
    (((_, index), factor),) = atom.left.coefficients.items()
    bound = Bound(-atom.left.constant / factor, atom.strict)
    side = high if factor > 0 else low
    other = side[index]
    if other is None or (bound.value < other.value if factor > 0 else bound.value > other.value):
        side[index] = bound
    elif bound.value == other.value:
        side[index] = replace(bound, strict=bound.strict or other.strict)


def _complete(side: Iterable[Bound | None], what: str) -> tuple[Bound, ...]:
    result: list[Bound] = []
    for index, bound in enumerate(side):
        if bound is None:
            raise InvalidInputError(f"X_{index} has no {what} bound; every input needs one")
        result.append(bound)
    return tuple(result)


def _empty(low: Bound, high: Bound) -> bool:
    return low.value > high.value or (low.value == high.value and (low.strict or high.strict))
