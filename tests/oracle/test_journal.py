"""Open domains that are written down: going on from them answers like a search that was never cut."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qertify.campaign import runner
from qertify.campaign.journal import StoreJournal
from qertify.campaign.records import Point
from qertify.campaign.runner import Plan, run_campaign
from qertify.campaign.store import Store, create_store, open_store, resume_store
from qertify.campaign.study import Task
from qertify.importers.registry import ImportOptions
from qertify.network.storage import save
from qertify.options import Method, Options
from qertify.parallel.executor import InProcess, Message
from qertify.parallel.worker import Desk, greeting
from qertify.queries.pieces import question_piece
from qertify.queries.robustness import RobustnessQuery, verify
from qertify.result import Reason, Verdict
from qertify.search import sharing
from qertify.search.journal import Handed
from qertify.search.question import Question
from tests.campaigns import Question as Posed
from tests.campaigns import SmallCampaign
from tests.oracle.random_networks import violated_somewhere
from tests.oracle.test_shared_search import BAB, queries


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share every search at once, in pieces of a batch or so; find counterexamples in its leaves only."""
    monkeypatch.setattr(Question, "polish", lambda *_: None)
    for name in ("FIRST_SECONDS", "FIRST_NODES", "FIRST_LIMIT", "LEAST_AGE"):
        monkeypatch.setattr(sharing, name, 0)
    monkeypatch.setattr(sharing, "FIRST_BUDGET", 0.01)


def truth(query: RobustnessQuery) -> Verdict:
    return Verdict.NON_ROBUST if violated_somewhere(query.network, query.region, query.property) else Verdict.ROBUST


@cache
def pool() -> list[RobustnessQuery]:
    return [query for query, _ in zip(queries(0), range(30), strict=False)]


def of_verdict(verdict: Verdict, count: int) -> list[RobustnessQuery]:
    found = [query for query in pool() if truth(query) is verdict]
    assert found, "no such question was made"
    return found[:count]


@pytest.fixture
def desk(tmp_path: Path) -> Callable[[RobustnessQuery], Desk]:
    def make(query: RobustnessQuery) -> Desk:
        save(query.network, tmp_path / "m.qnet")
        return Desk(greeting(tmp_path / "m.qnet", ImportOptions(), BAB))

    return make


def test_a_search_may_be_cut_anywhere(desk: Callable[[RobustnessQuery], Desk]) -> None:
    rounds: Counter[int] = Counter()
    for query in of_verdict(Verdict.ROBUST, 2) + of_verdict(Verdict.NON_ROBUST, 3):
        worker, piece, count, budget = desk(query), question_piece(query), 1, 0.01
        reply = worker.answer(piece | {"budget": budget}, lambda: False)
        while "open" in reply:
            assert reply["result"]["reason"] == "interrupted"
            count, budget = count + 1, 2 * budget
            reply = worker.answer(json.loads(json.dumps(piece | {"open": reply["open"], "budget": budget})), lambda: False)
        assert reply["result"]["verdict"] == truth(query).value
        if count > 1 and truth(query) is Verdict.ROBUST:  # an integer solver may have closed leaves before the cuts
            assert reply["result"]["evidence"] == "exact_solver"
        rounds[count] += 1
    assert max(rounds) > 2


class Cut(Exception):
    """The driver dies."""


def test_a_driver_that_dies_loses_no_piece(desk: Callable[[RobustnessQuery], Desk]) -> None:
    cuts = 0
    for query in of_verdict(Verdict.ROBUST, 2) + of_verdict(Verdict.NON_ROBUST, 2):
        worker, journal, allowed = desk(query), Handed(), 1
        while True:
            sent: list[Message] = []

            def answer(piece: Message, stopped: Any, allowed: int = allowed, sent: list[Message] = sent) -> Message:
                sent.append(piece)
                if len(sent) > allowed:
                    raise Cut
                return worker.answer(piece, stopped)  # noqa: B023

            try:
                result = verify(query, BAB, executor=InProcess(answer, ready=2, size=2), journal=journal)
            except Cut:
                journal.parts = {int(number): part for number, part in json.loads(json.dumps(journal.parts)).items()}
                cuts, allowed = cuts + 1, 2 * allowed
                continue
            break
        assert result.verdict is truth(query)
    assert cuts > 5


def test_a_journal_of_another_search_is_not_used(desk: Callable[[RobustnessQuery], Desk]) -> None:
    first, second = of_verdict(Verdict.NON_ROBUST, 2)
    journal = Handed(0.02)
    verify(first, BAB, journal=journal)
    assert journal.written
    journal.budget, journal.parts = None, {0: journal.parts[0] | {"case": [], "margin": [], "depth": [], "stuck": []}}
    assert verify(second, BAB, journal=journal).verdict is Verdict.NON_ROBUST


def one_question(folder: Path, query: RobustnessQuery, name: str) -> tuple[Store, Any]:
    point = Point(0, 0, query.property.label, query.property.label, query.centre, (0,))
    like = SmallCampaign(folder, count=1).campaign(
        model_digest=query.network.digest, radii=("1",), input_shape=query.network.input_shape, options={}
    )
    posed = replace(query, radius=Fraction(1))
    return create_store(folder / name, like, [point]), lambda _position, _radius: Posed(posed)


def pieces(path: Path) -> int:
    connection = sqlite3.connect(path)
    (count,) = connection.execute("SELECT count(*) FROM pieces").fetchone()
    connection.close()
    return count


def test_a_campaign_goes_on_within_a_question(
    desk: Callable[[RobustnessQuery], Desk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BUDGET", 0.001)
    query = next(
        q
        for q in of_verdict(Verdict.ROBUST, 9)
        if "open" in desk(q).answer(question_piece(q) | {"budget": 0.02}, lambda: False)
    )
    worker, seen = desk(query), list[Message]()

    def answer(piece: Message, stopped: Any) -> Message:
        seen.append(piece)
        if len(seen) == 2:
            raise Cut
        return worker.answer(piece | {"budget": 0.01 if len(seen) == 1 else None}, stopped)

    store, pose = one_question(tmp_path, query, "r.db")
    with store, pytest.raises(Cut):
        run_campaign(store, pose, Plan(InProcess(answer), BAB))
    assert pieces(tmp_path / "r.db") == 1
    with open_store(tmp_path / "r.db") as store:
        assert list(store.records()) == []
        campaign, points = store.campaign, list(store.points())
    with resume_store(tmp_path / "r.db", campaign, points) as store:
        assert run_campaign(store, pose, Plan(InProcess(answer), BAB))
        (record,) = store.records()
    assert record.result.verdict is Verdict.ROBUST
    assert seen[0]["open"] is None
    assert seen[1]["open"] == seen[2]["open"] is not None  # what the campaign goes on from is what it had then
    assert pieces(tmp_path / "r.db") == 0


def test_the_file_keeps_what_is_open(desk: Callable[[RobustnessQuery], Desk], tmp_path: Path) -> None:
    (query,) = of_verdict(Verdict.NON_ROBUST, 1)
    handed = Handed(0.02)
    assert verify(query, BAB, journal=handed).reason is Reason.INTERRUPTED
    store, _ = one_question(tmp_path, query, "r.db")
    with store:
        journal = StoreJournal(store, Task(0, "1"))
        journal.take(handed)
        part = json.loads(json.dumps(handed.parts[0]))
        assert journal.read(handed.digest) == [part]
        assert journal.read("another") == []
        journal.write(handed.digest, [0], {3: handed.parts[0], -3: handed.parts[0]})
        assert len(journal.read(handed.digest)) == 2
        assert StoreJournal(store, Task(0, "2")).handed() is None
        journal.write("another", [], {1: handed.parts[0]})
        assert journal.handed() == {"digest": "another", "parts": {1: part}}


def test_options_of_ilp_know_no_journal() -> None:
    (query,) = of_verdict(Verdict.ROBUST, 1)
    handed = Handed(0.02)
    assert verify(query, Options(method=Method.ILP, solver="cp-sat"), journal=handed).verdict is Verdict.ROBUST
    assert not handed.written
