"""δ-equivalence: does a quantized network stay near another one, or agree with it on the class, on a whole region?

The other one is its float original, read as a function of real numbers, or a second quantized network that reads the same
codes. Outputs are compared after dequantization, scale · (code − zero point), without any rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from qertify.errors import InvalidInputError, ReplayError
from qertify.network.network import Network
from qertify.network.real import RealNetwork
from qertify.network.real_error import float32_error
from qertify.options import Options
from qertify.parallel.executor import Executor
from qertify.queries.equivalence_result import DifferingInput, Equivalence, EquivalenceResult, question_name
from qertify.result import Evidence, Reason
from qertify.runtimes.saturation import CpuClass, arithmetic_doubts, host_cpu_class
from qertify.search.comparison import EquivalenceQuery, Finding, FloatSemantics, Found, Judge, rounded
from qertify.search.equivalence import search
from qertify.search.paired_input import PairedInput


def float32_bound(query: EquivalenceQuery) -> Fraction:
    """Bound on |float32 execution − real arithmetic| at any output of the float original, on the region."""
    original, inputs = query.original, query.inputs
    if not isinstance(original, RealNetwork):
        return Fraction(0)
    if inputs.low is None or inputs.high is None:
        low, high = inputs.stand_for(inputs.box.low), inputs.stand_for(inputs.box.high)
    else:
        low, high = inputs.low, inputs.high
    error = float32_error(original, low.astype(np.float64), high.astype(np.float64))[original.output.name]
    greatest = float(np.max(error))
    if not np.isfinite(greatest):
        raise InvalidInputError("a float32 execution of the float network may overflow on the region")
    return Fraction(greatest)


def equivalence(
    query: EquivalenceQuery,
    options: Options | None = None,
    progress: Callable[[str], None] | None = None,
    executor: Executor | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> EquivalenceResult:
    """Decide an equivalence query with a proof or a replayed counterexample.

    Args:
        query: the question.
        options: engines and limits.
        progress: gets one line a stage.
        executor: shares out the search, if there is one; what model its workers have read does not matter.
        stopped: polled; once it is true, the question is given up as at the deadline.

    Returns:
        equivalent (with exact evidence), not_equivalent (with an input), or unknown with its reason. For the least delta:
        ``max_delta``, and the verdict equivalent once both ends meet, to six digits.

    Raises:
        UnsupportedModelError: the chosen method does not cover the networks.
    """
    options = options or Options()
    start = time.monotonic()
    cpu_class = host_cpu_class() if options.cpu_class is None else CpuClass(options.cpu_class)
    quantized = [network for network in (query.original, query.quantized) if isinstance(network, Network)]
    doubts = [line for network in quantized for line in arithmetic_doubts(network, cpu_class, query.inputs.box)]
    error = float32_bound(query)
    margin = error if query.semantics is FloatSemantics.FLOAT32_BOUNDED else Fraction(0)
    judge = Judge(query, margin)
    if doubts:
        finding = Finding(reason=Reason.ARITHMETIC, method="ranges", explanation=list(doubts))
    else:
        deadline = None if options.timeout is None else start + options.timeout
        finding = search(query, judge, margin, options, progress or (lambda _: None), deadline, executor, stopped)
    counterexample = None if finding.found is None else _report(query, judge, finding.found)
    if finding.proved:
        verdict = Equivalence.EQUIVALENT
    elif finding.refuted:
        verdict = Equivalence.NOT_EQUIVALENT
    else:
        verdict = Equivalence.UNKNOWN
    evidence = Evidence.REPLAYED_COUNTEREXAMPLE if verdict is Equivalence.NOT_EQUIVALENT else finding.evidence
    exact = all(network.exactness == "exact" for network in quantized)
    return EquivalenceResult(
        original_digest=query.original.digest,
        model_digest=query.quantized.digest,
        runtime_profile=query.quantized.runtime_profile,
        verdict=verdict,
        question=question_name(query.delta, query.top1),
        seconds=time.monotonic() - start,
        method=finding.method or options.method.value,
        delta=None if query.delta is None else str(query.delta),
        max_delta=finding.interval(),
        output=query.output,
        float_semantics=query.semantics.value if isinstance(query.original, RealNetwork) else None,
        float32_error=rounded(error, up=True) if isinstance(query.original, RealNetwork) else None,
        reason=finding.reason if verdict is Equivalence.UNKNOWN else None,
        evidence=evidence,
        cpu_class=cpu_class.value if any("kernels" in network.metadata for network in quantized) else None,
        exactness="exact" if exact else "enclosure",
        region=describe(query.inputs),
        nodes=finding.nodes,
        solver=finding.solver,
        bound_reached=None if finding.bound is None else rounded(finding.bound, up=True),
        counterexample=counterexample,
        explanation=tuple(finding.explanation),
    )


def _report(query: EquivalenceQuery, judge: Judge, found: Found) -> DifferingInput:
    """A counterexample in full, evaluated once more.

    Raises:
        ReplayError: it leaves the region, which is a defect.
    """
    x, codes, _ = found
    if not query.inputs.holds(x, codes):
        raise ReplayError("a counterexample leaves the input region; please report this defect")
    outputs = judge.exactly(x, codes)
    differences = outputs.differences()
    output = max(query.outputs, key=lambda index: differences[index])
    own, other = outputs.predicted()
    return DifferingInput(
        input=tuple(x.reshape(-1).astype(np.float64).tolist()),
        levels=tuple(codes.reshape(-1).tolist()),
        original=tuple(float(value) for value in outputs.original),
        quantized=tuple(float(value) for value in outputs.quantized),
        difference=float(differences[output]),
        output=output,
        original_predicted=own,
        quantized_predicted=other,
    )


def describe(inputs: PairedInput) -> dict[str, Any]:
    """The region as understood, for humans and JSON."""
    low, high = inputs.box.low, inputs.box.high
    return {
        "kind": inputs.kind,
        "inputs": int(low.size),
        "free_inputs": int(np.count_nonzero(low < high)),
        "low": int(low.min()),
        "high": int(high.max()),
    }
