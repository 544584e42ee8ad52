"""Float32 tensors that are known exactly: each number through an integer code, or as the sum of two such numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qertify.errors import UnsupportedModelError
from qertify.importers.lowering import Builder, Codes, Requantize
from qertify.network.tensor import IntegerArray, QuantizationParameters
from qertify.runtimes.float32 import Float32Array
from qertify.runtimes.input_steps import Steps

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
        steps: what was made of the network's input before its quantizer, for each element of the input.
    """

    codes: Codes
    values: Float32Array | None
    row: IntegerArray | None = None
    steps: Steps = ()


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


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """F(F(F(z)·m) + b) of an accumulator z, a number m and perhaps b for the tensor or for each place on the last axis.

    Attributes:
        codes: the accumulator.
        bound: of its absolute value.
        multiplier: float32, positive, shape (1,) or (places,).
        bias: float32 of the same shape, or None.
    """

    codes: Codes
    bound: int
    multiplier: Float32Array
    bias: Float32Array | None = None

    def values(self, z: IntegerArray) -> Float32Array:
        """The numbers of accumulators of shape (places or 1, n)."""
        product = z.astype(np.float32) * self.multiplier[:, None]
        return product if self.bias is None else product + self.bias[:, None]

    @property
    def distinct(self) -> bool:
        """Whether different accumulators, of any two elements, give numbers of the same order: rounding makes no ties."""
        return self.multiplier.size == 1 and self.bias is None and self.bound < 1 << 23


def quantize_scaled(
    builder: Builder,
    name: str,
    x: Scaled,
    quantizer: Callable[[Float32Array], IntegerArray],
    low: int,
    high: int,
    meaning: QuantizationParameters,
) -> Codes:
    """The codes of a scaled accumulator, exactly.

    Args:
        quantizer: the runtime's own, float32 → codes, non-decreasing; clamped here.
    """
    rows = x.multiplier.size
    row = None if rows == 1 else np.broadcast_to(np.arange(rows), x.codes.shape)
    return builder.requantize(name, x.codes, Requantize(lambda z: quantizer(x.values(z)), rows, low, high, meaning, row))


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
