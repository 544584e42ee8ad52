"""Answers to VNN-LIB properties, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from qertify.result import SCHEMA_VERSION, Evidence, Reason


@dataclass(frozen=True, slots=True)
class Assignment:
    """An input and its outputs that satisfy the property's statement, replayed.

    Attributes:
        levels: input codes, flattened in C order.
        input: the same as the model reads it: exact decimal numbers as text.
        outputs: output codes.
        output: the numbers that the model returns: by the runtime if it was replayed there, else exact; as text.
        replayed_on: "reference", or the runtime that confirmed it as well.
        holds_in_runtime: whether the runtime's own outputs, which are rounded to float32, satisfy the statement, too; None
            if it was not replayed there.
    """

    levels: tuple[int, ...]
    input: tuple[str, ...]
    outputs: tuple[int, ...]
    output: tuple[str, ...]
    replayed_on: str = "reference"
    holds_in_runtime: bool | None = None


class Answer(str, Enum):
    """Whether the violation that a property states exists."""

    SAT = "sat"
    UNSAT = "unsat"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SpecificationResult:
    """The answer to one VNN-LIB property; the fields of the command line's JSON.

    Attributes:
        parts: input boxes of the property.
        explanation: one line a stage.
        exactness: "exact", or "enclosure": unsat then holds for every run that the enclosure allows, sat for the runtime's own.
    """

    model_digest: str
    runtime_profile: str
    verdict: Answer
    parts: int
    seconds: float
    method: str
    reason: Reason | None = None
    evidence: Evidence | None = None
    cpu_class: str | None = None
    nodes: int = 0
    solver: str | None = None
    counterexample: Assignment | None = None
    explanation: tuple[str, ...] = ()
    exactness: str = "exact"

    def __post_init__(self) -> None:
        if (self.verdict is Answer.SAT) != (self.counterexample is not None):
            raise ValueError("sat needs a replayed counterexample")
        if (self.verdict is Answer.UNKNOWN) != (self.reason is not None):
            raise ValueError("unknown needs a reason")
        if self.verdict is Answer.UNSAT and self.evidence is None:
            raise ValueError("unsat needs named evidence")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        from qertify._version import __version__

        data = asdict(self)
        for key in ("verdict", "reason", "evidence"):
            data[key] = None if data[key] is None else data[key].value
        return {"schema_version": SCHEMA_VERSION, "qertify_version": __version__, **data}

    def competition_text(self) -> str:
        """VNN-COMP's result file: sat, unsat, timeout or unknown, and the counterexample."""
        if self.counterexample is None:
            return "timeout\n" if self.reason is Reason.TIMEOUT else f"{self.verdict.value}\n"
        pairs = [f"(X_{index} {value})" for index, value in enumerate(self.counterexample.input)]
        pairs += [f"(Y_{index} {value})" for index, value in enumerate(self.counterexample.output)]
        return "sat\n(" + "\n".join(pairs) + ")\n"
