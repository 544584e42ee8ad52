"""An equivalence search that is shared out answers like one that is not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import qertify.search.equivalence as engine
from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.ilp.process import SolverProcesses
from qertify.importers.registry import ImportOptions
from qertify.network.network import Network
from qertify.network.storage import save
from qertify.options import Method, Options
from qertify.parallel.executor import InProcess, Message
from qertify.parallel.processes import Processes
from qertify.parallel.programs import can_travel, pack_program, unpack_program
from qertify.parallel.worker import Desk, greeting
from qertify.queries.equivalence import equivalence
from qertify.queries.equivalence_result import Equivalence
from qertify.search import pieces, sharing
from qertify.search.comparison import EquivalenceQuery, Judge
from qertify.search.paired_input import grid, interval
from tests.oracle.random_pairs import quantized_pair
from tests.oracle.test_equivalence import SLACK, _box, _pair, _truth

BAB = Options(method=Method.BAB, timeout=20)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found before the search, which is shared at once."""
    monkeypatch.setattr(engine, "ENUMERATION_LIMIT", 0)
    for name in ("sample", "attack_classes"):
        monkeypatch.setattr(engine, name, lambda *_: None)
    for name in ("begin", "go_on"):
        monkeypatch.setattr(engine.DifferenceAttack, name, lambda *_: None)
    monkeypatch.setattr("qertify.bounds.relaxers.ROOT_ITERATIONS", 1)
    for name in ("FIRST_SECONDS", "FIRST_NODES", "FIRST_LIMIT", "LEAST_AGE"):
        monkeypatch.setattr(sharing, name, 0)
    monkeypatch.setattr(sharing, "FIRST_BUDGET", 0.002)


@pytest.fixture
def desk(tmp_path: Path) -> Callable[[EquivalenceQuery], Desk]:
    def make(query: EquivalenceQuery) -> Desk:
        save(query.quantized, tmp_path / "m.qnet")
        return Desk(greeting(tmp_path / "m.qnet", ImportOptions(), BAB))

    return make


def queries(seed: int) -> tuple[list[EquivalenceQuery], Fraction, bool]:
    """Questions about one pair: on codes and on reals, with a delta above and below the greatest difference, and top-1."""
    left, right, generator = _pair(seed)
    box = _box(generator, right)
    query = EquivalenceQuery(left, right, grid(right, box))
    worst, agree = _truth(query)
    return (
        [
            replace(query, delta=worst * (1 + SLACK) + Fraction(1, 1000)),
            *([replace(query, delta=worst * Fraction(9, 10))] if worst else []),
            *([replace(query, top1=True)] if right.output_size > 1 else []),
        ],
        worst,
        agree,
    )


def test_shared_searches_agree_with_enumeration(desk: Callable[[EquivalenceQuery], Desk]) -> None:
    seen: Counter[tuple[str, Equivalence]] = Counter()
    sent = 0
    for seed in range(10):
        asked, worst, agree = queries(seed)
        for query in asked:
            lines: list[str] = []
            executor = InProcess(desk(query).answer, ready=3, size=3)
            result = equivalence(query, replace(BAB, seed=seed), lines.append, executor)
            sent += sum(line.startswith("piece ") for line in lines)
            seen[result.question, result.verdict] += 1
            holds = agree if query.top1 else query.delta is not None and worst <= query.delta
            assert result.verdict is not (Equivalence.NOT_EQUIVALENT if holds else Equivalence.EQUIVALENT)
    for question in ("delta", "top1"):
        for verdict in (Equivalence.EQUIVALENT, Equivalence.NOT_EQUIVALENT):
            assert seen[question, verdict] > 1
    assert sent > 30


def test_any_number_of_processes_gives_the_same_verdicts(tmp_path: Path) -> None:
    asked = queries(0)[0]
    path = tmp_path / "m.qnet"
    save(asked[0].quantized, path)
    found: list[list[Equivalence]] = []
    for workers in (1, 2):
        with closing(Processes(workers, greeting(path, ImportOptions(), BAB), asked[0].quantized.digest)) as executor:
            executor.prepare()
            found.append([equivalence(query, BAB, executor=executor).verdict for query in asked])
    assert found[0] == found[1]
    assert {Equivalence.EQUIVALENT, Equivalence.NOT_EQUIVALENT} <= set(found[0])


def test_a_worker_that_lost_the_program_is_sent_it_again(
    desk: Callable[[EquivalenceQuery], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = queries(17)[0][0]
    answer, full = desk(asked).answer, [0, 0]

    def forgetful(piece: Message, stopped: Callable[[], bool]) -> Message:
        full["program" in piece["context"]] += 1
        reply = answer(piece, stopped)
        pieces._PROGRAMS.clear()
        return reply

    result = equivalence(asked, BAB, executor=InProcess(forgetful, ready=2, size=2))
    assert result.verdict is equivalence(asked, BAB).verdict
    assert full[0] > 0
    assert full[1] > 2


def test_a_program_of_two_networks_survives_a_journey() -> None:
    generator = np.random.default_rng(5)
    left, right = quantized_pair(generator, 2, 2)
    inputs = interval(right, np.array([Fraction(-1, 20)] * 2, dtype=object), np.array([Fraction(1, 3)] * 2, dtype=object))
    query = EquivalenceQuery(left, right, inputs, delta=Fraction(1, 100))
    asked = engine._Search(query, Judge(query), Fraction(0), BAB, lambda _: None, None, SolverProcesses(), None)
    old = asked._compile(coupled=True).program
    assert old.divisor is not None
    assert old.slack is not None
    assert old.coupled is not None
    assert can_travel(old)
    new = unpack_program(json.loads(json.dumps(pack_program(old), allow_nan=False)))
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        same = torch.equal(before, after) if isinstance(before, torch.Tensor) else str(before) == str(after)
        assert same, field.name


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command(tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    query = queries(2)[0][0]
    assert isinstance(query.original, Network)
    for name, network in (("a", query.original), ("b", query.quantized)):
        save(network, tmp_path / f"{name}.qnet")
    box = query.inputs.box
    np.save(tmp_path / "low.npy", box.low)
    np.save(tmp_path / "high.npy", box.high)
    ends = ["--lower", str(tmp_path / "low.npy"), "--upper", str(tmp_path / "high.npy"), "--radius-unit", "levels"]
    arguments = ["equiv", str(tmp_path / "a.qnet"), str(tmp_path / "b.qnet"), "--input", str(tmp_path / "low.npy"), *ends]
    status = run([*arguments, "--delta", str(query.delta), "--workers", str(workers), "--json"], Direct())
    assert status == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "equivalent"
