"""What a query answers: verdict, evidence, counterexample; as dataclasses and as JSON, both ways."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

SCHEMA_VERSION = 1


class Verdict(str, Enum):
    """The answer to a robustness query."""

    ROBUST = "robust"
    NON_ROBUST = "non_robust"
    MISCLASSIFIED = "misclassified"
    UNKNOWN = "unknown"


class Reason(str, Enum):
    """Why a verdict is unknown."""

    TIMEOUT = "timeout"
    MEMORY = "memory"
    SOLVER_CLAIM = "solver_claim"
    """A floating-point solver claims infeasibility; no exact evidence."""
    ENCLOSURE = "enclosure"
    """The network is only enclosed, not known bit for bit, and the enclosure is too wide."""
    ARITHMETIC = "arithmetic"
    """Overflow or saturation of the runtime's accumulators is not excluded."""
    UNSUPPORTED = "unsupported"
    """The chosen method can't decide this query: it is exhausted, or it does not cover the network."""
    INTERRUPTED = "interrupted"
    WORKER_LOST = "worker_lost"


class Evidence(str, Enum):
    """What a verdict rests on."""

    EXACT_BOUNDS = "exact_bounds"
    """Integer bounds at the root, no search."""
    EXACT_SEARCH = "exact_search"
    """A search tree whose leaves are all closed by integer bounds."""
    EXACT_SOLVER = "exact_solver"
    """An integer solver (CP-SAT) closed the query or a leaf of the tree."""
    SOLVER_CLAIM = "solver_claim"
    """A floating-point solver says so. Proves nothing; only ever reported on request."""
    REPLAYED_COUNTEREXAMPLE = "replayed_counterexample"
    """An input on which the property fails in exact integers."""


EVIDENCE = {
    "exact_bounds": "integer bounds, no search needed",
    "exact_search": "a search tree whose every leaf is closed by integer bounds",
    "exact_solver": "a search in which an integer solver closed what was left",
    "solver_claim": "a floating-point solver's claim, accepted on request; not a proof",
    "replayed_counterexample": "a counterexample, replayed in exact integers",
}
"""Evidence as one says it."""
REASONS = {
    "timeout": "the time limit was reached",
    "memory": "the memory limit was reached",
    "solver_claim": "only a floating-point solver claims robustness, which is no proof",
    "enclosure": "the runtime's arithmetic is only known within bounds, which are too wide here",
    "arithmetic": "overflow of the accumulators is not excluded",
    "unsupported": "the chosen method can't decide this question",
    "interrupted": "interrupted",
    "worker_lost": "a worker process was lost",
}
"""Reasons as one says them."""


@dataclass(frozen=True, slots=True)
class Counterexample:
    """An input that violates the property, replayed.

    Attributes:
        levels: input codes, flattened in C order.
        input: the same input in the model's own input domain, or None when that is the codes themselves.
        outputs: output codes.
        predicted: the class the network assigns to it.
        distance: its largest distance from the centre in input levels.
        replayed_on: "reference", or the runtime that confirmed it as well.
    """

    levels: tuple[int, ...]
    outputs: tuple[int, ...]
    predicted: int
    distance: int
    input: tuple[float, ...] | None = None
    replayed_on: str = "reference"


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one robustness query; the fields of the command line's JSON.

    Attributes:
        cpu_class: the CPU class for which the runtime's integers were proved exact; None where it does not matter.
        radius: exact rational as text, in ``radius_unit``.
        nodes: domains that the search bounded.
        bound_reached: the least proved margin of the case that stayed open (0 or more would prove it); None if none did.
        nearest_class: the class of that case.
        explanation: one line a stage, for ``-v`` and reports.
    """

    model_digest: str
    runtime_profile: str
    verdict: Verdict
    label: int
    radius: str
    radius_unit: str
    seconds: float
    method: str
    reason: Reason | None = None
    evidence: Evidence | None = None
    target: int | None = None
    predicted: int | None = None
    exactness: str = "exact"
    cpu_class: str | None = None
    region: dict[str, Any] = field(default_factory=dict)
    ties: str = "first"
    nodes: int = 0
    solver: str | None = None
    bound_reached: int | None = None
    nearest_class: int | None = None
    counterexample: Counterexample | None = None
    explanation: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict is Verdict.ROBUST and self.evidence is None:
            raise ValueError("robust needs named evidence")
        if self.verdict is Verdict.NON_ROBUST and self.counterexample is None:
            raise ValueError("non_robust needs a replayed counterexample")
        if self.verdict is Verdict.UNKNOWN and self.reason is None:
            raise ValueError("unknown needs a reason")

    def to_json(self) -> dict[str, Any]:
        """Plain data in the order of docs/cli.md."""
        from qertify._version import __version__

        data = asdict(self)
        for key in ("verdict", "reason", "evidence"):
            data[key] = None if data[key] is None else data[key].value
        data["explanation"] = list(self.explanation)
        if self.counterexample is not None:
            data["counterexample"] = {
                key: list(value) if isinstance(value, tuple) else value for key, value in data["counterexample"].items()
            }
        return {"schema_version": SCHEMA_VERSION, "qertify_version": __version__, **data}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Result:
        """The inverse of `to_json`.

        Raises:
            ValueError: another schema version.
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {data.get('schema_version')}, expected {SCHEMA_VERSION}")
        fields = {key: value for key, value in data.items() if key not in ("schema_version", "qertify_version")}
        fields["verdict"] = Verdict(fields["verdict"])
        fields["reason"] = None if fields["reason"] is None else Reason(fields["reason"])
        fields["evidence"] = None if fields["evidence"] is None else Evidence(fields["evidence"])
        fields["explanation"] = tuple(fields["explanation"])
        if (found := fields["counterexample"]) is not None:
            tuples: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
            fields["counterexample"] = Counterexample(**tuples)
        return Result(**fields)
