"""The search tree of a proof, kept on request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from qertify.network.tensor import IntegerArray
from qertify.specification.cases import Case


@dataclass(slots=True)
class SearchTree:
    """The proof as it grows, kept only on request: one row a node, from which a certificate can be written.

    Attributes:
        parent: index of the parent, −1 for the root of a case.
        case: the node's case.
        split: (unit, threshold, side) that made the node from its parent, side −1 for z ≤ threshold − 1 and +1 for
            z ≥ threshold; None for roots and for bisected cases.
        closed_by: "bound" with (multipliers, bits), "interval", the name of a leaf solver, "split", or "open".
    """

    parent: list[int] = field(default_factory=list[int])
    case: list[Case] = field(default_factory=list[Case])
    split: list[tuple[int, int, int] | None] = field(default_factory=list[tuple[int, int, int] | None])
    closed_by: list[str] = field(default_factory=list[str])
    multipliers: dict[int, tuple[IntegerArray, int]] = field(default_factory=dict[int, tuple[IntegerArray, int]])

    def add(self, parent: int, case: Case, split: tuple[int, int, int] | None) -> int:
        self.parent.append(parent)
        self.case.append(case)
        self.split.append(split)
        self.closed_by.append("open")
        return len(self.parent) - 1


@dataclass(frozen=True, slots=True, eq=False)
class SearchOutcome:
    """How a search ended.

    Attributes:
        proved: every domain is closed.
        counterexample: flattened input codes, replayed; or None.
        nodes: domains bounded.
        leaf_solvers: who closed leaves.
        margin: least proved margin among the open domains (None when none is open or bounded).
        nearest: the case of that domain.
        tree: the search tree, if it was kept.
        margins: the least proved margin of the open domains, case by case; −∞ where one is not bounded yet. None with a
            counterexample: it cuts a step short, and the domains of that step are neither closed nor open.
    """

    proved: bool
    counterexample: IntegerArray | None
    nodes: int
    leaf_solvers: frozenset[str]
    margin: float | None
    nearest: Case | None
    tree: SearchTree | None
    margins: dict[Case, float] | None


def least_margins(open_: Iterable[tuple[Case, float]]) -> dict[Case, float]:
    """The least of each case."""
    result: dict[Case, float] = {}
    for case, margin in open_:
        result[case] = min(margin, result.get(case, margin))
    return result
