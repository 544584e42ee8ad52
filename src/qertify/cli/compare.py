"""``qertify compare``: two campaigns side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qertify.cli.flags import JsonOption, VerboseOption
from qertify.cli.supervisor import Channel

if TYPE_CHECKING:
    from qertify.campaign.compare import Comparison
    from qertify.campaign.compare_pairs import PairComparison

SHOWN = 20


def compare_command(
    context: typer.Context,
    first: Annotated[Path, typer.Argument(metavar="A.db", help="A campaign.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B.db", help="Another one.", show_default=False)],
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Show which verdicts and radii differ. Exit status: 0 no contradiction, 1 contradictions."""
    from qertify.campaign.compare import compare
    from qertify.campaign.compare_pairs import compare_pairs
    from qertify.campaign.store import open_store

    channel: Channel = context.obj
    with open_store(first) as before, open_store(second) as after:
        pair = before.campaign.comparison is not None or after.campaign.comparison is not None
        found = compare_pairs(before, after) if pair else compare(before, after)
    text = json.dumps(found.to_json(), allow_nan=False) + "\n" if as_json else _render(found, verbose)
    return channel.finish(text, 1 if found.contradictions else 0)


def _render(found: Comparison | PairComparison, verbose: bool) -> str:
    from qertify.campaign.compare import Comparison

    lines = [
        f"{found.shared} shared inputs, {found.only_first} only in the first, {found.only_second} only in the second; "
        f"{'the same model and question' if found.same_model else 'different models or questions'}",
        f"{len(found.changes)} of {found.compared} verdicts changed",
    ]
    lines += [f"  {count:>6}  {transition}" for transition, count in sorted(found.transitions.items())]
    shown = found.changes if verbose else found.changes[:SHOWN]
    lines += [f"  row {c.row}, label {c.label}, radius {c.radius}: {c.before} → {c.after}" for c in shown]
    if len(shown) < len(found.changes):
        lines.append(f"  … {len(found.changes) - len(shown)} more; -v or --json gives them all")
    if isinstance(found, Comparison):
        lines.append(
            f"largest verified radius: larger at {found.larger} inputs, smaller at {found.smaller}, equal at {found.equal}; "
            f"{found.mean_shift:+.3g} on average"
        )
        lines += [
            f"CONTRADICTION at row {c.row}, label {c.label}: proved up to {c.verified} in the {c.verified_in}, "
            f"refuted at {c.refuted} in the other"
            for c in found.contradictions
        ]
    else:
        lines.append(f"intervals of differences: {found.narrower} narrower, {found.wider} wider")
        lines += [
            f"CONTRADICTION at row {c.row}, label {c.label}: radius {', '.join(c.proved)} is proved in the {c.proved_in}, "
            f"radius {', '.join(c.seen)} contradicts it in the other"
            for c in found.contradictions
        ]
    if not found.contradictions:
        lines.append("no contradiction" if found.same_model else "different questions can't contradict each other")
    return "\n".join(lines) + "\n"
