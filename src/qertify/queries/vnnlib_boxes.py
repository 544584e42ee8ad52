"""The input boxes of VNN-LIB properties: which numbers a model can be given there, and which codes they become."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from qertify.errors import UnsupportedModelError
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.runtimes.base import RUNTIMES, runtime_of
from qertify.specification.formula import Bound, Part
from qertify.specification.region import IntegerBox

FLOAT32_STEP = Fraction(1, 1 << 149)
"""Every finite float32 is a multiple of it."""


def ends(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """The box of a part as closed intervals with the same float32 numbers: arrays of fractions, (inputs,)."""
    low, high = np.empty(len(part.low), dtype=object), np.empty(len(part.high), dtype=object)
    low[:] = [_closed(bound, 1) for bound in part.low]
    high[:] = [_closed(bound, -1) for bound in part.high]
    return low, high


def _closed(bound: Bound, inwards: int) -> Fraction:
    """A closed bound that the same float32 numbers keep: less than a step of the finest numbers away from a strict one."""
    on_grid = (bound.value / FLOAT32_STEP).denominator == 1
    return bound.value + inwards * FLOAT32_STEP / 2 if bound.strict and on_grid else bound.value


def codes_box(network: Network, part: Part) -> IntegerBox:
    """The exact set of input codes of a part.

    Raises:
        InvalidInputError: no input of the model's type lies in it.
    """
    if network.runtime_profile in RUNTIMES:
        low, high = (end.reshape(network.input_shape) for end in ends(part))
        return runtime_of(network).integer_image(low, high)
    return IntegerBox(_codes(network, part.low, 1), _codes(network, part.high, -1))


def _codes(network: Network, bounds: tuple[Bound, ...], inwards: int) -> IntegerArray:
    """The outermost codes x with scale · (x − zero point) inside lower (1) or upper (−1) bounds."""
    meaning = network.input_quantization
    if not meaning.per_tensor:
        raise UnsupportedModelError(network.input.name, "Input", "scale", "bounds on inputs need one input scale")
    scale, zero_point = Fraction(float(meaning.scale[0])), int(meaning.zero_point[0])
    ends = sorted((inwards * network.input.low, inwards * network.input.high))
    first, past = ends[0], ends[1] + 1  # what lies beyond all codes makes an empty box
    result: list[int] = []
    for bound in bounds:
        code = inwards * (bound.value / scale + zero_point)
        inside = code.__floor__() + 1 if bound.strict else code.__ceil__()
        result.append(inwards * min(max(inside, first), past))
    return np.array(result, dtype=np.int64).reshape(network.input_shape)


def real_ends(network: Network, part: Part) -> tuple[np.ndarray, ...]:
    """The box of a part in the input's shape, where the model reads numbers that a runtime quantizes."""
    return tuple(end.reshape(network.input_shape) for end in ends(part)) if network.runtime_profile in RUNTIMES else ()
