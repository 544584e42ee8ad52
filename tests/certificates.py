"""Certificates of tiny random questions, and the truth of claims by enumeration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from qertify.certificates.check import InvalidProof, box
from qertify.certificates.format import Certificate, Claim
from qertify.certificates.write import certificate_of
from qertify.errors import CertificateError
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.options import Method, Options
from qertify.queries.robustness import RobustnessQuery, local_robustness, verify
from qertify.result import Result, Verdict
from qertify.search import stages
from qertify.search.question import Decision
from qertify.specification.property import Classification, Ties
from qertify.specification.region import IntegerBox
from tests.oracle.random_graphs import random_graph
from tests.oracle.random_networks import random_network

POINTS = 1 << 13


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A question, its answer, and what the engines kept."""

    query: RobustnessQuery
    result: Result
    decision: Decision | None

    def certificate(self) -> Certificate:
        return certificate_of(self.query, self.result, self.decision)


def without_enumeration(patch: pytest.MonkeyPatch) -> None:
    """Make tiny questions take the long way."""
    patch.setattr(stages, "ENUMERATION_LIMIT", 0)
    patch.setattr(stages, "SWEEP_LIMIT", 0)


def answered(seed: int, count: int, *, graphs: bool = False, method: Method = Method.BAB) -> Iterator[Answered]:
    """Decided questions about random networks; call `without_enumeration` first."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        network = random_graph(generator) if graphs else random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        query = local_robustness(network, centre, int(generator.integers(1, 4)), ties=list(Ties)[number % 3])
        if query.region.size > POINTS:
            continue
        kept: list[Decision] = []
        result = verify(query, Options(method=method, seed=number, keep_proof=True, timeout=2), None, kept.append)
        if result.verdict is not Verdict.UNKNOWN:
            yield Answered(query, result, kept[0] if kept else None)


def holds(claim: Claim, network: Network, radius: int | None = None) -> bool | None:
    """Whether the label wins on the claim's region (or within a radius of its centre); None if the region is no region."""
    region = claim.region if radius is None else None
    property_ = Classification(claim.label, claim.target, Ties(claim.ties))
    try:
        property_.check(network.output_size)
        if region is None:
            low = np.maximum(claim.region.low - radius, network.input.low)
            high = np.minimum(claim.region.low + radius, network.input.high)
        else:
            low, high = box(claim, network)
        points = IntegerBox(low, high)
    except (InvalidProof, CertificateError, Exception):
        return None
    return not property_.violated(evaluate(network, points.points())).any()


def true(certificate: Certificate, network: Network) -> bool:
    """Whether what a certificate claims is so, by enumeration."""
    claim = certificate.claim
    robust = holds(claim, network)
    match claim.kind:
        case "robust":
            return robust is True
        case "non_robust" | "misclassified":
            return robust is False
        case _:
            refuted = claim.refuted is None or holds(claim, network, claim.refuted) is False
            return robust is True and refuted
