"""An equivalence search that is shared out answers like one that is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

import qertify.search.equivalence as engine
from qertify.importers.registry import ImportOptions
from qertify.network.storage import save
from qertify.options import Method, Options
from qertify.parallel.executor import InProcess
from qertify.parallel.worker import Desk, greeting
from qertify.queries.equivalence import Equivalence, equivalence
from qertify.search import sharing
from qertify.search.comparison import EquivalenceQuery
from qertify.search.paired_input import grid
from tests.oracle.test_equivalence import SLACK, _box, _pair, _truth

BAB = Options(method=Method.BAB, timeout=20)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found before the search, which is shared at once."""
    monkeypatch.setattr(engine, "ENUMERATION_LIMIT", 0)
    monkeypatch.setattr(engine, "attack_differences", lambda *_: "no attack")
    monkeypatch.setattr(engine, "attack_classes", lambda *_: None)
    monkeypatch.setattr(engine, "ROOT_ITERATIONS", 1)
    monkeypatch.setattr(engine._Search, "_sample", lambda self: None)
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
    for seed in range(45):
        asked, worst, agree = queries(seed)
        for query in asked:
            lines: list[str] = []
            executor = InProcess(desk(query).answer, ready=3, size=3)
            result = equivalence(query, replace(BAB, seed=seed), lines.append, executor)
            sent += sum(line.startswith("piece ") for line in lines)
            seen[result.question, result.verdict] += 1
            holds = agree if query.top1 else query.delta is not None and worst <= query.delta
            assert result.verdict is not (Equivalence.NOT_EQUIVALENT if holds else Equivalence.EQUIVALENT)
    print(seen, sent)
    for question in ("delta", "top1"):
        for verdict in (Equivalence.EQUIVALENT, Equivalence.NOT_EQUIVALENT):
            assert seen[question, verdict] > 5
    assert sent > 30
