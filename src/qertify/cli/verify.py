"""``qertify verify``: is one input robust?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qertify.cli.certificate import CertificateOption, Notary
from qertify.cli.common import check_writable, say, status_line, within
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
from qertify.cli.render import render_answer
from qertify.cli.supervisor import Channel
from qertify.cli.workers import sharing
from qertify.options import Options
from qertify.result import Reason, Result, Verdict
from qertify.specification.units import Unit

if TYPE_CHECKING:
    from qertify.parallel.executor import Executor
    from qertify.queries.posing import Question
    from qertify.search.question import Decision

EXIT_STATUS = {Verdict.ROBUST: 0, Verdict.NON_ROBUST: 1, Verdict.MISCLASSIFIED: 1, Verdict.UNKNOWN: 3}


@with_flags
def verify_command(
    context: typer.Context,
    *,
    model: ModelArgument,
    input_: InputOption,
    region: RegionFlags,
    pixels: PixelFlags,
    labels: LabelFlags,
    flags: ModelFlags,
    engines: EngineFlags,
    encoding: EncodingOption = "compact",
    save_counterexample: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Save a counterexample.", show_default=False)
    ] = None,
    certificate: CertificateOption = None,
    workers: PlaceFlags,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Decide whether every input near X keeps its class. Exit status: 0 robust, 1 not, 2 unusable input, 3 unknown."""
    channel: Channel = context.obj
    options = engines.options(encoding)
    check_writable(save_counterexample, ".npy", "--save-counterexample")
    notary = Notary(certificate)
    place = workers.place()
    stopped = Result(
        "", "", Verdict.UNKNOWN, -1, region.radius or "", (region.radius_unit or Unit.LEVELS).value, 0.0, options.method.value,
        reason=Reason.TIMEOUT, target=labels.target, ties=labels.ties.value,
    )  # fmt: skip
    channel.draft({**stopped.to_json(), "label": labels.label, "model_digest": None, "runtime_profile": None}, as_json)
    channel.limit(options.timeout, options.memory)

    # the engines' array library takes a second to import: parsed and bad flags don't wait for it
    from qertify.cli.question import ask
    from qertify.queries.robustness import describe_region

    imports = flags.options()
    question = ask(model, imports, input_, region, labels, pixels)
    query = question.query
    notary.require_covered(query.network)
    stopped = replace(
        stopped,
        model_digest=query.network.digest,
        runtime_profile=query.network.runtime_profile,
        label=query.property.label,
        radius=str(query.radius),
        radius_unit=query.radius_unit,
        region=describe_region(query),
    )
    channel.draft(stopped.to_json(), as_json)
    try:
        with sharing(place, model, imports, options, query.network) as executor:
            result = question.confirm(_decide(question, notary.options(options), channel, verbose, notary.keep_one, executor))
    except MemoryError:
        result = replace(stopped, reason=Reason.MEMORY)
    answer = result.to_json()
    if result.counterexample is not None and result.counterexample.input is None:  # here input codes are the inputs
        answer["counterexample"]["input"] = answer["counterexample"]["levels"]
    if save_counterexample is not None:
        _save(save_counterexample, result, query.network.input_shape)
    notary.write_answer(query, result, imports)
    return channel.finish(render_answer(answer, as_json, sys.stdout.isatty()), EXIT_STATUS[result.verdict])


def _decide(
    question: Question,
    options: Options,
    channel: Channel,
    verbose: bool,
    decided: Callable[[Decision], None] | None,
    executor: Executor | None,
) -> Result:
    """Run the engines on what is left of the time."""
    from qertify.queries.robustness import verify

    left = channel.limit(options.timeout, options.memory)
    with nullcontext(say) if verbose else status_line("deciding …") as show:

        def progress(line: str) -> None:
            channel.progress(line)
            show(line)

        return verify(question.query, within(options, left), progress, decided, executor, question.run())


def _save(path: Path, result: Result, shape: tuple[int, ...]) -> None:
    """Save the counterexample in the model's input domain and shape: float32, or codes, as bytes if they fit."""
    import numpy as np

    if result.counterexample is None:
        say(f"no counterexample, so {path} is not written")
        return
    if result.counterexample.input is not None:
        np.save(path, np.array(result.counterexample.input, dtype=np.float32).reshape(shape))
        return
    codes = np.array(result.counterexample.levels).reshape(shape)
    small = codes.min() >= 0 and codes.max() <= 255
    np.save(path, codes.astype(np.uint8 if small else np.int64))
