"""``qertify equiv``: does a quantized network still do what its original did?"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from qertify.cli.common import say, status_line, within
from qertify.cli.flags import (
    EngineFlags,
    InputOption,
    JsonOption,
    ModelFlags,
    PlaceFlags,
    RegionFlags,
    VerboseOption,
    with_flags,
)
from qertify.cli.render import render_answer
from qertify.cli.supervisor import Channel
from qertify.cli.workers import sharing
from qertify.errors import InvalidInputError

EXIT_STATUS = {"equivalent": 0, "not_equivalent": 1, "unknown": 3}


@with_flags
def equiv_command(
    context: typer.Context,
    *,
    original: Annotated[
        Path, typer.Argument(metavar="FLOAT_MODEL", help="The float original, or another quantized model.", show_default=False)
    ],
    quantized: Annotated[
        Path, typer.Argument(metavar="QUANT_MODEL", help="The quantized model, its format by its suffix.", show_default=False)
    ],
    input_: InputOption,
    region: RegionFlags,
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
    flags: ModelFlags,
    original_bits: Annotated[
        int | None, typer.Option(help="Bits of FLOAT_MODEL, if it is a quantized .h5 model.", show_default=False)
    ] = None,
    original_runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help="Runtime of FLOAT_MODEL, if it is a quantized model.", show_default=False)
    ] = None,
    coupled: Annotated[
        bool, typer.Option("--coupled", help="Integer programs get the rows that tie the two models together, too.")
    ] = False,
    engines: EngineFlags,
    workers: PlaceFlags,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Decide whether two models agree on a region. Exit status: 0 they do, 1 they don't, 2 unusable, 3 unknown."""
    channel: Channel = context.obj
    if sum((delta is not None, top1, max_delta)) != 1:
        raise InvalidInputError("ask one question: --delta D, --top1 or --max-delta")
    options = replace(engines.options(), coupled=coupled)
    place = workers.place()
    channel.limit(options.timeout, options.memory)

    from qertify.cli.pairing import Files, ask, confirm
    from qertify.queries.equivalence import Equivalence, EquivalenceResult, describe, equivalence
    from qertify.result import Reason
    from qertify.search.comparison import FloatSemantics

    if float_semantics not in {item.value for item in FloatSemantics}:
        raise InvalidInputError(f"float semantics '{float_semantics}' is neither real nor float32-bounded")
    imports = flags.options()
    query = ask(
        Files(original, quantized, imports, original_bits, original_runtime),
        input_,
        region,
        input_scale,
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
        options.method.value,
        delta=None if query.delta is None else str(query.delta),
        output=output,
        float_semantics=float_semantics,
        reason=Reason.TIMEOUT,
        region=describe(query.inputs),
    )
    channel.draft(stopped.to_json(), as_json)
    options = within(options, channel.limit(options.timeout, options.memory))
    with (
        sharing(place, quantized, imports, options, query.quantized) as executor,
        nullcontext(say) if verbose else status_line("comparing …") as show,
    ):

        def progress(line: str) -> None:
            channel.progress(line)
            show(line)

        result = confirm(equivalence(query, options, progress, executor), query, original, quantized)
    answer: dict[str, Any] = result.to_json()
    return channel.finish(render_answer(answer, as_json, sys.stdout.isatty()), EXIT_STATUS[result.verdict.value])
