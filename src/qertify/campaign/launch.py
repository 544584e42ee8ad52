"""A campaign about one model, from its file and inputs to a results file: what the command and the Python call share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qertify._version import __version__
from qertify.campaign.records import Campaign, Point
from qertify.campaign.runner import Plan, Progress, run_campaign
from qertify.campaign.store import Store, create_store, open_store, resume_store
from qertify.errors import InvalidInputError
from qertify.importers.registry import ImportOptions, load_model
from qertify.inputs import Rows, given_labels, given_rows
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.options import Options
from qertify.parallel.place import Place, open_executor
from qertify.parallel.worker import greeting
from qertify.queries.posing import Ball, Question, pose
from qertify.runtimes.saturation import host_cpu_class
from qertify.specification.pixels import Preprocessing
from qertify.specification.property import Ties
from qertify.specification.units import Unit, parse_rational

WHOLE = "all"
"""A radius search without a limit."""
CHUNK = 1024
"""Rows evaluated at once."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a campaign asks of each input.

    Attributes:
        radii: exact radius → as it was spelt, ascending.
        search: largest radius of a radius search as it was spelt, or "all"; None for no search.
        unit: of radii and search; None for levels where the model reads codes, or where only a search is asked for, else real.
        input_range: what clips the regions.
    """

    radii: dict[Fraction, str]
    search: str | None = None
    unit: Unit | None = None
    input_range: tuple[str, str] | None = None
    target: int | None = None
    ties: Ties = Ties.FIRST


def study(
    model: str | Path,
    inputs: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    out: str | Path,
    radii: Iterable[int | str | Fraction] = (),
    search: bool | int | str | Fraction = False,
    unit: Unit | str | None = None,
    target: int | None = None,
    ties: Ties = Ties.FIRST,
    imports: ImportOptions | None = None,
    options: Options | None = None,
    workers: int = 1,
    budget: float | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Store:
    """Ask one model about many inputs and keep every answer in a file.

    Args:
        model: its file, which worker processes read, too.
        inputs: rows in the model's own input domain, or codes where it has no other.
        labels: one integer a row; None for the predicted classes.
        out: the results file, made here.
        radii: exact numbers; text like "2/255" for fractions.
        search: find each input's largest robust radius: True without a limit, or up to a number.
        unit: of all radii; "levels", "real" or "pixel".
        target, ties: as `qertify.local_robustness`.
        imports, options: of the model, and of each question.
        workers: processes.
        budget: seconds in all; what is open then stays open.
        resume: continue the campaign in ``out``, if it has begun.
        progress: told after each answer, and a few times a second.

    Returns:
        the results, open for reading; close them, or use them as a context manager.

    Raises:
        QertifyError: whatever is wrong with the model, the inputs or the question, or a file that can't be used.
    """
    path, options = Path(out), options or Options()
    spelt = {parse_rational(str(radius), "radius"): str(radius) for radius in radii}
    most = WHOLE if search is True else None if search is False else str(search)
    if unit is not None and unit not in [known.value for known in Unit]:
        raise InvalidInputError(f"unknown unit '{unit}'; known: {', '.join(known.value for known in Unit)}")
    asked = Asked(dict(sorted(spelt.items())), most, None if unit is None else Unit(unit), None, target, ties)
    require_asked(asked)
    network = load_model(model, imports or ImportOptions())
    rows = given_rows(inputs, network)
    truth = None if labels is None else given_labels(labels, len(rows.codes))
    run_asked(
        Path(model), imports or ImportOptions(), network, rows, truth, asked, options, path,
        place=Place(workers), budget=budget, resume=resume, shown=nullcontext(progress or (lambda _: None)),
        names=("in memory", None if labels is None else "in memory"),
    )  # fmt: skip
    return open_store(path)


def require_asked(asked: Asked) -> None:
    """Refuse what no model could be asked.

    Raises:
        InvalidInputError: nothing is asked, a negative radius, or a search within a range of inputs.
    """
    if not asked.radii and asked.search is None:
        raise InvalidInputError("give radii or a radius search")
    if negative := [text for value, text in asked.radii.items() if value < 0]:
        raise InvalidInputError(f"radius {negative[0]} is negative")
    if asked.search is None:
        return
    if asked.input_range is not None:
        raise InvalidInputError("--search-radius looks at the whole valid range, so it does not go with --input-range")
    if asked.search != WHOLE and parse_rational(asked.search, "--search-radius") < 0:
        raise InvalidInputError(f"--search-radius {asked.search} is negative")


def run_asked(
    model: Path,
    imports: ImportOptions,
    network: Network,
    rows: Rows,
    truth: IntegerArray | None,
    asked: Asked,
    options: Options,
    out: Path,
    *,
    place: Place,
    budget: float | None,
    resume: bool,
    shown: AbstractContextManager[Callable[[Progress], None]],
    names: tuple[str, str | None],
    prepare: Preprocessing | None = None,
    kept: dict[str, Any] | None = None,
    command_line: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Run a campaign, or what is open of it.

    Args:
        truth: labels; None for the predicted classes.
        prepare: how images became real inputs, if they did.
        shown: gives what is told of progress.
        names: of inputs and labels, for the description.
        kept: further options that another run must share to continue this one.
        command_line: what the campaign was started with, if it was.
        say: gets one line.

    Raises:
        QertifyError: whatever is wrong with the question, or a file that can't be used.
    """
    points = points_of(network, rows, truth, asked.ties)

    @lru_cache(maxsize=256)
    def question(position: int, radius: Fraction | None) -> Question:
        text, unit = ("0", asked.unit or Unit.LEVELS) if radius is None else (asked.radii[radius], asked.unit)
        ball, label = Ball(text, unit, asked.input_range), points[position].label
        found = pose(model, network, rows, position, ball, prepare, label=label, target=asked.target, ties=asked.ties)
        return replace(found, note=say)

    units = [question(0, radius).query.radius_unit for radius in asked.radii or (None,)]  # before any work is done
    unit = Unit(units[0])
    search = _largest(asked, unit, rows.real is not None)
    cpu_class = (options.cpu_class or host_cpu_class().value) if "kernels" in network.metadata else None
    options = replace(options, cpu_class=cpu_class)  # another machine's class must not slip in when it is resumed
    campaign = describe(
        model, network, points, radii=tuple(map(str, asked.radii)), radius_unit=unit.value, ties=asked.ties.value,
        inputs=names[0], labels=names[1], target=asked.target, input_range=asked.input_range, search=search,
        options=options_kept(options) | (kept or {}), cpu_class=cpu_class, command_line=command_line,
    )  # fmt: skip
    share = None if options.memory is None else options.memory // place.workers
    with (resume_store if resume else create_store)(out, campaign, points) as store:
        say(f"campaign: {len(points)} inputs, {_what(asked, unit)}; answers are kept in {out}")
        first = greeting(model, imports, replace(options, memory=share))
        with open_executor(place, first, network.digest, share, say) as executor, shown as progress:
            run_campaign(store, question, Plan(executor, options, budget), progress)


def _largest(asked: Asked, unit: Unit, real: bool) -> int | str | None:
    """The limit of a radius search as it is stored.

    Raises:
        InvalidInputError: a limit that is no number of its unit, or a bare number where the unit is anyone's guess.
    """
    if asked.search is None or asked.search == WHOLE:
        return asked.search
    value = parse_rational(asked.search, "--search-radius")
    if unit is Unit.REAL:
        if real and asked.unit is None and asked.search.isdecimal():
            raise InvalidInputError(f"--search-radius {asked.search}: the radii are real, so name the unit with --radius-unit")
        return str(value)
    if value.denominator != 1:
        raise InvalidInputError(f"--search-radius {asked.search}: a whole number of levels is needed")
    return int(value)


def points_of(network: Network, rows: Rows, truth: IntegerArray | None, ties: Ties) -> list[Point]:
    """The inputs with their labels and what the network makes of them.

    Raises:
        InvalidInputError: a label that is no class.
    """
    outputs = np.concatenate([evaluate(network, rows.codes[at : at + CHUNK]) for at in range(0, len(rows.codes), CHUNK)])
    predicted = ties.predicted(outputs)
    labels = predicted if truth is None else truth
    if wrong := [int(label) for label in labels if not 0 <= label < network.output_size]:
        raise InvalidInputError(f"label {wrong[0]} is not a class; the network has {network.output_size}")
    return [
        Point(at, int(rows.index[at]), int(labels[at]), int(predicted[at]), rows.codes[at], tuple(outputs[at].tolist()))
        for at in range(len(rows.codes))
    ]


def options_kept(options: Options) -> dict[str, Any]:
    """What of the options belongs to a campaign's description."""
    data = {key: value for key, value in asdict(options).items() if key not in ("keep_proof", "cpu_class")}
    return data | {"method": options.method.value, "mean": None, "std": None}


def describe(model: Path, network: Network, points: list[Point], *, labels: str | None, **rest: Any) -> Campaign:
    """A campaign's description, of which the caller gives what is particular to it."""
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
        **rest,
    )


def _what(asked: Asked, unit: Unit) -> str:
    parts = [f"radii {', '.join(asked.radii.values())} ({unit.value})"] if asked.radii else []
    if asked.search is not None:
        parts.append("radius search" if asked.search == WHOLE else f"radius search up to {asked.search} ({unit.value})")
    return " and ".join(parts)
