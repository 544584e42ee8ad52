"""The maximum radius of a ball of real inputs: exact, because the balls have finitely many images under the input quantizer.

A ball of radius r is robust if its box of codes is. The boxes grow at known radii only (`qertify.runtimes.rings`), so the
supremum of the robust radii is one of them: the distance of the nearest input that violates the property.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from qertify.errors import InvalidInputError
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.options import Method, Options
from qertify.parallel.executor import Executor
from qertify.queries.radius_result import RealRadiusResult
from qertify.queries.radius_search import RadiusSearch
from qertify.queries.robustness import RobustnessQuery, local_robustness, verify
from qertify.result import Counterexample, Result, Verdict
from qertify.runtimes.base import RUNTIMES, Runtime, runtime_of
from qertify.runtimes.rings import Rings, code_rings, real_rings
from qertify.specification.judge import Run
from qertify.specification.property import Ties
from qertify.specification.region import IntegerBox, exact_array, linf_ball
from qertify.specification.units import Unit, radius_in_levels


@dataclass(frozen=True, slots=True, eq=False)
class _Centre:
    """The input, in codes and as the model reads it, and the runtime if it is one that quantizes."""

    network: Network
    codes: IntegerArray
    real: np.ndarray | None
    runtime: Runtime | None
    unit: Fraction

    def image(self, radius: Fraction) -> IntegerBox:
        """The codes of the ball."""
        if self.runtime is None or self.real is None:
            levels = radius_in_levels(self.network, radius, Unit.REAL) if self.runtime is None else radius
            return linf_ball(self.codes, int(levels.__floor__()), self.network.input.low, self.network.input.high)
        return self.runtime.integer_image(*self.ball(radius))

    def ball(self, radius: Fraction) -> tuple[np.ndarray, np.ndarray]:
        """Its bounds, exact rationals of the input's shape."""
        assert self.real is not None
        return exact_array(self.real) - radius, exact_array(self.real) + radius

    def rings(self, radius: Fraction) -> Rings:
        """All boxes of codes up to this radius."""
        box = self.image(radius)
        if self.runtime is None or self.real is None:
            return code_rings(self.codes, box, self.unit)
        reach = self.runtime.real_input(np.stack([box.low, box.high])).astype(np.float32)
        return real_rings(self.runtime.quantize_input, self.real.astype(np.float32), reach, box)


def _centre(network: Network, real: ArrayLike) -> _Centre:
    given = np.asarray(real).reshape(network.input_shape)
    if network.runtime_profile not in RUNTIMES:
        unit = 1 / radius_in_levels(network, Fraction(1), Unit.REAL)
        return _Centre(network, given.astype(np.int64), None, None, unit)
    runtime = runtime_of(network)
    codes = runtime.quantize_input(given[None])[0]
    if runtime.real_input(codes).dtype.kind in "iu":
        return _Centre(network, codes, None, runtime, Fraction(1))
    return _Centre(network, codes, given.astype(np.float32), runtime, Fraction(1))


def maximum_real_radius(
    network: Network,
    centre: ArrayLike,
    *,
    label: int | None = None,
    target: int | None = None,
    ties: Ties = Ties.FIRST,
    max_radius: Fraction | None = None,
    options: Options | None = None,
    progress: Callable[[str], None] | None = None,
    improved: Callable[[RealRadiusResult], None] | None = None,
    executor: Executor | None = None,
    run: Run | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> RealRadiusResult:
    """The least upper bound of the radii, in the model's input domain, at which the label wins everywhere.

    A ball holds the numbers that the model can be given: float32 ones, or codes where it reads codes, which count as numbers
    then. For other networks an input is scale · (code − zero point).

    Args:
        network, label, target, ties: as `qertify.queries.robustness.local_robustness`.
        centre: as the model reads it, of the input's shape; codes where there is no runtime.
        max_radius: look no further; None for all inputs.
        options, progress, improved, executor, run, stopped: as `qertify.queries.radius.maximum_radius`.

    Raises:
        InvalidInputError: as `local_robustness`, a negative ``max_radius``, or too many codes within reach.
    """
    options, say = options or Options(), progress or (lambda _: None)
    start = time.monotonic()
    if max_radius is not None and max_radius < 0:
        raise InvalidInputError(f"the maximum radius {max_radius} is negative")
    middle = _centre(network, centre)
    point = replace(
        local_robustness(network, middle.codes, 0, label=label, target=target, ties=ties), radius_unit=Unit.REAL.value
    )

    def ask(radius: Fraction, box: IntegerBox, limited: Options) -> Result:
        query: RobustnessQuery = replace(point, region=box, radius=radius)
        return verify(query, limited, lambda line: say(f"radius {float(radius):.6g}: {line}"), None, executor, run, stopped)

    first = ask(Fraction(0), middle.image(Fraction(0)), replace(options, method=Method.BOUNDS))
    reach, known, asked = _reach(middle, max_radius, ask, options, first)
    rings = middle.rings(reach)
    search = RadiusSearch(
        lambda number, limited: ask(rings.radius(number), rings.box(number), limited),
        lambda found: rings.number(np.array(found.levels, dtype=np.int64).reshape(network.input_shape)),
        options
        if options.timeout is None
        else replace(options, timeout=max(1e-3, options.timeout - (time.monotonic() - start))),
        rings.last,
    )
    search.refute(known)
    robust = first.verdict is Verdict.ROBUST

    def answer() -> RealRadiusResult:
        whole = search.found is None and search.verified == rings.last
        below = None if whole or not robust else rings.radius(search.verified + 1)
        at = None if search.found is None else rings.radius(search.refuted)
        end = rings.radius(rings.last) if max_radius is None else max_radius
        return RealRadiusResult(
            model_digest=network.digest,
            runtime_profile=network.runtime_profile,
            label=first.label,
            predicted=-1 if first.predicted is None else first.predicted,
            verified_radius=None if not robust else decimal(end, up=False) if below is None else decimal_below(below),
            refuted_radius=None if at is None else decimal(at, up=True),
            verified_below=None if below is None else str(below),
            refuted_at=None if at is None else str(at),
            exact=robust and search.refuted - search.verified == 1,
            seconds=time.monotonic() - start,
            method=options.method.value,
            reason=search.reason if robust else first.reason,
            target=target,
            ties=ties.value,
            max_radius=None if max_radius is None else str(max_radius),
            nodes=search.nodes + first.nodes,
            questions=search.questions + asked,
            counterexample=search.found,
            evidence=search.evidence if robust else None,
        )

    if robust:
        search.improved = lambda: improved(answer()) if improved is not None else None
        search.attack_downwards()
        search.close()
    return answer()


def _reach(
    middle: _Centre,
    max_radius: Fraction | None,
    ask: Callable[[Fraction, IntegerBox, Options], Result],
    options: Options,
    first: Result,
) -> tuple[Fraction, Counterexample | None, int]:
    """A radius that is worth looking at in full, what is known to lie within it, and how many questions that took.

    Radii double from half a level until an attack succeeds.
    """
    network = middle.network
    radius, asked = Fraction(float(np.max(network.input_quantization.scale))) / 2, 1
    while True:
        radius = radius if max_radius is None else min(radius, max_radius)
        box = middle.image(radius)
        if first.verdict is not Verdict.ROBUST:
            return radius, None, asked
        result = ask(radius, box, replace(options, method=Method.ATTACK))
        asked += 1
        whole = bool(np.all(box.low == network.input.low) and np.all(box.high == network.input.high))
        if result.counterexample is not None or whole or radius == max_radius:
            return radius, result.counterexample, asked
        radius *= 2


def decimal(value: Fraction, *, up: bool) -> float:
    """The nearest float on one side of a non-negative number, also as it is printed."""
    result = float(value)
    while (Fraction(repr(result)) < value) if up else (Fraction(repr(result)) > value):
        result = float(np.nextafter(result, np.inf if up else 0.0))
    return result


def decimal_below(value: Fraction) -> float:
    """The greatest float below a positive number, also as it is printed."""
    result = decimal(value, up=False)
    while Fraction(repr(result)) >= value:
        result = float(np.nextafter(result, 0.0))
    return result
