"""Checking a certificate against a network: a program of its own, which shares the network's definition with the engines
and nothing else.

It derives the violation and the network's equations itself, and believes of a proof only what it can recompute in integers:

- *Coverage.* Every violation within reach belongs to a root of the tree; the parts of a split node hold all of its points.
- *Closure.* Every leaf holds no violation: interval arithmetic finds it empty, or its multipliers give a bound beyond the
  case's limit.
- *Trust.* Leaves that a solver closed are named, and nothing is said about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from qertify.certificates.bounds import Propagation, lower_bounds
from qertify.certificates.exact import Integers, narrow
from qertify.certificates.format import BOUND, INTERVAL, SPLIT, TRUSTED, CaseClaim, Certificate, Claim, Proof, Tree
from qertify.certificates.system import System, build, require_covered
from qertify.certificates.violation import Atom, Summary, atoms, members, outputs_of, summarise, violated
from qertify.errors import CertificateError
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.ranges import accumulator_proofs
from qertify.network.tensor import IntegerArray

BATCH = 512
"""Leaves that are bounded at once."""
ENUMERATION_LIMIT = 1 << 38
"""Most inputs times parameters that are enumerated."""
POINTS = 1 << 14
"""Inputs that are evaluated at once."""


class Verdict(str, Enum):
    """What a check found."""

    VALID = "valid"
    """The certificate proves its claim."""
    TRUSTED = "valid_if_trusted"
    """It does if the steps that it names are right, which were not checked."""
    INVALID = "invalid"
    """It does not."""


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a check.

    Attributes:
        reason: why it is invalid.
        trusted: what was not checked.
        leaves: leaves that were checked, or points for an enumeration.
    """

    verdict: Verdict
    reason: str | None = None
    trusted: tuple[str, ...] = ()
    leaves: int = 0


class InvalidProof(Exception):
    """Found while checking; the message is the report's reason."""


def check(certificate: Certificate, network: Network) -> Report:
    """Check a certificate.

    Raises:
        CertificateError: it is of another network.
        UnsupportedModelError: a network that certificates don't cover.
    """
    if certificate.digest != network.digest:
        raise CertificateError(
            f"the certificate is of network {certificate.digest[:12]}… ({certificate.runtime_profile}), "
            f"the model is network {network.digest[:12]}… ({network.runtime_profile})"
        )
    require_covered(network)
    trusted = [
        f"node '{proof.node}': the accumulator may need {proof.bits_needed} bits, it has {proof.bits}"
        for proof in accumulator_proofs(network)
        if not proof.proved
    ]
    try:
        leaves = _check_claim(certificate, network, trusted)
    except InvalidProof as error:
        return Report(Verdict.INVALID, str(error))
    return Report(Verdict.TRUSTED if trusted else Verdict.VALID, None, tuple(trusted), leaves)


def box(claim: Claim, network: Network) -> tuple[IntegerArray, IntegerArray]:
    """The claim's region as least and greatest codes.

    Raises:
        InvalidProof: a region that is empty, or none of the network's inputs.
    """
    region, input_ = claim.region, network.input
    low, high = region.low, region.high
    for bound in (low, high):
        _require(
            bound.shape == network.input_shape, f"a region of shape {bound.shape} for inputs of shape {network.input_shape}"
        )
        _require(bool(np.all((bound >= input_.low) & (bound <= input_.high))), "the region leaves the valid input codes")
    _require(bool(np.all(low <= high)), "the region is empty")
    if region.radius is None:
        return low, high
    _require(region.radius >= 0, "the radius is negative")
    reach = min(region.radius, input_.high - input_.low)
    return np.maximum(low - reach, input_.low), np.minimum(low + reach, input_.high)


def _check_claim(certificate: Certificate, network: Network, trusted: list[str]) -> int:
    claim, classes = certificate.claim, network.output_size
    for what, index in (("label", claim.label), ("target", claim.target)):
        _require(index is None or 0 <= index < classes, f"{what} {index} is no class of the network")
    _require(claim.target != claim.label and classes > 1, "there is no competing class")
    low, high = box(claim, network)
    leaves = 0
    if claim.kind == "misclassified":
        _require(bool(np.array_equal(low, high)), "the claim speaks of one input, the region holds more")
        _require(bool(violated(claim, evaluate(network, low[None]))[0]), "the label wins at the input")
    if claim.kind in ("robust", "radius"):
        if certificate.proof is None:
            raise InvalidProof("there is no proof")
        leaves = _check_proof(certificate.proof, claim, network, low, high, trusted)
    if claim.kind == "non_robust":
        _replay(certificate.counterexample, claim, network, low, high)
    if claim.kind == "radius":
        _require(claim.region.radius is not None, "a radius needs a region around a centre")
        if claim.refuted is not None:
            reach = min(max(0, claim.refuted), network.input.high - network.input.low)
            centre = claim.region.low
            _replay(certificate.counterexample, claim, network, centre - reach, centre + reach)
    return leaves


def _replay(codes: IntegerArray | None, claim: Claim, network: Network, low: IntegerArray, high: IntegerArray) -> None:
    if codes is None or codes.shape != network.input_shape:
        raise InvalidProof("there is no counterexample of the input's shape")
    valid = (codes >= network.input.low) & (codes <= network.input.high)
    _require(bool(np.all(valid & (codes >= low) & (codes <= high))), "the counterexample leaves the region")
    _require(bool(violated(claim, evaluate(network, codes[None]))[0]), "the label wins at the counterexample")


def _check_proof(
    proof: Proof, claim: Claim, network: Network, low: IntegerArray, high: IntegerArray, trusted: list[str]
) -> int:
    if proof.enumeration:
        return _enumerate(claim, network, low, high)
    examination = Examination(network, claim, low, high)
    examination.settle(proof)
    return examination.check(proof, trusted)


def _enumerate(claim: Claim, network: Network, low: IntegerArray, high: IntegerArray) -> int:
    widths = (high - low + 1).reshape(-1).tolist()
    size = 1
    for width in widths:
        size *= width
    _require(size * max(1, network.parameter_count) <= ENUMERATION_LIMIT, f"its {size} points are too many to enumerate")
    for start in range(0, size, POINTS):
        points = np.stack(np.unravel_index(np.arange(start, min(start + POINTS, size)), widths), axis=1)
        codes = points.reshape(-1, *low.shape).astype(np.int64) + low
        found = np.flatnonzero(violated(claim, evaluate(network, codes)))
        _require(not found.size, f"the label loses at point {start + int(found[0])} of the region" if found.size else "")
    return size


class Examination:
    """One question, ready for the steps of a proof.

    Attributes:
        system: the network's equations on the box.
        low, high: (N,), proved root bounds of its accumulators.
        reachable: what is left of the violation within these bounds.
    """

    def __init__(self, network: Network, claim: Claim, low: IntegerArray, high: IntegerArray) -> None:
        outputs = outputs_of(network)
        self.system: System = build(network, low, high, outputs.node, outputs.element)
        self.low, self.high = self.system.low, self.system.high
        self._atoms = atoms(claim, outputs)
        self._propagate = Propagation(self.system)
        self.reachable: dict[tuple[int | None, int], Atom] = {}
        self._summaries: dict[CaseClaim, Summary] = {}
        self._find_reachable()

    def _find_reachable(self) -> None:
        hidden = self.system.hidden
        low, high = self.low[hidden:].tolist(), self.high[hidden:].tolist()
        self.reachable = {key: atom for key, atom in self._atoms.items() if atom.within(low, high)}
        self._summaries = {}

    def settle(self, proof: Proof) -> None:
        """Tighten root bounds as the proof says.

        Raises:
            InvalidProof: a proof about other units.
        """
        count, hidden = len(self.system.units), self.system.hidden
        if (proof.units, proof.hidden) != (count, hidden):
            raise InvalidProof(f"it speaks of {proof.hidden} of {proof.units} units, here they are {hidden} of {count}")
        rounds = proof.tighten[:, 0]
        for number in np.unique(rounds).tolist():
            rows = np.flatnonzero(rounds == number)
            bounds = [
                self.root_bounds(proof.tighten[part, 1], proof.tighten[part, 2], proof.multipliers.dense(part, count), bits)
                for part in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
                for bits in [proof.multipliers.bits[part]]
            ]
            self.accept(proof.tighten[rows, 1], proof.tighten[rows, 2], np.concatenate(bounds))

    def root_bounds(
        self, units: IntegerArray, sides: IntegerArray, multipliers: IntegerArray, bits: IntegerArray
    ) -> IntegerArray:
        """Proved lower bounds (side 1) or upper bounds (side −1) of accumulators on the whole box, (batch,)."""
        batch, count = multipliers.shape
        objective = np.zeros((batch, count), dtype=np.int64)
        objective[np.arange(batch), units] = sides
        low, high = (np.broadcast_to(bound, (batch, count)) for bound in (self.low, self.high))
        return sides * narrow(lower_bounds(self.system, low, high, objective, multipliers, bits))

    def accept(self, units: IntegerArray, sides: IntegerArray, bounds: IntegerArray) -> None:
        """Use bounds that were all proved from the same root bounds."""
        self.low, self.high = self.low.copy(), self.high.copy()
        np.maximum.at(self.low, units[sides > 0], bounds[sides > 0])
        np.minimum.at(self.high, units[sides < 0], bounds[sides < 0])
        self._find_reachable()

    def check(self, proof: Proof, trusted: list[str]) -> int:
        """Check the tree; returns the number of leaves.

        Raises:
            InvalidProof: naming the node at fault.
        """
        tree = proof.tree
        self.check_cover(proof)
        rows = {int(node): len(proof.tighten) + row for row, node in enumerate(np.flatnonzero(tree.closed == BOUND))}
        leaves = np.flatnonzero((tree.closed == BOUND) | (tree.closed == INTERVAL))
        for start in range(0, len(leaves), BATCH):
            part = leaves[start : start + BATCH]
            bounded = np.flatnonzero(tree.closed[part] == BOUND)
            chosen = np.array([rows[node] for node in part[bounded].tolist()], dtype=np.int64)
            multipliers = np.zeros((len(part), proof.units), dtype=np.int64)
            bits = np.zeros(len(part), dtype=np.int64)
            multipliers[bounded], bits[bounded] = proof.multipliers.dense(chosen, proof.units), proof.multipliers.bits[chosen]
            for place, (found, limit) in enumerate(self.bounds(proof, part, multipliers, bits)):
                if found is not None and found <= limit:
                    self._fail(proof, int(part[place]), found, limit)
        trusted += [
            f"node {node} ({_describe(proof, node)}): {proof.trusted.get(node, 'nobody')} says that it is empty"
            for node in np.flatnonzero(tree.closed == TRUSTED).tolist()
        ]
        return len(leaves)

    def check_cover(self, proof: Proof) -> None:
        """Check that roots and parts lose no violation.

        Raises:
            InvalidProof: naming what is lost.
        """
        tree = proof.tree
        inside = [frozenset(members(case, self.reachable)) for case in proof.cases]
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(tree.parent.tolist()):
            children.setdefault(parent, []).append(node)
            _require(parent < 0 or tree.closed[parent] == SPLIT, f"node {parent} is closed, yet it has children")
            _require(parent >= 0 or tree.side[node] == 0, f"node {node} is a root, yet it came from a split")
        roots = [inside[tree.case[node]] for node in children.get(-1, [])]
        for competitor, level in self.reachable.keys() - frozenset[Any]().union(*roots):
            whom = "the label alone" if competitor is None else f"class {competitor}"
            raise InvalidProof(f"no root covers the violation by {whom} at level {level}")
        for node in np.flatnonzero(tree.closed == SPLIT).tolist():
            parts = children.get(node, [])
            mine, theirs = inside[tree.case[node]], [inside[tree.case[part]] for part in parts]
            if any(tree.side[part] != 0 for part in parts):
                same = len({(int(tree.unit[part]), int(tree.threshold[part])) for part in parts}) == 1
                both = sorted(int(tree.side[part]) for part in parts) == [-1, 1]
                _require(same and both, f"the parts of node {node} are not both sides of one threshold")
                _require(all(mine <= part for part in theirs), f"a part of node {node} lacks levels of its case")
            else:
                _require(mine <= frozenset[Any]().union(*theirs), f"the parts of node {node} lack levels of its case")

    def bounds(
        self, proof: Proof, nodes: IntegerArray, multipliers: IntegerArray, bits: IntegerArray
    ) -> list[tuple[int | None, int]]:
        """For each node a proved lower bound of its case's objective, None if it is empty, and the case's limit.

        Args:
            multipliers, bits: (batch, N) and (batch,).

        Raises:
            InvalidProof: an objective that says nothing about its case.
        """
        count, hidden = len(self.system.units), self.system.hidden
        low, high = (np.tile(bound, (len(nodes), 1)) for bound in (self.low, self.high))
        objective = np.zeros((len(nodes), count), dtype=np.int64)
        summaries = [self._summary(proof, node) for node in nodes.tolist()]
        for row, (node, summary) in enumerate(zip(nodes.tolist(), summaries, strict=True)):
            _apply_splits(proof.tree, node, low[row], high[row])
            for index, bound in summary.upper.items():
                high[row, hidden + index] = min(int(high[row, hidden + index]), bound)
            for index, bound in summary.lower.items():
                low[row, hidden + index] = max(int(low[row, hidden + index]), bound)
            for index, weight in summary.weights.items():
                objective[row, hidden + index] = weight
        low, high, empty = self._propagate(low, high)
        left = np.array([row for row, summary in enumerate(summaries) if not (empty[row] or summary.empty)], dtype=np.int64)
        found: list[int | None] = [None] * len(nodes)
        if left.size:
            values: Integers = lower_bounds(self.system, low[left], high[left], objective[left], multipliers[left], bits[left])
            for row, value in zip(left.tolist(), values.tolist(), strict=True):
                found[row] = int(value)
        return [(value, summary.limit) for value, summary in zip(found, summaries, strict=True)]

    def _summary(self, proof: Proof, node: int) -> Summary:
        """What is known of a node's case."""
        case = proof.cases[int(proof.tree.case[node])]
        if case not in self._summaries:
            parts = [self.reachable[key] for key in members(case, self.reachable)]
            try:
                self._summaries[case] = summarise(parts, case.weights, len(self.system.units) - self.system.hidden)
            except ValueError as error:
                raise InvalidProof(f"node {node} ({_describe(proof, node)}): {error}") from error
        return self._summaries[case]

    def _fail(self, proof: Proof, node: int, found: int, limit: int) -> None:
        if proof.tree.closed[node] == INTERVAL:
            raise InvalidProof(f"node {node} ({_describe(proof, node)}) is not empty by interval arithmetic")
        raise InvalidProof(f"node {node} ({_describe(proof, node)}): the bound {found} does not exceed the limit {limit}")


def _apply_splits(tree: Tree, node: int, low: IntegerArray, high: IntegerArray) -> None:
    while node >= 0:
        unit, threshold = int(tree.unit[node]), int(tree.threshold[node])
        if tree.side[node] < 0:
            high[unit] = min(int(high[unit]), threshold - 1)
        elif tree.side[node] > 0:
            low[unit] = max(int(low[unit]), threshold)
        node = int(tree.parent[node])


def _describe(proof: Proof, node: int) -> str:
    case = proof.cases[int(proof.tree.case[node])]
    who = "the label at its lowest level" if case.competitor is None else f"class {case.competitor}"
    return who if case.first == case.last == 0 or case.competitor is None else f"{who}, levels {case.first} … {case.last}"


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise InvalidProof(reason)
