"""``qertify campaign QUANT_MODEL --float FLOAT_MODEL``: two models around many inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qertify.campaign.agreement import Agreement, agreement
from qertify.campaign.equivalence import EquivalenceStudy
from qertify.campaign.records import Campaign, Comparison, Point
from qertify.campaign.runner import Plan, Progress, run_study
from qertify.campaign.store import create_store, resume_store
from qertify.cli.common import say
from qertify.cli.flags import ComparisonFlags, PixelFlags, RegionFlags, parse_delta
from qertify.cli.pairing import Files, View, confirm
from qertify.cli.workers import sharing
from qertify.importers.registry import ImportOptions
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.options import Options
from qertify.parallel.place import Place
from qertify.queries.equivalence_result import EquivalenceResult
from qertify.runtimes.saturation import host_cpu_class
from qertify.search.comparison import EquivalenceQuery, FloatSemantics, Judge
from qertify.specification.property import Ties

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

CHUNK = 1024
"""Rows evaluated at once."""


@dataclass(frozen=True, slots=True)
class PairCampaign:
    """What is asked, as the flags say it.

    Attributes:
        radii: exact radius → as it was spelt, ascending.
        region: of which the radius is left open.
        describe: makes a campaign's description from what is particular to this kind.
    """

    original: Path
    quantized: Path
    inputs: str
    radii: dict[Fraction, str]
    region: RegionFlags
    pixels: PixelFlags
    deltas: list[str]
    asked: ComparisonFlags
    imports: ImportOptions
    options: Options
    describe: Callable[..., Campaign]


@dataclass(frozen=True, slots=True)
class Question:
    """As `qertify.campaign.equivalence.PosedPair`."""

    files: Files
    query: EquivalenceQuery

    def confirm(self, result: EquivalenceResult) -> EquivalenceResult:
        return confirm(result, self.query, self.files.original, self.files.quantized)


def run_pairs(
    asked: PairCampaign,
    out: Path,
    resume: bool,
    place: Place,
    budget: float | None,
    shown: AbstractContextManager[Callable[[Progress], None]],
) -> Agreement:
    """Run the campaign, or what is open of it.

    Raises:
        QertifyError: whatever is wrong with the flags, the models or the inputs, or a file that can't be used.
    """
    flags = asked.asked
    questions = _questions(asked)
    files = Files(asked.original, asked.quantized, asked.imports, flags.original_bits, flags.original_runtime)
    original, quantized = files.load()
    view = View.of(quantized, flags.input_scale, asked.pixels.preprocessing(quantized, asked.region.radius_unit))
    index, rows = view.rows(asked.inputs)
    semantics = FloatSemantics(flags.float_semantics)

    @lru_cache(maxsize=256)
    def pose(position: int, radius: Fraction, question: str) -> Question:
        region = replace(asked.region, radius=asked.radii[radius])
        inputs = view.region(rows[position], region)
        delta = None if flags.top1 or flags.max_delta else Fraction(question)
        return Question(files, EquivalenceQuery(original, quantized, inputs, delta, flags.top1, flags.output, semantics))

    every = [pose(0, radius, questions[0]) for radius in asked.radii]  # looked at once before any work is done
    points = _points(every[0].query, view, index, rows)
    kernels = any("kernels" in network.metadata for network in (original, quantized) if isinstance(network, Network))
    cpu_class = (asked.options.cpu_class or host_cpu_class().value) if kernels else None
    campaign = asked.describe(
        quantized, points, radius_unit=view.unit(asked.region).value, ties=Ties.FIRST.value, labels=None,
        cpu_class=cpu_class,
        comparison=Comparison(
            asked.original.name, original.digest, questions, flags.float_semantics, flags.output, flags.input_scale,
            hashlib.sha256(np.ascontiguousarray(rows).astype(rows.dtype.newbyteorder("<")).tobytes()).hexdigest(),
        ),
    )  # fmt: skip
    options = replace(asked.options, cpu_class=cpu_class)
    with (resume_store if resume else create_store)(out, campaign, points) as store:
        say(f"campaign: {len(points)} inputs, radii {', '.join(asked.radii.values())}, {', '.join(questions)}; kept in {out}")
        with (
            sharing(place, asked.quantized, asked.imports, options, quantized, always=True, original=files.first) as executor,
            shown as progress,
        ):
            assert executor is not None
            run_study(EquivalenceStudy(store, pose, options), Plan(executor, options, budget), progress)
        return agreement(store)


def _questions(asked: PairCampaign) -> tuple[str, ...]:
    if asked.asked.top1 or asked.asked.max_delta:
        return ("top1",) if asked.asked.top1 else ("max_delta",)
    return tuple(map(str, sorted({parse_delta(text) for text in asked.deltas})))


def _points(query: EquivalenceQuery, view: View, index: np.ndarray, rows: np.ndarray) -> list[Point]:
    """Each input with the classes that both networks predict there; the original's stands for the label."""
    network = query.quantized
    judge, points = Judge(query), list[Point]()
    for first in range(0, len(rows), CHUNK):
        x, codes = view.read(rows[first : first + CHUNK])
        classes, outputs = judge.estimates(x, codes)[0].argmax(axis=1), evaluate(network, codes)
        predicted = Ties.FIRST.predicted(outputs)
        points += [
            Point(first + at, int(index[first + at]), int(classes[at]), int(predicted[at]), codes[at], tuple(row.tolist()))
            for at, row in enumerate(outputs)
        ]
    return points


def render_agreement(found: Agreement) -> str:
    """The outcome for a terminal."""
    lines = [
        f"{found.inputs} inputs, at {found.same_class} of them both models predict the same class",
        f"{'radius':>10} {'asked':>12} {'equivalent':>11} {'not':>6} {'unknown':>8} {'open':>6}",
    ]
    lines += [
        f"{row.radius:>10} {row.asked:>12} {row.equivalent:>11} {row.not_equivalent:>6} {row.unknown:>8} {row.open:>6}"
        for row in found.rows
    ]
    for radius in dict.fromkeys(row.radius for row in found.rows):
        known = [entry for entry in found.apart if entry.radius == radius]
        attained = max((entry.attained for entry in known if entry.attained is not None), default=None)
        proved = [entry.proved for entry in known if entry.proved is not None]
        if attained is not None:
            all_proved = len(proved) == len(known)
            above = f"at most {max(proved):.6g} is proved" if all_proved else "nothing is proved for all inputs"
            lines.append(f"radius {radius}: a difference of {attained:.6g} is attained, {above}")
    if found.reasons:
        lines.append("unknown because of " + ", ".join(f"{name} ({count})" for name, count in sorted(found.reasons.items())))
    lines.append(
        f"{found.answers} answers, {found.questions} of them asked and the others implied; radii in {found.radius_unit}; "
        f"{found.seconds:.1f} s of work"
    )
    return "\n".join(lines) + "\n"
