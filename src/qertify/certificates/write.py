"""From a decision to its certificate. What is written has been checked: a proof that the checker refuses is an error here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qertify._version import __version__
from qertify.bounds.program import Program
from qertify.certificates.check import BATCH, Examination, InvalidProof, box
from qertify.certificates.format import (
    BOUND,
    INTERVAL,
    SPLIT,
    TRUSTED,
    CaseClaim,
    Certificate,
    Claim,
    Multipliers,
    Proof,
    Region,
    Tree,
    enumeration,
)
from qertify.certificates.system import System
from qertify.errors import CertificateError
from qertify.importers.registry import ImportOptions
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.queries.radius_result import RadiusResult
from qertify.queries.robustness import RobustnessQuery
from qertify.result import Evidence, Result, Verdict
from qertify.search.proof import Multipliers as EngineMultipliers
from qertify.search.question import Decision
from qertify.specification.cases import Case
from qertify.specification.region import linf_ball

COARSE_BITS = (6, 10, 14, 20, 26)
"""Scales that are tried before the engine's own: fewer bits make smaller files."""
ENCODING = "the encoding of an integer program"
"""Who says that a leaf is empty, where encoding it was enough and no solver was asked."""


def certificate_of(
    query: RobustnessQuery, result: Result, decision: Decision | None, options: ImportOptions | None = None
) -> Certificate:
    """The certificate of a robustness verdict.

    Args:
        query, result: question and answer.
        decision: what the engines decided, with ``Options.keep_proof``; None if none was asked.
        options: how the model file was read.

    Raises:
        CertificateError: a verdict without a proof, or with one that certificates don't cover.
        UnsupportedModelError: a network that they don't cover.
    """
    network, property_ = query.network, query.property
    region = _region(query)
    claim = Claim("robust", property_.label, property_.target, property_.ties.value, region)
    whole = Certificate(network.digest, network.runtime_profile, claim, None, None, _given(options), __version__)
    match result.verdict:
        case Verdict.MISCLASSIFIED:
            point = Region(query.centre, query.centre, 0)
            return replace(whole, claim=replace(claim, kind="misclassified", target=None, region=point))
        case Verdict.NON_ROBUST:
            assert result.counterexample is not None
            codes = np.array(result.counterexample.levels, dtype=np.int64).reshape(network.input_shape)
            return replace(whole, claim=replace(claim, kind="non_robust"), counterexample=codes)
        case Verdict.ROBUST:
            return replace(whole, proof=proof_of(network, claim, decision))
        case _:
            raise CertificateError("an unknown verdict has no certificate")


def radius_certificate(
    network: Network,
    centre: IntegerArray,
    result: RadiusResult,
    decisions: Mapping[int, Decision],
    options: ImportOptions | None = None,
) -> Certificate:
    """The certificate of a maximum radius, exact or an interval.

    Args:
        network, centre: as asked about.
        decisions: what the engines decided at each radius, with ``Options.keep_proof``.
        options: how the model file was read.

    Raises:
        CertificateError, UnsupportedModelError: as `certificate_of`.
    """
    verified = result.verified_radius
    region = Region(centre, centre, 0 if verified is None else verified)
    claim = Claim("radius", result.label, result.target, result.ties, region, result.refuted_radius)
    whole = Certificate(network.digest, network.runtime_profile, claim, None, None, _given(options), __version__)
    if verified is None:
        if result.reason is not None:
            raise CertificateError("an unknown verdict has no certificate")
        return replace(whole, claim=replace(claim, kind="misclassified", target=None, refuted=None))
    codes = None
    if result.counterexample is not None:
        codes = np.array(result.counterexample.levels, dtype=np.int64).reshape(network.input_shape)
    return replace(whole, counterexample=codes, proof=proof_of(network, claim, decisions.get(verified)))


def _given(options: ImportOptions | None) -> dict[str, Any]:
    """What a later check may read the model file with. To trust its code is for whoever checks to decide."""
    given = {} if options is None else options.given()
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items() if key != "trust_code"}


def _region(query: RobustnessQuery) -> Region:
    """A ball where the region is one, else a box."""
    low, high, input_ = query.region.low, query.region.high, query.network.input
    reach = int(max((query.centre - low).max(), (high - query.centre).max()))
    ball = linf_ball(query.centre, reach, input_.low, input_.high)
    if np.array_equal(ball.low, low) and np.array_equal(ball.high, high):
        return Region(query.centre, query.centre, reach)
    return Region(low, high)


def proof_of(network: Network, claim: Claim, decision: Decision | None) -> Proof:
    """The proof of a decision, as small as it gets.

    Raises:
        CertificateError: the decision was no proof, or not kept.
        UnsupportedModelError: a network that certificates don't cover.
    """
    if decision is None or decision.evidence is None or decision.proof is None:
        raise CertificateError("no certificate: the proof was not kept")
    if decision.evidence is Evidence.SOLVER_CLAIM:
        raise CertificateError("no certificate: a floating-point solver's claim is no proof")
    tree = decision.tree if decision.method == "bab" else None
    if decision.method == "enumeration" or (tree is not None and "enumeration" in tree.closed_by):
        return enumeration()
    try:
        examination = Examination(network, claim, *box(claim, network))
        draft = _Draft(examination, decision.proof.program, network)
        draft.tighten(decision)
        for case, multipliers in decision.proof.closed:
            draft.add(-1, case, None, INTERVAL if multipliers is None else BOUND, multipliers)
        if tree is not None:
            offset = len(draft.parent)
            for node, parent in enumerate(tree.parent):
                closed = {"split": SPLIT, "bound": BOUND, "interval": INTERVAL}.get(tree.closed_by[node], TRUSTED)
                place = draft.add(
                    parent + offset if parent >= 0 else -1,
                    tree.case[node],
                    tree.split[node],
                    closed,
                    tree.multipliers.get(node),
                )
                if closed == TRUSTED:
                    draft.trusted[place] = tree.closed_by[node]
        else:
            for case in decision.proof.cases:
                draft.trusted[draft.add(-1, case, None, TRUSTED, None)] = decision.solver or ENCODING
        proof = draft.finish()
        examination.check_cover(proof)
        return proof
    except InvalidProof as error:
        raise CertificateError(f"no certificate: the checker refuses the proof: {error}") from error


@dataclass(slots=True)
class _Draft:
    """A proof under construction; units are renumbered from the engine's order to the checker's."""

    examination: Examination
    program: Program | None
    network: Network
    parent: list[int] = field(default_factory=list[int])
    case: list[int] = field(default_factory=list[int])
    split: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    closed: list[int] = field(default_factory=list[int])
    cases: dict[CaseClaim, int] = field(default_factory=dict[CaseClaim, int])
    trusted: dict[int, str] = field(default_factory=dict[int, str])
    root: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    rows: list[tuple[IntegerArray, IntegerArray, int]] = field(default_factory=list[tuple[IntegerArray, IntegerArray, int]])
    pending: dict[int, EngineMultipliers] = field(default_factory=dict[int, EngineMultipliers])
    place: IntegerArray = field(init=False)

    def __post_init__(self) -> None:
        self.place = _positions(self.examination.system, self.program, self.network)

    def add(
        self, parent: int, case: Case, split: tuple[int, int, int] | None, closed: int, multipliers: EngineMultipliers | None
    ) -> int:
        """Add a node; returns its number."""
        key = CaseClaim(case.competitor, case.first, case.last, case.weights)
        self.parent.append(parent)
        self.case.append(self.cases.setdefault(key, len(self.cases)))
        self.split.append((-1, 0, 0) if split is None else (int(self.place[split[0]]), split[1], split[2]))
        self.closed.append(closed)
        if multipliers is not None:
            self.pending[len(self.parent) - 1] = multipliers
        return len(self.parent) - 1

    def tighten(self, decision: Decision) -> None:
        """Take over the root bounds, round by round."""
        assert decision.proof is not None
        rounds: dict[int, list[Any]] = {}
        for bound in decision.proof.tightened:
            rounds.setdefault(bound.block, []).append(bound)
        for number, bounds in enumerate(rounds.values()):
            units = np.array([self.place[bound.unit] for bound in bounds], dtype=np.int64)
            sides = np.array([bound.sign for bound in bounds], dtype=np.int64)
            found = np.zeros(len(bounds), dtype=np.int64)
            for start in range(0, len(bounds), BATCH):
                part = slice(start, start + BATCH)
                full, bits = self._dense(bound.multipliers for bound in bounds[part])
                target = self.examination.root_bounds(units[part], sides[part], full, bits)
                chosen: dict[int, tuple[IntegerArray, int]] = {}
                for row, coarse, few in _coarser(full, bits):
                    open_ = np.array([place for place in row.tolist() if place not in chosen], dtype=np.int64)
                    keep = np.isin(row, open_)
                    reached = self.examination.root_bounds(
                        units[part][row[keep]], sides[part][row[keep]], coarse[keep], few[keep]
                    )
                    for place, values, scale, bound in zip(
                        row[keep].tolist(), coarse[keep], few[keep].tolist(), reached, strict=True
                    ):
                        if bound == target[place]:
                            chosen[place] = values, scale
                self.rows += [_sparse(*chosen[place]) for place in range(len(target))]
                found[part] = target
            self.root += list(zip([number] * len(bounds), units.tolist(), sides.tolist(), strict=True))
            self.examination.accept(units, sides, found)

    def _dense(self, rows: Iterable[EngineMultipliers]) -> tuple[IntegerArray, IntegerArray]:
        """The engine's multipliers in the checker's order, (batch, N), and their scales."""
        given = list(rows)
        result = np.zeros((len(given), len(self.examination.system.units)), dtype=np.int64)
        for row, (values, _) in enumerate(given):
            result[row, self.place] = values
        return result, np.array([bits for _, bits in given], dtype=np.int64)

    def finish(self) -> Proof:
        """Find the coarsest multipliers that still close each leaf."""
        system = self.examination.system
        split = np.array(self.split, dtype=np.int64).reshape(-1, 3)
        closed = np.array(self.closed, dtype=np.int64)
        tree = Tree(
            np.array(self.parent, dtype=np.int64),
            np.array(self.case, dtype=np.int64),
            split[:, 0],
            split[:, 1],
            split[:, 2],
            closed,
        )
        proof = Proof(
            False,
            len(system.units),
            system.hidden,
            np.array(self.root, dtype=np.int64).reshape(-1, 3),
            tuple(self.cases),
            tree,
            Multipliers(np.zeros(1, dtype=np.int64), *[np.zeros(0, dtype=np.int64)] * 3),
            self.trusted,
        )
        leaves = np.flatnonzero((closed == BOUND) | (closed == INTERVAL))
        for start in range(0, len(leaves), BATCH):
            self._close(proof, leaves[start : start + BATCH])
        return replace(proof, multipliers=_joined(self.rows))

    def _close(self, proof: Proof, nodes: IntegerArray) -> None:
        """Choose the multipliers of some leaves; those that are empty anyway need none."""
        nothing = np.zeros(len(self.examination.system.units), dtype=np.int64)
        full, bits = self._dense(self.pending.get(node, (nothing[: len(self.place)], 0)) for node in nodes.tolist())
        chosen: dict[int, tuple[IntegerArray, int]] = {}
        for row, coarse, few in _coarser(full, bits):
            keep = np.array([place not in chosen for place in row.tolist()], dtype=bool)
            bounds = self.examination.bounds(proof, nodes[row[keep]], coarse[keep], few[keep])
            for place, values, scale, (found, limit) in zip(
                row[keep].tolist(), coarse[keep], few[keep].tolist(), bounds, strict=True
            ):
                if found is None:
                    chosen[place] = nothing, 0
                elif found > limit:
                    chosen[place] = values, scale
        for place, node in enumerate(nodes.tolist()):
            if proof.tree.closed[node] == BOUND:
                if place not in chosen:
                    raise InvalidProof(f"node {node} is not closed by the engine's multipliers")
                self.rows.append(_sparse(*chosen[place]))
            elif place not in chosen:
                proof.tree.closed[node] = TRUSTED
                self.trusted[node] = ENCODING


def _coarser(full: IntegerArray, bits: IntegerArray) -> Iterable[tuple[IntegerArray, IntegerArray, IntegerArray]]:
    """Rows (by position), their multipliers and scales, from coarse to the engine's own; every row comes last as it is."""
    for few in COARSE_BITS:
        rows = np.flatnonzero(bits > few)
        if rows.size:
            drop = (bits[rows] - few)[:, None]
            yield rows, (full[rows] + (np.int64(1) << (drop - 1))) >> drop, np.full(rows.size, few, dtype=np.int64)
    yield np.arange(len(bits)), full, bits


def _sparse(values: IntegerArray, bits: int) -> tuple[IntegerArray, IntegerArray, int]:
    units = np.flatnonzero(values)
    return units, values[units], bits


def _joined(rows: list[tuple[IntegerArray, IntegerArray, int]]) -> Multipliers:
    nothing = [np.zeros(0, dtype=np.int64)]
    return Multipliers(
        np.cumsum([0, *(len(units) for units, _, _ in rows)]).astype(np.int64),
        np.concatenate([*nothing, *(units for units, _, _ in rows)]),
        np.concatenate([*nothing, *(values for _, values, _ in rows)]),
        np.array([bits for _, _, bits in rows], dtype=np.int64),
    )


def _positions(system: System, program: Program | None, network: Network) -> IntegerArray:
    """Where each unit of the engine's program is among the checker's."""
    if program is None:
        return np.zeros(0, dtype=np.int64)
    ours = [
        (network.by_name[unit.owner].inputs[0] if unit.accumulator >= 0 else "", unit.accumulator)
        for unit in system.units[: system.hidden]
    ]
    theirs = [(unit.node, unit.element) for unit in program.units if unit.label is None]
    if ours != theirs:
        raise CertificateError("no certificate: the search used equations that certificates don't cover yet")
    labels = [unit.label for unit in program.units[len(theirs) :]]
    return np.array([*range(len(theirs)), *(system.hidden + int(label or 0) for label in labels)], dtype=np.int64)
