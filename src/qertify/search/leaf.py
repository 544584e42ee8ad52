"""Leaves of a search: domains whose values are all fixed, which an exact solver decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from qertify.network.tensor import IntegerArray
from qertify.specification.cases import Case


class Closure(Enum):
    """What a leaf solver found out about one leaf."""

    EMPTY = "empty"
    COUNTEREXAMPLE = "counterexample"
    OPEN = "open"


@dataclass(frozen=True, slots=True, eq=False)
class LeafAnswer:
    """What a leaf holds.

    Attributes:
        counterexample: a replayed input, when there is one.
        by: who says so: "enumeration" or the name of a solver.
    """

    closure: Closure
    counterexample: IntegerArray | None = None
    by: str = ""


Leaf = Callable[[Case, Tensor, Tensor], LeafAnswer]
"""Case and bounds (N,) of a domain whose values are all fixed → what it holds."""


def open_leaf(_case: Case, _low: Tensor, _high: Tensor) -> LeafAnswer:
    """A leaf solver that leaves every leaf open."""
    return LeafAnswer(Closure.OPEN)
