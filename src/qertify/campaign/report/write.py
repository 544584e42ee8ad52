"""Writes the page: a template, a style sheet and a script, put together with a campaign's answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from qertify.campaign.export import replace_file
from qertify.campaign.report.content import Answers, content, counterexamples, panels, read_answers
from qertify.campaign.report.pair import PairAnswers, differing, pair_content, read_pair_answers
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
    page = _pair_page(store, title) if store.campaign.comparison is not None else _page(store, title)
    if images is not None and page.names["layout"] is None:
        shape = store.campaign.input_shape
        raise InvalidInputError(f"--images {images}: inputs of shape {shape} are not images; the page lists their changes")
    text = render(page).encode("utf-8")
    replace_file(out, lambda temporary: _write(temporary, text))
    return Written(page.answers, len(text), 0 if images is None else save_pictures(page.pictures, images))


@dataclass(frozen=True, slots=True)
class Page:
    """What a page consists of: its template, the names in it, answers in it, and pictures (file name, panels)."""

    template: str
    names: dict[str, Any]
    answers: int
    pictures: Iterable[tuple[str, list[Any]]]


def _page(store: Store, title: str | None) -> Page:
    answers = read_answers(store)
    return Page(
        "page.html", content(answers, title), len(answers.records) + len(answers.searches), counterexample_pictures(answers)
    )


def counterexample_pictures(answers: Answers) -> Iterable[tuple[str, list[Any]]]:
    """(file name, panels) of each counterexample, if inputs are images."""
    campaign = answers.campaign
    if (layout := layout_of(campaign.input_shape)) is None:
        return
    for fooled in counterexamples(answers):
        point, found = fooled.point, fooled.found
        name = f"input{point.row}-class{point.label}-seen-as-{found.predicted}-distance{found.distance}"
        yield name, panels(point, found.levels, campaign, layout)


def _pair_page(store: Store, title: str | None) -> Page:
    answers = read_pair_answers(store)
    return Page("pair.html", pair_content(answers, title), len(answers.records), _pair_pictures(answers))


def _pair_pictures(answers: PairAnswers) -> Iterable[tuple[str, list[Any]]]:
    if (layout := layout_of(answers.campaign.input_shape)) is None:
        return
    for point, radius, found in differing(answers):
        name = f"input{point.row}-radius{radius.replace('/', '-')}-output{found.output}"
        yield name, panels(point, found.levels, answers.campaign, layout)


def render(page: Page) -> str:
    """The page as text.

    Raises:
        MissingExtraError: the template library is not installed.
    """
    try:
        from jinja2 import DictLoader, Environment, StrictUndefined
    except ModuleNotFoundError as error:
        raise MissingExtraError("writing reports", "report") from error
    parts = files("qertify.campaign.report")
    text = {name: (parts / name).read_text("utf-8") for name in ("base.html", "page.html", "pair.html", "page.css", "page.js")}
    environment = Environment(
        loader=DictLoader(text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    names = page.names | {"table": _script_data(page.names["table"]), "style": text["page.css"], "script": text["page.js"]}
    return environment.get_template(page.template).render(**names, radii=page.names["table"]["radii"])


def _script_data(data: Any) -> str:
    """JSON that can't end the script element that holds it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return "".join(_HARMLESS.get(character, character) for character in text)


def save_pictures(pictures: Iterable[tuple[str, list[Any]]], folder: Path) -> int:
    """One picture a counterexample: original, changed input, difference; returns their number.

    Raises:
        StoreError: the folder can't be written.
    """
    count = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for count, (name, shown) in enumerate(pictures, start=1):
            zoom = max(1, PICTURE // shown[0].shape[1])
            (folder / f"{count:05}-{name}.png").write_bytes(triptych(shown, zoom))
    except OSError as error:
        raise StoreError(f"{folder}: can't be written ({error.strerror or error})") from error
    return count


def _write(path: Path, page: bytes) -> None:
    path.write_bytes(page)
