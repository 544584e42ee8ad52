"""What each part of the engine brings: the same tasks, one run, from an integer program alone to the full engine.

    python -m benchmarks.ablation
    python -m benchmarks.ablation --kinds fixed-point --tasks 20 --limit 60 --solvers highs gurobi --only "one-hot ILP +" \
        --record runs.jsonl

Every rung is asked every task, in one process with one thread, and solvers in children that are started beforehand. An
undecided task counts with the time limit. Claims of floating-point solvers count as decisions, in favour of the integer
programs; where they are at odds with the full engine's exact answer, they are listed. Prints medians and totals as
ratios to the full engine on the same tasks, those left out that a solver's licence refuses or that it broke down on. A
run that was cut short goes on where its record ends, with the same tasks and limit.

Tasks that interval arithmetic settles cost everybody a millisecond and say nothing; they are left out, and counted.
The fixed-point tasks are published ones (verdicts without known errors, radii up to --max-radius) where the data folder is
there, else digits; the int8 networks are trained here and quantized by torch and by onnxruntime's own tool.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tests.data import images as published_images
from tests.data import published_network, shared_data

from qertify.cli.demo import demo_network
from qertify.ilp.builder import Builder
from qertify.ilp.model import Status
from qertify.ilp.process import SolverProcesses
from qertify.ilp.solvers import EXACT_SOLVERS, SOLVERS, installed
from qertify.importers.registry import load_model
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.ranges import full_range, ranges
from qertify.options import Options
from qertify.queries.robustness import RobustnessQuery, local_robustness
from qertify.result import Evidence
from qertify.runtimes.base import runtime_of
from qertify.search import stages
from qertify.search.portfolio import decide
from qertify.search.question import Question
from qertify.specification.splitting import splitter_of

FULL = "full engine"
HELD_OUT = 400


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to answer: stages in order, and the form of its integer programs."""

    name: str
    plan: tuple[stages.Stage, ...] | None
    solver: str = "highs"
    encoding: str = "compact"


@dataclass(frozen=True, slots=True)
class Task:
    """One question."""

    kind: str
    name: str
    query: RobustnessQuery


@dataclass(frozen=True, slots=True)
class Run:
    """What one rung made of one task; refused by a licence if seconds is None."""

    rung: str
    kind: str
    task: str
    verdict: str
    seconds: float | None
    exact: bool
    explanation: str


def alone(question: Question) -> None:
    """The integer program without any analysis of the region: units range over what valid inputs can reach."""
    known = ranges(question.network, *full_range(question.network))
    splitter = splitter_of(question.network, question.property, known)
    engine = replace(question.engine(), known=known, splitter=splitter, propagate=False)
    answer = engine.decide(splitter.cases(), question.options.solver, question.deadline)
    if answer.status is Status.FEASIBLE:
        question.decision.counterexample = answer.counterexample
    elif answer.status is Status.INFEASIBLE:
        question.decision.evidence = Evidence.EXACT_SOLVER if answer.exact else Evidence.SOLVER_CLAIM
    question.say(f"ilp: {answer.status.value} {answer.reason}")


def share_bounds(question: Question) -> None:
    """Let the integer programs know the dual bounds on accumulators."""
    program = question.program
    if program is None:
        return
    for unit, low, high in zip(program.units, program.low.tolist(), program.high.tolist(), strict=True):
        if unit.node and unit.element >= 0:
            less, more = question.known[unit.node]
            less.reshape(-1)[unit.element] = max(int(low), less.reshape(-1)[unit.element])
            more.reshape(-1)[unit.element] = min(int(high), more.reshape(-1)[unit.element])


def rungs(solvers: Sequence[str]) -> list[Rung]:
    """From the published method to the full engine on the first solver, and the integer programs on the others."""
    bounds, attacks = (stages.interval,), (stages.quick_attack, stages.dual, share_bounds, stages.strong_attack)
    first = solvers[0]
    ladder = [
        Rung(f"one-hot ILP alone, {first}", (alone,), first, "one-hot"),
        Rung(f"one-hot ILP + interval bounds, {first}", (*bounds, stages.ilp), first, "one-hot"),
        Rung(f"ILP alone, {first}", (alone,), first),
        Rung(f"ILP + interval bounds, {first}", (*bounds, stages.ilp), first),
        Rung(f"ILP + dual bounds, {first}", (*bounds, stages.dual, share_bounds, stages.ilp), first),
        Rung(f"ILP + attack, {first}", (*bounds, *attacks, stages.ilp), first),
    ]
    for solver in solvers[1:]:
        ladder += [
            Rung(f"one-hot ILP + interval bounds, {solver}", (*bounds, stages.ilp), solver, "one-hot"),
            Rung(f"ILP + interval bounds, {solver}", (*bounds, stages.ilp), solver),
        ]
    return [*ladder, Rung(FULL, None)]


def ask(rung: Rung, task: Task, limit: float, seed: int, processes: SolverProcesses) -> Run:
    """One rung on one task."""
    options = Options(solver=rung.solver, encoding=rung.encoding, timeout=limit, seed=seed)
    query, start = task.query, time.monotonic()
    decision = decide(
        query.network, query.region, query.property, options, deadline=start + limit, plan=rung.plan, processes=processes
    )
    seconds: float | None = min(time.monotonic() - start, limit)
    verdict = "non_robust" if decision.counterexample is not None else "robust" if decision.evidence else "unknown"
    last = decision.explanation[-1] if decision.explanation else ""
    if verdict == "unknown":
        seconds = None if ": failed" in last else limit
    return Run(rung.name, task.kind, task.name, verdict, seconds, decision.evidence is not Evidence.SOLVER_CLAIM, last)


def _shuffled(items: Sequence[Any], seed: int) -> list[Any]:
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items)).tolist()]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """8×8 images (count, 1, 8, 8) in 0 … 1 and labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images[:, None] / 16).astype(np.float32), digits.target


def fixed_point(largest: int, seed: int) -> Iterator[Task]:
    """Published tasks on 784-input networks of one hidden layer, or the demo's network."""
    folder = shared_data()
    if folder is None:
        network, pictures, labels = demo_network()
        for number, radius in _shuffled([(n, r) for n in range(len(pictures)) for r in range(1, 4)], seed):
            query = _question(network, pictures[number], labels[number], radius)
            yield Task("fixed-point", f"digit {number} r{radius}", query)
        return
    with (folder / "qvip" / "published" / "tasks.csv").open() as file:
        rows = {
            (row["model"], int(row["sample_id"]), int(row["radius"]))
            for row in csv.DictReader(file)
            if row["reliability"] == "consistent"
            and row["verdict"] != "misclassified"
            and row["model"] in ("mnist_1blk_64_in_8_qu_4.h5", "mnist_1blk_64_in_8_qu_6.h5", "mnist_1blk_100_in_8_qu_6.h5")
            and int(row["radius"]) <= largest
        }
    pixels, labels = published_images("mnist")
    for model, sample, radius in _shuffled(sorted(rows), seed):
        network = published_network(model)
        yield Task("fixed-point", f"{model} {sample} r{radius}", _question(network, pixels[sample], labels[sample], radius))


def int8(seed: int) -> list[Iterator[Task]]:
    """A small CNN on 8×8 digits, quantized by torch and by onnxruntime's tool; a grey level is 16 codes."""
    import onnx
    import torch
    from examples import onnx_int8, torch_int8
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    from qertify import import_torch

    pictures, labels = _digits()
    model = torch_int8.trained(pictures[:-HELD_OUT], labels[:-HELD_OUT])
    module = torch_int8.quantized(model, pictures[:200], "fbgemm")
    networks = {"torch int8": import_torch(module, torch.from_numpy(pictures[:1]), "fbgemm")}
    with tempfile.TemporaryDirectory() as folder:
        plain, quantized = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(onnx_int8.float_onnx(model), plain)
        calibration = onnx_int8.Calibration(pictures[:200])
        quantize_static(
            plain, quantized, calibration, quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, per_channel=True,
        )  # fmt: skip
        networks["onnxruntime int8"] = load_model(quantized)
    return [_int8_tasks(kind, network, pictures, labels, seed) for kind, network in networks.items()]


def _int8_tasks(kind: str, network: Network, pictures: np.ndarray, labels: np.ndarray, seed: int) -> Iterator[Task]:
    codes = runtime_of(network).quantize_input(pictures)
    for number, radius in _shuffled([(n, r) for n in range(1, HELD_OUT) for r in (8, 16, 32)], seed):
        yield Task(kind, f"digit -{number} r{radius}", _question(network, codes[-number], labels[-number], radius))


def _question(network: Network, centre: np.ndarray, label: int, radius: int) -> RobustnessQuery:
    return local_robustness(network, np.minimum(centre, network.input.high), radius, label=int(label))


def report(runs: Sequence[Run], order: Sequence[str], limit: float) -> Iterator[str]:
    """Tables of the whole and of each kind."""
    answers = {(run.rung, run.kind, run.task): run for run in runs}
    full = {key[1:]: run for key, run in answers.items() if key[0] == FULL}
    for kind in [None, *sorted({run.kind for run in runs})]:
        count = sum(kind in (None, task[0]) for task in full)
        yield f"\n{kind or 'all'}: {count} tasks, limit {limit:g} s"
        yield f"  {'':46}{'asked':>6}{'decided':>8}{'median s':>10}{'total s':>9}{'median ratio':>14}{'ratio of totals':>16}"
        for name in order:
            pairs = [
                (run.seconds, full[task].seconds, run.verdict)
                for task in full
                if kind in (None, task[0]) and (run := answers[name, *task]).seconds is not None
            ]
            if not pairs:
                yield f"  {name:46}{0:>6}"
                continue
            own, other = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            decided = sum(verdict != "unknown" for _, _, verdict in pairs)
            ratio = statistics.median(mine / theirs for mine, theirs in zip(own, other, strict=True))
            yield (
                f"  {name:46}{len(pairs):>6}{decided:>8}{statistics.median(own):>10.3f}{sum(own):>9.1f}"
                f"{ratio:>14.1f}{sum(own) / sum(other):>16.1f}"
            )
    wrong = [
        run
        for run in runs
        if "unknown" not in (run.verdict, full[run.kind, run.task].verdict) and run.verdict != full[run.kind, run.task].verdict
    ]
    yield f"\nclaims at odds with the full engine: {len(wrong)}"
    for run in wrong:
        yield f"  {run.rung}: {run.kind} {run.task} {run.verdict}{'' if run.exact else ' (a claim)'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2, help="tasks of each kind of network")
    parser.add_argument("--limit", type=float, default=3.0, help="seconds for one task")
    parser.add_argument("--max-radius", type=int, default=6, help="largest radius of the published tasks")
    parser.add_argument("--kinds", nargs="+", default=["fixed-point", "int8"], choices=["fixed-point", "int8"])
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=list(SOLVERS))
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORDS", help="rungs whose name has one of these in it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="append one JSON line a rung and task, and go on where it ends")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    solvers = [solver for solver in arguments.solvers if installed(solver)]
    if missing := sorted(set(arguments.solvers) - set(solvers)):
        print(f"not installed, left out: {', '.join(missing)}")
    streams = [fixed_point(arguments.max_radius, arguments.seed)] if "fixed-point" in arguments.kinds else []
    streams += int8(arguments.seed) if "int8" in arguments.kinds else []
    trivial = Counter[bool]()
    tasks = [task for stream in streams for task in islice(_worth_asking(stream, trivial), arguments.tasks)]
    ladder = [rung for rung in rungs(solvers) if rung.plan is None or any(words in rung.name for words in arguments.only)]
    runs = recorded(arguments.record, tasks, ladder)
    done = {(run.rung, run.kind, run.task) for run in runs}
    for task in tasks:
        for rung in ladder:
            if (rung.name, task.kind, task.name) in done:
                continue
            with SolverProcesses() as processes:  # a child each time, warm, so that no rung profits from another
                _warm(processes, {rung.solver, *EXACT_SOLVERS})
                runs.append(ask(rung, task, arguments.limit, arguments.seed, processes))
            if arguments.verbose:
                print(asdict(runs[-1]), flush=True)
            if arguments.record:
                with arguments.record.open("a") as file:
                    file.write(json.dumps(asdict(runs[-1])) + "\n")
    print(shlex.join(["python", "-m", "benchmarks.ablation", *sys.argv[1:]]))
    print(f"tasks left out because interval arithmetic settles them: {trivial[True]} of {trivial.total()}")
    print(*report(runs, [rung.name for rung in ladder], arguments.limit), sep="\n")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def recorded(record: Path | None, tasks: Sequence[Task], ladder: Sequence[Rung]) -> list[Run]:
    """What an earlier run has recorded of these tasks and rungs."""
    if record is None or not record.exists():
        return []
    wanted = {(rung.name, task.kind, task.name) for task in tasks for rung in ladder}
    runs = [Run(**json.loads(line)) for line in record.read_text().splitlines()]
    return [run for run in runs if (run.rung, run.kind, run.task) in wanted]


def _worth_asking(tasks: Iterator[Task], trivial: Counter[bool]) -> Iterator[Task]:
    """The tasks whose label wins at the centre and that interval arithmetic leaves open; counts whether it does."""
    for task in tasks:
        query = task.query
        if query.property.violated(evaluate(query.network, query.centre[None]))[0]:
            continue
        known = ranges(query.network, query.region.low[None], query.region.high[None])
        settled = not splitter_of(query.network, query.property, known).cases()
        trivial[settled] += 1
        if not settled:
            yield task


def _warm(processes: SolverProcesses, solvers: set[str]) -> None:
    builder = Builder()
    builder.row([(1, builder.binary())], 1, None)
    program = builder.finish()[0]
    for solver in solvers:
        processes.solve(solver, program)


if __name__ == "__main__":
    main()
