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
    check_writable,
    engine_options,
    import_options,
    say,
    status_line,
    within,
)
from qertify.cli.render import render_answer
from qertify.cli.supervisor import Channel
from qertify.cli.workers import ClusterOption, SchedulerOption, WorkersOption, sharing
from qertify.options import Method, Options
from qertify.parallel.place import parse_place
from qertify.result import Reason, Result, Verdict
from qertify.runtimes.saturation import CpuClass
from qertify.specification.property import Ties
from qertify.specification.units import Unit

if TYPE_CHECKING:
    from qertify.cli.question import Question
    from qertify.parallel.executor import Executor
    from qertify.search.question import Decision

EXIT_STATUS = {Verdict.ROBUST: 0, Verdict.NON_ROBUST: 1, Verdict.MISCLASSIFIED: 1, Verdict.UNKNOWN: 3}


def verify_command(
    context: typer.Context,
    model: ModelArgument,
    input_: Annotated[str, typer.Option("--input", "-i", metavar="X", help=INPUT_HELP, show_default=False)],
    radius: Annotated[str | None, typer.Option(metavar="R", help="Radius: 3, 2/255, 0.03.", show_default=False)] = None,
    radius_unit: Annotated[
        Unit | None, typer.Option(help="What a radius of one means.", show_default="levels for codes, real for real inputs")
    ] = None,
    lower: Annotated[str | None, typer.Option(metavar="L", help="Lower bounds of a box, instead of --radius.")] = None,
    upper: Annotated[str | None, typer.Option(metavar="U", help="Upper bounds of a box, instead of --radius.")] = None,
    input_range: Annotated[
        tuple[str, str] | None, typer.Option(metavar="LO HI", help="Cut the region to these input codes.", show_default=False)
    ] = None,
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
        bool, typer.Option("--accept-solver-claims", help="Report a floating-point solver's claim as robust.")
    ] = False,
    save_counterexample: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Save a counterexample.", show_default=False)
    ] = None,
    certificate: CertificateOption = None,
    workers: WorkersOption = 1,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Decide whether every input near X keeps its class. Exit status: 0 robust, 1 not, 2 unusable input, 3 unknown."""
    channel: Channel = context.obj
    options = engine_options(method, solver, timeout, memory, seed, device, cpu_class, accept_solver_claims, encoding)
    check_writable(save_counterexample, ".npy", "--save-counterexample")
    notary = Notary(certificate)
    place = parse_place(workers, scheduler, cluster)
    channel.limit(options.timeout, options.memory)
    stopped = Result(
        "", "", Verdict.UNKNOWN, -1, radius or "", (radius_unit or Unit.LEVELS).value, 0.0, method.value,
        reason=Reason.TIMEOUT, target=target, ties=ties.value,
    )  # fmt: skip
    channel.draft({**stopped.to_json(), "label": label, "model_digest": None, "runtime_profile": None}, as_json)

    # the engines' array library takes a second to import: parsed and bad flags don't wait for it
    from qertify.cli.question import LabelFlags, RegionFlags, ask
    from qertify.queries.robustness import describe_region

    flags = import_options(bits, input_bits, weights, input_shape, runtime, trust_code, allow_float_islands, scheme=scheme)
    question = ask(
        model,
        flags,
        input_,
        RegionFlags(radius, radius_unit, lower, upper, input_range),
        LabelFlags(label, labels, target, ties),
    )
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
        with sharing(place, model, flags, options, query.network) as executor:
            result = question.confirm(_decide(question, notary.options(options), channel, verbose, notary.keep_one, executor))
    except MemoryError:
        result = replace(stopped, reason=Reason.MEMORY)
    answer = result.to_json()
    if result.counterexample is not None and result.counterexample.input is None:  # here input codes are the inputs
        answer["counterexample"]["input"] = answer["counterexample"]["levels"]
    if save_counterexample is not None:
        _save(save_counterexample, result, query.network.input_shape)
    notary.write_answer(query, result, flags)
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
