"""VNN-LIB properties: is there an input in the boxes whose outputs are a violation?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np

from qertify.errors import InvalidInputError, ReplayError, UnsupportedModelError
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.ranges import ranges
from qertify.network.tensor import IntegerArray, QuantizationParameters
from qertify.options import Options
from qertify.result import SCHEMA_VERSION, Evidence, Reason
from qertify.runtimes.base import RUNTIMES, runtime_of
from qertify.runtimes.saturation import CpuClass, arithmetic_doubts, host_cpu_class
from qertify.search.portfolio import Decision, decide
from qertify.specification.formula import Bound, Part, Specification
from qertify.specification.linear import Disjunction, holds, lower, output_values, with_rows
from qertify.specification.property import Classification, Ties
from qertify.specification.region import IntegerBox

FLOAT32_STEP = Fraction(1, 1 << 149)
"""Every finite float32 is a multiple of it."""
_STRENGTH = (Evidence.SOLVER_CLAIM, Evidence.EXACT_SOLVER, Evidence.EXACT_SEARCH, Evidence.EXACT_BOUNDS)
"""Evidence from weak to strong: a proof in parts is as good as its weakest one."""


class Answer(str, Enum):
    """Whether the violation that a property states exists."""

    SAT = "sat"
    UNSAT = "unsat"
    UNKNOWN = "unknown"


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


@dataclass(frozen=True, slots=True)
class SpecificationResult:
    """The answer to one VNN-LIB property; the fields of the command line's JSON.

    Attributes:
        parts: input boxes of the property.
        explanation: one line a stage.
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


def decide_specification(
    network: Network,
    specification: Specification,
    options: Options | None = None,
    progress: Callable[[str], None] | None = None,
    model: str | os.PathLike[str] | None = None,
) -> SpecificationResult:
    """Decide a property with a proof (unsat) or a replayed counterexample (sat).

    Inputs are the numbers that the model can be given, in its own input domain; outputs are exact: scale · (code − zero
    point), or the codes themselves where the model returns codes.

    Args:
        network: the integer network.
        specification: the property; states the violation.
        options: engines and limits.
        progress: gets one line a stage.
        model: the file that the network came from, to replay a counterexample on its runtime.

    Raises:
        InvalidInputError: a property of other inputs or outputs, or a box that holds no input of the model's type.
        UnsupportedModelError: outputs that are not numbers of codes, or a network that the chosen method does not cover.
        ReplayError: a counterexample that does not replay, which is a defect.
    """
    options, say = options or Options(), progress or (lambda _: None)
    start = time.monotonic()
    if specification.networks != 1:
        raise InvalidInputError("the property speaks of 2 networks, but one model is given")
    check_size(network, specification)
    meant = with_meaning(network)
    cpu_class = host_cpu_class() if options.cpu_class is None else CpuClass(options.cpu_class)
    boxes = [codes_box(network, part) for part in specification.parts]
    decisions: list[Decision] = []
    found: Assignment | None = None
    for number, (part, box) in enumerate(zip(specification.parts, boxes, strict=True)):
        left = None if options.timeout is None else options.timeout - (time.monotonic() - start)
        share = None if left is None else time.monotonic() + left / (len(boxes) - number)
        if len(boxes) > 1:
            say(f"input box {number + 1} of {len(boxes)}")
        decisions.append(_decide_part(meant, part.violation, box, options, cpu_class, say, share))
        if (codes := decisions[-1].counterexample) is not None:
            found = _replay(meant, part, box, codes, model)
            break
    verdict, reason, evidence = _combine(decisions, options)
    solvers = {solver for decision in decisions if decision.solver for solver in decision.solver.split(", ")}
    return SpecificationResult(
        network.digest,
        network.runtime_profile,
        verdict,
        len(boxes),
        time.monotonic() - start,
        decisions[-1].method or options.method.value,
        reason,
        evidence,
        cpu_class.value if "kernels" in network.metadata else None,
        sum(decision.nodes for decision in decisions),
        ", ".join(sorted(solvers)) or None,
        found,
        tuple(line for decision in decisions for line in decision.explanation),
    )


def _combine(decisions: list[Decision], options: Options) -> tuple[Answer, Reason | None, Evidence | None]:
    """One answer from those of the parts."""
    if decisions[-1].counterexample is not None:
        return Answer.SAT, None, Evidence.REPLAYED_COUNTEREXAMPLE
    open_ = [decision.reason or Reason.UNSUPPORTED for decision in decisions if decision.evidence is None]
    if open_:
        return Answer.UNKNOWN, open_[0], None
    evidence = weakest([decision.evidence for decision in decisions if decision.evidence is not None])
    if evidence is Evidence.SOLVER_CLAIM and not options.accept_solver_claims:
        return Answer.UNKNOWN, Reason.SOLVER_CLAIM, evidence
    return Answer.UNSAT, None, evidence


def weakest(evidence: list[Evidence]) -> Evidence:
    """What a proof in parts rests on."""
    return min(evidence, key=_STRENGTH.index)


def check_size(network: Network, specification: Specification) -> None:
    """Whether a network returns scores, as many as a property of one network says, from as many inputs.

    Raises:
        InvalidInputError, UnsupportedModelError: it does not.
    """
    kind = network.metadata.get("output", "dequantized")
    if kind not in ("dequantized", "codes"):
        reason = f"constraints on outputs need a model that returns its scores, this one returns their {kind}; cut that off"
        raise UnsupportedModelError(network.output.name, kind, "output", reason)
    inputs = int(np.prod(network.input_shape))
    for what, declared, there in (
        ("input", specification.inputs, inputs),
        ("output", specification.outputs, network.output_size),
    ):
        if declared != there:
            raise InvalidInputError(f"the property declares {declared} {what}(s), but the model has {there}")


def with_meaning(network: Network) -> Network:
    """The network with output codes that mean what the model returns."""
    if network.metadata.get("output") != "codes":
        return network
    return replace(network, output_quantization=QuantizationParameters.of(1.0))


def ends(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """The box of a part as closed intervals with the same float32 numbers: arrays of fractions, (inputs,)."""
    low, high = np.empty(len(part.low), dtype=object), np.empty(len(part.high), dtype=object)
    low[:] = [_closed(bound, 1) for bound in part.low]
    high[:] = [_closed(bound, -1) for bound in part.high]
    return low, high


def _closed(bound: Bound, inwards: int) -> Fraction:
    """A closed bound that the same float32 numbers keep: less than a step of the finest numbers away from a strict one."""
    on_grid = (bound.value / FLOAT32_STEP).denominator == 1
    return bound.value + inwards * FLOAT32_STEP / 2 if bound.strict and on_grid else bound.value


def codes_box(network: Network, part: Part) -> IntegerBox:
    """The exact set of input codes of a part.

    Raises:
        InvalidInputError: no input of the model's type lies in it.
    """
    if network.runtime_profile in RUNTIMES:
        low, high = (end.reshape(network.input_shape) for end in ends(part))
        return runtime_of(network).integer_image(low, high)
    return IntegerBox(_codes(network, part.low, 1), _codes(network, part.high, -1))


def _codes(network: Network, bounds: tuple[Bound, ...], inwards: int) -> IntegerArray:
    """The outermost codes x with scale · (x − zero point) inside lower (1) or upper (−1) bounds."""
    meaning = network.input_quantization
    if not meaning.per_tensor:
        raise UnsupportedModelError(network.input.name, "Input", "scale", "bounds on inputs need one input scale")
    scale, zero_point = Fraction(float(meaning.scale[0])), int(meaning.zero_point[0])
    ends = sorted((inwards * network.input.low, inwards * network.input.high))
    first, past = ends[0], ends[1] + 1  # what lies beyond all codes makes an empty box
    result: list[int] = []
    for bound in bounds:
        code = inwards * (bound.value / scale + zero_point)
        inside = code.__floor__() + 1 if bound.strict else code.__ceil__()
        result.append(inwards * min(max(inside, first), past))
    return np.array(result, dtype=np.int64).reshape(network.input_shape)


def _decide_part(
    network: Network,
    violation: Disjunction,
    box: IntegerBox,
    options: Options,
    cpu_class: CpuClass,
    say: Callable[[str], None],
    deadline: float | None,
) -> Decision:
    if doubts := arithmetic_doubts(network, cpu_class, box):
        return Decision(reason=Reason.ARITHMETIC, method="ranges", explanation=list(doubts))
    if (classification := _as_classification(network, violation)) is not None:
        return decide(network, box, classification, options, say, deadline)
    known = ranges(network, box.low[None], box.high[None])[network.output.name]
    lowered = lower(network, violation, known)
    if lowered.always:
        return Decision(counterexample=box.low, method="interval")
    if not lowered.property.boxes:
        return Decision(evidence=Evidence.EXACT_BOUNDS, method="interval")
    return decide(with_rows(network, lowered.rows), box, lowered.property, options, say, deadline)


def _as_classification(network: Network, violation: Disjunction) -> Classification | None:
    """The property "one output is the only greatest", as which most violations are stated, or that of two outputs.

    Its cases are thresholds of the last accumulators themselves, which bound better than rows on codes.
    """
    losers: set[int] = set()
    winners: set[int] = set()
    for disjunct in violation:
        match disjunct:
            case [constraint] if not constraint.strict and constraint.bound == 0 and len(constraint.coefficients) == 2:
                (first, a), (second, b) = constraint.coefficients
                if a + b != 0:
                    return None
                losers.add(first if a > 0 else second)
                winners.add(second if a > 0 else first)
            case _:
                return None
    if len(losers) != 1 or not network.output_quantization.per_tensor:
        return None
    (label,) = losers
    if len(winners) == 1:
        return Classification(label, winners.pop(), Ties.VIOLATION)
    return Classification(label, None, Ties.VIOLATION) if len(winners) == network.output_size - 1 else None


def _replay(
    network: Network, part: Part, box: IntegerBox, codes: IntegerArray, model: str | os.PathLike[str] | None
) -> Assignment:
    """Check a counterexample from scratch: by definition on exact outputs, and on the runtime.

    Raises:
        ReplayError: any check fails.
    """
    codes = codes.reshape(network.input_shape)
    outputs = evaluate(network, codes[None])[0]
    exact = output_values(network, outputs)
    if not box.contains(codes[None])[0] or not holds(part.violation, exact):
        raise ReplayError("a counterexample does not replay on the reference evaluator; please report this defect")
    levels, output_codes = tuple(codes.reshape(-1).tolist()), tuple(outputs.tolist())
    if network.runtime_profile not in RUNTIMES:
        scale, zero_point = Fraction(float(network.input_quantization.scale[0])), int(network.input_quantization.zero_point[0])
        input_ = [scale * (level - zero_point) for level in levels]
        _require_inside(part, input_)
        return Assignment(levels, texts(input_), output_codes, texts(exact))
    runtime = runtime_of(network)
    real = runtime.real_input(codes, *(end.reshape(network.input_shape) for end in ends(part)))
    input_ = [Fraction(value) for value in real.reshape(-1).tolist()]
    _require_inside(part, input_)
    assignment = Assignment(levels, texts(input_), output_codes, texts(exact))
    if model is None:
        return assignment
    replay = runtime.replay(model, real[None])
    if not bool(replay.agrees[0]) or not np.array_equal(replay.codes[0], codes):
        raise ReplayError(f"a counterexample does not replay on {replay.runtime}; please report this defect")
    returned = [Fraction(value) for value in replay.outputs[0].tolist()]
    return replace(
        assignment,
        output=texts(returned),
        replayed_on=replay.runtime,
        holds_in_runtime=holds(part.violation, returned),
    )


def _require_inside(part: Part, values: list[Fraction]) -> None:
    for value, low, high in zip(values, part.low, part.high, strict=True):
        above = value > low.value or (value == low.value and not low.strict)
        below = value < high.value or (value == high.value and not high.strict)
        if not (above and below):
            raise ReplayError("a counterexample leaves the input region; please report this defect")


def texts(values: list[Fraction]) -> tuple[str, ...]:
    """All digits of binary fractions."""
    return tuple(exact_decimal(value) for value in values)


def exact_decimal(value: Fraction) -> str:
    """All digits of a binary fraction.

    Raises:
        ValueError: the denominator is not a power of two.
    """
    places = value.denominator.bit_length() - 1
    if value.denominator != 1 << places:
        raise ValueError(f"{value} is not a binary fraction")
    digits = str(abs(value.numerator) * 5**places).rjust(places + 1, "0")
    whole, fraction = digits[: len(digits) - places], digits[len(digits) - places :].rstrip("0")
    return ("-" if value < 0 else "") + whole + (f".{fraction}" if fraction else ".0")
