"""``qertify equiv``: does a quantized network still do what its original did?"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from qertify.cli.common import (
    INPUT_HELP,
    BitsOption,
    FloatIslandsOption,
    InputBitsOption,
    InputShapeOption,
    JsonOption,
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
from qertify.cli.render import render_answer
from qertify.cli.supervisor import Channel
from qertify.cli.workers import ClusterOption, SchedulerOption, WorkersOption, sharing
from qertify.errors import InvalidInputError
from qertify.options import Method
from qertify.parallel.place import parse_place
from qertify.runtimes.saturation import CpuClass
from qertify.specification.units import Unit

EXIT_STATUS = {"equivalent": 0, "not_equivalent": 1, "unknown": 3}


def equiv_command(
    context: typer.Context,
    original: Annotated[
        Path, typer.Argument(metavar="FLOAT_MODEL", help="The float original, or another quantized model.", show_default=False)
    ],
    quantized: Annotated[
        Path, typer.Argument(metavar="QUANT_MODEL", help="The quantized model, its format by its suffix.", show_default=False)
    ],
    input_: Annotated[str, typer.Option("--input", "-i", metavar="X", help=INPUT_HELP, show_default=False)],
    radius: Annotated[str | None, typer.Option(metavar="R", help="Radius: 3, 2/255, 0.03.", show_default=False)] = None,
    radius_unit: Annotated[
        Unit | None, typer.Option(help="What a radius of one means.", show_default="levels for codes, real for real inputs")
    ] = None,
    lower: Annotated[str | None, typer.Option(metavar="L", help="Lower bounds of a box, instead of --radius.")] = None,
    upper: Annotated[str | None, typer.Option(metavar="U", help="Upper bounds of a box, instead of --radius.")] = None,
    input_range: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="LO HI", help="Cut the region to these inputs (codes for levels).", show_default=False),
    ] = None,
    delta: Annotated[
        str | None, typer.Option(metavar="D", help="Do the outputs stay within D of each other?", show_default=False)
    ] = None,
    top1: Annotated[bool, typer.Option("--top1", help="Do both predict the same class?")] = False,
    max_delta: Annotated[bool, typer.Option("--max-delta", help="What is the greatest difference of the outputs?")] = False,
    output: Annotated[int | None, typer.Option(metavar="I", help="Only this output counts.", show_default=False)] = None,
    float_semantics: Annotated[
        str, typer.Option(metavar="real|float32-bounded", help="What the float model computes.")
    ] = "real",
    input_scale: Annotated[
        str | None,
        typer.Option(metavar="S", help="What one input code is to the float model, for example 1/255.", show_default=False),
    ] = None,
    bits: BitsOption = None,
    input_bits: InputBitsOption = None,
    weights: WeightsOption = None,
    scheme: SchemeOption = None,
    input_shape: InputShapeOption = None,
    runtime: RuntimeOption = None,
    trust_code: TrustCodeOption = False,
    allow_float_islands: FloatIslandsOption = False,
    original_bits: Annotated[
        int | None, typer.Option(help="Bits of FLOAT_MODEL, if it is a quantized .h5 model.", show_default=False)
    ] = None,
    original_runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help="Runtime of FLOAT_MODEL, if it is a quantized model.", show_default=False)
    ] = None,
    method: Annotated[Method, typer.Option(help="Engines that may answer.")] = Method.AUTO,
    solver: SolverOption = "highs",
    coupled: Annotated[
        bool, typer.Option("--coupled", help="Integer programs get the rows that tie the two models together, too.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where bounds are computed: cpu or cuda.")] = "cpu",
    cpu_class: Annotated[
        CpuClass | None, typer.Option(help="How the deployed CPU multiplies bytes.", show_default="this machine's")
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Hard limit on the wall clock, in seconds.")] = None,
    memory: Annotated[float | None, typer.Option(metavar="GB", help="Hard limit on the memory of all processes.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=2**63 - 1)] = 0,
    accept_solver_claims: Annotated[
        bool, typer.Option("--accept-solver-claims", help="Report a floating-point solver's claim as equivalent.")
    ] = False,
    workers: WorkersOption = 1,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Decide whether two models agree on a region. Exit status: 0 they do, 1 they don't, 2 unusable, 3 unknown."""
    channel: Channel = context.obj
    if sum((delta is not None, top1, max_delta)) != 1:
        raise InvalidInputError("ask one question: --delta D, --top1 or --max-delta")
    options = engine_options(method, solver, timeout, memory, seed, device, cpu_class, accept_solver_claims)
    options = replace(options, coupled=coupled)
    place = parse_place(workers, scheduler, cluster)
    channel.limit(options.timeout, options.memory)

    from qertify.cli.pairing import Files, RegionFlags, ask, confirm
    from qertify.queries.equivalence import Equivalence, EquivalenceResult, describe, equivalence
    from qertify.result import Reason
    from qertify.search.comparison import FloatSemantics

    if float_semantics not in {item.value for item in FloatSemantics}:
        raise InvalidInputError(f"float semantics '{float_semantics}' is neither real nor float32-bounded")
    flags = import_options(bits, input_bits, weights, input_shape, runtime, trust_code, allow_float_islands, scheme=scheme)
    query = ask(
        Files(original, quantized, flags, original_bits, original_runtime),
        input_,
        RegionFlags(radius, radius_unit, lower, upper, input_range, input_scale),
        delta,
        top1,
        output,
        FloatSemantics(float_semantics),
    )
    stopped = EquivalenceResult(
        query.original.digest,
        query.quantized.digest,
        query.quantized.runtime_profile,
        Equivalence.UNKNOWN,
        "top1" if top1 else "delta" if delta else "max_delta",
        0.0,
        method.value,
        delta=None if query.delta is None else str(query.delta),
        output=output,
        float_semantics=float_semantics,
        reason=Reason.TIMEOUT,
        region=describe(query.inputs),
    )
    channel.draft(stopped.to_json(), as_json)
    options = within(options, channel.limit(options.timeout, options.memory))
    with (
        sharing(place, quantized, flags, options, query.quantized) as executor,
        nullcontext(say) if verbose else status_line("comparing …") as show,
    ):

        def progress(line: str) -> None:
            channel.progress(line)
            show(line)

        result = confirm(equivalence(query, options, progress, executor), query, original, quantized)
    answer: dict[str, Any] = result.to_json()
    return channel.finish(render_answer(answer, as_json, sys.stdout.isatty()), EXIT_STATUS[result.verdict.value])
