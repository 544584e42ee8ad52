"""Float32 arithmetic between a model's real input and its first quantizer: what normalizes the input, number by number.

Each step adds or multiplies a constant, which is monotone in float32, too: IEEE rounding keeps order. So the quantizer after
all steps is a monotone map of float32 numbers, whose thresholds are found among those numbers themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from qertify.network.tensor import FloatArray, IntegerArray
from qertify.runtimes.float32 import Float32Array, at_position, is_normal, position

COLUMN_LIMIT = 1 << 14
"""Most inputs with steps of their own."""
CHUNK = 1 << 10
"""Inputs whose thresholds are found together."""
LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation with a constant.

    Attributes:
        op: a key of `OPERATIONS`.
        constant: float32, broadcastable to the input's shape; NaN where the result is not read.
    """

    op: str
    constant: Float32Array


Steps: TypeAlias = tuple[Step, ...]
Quantizer: TypeAlias = Callable[[Float32Array], IntegerArray]

OPERATIONS = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}
INVERSES = {"add": np.subtract, "subtract": np.add, "multiply": np.divide, "divide": np.multiply}


def apply(steps: Steps, x: Float32Array) -> Float32Array:
    """What the steps make of inputs, each rounded to float32."""
    with np.errstate(over="ignore", under="ignore"):
        return reduce(lambda value, step: OPERATIONS[step.op](value, step.constant), steps, x)


def invert(steps: Steps, y: Float32Array) -> Float32Array:
    """About the inputs of which the steps make y."""
    wide: FloatArray = y.astype(np.float64)
    wide = reduce(lambda value, step: INVERSES[step.op](value, step.constant.astype(np.float64)), reversed(steps), wide)
    return np.clip(wide, -LARGEST, LARGEST).astype(np.float32)


def first_reaching(quantize: Quantizer, codes: IntegerArray, least: ArrayLike, greatest: ArrayLike) -> Float32Array:
    """The least float32 numbers in least … greatest with at least these codes; greatest where there is none.

    Args:
        quantize: non-decreasing, on arrays of the common shape.
    """
    below, reached = (np.broadcast_to(position(np.asarray(end, np.float32)), codes.shape) for end in (least, greatest))
    below = below - 1
    while np.any(reached - below > 1):
        between = np.where(reached - below > 1, (below + reached) // 2, reached)
        high_enough = quantize(at_position(between)) >= codes
        below, reached = np.where(high_enough, below, between), np.where(high_enough, between, reached)
    return at_position(reached)


def merged(parts: Sequence[Steps]) -> Steps | None:
    """The steps of one input whose parts were treated apart; None if an input is treated in several ways."""
    result: list[Step] = []
    if len({tuple(step.op for step in steps) for steps in parts}) != 1:
        return None
    for same in zip(*parts, strict=True):
        constants = np.stack([step.constant for step in same])
        known = np.fmax.reduce(constants)
        if np.any(known != np.fmin.reduce(constants), where=~np.isnan(known)):
            return None
        result.append(Step(same[0].op, known))
    return tuple(result)


def obstacle(steps: Steps, quantize: Quantizer, low: int, high: int) -> str | None:
    """Why boxes of inputs do not go to boxes of codes, or None if they do: if every code has an input.

    Args:
        steps: constants of the input's shape, without NaN.
        quantize: the quantizer behind them; low, high: its range.
    """
    for step in steps:
        scales = step.op in ("multiply", "divide")
        if not np.all(np.isfinite(step.constant)) or (scales and not all(map(is_normal, np.unique(step.constant).tolist()))):
            return "its constants must be finite, and the factors positive, normal float32 numbers"
    columns = np.unique(np.stack([step.constant.reshape(-1) for step in steps]), axis=1)
    if columns.shape[1] > COLUMN_LIMIT:
        return f"{columns.shape[1]} inputs are treated each in its own way; at most {COLUMN_LIMIT} are supported"
    for start in range(0, columns.shape[1], CHUNK):
        chosen = tuple(Step(s.op, column) for s, column in zip(steps, columns[:, start : start + CHUNK], strict=True))

        def codes_of(x: Float32Array, chosen: Steps = chosen) -> IntegerArray:
            return np.clip(quantize(apply(chosen, x)), low, high)

        codes = np.broadcast_to(np.arange(low, high + 1)[:, None], (high - low + 1, chosen[0].constant.size))
        if not np.array_equal(codes_of(first_reaching(codes_of, codes, -LARGEST, LARGEST)), codes):
            return "no float32 input gives some of the codes: its numbers are too large or too close to each other"
    return None


def to_json(steps: Steps) -> str:
    """Text of steps whose constants have no NaN; axes along which a constant is the same are left out."""
    return json.dumps([[step.op, _shortened(step.constant).tolist()] for step in steps])


def from_json(text: str) -> Steps:
    """The inverse of `to_json`."""
    return tuple(Step(op, np.asarray(constant, dtype=np.float32)) for op, constant in json.loads(text))


def _shortened(constant: Float32Array) -> Float32Array:
    for axis in range(constant.ndim):
        first = constant.take([0], axis=axis)
        constant = first if np.all(constant == first) else constant
    return constant
