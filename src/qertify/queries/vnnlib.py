"""VNN-LIB properties: is there an input in the boxes whose outputs are a violation?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from qertify.errors import InvalidInputError, UnsupportedModelError
from qertify.network.network import Network
from qertify.network.ranges import ranges
from qertify.network.tensor import QuantizationParameters
from qertify.options import Options
from qertify.queries.vnnlib_boxes import codes_box, real_ends
from qertify.queries.vnnlib_replay import replay
from qertify.queries.vnnlib_result import Answer, Assignment, SpecificationResult
from qertify.result import Evidence, Reason
from qertify.runtimes.base import runner
from qertify.runtimes.saturation import CpuClass, arithmetic_doubts, host_cpu_class
from qertify.search.portfolio import Decision, decide
from qertify.specification.formula import Specification
from qertify.specification.judge import Run
from qertify.specification.linear import Disjunction, lower, with_rows
from qertify.specification.orders import orders_of
from qertify.specification.property import Classification, Ties
from qertify.specification.region import IntegerBox

ORDERED = ("float32", "ranks")
"""Kinds of outputs that are not numbers of codes, but in the order of codes, ties included."""
KINDS = {"float32": "sums in float32", "ranks": "scaled sums", "softmax": "their softmax", "argmax": "their argmax"}
_STRENGTH = (Evidence.SOLVER_CLAIM, Evidence.EXACT_SOLVER, Evidence.EXACT_SEARCH, Evidence.EXACT_BOUNDS)
"""Evidence from weak to strong: a proof in parts is as good as its weakest one."""


def decide_specification(
    network: Network,
    specification: Specification,
    options: Options | None = None,
    progress: Callable[[str], None] | None = None,
    model: str | os.PathLike[str] | None = None,
) -> SpecificationResult:
    """Decide a property with a proof (unsat) or a replayed counterexample (sat).

    Inputs are the numbers that the model can be given, in its own input domain; outputs are exact: scale · (code − zero
    point), or the codes themselves where the model returns codes. A network that is only an enclosure is refuted by runs of its
    runtime alone; what they leave open is unknown, reason enclosure.

    Args:
        network: the integer network.
        specification: the property; states the violation.
        options: engines and limits.
        progress: gets one line a stage.
        model: the file that the network came from, to replay a counterexample on its runtime; an enclosure needs it for one.

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
        run = None if model is None else runner(meant, model, *real_ends(meant, part))
        decisions.append(_decide_part(meant, part.violation, box, options, cpu_class, say, share, run))
        if (codes := decisions[-1].counterexample) is not None:
            found = replay(meant, part, box, codes, model)
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
        network.exactness,
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
    ordered = kind in ORDERED and all(as_classification(network, part.violation) is not None for part in specification.parts)
    if kind not in ("dequantized", "codes") and not ordered:
        need = "a model that ends with a quantized layer" if kind in ORDERED else "a model that returns its scores"
        which = "; of this one only 'one output is the only greatest' can be decided" if kind in ORDERED else "; cut that off"
        raise UnsupportedModelError(
            network.output.name, kind, "output", f"constraints on outputs need {need}, this one returns {KINDS[kind]}{which}"
        )
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


def _decide_part(
    network: Network,
    violation: Disjunction,
    box: IntegerBox,
    options: Options,
    cpu_class: CpuClass,
    say: Callable[[str], None],
    deadline: float | None,
    run: Run | None,
) -> Decision:
    if doubts := arithmetic_doubts(network, cpu_class, box):
        return Decision(reason=Reason.ARITHMETIC, method="ranges", explanation=list(doubts))
    if (classification := as_classification(network, violation)) is not None:
        return decide(network, box, classification, options, say, deadline, run=run)
    known = ranges(network, box.low[None], box.high[None])[network.output.name]
    lowered = lower(network, violation, known)
    if lowered.always:
        if network.exactness == "exact" or run is not None:
            return Decision(counterexample=box.low, method="interval")
        return Decision(reason=Reason.ENCLOSURE, method="interval")
    if not lowered.property.boxes:
        return Decision(evidence=Evidence.EXACT_BOUNDS, method="interval")
    if (orders := orders_of(network, lowered)) is not None:
        return decide(network, box, orders, options, say, deadline, run=run)
    rows: Run | None = None if run is None else lambda codes: run(codes) @ lowered.rows.T
    return decide(with_rows(network, lowered.rows), box, lowered.property, options, say, deadline, run=rows)


def as_classification(network: Network, violation: Disjunction) -> Classification | None:
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
