"""``qertify campaign``: one model, many inputs and radii, into a file that survives anything."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from qertify._version import __version__
from qertify.cli.common import check_writable, say
from qertify.cli.flags import (
    ComparisonFlags,
    EncodingOption,
    EngineFlags,
    InputRangeOption,
    InputsOption,
    JsonOption,
    LabelFlags,
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
from qertify.cli.workers import sharing
from qertify.errors import InvalidInputError
from qertify.options import Options
from qertify.specification.property import Ties
from qertify.specification.units import Unit, parse_rational

if TYPE_CHECKING:
    from qertify.campaign.agreement import Agreement
    from qertify.campaign.records import Campaign, Point
    from qertify.campaign.robustness import Poser
    from qertify.campaign.runner import Progress
    from qertify.campaign.summary import Summary
    from qertify.inputs import Rows
    from qertify.network.network import Network
    from qertify.network.tensor import IntegerArray

WHOLE = "all"
"""A radius search over the whole valid range."""
CHUNK = 1024
"""Rows evaluated at once."""
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
        if argument == "--search-radius" and not (following and re.fullmatch(rf"-?\d+|{WHOLE}", following[0])):
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
        typer.Option(metavar="[MAX]", help="Find each input's largest radius, up to MAX levels.", show_default=False),
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
    spelt = _radii(radius or [])
    search = _search(search_radius)
    if original is None and (delta or asked != ComparisonFlags()):
        raise InvalidInputError("questions about two models need the other one: --float FLOAT_MODEL")
    if original is not None and (labels, target, search, pixels, ties) != (None, None, None, PixelFlags(), Ties.FIRST):
        raise InvalidInputError("--float does not go with --labels, --target, --ties, --search-radius, --mean and --std")
    if not spelt and search is None:
        raise InvalidInputError("give --radius or --search-radius" if original is None else "give --radius")
    if search is not None and not spelt and radius_unit is Unit.REAL:
        raise InvalidInputError("--radius-unit real goes with --radius; --search-radius counts levels")
    if search is not None and input_range is not None:
        raise InvalidInputError("--search-radius looks at the whole valid range, so it does not go with --input-range")
    check_writable(out, ".db", "--out")
    if out.exists() and not resume and out.stat().st_size:
        raise InvalidInputError(f"{out}: exists already; --resume continues it")

    if original is not None:
        from qertify.cli.campaign_pair import PairCampaign, render_agreement, run_pairs

        asked.check(len(delta or []))
        options = replace(options, coupled=asked.coupled)
        describe = partial(
            _describe, model, radii=tuple(map(str, spelt)), inputs=inputs, labels=None, input_range=input_range,
            options=_kept(options, pixels),
        )  # fmt: skip
        region = RegionFlags(None, radius_unit, input_range=input_range)
        pair = PairCampaign(original, model, inputs, spelt, region, delta or [], asked, flags.options(), options, describe)
        found = run_pairs(pair, out, resume, place, budget, _shown(verbose))
        return _finish(channel, found, render_agreement(found), as_json, budget)

    from qertify.campaign.runner import Plan, run_campaign
    from qertify.campaign.store import create_store, resume_store
    from qertify.campaign.summary import summarise
    from qertify.cli.question import Question, pose
    from qertify.importers.registry import load_model
    from qertify.inputs import read_rows
    from qertify.runtimes.saturation import host_cpu_class

    imports = flags.options()
    network = load_model(model, imports)
    prepare = pixels.preprocessing(network, radius_unit)
    rows = read_rows(inputs, network, prepare)
    truth = None if labels is None else _labels(inputs, labels, rows)
    points = _points(network, rows, truth, ties)
    if rows.saturated:
        say(f"inputs: {rows.saturated} pixel(s) saturated at {network.input.high}, the largest input code")

    @lru_cache(maxsize=256)
    def question(position: int, asked: Fraction | None) -> Question:
        text, unit = ("0", Unit.LEVELS) if asked is None else (spelt[asked], radius_unit)
        region = RegionFlags(text, unit, input_range=input_range)
        return pose(model, network, rows, position, region, LabelFlags(points[position].label, None, target, ties), prepare)

    poser: Poser = question
    unit = question(0, next(iter(spelt), None)).query.radius_unit
    for other in spelt:  # every radius is looked at once before any work is done
        question(0, other)
    campaign = _describe(
        model, network, points, radii=tuple(map(str, spelt)), radius_unit=unit, ties=ties.value, inputs=inputs, labels=labels,
        target=target, input_range=input_range, search=search,
        options=_kept(options, pixels),
        cpu_class=(engines.cpu_class or host_cpu_class()).value if "kernels" in network.metadata else None,
    )  # fmt: skip
    options = replace(options, cpu_class=campaign.cpu_class)  # another machine's class must not slip in when it is resumed
    with (resume_store if resume else create_store)(out, campaign, points) as store:
        say(f"campaign: {len(points)} inputs, {_what(spelt, unit, search)}; answers are kept in {out}")
        with sharing(place, model, imports, options, network, always=True) as executor, _shown(verbose) as progress:
            assert executor is not None
            run_campaign(store, poser, Plan(executor, options, budget), progress)
        summary = summarise(store)
    return _finish(channel, summary, render_summary(summary, unit), as_json, budget)


def _kept(options: Options, pixels: PixelFlags) -> dict[str, Any]:
    """What of the options belongs to a campaign's description."""
    data = {key: value for key, value in asdict(options).items() if key not in ("keep_proof", "cpu_class")}
    return data | {"method": options.method.value, "mean": pixels.mean, "std": pixels.std}


def _finish(channel: Channel, found: Summary | Agreement, text: str, as_json: bool, budget: float | None) -> int:
    """Print the outcome; the exit status."""
    if not found.complete:
        say(f"the budget of {budget:g} s is used up; --resume continues")
    return channel.finish(json.dumps(found.to_json(), allow_nan=False) + "\n" if as_json else text, 0 if found.complete else 3)


def _radii(texts: list[str]) -> dict[Fraction, str]:
    """Exact radius → as it was spelt, ascending."""
    found = {parse_rational(text, "radius"): text for text in texts}
    if negative := [text for value, text in found.items() if value < 0]:
        raise InvalidInputError(f"radius {negative[0]} is negative")
    return dict(sorted(found.items()))


def _search(text: str | None) -> int | str | None:
    if text is None or text == WHOLE:
        return text
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise InvalidInputError(f"--search-radius {text}: a number of levels is needed")
    return int(text)


def _labels(inputs: str, labels: str, rows: Rows) -> IntegerArray:
    """One label a row; two whole files must be of one length."""
    from qertify.inputs import parse_source, read_labels

    whole = parse_source(inputs).rows is None and parse_source(labels).rows is None
    return read_labels(f"{labels}[:]" if whole else labels, rows.index)


def _points(network: Network, rows: Rows, truth: IntegerArray | None, ties: Ties) -> list[Point]:
    import numpy as np

    from qertify.campaign.records import Point
    from qertify.network.evaluate import evaluate

    outputs = np.concatenate([evaluate(network, rows.codes[at : at + CHUNK]) for at in range(0, len(rows.codes), CHUNK)])
    predicted = ties.predicted(outputs)
    labels = predicted if truth is None else truth
    if wrong := [int(label) for label in labels if not 0 <= label < network.output_size]:
        raise InvalidInputError(f"label {wrong[0]} is not a class; the network has {network.output_size}")
    return [
        Point(at, int(rows.index[at]), int(labels[at]), int(predicted[at]), rows.codes[at], tuple(outputs[at].tolist()))
        for at in range(len(rows.codes))
    ]


def _describe(model: Path, network: Network, points: list[Point], *, labels: str | None, **rest: Any) -> Campaign:
    from qertify.campaign.records import Campaign

    return Campaign(
        model_file=model.name,
        model_digest=network.digest,
        runtime_profile=network.runtime_profile,
        qertify_version=__version__,
        labels=labels,
        labelled=labels is not None,
        input_shape=network.input_shape,
        input_low=network.input.low,
        input_high=network.input.high,
        classes=len(points[0].outputs),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command_line=tuple(sys.argv[1:]),
        **rest,
    )


def _what(radii: dict[Fraction, str], unit: str, search: int | str | None) -> str:
    parts = [f"radii {', '.join(radii.values())} ({unit})"] if radii else []
    if search is not None:
        parts.append("radius search" if search == WHOLE else f"radius search up to {search} levels")
    return " and ".join(parts)


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
