"""``qertify radius``: the largest radius at which an input keeps its class."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from fractions import Fraction
from typing import Annotated, Any

import typer

from qertify.cli.certificate import CertificateOption, Notary
from qertify.cli.common import (
    INPUT_HELP,
    BitsOption,
    EncodingOption,
    FloatIslandsOption,
    InputBitsOption,
    InputShapeOption,
    JsonOption,
    ModelArgument,
    RuntimeOption,
    SchemeOption,
    SolverOption,
    TrustCodeOption,
    VerboseOption,
    WeightsOption,
    engine_options,
    import_options,
    say,
    status_line,
    within,
)
from qertify.cli.render import render_radius
from qertify.cli.supervisor import Channel
from qertify.cli.workers import ClusterOption, SchedulerOption, WorkersOption, sharing
from qertify.errors import InvalidInputError
from qertify.options import Method
from qertify.parallel.place import parse_place
from qertify.runtimes.saturation import CpuClass
from qertify.specification.property import Ties
from qertify.specification.units import Unit, parse_rational, radius_in_levels


def radius_command(
    context: typer.Context,
    model: ModelArgument,
    input_: Annotated[str, typer.Option("--input", "-i", metavar="X", help=INPUT_HELP, show_default=False)],
    max_radius: Annotated[
        str | None, typer.Option(metavar="R", help="Look no further.", show_default="the whole valid range")
    ] = None,
    radius_unit: Annotated[Unit, typer.Option(help="What a radius of one means.")] = Unit.LEVELS,
    label: Annotated[int | None, typer.Option(metavar="K", help="The true class; the predicted one if not given.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="FILE", help="Take the label from here, at the input's row.")] = None,
    target: Annotated[int | None, typer.Option(metavar="J", help="Only ask whether class J can overtake the label.")] = None,
    ties: Annotated[Ties, typer.Option(help="Who wins a tie.")] = Ties.FIRST,
    bits: BitsOption = None,
    input_bits: InputBitsOption = None,
    weights: WeightsOption = None,
    scheme: SchemeOption = None,
    input_shape: InputShapeOption = None,
    runtime: RuntimeOption = None,
    trust_code: TrustCodeOption = False,
    allow_float_islands: FloatIslandsOption = False,
    method: Annotated[Method, typer.Option(help="Engines that may answer.")] = Method.AUTO,
    solver: SolverOption = "highs",
    encoding: EncodingOption = "compact",
    device: Annotated[str, typer.Option(help="Where bounds are computed: cpu or cuda.")] = "cpu",
    cpu_class: Annotated[
        CpuClass | None, typer.Option(help="How the deployed CPU multiplies bytes.", show_default="this machine's")
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Hard limit on the wall clock, in seconds.")] = None,
    memory: Annotated[float | None, typer.Option(metavar="GB", help="Hard limit on the memory of all processes.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=2**63 - 1)] = 0,
    accept_solver_claims: Annotated[
        bool, typer.Option("--accept-solver-claims", help="Take a floating-point solver's claim for a proof.")
    ] = False,
    certificate: CertificateOption = None,
    workers: WorkersOption = 1,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Find the largest radius at which X keeps its class. Exit status: 0 exact, 1 misclassified, 3 interval."""
    channel: Channel = context.obj
    options = engine_options(method, solver, timeout, memory, seed, device, cpu_class, accept_solver_claims, encoding)
    largest = _largest(max_radius, radius_unit)
    if radius_unit is Unit.REAL and certificate is not None:
        raise InvalidInputError("certificates of a radius speak of levels; certify a real radius with 'verify'")
    notary = Notary(certificate)
    place = parse_place(workers, scheduler, cluster)
    channel.limit(options.timeout, options.memory)

    from qertify.cli.question import LabelFlags, RegionFlags, ask
    from qertify.queries.radius import RadiusResult, maximum_radius
    from qertify.queries.real_radius import RealRadiusResult, maximum_real_radius

    flags = import_options(bits, input_bits, weights, input_shape, runtime, trust_code, allow_float_islands, scheme=scheme)
    nothing = RegionFlags("0", Unit.LEVELS, None, None, None)
    question = ask(model, flags, input_, nothing, LabelFlags(label, labels, target, ties), echo=False)
    point = question.query
    if radius_unit is Unit.PIXEL:
        radius_in_levels(point.network, Fraction(0), radius_unit)
    notary.require_covered(point.network)
    options = within(notary.options(options), channel.limit(options.timeout, options.memory))

    def keep(known: RadiusResult | RealRadiusResult) -> None:
        channel.draft(known.to_json(), as_json)

    with (
        sharing(place, model, flags, options, point.network) as executor,
        nullcontext(say) if verbose else status_line("searching …") as show,
    ):
        asked: dict[str, Any] = {
            "label": point.property.label,
            "target": target,
            "ties": ties,
            "options": options,
            "progress": show,
            "improved": keep,
            "executor": executor,
            "run": question.run(),
        }
        if radius_unit is Unit.REAL:
            result = maximum_real_radius(point.network, question.given, max_radius=largest, **asked)
            if result.refuted_at is not None:
                result = question.around(Fraction(result.refuted_at)).confirm(result)
        else:
            result = maximum_radius(
                point.network, point.centre, max_radius=None if largest is None else int(largest), decided=notary.keep, **asked
            )
            result = question.confirm(result)
            notary.write_radius(point, result, flags)
    answer: dict[str, Any] = result.to_json()
    status = 0 if result.exact else 3 if result.verified_radius is not None or result.reason is not None else 1
    return channel.finish(render_radius(answer, as_json, sys.stdout.isatty()), status)


def _largest(text: str | None, unit: Unit) -> Fraction | None:
    if text is None:
        return None
    value = parse_rational(text, "maximum radius")
    if value < 0:
        raise InvalidInputError(f"the maximum radius {text} is negative")
    if unit is not Unit.REAL and value.denominator != 1:
        raise InvalidInputError(f"the maximum radius {text} is no whole number of levels; --radius-unit real takes fractions")
    return value
