"""How integers stand for real numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.errors import InvalidNetworkError

IntegerArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def as_integers(values: ArrayLike, node: str | None = None) -> IntegerArray:
    """A read-only, contiguous int64 copy of integer data.

    Raises:
        InvalidNetworkError: the data are not integers, or don't fit int64.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or (array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max):
        raise InvalidNetworkError(node, f"expected integers that fit 64 bits, got {array.dtype}")
    result = np.array(array, dtype=np.int64, order="C")
    result.setflags(write=False)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class QuantizationParameters:
    """The affine map real = scale · (code − zero_point), per tensor or per channel of the first axis.

    Attributes:
        scale: float64, shape (1,) or (channels,); positive and finite.
        zero_point: int64, same shape as ``scale``.
    """

    scale: FloatArray
    zero_point: IntegerArray

    @staticmethod
    def of(scale: ArrayLike, zero_point: ArrayLike = 0) -> QuantizationParameters:
        """Build from scalars or one-dimensional arrays.

        Raises:
            InvalidNetworkError: a scale that is not positive and finite, or shapes that differ.
        """
        scales = np.atleast_1d(np.asarray(scale, dtype=np.float64)).copy()
        zero_points = np.broadcast_to(np.atleast_1d(as_integers(zero_point)), scales.shape).copy()
        if scales.ndim != 1 or not np.all(np.isfinite(scales) & (scales > 0)):
            raise InvalidNetworkError(None, "a quantization scale must be positive and finite")
        scales.setflags(write=False)
        zero_points.setflags(write=False)
        return QuantizationParameters(scales, zero_points)

    @property
    def per_tensor(self) -> bool:
        return self.scale.size == 1

    def dequantize(self, codes: ArrayLike) -> FloatArray:
        """Real values of integer codes; shape (..., channels, ...) is not broadcast beyond the last axis."""
        return (np.asarray(codes, dtype=np.float64) - self.zero_point) * self.scale
