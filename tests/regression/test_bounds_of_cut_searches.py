"""Searches that a time limit cuts short: what is not bounded yet is unknown, and what is split keeps its bound."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

import qertify.search.equivalence as engine
from qertify.bounds.dual import Proof
from qertify.options import Method, Options
from qertify.queries.equivalence import equivalence
from qertify.queries.equivalence_result import Equivalence
from qertify.result import Evidence, Reason
from qertify.search import branch_and_bound
from qertify.search.branch_and_bound import BranchAndBound
from qertify.search.comparison import EquivalenceQuery, Judge
from qertify.search.leaf import open_leaf
from qertify.search.paired_input import grid
from qertify.specification.cases import Case
from qertify.specification.region import IntegerBox
from qertify.specification.splitting import OneLevel
from tests.oracle.random_pairs import quantized_pair

BAB = Options(method=Method.BAB, timeout=20)


@pytest.fixture
def query(monkeypatch: pytest.MonkeyPatch) -> EquivalenceQuery:
    monkeypatch.setattr(engine, "ENUMERATION_LIMIT", 0)
    monkeypatch.setattr("qertify.search.equivalence_attack.MOVES", 30)
    left, right = quantized_pair(np.random.default_rng(6), 3, 1)
    return EquivalenceQuery(left, right, grid(right, IntegerBox(np.zeros(3, np.int64), np.full(3, 7))))


def test_nothing_is_proved_of_domains_that_wait(query: EquivalenceQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(self: engine._Search, _joint: object, cases: tuple[Case, ...], *_: object) -> bool:
        self._margins = dict.fromkeys(cases, -math.inf)
        return False

    monkeypatch.setattr(engine._Search, "_search", cut)
    answer = equivalence(query, BAB)
    assert answer.verdict is Equivalence.UNKNOWN
    assert answer.max_delta is not None
    assert answer.evidence is Evidence.EXACT_BOUNDS
    assert answer.method == "bounds"


def test_an_earlier_reason_does_not_outlive_a_proof(query: EquivalenceQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    def proved(self: engine._Search, *_: object) -> bool:
        self._finding.reason = Reason.WORKER_LOST
        return True

    monkeypatch.setattr(engine._Search, "_search", proved)
    asked = replace(query, delta=Fraction(1, 5))
    search = engine._Search(asked, Judge(asked), Fraction(0), BAB, lambda _: None, None, engine.SolverProcesses(), None)
    finding = search.run()
    assert finding.proved
    assert finding.reason is None


def test_parts_keep_the_bound_of_the_whole(query: EquivalenceQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = engine._Search(query, Judge(query), Fraction(0), BAB, lambda _: None, None, engine.SolverProcesses(), None)
    joint = asked._compile(coupled=True)
    cases = asked._differences.cases({(0, 1): 0})
    search = BranchAndBound(joint.program, OneLevel(), cases, lambda *_: None, open_leaf)
    before = search.run(max_nodes=1).margins

    def vague(*arguments: object) -> Proof:
        proof = prove(*arguments)  # type: ignore[arg-type]
        return Proof(proof.multipliers, proof.bits, torch.full_like(proof.margin, -1e30))

    prove = branch_and_bound.prove
    monkeypatch.setattr(branch_and_bound, "prove", vague)
    after = search.run(max_nodes=9).margins
    assert before
    assert after
    assert after[cases[0]] >= before[cases[0]] > -1e30
