"""Where work is done: flags, addresses, and what a SLURM job would look like."""

from __future__ import annotations

from pathlib import Path

import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.errors import InvalidInputError
from qertify.parallel.place import Place, Slurm, is_open, parse_place


def test_places() -> None:
    assert parse_place(1, None, None).alone
    assert parse_place(3, None, None) == Place(workers=3)
    assert not parse_place(1, "tls://login:8786", None).alone
    found = parse_place(1, None, "slurm:jobs=8,cores=32,memory=64GB,walltime=1-04:00:00,queue=gpu,interface=ib0").cluster
    assert found == Slurm(8, 32, "64GB", "1-04:00:00", "gpu", None, "ib0")
    assert parse_place(1, None, "slurm").cluster == Slurm()


@pytest.mark.parametrize(
    ("workers", "scheduler", "cluster", "said"),
    [
        (2, "tcp://127.0.0.1:8786", None, "give one of"),
        (1, "tcp://127.0.0.1:8786", "slurm", "give one of"),
        (1, "127.0.0.1:8786", None, "an address like"),
        (1, "tcp://127.0.0.1:99999", None, "an address like"),
        (1, "ucx://127.0.0.1:1", None, "an address like"),
        (1, None, "pbs", "only slurm"),
        (1, None, "slurm:nodes=3", "nodes=3"),
        (1, None, "slurm:jobs=0", "jobs=0"),
        (1, None, "slurm:queue=a b", "queue=a b"),
        (1, None, "slurm:account=x\n#SBATCH", "account"),
        (1, None, "slurm:walltime=$(reboot)", "walltime"),
    ],
)
def test_flags_that_make_no_sense(workers: int, scheduler: str | None, cluster: str | None, said: str) -> None:
    with pytest.raises(InvalidInputError, match="--") as error:
        parse_place(workers, scheduler, cluster)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:1", False),
        ("tcp://127.9.9.9:1", False),
        ("tcp://[::1]:1", False),
        ("tcp://localhost:1", False),
        ("tls://10.0.0.1:1", False),
        ("tcp://10.0.0.1:1", True),
        ("tcp://localhost.evil.org:1", True),
        ("tcp://[2001:db8::1]:1", True),
    ],
)
def test_addresses_that_strangers_can_reach(address: str, expected: bool) -> None:
    assert is_open(address) is expected


@pytest.mark.parametrize("command", ["verify", "radius", "campaign"])
def test_commands_refuse_two_places(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    inputs = ["--inputs", "x", "--out", str(tmp_path / "r.db")] if command == "campaign" else ["--input", "x"]
    status = run([command, "m.h5", *inputs, "--radius", "1", "--workers", "2", "--scheduler", "tcp://a:1"], Direct())
    if command == "radius":  # has no --radius
        status = run([command, "m.h5", *inputs, "--workers", "2", "--scheduler", "tcp://a:1"], Direct())
    assert status == 2
    assert "give one of --workers" in capsys.readouterr().err


def test_the_jobs_of_a_slurm_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slurm = pytest.importorskip("dask_jobqueue.slurm", reason="needs the extra 'slurm'")
    pytest.importorskip("cryptography", reason="needs the extra 'slurm'")
    from qertify.parallel.cluster import slurm_cluster

    asked: list[int] = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(slurm.SLURMCluster, "scale", lambda self, *_, jobs=0, **__: asked.append(jobs))
    with slurm_cluster(Slurm(jobs=3, cores=4, memory="8GB", walltime="00:30:00", queue="short")) as cluster:
        script = cluster.job_script()
        assert cluster.scheduler_address.startswith("tls://")
    assert asked[0] == 3
    for part in (
        "#SBATCH -p short",
        "--cpus-per-task=4",
        "-t 00:30:00",
        "--nthreads 1",
        "--nworkers 4",
        "OMP_NUM_THREADS=1",
        "--tls-key",
    ):
        assert part in script
