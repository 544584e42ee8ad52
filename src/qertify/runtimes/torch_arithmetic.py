"""The integer arithmetic of PyTorch's quantized CPU kernels on x86, bit for bit, in numpy float32.

F(·) rounds to float32, rne to the nearest integer, ties to even; s and z are scales and zero points. Each formula was
established by experiment where candidates disagree, and tests/conformance repeats the experiment on the installed version.
Clamping to the type follows every formula and is left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

import numpy as np

from qertify.network.tensor import FloatArray, IntegerArray
from qertify.runtimes.float32 import Float32Array, fma, round_half_even

AccumulatorMap = Callable[[IntegerArray], IntegerArray]
BODY = 64
"""Elements that an element-wise kernel takes at once; what is left at the end of a tensor is its tail."""
LANES = {"AVX2": 8, "AVX512": 16}
"""Instruction set that PyTorch dispatches to → channels that a pooling kernel takes at once."""


class Engine(str, Enum):
    """Quantized engines. fbgemm and qnnpack are reproduced bit for bit; the linear layers of the others are enclosed."""

    FBGEMM = "fbgemm"
    QNNPACK = "qnnpack"
    X86 = "x86"
    ONEDNN = "onednn"

    @property
    def encloses(self) -> bool:
        """Whether its linear layers and convolutions run on oneDNN, or on oneDNN or fbgemm by shape and CPU."""
        return self in (Engine.X86, Engine.ONEDNN)


def quantize(x: Float32Array, scale: np.float32, zero_point: int) -> IntegerArray:
    """quantize_per_tensor: rne(fma(x, F(1 / s), z)), so z is added before rounding."""
    inverse = np.float32(1) / scale
    with np.errstate(over="ignore"):
        return round_half_even(fma(x, inverse, np.float32(zero_point)))


def dequantize(codes: IntegerArray, scale: np.float32, zero_point: int) -> Float32Array:
    """F((q − z)·s)."""
    return (codes - zero_point).astype(np.float32) * scale


def quantize_decomposed(x: Float32Array, scale: float, zero_point: int) -> IntegerArray:
    """quantized_decomposed.quantize_per_tensor: rne(F(x·F(1 / s))) + z, where 1 / s is a float64 quotient."""
    with np.errstate(over="ignore"):
        return round_half_even(x * np.float32(1 / scale)) + zero_point


def dequantize_in_vectors(codes: IntegerArray, scale: np.float32, zero_point: int) -> Float32Array:
    """fma(s, q, F(−z·s)), inside element-wise kernels."""
    return fma(scale, codes, scale * np.float32(-zero_point))


def quantize_after(x: Float32Array, inverse: np.float32, zero_point: int) -> IntegerArray:
    """rne(F(x·inverse)) + z, in the vectorized part of a kernel."""
    return round_half_even(x * inverse) + zero_point


def quantize_inside(x: Float32Array, inverse: np.float32, zero_point: int) -> IntegerArray:
    """rne(F(F(x·inverse) + z)), in the part of a kernel that takes one element at a time."""
    return round_half_even(x * inverse + np.float32(zero_point))


def fbgemm_linear(
    x_scale: np.float32, weight_scale: Float32Array, bias: Float32Array, y_scale: np.float32, zero_point: int, per_channel: bool
) -> AccumulatorMap:
    """Linear and convolution; a = F(s_x·s_w): rne(F(F(F(acc) + F(b / a))·F(a / s_y))) + z with a weight scale a channel,

    rne(F(fma(b, F(1 / a), F(acc))·F(a / s_y))) + z with one for all.

    Args:
        weight_scale, bias: shape (rows,). The map takes accumulators of shape (rows, n).
    """
    scale = np.asarray(x_scale * weight_scale, dtype=np.float32)[:, None]
    column, multiplier = bias[:, None], np.asarray(scale / y_scale, dtype=np.float32)
    if per_channel:
        offset = np.asarray(column / scale, dtype=np.float32)
        return lambda z: round_half_even((z.astype(np.float32) + offset) * multiplier) + zero_point
    inverse = np.float32(1) / scale
    return lambda z: round_half_even(fma(column, inverse, z) * multiplier) + zero_point


def qnnpack_bias(x_scale: np.float32, weight_scale: Float32Array, bias: Float32Array) -> IntegerArray:
    """The bias in accumulator units: rne(F(b·F(1 / F(s_x·s_w))))."""
    scale = np.asarray(x_scale * weight_scale, dtype=np.float32)
    return round_half_even(np.asarray(bias * (np.float32(1) / scale), dtype=np.float32))


def qnnpack_linear(x_scale: np.float32, weight_scale: Float32Array, y_scale: np.float32, zero_point: int) -> AccumulatorMap:
    """Linear and convolution, of an accumulator that holds the bias: rne(F(F(acc)·F(F(s_x·s_w)·F(1 / s_y)))) + z."""
    multiplier = np.asarray((x_scale * weight_scale) * (np.float32(1) / y_scale), dtype=np.float32)[:, None]
    return lambda z: round_half_even(z.astype(np.float32) * multiplier) + zero_point


ROUNDINGS = 16
"""Float32 roundings that an enclosed linear layer may make after its integer sum; about half as many are plausible."""


def enclosed_linear(
    x_scale: np.float32, weight_scale: Float32Array, bias: Float32Array, y_scale: np.float32, zero_point: int, upper: bool
) -> AccumulatorMap:
    """Bounds of rne((acc·s_x·s_w + b) / s_y + z) for any float32 evaluation of it by at most `ROUNDINGS` roundings.

    Each rounding loses at most u = 2⁻²⁴ of a number no larger than (|acc|·s_x·s_w + |b|) / s_y + |z|, in output units; a result
    beyond the clamp does not matter. Rounding before or after z is added differs at ties only, which the bounds straddle.

    Args:
        weight_scale, bias: shape (rows,). The map takes accumulators of shape (rows, n).
        upper: the upper bound, not the lower one.
    """
    slope = (np.float64(x_scale) * weight_scale.astype(np.float64) / np.float64(y_scale))[:, None]
    shift = (bias.astype(np.float64) / np.float64(y_scale))[:, None]
    loss = ROUNDINGS * 2.0**-24

    def function(z: IntegerArray) -> IntegerArray:
        middle = z * slope + shift
        error = loss * (np.abs(z) * slope + np.abs(shift) + zero_point + 1)
        ends = np.clip(middle + error if upper else middle - error, -(2.0**40), 2.0**40)
        return np.rint(ends).astype(np.int64) + zero_point

    return function


class Addition(Protocol):
    """A quantized addition: exact on codes, and the exact reals whose sum decides the result."""

    def __call__(self, a: IntegerArray, b: IntegerArray) -> IntegerArray: ...

    def terms(self, a: IntegerArray, b: IntegerArray) -> tuple[FloatArray, FloatArray]: ...


class NativeAddition:
    """PyTorch's own kernel, which fbgemm uses, with c = F(F(a) + F(b)) of dequantized operands:

    in whole groups of `BODY` elements fma dequantizes and c becomes rne(F(c·F(1 / s))) + z;
    in the tail F((q − z)·s) dequantizes and c becomes rne(F(F(c·F(1 / s)) + z)).
    """

    def __init__(
        self, scales: tuple[np.float32, np.float32, np.float32], zero_points: tuple[int, int, int], relu: bool, tail: bool
    ) -> None:
        self._scales, self._zero_points, self._relu, self._tail = scales, zero_points, relu, tail

    def _real(self, side: int, codes: IntegerArray) -> Float32Array:
        rule = dequantize if self._tail else dequantize_in_vectors
        return rule(codes, self._scales[side], self._zero_points[side])

    def __call__(self, a: IntegerArray, b: IntegerArray) -> IntegerArray:
        total = self._real(0, a) + self._real(1, b)
        if self._relu:
            total = np.maximum(total, np.float32(0))
        rule = quantize_inside if self._tail else quantize_after
        return rule(total, np.float32(1) / self._scales[2], self._zero_points[2])

    def terms(self, a: IntegerArray, b: IntegerArray) -> tuple[FloatArray, FloatArray]:
        return self._real(0, a).astype(np.float64), self._real(1, b).astype(np.float64)


class QnnpackAddition:
    """Fixed point with r = F(s_in / s_out): the larger r becomes an integer of 22 bits, m = rne(r·2^k) for both, then

    (a − z_a)·m_a + (b − z_b)·m_b is divided by 2^k, half away from zero, and z is added.
    """

    def __init__(
        self, scales: tuple[np.float32, np.float32, np.float32], zero_points: tuple[int, int, int], relu: bool
    ) -> None:
        ratios = [scales[0] / scales[2], scales[1] / scales[2]]
        self._shift = 22 - int(np.frexp(max(ratios))[1])
        self._multipliers = [int(np.rint(np.ldexp(np.float64(ratio), self._shift))) for ratio in ratios]
        self._zero_points, self._relu = zero_points, relu

    def _parts(self, a: IntegerArray, b: IntegerArray) -> tuple[IntegerArray, IntegerArray]:
        z, m = self._zero_points, self._multipliers
        return (a - z[0]) * m[0], (b - z[1]) * m[1]

    def __call__(self, a: IntegerArray, b: IntegerArray) -> IntegerArray:
        first, second = self._parts(a, b)
        total = first + second
        magnitude = (np.abs(total) + (1 << (self._shift - 1))) >> self._shift
        result = np.sign(total) * magnitude + self._zero_points[2]
        return np.maximum(result, self._zero_points[2]) if self._relu else result

    def terms(self, a: IntegerArray, b: IntegerArray) -> tuple[FloatArray, FloatArray]:
        first, second = self._parts(a, b)
        return np.ldexp(first.astype(np.float64), -self._shift), np.ldexp(second.astype(np.float64), -self._shift)


def product(a_scale: np.float32, b_scale: np.float32, y_scale: np.float32, zero_point: int) -> AccumulatorMap:
    """Multiplication, either engine: rne(F(F(p)·F(F(s_a·s_b)·F(1 / s_y)))) + z of p = (a − z_a)·(b − z_b)."""
    multiplier = np.float32((a_scale * b_scale) * (np.float32(1) / y_scale))
    return lambda z: round_half_even(z.astype(np.float32) * multiplier) + zero_point


# Averages keep scale and zero point; S is Σ(q − z) over n elements, m = F(1 / n).


def average_in_lanes(zero_point: int, elements: int) -> AccumulatorMap:
    """avg_pool2d, whole lanes of channels: rne(F(S·m)) + z."""
    return lambda z: quantize_after(z.astype(np.float32), np.float32(1) / np.float32(elements), zero_point)


def average_by_channel(zero_point: int, elements: int) -> AccumulatorMap:
    """avg_pool2d and adaptive_avg_pool2d, channels beyond the last whole lane: rne(F(F(S·F(1 / F(1 / m))) + z))."""
    multiplier = np.float32(1) / (np.float32(1) / (np.float32(1) / np.float32(elements)))
    return lambda z: quantize_inside(z.astype(np.float32), multiplier, zero_point)


def average_contiguous(zero_point: int, elements: int) -> AccumulatorMap:
    """avg_pool2d of a tensor that is not channels last: rne(F(F(S·m) + z))."""
    return lambda z: quantize_inside(z.astype(np.float32), np.float32(1) / np.float32(elements), zero_point)


def adaptive_in_lanes(zero_point: int, elements: int) -> AccumulatorMap:
    """adaptive_avg_pool2d, whole lanes of channels: rne(fma(S, F(1 / F(1 / m)), z))."""
    multiplier = np.float32(1) / (np.float32(1) / (np.float32(1) / np.float32(elements)))
    return lambda z: round_half_even(fma(z, multiplier, np.float32(zero_point)))


def adaptive_contiguous(zero_point: int, kernel: tuple[int, int]) -> AccumulatorMap:
    """adaptive_avg_pool2d of a tensor that is not channels last: rne(F(R·F(F(1 / h) / w))) of R = Σq over h × w elements."""
    multiplier = np.float32(1) / np.float32(kernel[0]) / np.float32(kernel[1])
    offset = zero_point * kernel[0] * kernel[1]
    return lambda z: round_half_even((z + offset).astype(np.float32) * multiplier)


def mean_contiguous(zero_point: int, elements: int) -> AccumulatorMap:
    """mean over the last axes of a contiguous tensor: rne(F(F(S / n) + z))."""
    return lambda z: round_half_even(z.astype(np.float32) / np.float32(elements) + np.float32(zero_point))


def qnnpack_average(scale: np.float32, zero_point: int, elements: int) -> AccumulatorMap:
    """Every average of qnnpack: rne(F(S·F(s / F(s·n)))) + z."""
    multiplier = scale / (scale * np.float32(elements))
    return lambda z: quantize_after(z.astype(np.float32), multiplier, zero_point)


def float_mean_is_exact(elements: int) -> bool:
    """Whether a mean computed in float32, in any order, rounds to the same code as the exact one.

    An odd count has no ties: S / n + z keeps a distance of 1/(2n) from every tie.
    """
    return elements % 2 == 1 and float_mean_error(elements) < 1 / (2 * elements)


def float_mean_error(elements: int) -> float:
    """What a mean computed in float32, in any order, is off by, in codes.

    Dequantizing, n − 1 additions, the division and quantizing again lose less than (n + 8) half units in the last place of 512.
    """
    return (elements + 8) * 2.0**-24 * 512
