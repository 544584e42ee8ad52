"""Options of a query: plain values, passed down; no engine reads flags, files or the environment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qertify.errors import InvalidInputError


class Method(str, Enum):
    """Which engines may answer."""

    AUTO = "auto"
    ATTACK = "attack"
    BOUNDS = "bounds"
    BAB = "bab"
    ILP = "ilp"


@dataclass(frozen=True, slots=True)
class Options:
    """How to decide a query.

    Attributes:
        method: the engines to use.
        solver: of integer programs, for method ILP: "highs", "cp-sat", "scip" or "gurobi".
        encoding: form of integer programs: "compact", or the published "one-hot".
        timeout: wall-clock limit in seconds, None for none.
        memory: limit of this process's memory in bytes that the search keeps to, None for none.
        seed: of everything random; the same seed gives the same answer on one machine.
        device: "cpu" or "cuda", of the bound engine.
        accept_solver_claims: report a floating-point solver's infeasibility as robust, with that evidence.
        cpu_class: how the deployed CPU multiplies bytes, "vnni" or "avx2"; None for this machine's class. Matters only for
            kernels that may saturate.
        coupled: whether integer programs of two networks get the rows that tie them together, too.
        keep_proof: keep the search tree and its multipliers, from which a certificate can be written.
    """

    method: Method = Method.AUTO
    solver: str = "highs"
    encoding: str = "compact"
    timeout: float | None = None
    memory: int | None = None
    seed: int = 0
    device: str = "cpu"
    accept_solver_claims: bool = False
    cpu_class: str | None = None
    keep_proof: bool = False
    coupled: bool = False

    def __post_init__(self) -> None:
        from qertify.ilp.solvers import require_solver
        from qertify.ilp.steps import ENCODINGS

        require_solver(self.solver)
        if self.encoding not in ENCODINGS:
            raise InvalidInputError(f"unknown encoding '{self.encoding}'; known: {', '.join(ENCODINGS)}")
        if self.timeout is not None and not self.timeout > 0:
            raise InvalidInputError(f"timeout {self.timeout} must be positive")
        if self.memory is not None and self.memory <= 0:
            raise InvalidInputError(f"memory limit {self.memory} must be positive")
        if self.cpu_class not in (None, "vnni", "avx2"):
            raise InvalidInputError(f"unknown CPU class '{self.cpu_class}'; known: vnni, avx2")
        if self.device not in ("cpu", "cuda"):
            raise InvalidInputError(f"unknown device '{self.device}'; known: cpu, cuda")
