"""Counterexamples of VNN-LIB properties, checked from scratch: by definition on exact outputs, and on the runtime."""

from __future__ import annotations

import os
from fractions import Fraction

import numpy as np

from qertify.errors import ReplayError
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.queries.vnnlib_boxes import real_ends
from qertify.queries.vnnlib_result import Assignment
from qertify.runtimes.base import RUNTIMES, runtime_of
from qertify.specification.formula import Part
from qertify.specification.linear import holds, output_values
from qertify.specification.region import IntegerBox


def replay(
    network: Network, part: Part, box: IntegerBox, codes: IntegerArray, model: str | os.PathLike[str] | None
) -> Assignment:
    """Check a counterexample. The outputs of an enclosure are what its runtime returns.

    Args:
        box: input codes of the part.
        model: as of `qertify.queries.vnnlib.decide_specification`.

    Raises:
        ReplayError: any check fails.
    """
    codes = codes.reshape(network.input_shape)
    outputs = evaluate(network, codes[None])[0]
    returned, replayed_on = output_values(network, outputs), "reference"
    if network.runtime_profile in RUNTIMES:
        runtime = runtime_of(network)
        real = runtime.real_input(codes, *real_ends(network, part))
        given = [Fraction(value) for value in real.reshape(-1).tolist()]
        if model is not None:
            ran = runtime.replay(model, real[None])
            if not bool(ran.agrees[0]) or not np.array_equal(ran.codes[0], codes):
                raise ReplayError(f"a counterexample does not replay on {ran.runtime}; please report this defect")
            outputs = outputs if network.exactness == "exact" else ran.ordered[0]
            returned, replayed_on = [Fraction(value) for value in ran.outputs[0].tolist()], ran.runtime
    else:
        scale, zero_point = Fraction(float(network.input_quantization.scale[0])), int(network.input_quantization.zero_point[0])
        given = [scale * (level - zero_point) for level in codes.reshape(-1).tolist()]
    if not box.contains(codes[None])[0] or not holds(part.violation, output_values(network, outputs)):
        raise ReplayError("a counterexample does not replay on the reference evaluator; please report this defect")
    _require_inside(part, given)
    in_runtime = None if replayed_on == "reference" else holds(part.violation, returned)
    levels, codes_out = tuple(codes.reshape(-1).tolist()), tuple(outputs.tolist())
    return Assignment(levels, texts(given), codes_out, texts(returned), replayed_on, in_runtime)


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
