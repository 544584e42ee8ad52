"""The question that the flags of ``verify`` ask, in integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qertify.cli.common import say
from qertify.cli.flags import LabelFlags, PixelFlags, RegionFlags
from qertify.cli.render import amount
from qertify.errors import InvalidInputError
from qertify.importers.registry import ImportOptions, load_model
from qertify.inputs import read_labels, read_row
from qertify.queries.posing import Question, pose, radius_of
from qertify.queries.robustness import RobustnessQuery, describe_region


def ask(
    model: Path,
    options: ImportOptions,
    input_: str,
    region: RegionFlags,
    labels: LabelFlags,
    pixels: PixelFlags,
    echo: bool = True,
) -> Question:
    """The query; says on stderr how input and (with ``echo``) region were understood.

    Raises:
        QertifyError: whatever is wrong with the flags, the model, the input, the region, the label or the target.
    """
    radius_of(region)  # its mistakes need no model
    if labels.label is not None and labels.labels is not None:
        raise InvalidInputError("give --label or --labels, not both")
    network = load_model(model, options)
    prepare = pixels.preprocessing(network, region.radius_unit)
    rows = read_row(input_, network, prepare)
    if rows.saturated:
        say(f"input: {rows.saturated} pixel(s) saturated at {network.input.high}, the largest input code")
    label = labels.label if labels.labels is None else int(read_labels(labels.labels, rows.index)[0])
    question = pose(model, network, rows, 0, region, prepare, label=label, target=labels.target, ties=labels.ties)
    if echo:
        _echo(question.query)
    return replace(question, note=say)


def _echo(query: RobustnessQuery) -> None:
    region = describe_region(query)
    reach = region["largest_distance"]
    same = query.radius_unit == "levels" and query.radius == reach
    say(
        f"region: radius {amount(str(query.radius), query.radius_unit)}"
        f"{'' if same else f', which reaches {reach} level(s) from the input'}; "
        f"{region['free_inputs']} of {region['inputs']} inputs vary, codes {region['low']} … {region['high']}"
    )
