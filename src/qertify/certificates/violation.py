"""What a claim's violation is, on a network's output accumulators: derived from scratch for checking a proof."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qertify.certificates.format import CaseClaim, Claim
from qertify.network.network import Network
from qertify.network.nodes import Rearrange, Staircase
from qertify.network.staircase import Steps
from qertify.network.tensor import IntegerArray

Weights = tuple[tuple[int, int], ...]
"""Class and weight of each term of an objective Σ weight·z."""
WEIGHT_LIMIT = 1 << 61


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """The output accumulators: element[k] of ``node`` makes output k, through row[k] of ``steps`` unless that is None."""

    node: str
    element: IntegerArray
    steps: Steps | None
    row: IntegerArray


def outputs_of(network: Network) -> Outputs:
    """Look through reordering and the last staircase."""
    node, element = network.output, np.arange(network.output_size, dtype=np.int64)
    while isinstance(node, Rearrange) and len(node.inputs) == 1 and np.all(node.indices >= 0):
        node, element = network.by_name[node.inputs[0]], node.indices.reshape(-1)[element]
    if not isinstance(node, Staircase):
        return Outputs(node.name, element, None, np.zeros_like(element))
    row = np.broadcast_to(node.row, network.shapes[node.name]).reshape(-1)[element]
    return Outputs(node.inputs[0], element, node.steps, row)


def violated(claim: Claim, outputs: IntegerArray) -> np.ndarray:
    """Whether another class, or the target, beats the label; outputs (batch, classes) → bool (batch,). The definition."""
    own, result = outputs[:, claim.label], np.zeros(len(outputs), dtype=bool)
    for competitor in competitors(claim, outputs.shape[1]):
        other = outputs[:, competitor]
        result |= other >= own if wins_tie(claim, competitor) else other > own
    return result


def competitors(claim: Claim, classes: int) -> list[int]:
    """The classes that must not beat the label."""
    return [claim.target] if claim.target is not None else [j for j in range(classes) if j != claim.label]


def wins_tie(claim: Claim, competitor: int) -> bool:
    """Whether an output equal to the label's beats it."""
    return {"first": competitor < claim.label, "last": competitor > claim.label, "violation": True}[claim.ties]


@dataclass(frozen=True, slots=True)
class Atom:
    """One way to violate the claim: z_i ≤ upper[i], z_i ≥ lower[i], and Σ weight·z ≤ limit where there are weights."""

    upper: dict[int, int] = field(default_factory=dict[int, int])
    lower: dict[int, int] = field(default_factory=dict[int, int])
    weights: Weights = ()
    limit: int = 0

    def within(self, low: list[int], high: list[int]) -> bool:
        """Whether ranges of the accumulators allow it."""
        possible = all(low[i] <= bound for i, bound in self.upper.items()) and all(high[i] >= b for i, b in self.lower.items())
        return possible and sum(w * (low if w > 0 else high)[i] for i, w in self.weights) <= self.limit

    def greatest(self, weights: Weights) -> int | None:
        """The most that Σ weight·z can be in it; None if it allows any number."""
        if self.weights and weights == self.weights:
            return self.limit
        result = 0
        for i, weight in weights:
            bounds = self.upper if weight > 0 else self.lower
            if i not in bounds:
                return None
            result += weight * bounds[i]
        return result


@dataclass(frozen=True, slots=True)
class Summary:
    """What all atoms of a case have in common: bounds, and the most that the objective can be in any of them.

    Attributes:
        empty: the case has no atom within reach.
    """

    empty: bool
    upper: dict[int, int]
    lower: dict[int, int]
    weights: dict[int, int]
    limit: int


def summarise(parts: list[Atom], weights: Weights, classes: int) -> Summary:
    """Summarise the atoms of a case.

    Raises:
        ValueError: an objective that says nothing about them, or of classes that don't exist.
    """
    merged: dict[int, int] = {}
    for index, weight in weights:
        merged[index] = merged.get(index, 0) + weight
    if any(not 0 <= index < classes for index in merged) or sum(abs(weight) for _, weight in weights) >= WEIGHT_LIMIT:
        raise ValueError("its objective is on classes that don't exist, or has too large weights")
    limits = [part.greatest(weights) for part in parts]
    if any(limit is None for limit in limits):
        raise ValueError("its objective says nothing about its case")
    upper, lower = (
        {
            i: pick(getattr(part, side)[i] for part in parts)
            for i in range(classes)
            if parts and all(i in getattr(part, side) for part in parts)
        }
        for side, pick in (("upper", max), ("lower", min))
    )
    return Summary(not parts, upper, lower, merged, max((limit for limit in limits if limit is not None), default=0))


def atoms(claim: Claim, outputs: Outputs) -> dict[tuple[int | None, int], Atom]:
    """All ways to violate the claim, by competitor and level v; they cover it.

    A competitor j beats the label t where the label's output is at most v and its own is at least v + 1, or v if it wins
    ties, for some v. With thresholds T: z_t ≤ T_t(v+1) − 1 and z_j ≥ T_j(v+1), or T_j(v). At the lowest level a competitor that
    wins ties needs nothing: key None, for all such competitors.
    """
    label, steps = claim.label, outputs.steps
    result: dict[tuple[int | None, int], Atom] = {}
    for competitor in competitors(claim, len(outputs.element)):
        tie = wins_tie(claim, competitor)
        if steps is None:
            result[competitor, 0] = Atom(weights=((label, 1), (competitor, -1)), limit=0 if tie else -1)
            continue
        own, other = int(outputs.row[label]), int(outputs.row[competitor])
        for level in range(steps.low, steps.high + 1 if tie else steps.high):
            needed = level if tie else level + 1
            upper = {} if level == steps.high else {label: steps.threshold(own, level + 1) - 1}
            if needed == steps.low:
                result[None, level] = Atom(upper)
            else:
                result[competitor, level] = Atom(upper, {competitor: steps.threshold(other, needed)})
    return result


def members(case: CaseClaim, reachable: dict[tuple[int | None, int], Atom]) -> list[tuple[int | None, int]]:
    """The keys of a case's atoms."""
    return [key for key in reachable if key[0] == case.competitor and case.first <= key[1] <= case.last]
