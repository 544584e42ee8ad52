"""Campaigns about two models: every answer is that of its own question, implied ones too; files of before still open."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.campaign.agreement import agreement
from qertify.campaign.compare_pairs import compare_pairs
from qertify.campaign.equivalence import EquivalenceStudy
from qertify.campaign.export import table
from qertify.campaign.records import Comparison, Point
from qertify.campaign.runner import Plan, run_study
from qertify.campaign.store import SCHEMA_VERSION, Store, create_store, open_store, resume_store
from qertify.errors import StoreError, WorkerError
from qertify.importers.original import Original
from qertify.importers.registry import ImportOptions, load_model
from qertify.network.evaluate import evaluate
from qertify.options import Options
from qertify.parallel.executor import InProcess, LostError, Message
from qertify.parallel.worker import Desk, greeting
from qertify.queries.equivalence import equivalence
from qertify.queries.equivalence_result import Equivalence, EquivalenceResult
from qertify.queries.pieces import comparison_piece
from qertify.result import Reason
from qertify.search.comparison import EquivalenceQuery
from qertify.search.paired_input import grid, interval
from qertify.specification.region import linf_ball
from tests.campaigns import SmallCampaign
from tests.files import write_h5

RADII, DELTAS = ("0", "1", "2"), ("1/20", "1/10", "1/5", "2/5")


class Asked:
    """What the study needs of a question."""

    def __init__(self, query: EquivalenceQuery) -> None:
        self.query = query

    def confirm(self, result: EquivalenceResult) -> EquivalenceResult:
        return result


class SmallPair:
    """A float network of three inputs and its 6-bit quantization; regions are enumerated in no time."""

    def __init__(self, folder: Path, real: bool) -> None:
        generator = np.random.default_rng(7)
        layers = [(generator.normal(size=shape) / 2, generator.normal(size=shape[1]) / 4) for shape in ((3, 5), (5, 3))]
        self.path, self.real = write_h5(folder / "f.h5", layers), real
        self.imports = ImportOptions(bits=5, scheme="qebverif")
        self.first = Original(self.path, self.imports)
        self.quantized, self.original = load_model(self.path, self.imports), self.first.load()
        self.desk = Desk(greeting(self.path, self.imports, Options(), self.first))
        codes = generator.integers(0, 256, size=(1 if real else 5, 3))  # reals can't be enumerated
        outputs = evaluate(self.quantized, codes)
        self.points = [
            Point(at, at, int(outputs[at].argmax()), int(outputs[at].argmax()), codes[at], tuple(outputs[at].tolist()))
            for at in range(len(codes))
        ]

    @cache  # noqa: B019
    def pose(self, position: int, radius: Fraction, asked: str) -> Asked:
        codes, network = self.points[position].codes, self.quantized
        if self.real:
            factor = Fraction(float(network.input_quantization.scale[0]))
            middle = np.array([Fraction(int(code)) * factor for code in codes], dtype=object)
            low, high = (np.clip(middle + sign * radius * factor, 0, 1) for sign in (-1, 1))
            inputs = interval(network, low - Fraction(1, 10**6), high + Fraction(1, 10**6))
        else:
            inputs = grid(network, linf_ball(codes, int(radius), network.input.low, network.input.high))
        delta = None if asked in ("top1", "max_delta") else Fraction(asked)
        return Asked(EquivalenceQuery(self.original, network, inputs, delta, asked == "top1"))

    def create(self, path: Path, asked: tuple[str, ...], **changes: Any) -> Store:
        comparison = Comparison("f.h5", self.original.digest, asked, "real", None, None, "rows")
        like = SmallCampaign(path.parent).campaign(
            model_digest=self.quantized.digest, radii=RADII, input_shape=(3,), input_high=255, classes=3, comparison=comparison
        )
        return create_store(path, replace(like, **changes), self.points)

    def run(self, store: Store, answer: Any = None, budget: float | None = None) -> bool:
        options = Options(timeout=2.0)
        executor = InProcess(answer or self.desk.answer)
        return run_study(EquivalenceStudy(store, self.pose, options), Plan(executor, options, budget))


@pytest.fixture(scope="module", params=["grid", "real"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallPair:
    return SmallPair(tmp_path_factory.mktemp("pair"), request.param == "real")


@pytest.mark.parametrize("asked", [DELTAS, ("top1",), ("max_delta",)], ids=str)
def test_every_answer_is_that_of_its_own_question(pair: SmallPair, tmp_path: Path, asked: tuple[str, ...]) -> None:
    asked_again: list[Message] = []

    def answer(piece: Message, stopped: Any) -> Message:
        asked_again.append(piece)
        return pair.desk.answer(json.loads(json.dumps(piece)), stopped)

    with pair.create(tmp_path / "r.db", asked) as store:
        assert pair.run(store, answer)
        records, summary = list(store.compared()), agreement(store)
        rows = table(store)
    assert len(records) == len(rows) == summary.answers == len(pair.points) * len(RADII) * len(asked)
    assert summary.questions == len(asked_again) == sum(record.implied_by is None for record in records)
    assert summary.complete
    for record in records:
        query = pair.pose(record.position, Fraction(record.radius), record.asked).query
        assert record.result.delta == (record.asked if query.delta is not None else None)
        if record.implied_by is not None:
            found = equivalence(query, Options(timeout=2.0)).verdict
            assert found in (record.result.verdict, Equivalence.UNKNOWN)
    if asked == DELTAS and not pair.real:
        implied = {record.result.verdict for record in records if record.implied_by is not None}
        assert implied == {Equivalence.EQUIVALENT, Equivalence.NOT_EQUIVALENT}
    for entry in summary.apart:
        assert entry.attained is None or entry.proved is None or entry.attained <= entry.proved


def test_a_campaign_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    pair = SmallPair(tmp_path, real=False)
    count = 0

    def answer(piece: Message, stopped: Any) -> Message:
        nonlocal count
        count += 1
        if count == 6:
            raise WorkerError("cut")
        return pair.desk.answer(piece, stopped)

    with pair.create(tmp_path / "r.db", DELTAS) as store, pytest.raises(WorkerError):
        pair.run(store, answer)
    with open_store(tmp_path / "r.db") as store:
        before, campaign = list(store.compared()), store.campaign
    assert 5 <= len(before) < len(pair.points) * len(RADII) * len(DELTAS)
    with resume_store(tmp_path / "r.db", campaign, pair.points) as store:
        assert pair.run(store)
        after = list(store.compared())
        assert all(record in after for record in before)
    with pair.create(tmp_path / "whole.db", DELTAS) as whole:
        assert pair.run(whole)
        keys = [sorted((r.position, r.radius, r.asked, r.result.verdict, r.implied_by) for r in s.compared()) for s in [whole]]
    with open_store(tmp_path / "r.db") as store:
        assert [sorted((r.position, r.radius, r.asked, r.result.verdict, r.implied_by) for r in store.compared())] == keys
        other = replace(campaign, comparison=replace(campaign.comparison, asked=("top1",)))  # type: ignore[type-var]
    with pytest.raises(StoreError, match="another comparison"):
        resume_store(tmp_path / "r.db", other, pair.points)


def test_a_lost_question_is_unknown(tmp_path: Path) -> None:
    pair = SmallPair(tmp_path, real=False)

    def answer(piece: Message, stopped: Any) -> Message:
        raise LostError(Reason.MEMORY, "gone", 2)

    with pair.create(tmp_path / "r.db", ("top1",), radii=("1",)) as store:
        assert pair.run(store, answer)
        (first, *_) = store.compared()
        assert agreement(store).reasons == {"memory": len(pair.points)}
    assert (first.result.verdict, first.result.reason, first.attempts) == (Equivalence.UNKNOWN, Reason.MEMORY, 2)
    assert first.result.explanation == ("gone",)


def test_another_original_is_noticed(tmp_path: Path) -> None:
    pair = SmallPair(tmp_path, real=False)
    piece = comparison_piece(pair.pose(0, Fraction(1), "top1").query)
    assert "result" in pair.desk.answer(piece, lambda: False)
    alone = Desk(greeting(pair.path, pair.imports, Options()))
    for desk, asked in ((alone, piece), (pair.desk, piece | {"original": "0" * 64})):
        assert "another original" in desk.answer(asked, lambda: False)["error"]


@contextmanager
def changed(path: Path, statement: str, *values: Any) -> Iterator[None]:
    connection = sqlite3.connect(path)
    connection.execute(statement, values)
    connection.commit()
    connection.close()
    yield


def test_contradictions_are_found(tmp_path: Path) -> None:
    pair = SmallPair(tmp_path, real=False)
    for name in ("a.db", "b.db"):
        with pair.create(tmp_path / name, DELTAS) as store:
            pair.run(store)
            proved = next(r for r in store.compared() if r.result.verdict is Equivalence.EQUIVALENT and r.radius == "1")
            refuted = next(r for r in store.compared() if r.result.verdict is Equivalence.NOT_EQUIVALENT)
    with open_store(tmp_path / "a.db") as first, open_store(tmp_path / "b.db") as second:
        found = compare_pairs(first, second)
    assert (found.same_model, found.contradictions, found.changes, found.compared) == (True, (), (), 60)
    lie = replace(refuted.result, delta=proved.asked, max_delta=None, region={})
    statement = "UPDATE comparisons SET verdict = ?, result = ? WHERE position = ? AND radius = ? AND asked = ?"
    key = (proved.position, proved.radius, proved.asked)
    with (
        changed(tmp_path / "b.db", statement, "not_equivalent", json.dumps(lie.to_json()), *key),
        open_store(tmp_path / "a.db") as first,
        open_store(tmp_path / "b.db") as second,
    ):
        found = compare_pairs(first, second)
    assert (proved.radius, proved.asked) in {item.proved for item in found.contradictions}
    assert found.transitions == {"equivalent → not_equivalent": 1}


def test_files_of_the_first_version_are_read_and_continued(tmp_path: Path) -> None:
    small = SmallCampaign(tmp_path, count=3)
    with create_store(tmp_path / "r.db", small.campaign(), small.points):
        pass
    connection = sqlite3.connect(tmp_path / "r.db")
    data = json.loads(connection.execute("SELECT data FROM campaign").fetchone()[0])
    del data["comparison"]
    connection.execute("UPDATE campaign SET data = ?", (json.dumps(data),))
    connection.execute("DROP TABLE comparisons")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    with open_store(tmp_path / "r.db") as store:
        assert list(store.compared()) == []
        assert store.campaign == small.campaign()
    with resume_store(tmp_path / "r.db", small.campaign(), small.points) as store:
        assert small.run(store, command=small.canned(tmp_path))
    assert sqlite3.connect(tmp_path / "r.db").execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
