"""Every kind of evidence makes a certificate that the checker accepts, and that says what is so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qertify.certificates.check import Verdict, check
from qertify.certificates.format import load, save
from qertify.certificates.write import certificate_of, radius_certificate
from qertify.errors import CertificateError
from qertify.options import Method, Options
from qertify.queries.radius import maximum_radius
from qertify.queries.robustness import local_robustness, verify
from qertify.result import Evidence, Result
from qertify.search import stages
from qertify.search.question import Decision
from tests.certificates import answered, true, without_enumeration
from tests.oracle.random_networks import random_network


@pytest.mark.parametrize("graphs", [False, True])
def test_certificates_of_the_engines_are_valid(graphs: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_enumeration(monkeypatch)
    seen: Counter[tuple[str, str, str]] = Counter()
    for item in answered(100 + graphs, 110 if graphs else 150, graphs=graphs, method=Method.BAB if graphs else Method.AUTO):
        save(item.certificate(), tmp_path / "c")
        certificate = load(tmp_path / "c")
        report = check(certificate, item.query.network)
        result = item.result
        by_solver = result.evidence is Evidence.EXACT_SOLVER
        assert report.verdict is (Verdict.TRUSTED if by_solver else Verdict.VALID), report.reason
        assert bool(report.trusted) == by_solver
        assert true(certificate, item.query.network)
        seen[result.verdict.value, result.evidence.value if result.evidence else "", result.method] += 1
    wanted = [("robust", "exact_bounds", "interval"), ("robust", "exact_bounds", "bounds"), ("robust", "exact_search", "bab")]
    for kind in wanted:
        assert seen[kind] > 0, seen
    assert seen["non_robust", "replayed_counterexample", "attack"] + seen["non_robust", "replayed_counterexample", "bab"] > 5
    assert seen["misclassified", "", "evaluate"] > 3


def test_enumerated_and_solved_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(9)
    seen: Counter[tuple[Evidence | None, Verdict | str]] = Counter()
    for number in range(70):
        network = random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        query = local_robustness(network, centre, 2)
        for method, solver in ((Method.AUTO, "highs"), (Method.ILP, "cp-sat"), (Method.ILP, "highs")):
            if method is Method.ILP and (number % 5 or verify(query, Options(method=Method.BOUNDS)).evidence is not None):
                continue
            kept: list[Decision] = []
            options = Options(method=method, solver=solver, seed=number, keep_proof=True, accept_solver_claims=True)
            result = verify(query, options, None, kept.append)
            if not kept or result.evidence is Evidence.REPLAYED_COUNTEREXAMPLE:
                continue
            if result.evidence is Evidence.SOLVER_CLAIM:
                with pytest.raises(CertificateError, match="claim is no proof"):
                    certificate_of(query, result, kept[0])
                seen[result.evidence, "refused"] += 1
                continue
            certificate = certificate_of(query, result, kept[0])
            assert certificate.proof is not None
            assert certificate.proof.enumeration == (kept[0].method == "enumeration")
            seen[result.evidence, check(certificate, network).verdict] += 1
    assert seen[Evidence.EXACT_SEARCH, Verdict.VALID] > 1  # by enumeration
    assert seen[Evidence.EXACT_SOLVER, Verdict.TRUSTED] > 0
    assert seen[Evidence.SOLVER_CLAIM, "refused"] > 0
    assert set(seen) <= {
        (Evidence.EXACT_BOUNDS, Verdict.VALID),
        (Evidence.EXACT_SEARCH, Verdict.VALID),
        (Evidence.EXACT_SOLVER, Verdict.TRUSTED),
        (Evidence.SOLVER_CLAIM, "refused"),
    }, seen


@pytest.mark.parametrize("limit", [None, 1])
def test_radii(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    without_enumeration(monkeypatch)
    monkeypatch.setattr(stages, "LEAF_SECONDS", 5.0)
    generator = np.random.default_rng(3)
    seen: Counter[tuple[str, bool]] = Counter()
    for number in range(40):
        network = random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        kept: dict[int, Decision] = {}
        options = Options(method=Method.BAB, seed=number, keep_proof=True)
        result = maximum_radius(
            network, centre, label=0, max_radius=limit, options=options, decided=lambda r, d, kept=kept: kept.update({r: d})
        )
        certificate = radius_certificate(network, centre, result, kept)
        assert check(certificate, network).verdict is not Verdict.INVALID
        assert true(certificate, network)
        assert (certificate.claim.kind == "misclassified") == (result.verified_radius is None)
        seen[certificate.claim.kind, certificate.claim.refuted is None] += 1
    assert seen["radius", True] > 3
    assert seen["radius", False] > 3 or limit is not None
    assert seen["misclassified", True] > 3


def test_an_unknown_verdict_has_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    without_enumeration(monkeypatch)
    generator = np.random.default_rng(4)
    refused = 0
    while refused < 3:
        network = random_network(generator)
        query = local_robustness(network, np.full(network.input_shape, network.input.low), 3)
        kept: list[Decision] = []
        result: Result = verify(query, Options(method=Method.BOUNDS, keep_proof=True), None, kept.append)
        if result.reason is not None:
            with pytest.raises(CertificateError, match="unknown"):
                certificate_of(query, result, kept[0])
            refused += 1


def test_without_the_option_nothing_is_kept() -> None:
    generator = np.random.default_rng(5)
    network = random_network(generator)
    kept: list[Decision] = []
    query = local_robustness(network, np.full(network.input_shape, network.input.low), 0)
    result = verify(query, Options(method=Method.BAB), None, kept.append)
    assert all(decision.proof is None and decision.tree is None for decision in kept)
    if result.evidence is not None:
        with pytest.raises(CertificateError, match="not kept"):
            certificate_of(query, result, kept[0])
