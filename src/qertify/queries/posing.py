"""Questions about an input as the model reads it, in integers, and their counterexamples' way back to the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qertify.errors import InvalidInputError, ReplayError
from qertify.inputs import Rows, read_row
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.queries.radius_result import RadiusResult, RealRadiusResult
from qertify.queries.robustness import RobustnessQuery, local_robustness
from qertify.result import Reason, Result, Verdict
from qertify.runtimes.base import RUNTIMES, runner, runtime_of
from qertify.specification.judge import Run
from qertify.specification.pixels import PixelBox, Preprocessing
from qertify.specification.property import Ties
from qertify.specification.region import IntegerBox, exact_array, linf_ball
from qertify.specification.units import Unit, parse_rational, radius_in_levels

ExactArray = NDArray[Any]
"""An array of ``Fraction``."""
Answer = TypeVar("Answer", bound=Result | RadiusResult | RealRadiusResult)


class Region(Protocol):
    """A ball, or the box between two files, either cut to a range of codes; as they are spelt."""

    @property
    def radius(self) -> str | None: ...
    @property
    def radius_unit(self) -> Unit | None: ...
    @property
    def lower(self) -> str | None: ...
    @property
    def upper(self) -> str | None: ...
    @property
    def input_range(self) -> tuple[str, str] | None: ...


@dataclass(frozen=True, slots=True)
class Ball:
    """A region that is a ball, as `Region`."""

    radius: str | None
    radius_unit: Unit | None = None
    input_range: tuple[str, str] | None = None
    lower: None = None
    upper: None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A query, and the way back to the model it came from.

    Attributes:
        model: the file.
        query: in integers.
        real: bounds of the region in the model's input domain, exact rationals of the input's shape, where it is real.
        given: the centre as the model reads it, of the input's shape; codes where there is no other domain.
        pixels: the region as images, where the radius is in pixels and the model reads real inputs.
        note: gets what there is to say about a counterexample that does not count.
    """

    model: Path
    query: RobustnessQuery
    real: tuple[ExactArray, ExactArray] | None = None
    given: np.ndarray = field(default_factory=lambda: np.empty(0))
    pixels: PixelBox | None = None
    note: Callable[[str], None] = lambda _: None

    def around(self, radius: Fraction) -> Question:
        """The same with a ball of that radius as its real region, in pixels or in the model's input domain, if it has any."""
        if self.pixels is not None:
            ball = self.pixels.around(math.floor(radius))
            low, high = map(exact_array, ball.ends())
            return replace(self, pixels=ball, real=(low, high))
        if self.query.network.runtime_profile not in RUNTIMES:
            return self
        centre = exact_array(self.given)
        return replace(self, real=(centre - radius, centre + radius))

    def run(self) -> Run | None:
        """The real runtime, which counterexamples of an enclosure need."""
        return runner(self.query.network, self.model, *(self.real or ()))

    def confirm(self, result: Answer) -> Answer:
        """Replay a counterexample on the runtime itself, if the network was imported for one.

        Those of a radius search lie in the ball that they refute.

        Raises:
            ReplayError: the runtime disagrees with the reference evaluator.
        """
        match result:
            case RealRadiusResult(refuted_at=str(at)):
                return self.around(Fraction(at))._confirmed(result)
            case RadiusResult(refuted_radius=int(at)) if self.pixels is not None:
                return self.around(Fraction(at))._confirmed(result)
            case _:
                return self._confirmed(result)

    def _confirmed(self, result: Answer) -> Answer:
        network = self.query.network
        if result.counterexample is None or network.runtime_profile not in RUNTIMES:
            return result
        runtime = runtime_of(network)
        codes = np.array(result.counterexample.levels, dtype=np.int64).reshape(network.input_shape)
        if self.pixels is None:
            real = runtime.real_input(codes, *(self.real or ()))
        else:
            real = self.pixels.real_input(codes)
            if not np.array_equal(runtime.quantize_input(real[None])[0], codes):
                return self._without_image(result)
        found = replace(result.counterexample, input=tuple(real.reshape(-1).tolist()))
        if self.model.suffix == ".qnet":  # the integers only: there is no file for the runtime
            return replace(result, counterexample=found)
        replay = runtime.replay(self.model, real[None])
        if not bool(replay.agrees[0]) or not np.array_equal(replay.codes[0], codes):
            raise ReplayError(f"a counterexample does not replay on {replay.runtime}; please report this defect")
        return replace(result, counterexample=replace(found, replayed_on=replay.runtime))

    def _without_image(self, result: Answer) -> Answer:
        """A violation between the images: no verdict about them."""
        self.note("the violation that was found has input codes that no image has; a real radius would cover it, too")
        assert isinstance(result, Result)  # radii in pixels are searched for only where every code has an image
        return replace(result, verdict=Verdict.UNKNOWN, reason=Reason.UNSUPPORTED, evidence=None, counterexample=None)


def pose(
    model: Path,
    network: Network,
    rows: Rows,
    position: int,
    region: Region,
    prepare: Preprocessing | None = None,
    *,
    label: int | None = None,
    target: int | None = None,
    ties: Ties = Ties.FIRST,
) -> Question:
    """The query at one of the rows; ``prepare`` is how images became real inputs, if they did.

    Args:
        label, target, ties: as `qertify.queries.robustness.local_robustness`.

    Raises:
        InvalidInputError: whatever is wrong with the region, the label or the target.
    """
    radius = radius_of(region)
    centre = rows.codes[position]
    point = local_robustness(network, centre, 0, label=label, target=target, ties=ties)
    unit = region.radius_unit or (Unit.LEVELS if rows.real is None else Unit.REAL)
    if rows.real is not None and region.radius_unit is None and region.radius is not None and region.radius.strip().isdecimal():
        raise InvalidInputError(f"radius {region.radius}: this model reads real inputs, so name the unit with --radius-unit")
    given = centre if rows.real is None else rows.real[position]
    if prepare is not None and rows.pixels is not None and unit is Unit.PIXEL:
        return _pixel_question(model, point, rows.pixels[position], radius, region, prepare)
    if rows.real is not None and unit is not Unit.LEVELS:
        return _real_question(model, point, given, radius, region, prepare)
    return Question(model, _level_query(point, radius, unit, region), given=given)


def _level_query(point: RobustnessQuery, radius: Fraction | None, unit: Unit, region: Region) -> RobustnessQuery:
    """A region of codes."""
    network = point.network
    if radius is not None:
        levels = math.floor(radius_in_levels(network, radius, unit))
        box = linf_ball(point.centre, levels, network.input.low, network.input.high)
    else:
        box = IntegerBox(*(read_row(str(text), network).codes[0] for text in (region.lower, region.upper)))
        radius = Fraction(int(np.maximum(point.centre - box.low, box.high - point.centre).max()))
    return replace(point, region=cut(box, region), radius=radius, radius_unit=unit.value)


def cut(box: IntegerBox, region: Region) -> IntegerBox:
    """Codes within the region's limits, if it has any.

    Raises:
        InvalidInputError: none are left.
    """
    if (limits := limits_of(region)) is None:
        return box
    low, high = math.ceil(limits[0]), math.floor(limits[1])
    if low > high:
        raise InvalidInputError(f"the region is empty: no code lies in the input range {low} … {high}")
    far = 1 << 62  # beyond every code, within 64 bits
    low, high = max(-far, min(low, far)), max(-far, min(high, far))
    return IntegerBox(np.maximum(box.low, low), np.minimum(box.high, high))


def _pixel_question(
    model: Path,
    point: RobustnessQuery,
    centre: IntegerArray,
    radius: Fraction | None,
    region: Region,
    prepare: Preprocessing,
) -> Question:
    """A ball of images."""
    if radius is None or region.input_range is not None:
        raise InvalidInputError("a region in pixels is given by --radius alone, without a box or --input-range")
    runtime = runtime_of(point.network)
    ball = PixelBox(centre, centre, centre, prepare, runtime.quantize_input).around(math.floor(radius))
    query = replace(point, region=ball.image(), radius=radius, radius_unit=Unit.PIXEL.value)
    low, high = map(exact_array, ball.ends())
    return Question(model, query, (low, high), prepare.apply(centre[None])[0], ball)


def _real_question(
    model: Path,
    point: RobustnessQuery,
    centre: np.ndarray,
    radius: Fraction | None,
    region: Region,
    prepare: Preprocessing | None,
) -> Question:
    """A region of real inputs, and its exact image under the runtime's quantizer."""
    network = point.network
    exact = exact_array(centre)
    if radius is not None:
        low, high = exact - radius, exact + radius
    else:
        low, high = (exact_array(_real_row(str(text), network, prepare)) for text in (region.lower, region.upper))
        radius = max(np.maximum(exact - low, high - exact).reshape(-1).tolist())
    if (limits := limits_of(region)) is not None:
        first, last = (np.array(limit, dtype=object) for limit in limits)
        low, high = np.maximum(low, first), np.minimum(high, last)
    if np.any(low > high):
        raise InvalidInputError("the region is empty: its lower bound is above its upper bound")
    if np.any(exact < low) or np.any(exact > high):
        raise InvalidInputError("the region does not contain the input")
    box = runtime_of(network).integer_image(low, high)
    return Question(model, replace(point, region=box, radius=radius, radius_unit=Unit.REAL.value), (low, high), centre)


def _real_row(text: str, network: Network, prepare: Preprocessing | None) -> np.ndarray:
    rows = read_row(text, network, prepare)
    assert rows.real is not None
    return rows.real[0]


def radius_of(region: Region) -> Fraction | None:
    """Of a ball; None for a box.

    Raises:
        InvalidInputError: neither or both are given, or no number ≥ 0.
    """
    if (region.lower is None) != (region.upper is None):
        raise InvalidInputError("--lower and --upper go together")
    if (region.radius is None) == (region.lower is None):
        raise InvalidInputError("give a region: either --radius, or --lower and --upper")
    if region.radius is None:
        return None
    radius = parse_rational(region.radius, "radius")
    if radius < 0:
        raise InvalidInputError(f"radius {region.radius} is negative")
    return radius


def limits_of(region: Region) -> tuple[Fraction, Fraction] | None:
    """What a region is cut to.

    Raises:
        InvalidInputError: no numbers, or nothing between them.
    """
    if region.input_range is None:
        return None
    low, high = (parse_rational(text, "input range") for text in region.input_range)
    if low > high:
        raise InvalidInputError(f"the region is empty: the input range is {region.input_range[0]} … {region.input_range[1]}")
    return low, high
