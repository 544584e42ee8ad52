"""Local robustness: does the label win at every input code within a radius of the centre?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qertify.errors import InvalidInputError, ReplayError
from qertify.network.evaluate import check_inputs, evaluate
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.options import Options
from qertify.parallel.executor import Executor
from qertify.result import Counterexample, Evidence, Reason, Result, Verdict
from qertify.runtimes.saturation import CpuClass, arithmetic_doubts, host_cpu_class
from qertify.search.journal import Journal
from qertify.search.portfolio import Decision, decide
from qertify.specification.judge import Run
from qertify.specification.property import Classification, Ties
from qertify.specification.region import IntegerBox, linf_ball


@dataclass(frozen=True, slots=True, eq=False)
class RobustnessQuery:
    """A question about a network; plain data.

    Attributes:
        network: the integer network.
        centre: int64, the input shape.
        region: every input that counts; holds the centre.
        property: label, target and tie rule.
        radius: in ``radius_unit``, as asked.
        radius_unit: "levels", "real" or "pixel".
    """

    network: Network
    centre: IntegerArray
    region: IntegerBox
    property: Classification
    radius: Fraction
    radius_unit: str = "levels"

    def __post_init__(self) -> None:
        if self.region.low.shape != self.network.input_shape:
            raise InvalidInputError(f"a region of shape {self.region.low.shape} for inputs of shape {self.network.input_shape}")
        check_inputs(self.network, np.stack([self.region.low, self.region.high]))
        if not self.region.contains(self.centre[None])[0]:
            raise InvalidInputError("the region does not contain the centre")
        self.property.check(self.network.output_size)


def local_robustness(
    network: Network,
    centre: IntegerArray,
    radius: int | Fraction,
    *,
    label: int | None = None,
    target: int | None = None,
    ties: Ties = Ties.FIRST,
) -> RobustnessQuery:
    """The L∞ ball around an input, in levels of the quantized input, clipped to the valid range.

    Args:
        network: the integer network.
        centre: integer codes of the input shape.
        radius: in levels, ≥ 0; a fraction is rounded down, which is the same set of codes.
        label: the class that must win; None for the predicted one.
        target: the only competitor that counts, None for all.
        ties: who wins a tie.

    Raises:
        InvalidInputError: wrong shape or range, negative radius, or a label or target that is no class.
    """
    centre = check_inputs(network, np.asarray(centre)[None])[0]
    levels = int(Fraction(radius).__floor__())
    region = linf_ball(centre, levels, network.input.low, network.input.high)
    if label is None:
        label = int(ties.predicted(evaluate(network, centre[None]))[0])
    return RobustnessQuery(network, centre, region, Classification(label, target, ties), Fraction(radius))


def verify(
    query: RobustnessQuery,
    options: Options | None = None,
    progress: Callable[[str], None] | None = None,
    decided: Callable[[Decision], None] | None = None,
    executor: Executor | None = None,
    run: Run | None = None,
    stopped: Callable[[], bool] = lambda: False,
    journal: Journal | None = None,
) -> Result:
    """Decide a robustness query with a proof or a replayed counterexample.

    Args:
        query: the question.
        options: engines and limits; the defaults use all engines without a limit.
        progress: gets one line a stage.
        decided: gets what the engines decided, before it becomes a verdict; a certificate is written from it.
        executor: shares out the search, if there is one; its workers have read the same model.
        run: the real runtime (`qertify.runtimes.base.runner`). A network that is only an enclosure is non-robust or
            misclassified if the runtime itself says so; without it, such an answer is unknown.
        stopped: polled; once it is true, the question is given up as at the deadline.
        journal: as `qertify.search.portfolio.decide`.

    Returns:
        robust (with exact evidence), non_robust (with a counterexample), misclassified, or unknown with its reason.

    Raises:
        UnsupportedModelError: the chosen method does not cover the network.

    The answer is unknown, reason arithmetic, unless overflow and saturation of the runtime's accumulators are proved absent
    on the region for the CPU class.
    """
    options = options or Options()
    start = time.monotonic()
    deadline = None if options.timeout is None else start + options.timeout
    network, property_ = query.network, query.property
    if network.metadata.get("output") == "argmax" and property_.ties is Ties.LAST:
        run = None  # the model's own argmax lets the lowest index win a tie, so its class does not tell who wins here
    outputs = _outputs(network, query.centre, run)
    predicted = int(property_.ties.predicted(outputs)[0])
    cpu_class = host_cpu_class() if options.cpu_class is None else CpuClass(options.cpu_class)
    if doubts := arithmetic_doubts(network, cpu_class, query.region):
        decision, verdict = Decision(reason=Reason.ARITHMETIC, method="ranges", explanation=list(doubts)), Verdict.UNKNOWN
    elif _misclassified(property_, outputs) and (network.exactness == "exact" or run is not None):
        decision, verdict = Decision(method="evaluate"), Verdict.MISCLASSIFIED
    else:
        say = progress or (lambda _: None)
        decision = decide(
            network, query.region, property_, options, say, deadline, executor, run, stopped=stopped, journal=journal
        )
        if decided is not None:
            decided(decision)
        verdict = _verdict(decision, options)
    return Result(
        model_digest=network.digest,
        runtime_profile=network.runtime_profile,
        verdict=verdict,
        label=property_.label,
        radius=str(query.radius),
        radius_unit=query.radius_unit,
        seconds=time.monotonic() - start,
        method=decision.method or options.method.value,
        reason=decision.reason if verdict is Verdict.UNKNOWN else None,
        evidence=Evidence.REPLAYED_COUNTEREXAMPLE if verdict is Verdict.NON_ROBUST else decision.evidence,
        cpu_class=cpu_class.value if "kernels" in network.metadata else None,
        target=property_.target,
        predicted=predicted,
        exactness=network.exactness,
        region=describe_region(query),
        ties=property_.ties.value,
        nodes=decision.nodes,
        solver=decision.solver,
        bound_reached=decision.margin if verdict is Verdict.UNKNOWN else None,
        nearest_class=decision.nearest if verdict is Verdict.UNKNOWN else None,
        counterexample=None if decision.counterexample is None else counterexample_of(query, decision.counterexample, run),
        explanation=tuple(decision.explanation),
    )


def describe_region(query: RobustnessQuery) -> dict[str, object]:
    """The region as understood, for humans and JSON."""
    low, high = query.region.low, query.region.high
    return {
        "kind": "integer_box",
        "inputs": int(low.size),
        "free_inputs": int(np.count_nonzero(low < high)),
        "low": int(low.min()),
        "high": int(high.max()),
        "largest_distance": int(np.maximum(query.centre - low, high - query.centre).max()),
    }


def _misclassified(property_: Classification, outputs: IntegerArray) -> bool:
    """Whether the label loses at the centre already, against any class (a target does not matter here)."""
    return bool(Classification(property_.label, None, property_.ties).violated(outputs)[0])


def _verdict(decision: Decision, options: Options) -> Verdict:
    if decision.counterexample is not None:
        return Verdict.NON_ROBUST
    if decision.evidence is Evidence.SOLVER_CLAIM and not options.accept_solver_claims:
        decision.reason = Reason.SOLVER_CLAIM
        return Verdict.UNKNOWN
    return Verdict.ROBUST if decision.evidence is not None else Verdict.UNKNOWN


def _outputs(network: Network, codes: IntegerArray, run: Run | None) -> IntegerArray:
    """The outputs on one input, (1, outputs): exact, or as the runtime gives them; else those of the reference evaluator."""
    return evaluate(network, codes[None]) if run is None or network.exactness == "exact" else run(codes[None])


def counterexample_of(query: RobustnessQuery, codes: IntegerArray, run: Run | None) -> Counterexample:
    """Replay once more, from scratch; a counterexample that fails here is a defect and raises."""
    codes = codes.reshape(query.network.input_shape)
    outputs = _outputs(query.network, codes, run)
    if not query.property.violated(outputs)[0] or not query.region.contains(codes[None])[0]:
        raise ReplayError("a counterexample does not replay; please report this defect")
    return Counterexample(
        levels=tuple(codes.reshape(-1).tolist()),
        outputs=tuple(outputs[0].tolist()),
        predicted=int(query.property.ties.predicted(outputs)[0]),
        distance=int(np.abs(codes - query.centre).max()),
    )
