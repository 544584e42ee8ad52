"""The ablation benchmark: every rung answers, and none against the truth; refused and undecided tasks are counted as said."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from benchmarks.ablation import FULL, Run, Rung, Task, ask, recorded, report, rungs

from qertify.ilp.process import SolverProcesses
from qertify.ilp.solvers import SOLVERS, installed
from qertify.queries.robustness import local_robustness
from tests.oracle.random_networks import random_network, violated_somewhere


def test_every_rung_answers_alike() -> None:
    generator, verdicts = np.random.default_rng(3), set[str]()
    ladder = rungs([solver for solver in SOLVERS if installed(solver)])
    with SolverProcesses() as processes:
        for number in range(6):
            network = random_network(generator)
            centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
            query = local_robustness(network, centre, 2)
            truth = "non_robust" if violated_somewhere(network, query.region, query.property) else "robust"
            runs = [ask(rung, Task("tiny", str(number), query), 20, 0, processes) for rung in ladder]
            assert {run.rung: run.verdict for run in runs} == {rung.name: truth for rung in ladder}
            verdicts.add(truth)
    assert len(verdicts) == 2


def test_ratios() -> None:
    def run(rung: str, task: str, verdict: str, seconds: float | None) -> Run:
        return Run(rung, "tiny", task, verdict, seconds, True, "")

    runs = [
        run(FULL, "a", "robust", 0.5), run(FULL, "b", "robust", 1.0), run(FULL, "c", "non_robust", 2.0),
        run("slow", "a", "unknown", 10.0), run("slow", "b", "robust", 3.0), run("slow", "c", "unknown", None),
        run("wrong", "a", "robust", 1.0), run("wrong", "b", "robust", 1.0), run("wrong", "c", "robust", 1.0),
    ]  # fmt: skip
    lines = list(report(runs, ["slow", "wrong", FULL], 10.0))
    slow = next(line for line in lines if line.startswith("  slow")).split()
    assert slow == ["slow", "2", "1", "6.500", "13.0", "11.5", "8.7"]  # asked, decided, median, total, and ratios on a and b
    assert lines[-2:] == ["\nclaims at odds with the full engine: 1", "  wrong: tiny c robust"]


def test_a_record_is_gone_on_with(tmp_path: Path) -> None:
    network = random_network(np.random.default_rng(3))
    query = local_robustness(network, np.full(network.input_shape, network.input.low), 1)
    ladder, task, record = rungs(["highs"]), Task("tiny", "a", query), tmp_path / "runs.jsonl"
    assert recorded(record, [task], ladder) == recorded(None, [task], ladder) == []
    known = Run(FULL, "tiny", "a", "robust", 0.5, True, "")
    others = [Run(FULL, "tiny", "b", "robust", 0.5, True, ""), Run("of another solver", "tiny", "a", "robust", 0.5, True, "")]
    record.write_text("".join(json.dumps(asdict(run)) + "\n" for run in [others[0], known, others[1]]))
    assert recorded(record, [task], ladder) == [known]


def test_rungs_are_named_apart() -> None:
    ladder: list[Rung] = rungs(list(SOLVERS))
    assert len({rung.name for rung in ladder}) == len(ladder)
    assert [rung.name for rung in ladder if rung.plan is None] == [FULL]
