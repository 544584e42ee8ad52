"""A real Dask cluster: separate processes, TCP; workers and schedulers are killed in the middle of the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from concurrent.futures import wait
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="needs the extra 'dask'")

from qertify.campaign.runner import Plan, run_campaign
from qertify.campaign.store import Store, open_store, resume_store
from qertify.errors import WorkerError
from qertify.options import Options
from qertify.parallel import cluster as cluster_module
from qertify.parallel.cluster import DaskExecutor
from qertify.parallel.executor import LostError
from qertify.parallel.worker import greeting
from qertify.queries.robustness import verify
from qertify.result import Reason
from tests.campaigns import RADII, SmallCampaign
from tests.clusters import SmallCluster, kill, small_cluster, wait_until


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallCampaign:
    return SmallCampaign(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def truth(small: SmallCampaign) -> dict[tuple[int, str], str]:
    return {
        (point.position, radius): verify(small.pose(point.position, Fraction(radius)).query).verdict.value
        for point in small.points
        for radius in RADII
    }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Generator[SmallCluster]:
    with small_cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture
def cluster(running: SmallCluster) -> SmallCluster:
    running.restore(2)
    return running


def connect(cluster: SmallCluster, small: SmallCampaign) -> DaskExecutor:
    return DaskExecutor(cluster.address, greeting(small.model, small.imports, Options()), small.network.digest)


class Background(threading.Thread):
    """A campaign on a cluster, in a thread of its own."""

    def __init__(self, small: SmallCampaign, path: Path, executor: DaskExecutor) -> None:
        super().__init__()
        self.small, self.path, self.executor = small, path, executor
        self.error: Exception | None = None
        self.done = 0
        self.start()

    def run(self) -> None:
        def tell(progress: Any) -> None:
            self.done = progress.done

        try:
            with resume_store(self.path, self.small.campaign(), self.small.points) as store:
                run_campaign(store, self.small.pose, Plan(self.executor, Options()), tell)
        except Exception as error:
            self.error = error


def found(store: Store) -> dict[tuple[int, str], str]:
    return {(record.position, record.radius): record.result.verdict.value for record in store.records()}


def test_a_killed_worker_costs_nothing(
    cluster: SmallCluster, small: SmallCampaign, truth: dict[tuple[int, str], str], tmp_path: Path
) -> None:
    with closing(connect(cluster, small)) as executor:
        wait_until(lambda: executor.ready == 2)
        run = Background(small, tmp_path / "r.db", executor)
        wait_until(lambda: run.done >= 20 or not run.is_alive())
        assert run.is_alive()
        kill(cluster.workers[0])
        run.join(30)
        assert executor.ready == 1
    assert run.error is None
    with open_store(tmp_path / "r.db") as store:
        assert found(store) == truth


def test_a_killed_scheduler_loses_nothing_that_is_decided(
    cluster: SmallCluster,
    small: SmallCampaign,
    truth: dict[tuple[int, str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_module, "RECONNECT_SECONDS", 1.0)
    path = tmp_path / "r.db"
    with closing(connect(cluster, small)) as executor:
        wait_until(lambda: executor.ready == 2)
        run = Background(small, path, executor)
        wait_until(lambda: run.done >= 20 or not run.is_alive())
        kill(cluster.scheduler)
        run.join(30)
    assert isinstance(run.error, WorkerError)
    assert "is lost" in str(run.error)
    with open_store(path) as store:
        before = found(store)
    assert 20 <= len(before) < len(truth)
    assert before.items() <= truth.items()
    with resume_store(path, small.campaign(), small.points) as store:
        assert small.run(store, command=small.canned(tmp_path))
        assert found(store) == truth


def test_a_scheduler_that_comes_back_goes_on(
    cluster: SmallCluster, small: SmallCampaign, truth: dict[tuple[int, str], str], tmp_path: Path
) -> None:
    with closing(connect(cluster, small)) as executor:
        wait_until(lambda: executor.ready == 2)
        run = Background(small, tmp_path / "r.db", executor)
        wait_until(lambda: run.done >= 20 or not run.is_alive())
        kill(cluster.scheduler)
        cluster.restore(2)
        run.join(40)
    assert run.error is None
    with open_store(tmp_path / "r.db") as store:
        assert found(store) == truth


def test_poison_is_given_up_and_the_rest_goes_on(small: SmallCampaign, tmp_path: Path) -> None:
    with small_cluster(tmp_path, nanny=True, failures=0) as cluster, closing(connect(cluster, small)) as executor:
        wait_until(lambda: executor.ready == 2)
        poison = executor.submit({"kind": "poison"})
        endless = executor.submit({"kind": "endless"})
        with pytest.raises(LostError) as lost:
            poison.result(timeout=90)
        assert lost.value.reason in (Reason.WORKER_LOST, Reason.MEMORY)
        assert lost.value.attempts == 2
        start = time.monotonic()
        executor.stop([endless])
        endless.result(timeout=30)
        assert time.monotonic() - start < 15


def test_a_running_piece_can_be_stopped(cluster: SmallCluster, small: SmallCampaign) -> None:
    with closing(connect(cluster, small)) as executor:
        wait_until(lambda: executor.ready == 2)
        replies = [executor.submit({"kind": "endless"}) for _ in range(3)]
        executor.stop(replies[:1])
        assert wait(replies[:1], timeout=20).done
        assert not replies[1].done()
        executor.stop(replies[1:])
        assert not wait(replies, timeout=10).not_done


class Gone:
    """A client whose connection is lost, which nobody has noticed yet."""

    status = "closed"

    def submit(self, *_: Any, **__: Any) -> None:
        raise OSError("closed")

    def close(self, **_: Any) -> None:
        pass


def test_a_piece_that_could_not_be_sent_is_sent_again(cluster: SmallCluster, small: SmallCampaign) -> None:
    with closing(connect(cluster, small)) as executor:
        wait_until(lambda: executor.ready == 2)
        executor._client.close()
        executor._client = Gone()
        reply = executor.submit({"kind": "endless"})
        wait_until(lambda: executor.ready == 2)
        executor.stop([reply])
        assert reply.result(timeout=20)["attempts"] == 1


def test_no_piece_stays_open_when_the_watcher_fails(
    cluster: SmallCluster, small: SmallCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> bool:
        raise RuntimeError("a defect")

    monkeypatch.setattr(DaskExecutor, "_give_up_late_ones", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with closing(connect(cluster, small)) as executor:
        reply = executor.submit({"kind": "endless"})
        with pytest.raises(WorkerError, match="broke down"):
            reply.result(timeout=20)
        with pytest.raises(WorkerError, match="broke down"):
            executor.submit({"kind": "endless"}).result(timeout=20)


def test_another_model_is_noticed(cluster: SmallCluster, small: SmallCampaign) -> None:
    first = greeting(small.model, small.imports, Options())
    with closing(DaskExecutor(cluster.address, first, "0" * 64)) as executor, pytest.raises(WorkerError, match="has changed"):
        executor.submit({"kind": "endless"}).result(timeout=30)


def test_nobody_there(small: SmallCampaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 0.5)
    with pytest.raises(WorkerError, match="no scheduler answers"):
        DaskExecutor("tcp://127.0.0.1:1", greeting(small.model, small.imports, Options()), small.network.digest)
