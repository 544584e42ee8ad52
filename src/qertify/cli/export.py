"""``qertify export``: a campaign's answers as CSV, Parquet or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qertify.cli.flags import VerboseOption
from qertify.cli.supervisor import Channel


def export_command(
    context: typer.Context,
    results: Annotated[Path, typer.Argument(metavar="RESULTS.db", help="A campaign.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .csv, .parquet or .json file.", show_default=False)],
    verbose: VerboseOption = False,
) -> int:
    """Write a campaign's answers for other programs."""
    from qertify.campaign.export import export
    from qertify.campaign.store import open_store

    channel: Channel = context.obj
    with open_store(results) as store:
        count = export(store, out)
    return channel.finish(f"wrote {out}: {count} answers\n", 0)
