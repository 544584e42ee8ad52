"""Properties in VNN-LIB files: 1.0 (S-expressions over X_i and Y_j) by a small reader, 2.0 by the `vnnlib` package.

A file states the violation: "sat" means that some input of the box has outputs as it says. (S. Demarchi et al., "Supporting
Standardization of Neural Networks Verification with VNNLIB and CoCoNet", FoMLAS 2023; www.vnnlib.org.)
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Literal, TypeAlias

from qertify.errors import InvalidInputError
from qertify.specification.formula import Connective, Formula, Linear, Specification, compare, negated, number, specification

SIZE_LIMIT = 64 << 20
"""Largest file, unpacked, in bytes."""
TOKEN_LIMIT = 4_000_000
"""Most parentheses, names and numbers."""
DEPTH_LIMIT = 100
"""Deepest nesting of parentheses."""
VARIABLE_LIMIT = 1_000_000

Expression: TypeAlias = "str | list[Expression]"

_TOKEN = re.compile(r"[()]|[^\s();]+|;[^\n]*")
_NUMBER = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,3})?", re.ASCII)
_VARIABLE = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)
_HARMLESS = {"set-logic", "set-info", "check-sat", "exit"}


def read_vnnlib(path: str | os.PathLike[str]) -> Specification:
    """Read a property, version 1.0 or 2.0, also packed with gzip.

    Raises:
        InvalidInputError: an unreadable, damaged, malformed, contradictory or too large file, or one that says what can't be
            decided here (see `specification`); the message names the file.
        MissingExtraError: version 2.0 without the `vnnlib` package.
    """
    try:
        text = _text(Path(path))
        forms = _parse(text)
        if forms and isinstance(forms[0], list) and forms[0][:1] == ["vnnlib-version"]:
            from qertify.specification.vnnlib2 import read_version_2

            return read_version_2(text)
        return _Reader().read(forms)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(SIZE_LIMIT + 1)
        if len(data) > SIZE_LIMIT:
            raise InvalidInputError(f"holds more than {SIZE_LIMIT >> 20} MiB")
        return data.decode("utf-8")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInputError(f"damaged or truncated gzip data ({error})") from error
    except OSError as error:
        raise InvalidInputError(f"can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError("is not a text file") from error


def _parse(text: str) -> list[Expression]:
    """The forms at the top of a text."""
    top: list[Expression] = []
    stack: list[list[Expression]] = [top]
    for count, match in enumerate(_TOKEN.finditer(text)):
        token = match[0]
        if count >= TOKEN_LIMIT:
            raise InvalidInputError(f"holds more than {TOKEN_LIMIT} parentheses, names and numbers")
        if token == "(":
            if len(stack) > DEPTH_LIMIT:
                raise InvalidInputError(f"{_line(text, match)}: parentheses nested deeper than {DEPTH_LIMIT}")
            inner: list[Expression] = []
            stack[-1].append(inner)
            stack.append(inner)
        elif token == ")":
            if len(stack) == 1:
                raise InvalidInputError(f"{_line(text, match)}: a closing parenthesis too many")
            stack.pop()
        elif token[0] != ";":
            stack[-1].append(token)
    if len(stack) > 1:
        raise InvalidInputError(f"ends within {len(stack) - 1} open parenthesis(es): truncated?")
    return top


def _line(text: str, match: re.Match[str]) -> str:
    return f"line {text.count(chr(10), 0, match.start()) + 1}"


def decimal(text: str) -> Fraction:
    """A decimal constant, exactly.

    Raises:
        InvalidInputError: no such number.
    """
    if not _NUMBER.fullmatch(text):
        raise InvalidInputError(f"'{_short(text)}' is neither a number nor a declared variable")
    return Fraction(text)


def _short(expression: Expression) -> str:
    """The beginning of an expression, for messages."""
    if isinstance(expression, str):
        return expression[:40]
    inside = " ".join(part[:20] if isinstance(part, str) else "(…)" for part in expression[:5])
    return f"({inside}{' …' if len(expression) > 5 else ''})"


class _Reader:
    """Version 1.0."""

    def __init__(self) -> None:
        self._declared: dict[str, set[int]] = {"X": set(), "Y": set()}

    def read(self, forms: list[Expression]) -> Specification:
        assertions: list[Formula] = []
        for form in forms:
            match form:
                case ["declare-const", str(name), "Real"] | ["declare-fun", str(name), [], "Real"]:
                    self._declare(name)
                case ["assert", body]:
                    assertions.append(self._formula(body))
                case [str(head), *_] if head in _HARMLESS:
                    pass
                case _:
                    raise InvalidInputError(f"'{_short(form)}' is not understood; declare-const NAME Real and assert are")
        for letter, what in (("X", "input"), ("Y", "output")):
            indices = self._declared[letter]
            if not indices:
                raise InvalidInputError(f"declares no {what} {letter}_0")
            if max(indices) != len(indices) - 1:
                missing = next(index for index in range(len(indices)) if index not in indices)
                raise InvalidInputError(f"declares {letter}_{max(indices)}, but not {letter}_{missing}")
        return specification(len(self._declared["X"]), len(self._declared["Y"]), assertions)

    def _declare(self, name: str) -> None:
        found = _VARIABLE.fullmatch(name)
        if found is None or int(found[2]) >= VARIABLE_LIMIT:
            raise InvalidInputError(f"declares '{_short(name)}'; variables must be called X_0, X_1, … and Y_0, Y_1, …")
        if int(found[2]) in self._declared[found[1]]:
            raise InvalidInputError(f"declares {name} twice")
        self._declared[found[1]].add(int(found[2]))

    def _formula(self, expression: Expression) -> Formula:
        match expression:
            case ["and" | "or" as name, *members] if members:
                return Connective(name == "or", tuple(self._formula(member) for member in members))
            case ["not", member]:
                return negated(self._formula(member))
            case ["=>", first, second]:
                return Connective(True, (negated(self._formula(first)), self._formula(second)))
            case ["<=" | ">=" | "<" | ">" | "=" as operator, left, right]:
                return compare(operator, self._linear(left), self._linear(right))
            case _:
                raise InvalidInputError(f"'{_short(expression)}' is no formula of and, or, not, =>, <=, >=, <, > and =")

    def _linear(self, expression: Expression) -> Linear:
        match expression:
            case str(name):
                return self._variable(name)
            case ["+", *terms] if terms:
                return reduce(Linear.plus, map(self._linear, terms))
            case ["-", term]:
                return self._linear(term).times(Fraction(-1))
            case ["-", first, *rest] if rest:
                return reduce(lambda left, right: left.plus(right, -1), map(self._linear, rest), self._linear(first))
            case ["*", *factors] if factors:
                return reduce(product, map(self._linear, factors))
            case ["/", term, divisor]:
                by = self._linear(divisor)
                if by.coefficients or not by.constant:
                    raise InvalidInputError(f"'{_short(expression)}' divides by a variable or by zero")
                return self._linear(term).times(1 / by.constant)
            case _:
                raise InvalidInputError(f"'{_short(expression)}' is no term of +, -, * and /")

    def _variable(self, name: str) -> Linear:
        found = _VARIABLE.fullmatch(name)
        if found is None:
            return number(decimal(name))
        letter: Literal["X", "Y"] = "X" if found[1] == "X" else "Y"
        if int(found[2]) not in self._declared[letter]:
            raise InvalidInputError(f"uses {name}, which is not declared")
        return Linear({(letter, int(found[2])): Fraction(1)}, Fraction(0))


def product(left: Linear, right: Linear) -> Linear:
    """The product of two terms, at least one of them constant.

    Raises:
        InvalidInputError: a product of variables.
    """
    if left.coefficients and right.coefficients:
        raise InvalidInputError("multiplies variables with each other; only linear constraints can be decided")
    return right.times(left.constant) if not left.coefficients else left.times(right.constant)
