"""``qertify demo``: a small network on real digits, decided question by question."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qertify._version import __version__
from qertify.cli.common import status_line
from qertify.errors import InvalidInputError, MissingExtraError
from qertify.options import Options
from qertify.result import Result, Verdict

if TYPE_CHECKING:
    from qertify.network.network import Network
    from qertify.network.tensor import IntegerArray

RADII = (1, 2, 3)
BITS, INPUT_BITS = 6, 4
ZOOM = 20
"""Screen pixels an image pixel."""
INTRODUCTION = """\
A neural network reads handwritten digits: images of 8×8 pixels with 16 grey levels, integers throughout.
For {count} of them: if every pixel may change by up to R grey levels, can the network be made to see another digit?
"proved" means that no such change exists, by an exact proof. "fooled" means that one was found; it is saved as a picture."""


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where pictures and results go.")] = Path("demo-output"),
    count: Annotated[int, typer.Option(min=1, max=40, help="Number of images.")] = 20,
    timeout: Annotated[float, typer.Option(metavar="S", help="Time limit of one question, in seconds.")] = 5.0,
) -> int:
    """Verify a small network on handwritten digits, with pictures of what fools it."""
    options = Options(timeout=timeout)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"--out {out}: {error.strerror}") from error
    network, images, labels = demo_network()
    print(INTRODUCTION.format(count=count), flush=True)
    start = time.monotonic()
    results = _run(network, images[:count], labels[:count].tolist(), options)
    pictures = _save(out, images, results)
    _report(results, time.monotonic() - start)
    print(f"{pictures} pictures (original, fooling image, difference) and results.json are in {out}/")
    print(_save_report(out, network, images, results, options))
    return 0


def demo_network() -> tuple[Network, IntegerArray, IntegerArray]:
    """(network, images (count, 64), labels) that come with the package."""
    import numpy as np

    from qertify.importers.keras_fixed_point import load_keras_fixed_point

    with as_file(files("qertify") / "demo_data") as folder:
        network = load_keras_fixed_point(folder / "digits.h5", bits=BITS, input_bits=INPUT_BITS)
        images, labels = (np.load(folder / name, allow_pickle=False).astype(np.int64) for name in ("images.npy", "labels.npy"))
    return network, images.reshape(len(images), -1), labels


def _run(network: Network, images: IntegerArray, labels: list[int], options: Options) -> list[list[Result]]:
    """One list of results an image, in the order of the radii."""
    from qertify.queries.robustness import local_robustness, verify

    results: list[list[Result]] = []
    with status_line("importing the engines …") as show:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            show(f"image {number + 1} of {len(images)}")
            results.append([verify(local_robustness(network, image, radius, label=label), options) for radius in RADII])
    return results


def _save(out: Path, images: IntegerArray, results: list[list[Result]]) -> int:
    """Write results.json and one picture for each image that can be fooled; returns the number of pictures."""
    import numpy as np

    from qertify.campaign.report.pictures import Layout, difference, picture, triptych

    answers = [result.to_json() | {"image": number} for number, row in enumerate(results) for result in row]
    (out / "results.json").write_text(json.dumps(answers, indent=1) + "\n")
    layout, pictures = Layout(8, 8), 0
    for number, row in enumerate(results):
        found = next(((radius, r.counterexample) for radius, r in zip(RADII, row, strict=True) if r.counterexample), None)
        if found is None:
            continue
        radius, counterexample = found
        original, fooling = images[number], np.array(counterexample.levels)
        panels = [picture(codes, layout, 0, 15) for codes in (original, fooling)] + [difference(original, fooling, layout)]
        name = f"image{number:02}-digit{row[0].label}-seen-as-{counterexample.predicted}-radius{radius}.png"
        (out / name).write_bytes(triptych(panels, ZOOM))
        pictures += 1
    return pictures


def _save_report(out: Path, network: Network, images: IntegerArray, results: list[list[Result]], options: Options) -> str:
    """Write the results as a campaign and its report; returns what to say about it."""
    from qertify.campaign.records import Campaign, Point, Record
    from qertify.campaign.report.write import write_report
    from qertify.campaign.store import create_store
    from qertify.network.evaluate import evaluate

    outputs = evaluate(network, images[: len(results)])
    points = [
        Point(
            at, at, row[0].label, -1 if row[0].predicted is None else row[0].predicted, images[at], tuple(outputs[at].tolist())
        )
        for at, row in enumerate(results)
    ]
    campaign = Campaign(
        model_file="digits.h5", model_digest=network.digest, runtime_profile=network.runtime_profile,
        qertify_version=__version__, radii=tuple(map(str, RADII)),
        options={"method": options.method.value, "timeout": options.timeout, "seed": options.seed},
        radius_unit="levels", ties="first", inputs="handwritten digits", labels="handwritten digits", labelled=True,
        input_shape=network.input_shape, input_low=network.input.low, input_high=network.input.high, classes=outputs.shape[1],
        created=datetime.now(UTC).isoformat(timespec="seconds"), command_line=tuple(sys.argv[1:]),
    )  # fmt: skip
    database, page = out / "results.db", out / "report.html"
    database.unlink(missing_ok=True)
    with create_store(database, campaign, points) as store:
        store.add(
            [
                Record(at, str(radius), result)
                for at, row in enumerate(results)
                for radius, result in zip(RADII, row, strict=True)
            ]
        )
        try:
            write_report(store, page, title="Handwritten digits: what is proved, and what fools the network")
        except MissingExtraError as error:
            return f"No report was written: {error}"
    return f"The report is {page}; open it in a browser. Its answers are in {database}."


def _report(results: list[list[Result]], seconds: float) -> None:
    """The table, the counts and the times."""
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "digit", *(f"up to {radius} level{'s' if radius > 1 else ''}" for radius in RADII))
    for number, row in enumerate(results):
        table.add_row(str(number), str(row[0].label), *(_cell(result) for result in row))
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 100)
    console.print(table)
    counts = Counter(result.verdict for row in results for result in row)
    names = {
        Verdict.ROBUST: "proved",
        Verdict.NON_ROBUST: "fooled",
        Verdict.MISCLASSIFIED: "wrong from the start",
        Verdict.UNKNOWN: "not decided in time",
    }
    summary = ", ".join(f"{counts[verdict]} {name}" for verdict, name in names.items() if counts[verdict])
    slowest = max(result.seconds for row in results for result in row)
    console.print(
        f"{sum(counts.values())} questions: {summary}; {seconds:.1f} s in all, the slowest {slowest:.1f} s", highlight=False
    )


def _cell(result: Result) -> str:
    match result.verdict:
        case Verdict.ROBUST:
            return f"[green]proved[/] in {result.seconds:.2f} s"
        case Verdict.NON_ROBUST:
            assert result.counterexample is not None
            return f"[red]fooled[/]: sees a {result.counterexample.predicted}"
        case Verdict.MISCLASSIFIED:
            return f"[yellow]sees a {result.predicted}[/]"
        case Verdict.UNKNOWN:
            return "[yellow]not decided[/]"
