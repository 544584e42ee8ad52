"""What a campaign consists of: its description, inputs and answers; plain data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from qertify.network.tensor import IntegerArray
from qertify.queries.equivalence_result import EquivalenceResult
from qertify.queries.radius_result import RadiusResult, RealRadiusResult
from qertify.result import Result


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a campaign compares its model with, and what is asked of both.

    Attributes:
        original_file, original_digest: of the other model; its file's name without the folder.
        asked: "top1", "max_delta", or deltas, exact rationals as text, ascending.
        float_semantics: of a float original.
        output: the only output that counts, None for all.
        input_scale: what one code is to the float model, if it was said.
        rows_sha256: of the inputs as they were given, which codes may not determine.
    """

    original_file: str
    original_digest: str
    asked: tuple[str, ...]
    float_semantics: str
    output: int | None
    input_scale: str | None
    rows_sha256: str


@dataclass(frozen=True, slots=True)
class Campaign:
    """What is asked, of what, by whom.

    Attributes:
        model_file: name of the model file, without its folder.
        options: of each question and of the import, plain data.
        radii: exact rationals as text, ascending.
        radius_unit: of ``radii`` and of a radius search.
        search: largest radius of a radius search, an exact rational as text where the unit is "real"; "all" for no limit, None
            for no search.
        inputs, labels: as named on the command line.
        labelled: whether labels were given; otherwise the predicted class stands for the label.
        input_shape, input_low, input_high: of the input codes.
        created: UTC, ISO 8601.
        comparison: with another model; None for questions about one.
    """

    model_file: str
    model_digest: str
    runtime_profile: str
    qertify_version: str
    options: dict[str, Any]
    radii: tuple[str, ...]
    radius_unit: str
    ties: str
    inputs: str
    labelled: bool
    input_shape: tuple[int, ...]
    input_low: int
    input_high: int
    classes: int
    created: str
    target: int | None = None
    input_range: tuple[str, str] | None = None
    search: int | str | None = None
    labels: str | None = None
    cpu_class: str | None = None
    command_line: tuple[str, ...] = ()
    comparison: Comparison | None = None

    def differences(self, other: Campaign) -> list[str]:
        """What keeps another run from continuing this one, readable."""
        names = {
            "model_digest": "model",
            "runtime_profile": "runtime profile",
            "options": "options",
            "radii": "radii",
            "radius_unit": "radius unit",
            "ties": "tie rule",
            "target": "target",
            "input_range": "input range",
            "search": "radius search",
            "labelled": "use of labels",
            "cpu_class": "CPU class",
            "comparison": "comparison",
        }
        found = [f"another {text}" for name, text in names.items() if getattr(self, name) != getattr(other, name)]
        keys = sorted(key for key in self.options | other.options if self.options.get(key) != other.options.get(key))
        return [f"{text} ({', '.join(keys)})" if text == "another options" else text for text in found]


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One input.

    Attributes:
        position: in the campaign, from 0.
        row: its position in the file of inputs.
        label: the class that must win.
        predicted: the class that wins at the input itself.
        codes: int64, the input's shape.
        outputs: output codes at the input itself.
    """

    position: int
    row: int
    label: int
    predicted: int
    codes: IntegerArray
    outputs: tuple[int, ...]

    @property
    def sha256(self) -> str:
        """Of the codes, as little-endian 64-bit integers in C order."""
        return hashlib.sha256(self.codes.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """The answer for one input and radius.

    Attributes:
        position: of the input.
        radius: exact rational as text.
        implied_by: the radius whose answer settles this one too, None if it was asked itself.
        attempts: how often it was asked; more than once if a worker was lost.
    """

    position: int
    radius: str
    result: Result
    implied_by: str | None = None
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Search:
    """The answer of a radius search for one input."""

    position: int
    result: RadiusResult | RealRadiusResult
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Compared:
    """The answer for one input, radius and question about two models.

    Attributes:
        asked: one of `Comparison.asked`.
        implied_by: (radius, asked) of the answer that settles this one too, None if it was asked itself.
    """

    position: int
    radius: str
    asked: str
    result: EquivalenceResult
    implied_by: tuple[str, str] | None = None
    attempts: int = 1
