"""``qertify campaign``: one model, many inputs and radii, into a file that survives anything."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from qertify.cli.common import check_writable, say
from qertify.cli.flags import (
    ComparisonFlags,
    EncodingOption,
    EngineFlags,
    InputRangeOption,
    InputsOption,
    JsonOption,
    ModelArgument,
    ModelFlags,
    PixelFlags,
    PlaceFlags,
    RegionFlags,
    TargetOption,
    TiesOption,
    UnitOption,
    VerboseOption,
    with_flags,
)
from qertify.cli.supervisor import Channel
from qertify.errors import InvalidInputError
from qertify.specification.property import Ties
from qertify.specification.units import parse_rational

if TYPE_CHECKING:
    from qertify.campaign.agreement import Agreement
    from qertify.campaign.runner import Progress
    from qertify.campaign.summary import Summary
    from qertify.inputs import Rows
    from qertify.network.tensor import IntegerArray

WHOLE = "all"
"""A radius search without a limit."""
EVERY = 10.0
"""Seconds between lines of progress where there is no terminal."""
_NUMBER = re.compile(r"[+-]?\.?\d[\d./eE+-]*", re.ASCII)


class CampaignCommand(TyperCommand):
    """Lets ``--radius`` and ``--delta`` take several values, and ``--search-radius`` none."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell the arguments out before the parser sees them."""
        return super().parse_args(ctx, _spelt_out(args))


def _spelt_out(arguments: list[str]) -> list[str]:
    """``--radius 1 2`` as ``--radius 1 --radius 2``, so ``--delta``; ``--search-radius`` alone with its default."""
    found: list[str] = []
    several = ""  # the option whose values these are
    for position, argument in enumerate(arguments):
        if several and _NUMBER.fullmatch(argument):
            if arguments[position - 1] != several:
                found.append(several)
        else:
            several = argument if argument in ("--radius", "--delta") else ""
        found.append(argument)
        following = arguments[position + 1 : position + 2]
        if argument == "--search-radius" and not (following and re.fullmatch(rf"{_NUMBER.pattern}|{WHOLE}", following[0])):
            found.append(WHOLE)
    return found


@with_flags
def campaign_command(
    context: typer.Context,
    *,
    model: ModelArgument,
    inputs: InputsOption,
    out: Annotated[Path, typer.Option(metavar="RESULTS.db", help="Where the answers go.", show_default=False)],
    radius: Annotated[
        list[str] | None, typer.Option(metavar="R …", help="One or more radii: 1 2 4, 2/255.", show_default=False)
    ] = None,
    search_radius: Annotated[
        str | None,
        typer.Option(metavar="[MAX]", help="Find each input's largest radius, up to MAX.", show_default=False),
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            "--float",
            metavar="FLOAT_MODEL",
            help="Compare MODEL with its float original, or another one.",
            show_default=False,
        ),
    ] = None,
    delta: Annotated[
        list[str] | None,
        typer.Option(metavar="D …", help="Do both models' outputs stay within D of each other?", show_default=False),
    ] = None,
    asked: ComparisonFlags,
    labels: Annotated[str | None, typer.Option(metavar="YS", help="Labels; the predicted classes if not given.")] = None,
    radius_unit: UnitOption = None,
    input_range: InputRangeOption = None,
    target: TargetOption = None,
    ties: TiesOption = Ties.FIRST,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the campaign in RESULTS.db, if it has begun.")] = False,
    pixels: PixelFlags,
    budget: Annotated[float | None, typer.Option(metavar="S", help="Seconds for all questions together.")] = None,
    engines: EngineFlags,
    encoding: EncodingOption = "compact",
    flags: ModelFlags,
    workers: PlaceFlags,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Ask one model, or two, about many inputs and radii. Exit status: 0 complete, 3 the budget ran out, 130 interrupted."""
    channel: Channel = context.obj
    options = engines.options(encoding)
    place = workers.place()
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise InvalidInputError(f"budget {budget} must be a positive number of seconds")
    if original is None and (delta or asked != ComparisonFlags()):
        raise InvalidInputError("questions about two models need the other one: --float FLOAT_MODEL")
    if original is not None and (labels, target, search_radius, ties) != (None, None, None, Ties.FIRST):
        raise InvalidInputError("--float does not go with --labels, --target, --ties and --search-radius")
    if not radius and search_radius is None:
        raise InvalidInputError("give --radius or --search-radius" if original is None else "give --radius")
    from qertify.campaign.launch import Asked, describe, options_kept, require_asked

    spelt = _radii(radius or [])
    asked_ = Asked(spelt, search_radius, radius_unit, input_range, target, ties)
    require_asked(asked_)
    kept = {"mean": pixels.mean, "std": pixels.std}
    check_writable(out, ".db", "--out")
    if out.exists() and not resume and out.stat().st_size:
        raise InvalidInputError(f"{out}: exists already; --resume continues it")

    if original is not None:
        from qertify.cli.campaign_pair import PairCampaign, render_agreement, run_pairs

        asked.check(len(delta or []))
        options = replace(options, coupled=asked.coupled)
        described = partial(
            describe, model, radii=tuple(map(str, spelt)), inputs=inputs, input_range=input_range,
            options=options_kept(options) | kept, command_line=tuple(sys.argv[1:]),
        )  # fmt: skip
        region = RegionFlags(None, radius_unit, input_range=input_range)
        pair = PairCampaign(
            original, model, inputs, spelt, region, pixels, delta or [], asked, flags.options(), options, described
        )  # fmt: skip
        found = run_pairs(pair, out, resume, place, budget, _shown(verbose))
        return _finish(channel, found, render_agreement(found), as_json, budget)

    from qertify.campaign.launch import run_asked
    from qertify.campaign.store import open_store
    from qertify.campaign.summary import summarise
    from qertify.importers.registry import load_model
    from qertify.inputs import read_rows

    imports = flags.options()
    network = load_model(model, imports)
    prepare = pixels.preprocessing(network, radius_unit)
    rows = read_rows(inputs, network, prepare)
    truth = None if labels is None else _labels(inputs, labels, rows)
    if rows.saturated:
        say(f"inputs: {rows.saturated} pixel(s) saturated at {network.input.high}, the largest input code")
    run_asked(
        model, imports, network, rows, truth, asked_, options, out, place=place, budget=budget, resume=resume,
        shown=_shown(verbose), names=(inputs, labels), prepare=prepare, kept=kept, command_line=tuple(sys.argv[1:]), say=say,
    )  # fmt: skip
    with open_store(out) as store:
        summary, unit = summarise(store), store.campaign.radius_unit
    return _finish(channel, summary, render_summary(summary, unit), as_json, budget)


def _finish(channel: Channel, found: Summary | Agreement, text: str, as_json: bool, budget: float | None) -> int:
    """Print the outcome; the exit status."""
    if not found.complete:
        say(f"the budget of {budget:g} s is used up; --resume continues")
    return channel.finish(json.dumps(found.to_json(), allow_nan=False) + "\n" if as_json else text, 0 if found.complete else 3)


def _radii(texts: list[str]) -> dict[Fraction, str]:
    """Exact radius → as it was spelt, ascending."""
    return dict(sorted((parse_rational(text, "radius"), text) for text in texts))


def _labels(inputs: str, labels: str, rows: Rows) -> IntegerArray:
    """One label a row; two whole files must be of one length."""
    from qertify.inputs import parse_source, read_labels

    whole = parse_source(inputs).rows is None and parse_source(labels).rows is None
    return read_labels(f"{labels}[:]" if whole else labels, rows.index)


@contextmanager
def _shown(verbose: bool) -> Generator[Callable[[Progress], None]]:
    """A bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("deciding"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=None, left="")
            yield lambda p: bar.update(task, total=p.total, completed=p.done, left=_left(p))
        return
    said = 0.0

    def line(progress: Progress) -> None:
        nonlocal said
        if progress.seconds - said >= (1.0 if verbose else EVERY):
            said = progress.seconds
            say(f"{progress.done} of {progress.total} answers, {progress.asked} asked, {_left(progress)}")

    yield line


def _left(progress: Progress) -> str:
    if progress.left is None:
        return "starting"
    seconds = round(progress.left)
    return f"about {seconds} s left" if seconds < 120 else f"about {seconds // 60} min left"


def render_summary(summary: Summary, unit: str) -> str:
    """The outcome for a terminal."""
    accuracy = (
        f", {summary.correct} classified correctly ({summary.correct / summary.inputs:.1%})"
        if summary.correct is not None
        else ""
    )
    lines = [
        f"{summary.inputs} inputs{accuracy}",
        f"{'radius':>10} {'robust':>7} {'not':>6} {'wrong':>6} {'unknown':>8} {'open':>6}  certified",
    ]
    for row in summary.radii:
        low, high = row.certified
        share = f"{low:.1%}" if low == high else f"{low:.1%} … {high:.1%}"
        lines.append(
            f"{row.radius:>10} {row.robust:>7} {row.non_robust:>6} {row.misclassified:>6} {row.unknown:>8} {row.open:>6}"
            f"  {share}"
        )
    if summary.reasons:
        lines.append("unknown because of " + ", ".join(f"{name} ({count})" for name, count in sorted(summary.reasons.items())))
    lines.append(
        f"{summary.answers} answers, {summary.questions} of them asked and the others implied; radii in {unit}; "
        f"{summary.seconds:.1f} s of work"
    )
    return "\n".join(lines) + "\n"
