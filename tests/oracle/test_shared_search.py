"""A search that is shared out answers like one that is not, whatever happens to its pieces."""

from __future__ import annotations

import json
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qertify.certificates.format import save as save_certificate
from qertify.certificates.write import certificate_of
from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.errors import WorkerError
from qertify.importers.registry import ImportOptions
from qertify.network.storage import save
from qertify.options import Method, Options
from qertify.parallel.executor import InProcess, LostError, Message, Reply
from qertify.parallel.processes import Processes
from qertify.parallel.worker import Desk, greeting
from qertify.queries.robustness import RobustnessQuery, local_robustness, verify
from qertify.result import Evidence, Reason, Verdict
from qertify.search import sharing
from qertify.search.journal import Handed
from qertify.search.question import Decision, Question
from qertify.specification.property import Ties
from tests.files import comparison_model, model_flags
from tests.oracle.random_networks import random_network, violated_somewhere

BAB = Options(method=Method.BAB)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share every search at once, in pieces of a batch or so; find counterexamples in its leaves only."""
    monkeypatch.setattr(Question, "polish", lambda *_: None)
    for name in ("FIRST_SECONDS", "FIRST_NODES", "FIRST_LIMIT", "LEAST_AGE"):
        monkeypatch.setattr(sharing, name, 0)
    monkeypatch.setattr(sharing, "FIRST_BUDGET", 0.002)


def queries(seed: int) -> Generator[RobustnessQuery]:
    """Questions that bounds alone don't answer."""
    generator = np.random.default_rng(seed)
    while True:
        network = random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        ties = list(Ties)[int(generator.integers(3))]
        query = local_robustness(network, centre, int(generator.integers(1, 4)), ties=ties)
        if verify(query, Options(method=Method.BOUNDS)).verdict is Verdict.UNKNOWN:
            yield query


@cache
def pool() -> dict[Verdict, list[RobustnessQuery]]:
    found: dict[Verdict, list[RobustnessQuery]] = {verdict: [] for verdict in Verdict}
    for query, _ in zip(queries(0), range(28), strict=False):
        found[verify(query, BAB).verdict].append(query)
    return found


def of_verdict(verdict: Verdict, count: int = 10) -> list[RobustnessQuery]:
    assert pool()[verdict], "no such question was made"
    return pool()[verdict][:count]


@pytest.fixture
def desk(tmp_path: Path) -> Callable[[RobustnessQuery], Desk]:
    def make(query: RobustnessQuery) -> Desk:
        save(query.network, tmp_path / "m.qnet")
        return Desk(greeting(tmp_path / "m.qnet", ImportOptions(), BAB))

    return make


def test_shared_searches_agree_with_enumeration(desk: Callable[[RobustnessQuery], Desk]) -> None:
    seen: Counter[tuple[Verdict, str]] = Counter()
    pieces = 0
    for query in of_verdict(Verdict.ROBUST) + of_verdict(Verdict.NON_ROBUST):
        lines: list[str] = []
        result = verify(query, BAB, lines.append, executor=InProcess(desk(query).answer, ready=3, size=3))
        truth = violated_somewhere(query.network, query.region, query.property)
        assert result.verdict is (Verdict.NON_ROBUST if truth else Verdict.ROBUST)
        seen[result.verdict, result.method] += 1
        pieces += sum(line.startswith("piece ") for line in lines)
    assert seen[Verdict.ROBUST, "bab"] > 1
    assert seen[Verdict.NON_ROBUST, "bab"] > 3
    assert pieces > 30


def test_any_number_of_processes_gives_the_same_verdicts(tmp_path: Path) -> None:
    found: dict[int, list[tuple[Verdict, Evidence | None]]] = {1: [], 2: []}
    for query in of_verdict(Verdict.ROBUST, 1) + of_verdict(Verdict.NON_ROBUST, 1):
        model = tmp_path / "m.qnet"
        save(query.network, model)
        found[1].append(((alone := verify(query, BAB)).verdict, alone.evidence))
        with closing(Processes(2, greeting(model, ImportOptions(), BAB), query.network.digest)) as executor:
            executor.prepare()
            result = verify(query, BAB, executor=executor)
            found[2].append((result.verdict, result.evidence))
    assert found[1] == found[2]


class Scripted:
    """An executor that treats chosen pieces in its own way."""

    ready = size = idle = 3

    def __init__(self, desk: Desk, fate: Callable[[int], Exception | None]) -> None:
        self.desk, self.fate = desk, fate
        self.count = 0
        self.open: list[Reply] = []
        self.stopped: set[Reply] = set()

    def submit(self, piece: Message, seconds: float | None = None) -> Reply:
        self.count += 1
        error = self.fate(self.count)
        if error is None:
            return InProcess(self.desk.answer).submit(piece)
        reply: Reply = Future()
        if isinstance(error, TimeoutError):  # it never ends by itself
            self.open.append(reply)
        else:
            reply.set_exception(error)
        return reply

    def stop(self, replies: Iterable[Reply]) -> None:
        self.stopped |= set(replies)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("reason", [Reason.MEMORY, Reason.WORKER_LOST])
def test_a_lost_piece_leaves_no_proof_and_stops_nothing_else(desk: Callable[[RobustnessQuery], Desk], reason: Reason) -> None:
    query = of_verdict(Verdict.ROBUST)[0]
    lost = LostError(reason, "every worker died", 2)
    executor = Scripted(desk(query), lambda count: lost if count == 1 else None)
    result = verify(query, BAB, executor=executor)
    assert (result.verdict, result.reason) == (Verdict.UNKNOWN, reason)
    assert any("given up" in line for line in result.explanation)


def test_a_counterexample_counts_whatever_else_is_lost(desk: Callable[[RobustnessQuery], Desk]) -> None:
    found = Counter[Verdict]()
    for query in of_verdict(Verdict.NON_ROBUST):
        executor = Scripted(desk(query), lambda count: LostError(Reason.MEMORY, "died") if count % 2 else None)
        found[verify(query, BAB, executor=executor).verdict] += 1
    assert found[Verdict.NON_ROBUST] > 0  # how many depends on how much fits into a piece
    assert found[Verdict.ROBUST] == 0


def test_without_workers_the_search_goes_on_here(desk: Callable[[RobustnessQuery], Desk]) -> None:
    for verdict in (Verdict.ROBUST, Verdict.NON_ROBUST):
        for query, start in zip(of_verdict(verdict), (1, 2, 3), strict=False):
            executor = Scripted(desk(query), lambda count, start=start: WorkerError("lost") if count >= start else None)
            assert verify(query, BAB, executor=executor).verdict is verdict


def test_the_first_counterexample_stops_the_others(desk: Callable[[RobustnessQuery], Desk]) -> None:
    stopped = 0
    for query in of_verdict(Verdict.NON_ROBUST):
        executor = Scripted(desk(query), lambda count: TimeoutError() if count == 2 else None)
        result = verify(query, Options(method=Method.BAB, timeout=0.5), executor=executor)
        if result.verdict is Verdict.NON_ROBUST and executor.open:
            assert set(executor.open) <= executor.stopped
            stopped += 1
    assert stopped > 0


def test_the_deadline_stops_what_runs(desk: Callable[[RobustnessQuery], Desk]) -> None:
    query = of_verdict(Verdict.ROBUST)[0]
    executor = Scripted(desk(query), lambda _: TimeoutError())
    result = verify(query, Options(method=Method.BAB, timeout=0.3), executor=executor)
    assert (result.verdict, result.reason) == (Verdict.UNKNOWN, Reason.TIMEOUT)
    assert executor.open
    assert set(executor.open) <= executor.stopped


def test_idle_workers_are_given_a_share(desk: Callable[[RobustnessQuery], Desk]) -> None:
    """A piece that is asked to share hands in what it has, and that is dealt again."""
    query = of_verdict(Verdict.ROBUST)[0]
    made = desk(query)
    asked = threading.Event()

    class Slow(Scripted):
        def submit(self, piece: Message, seconds: float | None = None) -> Reply:
            self.count += 1
            if self.count > 1:
                return InProcess(made.answer).submit(piece)
            reply: Reply = Future()

            def work() -> None:
                asked.wait(10)
                reply.set_result(made.answer(piece, lambda: True) | {"attempts": 1})

            threading.Thread(target=work, daemon=True).start()
            return reply

        def stop(self, replies: Iterable[Reply]) -> None:
            if list(replies):
                asked.set()

    executor = Slow(made, lambda _: None)
    assert verify(query, BAB, executor=executor).verdict is Verdict.ROBUST
    assert asked.is_set()
    assert executor.count > 1


@pytest.mark.parametrize(
    ("change", "said"), [({"digest": "0" * 64}, "another model"), ({"version": "0"}, "begun by qertify 0")]
)
def test_a_worker_of_another_model_or_version_is_noticed(
    desk: Callable[[RobustnessQuery], Desk], change: Message, said: str
) -> None:
    query = of_verdict(Verdict.ROBUST)[0]
    made, replies = desk(query), list[Message]()

    def answer(piece: Message, stopped: Callable[[], bool]) -> Message:
        replies.append(made.answer(piece | {"context": piece["context"] | change}, stopped))
        raise WorkerError(replies[-1]["error"])

    assert verify(query, BAB, executor=InProcess(answer, ready=2, size=2)).verdict is Verdict.ROBUST
    assert said in replies[0]["error"]


def test_certificates_do_not_depend_on_the_workers(desk: Callable[[RobustnessQuery], Desk], tmp_path: Path) -> None:
    options = replace(BAB, keep_proof=True)
    for query in of_verdict(Verdict.ROBUST, 3) + of_verdict(Verdict.NON_ROBUST, 2):
        files: list[dict[str, bytes]] = []
        for place in ({}, {"executor": InProcess(desk(query).answer, ready=3, size=3), "journal": Handed(0.01)}):
            kept: list[Decision] = []
            result = verify(query, options, decided=kept.append, **place)  # type: ignore[arg-type]
            save_certificate(certificate_of(query, result, kept[0]), tmp_path / "c.qcert")
            with zipfile.ZipFile(tmp_path / "c.qcert") as archive:  # whose own bytes hold the time of day
                files.append({name: archive.read(name) for name in archive.namelist()})
        assert files[0] == files[1]


@pytest.mark.parametrize(("radius", "status"), [("3", 0), ("6", 1)])
def test_the_command_with_workers(
    radius: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    comparison_model(tmp_path / "m.h5")
    np.save("x.npy", np.array([[12, 3]]))
    command = ["verify", "m.h5", *model_flags(), "--input", "x.npy", "--radius", radius, "--method", "bab", "--json"]
    answers: list[str] = []
    for workers in ("1", "2"):
        assert run([*command, "--workers", workers], Direct()) == status
        answers.append(json.loads(capsys.readouterr().out)["verdict"])
    assert answers[0] == answers[1]
