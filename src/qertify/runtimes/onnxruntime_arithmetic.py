"""The integer arithmetic of onnxruntime's CPU kernels, bit for bit, in numpy float32.

F(·) rounds to float32, rne to the nearest integer, ties to even; s and z are scales and zero points. Each formula was
established by experiment where candidates disagree, and tests/conformance repeats the experiment on the installed version.
Clamping to the type follows every formula and is left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qertify.network.tensor import FloatArray, IntegerArray
from qertify.runtimes.float32 import Float32Array, fma, round_half_even

AccumulatorMap = Callable[[IntegerArray], IntegerArray]


def quantize(x: Float32Array, scale: np.float32, zero_point: int) -> IntegerArray:
    """QuantizeLinear: rne(F(x / s)) + z."""
    with np.errstate(over="ignore"):
        return round_half_even(x / scale) + zero_point


def dequantize(codes: IntegerArray, scale: np.float32, zero_point: int) -> Float32Array:
    """DequantizeLinear: F((q − z)·s)."""
    return (codes - zero_point).astype(np.float32) * scale


def linear_multiplier(x_scale: np.float32, weight_scale: Float32Array, y_scale: np.float32) -> Float32Array:
    """QLinearConv, QLinearMatMul, QGemm: F(F(s_x·s_w) / s_y), shape of the weight scale."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(x_scale * weight_scale / y_scale, dtype=np.float32)


def average_multiplier(x_scale: np.float32, y_scale: np.float32, elements: int) -> Float32Array:
    """QLinearGlobalAveragePool over n elements: F(s_x / F(s_y·n)), shape (1,)."""
    with np.errstate(over="ignore", under="ignore"):
        return np.array([x_scale / np.float32(y_scale * np.float32(elements))], dtype=np.float32)


def requantize_linear(multiplier: Float32Array, zero_point: int) -> AccumulatorMap:
    """rne(F(F(acc)·multiplier)) + z; one multiplier a row, acc of shape (rows, n). Also of an average, with its multiplier."""
    column = multiplier.reshape(-1, 1)
    return lambda z: round_half_even(z.astype(np.float32) * column) + zero_point


def requantize_product(multiplier: np.float32, zero_point: int) -> AccumulatorMap:
    """QLinearMul: rne(F(F(p·F(F(s_a·s_b) / s_c)) + z_c)) of p = (a − z_a)·(b − z_b), with that `linear_multiplier`."""
    return lambda z: round_half_even(z.astype(np.float32) * multiplier + np.float32(zero_point))


class Addition:
    """QLinearAdd: with r_a = F(s_a / s_c), r_b = F(s_b / s_c), c = F(z_c − fma(r_a, z_a, F(r_b·z_b))),

    rne(fma(A, r_a, fma(B, r_b, c))). The operands are exchanged first where A is broadcast as a scalar and B is not.
    """

    def __init__(self, scales: tuple[np.float32, np.float32, np.float32], zero_points: tuple[int, int, int]) -> None:
        with np.errstate(over="ignore", under="ignore"):
            self.ratios = (np.float32(scales[0] / scales[2]), np.float32(scales[1] / scales[2]))
        z_a, z_b, z_c = (np.float32(z) for z in zero_points)
        self.constant = np.float32(z_c - fma(self.ratios[0], z_a, self.ratios[1] * z_b))

    def __call__(self, a: IntegerArray, b: IntegerArray) -> IntegerArray:
        return round_half_even(fma(a, self.ratios[0], fma(b, self.ratios[1], self.constant)))

    def terms(self, a: IntegerArray, b: IntegerArray) -> tuple[FloatArray, FloatArray]:
        """Exact reals whose sum decides the result: a·r_a and fma(b, r_b, c)."""
        return a * np.float64(self.ratios[0]), fma(b, self.ratios[1], self.constant).astype(np.float64)
