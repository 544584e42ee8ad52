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
    ComparisonFlags,
    EngineFlags,
    InputOption,
    JsonOption,
    ModelFlags,
    PixelFlags,
    PlaceFlags,
    RegionFlags,
    VerboseOption,
    parse_delta,
    with_flags,
)
from qertify.cli.render import render_answer
from qertify.cli.supervisor import Channel
from qertify.cli.workers import sharing
from qertify.queries.equivalence_result import Equivalence, EquivalenceResult, question_name
from qertify.result import Reason

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
    pixels: PixelFlags,
    delta: Annotated[
        str | None, typer.Option(metavar="D", help="Do the outputs stay within D of each other?", show_default=False)
    ] = None,
    asked: ComparisonFlags,
    flags: ModelFlags,
    engines: EngineFlags,
    workers: PlaceFlags,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Decide whether two models agree on a region. Exit status: 0 they do, 1 they don't, 2 unusable, 3 unknown."""
    channel: Channel = context.obj
    asked.check(delta is not None)
    options = replace(engines.options(), coupled=asked.coupled)
    place = workers.place()
    wanted = None if delta is None else parse_delta(delta)
    stopped = EquivalenceResult(
        "",
        "",
        "",
        Equivalence.UNKNOWN,
        question_name(wanted, asked.top1),
        0.0,
        options.method.value,
        delta=None if wanted is None else str(wanted),
        output=asked.output,
        float_semantics=asked.float_semantics,
        reason=Reason.TIMEOUT,
    )
    draft = {**stopped.to_json(), "original_digest": None, "model_digest": None, "runtime_profile": None}
    channel.draft(draft, as_json)
    channel.limit(options.timeout, options.memory)

    from qertify.cli.pairing import Files, ask, confirm
    from qertify.queries.equivalence import describe, equivalence
    from qertify.search.comparison import FloatSemantics

    imports = flags.options()
    query = ask(
        Files(original, quantized, imports, asked.original_bits, asked.original_runtime),
        input_,
        region,
        pixels,
        asked.input_scale,
        wanted,
        asked.top1,
        asked.output,
        FloatSemantics(asked.float_semantics),
    )
    known = {
        "original_digest": query.original.digest,
        "model_digest": query.quantized.digest,
        "runtime_profile": query.quantized.runtime_profile,
        "region": describe(query.inputs),
    }
    channel.draft({**draft, **known}, as_json)
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
