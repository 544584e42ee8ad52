"""VNN-LIB properties of two networks with equal inputs: that their outputs differ by more than a number."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from qertify.errors import InvalidInputError
from qertify.network.network import Network
from qertify.network.real import RealNetwork
from qertify.options import Options
from qertify.queries.equivalence import equivalence
from qertify.queries.equivalence_result import DifferingInput, Equivalence, EquivalenceResult
from qertify.queries.vnnlib import check_size, weakest, with_meaning
from qertify.queries.vnnlib_boxes import codes_box, ends
from qertify.queries.vnnlib_replay import texts
from qertify.queries.vnnlib_result import Answer, Assignment, SpecificationResult
from qertify.result import Evidence, Reason
from qertify.runtimes.base import RUNTIMES, runtime_of
from qertify.search.comparison import EquivalenceQuery
from qertify.search.paired_input import PairedInput, grid, interval
from qertify.specification.formula import Part, Specification
from qertify.specification.linear import Disjunction

Confirm = Callable[[EquivalenceResult, EquivalenceQuery], EquivalenceResult]


def decide_pair_specification(
    original: RealNetwork | Network,
    quantized: Network,
    specification: Specification,
    options: Options | None = None,
    progress: Callable[[str], None] | None = None,
    confirm: Confirm = lambda result, _: result,
) -> SpecificationResult:
    """Decide a property of two networks with a proof (unsat) or a replayed counterexample (sat).

    Args:
        original: the property's first network, a float one or one with the same input codes as the second.
        quantized: the second.
        specification: of two networks; the violation must be |f_i − g_i| > D, for one output or several.
        options: engines and limits.
        progress: gets one line a stage.
        confirm: replays a counterexample on the runtimes.

    Returns:
        the answer; outputs of a counterexample are those of the first network, then those of the second.

    Raises:
        InvalidInputError: a property of other sizes or of another form.
        UnsupportedModelError: as `qertify.queries.equivalence.equivalence`.
    """
    options, say = options or Options(), progress or (lambda _: None)
    start = time.monotonic()
    if specification.networks != 2:
        raise InvalidInputError("the property speaks of one network, but two models are given")
    half = replace(specification, outputs=specification.outputs // 2)
    check_size(quantized, half)
    quantized = with_meaning(quantized)
    if isinstance(original, Network):
        check_size(original, half)
        original = with_meaning(original)
    asked = [
        EquivalenceQuery(original, quantized, _inputs(original, quantized, part), delta, output=output)
        for part in specification.parts
        for output, delta in _differences(part.violation, half.outputs)
    ]
    answers: list[EquivalenceResult] = []
    for number, query in enumerate(asked):
        left = None if options.timeout is None else options.timeout - (time.monotonic() - start)
        share = options if left is None else replace(options, timeout=max(1e-3, left / (len(asked) - number)))
        answers.append(confirm(equivalence(query, share, say), query))
        if answers[-1].verdict is Equivalence.NOT_EQUIVALENT:
            break
    verdict, reason, evidence = _combine(answers)
    last = answers[-1]
    return SpecificationResult(
        quantized.digest,
        quantized.runtime_profile,
        verdict,
        len(specification.parts),
        time.monotonic() - start,
        last.method,
        reason,
        evidence,
        last.cpu_class,
        sum(answer.nodes for answer in answers),
        None,
        None if last.counterexample is None or verdict is not Answer.SAT else _assignment(last.counterexample),
        tuple(line for answer in answers for line in answer.explanation),
    )


def _differences(violation: Disjunction, outputs: int) -> list[tuple[int | None, Fraction]]:
    """The questions |f_i − g_i| ≤ D that a violation denies: (output, or None for all with the same D; D).

    Raises:
        InvalidInputError: a violation of another form.
    """
    limits: dict[tuple[int, int], Fraction] = {}
    for disjunct in violation:
        match disjunct:
            case [constraint] if len(constraint.coefficients) == 2 and constraint.strict:
                (first, a), (second, b) = constraint.coefficients
                if second == first + outputs and a + b == 0:
                    key, limit = (first, 1 if a < 0 else -1), -constraint.bound / abs(a)
                    limits[key] = min(limit, limits.get(key, limit))
                    continue
            case _:
                pass
        raise InvalidInputError(
            "of two networks, only properties of the form |f_i - g_i| > D can be decided (one strict inequality for each sign)"
        )
    chosen = sorted({index for index, _ in limits})
    for index in chosen:
        above, below = limits.get((index, 1)), limits.get((index, -1))
        if above is None or above != below or above <= 0:
            raise InvalidInputError(
                f"bounds the difference of outputs {index} by {'no number' if above is None else above} above and "
                f"{'no number' if below is None else below} below; one positive number for both signs is needed"
            )
    if len(chosen) == outputs and len({limits[index, 1] for index in chosen}) == 1:
        return [(None, limits[chosen[0], 1])]
    return [(index, limits[index, 1]) for index in chosen]


def _inputs(original: RealNetwork | Network, quantized: Network, part: Part) -> PairedInput:
    """The inputs that both networks can read: float32 numbers in the box, or codes.

    Raises:
        InvalidInputError: none, or a float network beside one whose inputs are codes.
    """
    shape = quantized.input_shape
    if quantized.runtime_profile in RUNTIMES:
        runtime = runtime_of(quantized)
        if runtime.real_input(codes_box(quantized, part).low).dtype.kind == "f":
            low, high = (end.reshape(shape) for end in ends(part))
            return interval(quantized, low, high)
        if isinstance(original, RealNetwork):
            raise InvalidInputError(
                "the second network reads codes and the first one numbers, so their inputs are never the same"
            )
    return grid(quantized, codes_box(quantized, part))


def _combine(answers: list[EquivalenceResult]) -> tuple[Answer, Reason | None, Evidence | None]:
    if answers[-1].verdict is Equivalence.NOT_EQUIVALENT:
        return Answer.SAT, None, Evidence.REPLAYED_COUNTEREXAMPLE
    open_ = [answer.reason for answer in answers if answer.verdict is Equivalence.UNKNOWN]
    if open_:
        return Answer.UNKNOWN, open_[0], None
    return Answer.UNSAT, None, weakest([answer.evidence for answer in answers if answer.evidence is not None])


def _assignment(found: DifferingInput) -> Assignment:
    output = [Fraction(value) for value in (*found.original, *found.quantized)]
    return Assignment(
        found.levels, texts([Fraction(value) for value in found.input]), (), texts(output), replayed_on=found.replayed_on
    )
