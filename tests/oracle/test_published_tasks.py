"""The published fixed-point tasks with a known truth, when the data are there."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from qertify.options import Options
from qertify.queries.robustness import local_robustness, verify
from qertify.result import Verdict
from tests.data import images, published_network, shared_data

needs_data = pytest.mark.skipif(shared_data() is None, reason="the data folder is not there")
MAX_RADIUS = {"mnist_1blk_64_in_8_qu_6.h5": 4, "mnist_1blk_100_in_8_qu_6.h5": 2, "fashion-mnist_1blk_64_in_8_qu_6.h5": 3}
TRUTH = {"robust": Verdict.ROBUST, "non-robust": Verdict.NON_ROBUST, "misclassified": Verdict.MISCLASSIFIED}


@needs_data
@pytest.mark.parametrize(
    "model", ["mnist_1blk_64_in_8_qu_6.h5", "mnist_1blk_100_in_8_qu_6.h5", "fashion-mnist_1blk_64_in_8_qu_6.h5"]
)
def test_no_contradiction_with_trusted_verdicts(model: str) -> None:
    folder = shared_data()
    assert folder is not None
    with (folder / "qvip" / "published" / "tasks.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == model and row["reliability"] == "consistent"]
    tasks = {
        (int(row["sample_id"]), int(row["radius"])): row["verdict"] for row in rows if int(row["radius"]) <= MAX_RADIUS[model]
    }
    network = published_network(model)
    pixels, labels = images("fashion-mnist" if "fashion" in model else "mnist")
    decided = 0
    chosen = sorted(tasks)[:: max(1, len(tasks) // 30)]
    for sample, radius in chosen:
        centre = np.minimum(pixels[sample], network.input.high)
        result = verify(local_robustness(network, centre, radius, label=int(labels[sample])), Options(timeout=2))
        published = tasks[sample, radius]
        if result.verdict is not Verdict.UNKNOWN:
            decided += 1
            assert published == "timeout" or result.verdict is TRUTH[published], f"{model} sample {sample} radius {radius}"
    assert decided >= 0.8 * len(chosen)


@needs_data
def test_every_known_counterexample_replays_and_refutes() -> None:
    folder = shared_data()
    assert folder is not None
    known = np.load(folder / "qvip" / "check" / "counterexamples.npz")
    keys = list(zip(known["model"], known["sample_id"], known["radius"], known["label"], known["x"], strict=True))
    for model, sample, radius, label, x in keys:
        network = published_network(str(model) if str(model).endswith(".h5") else f"{model}.h5")
        pixels, _ = images("fashion-mnist" if "fashion" in str(model) else "mnist")
        query = local_robustness(network, np.minimum(pixels[sample], network.input.high), int(radius), label=int(label))
        assert query.region.contains(x.astype(np.int64)[None])[0]
    found = 0
    chosen = keys[:: len(keys) // 25]
    for model, sample, radius, label, _ in chosen:
        network = published_network(str(model) if str(model).endswith(".h5") else f"{model}.h5")
        pixels, _ = images("fashion-mnist" if "fashion" in str(model) else "mnist")
        query = local_robustness(network, np.minimum(pixels[sample], network.input.high), int(radius), label=int(label))
        result = verify(query, Options(timeout=3))
        assert result.verdict in (Verdict.NON_ROBUST, Verdict.UNKNOWN), f"{model} sample {sample} radius {radius}"
        found += result.verdict is Verdict.NON_ROBUST
    assert found >= 0.9 * len(chosen)
