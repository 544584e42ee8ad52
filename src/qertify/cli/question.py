"""The question that the flags of ``verify`` ask, in integers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from qertify.cli.common import say
from qertify.cli.render import amount
from qertify.errors import InvalidInputError
from qertify.importers.registry import ImportOptions, load_model
from qertify.inputs import read_box_bound, read_labels, read_row
from qertify.queries.robustness import RobustnessQuery, describe_region, local_robustness
from qertify.specification.property import Ties
from qertify.specification.region import IntegerBox
from qertify.specification.units import Unit, parse_rational, radius_in_levels


@dataclass(frozen=True, slots=True)
class RegionFlags:
    """The region as asked for: a ball, or the box between two files, either cut to a range of codes."""

    radius: str | None
    unit: Unit
    lower: str | None
    upper: str | None
    limits: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class LabelFlags:
    """The class that must win, and against whom."""

    label: int | None
    labels: str | None
    target: int | None
    ties: Ties


def ask(model: Path, options: ImportOptions, input_: str, region: RegionFlags, labels: LabelFlags) -> RobustnessQuery:
    """The query; says on stderr how input and region were understood.

    Raises:
        QertifyError: whatever is wrong with the flags, the model, the input, the region, the label or the target.
    """
    radius, limits = _radius(region), _limits(region)
    if labels.label is not None and labels.labels is not None:
        raise InvalidInputError("give --label or --labels, not both")
    network = load_model(model, options)
    rows = read_row(input_, network)
    if rows.saturated:
        say(f"input: {rows.saturated} pixel(s) saturated at {network.input.high}, the largest input code")
    label = labels.label if labels.labels is None else int(read_labels(labels.labels, rows.index)[0])
    levels = Fraction(0) if radius is None else radius_in_levels(network, radius, region.unit)
    query = local_robustness(network, rows.codes[0], levels, label=label, target=labels.target, ties=labels.ties)
    if radius is not None:
        query = replace(query, radius=radius, radius_unit=region.unit.value)
    elif region.lower is not None and region.upper is not None:
        box = IntegerBox(read_box_bound(region.lower, network), read_box_bound(region.upper, network))
        distance = int(np.maximum(query.centre - box.low, box.high - query.centre).max())
        query = replace(query, region=box, radius=Fraction(distance))
    if limits is not None:
        box = query.region
        query = replace(query, region=IntegerBox(np.maximum(box.low, limits[0]), np.minimum(box.high, limits[1])))
    _echo(query)
    return query


def _radius(region: RegionFlags) -> Fraction | None:
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


def _limits(region: RegionFlags) -> tuple[int, int] | None:
    if region.limits is None:
        return None
    first, last = (parse_rational(text, "input range") for text in region.limits)
    low, high = math.ceil(first), math.floor(last)
    if low > high:
        raise InvalidInputError(f"the region is empty: the input range {region.limits[0]} … {region.limits[1]} holds no code")
    far = 1 << 62  # beyond every code, within 64 bits
    return max(-far, min(low, far)), max(-far, min(high, far))


def _echo(query: RobustnessQuery) -> None:
    region = describe_region(query)
    reach = region["largest_distance"]
    same = query.radius_unit == "levels" and query.radius == reach
    say(
        f"region: radius {amount(str(query.radius), query.radius_unit)}"
        f"{'' if same else f', which reaches {reach} level(s) from the input'}; "
        f"{region['free_inputs']} of {region['inputs']} inputs vary, codes {region['low']} … {region['high']}"
    )
