"""``qertify report``: a campaign as one self-contained web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qertify.cli.common import check_writable
from qertify.cli.flags import VerboseOption
from qertify.cli.supervisor import Channel


def report_command(
    context: typer.Context,
    results: Annotated[Path, typer.Argument(metavar="RESULTS.db", help="A campaign.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="report.html", help="The page.")] = Path("report.html"),
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also save every counterexample as a picture there.", show_default=False),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Headline of the page.", show_default="the model's file name")] = None,
    verbose: VerboseOption = False,
) -> int:
    """Write a page with figures, a table of all answers and pictures of counterexamples."""
    from qertify.campaign.report.write import write_report
    from qertify.campaign.store import open_store

    channel: Channel = context.obj
    check_writable(out, ".html", "--out")
    with open_store(results) as store:
        written = write_report(store, out, images=images, title=title)
    pictures = f", {written.pictures} pictures in {images}" if images is not None else ""
    return channel.finish(f"wrote {out}: {written.answers} answers, {written.size / 1e6:.1f} MB{pictures}\n", 0)
