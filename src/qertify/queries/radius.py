"""The maximum robustness radius: the largest r at which every input within r levels of the centre keeps its class.

The set of robust radii is an interval from 0, so each answer bounds the radius for good: a proof at r from below, a
counterexample at distance d from above. Radii double until one is refuted, cheap ones first; then the gap is bisected.
With method ILP, one integer program minimises the radius in between, and only what it leaves open is bisected.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np

from qertify.errors import InvalidInputError
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.options import Method, Options
from qertify.parallel.executor import Executor
from qertify.queries.nearest import NearestResult, nearest_counterexample
from qertify.queries.radius_result import RadiusResult
from qertify.queries.radius_search import RadiusSearch
from qertify.queries.robustness import RobustnessQuery, local_robustness, verify
from qertify.result import Counterexample, Result, Verdict
from qertify.search.question import Decision
from qertify.specification.judge import Run
from qertify.specification.pixels import PixelBox
from qertify.specification.property import Ties
from qertify.specification.units import Unit


def maximum_radius(
    network: Network,
    centre: IntegerArray,
    *,
    label: int | None = None,
    target: int | None = None,
    ties: Ties = Ties.FIRST,
    max_radius: int | None = None,
    options: Options | None = None,
    progress: Callable[[str], None] | None = None,
    improved: Callable[[RadiusResult], None] | None = None,
    decided: Callable[[int, Decision], None] | None = None,
    executor: Executor | None = None,
    run: Run | None = None,
    stopped: Callable[[], bool] = lambda: False,
    images: Callable[[int], PixelBox] | None = None,
) -> RadiusResult:
    """The largest radius, in levels of the quantized input or in pixel steps, at which the label wins everywhere.

    Args:
        network, centre, label, target, ties: as `qertify.queries.robustness.local_robustness`.
        max_radius: look no further; None for the whole valid range.
        options: engines and limits; ``timeout`` is for the whole search, which then ends with an interval.
        progress: gets one line a stage.
        improved: gets the interval known so far after every question.
        decided: gets each radius that the engines were asked about, and what they decided.
        executor, run, stopped: as `qertify.queries.robustness.verify`.
        images: radius → the images within it, in pixel steps; None for a radius in levels.

    Returns:
        verified and refuted radius; together they are the exact answer or an interval around it.

    Raises:
        InvalidInputError: as `local_robustness`, a negative ``max_radius``, or pixel steps that skip input codes.
    """
    options = options or Options()
    say = progress or (lambda _: None)
    start = time.monotonic()
    whole = network.input.high - network.input.low if images is None else 255

    def ball(radius: int) -> RobustnessQuery:
        if images is None:
            return local_robustness(network, centre, radius, label=label, target=target, ties=ties)
        point = local_robustness(network, centre, 0, label=label, target=target, ties=ties)
        return replace(point, region=images(radius).image(), radius=Fraction(radius), radius_unit=Unit.PIXEL.value)

    def distance(found: Counterexample) -> int:
        return found.distance if images is None else images(whole).distance(np.reshape(found.levels, network.input_shape))

    def ask(radius: int, limited: Options) -> Result:
        query = ball(radius)
        keep = None if decided is None else partial(decided, radius)
        return verify(query, limited, lambda line: say(f"radius {radius}: {line}"), keep, executor, run, stopped)

    if max_radius is not None and max_radius < 0:
        raise InvalidInputError(f"the maximum radius {max_radius} is negative")
    if images is not None and not images(whole).gapless():
        raise InvalidInputError("pixel steps skip input codes of this model, so only a real radius can be searched for")
    search = RadiusSearch(ask, distance, options, whole if max_radius is None else min(whole, max_radius))
    first = search.decide(0, Method.BOUNDS, None)
    robust = first.verdict is Verdict.ROBUST

    def answer() -> RadiusResult:
        return RadiusResult(
            model_digest=network.digest,
            runtime_profile=network.runtime_profile,
            label=first.label,
            predicted=-1 if first.predicted is None else first.predicted,
            verified_radius=search.verified if robust else None,
            refuted_radius=None if search.found is None else search.refuted,
            exact=robust and search.refuted - search.verified == 1,
            seconds=time.monotonic() - start,
            method=options.method.value,
            reason=search.reason if robust else first.reason,
            target=target,
            ties=ties.value,
            max_radius=max_radius,
            nodes=search.nodes,
            questions=search.questions,
            counterexample=search.found,
            evidence=search.evidence if robust else None,
            radius_unit=(Unit.LEVELS if images is None else Unit.PIXEL).value,
        )

    def nearest(least: int, greatest: int, limited: Options) -> NearestResult | None:
        query = local_robustness(network, centre, greatest, label=label, target=target, ties=ties)
        return nearest_counterexample(query, least, limited, say, run)

    if robust:
        search.improved = lambda: improved(answer()) if improved is not None else None
        search.gallop()
        search.attack_downwards()
        if (
            options.method is Method.ILP and decided is None and images is None
        ):  # one program decides no radius that could be handed on
            search.optimise(nearest)
        search.close()
    return answer()
