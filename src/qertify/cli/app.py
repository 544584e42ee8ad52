"""The commands, one file each, as one typer application."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qertify._version import __version__
from qertify.cli.campaign import CampaignCommand, campaign_command
from qertify.cli.check import check_command
from qertify.cli.compare import compare_command
from qertify.cli.demo import demo
from qertify.cli.equiv import equiv_command
from qertify.cli.evaluate import evaluate_command
from qertify.cli.export import export_command
from qertify.cli.info import info
from qertify.cli.radius import radius_command
from qertify.cli.report import report_command
from qertify.cli.verify import verify_command
from qertify.cli.vnnlib import vnnlib_command

app = typer.Typer(
    help="Proofs and counterexamples for quantized neural networks, in exact integer arithmetic.",
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,
)
app.command("verify")(verify_command)
app.command("radius")(radius_command)
app.command("equiv")(equiv_command)
app.command("vnnlib")(vnnlib_command)
app.command("eval")(evaluate_command)
app.command("info")(info)
app.command("campaign", cls=CampaignCommand)(campaign_command)
app.command("check")(check_command)
app.command("compare")(compare_command)
app.command("export")(export_command)
app.command("report")(report_command)
app.command("demo")(demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"qertify {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Proofs and counterexamples for quantized neural networks, in exact integer arithmetic."""


def command() -> Any:
    """The parser's command object."""
    return typer.main.get_command(app)
