"""The linear nodes on numbers, with numpy; on integers exactly: part of the trusted base.

A float64 matrix product of integers is exact while every partial sum stays below 2⁵³, and about ten times faster than
numpy's int64 product; the caller proves the magnitude (`absolute_sum`), else int64 is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.network.nodes import Convolution, Dense, Linear, PoolSum, Window
from qertify.network.real import RealAverage, RealConvolution, RealDense, RealLinear
from qertify.network.tensor import IntegerArray

EXACT_FLOAT64 = 1 << 53


def windows(y: NDArray[Any], window: Window, fill: float = 0) -> NDArray[Any]:
    """All windows of y, shape (batch, channels, height, width) → (batch, channels, out_h, out_w, kh, kw), a view."""
    top, left, bottom, right = window.padding
    padded = np.pad(y, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=np.asarray(fill, dtype=y.dtype))
    reach = [d * (k - 1) + 1 for k, d in zip(window.kernel, window.dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, (reach[0], reach[1]), axis=(2, 3))
    return view[:, :, :: window.stride[0], :: window.stride[1], :: window.dilation[0], :: window.dilation[1]]


def weighted_sum(node: Linear | RealLinear, weight: NDArray[Any] | None, y: NDArray[Any]) -> NDArray[Any]:
    """Apply the linear map of ``node`` with another weight of the same shape (its absolute value, its positive part …).

    Args:
        node: supplies the kind, window and groups; neither its bias nor its zero point is used.
        weight: as ``node.weight``; None for pooling, whose weights are one.
        y: shape (batch, *input shape).

    Returns:
        shape (batch, *output shape), in the common dtype of weight and y.
    """
    match node:
        case Dense() | RealDense():
            assert weight is not None
            return y @ weight.T
        case PoolSum() | RealAverage():
            return windows(y, node.window).sum(axis=(-2, -1), dtype=y.dtype)
        case Convolution() | RealConvolution():
            assert weight is not None
            view = windows(y, node.window)
            batch, channels, rows, columns = view.shape[:4]
            per_group, out = channels // node.groups, weight.shape[0] // node.groups
            parts = []
            for group in range(node.groups):
                piece = view[:, group * per_group : (group + 1) * per_group].transpose(0, 2, 3, 1, 4, 5)
                flat = piece.reshape(batch * rows * columns, -1)
                kernel = weight[group * out : (group + 1) * out].reshape(out, -1)
                parts.append((flat @ kernel.T).reshape(batch, rows, columns, out))
            return np.concatenate(parts, axis=-1).transpose(0, 3, 1, 2)


def weight_of(node: Linear) -> IntegerArray | None:
    """The weight, or None for a pool sum, whose weights are all one."""
    return None if isinstance(node, PoolSum) else node.weight


def bias_of(node: Linear) -> IntegerArray | int:
    """The bias, shaped to broadcast over (batch, *output shape)."""
    if isinstance(node, PoolSum):
        return 0
    return node.bias if isinstance(node, Dense) else node.bias[:, None, None]


def absolute_sum(node: Linear, largest: int) -> int:
    """A bound on every partial sum of the accumulator when |y − zero_point| ≤ largest, in exact Python integers."""
    if isinstance(node, PoolSum):
        return node.window.kernel[0] * node.window.kernel[1] * largest
    per_output = np.abs(node.weight.reshape(node.weight.shape[0], -1)).sum(axis=1, dtype=np.int64)
    return max((int(total) * largest + abs(int(bias)) for total, bias in zip(per_output, node.bias, strict=True)), default=0)


def exact_weighted_sum(node: Linear, weight: NDArray[Any] | None, y: NDArray[Any], magnitude: int) -> IntegerArray:
    """`weighted_sum` of integers without rounding or wrapping; ``magnitude`` bounds every partial sum.

    Raises:
        OverflowError: the bound does not fit 63 bits.
    """
    if magnitude >= 1 << 63:
        raise OverflowError(f"node '{node.name}': a sum may reach {magnitude}, which 64 bits can't hold")
    dtype = np.float64 if magnitude < EXACT_FLOAT64 else np.int64
    cast = None if weight is None else weight.astype(dtype)
    return weighted_sum(node, cast, y.astype(dtype)).astype(np.int64)
