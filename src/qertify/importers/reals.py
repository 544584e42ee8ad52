"""Float32 tensors that are known exactly: each number through an integer code, or as the sum of two such numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qertify.errors import UnsupportedModelError
from qertify.importers.lowering import Builder, Codes
from qertify.network.tensor import IntegerArray, QuantizationParameters
from qertify.runtimes.float32 import Float32Array

RANK_LIMIT = 1 << 24
"""Most thresholds of the staircases that `ranked` makes."""


@dataclass(frozen=True, slots=True)
class Real:
    """A float32 tensor that is known through codes.

    Attributes:
        codes: an integer tensor of the same shape.
        values: float32, the real number of each code codes.low … codes.high; None for the network's input before its
            quantizer, whose codes are what that quantizer will make of it.
        row: where the numbers differ between elements, ``values`` has a row for each kind of element, and this tells which,
            broadcastable to the codes' shape.
    """

    codes: Codes
    values: Float32Array | None
    row: IntegerArray | None = None


@dataclass(frozen=True, slots=True)
class Sum:
    """The float32 sum of two tensors of one shape that are known through different codes, clamped to low … high."""

    a: Real
    b: Real
    low: float = -np.inf
    high: float = np.inf

    @property
    def codes(self) -> Codes:
        """A tensor of its shape."""
        return self.a.codes


def ranked(builder: Builder, name: str, x: Real) -> Real:
    """The same numbers through codes that count, in ascending order, all numbers that any element takes.

    Raises:
        UnsupportedModelError: they are too many.
    """
    assert x.values is not None
    rows = np.atleast_2d(x.values)
    union = np.unique(rows)
    if len(rows) * len(union) > RANK_LIMIT:
        raise UnsupportedModelError(x.codes.node, "float values", None, f"{len(union)} different ones are too many to count")
    codes = builder.unary(name, x.codes, np.searchsorted(union, rows), 0, len(union) - 1, None, x.row)
    return Real(replace(codes, low=0, high=len(union) - 1, quantization=None), union)


def exact_sum(
    builder: Builder,
    name: str,
    x: Sum,
    quantizer: Callable[[Float32Array], IntegerArray],
    low: int,
    high: int,
    meaning: QuantizationParameters,
) -> Codes | None:
    """A correctly rounded sum of two tensors, quantized: an integer sum and a staircase; None if there are none."""
    if x.a.values is None or x.b.values is None:
        return None
    first, second = x.a.values, x.b.values

    def function(a: IntegerArray, b: IntegerArray) -> IntegerArray:
        total = first[a - x.a.codes.low] + second[b - x.b.codes.low]
        return quantizer(np.clip(total, np.float32(x.low), np.float32(x.high)))

    terms = first.astype(np.float64), second.astype(np.float64)
    try:
        return builder.combine(name, x.a.codes, x.b.codes, function, terms, low, high, meaning)
    except UnsupportedModelError:
        return None
