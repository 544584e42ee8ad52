"""Where pieces are worked on, as chosen by whoever asks: processes of this machine, a scheduler, or a cluster to be started."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from qertify.errors import InvalidInputError
from qertify.parallel.executor import Executor, Message
from qertify.parallel.processes import Processes

_ADDRESS = re.compile(r"(tcp|tls)://(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})", re.ASCII)
_SLURM = {
    "jobs": r"[1-9]\d{0,3}", "cores": r"[1-9]\d{0,2}", "memory": r"[1-9]\d{0,4}(GB|MB|GiB|MiB)",
    "walltime": r"(\d+-)?\d{1,3}:\d\d:\d\d", "queue": r"[\w.-]{1,64}", "account": r"[\w.-]{1,64}",
    "interface": r"[\w.-]{1,32}",
}  # fmt: skip
"""Keys of --cluster slurm:key=value,… and what their values look like; they end up in a job script."""


@dataclass(frozen=True, slots=True)
class Slurm:
    """Jobs of a SLURM cluster, each with one process a core.

    Attributes:
        jobs: number of jobs.
        cores, memory, walltime: of each job.
        queue, account, interface: partition, account and network interface; None for the cluster's defaults.
    """

    jobs: int = 1
    cores: int = 1
    memory: str = "4GB"
    walltime: str = "01:00:00"
    queue: str | None = None
    account: str | None = None
    interface: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """At most one of the three is given.

    Attributes:
        workers: processes of this machine; 1 is no parallelism for a single question.
        scheduler: address of a Dask scheduler.
        cluster: a cluster to start.
    """

    workers: int = 1
    scheduler: str | None = None
    cluster: Slurm | None = None

    @property
    def alone(self) -> bool:
        """Whether there is nothing but this process."""
        return self.workers == 1 and self.scheduler is None and self.cluster is None


def parse_place(workers: int, scheduler: str | None, cluster: str | None) -> Place:
    """The flags as one value.

    Raises:
        InvalidInputError: two of them, or one that can't be understood.
    """
    if (workers > 1) + (scheduler is not None) + (cluster is not None) > 1:
        raise InvalidInputError("give one of --workers, --scheduler and --cluster")
    if scheduler is not None and not (_ADDRESS.fullmatch(scheduler) and int(scheduler.rpartition(":")[2]) < 1 << 16):
        raise InvalidInputError(f"--scheduler {scheduler}: an address like tcp://127.0.0.1:8786 or tls://login:8786 is needed")
    return Place(workers, scheduler, None if cluster is None else _slurm(cluster))


def _slurm(text: str) -> Slurm:
    kind, _, rest = text.partition(":")
    if kind != "slurm":
        raise InvalidInputError(
            f"--cluster {text}: only slurm is known, as slurm:jobs=4,cores=32,memory=64GB,walltime=04:00:00"
        )
    found: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in _SLURM or not re.fullmatch(_SLURM[key], value, re.ASCII):
            raise InvalidInputError(f"--cluster: '{part}' is not one of {', '.join(_SLURM)} with a proper value")
        found[key] = value
    values: dict[str, Any] = {key: int(value) if key in ("jobs", "cores") else value for key, value in found.items()}
    return Slurm(**values)


def is_open(address: str) -> bool:
    """Whether a connection to a scheduler is neither encrypted nor confined to this machine."""
    found = _ADDRESS.fullmatch(address)
    if found is None or found[1] == "tls":
        return False
    try:
        return not ipaddress.ip_address(found[2].strip("[]")).is_loopback
    except ValueError:
        return found[2] != "localhost"


@contextmanager
def open_executor(
    place: Place, greeting: Message, digest: str, memory: int | None, say: Callable[[str], None]
) -> Generator[Executor]:
    """The workers of a place, for as long as the context lasts.

    Args:
        greeting, digest, memory: as `qertify.parallel.processes.Processes`; memory is that of one worker.
        say: gets a line about a cluster.

    Raises:
        MissingExtraError: a package for clusters is not installed.
        WorkerError: no scheduler answers.
    """
    if place.scheduler is None and place.cluster is None:
        with closing(Processes(place.workers, greeting, digest, memory)) as executor:
            if place.workers > 1:
                executor.prepare()
            yield executor
        return
    from qertify.parallel.cluster import DaskExecutor, slurm_cluster

    if place.scheduler is not None and is_open(place.scheduler):
        say(
            f"the connection to {place.scheduler} is not encrypted; who can reach the scheduler can run programs on its workers"
        )
    if place.cluster is None:
        with closing(DaskExecutor(place.scheduler, greeting, digest)) as executor:
            say(f"scheduler {place.scheduler}: {executor.ready} workers, dashboard {executor.dashboard}")
            yield executor
        return
    with slurm_cluster(place.cluster) as cluster, closing(DaskExecutor(cluster, greeting, digest)) as executor:
        say(f"SLURM: {place.cluster.jobs} jobs of {place.cluster.cores} workers, dashboard {executor.dashboard}")
        yield executor
