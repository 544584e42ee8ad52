"""The integer arithmetic of LiteRT's int8 kernels on x86 CPUs, bit for bit, in numpy.

LiteRT holds three sets of kernels: XNNPACK (the default, where it takes an operator), its own optimized ones, and reference
ones. F(·) rounds to float32, rne to the nearest integer, ties to even; s and z are scales and zero points. Each formula was
established by experiment where candidates disagree, and tests/conformance repeats the experiment on the installed version.
Clamping to the type follows every formula and is left to the caller. Optimized kernels work on blocks of channels or elements
and treat the remainder by other code, which rounds differently: `Lanes` says where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import frexp

import numpy as np

from qertify.network.tensor import FloatArray, IntegerArray
from qertify.runtimes.float32 import Float32Array, round_half_even

AccumulatorMap = Callable[[IntegerArray], IntegerArray]


class Kernels(str, Enum):
    """Whose code computes an operator."""

    XNNPACK = "xnnpack"
    BUILTIN = "builtin"
    REFERENCE = "reference"


class Lanes:
    """Elements that one step of an optimized kernel computes; what is left over at the end is scalar code."""

    DEPTHWISE = 8
    MEAN = 16
    ADDITION = 16


def round_half_away(x: FloatArray) -> IntegerArray:
    """C's round(): the nearest integer, ties away from zero, of float64 values; ±2⁶² where |x| is larger."""
    whole = np.trunc(x)
    rounded = whole + np.where(np.abs(x - whole) >= 0.5, np.sign(x), 0.0)
    return np.clip(rounded, -(2.0**62), 2.0**62).astype(np.int64)


# 32-bit fixed point.


@dataclass(frozen=True, slots=True, eq=False)
class FixedPoint:
    """Positive multipliers multiplier·2^(exponent − 31), one a row; both int64 of shape (rows, 1)."""

    multiplier: IntegerArray
    exponent: IntegerArray

    @staticmethod
    def of(real: Sequence[float]) -> FixedPoint:
        """The nearest ones, ties up; a number below 2⁻³² becomes zero."""
        pairs = [_fixed_point(value) for value in real]
        columns = np.array(pairs, dtype=np.int64).reshape(-1, 2, 1)
        return FixedPoint(columns[:, 0], columns[:, 1])

    @property
    def accumulator_bits(self) -> int:
        """Width that an accumulator must fit so that the shift by a positive exponent does not overflow 32 bits."""
        return 32 - max(0, int(self.exponent.max()))

    def half_away(self, z: IntegerArray) -> IntegerArray:
        """High multiply (half up), then a right shift that rounds half away from zero."""
        return shift_half_away(self._high(z), np.maximum(-self.exponent, 0))

    def half_up(self, z: IntegerArray) -> IntegerArray:
        """High multiply (half up), then a right shift that rounds half up."""
        shift = np.maximum(-self.exponent, 0)
        return (self._high(z) + ((1 << shift) >> 1)) >> shift

    def _high(self, z: IntegerArray) -> IntegerArray:
        left = np.maximum(self.exponent, 0)
        limit = (1 << (31 - left)) - 1
        return high_multiply(np.clip(z, -limit, limit) << left, self.multiplier)


def _fixed_point(real: float) -> tuple[int, int]:
    fraction, exponent = frexp(real)
    multiplier = int(fraction * 2.0**31 + 0.5)
    if multiplier == 1 << 31:
        multiplier, exponent = 1 << 30, exponent + 1
    return (multiplier, exponent) if exponent >= -31 else (0, 0)


def high_multiply(x: IntegerArray, multiplier: IntegerArray | int) -> IntegerArray:
    """x·multiplier / 2³¹, half up; both fit 32 bits."""
    return (x * multiplier + (1 << 30)) >> 31


def shift_half_away(x: IntegerArray, shift: IntegerArray | int) -> IntegerArray:
    """x / 2^shift, half away from zero."""
    return np.sign(x) * ((np.abs(x) + ((1 << shift) >> 1)) >> shift)


# Convolution, depthwise convolution, fully connected.


@dataclass(frozen=True, slots=True)
class Scaling:
    """From accumulators of shape (rows, n) to codes; ``accumulator_bits`` is the width that the accumulator must fit."""

    function: AccumulatorMap
    rows: int
    accumulator_bits: int = 32


def linear_multiplier(x: np.float32, weight: Float32Array, y: np.float32) -> Float32Array:
    """F(F(s_x·s_w) / s_y), shape of the weight scale."""
    return np.asarray(x * weight / y, dtype=np.float32)


def linear(
    kernels: Kernels, op: str, scales: tuple[np.float32, Float32Array, np.float32], zero_point: int, channels: int
) -> Scaling:
    """The requantization of CONV_2D, DEPTHWISE_CONV_2D or FULLY_CONNECTED.

    XNNPACK: rne(F(F(acc)·F(F(s_x·s_w) / s_y))) + z. Optimized: fixed point of s_x·s_w / s_y in float64 (of F(s_x·s_w) / s_y
    for FULLY_CONNECTED with one weight scale), half up; half away from zero in the remainder of a depthwise convolution.
    Reference: half away from zero; FULLY_CONNECTED rounds acc·(s_x·s_w / s_y) in float64, half away from zero.

    Args:
        scales: of the input, of the weight (one, or one a channel), of the output.
    """
    x, weight, y = scales
    uniform = bool(np.all(weight == weight[0]))
    distinct = weight[:1] if uniform else weight
    if kernels is Kernels.XNNPACK:
        multiplier = linear_multiplier(x, distinct, y).reshape(-1, 1)
        return Scaling(lambda z: round_half_even(z.astype(np.float32) * multiplier) + zero_point, len(distinct))
    exact = [float(x) * float(w) / float(y) for w in distinct]
    if op == "FULLY_CONNECTED" and kernels is Kernels.REFERENCE:
        column = np.array(exact).reshape(-1, 1)
        return Scaling(lambda z: round_half_away(z.astype(np.float64) * column) + zero_point, len(distinct))
    if op == "FULLY_CONNECTED" and weight.size == 1:
        exact = [float(np.float32(x * weight[0])) / float(y)]
    if op == "DEPTHWISE_CONV_2D" and kernels is Kernels.BUILTIN:
        fixed = FixedPoint.of(exact * channels if uniform else exact)
        return Scaling(_blocks(fixed, channels, Lanes.DEPTHWISE, zero_point), channels, fixed.accumulator_bits)
    fixed = FixedPoint.of(exact)
    scale = fixed.half_up if kernels is Kernels.BUILTIN else fixed.half_away
    return Scaling(lambda z: scale(z) + zero_point, len(distinct), fixed.accumulator_bits)


def _blocks(fixed: FixedPoint, channels: int, lanes: int, offset: int) -> AccumulatorMap:
    """Half up in whole blocks of channels, half away from zero in the remainder; one row a channel."""
    in_block = (np.arange(channels) < channels // lanes * lanes).reshape(-1, 1)
    return lambda z: np.where(in_block, fixed.half_up(z), fixed.half_away(z)) + offset


# Pools, of the sum of codes, the zero point not subtracted.


def average(elements: int) -> AccumulatorMap:
    """AVERAGE_POOL_2D, all kernels: the sum / n, half away from zero."""
    return lambda z: np.sign(z) * ((np.abs(z) + elements // 2) // elements)


def mean(
    kernels: Kernels,
    x: tuple[np.float32, int],
    y: tuple[np.float32, int],
    elements: int,
    channels: int,
    keeps_axes: bool,
) -> Scaling:
    """MEAN over height and width.

    XNNPACK: rne(F(F(F(sum)·m) + F(z_y − F(n·z_x·m)))) with m = F(F(s_x / s_y)·F(1 / n)).
    Optimized, if the axes are kept: fixed point of F(s_x / F(n·s_y)), half up, half away from zero in the remainder of the
    channels, + z_y − round(F(F(z_x·s_x) / s_y)). Otherwise: fixed point of s_x / s_y divided by n, half away from zero.

    Args:
        x, y: scale and zero point of input and output.
    """
    (x_scale, x_zero), (y_scale, y_zero) = x, y
    count = np.float32(elements)
    if kernels is Kernels.XNNPACK:
        multiplier = np.float32(x_scale / y_scale * (np.float32(1) / count))
        bias = np.float32(np.float32(y_zero) - np.float32(elements * x_zero) * multiplier)
        return Scaling(lambda z: round_half_even(z.astype(np.float32) * multiplier + bias), 1)
    if kernels is Kernels.BUILTIN and keeps_axes:
        centre = np.float32(np.float32(x_zero) * x_scale / y_scale)
        half = np.float32(0.5 if centre > 0 else -0.5)
        offset = y_zero - int(np.trunc(np.float32(centre + half)))
        fixed = FixedPoint.of([float(np.float32(x_scale / np.float32(count * y_scale)))] * channels)
        return Scaling(_blocks(fixed, channels, Lanes.MEAN, offset), channels, fixed.accumulator_bits)
    whole = FixedPoint.of([float(x_scale) / float(y_scale)])
    shift = min(elements.bit_length() - 1, 32, 31 + int(whole.exponent[0, 0]))
    fixed = FixedPoint((whole.multiplier << shift) // elements, whole.exponent - shift)
    return Scaling(lambda z: fixed.half_away(z - elements * x_zero) + y_zero, 1, fixed.accumulator_bits)


# Two operands.


def product(kernels: Kernels, scales: tuple[np.float32, np.float32, np.float32], zero_point: int) -> AccumulatorMap:
    """MUL, of p = (a − z_a)·(b − z_b): XNNPACK as for `linear`; else fixed point of F(F(s_a·s_b) / s_c), half away."""
    ratio = np.float32(scales[0] * scales[1] / scales[2])
    if kernels is Kernels.XNNPACK:
        return lambda z: round_half_even(z.astype(np.float32) * ratio) + zero_point
    scale = _flat(FixedPoint.of([float(ratio)]).half_away)
    return lambda z: scale(z) + zero_point


class Addition:
    """ADD and SUB.

    XNNPACK: integers m_a, m_b = rne(F(s_a / s_c)·2^k), rne(F(s_b / s_c)·2^k), the larger in 2²⁰ … 2²¹ − 1, and
    (m_a·(a − z_a) ± m_b·(b − z_b)) / 2^k + z_c, half up. Otherwise: both operands in units of 2·max(s_a, s_b) / 2²⁰ by fixed
    point, their sum by fixed point to s_c, half away from zero; whole blocks of the optimized ADD shift before they multiply.
    """

    def __init__(
        self,
        kernels: Kernels,
        scales: tuple[np.float32, np.float32, np.float32],
        zero_points: tuple[int, int, int],
        subtract: bool = False,
        in_block: bool = False,
    ) -> None:
        self._zero_points, self._sign = zero_points, -1 if subtract else 1
        if kernels is Kernels.XNNPACK:
            ratios = [np.float32(scale / scales[2]) for scale in scales[:2]]
            self._bits = 21 - frexp(float(max(ratios)))[1]
            self._factors = [round(float(ratio) * 2.0**self._bits) for ratio in ratios]
            self._operands, self._sum = [self._times(factor) for factor in self._factors], self._half_up
            return
        unit = 2 * max(float(scale) for scale in scales[:2])
        self._bits = 20
        scale = _shift_then_multiply if in_block else _multiply_then_shift
        self._operands = [scale(FixedPoint.of([float(s) / unit])) for s in scales[:2]]
        self._sum = _flat(FixedPoint.of([unit / ((1 << 20) * float(scales[2]))]).half_away)

    def __call__(self, a: IntegerArray, b: IntegerArray) -> IntegerArray:
        left, right = self._operands
        z_a, z_b, z_c = self._zero_points
        return self._sum(left(a - z_a) + self._sign * right(b - z_b)) + z_c

    def terms(self, a: IntegerArray, b: IntegerArray) -> tuple[FloatArray, FloatArray]:
        """Exact reals whose sum decides the result."""
        left, right = self._operands
        scale = np.float64(2.0**-self._bits)
        return left(a - self._zero_points[0]) * scale, self._sign * right(b - self._zero_points[1]) * scale

    @staticmethod
    def _times(factor: int) -> AccumulatorMap:
        return lambda x: x * factor

    def _half_up(self, total: IntegerArray) -> IntegerArray:
        return (total + (1 << (self._bits - 1))) >> self._bits


def _flat(function: AccumulatorMap) -> AccumulatorMap:
    """A map of one row on arrays of any shape."""
    return lambda x: function(x.reshape(1, -1)).reshape(x.shape)


def _multiply_then_shift(fixed: FixedPoint) -> AccumulatorMap:
    return _flat(lambda x: fixed.half_away(x << 20))


def _shift_then_multiply(fixed: FixedPoint) -> AccumulatorMap:
    shift = 20 + int(fixed.exponent[0, 0])
    return lambda x: high_multiply(x << shift, fixed.multiplier[0, 0])


# Ends of the network, and clamps.


def quantize(kernels: Kernels, x: Float32Array, scale: np.float32, zero_point: int) -> IntegerArray:
    """QUANTIZE of float32: rne(F(x·F(1 / s))) + z; reference: F(x / s) half away from zero."""
    with np.errstate(over="ignore"):
        if kernels is Kernels.REFERENCE:
            return round_half_away((x / scale).astype(np.float64)) + zero_point
        return round_half_even(x * (np.float32(1) / scale)) + zero_point


def clamp(kernels: Kernels, bound: float, scale: np.float32, zero_point: int) -> int:
    """The code of an activation's bound: rne(F(F(bound / s) + z)) in XNNPACK, round(F(bound / s)) + z otherwise."""
    ratio = np.float32(np.float32(bound) / scale)
    if kernels is Kernels.XNNPACK:
        return int(round_half_even(np.asarray(ratio + np.float32(zero_point), dtype=np.float32)))
    return int(round_half_away(np.asarray(ratio, dtype=np.float64))) + zero_point
