"""The runner: shortcuts are sound, lost workers are replaced, kills lose nothing and change nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from qertify.campaign.store import create_store, open_store, resume_store
from qertify.errors import StoreError, WorkerError
from qertify.options import Options
from qertify.parallel.worker import greeting
from qertify.queries.robustness import verify
from qertify.result import Reason, Verdict
from tests.campaigns import RADII, SmallCampaign, verdicts

KILLS = 24


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallCampaign:
    return SmallCampaign(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def canned(small: SmallCampaign, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return small.canned(tmp_path_factory.mktemp("canned"), delay=0.004)


def test_every_answer_is_that_of_its_own_question(small: SmallCampaign, canned: tuple[str, ...], tmp_path: Path) -> None:
    with create_store(tmp_path / "r.db", small.campaign(), small.points) as store:
        assert small.run(store, command=canned)
        records = list(store.records())
    assert len(records) == len(small.points) * len(RADII)
    implied = [record for record in records if record.implied_by is not None]
    assert 3 * len(implied) > len(records)
    assert {record.result.verdict for record in implied} == {Verdict.ROBUST, Verdict.NON_ROBUST, Verdict.MISCLASSIFIED}
    for record in records:
        query = small.pose(record.position, Fraction(record.radius)).query
        assert record.result.verdict is verify(query).verdict
        assert record.result.radius == record.radius
        if (found := record.result.counterexample) is not None:
            assert found.distance <= Fraction(record.radius)


def test_real_workers(small: SmallCampaign, tmp_path: Path) -> None:
    with create_store(tmp_path / "r.db", small.campaign(search=4), small.points[:5]) as store:
        assert small.run(store, workers=1)
        for record in store.records():
            assert record.result.verdict is verify(small.pose(record.position, Fraction(record.radius)).query).verdict
        searches = list(store.searches())
    assert [search.position for search in searches] == list(range(5))
    for search in searches:
        if search.result.verified_radius is not None:
            query = small.pose(search.position, Fraction(search.result.verified_radius)).query
            assert verify(query).verdict is Verdict.ROBUST


def run_until_killed(small: SmallCampaign, command: tuple[str, ...], path: Path, seconds: float) -> bool:
    """Resume in a process of its own, killed after some time; whether it ended by itself."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with resume_store(path, small.campaign(), small.points) as store:
                status = 0 if small.run(store, command=command) else 1
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert status == 0
            return True
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kills_at_random_moments_change_nothing(small: SmallCampaign, canned: tuple[str, ...], tmp_path: Path) -> None:
    with create_store(tmp_path / "whole.db", small.campaign(), small.points) as store:
        assert small.run(store, command=canned)
        whole = verdicts(store)
    rng = random.Random(0)
    kills, grew, longest = 0, 0, 0.15
    while kills < KILLS:
        path = tmp_path / f"killed{kills}.db"
        before = 0
        while not run_until_killed(small, canned, path, rng.uniform(0, longest)):
            kills += 1
            if path.exists() and path.stat().st_size:
                try:
                    with open_store(path) as store:
                        now = len(verdicts(store))
                except StoreError:  # killed while the file was made
                    now = 0
                assert now >= before
                grew, before = grew + (now > before), now
            longest = 0.15 + 0.05 * (kills % 8)
        with open_store(path) as store:
            assert verdicts(store) == whole
    assert grew >= 3


def worker(tmp_path: Path, body: str) -> tuple[str, ...]:
    """A worker made for a test; ``digest`` is that of the model."""
    (tmp_path / "worker.py").write_text("import json, os, signal, sys, time\nsys.stdin.readline()\n" + body)
    return sys.executable, "-S", str(tmp_path / "worker.py")


def ready(small: SmallCampaign) -> str:
    return f"print(json.dumps({{'ready': '{small.network.digest}'}}), flush=True)\n"


def test_a_worker_that_always_dies_leaves_unknowns(small: SmallCampaign, tmp_path: Path) -> None:
    command = worker(tmp_path, ready(small) + "sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)")
    with create_store(tmp_path / "r.db", small.campaign(radii=("1",)), small.points[:3]) as store:
        assert small.run(store, command=command)
        records = list(store.records())
    assert [record.result.verdict for record in records] == [Verdict.UNKNOWN] * 3
    assert {record.result.reason for record in records} <= {Reason.WORKER_LOST, Reason.MEMORY}
    assert [record.attempts for record in records] == [2] * 3
    assert "SIGKILL" in records[0].result.explanation[0]


def test_a_question_whose_worker_dies_once_is_asked_again(
    small: SmallCampaign, canned: tuple[str, ...], tmp_path: Path
) -> None:
    flag = tmp_path / "died"
    body = f"""
if not os.path.exists({str(flag)!r}):
    {ready(small)}
    sys.stdin.readline(); open({str(flag)!r}, 'w').close(); sys.exit('a bad day')
sys.argv = {list(canned[2:])!r}
sys.stdin = open(0)
exec(open(sys.argv[0]).read().replace('sys.stdin.readline()', '', 1))
"""
    with create_store(tmp_path / "r.db", small.campaign(radii=("1",)), small.points[:3]) as store:
        assert small.run(store, command=worker(tmp_path, body), workers=1)
        records = list(store.records())
    assert sorted(record.attempts for record in records) == [1, 1, 2]
    assert Verdict.UNKNOWN not in {record.result.verdict for record in records}


def test_a_worker_that_hangs_is_killed_at_the_limit(small: SmallCampaign, tmp_path: Path) -> None:
    command = worker(tmp_path, ready(small) + "time.sleep(600)")
    with create_store(tmp_path / "r.db", small.campaign(radii=("1",)), small.points[:1]) as store:
        assert small.run(store, command=command, options=Options(timeout=0.1))
        (record,) = store.records()
    assert record.result.reason is Reason.TIMEOUT


def test_the_budget_leaves_the_rest_open(small: SmallCampaign, tmp_path: Path) -> None:
    command = worker(tmp_path, ready(small) + "time.sleep(600)")
    with create_store(tmp_path / "r.db", small.campaign(), small.points) as store:
        assert not small.run(store, command=command, budget=0.3)
        assert not list(store.records())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('no such library')", "no such library"),
        ("print(json.dumps({'ready': 'another'}), flush=True); sys.stdin.read()", "has changed"),
        ("print(json.dumps({'error': 'unreadable model'}), flush=True); sys.stdin.read()", "unreadable model"),
    ],
)
def test_workers_that_do_not_start(small: SmallCampaign, tmp_path: Path, body: str, said: str) -> None:
    with create_store(tmp_path / "r.db", small.campaign(), small.points) as store, pytest.raises(WorkerError, match=said):
        small.run(store, command=worker(tmp_path, body))


def test_progress(small: SmallCampaign, canned: tuple[str, ...], tmp_path: Path) -> None:
    told: list[Any] = []
    with create_store(tmp_path / "r.db", small.campaign(), small.points) as store:
        small.run(store, command=canned, progress=told.append)
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert told[-1].done == told[-1].total == len(small.points) * len(RADII)
    assert told[-1].left == 0


def test_idle_workers_help_with_the_last_questions(
    small: SmallCampaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker never answers; its question is answered with the help of the other, and it is not waited for."""
    from qertify.campaign import runner

    monkeypatch.setattr(runner, "HELP_AFTER", 0.2)
    monkeypatch.setattr(runner, "ENOUGH_IDLE", 1)
    flag = tmp_path / "hanging"
    body = f"""
try:
    open({str(flag)!r}, 'x').close()  # by one of them only, however close together they start
except FileExistsError:
    pass
else:
    {ready(small)}
    time.sleep(600)
sys.argv = {list(small.canned(tmp_path)[2:])!r}
exec(open(sys.argv[0]).read().replace('sys.stdin.readline()', '', 1))
"""
    with create_store(tmp_path / "r.db", small.campaign(), small.points[:4]) as store:
        assert small.run(store, command=worker(tmp_path, body))
        records = list(store.records())
    assert len(records) == 4 * len(RADII)
    for record in records:
        assert record.result.verdict is verify(small.pose(record.position, Fraction(record.radius)).query).verdict


def test_a_ready_worker_has_imported_its_engines(small: SmallCampaign) -> None:
    """Else the first question's limit pays for that, and a worker that is killed for it begins again from nothing."""
    code = (
        "import sys, json\nfrom qertify.parallel.worker import Desk\nDesk(json.loads(sys.argv[1]))\n"
        "print(all(name in sys.modules for name in ('torch', 'qertify.queries.pieces', 'qertify.search.stages')))"
    )
    first = json.dumps(greeting(small.model, small.imports, Options()))
    found = subprocess.run([sys.executable, "-c", code, first], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "True"
