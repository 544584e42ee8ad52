"""Writes the page: a template, a style sheet and a script, put together with a campaign's answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from qertify.campaign.export import replace_file
from qertify.campaign.report.content import Answers, content, counterexamples, histogram_bars, read_answers, solved_seconds
from qertify.campaign.report.figures import cactus, certified_curve, radius_histogram
from qertify.campaign.report.pictures import layout_of, triptych
from qertify.campaign.store import Store
from qertify.errors import InvalidInputError, MissingExtraError, StoreError

PICTURE = 320
"""Screen pixels that a saved picture is wide, about."""
_HARMLESS = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: number of answers, bytes of the page, pictures saved beside it."""

    answers: int
    size: int
    pictures: int


def write_report(store: Store, out: Path, *, images: Path | None = None, title: str | None = None) -> Written:
    """Write a campaign as one web page that needs nothing else.

    Args:
        store: open for reading.
        out: the page.
        images: a folder that gets a picture of every counterexample; made if it does not exist.
        title: the headline, the model's file name if None.

    Raises:
        MissingExtraError: the template library is not installed.
        InvalidInputError: pictures of inputs that are no images.
        StoreError: a damaged store, or a file that can't be written.
    """
    answers = read_answers(store)
    if images is not None and layout_of(answers.campaign.input_shape) is None:
        shape = answers.campaign.input_shape
        raise InvalidInputError(f"--images {images}: inputs of shape {shape} are not images; the page lists their changes")
    page = render(answers, title).encode("utf-8")
    replace_file(out, lambda temporary: _write(temporary, page))
    return Written(
        len(answers.records) + len(answers.searches), len(page), 0 if images is None else save_pictures(answers, images)
    )


def render(answers: Answers, title: str | None = None) -> str:
    """The page as text.

    Raises:
        MissingExtraError: the template library is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError as error:
        raise MissingExtraError("writing reports", "report") from error
    parts = files("qertify.campaign.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    data: dict[str, Any] = content(answers, title)
    unit = answers.campaign.radius_unit
    return environment.from_string((parts / "page.html").read_text("utf-8")).render(
        **{key: value for key, value in data.items() if key != "table"},
        table=_script_data(data["table"]),
        style=(parts / "page.css").read_text("utf-8"),
        script=(parts / "page.js").read_text("utf-8"),
        curve=certified_curve(answers.summary, unit),
        cactus=cactus(solved_seconds(answers)),
        histogram=radius_histogram(histogram_bars(answers), unit),
        radii=data["table"]["radii"],
    )


def _script_data(data: Any) -> str:
    """JSON that can't end the script element that holds it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return "".join(_HARMLESS.get(character, character) for character in text)


def save_pictures(answers: Answers, folder: Path) -> int:
    """One picture a counterexample: original, changed input, difference; returns their number.

    Raises:
        StoreError: the folder can't be written.
    """
    layout = layout_of(answers.campaign.input_shape)
    assert layout is not None
    found = counterexamples(answers)
    zoom = max(1, PICTURE // layout.width)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for rank, fooled in enumerate(found, start=1):
            changed = fooled.found
            name = f"{rank:05}-input{fooled.point.row}-class{fooled.point.label}-seen-as-{changed.predicted}"
            picture = triptych(fooled.panels(answers.campaign, layout), zoom)
            (folder / f"{name}-distance{changed.distance}.png").write_bytes(picture)
    except OSError as error:
        raise StoreError(f"{folder}: can't be written ({error.strerror or error})") from error
    return len(found)


def _write(path: Path, page: bytes) -> None:
    path.write_bytes(page)
