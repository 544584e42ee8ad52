"""``qertify radius``: the largest radius at which an input keeps its class."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from fractions import Fraction
from typing import Annotated, Any

import typer

from qertify.cli.certificate import CertificateOption, Notary
from qertify.cli.common import say, status_line, within
from qertify.cli.flags import (
    EncodingOption,
    EngineFlags,
    InputOption,
    JsonOption,
    LabelFlags,
    ModelArgument,
    ModelFlags,
    PixelFlags,
    PlaceFlags,
    RegionFlags,
    VerboseOption,
    with_flags,
)
from qertify.cli.render import render_radius
from qertify.cli.supervisor import Channel
from qertify.cli.workers import sharing
from qertify.errors import InvalidInputError
from qertify.queries.radius_result import RadiusResult, RealRadiusResult
from qertify.result import Reason
from qertify.specification.units import Unit, parse_rational, radius_in_levels


@with_flags
def radius_command(
    context: typer.Context,
    *,
    model: ModelArgument,
    input_: InputOption,
    max_radius: Annotated[
        str | None, typer.Option(metavar="R", help="Look no further.", show_default="the whole valid range")
    ] = None,
    radius_unit: Annotated[Unit, typer.Option(help="What a radius of one means.")] = Unit.LEVELS,
    labels: LabelFlags,
    pixels: PixelFlags,
    flags: ModelFlags,
    engines: EngineFlags,
    encoding: EncodingOption = "compact",
    certificate: CertificateOption = None,
    workers: PlaceFlags,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Find the largest radius at which X keeps its class. Exit status: 0 exact, 1 misclassified, 3 interval."""
    channel: Channel = context.obj
    options = engines.options(encoding)
    largest = _largest(max_radius, radius_unit)
    if radius_unit is not Unit.LEVELS and certificate is not None:
        raise InvalidInputError("certificates of a radius speak of levels; certify one radius with 'verify'")
    notary = Notary(certificate)
    place = workers.place()
    channel.draft(_nothing_known(radius_unit, labels, max_radius, options.method.value), as_json)
    channel.limit(options.timeout, options.memory)

    from qertify.cli.question import ask
    from qertify.queries.radius import maximum_radius
    from qertify.queries.real_radius import maximum_real_radius

    imports = flags.options()
    asked_unit = Unit.PIXEL if radius_unit is Unit.PIXEL else Unit.LEVELS
    question = ask(model, imports, input_, RegionFlags("0", asked_unit), labels, pixels, echo=False)
    point = question.query
    if radius_unit is Unit.PIXEL and question.pixels is None:
        radius_in_levels(point.network, Fraction(0), radius_unit)
    notary.require_covered(point.network)
    options = within(notary.options(options), channel.limit(options.timeout, options.memory))

    def keep(known: RadiusResult | RealRadiusResult) -> None:
        channel.draft(known.to_json(), as_json)

    with (
        sharing(place, model, imports, options, point.network) as executor,
        nullcontext(say) if verbose else status_line("searching …") as show,
    ):
        asked: dict[str, Any] = {
            "label": point.property.label,
            "target": labels.target,
            "ties": labels.ties,
            "options": options,
            "progress": show,
            "improved": keep,
            "executor": executor,
            "run": (question if question.pixels is None else question.around(Fraction(255))).run(),
        }
        if radius_unit is Unit.REAL:
            result = question.confirm(maximum_real_radius(point.network, question.given, max_radius=largest, **asked))
        else:
            result = maximum_radius(
                point.network,
                point.centre,
                max_radius=None if largest is None else int(largest),
                decided=notary.keep,
                images=None if question.pixels is None else question.pixels.around,
                **asked,
            )
            result = question.confirm(result)
            notary.write_radius(point, result, imports)
    answer: dict[str, Any] = result.to_json()
    status = 0 if result.exact else 3 if result.verified_radius is not None or result.reason is not None else 1
    return channel.finish(render_radius(answer, as_json, sys.stdout.isatty()), status)


def _nothing_known(unit: Unit, labels: LabelFlags, largest: str | None, method: str) -> dict[str, Any]:
    """The answer of a command that is stopped before it has read its model."""
    asked: dict[str, Any] = {"reason": Reason.TIMEOUT, "target": labels.target, "ties": labels.ties.value}
    stopped = (
        RealRadiusResult("", "", -1, -1, None, None, None, None, False, 0.0, method, max_radius=largest, **asked)
        if unit is Unit.REAL
        else RadiusResult("", "", -1, -1, None, None, False, 0.0, method, radius_unit=unit.value, **asked)
    )
    unknown = {"model_digest": None, "runtime_profile": None, "label": labels.label, "predicted": None}
    return {**stopped.to_json(), **unknown}


def _largest(text: str | None, unit: Unit) -> Fraction | None:
    if text is None:
        return None
    value = parse_rational(text, "maximum radius")
    if value < 0:
        raise InvalidInputError(f"the maximum radius {text} is negative")
    if unit is not Unit.REAL and value.denominator != 1:
        raise InvalidInputError(f"the maximum radius {text} is no whole number of levels; --radius-unit real takes fractions")
    return value
