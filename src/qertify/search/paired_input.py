"""One region of inputs as a float network and a quantized one see it: float32 numbers, and their codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from qertify.bounds.input_relation import InputRelation
from qertify.errors import InvalidInputError
from qertify.network.network import Network
from qertify.network.tensor import FloatArray, IntegerArray
from qertify.runtimes.base import RUNTIMES, runtime_of
from qertify.runtimes.float32 import Float32Array, greatest_float32, least_float32
from qertify.specification.region import IntegerBox

if TYPE_CHECKING:
    from qertify.bounds.difference import Joint

QUANTIZER_ERROR = 2.0**-22
"""More than what a quantizer's own float32 operations (one division or product, one sum) lose, relative to their operands."""
EDGE_STEPS = 20
"""Halvings between an input beyond the edge of its code and the code's middle."""
TIE = 1e-6
"""Quotients this close to a tie are divided again, exactly."""


@dataclass(frozen=True, slots=True, eq=False)
class PairedInput:
    """The region. Every x in it is float32, and its code is what the quantized network's quantizer makes of it.

    Attributes:
        box: the codes.
        relation: which x go with which codes.
        factor: what one code is.
        low, high: float32 bounds of x; None where x is the number that its code stands for ("the grid").
        quantize: float32 (batch, *shape) → codes.
        stand_for: codes → float32.
    """

    box: IntegerBox
    relation: InputRelation
    factor: Fraction
    low: Float32Array | None
    high: Float32Array | None
    quantize: Callable[[Float32Array], IntegerArray]
    stand_for: Callable[[IntegerArray], Float32Array]

    @property
    def is_grid(self) -> bool:
        """Whether the codes determine the inputs."""
        return self.low is None

    def holds(self, x: Float32Array, codes: IntegerArray) -> bool:
        """Whether an input of the input shape, with these codes, is one of the region."""
        if not self.box.contains(codes[None])[0] or not np.array_equal(self.quantize(x[None])[0], codes):
            return False
        return self.low is None or self.high is None or bool(np.all((self.low <= x) & (x <= self.high)))

    def covers(self, other: PairedInput) -> bool:
        """Whether every input of another region, made for the same network with the same factor, is one of this one."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            within = self.is_grid and other.is_grid and self.box.contains(np.stack([other.box.low, other.box.high])).all()
            return bool(within)
        return bool(np.all((self.low <= other.low) & (other.high <= self.high)))

    def points(self, joint: Joint, candidates: FloatArray) -> tuple[Float32Array, IntegerArray]:
        """Inputs of the region near points of a joint program, and their codes; candidates are (batch, program inputs)."""
        flat_low, flat_high = self.box.low.reshape(-1), self.box.high.reshape(-1)
        codes = np.broadcast_to(joint.middle.reshape(-1), (len(candidates), flat_low.size)).copy()
        varies = np.flatnonzero(flat_low < flat_high)
        codes[:, varies] += np.round(candidates[:, : varies.size]).astype(np.int64)
        codes = np.clip(codes, flat_low, flat_high).reshape(-1, *self.box.low.shape)
        if self.low is None or self.high is None:
            return self.stand_for(codes), codes
        errors = np.zeros((len(candidates), flat_low.size))
        count = joint.error_index.size  # what an enclosure leaves open follows them
        errors[:, joint.error_index] = candidates[:, varies.size : varies.size + count] * 2.0**-joint.input_bits
        exact = self.relation.factor * codes + self.relation.shift + errors.reshape(codes.shape)
        x = self._back(np.clip(exact.astype(np.float32), self.low, self.high), codes)
        return x, self.quantize(x)

    def _back(self, x: Float32Array, codes: IntegerArray) -> Float32Array:
        """Inputs that have left their codes, as relaxations' do at the ends of errors, brought back just over the edge."""
        outside = self.quantize(x) != codes
        if not outside.any():
            return x
        inside = np.clip(self.stand_for(codes), self.low, self.high)
        for _ in range(EDGE_STEPS):
            middle = (x + (inside - x) / 2).astype(np.float32)
            beyond = self.quantize(middle) != codes
            x, inside = np.where(outside & beyond, middle, x), np.where(outside & ~beyond, middle, inside)
        return np.where(outside, inside, x)


def code_factor(network: Network) -> Fraction:
    """The input scale, which must be one for all.

    Raises:
        InvalidInputError: one scale a channel.
    """
    if not network.input_quantization.per_tensor:
        raise InvalidInputError("equivalence needs one input scale; this network has one a channel")
    return Fraction(float(network.input_quantization.scale[0]))


def _zero_point(network: Network) -> int:
    return int(network.input_quantization.zero_point[0])


def _nearest_code(network: Network, factor: Fraction) -> Callable[[Float32Array], IntegerArray]:
    """x / factor + zero point to the nearest, ties up, clamped: the application's part where a model reads codes."""
    zero, low, high = _zero_point(network), network.input.low, network.input.high

    def quantize(x: Float32Array) -> IntegerArray:
        quotient = x.astype(np.float64) * (factor.denominator / factor.numerator)
        codes = np.floor(quotient + 0.5)
        close = np.abs(quotient - np.floor(quotient) - 0.5) < TIE
        codes[close] = [(Fraction(value) / factor + Fraction(1, 2)).__floor__() for value in x[close].tolist()]
        return np.clip(codes + zero, low, high).astype(np.int64)

    return quantize


def grid(network: Network, box: IntegerBox, factor: Fraction | None = None) -> PairedInput:
    """The inputs that codes stand for: x = factor · (code − zero point), rounded to float32.

    Args:
        factor: the network's input scale unless the float network is to see another one, for example 1/255.
    """
    factor = code_factor(network) if factor is None else factor
    zero = _zero_point(network)
    numerator, denominator = factor.numerator, factor.denominator

    def stand_for(codes: IntegerArray) -> Float32Array:
        return ((codes - zero) * numerator / denominator).astype(np.float32)

    every = np.arange(int(box.low.min()), int(box.high.max()) + 1)
    ideal = (every - zero) * (numerator / denominator)
    error = (
        float(np.abs(stand_for(every).astype(np.float64) - ideal).max()) * (1 + 1e-6) + float(np.abs(ideal).max()) * 2.0**-48
    )
    shape = box.low.shape
    relation = InputRelation(
        factor=np.full(shape, float(factor)),
        shift=np.full(shape, -zero * float(factor)),
        error_low=np.full(shape, -error),
        error_high=np.full(shape, error),
        low=np.full(shape, -np.inf),
        high=np.full(shape, np.inf),
        clamped_low=np.zeros(shape, dtype=bool),
        clamped_high=np.zeros(shape, dtype=bool),
    )
    return PairedInput(box, relation, factor, None, None, _nearest_code(network, factor), stand_for)


def interval(network: Network, low: ArrayLike, high: ArrayLike, factor: Fraction | None = None) -> PairedInput:
    """All float32 x in low … high (exact rationals or floats, of the input's shape), and the codes the runtime makes of them.

    Args:
        factor: as in `grid`; only for networks that read codes.

    Raises:
        InvalidInputError: an empty region, a bound that is no number, or a factor for a network that quantizes itself.
    """
    own = code_factor(network)
    runtime = runtime_of(network) if network.runtime_profile in RUNTIMES else None
    least_codes = np.full(network.input_shape, network.input.low)
    reads_codes = runtime is None or runtime.real_input(least_codes).dtype.kind in "iu"
    if not reads_codes and factor is not None and factor != own:
        raise InvalidInputError(
            "a scale of the input only has a meaning for models that read codes; this one reads real numbers"
        )
    shape = network.input_shape
    least, greatest = (
        np.array(
            [bound(Fraction(value)) for value in np.broadcast_to(np.asarray(side), shape).reshape(-1).tolist()], np.float32
        )
        for bound, side in ((least_float32, low), (greatest_float32, high))
    )
    least, greatest = least.reshape(shape), greatest.reshape(shape)
    if np.any(~(least <= greatest)):
        raise InvalidInputError("the region is empty: it holds no float32 number at some input")
    factor = own if factor is None else factor
    quantize = runtime.quantize_input if runtime is not None and not reads_codes else _nearest_code(network, factor)
    ends = quantize(np.stack([least, greatest]))
    zero, scale = _zero_point(network), float(factor)
    reach = np.maximum(np.abs(ends[0] - zero), np.abs(ends[1] - zero)) + abs(zero) + 1
    half = scale * (0.5 + reach * QUANTIZER_ERROR)
    relation = InputRelation(
        factor=np.full(shape, scale),
        shift=np.full(shape, -zero * scale),
        error_low=-half,
        error_high=half,
        low=least.astype(np.float64),
        high=greatest.astype(np.float64),
        clamped_low=ends[0] == network.input.low,
        clamped_high=ends[1] == network.input.high,
    )
    box = IntegerBox(ends[0], ends[1])
    return PairedInput(
        box, relation, factor, least, greatest, quantize, lambda codes: ((codes - zero) * scale).astype(np.float32)
    )
