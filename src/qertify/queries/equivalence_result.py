"""Answers about two networks, as plain data: light to import, so that a command can answer before its engines are there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from fractions import Fraction
from typing import Any

from qertify._version import __version__
from qertify.result import SCHEMA_VERSION, Evidence, Reason


class Equivalence(str, Enum):
    """The answer to an equivalence query."""

    EQUIVALENT = "equivalent"
    NOT_EQUIVALENT = "not_equivalent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class DifferingInput:
    """An input on which the two networks differ by as much as was asked, replayed exactly.

    Attributes:
        input: float32, flattened; what the float network reads. levels: the quantized network's codes.
        original, quantized: exact outputs, rounded to float64 here.
        difference: the greatest exact |original − quantized| among the outputs that count, rounded to float64.
        output: where it occurs.
        original_predicted, quantized_predicted: classes, lowest index first.
        replayed_on: "reference", or the runtimes that confirmed it as well.
    """

    input: tuple[float, ...]
    levels: tuple[int, ...]
    original: tuple[float, ...]
    quantized: tuple[float, ...]
    difference: float
    output: int
    original_predicted: int
    quantized_predicted: int
    replayed_on: str = "reference"


@dataclass(frozen=True, slots=True)
class EquivalenceResult:
    """The answer; the fields of the command line's JSON.

    Attributes:
        delta: exact rational as text, None unless it was asked for.
        max_delta: [attained, proved] for the least sufficient delta, rounded outwards; None unless something is known.
        float32_error: bound on what a float32 execution of the original may differ from real arithmetic, at any output.
        bound_reached: the greatest difference that is not excluded, when undecided.
    """

    original_digest: str
    model_digest: str
    runtime_profile: str
    verdict: Equivalence
    question: str
    seconds: float
    method: str
    delta: str | None = None
    max_delta: tuple[float, float | None] | None = None
    output: int | None = None
    float_semantics: str | None = None
    float32_error: float | None = None
    reason: Reason | None = None
    evidence: Evidence | None = None
    cpu_class: str | None = None
    exactness: str = "exact"
    region: dict[str, Any] = field(default_factory=dict)
    nodes: int = 0
    solver: str | None = None
    bound_reached: float | None = None
    counterexample: DifferingInput | None = None
    explanation: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict is Equivalence.EQUIVALENT and self.evidence is None:
            raise ValueError("equivalent needs named evidence")
        if self.verdict is Equivalence.NOT_EQUIVALENT and self.counterexample is None:
            raise ValueError("not_equivalent needs a replayed counterexample")
        if self.verdict is Equivalence.UNKNOWN and self.reason is None:
            raise ValueError("unknown needs a reason")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = asdict(self)
        for key in ("verdict", "reason", "evidence"):
            data[key] = None if data[key] is None else data[key].value
        return {"schema_version": SCHEMA_VERSION, "qertify_version": __version__, **data}

    @staticmethod
    def from_json(data: dict[str, Any]) -> EquivalenceResult:
        """The inverse of `to_json`, also after a journey through JSON.

        Raises:
            ValueError: another schema version.
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {data.get('schema_version')}, expected {SCHEMA_VERSION}")
        known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        known = {key: value for key, value in known.items() if key not in ("schema_version", "qertify_version")}
        for name, kind in (("verdict", Equivalence), ("reason", Reason), ("evidence", Evidence)):
            known[name] = None if known[name] is None else kind(known[name])
        if (found := known["counterexample"]) is not None:
            tuples: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
            known["counterexample"] = DifferingInput(**tuples)
        return EquivalenceResult(**known)


def question_name(delta: Fraction | None, top1: bool) -> str:
    """What is asked: "delta", "top1" or "max_delta"."""
    return "top1" if top1 else "max_delta" if delta is None else "delta"
