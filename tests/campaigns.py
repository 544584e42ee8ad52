"""Small campaigns that tests make themselves, with workers that answer from a list."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from qertify.campaign.records import Campaign, Point
from qertify.campaign.runner import Plan, Progress, run_campaign
from qertify.campaign.store import Store
from qertify.importers.registry import ImportOptions, load_model
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.options import Options
from qertify.parallel.processes import COMMAND, Processes
from qertify.parallel.worker import greeting
from qertify.queries.robustness import RobustnessQuery, local_robustness, verify
from qertify.specification.property import Ties
from tests.files import BITS, INPUT_BITS, comparison_model

RADII = ("1", "2", "3", "4", "6")
CANNED = """
import json, sys, time
answers = json.load(open(sys.argv[1]))
sys.stdin.readline()
print(json.dumps({"ready": answers["digest"]}), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    time.sleep(float(sys.argv[2]))
    key = "/".join(map(str, [*question["centre"], question["label"], question["radius"]]))
    print(json.dumps({"result": answers[key]}), flush=True)
"""


class Question:
    """What the runner needs of a question."""

    pixels = None

    def __init__(self, query: RobustnessQuery) -> None:
        self.query, self.given = query, query.centre

    def confirm(self, result: Any) -> Any:
        return result


class SmallCampaign:
    """Two inputs, two classes: class 0 wins while x₀ ≥ x₁; all centres on a grid, some labels wrong."""

    def __init__(self, folder: Path, count: int = 24) -> None:
        self.model = comparison_model(folder / "m.h5")
        self.imports = ImportOptions(bits=BITS, input_bits=INPUT_BITS)
        self.network: Network = load_model(self.model, self.imports)
        rng = np.random.default_rng(5)
        codes = rng.integers(0, 16, size=(count, 2))
        outputs = evaluate(self.network, codes)
        predicted = Ties.FIRST.predicted(outputs)
        labels = np.where(np.arange(count) % 7 == 3, 1 - predicted, predicted)
        self.points = [
            Point(at, at, int(labels[at]), int(predicted[at]), codes[at], tuple(outputs[at].tolist())) for at in range(count)
        ]

    def campaign(self, **changes: Any) -> Campaign:
        values: dict[str, Any] = {
            "model_file": "m.h5", "model_digest": self.network.digest, "runtime_profile": self.network.runtime_profile,
            "qertify_version": "0", "options": {"method": "auto", "timeout": None, "seed": 0}, "radii": RADII,
            "radius_unit": "levels", "ties": "first", "inputs": "x.npy", "labelled": True, "input_shape": (2,),
            "input_low": 0, "input_high": 15, "classes": 2, "created": "2020-01-01T00:00:00+00:00",
        }  # fmt: skip
        return Campaign(**values | changes)

    def pose(self, position: int, radius: Fraction | None) -> Question:
        point = self.points[position]
        return Question(local_robustness(self.network, point.codes, radius or 0, label=point.label))

    @contextmanager
    def executor(
        self, workers: int = 2, options: Options | None = None, command: tuple[str, ...] = COMMAND
    ) -> Generator[Processes]:
        options = options or Options()
        first = greeting(self.model, self.imports, options)
        with closing(Processes(workers, first, self.network.digest, options.memory, command)) as executor:
            yield executor

    def canned(self, folder: Path, delay: float = 0.0) -> tuple[str, ...]:
        """The command of workers that know all answers."""
        answers: dict[str, Any] = {"digest": self.network.digest}
        for point in self.points:
            for radius in RADII:
                result = verify(self.pose(point.position, Fraction(radius)).query)
                answers["/".join(map(str, [*point.codes.tolist(), point.label, radius]))] = result.to_json()
        (folder / "answers.json").write_text(json.dumps(answers))
        (folder / "canned.py").write_text(CANNED)
        return sys.executable, "-S", str(folder / "canned.py"), str(folder / "answers.json"), str(delay)

    def run(
        self,
        store: Store,
        options: Options | None = None,
        budget: float | None = None,
        progress: Callable[[Progress], None] | None = None,
        **executor: Any,
    ) -> bool:
        with self.executor(options=options, **executor) as workers:
            return run_campaign(store, self.pose, Plan(workers, options or Options(), budget), progress)


def verdicts(store: Store) -> list[tuple[Any, ...]]:
    """The table of verdicts, in order."""
    return sorted(
        (r.position, Fraction(r.radius), r.result.verdict.value, r.implied_by, r.result.counterexample) for r in store.records()
    )
