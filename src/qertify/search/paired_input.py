"""One region of inputs as a float network and a quantized one see it: float32 numbers, and their codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.bounds.input_relation import InputRelation
from qertify.errors import InvalidInputError
from qertify.network.network import Network
from qertify.network.tensor import FloatArray, IntegerArray
from qertify.runtimes.base import reads_codes, runtime_of
from qertify.runtimes.float32 import Float32Array, at_position, least_float32, position
from qertify.runtimes.input_quantizer import float32_box
from qertify.runtimes.input_steps import first_reaching, from_json
from qertify.specification.pixels import PixelBox
from qertify.specification.region import IntegerBox

if TYPE_CHECKING:
    from qertify.bounds.difference import Joint

EDGE_STEPS = 20
"""Halvings between an input beyond the edge of its code and the code's middle."""
CODE_LIMIT = 1 << 20
"""Most codes of an input."""
CHUNK = 1 << 20
"""About how many inputs are looked at together."""

Quantizer = Callable[[Float32Array], IntegerArray]
"""float32 (batch, *shape) → codes; non-decreasing in every element."""


@dataclass(frozen=True, slots=True, eq=False)
class PairedInput:
    """The region. Every x in it is float32, and its code is what the quantized network's quantizer makes of it.

    Attributes:
        box: the codes.
        relation: which x go with which codes.
        factor: what one code is, before what normalizes the input is undone.
        low, high: float32 bounds of x; None where a code's x is known ("the grid").
        quantize: the quantizer.
        stand_for: codes → float32; on a grid each code's x.
        telling: inputs, (batch, *shape) each: another quantizer that makes the same codes of them makes those of the region.
        images: the only inputs, where those are 8-bit images.
    """

    box: IntegerBox
    relation: InputRelation
    factor: Fraction
    low: Float32Array | None
    high: Float32Array | None
    quantize: Quantizer
    stand_for: Callable[[IntegerArray], Float32Array]
    telling: Callable[[], Iterable[Float32Array]]
    images: PixelBox | None = None

    @property
    def is_grid(self) -> bool:
        """Whether the codes determine the inputs, as they do where there is only one."""
        return self.low is None or self.high is None or np.array_equal(self.low, self.high)

    @property
    def kind(self) -> str:
        """One of "images", "codes" (a grid) and "real_box"."""
        return "images" if self.images is not None else "codes" if self.low is None else "real_box"

    def ends(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The least and the greatest input, as the kind says it: pixels, codes or float32 numbers."""
        if self.images is not None:
            return self.images.low, self.images.high
        return (self.box.low, self.box.high) if self.low is None or self.high is None else (self.low, self.high)

    def holds(self, x: Float32Array, codes: IntegerArray) -> bool:
        """Whether an input of the input shape, with these codes, is one of the region."""
        if not self.box.contains(codes[None])[0] or not np.array_equal(self.quantize(x[None])[0], codes):
            return False
        if self.images is not None and not self.images.holds(x):
            return False
        return self.low is None or self.high is None or bool(np.all((self.low <= x) & (x <= self.high)))

    def covers(self, other: PairedInput) -> bool:
        """Whether every input of another region, made for the same network in the same way, is one of this one."""
        (low, high), (least, greatest) = self.ends(), other.ends()
        return self.kind == other.kind and bool(np.all((low <= least) & (greatest <= high)))

    def agrees(self, quantize: Quantizer) -> bool:
        """Whether another quantizer makes the same codes of all inputs of the region."""
        return all(np.array_equal(self.quantize(x), quantize(x)) for x in self.telling())

    def nearest(self, x: FloatArray) -> tuple[Float32Array, IntegerArray]:
        """Inputs of a region that is no grid, near points (batch, *shape), and their codes."""
        assert self.low is not None
        assert self.high is not None
        found = self.images.nearest(x) if self.images is not None else np.clip(x.astype(np.float32), self.low, self.high)
        return found, self.quantize(found)

    def points(self, joint: Joint, candidates: FloatArray) -> tuple[Float32Array, IntegerArray]:
        """Inputs of the region near points of a joint program, and their codes; candidates are (batch, program inputs)."""
        flat_low, flat_high = self.box.low.reshape(-1), self.box.high.reshape(-1)
        codes = np.broadcast_to(joint.middle.reshape(-1), (len(candidates), flat_low.size)).copy()
        varies = np.flatnonzero(flat_low < flat_high)
        codes[:, varies] += np.round(candidates[:, : varies.size]).astype(np.int64)
        codes = np.clip(codes, flat_low, flat_high).reshape(-1, *self.box.low.shape)
        if self.is_grid:
            return self.stand_for(codes), codes
        errors = np.zeros((len(candidates), flat_low.size))
        count = joint.error_index.size  # what an enclosure leaves open follows them
        errors[:, joint.error_index] = candidates[:, varies.size : varies.size + count] * 2.0**-joint.input_bits
        x, found = self.nearest(self.relation.factor * codes + self.relation.shift + errors.reshape(codes.shape))
        return (x, found) if self.images is not None else self._back(x, found, codes)

    def _back(self, x: Float32Array, found: IntegerArray, codes: IntegerArray) -> tuple[Float32Array, IntegerArray]:
        """Inputs that have left their codes, as relaxations' do at the ends of errors, brought back just over the edge."""
        outside = found != codes
        if not outside.any():
            return x, found
        inside = np.clip(self.stand_for(codes), self.low, self.high)
        for _ in range(EDGE_STEPS):
            middle = (x + (inside - x) / 2).astype(np.float32)
            beyond = self.quantize(middle) != codes
            x, inside = np.where(outside & beyond, middle, x), np.where(outside & ~beyond, middle, inside)
        x = np.where(outside, inside, x)
        return x, self.quantize(x)


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """What codes are to real numbers: x is about factor · code + shift, element by element; else as `PairedInput`."""

    one: Fraction
    factor: FloatArray
    shift: FloatArray
    quantize: Quantizer
    stand_for: Callable[[IntegerArray], Float32Array]
    low: int
    high: int

    def relation(
        self, box: IntegerBox, inputs: Iterable[Float32Array], low: Float32Array | None = None, high: Float32Array | None = None
    ) -> InputRelation:
        """Of a box, from inputs that have the least and the greatest error of every code; bounds as in `PairedInput`."""
        shape, several = box.low.shape, box.low < box.high
        clamped_low, clamped_high = (
            np.zeros(shape, bool) if low is None else ends == end for ends, end in ((box.low, self.low), (box.high, self.high))
        )
        least, greatest = np.full(shape, np.inf), np.full(shape, -np.inf)
        for x in inputs:
            codes, exact = self.quantize(x), x.astype(np.float64)
            stand_for = self.factor * codes
            error = exact - stand_for - self.shift
            lost = 2.0**-50 * (np.abs(exact) + np.abs(stand_for) + np.abs(self.shift))
            beyond = [c & several & (codes == end) for c, end in ((clamped_low, box.low), (clamped_high, box.high))]
            least = np.minimum(least, np.where(beyond[0], np.inf, error - lost).min(axis=0))
            greatest = np.maximum(greatest, np.where(beyond[1], -np.inf, error + lost).max(axis=0))
        if not np.all(np.isfinite(least) & np.isfinite(greatest)):
            raise InvalidInputError("the model's input codes stand for numbers that are too large to compare them")
        return InputRelation(
            factor=self.factor,
            shift=self.shift,
            error_low=least,
            error_high=greatest,
            low=np.full(shape, -np.inf) if low is None else low.astype(np.float64),
            high=np.full(shape, np.inf) if high is None else high.astype(np.float64),
            clamped_low=clamped_low,
            clamped_high=clamped_high,
        )


def codes_of(network: Network, factor: Fraction | None) -> Codes:
    """What a network's input codes are to real numbers.

    Args:
        factor: as in `grid`.

    Raises:
        InvalidInputError: one scale a channel, no positive factor, or one for a network that quantizes itself.
    """
    if not network.input_quantization.per_tensor:
        raise InvalidInputError("equivalence needs one input scale; this network has one a channel")
    own, shape = Fraction(float(network.input_quantization.scale[0])), network.input_shape
    one = own if factor is None else factor
    if one <= 0:
        raise InvalidInputError(f"input scale {one} must be positive")
    zero = int(network.input_quantization.zero_point[0])
    each, shift = np.full(shape, float(one)), np.full(shape, -zero * float(one))
    low, high = network.input.low, network.input.high
    if reads_codes(network):
        quantize, stand_for = _application(zero, low, high, one)
        return Codes(one, each, shift, quantize, stand_for, low, high)
    if one != own:
        reason = "a scale of the input only has a meaning for models that read codes; this one reads real numbers"
        raise InvalidInputError(reason)
    for step in reversed(from_json(network.metadata.get("input_steps", "[]"))):
        constant = step.constant.astype(np.float64)
        match step.op:
            case "add":
                shift = shift - constant
            case "subtract":
                shift = shift + constant
            case "multiply":
                each, shift = each / constant, shift / constant
            case _:
                each, shift = each * constant, shift * constant
    runtime = runtime_of(network)
    return Codes(one, each, shift, runtime.quantize_input, runtime.real_input, low, high)


@lru_cache(maxsize=64)
def _application(zero: int, low: int, high: int, factor: Fraction) -> tuple[Quantizer, Callable[[IntegerArray], Float32Array]]:
    """What an application does where a model reads codes: x / factor + zero point to the nearest, ties up, clamped; and back.

    Raises:
        InvalidInputError: two codes stand for one float32 number, or one for none; or too many codes.
    """
    if high - low > CODE_LIMIT:
        raise InvalidInputError(f"input codes {low} … {high} are too many to compare two networks on them")
    numbers = [(code - zero) * factor for code in range(low, high + 1)]
    first = np.array([least_float32(number - factor / 2) for number in numbers[1:]], dtype=np.float32)
    with np.errstate(over="ignore", under="ignore"):
        stand_for = np.array(list(map(float, numbers))).astype(np.float32)
    found = np.searchsorted(first, stand_for, side="right") + low
    if not np.all(np.isfinite(stand_for)) or not np.array_equal(found, np.arange(low, high + 1)):
        raise InvalidInputError(f"with an input scale of {float(factor):.4g}, codes are not float32 numbers of their own")
    return lambda x: np.searchsorted(first, x, side="right") + low, lambda codes: stand_for[codes - low]


def _by_code(box: IntegerBox) -> Iterator[IntegerArray]:
    """The codes of a box from the least up, (batch, *shape) each; the greatest stands where there is none left."""
    reaches = np.arange(int((box.high - box.low).max(initial=0)) + 1)
    for some in np.array_split(reaches, min(reaches.size, -(-reaches.size * box.low.size // CHUNK))):
        yield np.minimum(box.low + some.reshape(-1, *(1,) * box.low.ndim), box.high)


def grid(network: Network, box: IntegerBox, factor: Fraction | None = None) -> PairedInput:
    """The inputs that codes stand for: x = factor · (code − zero point), rounded to float32.

    Where the model normalizes its input, x is a number of which it makes just that, as nearly as float32 allows.

    Args:
        factor: the network's input scale unless the float network is to see another one, for example 1/255; only for
            networks that read codes.

    Raises:
        InvalidInputError: codes that the network does not read, or as `codes_of`.
    """
    codes = codes_of(network, factor)
    whole = np.full(network.input_shape, codes.low), np.full(network.input_shape, codes.high)
    if box.low.shape != network.input_shape or not IntegerBox(*whole).contains(np.stack([box.low, box.high])).all():
        raise InvalidInputError(f"the network reads codes {codes.low} … {codes.high} of shape {network.input_shape}")

    def telling() -> Iterator[Float32Array]:
        return map(codes.stand_for, _by_code(box))

    return PairedInput(box, codes.relation(box, telling()), codes.one, None, None, codes.quantize, codes.stand_for, telling)


def interval(network: Network, low: ArrayLike, high: ArrayLike, factor: Fraction | None = None) -> PairedInput:
    """All float32 x in low … high (exact rationals or floats, of the input's shape), and the codes the runtime makes of them.

    Args:
        factor: as in `grid`.

    Raises:
        InvalidInputError: an empty region, a bound that is no number, or a factor for a network that quantizes itself.
    """
    codes = codes_of(network, factor)
    least, greatest = float32_box(network.input_shape, low, high)
    ends = codes.quantize(np.stack([least, greatest]))
    box = IntegerBox(ends[0], ends[1])

    def telling() -> Iterator[Float32Array]:
        """The ends of all codes' intervals."""
        yield np.stack([least, greatest])
        for some in _by_code(box):
            first = first_reaching(codes.quantize, some, least, greatest)
            yield first
            yield np.maximum(at_position(position(first) - 1), least)

    def only(found: IntegerArray) -> Float32Array:
        return np.broadcast_to(least, found.shape)

    stand_for = only if np.array_equal(least, greatest) else codes.stand_for
    relation = codes.relation(box, telling(), least, greatest)
    return PairedInput(box, relation, codes.one, least, greatest, codes.quantize, stand_for, telling)


def images(network: Network, ball: PixelBox) -> PairedInput:
    """All 8-bit images of a box, for a network that reads real numbers; a grid where each of its codes is one image's.

    Args:
        ball: whose quantizer is that of the network's runtime.
    """
    codes, box, (low, high) = codes_of(network, None), ball.image(), ball.ends()

    def telling() -> Iterator[Float32Array]:
        return map(ball.preprocessing.apply, _by_code(IntegerBox(ball.low, ball.high)))

    if not np.array_equal(box.high - box.low, ball.high - ball.low) or not ball.gapless():
        relation = codes.relation(box, telling(), low, high)
        return PairedInput(box, relation, codes.one, low, high, codes.quantize, codes.stand_for, telling, ball)
    step = np.broadcast_to(1 / (255 * ball.preprocessing.std.astype(np.float64)), box.low.shape)
    steps = replace(codes, factor=step, shift=low - step * box.low)
    relation = steps.relation(box, telling())
    return PairedInput(
        box, relation, codes.one, None, None, codes.quantize,
        lambda found: ball.preprocessing.apply(ball.low + found - box.low), telling, ball,
    )  # fmt: skip
