"""Float islands: tensors that a runtime computes in float32 between integers, enclosed by functions of integer sums.

An island is known as value = scale·z + shift + δ, |δ| ≤ error, of an integer tensor z in the network under construction, and
perhaps non-decreasing float operators after that. The real part is exact; δ bounds every float32 rounding, for any order of
summation and with or without fused multiply-adds (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., chapter 3):
a sum of n products loses at most γ_n·Σ|x·w|, γ_n = n·u / (1 − n·u), u = 2⁻²⁴. Quantizing it gives an enclosure: two staircases
of z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log2

import numpy as np
from numpy.typing import ArrayLike

from qertify.errors import UnsupportedModelError
from qertify.importers.lowering import Builder, Codes, Requantize
from qertify.importers.reals import Scaled
from qertify.network.nodes import Window
from qertify.network.tensor import FloatArray, IntegerArray, QuantizationParameters
from qertify.runtimes.float32 import Float32Array

UNIT = 2.0**-24
"""Unit roundoff of float32."""
TINY = 2.0**-149
"""Least positive float32: what an underflow may lose."""
SLACK = 1 + 2.0**-40
"""Bounds are computed in float64 and widened by this factor, which is more than their own rounding."""
FLOAT_LIMIT = 2.0**126
INTEGER_LIMIT = 1 << 50
"""Engines compute with integers below 2⁵²."""
GRID_BITS = 16
"""Bits of the grid that other numbers than codes are rounded to before they are summed as integers."""
POSITIONS = 4
"""Where a kernel's results depend on the position in the tensor, they are granted this multiple of the differences seen."""
FUNCTION_ERROR = 2.0**-18
"""Assumed bound on the relative error of float32 functions such as tanh; they are accurate to about 2⁻²²."""
LEVELS = 1 << 12
"""About how many steps of a grid replace float numbers that an element-wise function reads."""
FINE_LEVELS = 1 << 15
"""The same for numbers that another sum reads, or that are moved."""
THRESHOLDS = 1 << 18
"""About how many thresholds all staircases of such numbers may have together, as long as there are `LEVELS` steps."""
SCORE_LEVELS = 1 << 14
"""The same for the outputs of a network."""

Monotone = Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]
"""Bounds of a float operator's operand → bounds of its result; non-decreasing in both."""


def gamma(terms: int) -> float:
    """γ_n: relative to Σ|x·w|, what a float32 sum of n products may lose in any order."""
    return terms * UNIT / (1 - terms * UNIT)


@dataclass(frozen=True, slots=True, eq=False)
class Island:
    """An enclosed float32 tensor.

    Attributes:
        z: the integer tensor.
        low, high: range of z over all inputs.
        scale, shift, error: float64, broadcastable to z's shape; scale > 0, error ≥ 0.
        after: float operators that follow, in order; an island with any is no longer linear.
    """

    z: Codes
    low: int
    high: int
    scale: FloatArray
    shift: FloatArray
    error: FloatArray
    after: tuple[Monotone, ...] = ()

    @property
    def codes(self) -> Codes:
        """A tensor of its shape."""
        return self.z

    @property
    def uniform(self) -> bool:
        """Whether all elements share one line, so that they may be moved."""
        return self.scale.size == self.shift.size == self.error.size == 1

    def on(self, z: Codes) -> Island:
        """A uniform island of another integer tensor, with the same line."""
        scale, shift, error = (part.reshape((1,) * len(z.shape)) for part in (self.scale, self.shift, self.error))
        return replace(self, z=z, scale=scale, shift=shift, error=error)

    @property
    def reach(self) -> int:
        """Bound on the absolute value of z."""
        return max(abs(self.low), abs(self.high))

    def largest(self) -> FloatArray:
        """Bound on the absolute value, broadcastable to z's shape; of linear islands."""
        ends = [np.abs(self.scale * end + self.shift) for end in (self.low, self.high)]
        return (np.maximum(*ends) + self.error) * SLACK


def island(z: Codes, low: int, high: int, scale: ArrayLike, shift: ArrayLike, error: ArrayLike) -> Island:
    """An island whose parameters are numbers, or one a channel of the first axis, or one an element."""

    def fit(values: ArrayLike) -> FloatArray:
        array = np.asarray(values, dtype=np.float64)
        return array.reshape(-1, *(1,) * (len(z.shape) - 1)) if array.ndim < 2 else array

    farthest = max(abs(low), abs(high))
    rounding = 2.0**-48 * (np.abs(fit(scale)) * farthest + np.abs(fit(shift)))  # of scale·z + shift in float64
    result = Island(z, low, high, fit(scale), fit(shift), (fit(error) + rounding) * SLACK)
    if float(result.largest().max()) > FLOAT_LIMIT or farthest > INTEGER_LIMIT:
        raise UnsupportedModelError(z.node, "float island", None, "its numbers may be too large for float32 or for the engines")
    return result


def from_codes(builder: Builder, name: str, codes: Codes, values: Float32Array) -> Island:
    """An island of a tensor that is known exactly through codes.

    Where the numbers are those of the codes' own scale the codes are summed, else a table of the numbers on a grid.

    Args:
        values: float32, the number of each code codes.low … codes.high.
    """
    exact = values.astype(np.float64)
    q = codes.quantization
    if q is not None and q.per_tensor:
        scale, zero_point = float(q.scale[0]), int(q.zero_point[0])
        line = scale * (np.arange(codes.low, codes.high + 1) - zero_point)
        nearest = np.clip(np.rint(exact / scale).astype(np.int64) + zero_point, codes.low, codes.high)
        error = float(np.abs(exact - line[nearest - codes.low]).max())
        if error <= 4 * UNIT * float(np.abs(exact).max(initial=scale)):
            moved = builder.unary(f"{name}/codes", codes, nearest[None, :], codes.low, codes.high, q)
            return island(moved, int(nearest.min()), int(nearest.max()), scale, -scale * zero_point, error)
    grid = 2.0 ** (ceil(log2(max(float(np.abs(exact).max()), 2.0**-100))) - GRID_BITS)
    steps = np.rint(exact / grid).astype(np.int64)
    table = builder.table(f"{name}/grid", codes, steps[None, :])
    return island(table, int(steps.min()), int(steps.max()), grid, 0.0, np.abs(exact - steps * grid).max())


def from_scaled(x: Scaled) -> Island:
    """An island of a scaled accumulator; its factors and additions lie along the last axis."""

    def along(values: Float32Array) -> FloatArray:
        return values.astype(np.float64).reshape(*(1,) * (len(x.codes.shape) - 1), -1)

    scale = along(x.multiplier)
    result = island(x.codes, -x.bound, x.bound, scale, 0.0, 2 * UNIT * (1 + UNIT) * scale * x.bound)
    return result if x.bias is None else shifted(result, along(x.bias))


def tabulated(builder: Builder, name: str, codes: Codes, least: Float32Array, greatest: Float32Array, error: float) -> Island:
    """What an element-wise function makes of codes, read off a runtime, as an island.

    Args:
        least, greatest: results of each code codes.low …, which differ where a kernel's vectors compute otherwise than its
            scalars.
        error: how far the operands' real numbers move the results; 0 where they are known exactly.
    """
    if error:
        error += FUNCTION_ERROR * float(np.abs(least).max())
    spread = POSITIONS * float((greatest.astype(np.float64) - least).max())
    x = from_codes(builder, name, codes, least)
    return replace(x, error=x.error + spread + error)


def zero_point_of(x: Island) -> int | None:
    """The z that stands for zero, if an integer does exactly; None otherwise."""
    if not x.uniform or x.after:
        return None
    zero = round(-float(x.shift.flat[0]) / float(x.scale.flat[0]))
    return zero if float(x.shift.flat[0]) == -float(x.scale.flat[0]) * zero else None


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Float32 weights as integers: value = scale · integer + residual, a scale for the tensor or one an output channel.

    Attributes:
        values: float64, exact, output channel first.
        integers: int64, the same shape.
        scale: float64 (1,) or (channels,).
    """

    values: FloatArray
    integers: IntegerArray
    scale: FloatArray

    @property
    def residual(self) -> FloatArray:
        """|value − scale · integer|."""
        return np.abs(self.values - self.integers * self.scale.reshape(-1, *(1,) * (self.values.ndim - 1)))


def weights_on_grid(values: Float32Array) -> Weights:
    """Arbitrary float weights, on a grid of `GRID_BITS` bits an output channel."""
    exact = values.astype(np.float64)
    largest = np.abs(exact.reshape(len(exact), -1)).max(axis=1, initial=2.0**-100)
    scale = 2.0 ** (np.ceil(np.log2(largest)) - GRID_BITS)
    return Weights(exact, np.rint(exact / scale.reshape(-1, *(1,) * (exact.ndim - 1))).astype(np.int64), scale)


def linear(
    x: Island,
    weights: Weights,
    bias: FloatArray,
    zero_point: int,
    sums: Callable[[IntegerArray], Codes],
) -> Island:
    """A float matrix product or convolution of a uniform, linear island.

    Args:
        bias: float64 (channels,), the float32 numbers that are added.
        zero_point: `zero_point_of` x, so that padding is zero on both sides.
        sums: makes the integer node from the integer weights.
    """
    scale, slack = float(x.scale.flat[0]), float(x.error.flat[0])
    rows = len(weights.integers)
    terms = weights.integers[0].size + 2
    largest = float(x.largest().flat[0])
    total = np.abs(weights.values.reshape(rows, -1)).sum(axis=1)
    error = largest * weights.residual.reshape(rows, -1).sum(axis=1) + slack * total
    error = error + gamma(terms) * (largest * total + np.abs(bias)) + terms * TINY
    reach = max(abs(x.low - zero_point), abs(x.high - zero_point))
    bound = int(np.abs(weights.integers.reshape(rows, -1)).sum(axis=1).max()) * reach
    return island(sums(weights.integers), -bound, bound, scale * weights.scale, bias, error)


def average(builder: Builder, name: str, x: Island, zero_point: int, window: Window, counts: IntegerArray) -> Island:
    """The mean over windows of a uniform, linear island; ``counts``: elements averaged, broadcastable to the result."""
    scale, slack = float(x.scale.flat[0]), float(x.error.flat[0])
    elements = window.kernel[0] * window.kernel[1]
    largest = float(x.largest().flat[0])
    z = builder.pool_sum(name, x.z, window, zero_point, None)
    error = (slack + gamma(elements + 4) * largest) * (elements / counts) + TINY
    low, high = (elements * side for side in (min(0, x.low - zero_point), max(0, x.high - zero_point)))
    return island(z, low, high, scale / counts, 0.0, error)


def add(builder: Builder, name: str, a: Island, b: Island) -> Island | None:
    """The float32 sum of two linear islands of one shape, on a common grid; None if their scales vary within a channel."""
    channels = a.z.shape[0]
    if any(p.scale.size not in (1, channels) or p.scale.shape[0] not in (1, channels) for p in (a, b)):
        return None
    rounding = UNIT * (1 + UNIT) * (a.largest() + b.largest()) + TINY
    error = a.error + b.error + rounding
    farthest = [max(abs(p.low), abs(p.high)) for p in (a, b)]
    reach = max(1, sum(farthest))
    step = max(float(error.min()), float((a.largest() + b.largest()).max()) * 2.0**-44) / reach
    scales = np.stack([np.broadcast_to(p.scale.reshape(-1), (channels,)) for p in (a, b)], axis=1)
    if np.all(scales == scales[0]):
        scales = scales[:1]
    factors = np.rint(scales / step).astype(np.int64)
    off = np.abs(scales - factors * step) @ np.array(farthest, dtype=np.float64)
    z = builder.weighted_sum(name, a.z, b.z, factors)
    grid_error = off.reshape(-1, *(1,) * (len(z.shape) - 1))
    bound = sum(int(factors[:, side].max()) * farthest[side] for side in (0, 1))
    return island(z, -bound, bound, step, a.shift + b.shift, error + grid_error)


def product(builder: Builder, name: str, a: Island, b: Island, zero_points: tuple[int, int]) -> Island:
    """The float32 product of two uniform, linear islands of one shape."""
    first, second = float(a.largest().flat[0]), float(b.largest().flat[0])
    error = first * float(b.error.flat[0]) + second * float(a.error.flat[0]) + 2 * UNIT * first * second + TINY
    z = builder.product(name, a.z, b.z, zero_points, None)
    ends = [(p.low - zero, p.high - zero) for p, zero in ((a, zero_points[0]), (b, zero_points[1]))]
    corners = [x * y for x in ends[0] for y in ends[1]]
    return island(z, min(corners), max(corners), float(a.scale.flat[0]) * float(b.scale.flat[0]), 0.0, error)


def shifted(x: Island, constant: FloatArray) -> Island:
    """A linear island plus a float32 constant, broadcastable to it."""
    shift = x.shift + constant
    rounding = UNIT * (1 + UNIT) * (x.largest() + np.abs(constant)) + TINY
    return island(x.z, x.low, x.high, x.scale, shift, x.error + rounding)


def clamp(low: float, high: float) -> Monotone:
    """min(max(x, low), high): exact."""
    return lambda least, greatest: (np.clip(least, low, high), np.clip(greatest, low, high))


def moved(builder: Builder, name: str, x: Island, indices: IntegerArray) -> Island:
    """Elements picked by flat index."""
    z = builder.rearrange(name, (x.z,), indices)
    if x.uniform:
        parameters = [part.reshape((1,) * indices.ndim) for part in (x.scale, x.shift, x.error)]
    else:
        parameters = [np.broadcast_to(part, x.z.shape).reshape(-1)[indices] for part in (x.scale, x.shift, x.error)]
    return replace(x, z=z, scale=parameters[0], shift=parameters[1], error=parameters[2])


def joined(builder: Builder, name: str, parts: Sequence[Island], axis: int) -> Island:
    """Linear islands joined along an axis; each keeps its line."""
    z = builder.concatenate(name, [part.z for part in parts], axis)

    def join(pick: Callable[[Island], FloatArray]) -> FloatArray:
        return np.concatenate([np.broadcast_to(pick(part), part.z.shape) for part in parts], axis=axis)

    low, high = min(part.low for part in parts), max(part.high for part in parts)
    return Island(z, low, high, join(lambda p: p.scale), join(lambda p: p.shift), join(lambda p: p.error))


def _grid(x: Island, levels: int) -> tuple[float, int, int]:
    """A power of two, and the least and greatest multiples of it around an island's values, about ``levels`` of them."""
    ends = x.scale * x.low + x.shift - x.error, x.scale * x.high + x.shift + x.error
    for operator in x.after:
        ends = operator(*ends)
    low, high = float(ends[0].min()), float(ends[1].max())
    step = 2.0 ** ceil(log2(max(high - low, 2.0**-20 * max(abs(low), abs(high)), 2.0**-100) / levels))
    return step, floor(low / step) - 1, ceil(high / step) + 1


def regrid(builder: Builder, name: str, x: Island, levels: int = 0) -> Island:
    """Any island as a uniform, linear one: its values to the nearest multiples of a grid, which an enclosure gives.

    Args:
        levels: about how many of them; 0 for as many as are affordable.
    """
    lines = max(x.scale.size, x.shift.size, x.error.size)
    step, low, high = _grid(x, levels or min(FINE_LEVELS, max(LEVELS, THRESHOLDS // lines)))
    meaning = QuantizationParameters.of(step, 0)
    z = quantize(builder, name, x, lambda v: np.rint(v.astype(np.float64) / step).astype(np.int64), low, high, meaning)
    return island(z, low, high, step, 0.0, step / 2)


def scores(builder: Builder, name: str, x: Island) -> Codes:
    """Outputs that stay float: codes of a grid with lower · step ≤ value < upper · step for the ends of the enclosure.

    So whatever order, with whatever ties, all codes of the enclosure have, the float numbers have, too.
    """
    step, low, high = _grid(x, SCORE_LEVELS)
    meaning = QuantizationParameters.of(step, 0)
    wider = then(x, lambda least, greatest: (least, greatest + step))
    return quantize(
        builder, name, wider, lambda v: np.floor(v.astype(np.float64) / step).astype(np.int64), low, high + 1, meaning
    )


def then(x: Island, operator: Monotone) -> Island:
    """An island followed by a non-decreasing operator."""
    return replace(x, after=(*x.after, operator))


def quantize(
    builder: Builder,
    name: str,
    x: Island,
    quantizer: Callable[[Float32Array], IntegerArray],
    low: int,
    high: int,
    quantization: QuantizationParameters,
) -> Codes:
    """The codes of an island: an enclosure whose thresholds are found on both of its ends.

    A float32 number v ≥ l fulfils v ≥ F(l), since rounding is monotone and v is its own; the same from above.

    Args:
        quantizer: the runtime's own, float32 → codes, non-decreasing; clamped here.
    """
    shape = x.z.shape
    table = np.stack([np.broadcast_to(part, shape).reshape(-1) for part in (x.scale, x.shift, x.error)])
    distinct, inverse = np.unique(table, axis=1, return_inverse=True)
    scale, shift, error = distinct[:, :, None]

    def side(upper: bool) -> Callable[[IntegerArray], IntegerArray]:
        def function(z: IntegerArray) -> IntegerArray:
            middle = scale * z + shift
            ends = middle - error, middle + error
            for operator in x.after:
                ends = operator(*ends)
            with np.errstate(over="ignore"):
                return quantizer(ends[upper].astype(np.float32))

        return function

    row = inverse.reshape(shape) if distinct.shape[1] > 1 else np.zeros((1,) * len(shape), dtype=np.int64)
    sides = [Requantize(side(upper), distinct.shape[1], low, high, quantization, row) for upper in (False, True)]
    limit = 1 << max(31, max(abs(x.low), abs(x.high) + 1).bit_length())
    return builder.enclose(name, x.z, sides[0], sides[1], limit)
