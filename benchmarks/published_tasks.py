"""Decide the published fixed-point tasks and compare with everything known about them.

    python -m benchmarks.published_tasks --model mnist_1blk_64 --max-radius 4 --timeout 5

Prints how many tasks are decided, the quantiles of the wall time (in process, imports excluded), and every contradiction
with a published verdict of a block without known errors or with a known counterexample.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tests.data import images, published_network, shared_data

from qertify.options import Method, Options
from qertify.queries.robustness import local_robustness, verify


def tasks(arguments: argparse.Namespace) -> Iterator[tuple[str, int, int, str, bool]]:
    """(model, sample, radius, published verdict, counterexample known), each once."""
    folder = shared_data()
    assert folder is not None, "the published tasks need the data folder: set QERTIFY_DATA"
    seen: dict[tuple[str, int, int], tuple[str, bool]] = {}
    with (folder / "qvip" / "published" / "tasks.csv").open() as file:
        for row in csv.DictReader(file):
            key = (row["model"], int(row["sample_id"]), int(row["radius"]))
            wanted = arguments.min_radius <= key[2] <= arguments.max_radius and arguments.model in key[0]
            if row["reliability"] not in arguments.reliability or not wanted:
                continue
            known = row["exact_check"] == "counterexample"
            verdict = row["verdict"] if row["reliability"] == "consistent" else "untrusted"
            before = seen.get(key, ("", False))
            seen[key] = (verdict if verdict != "timeout" or not before[0] else before[0], known or before[1])
    chosen = [(key, value) for key, value in seen.items() if value[1] or not arguments.known]
    if arguments.count:
        chosen = [chosen[i] for i in np.random.default_rng(arguments.seed).permutation(len(chosen))[: arguments.count]]
    for (model, sample, radius), (verdict, known) in chosen:
        yield model, sample, radius, verdict, known


def contradiction(verdict: str, published: str, known: bool) -> bool:
    """Whether an answer is at odds with the data."""
    if verdict == "robust":
        return known or published in ("non-robust", "misclassified")
    if verdict == "non_robust":
        return published in ("robust", "misclassified") and not known
    return verdict == "misclassified" and published != "misclassified" and published != "untrusted"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="part of the model's file name")
    parser.add_argument("--min-radius", type=int, default=0)
    parser.add_argument("--max-radius", type=int, default=4)
    parser.add_argument("--count", type=int, default=0, help="random sample of this size, 0 for all")
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--method", default="auto", choices=[method.value for method in Method])
    parser.add_argument("--reliability", nargs="+", default=["consistent"])
    parser.add_argument("--known", action="store_true", help="only tasks with a known counterexample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="write one JSON line a task")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    options = Options(method=Method(arguments.method), timeout=arguments.timeout, seed=arguments.seed)
    counts: Counter[str] = Counter()
    seconds: list[float] = []
    contradictions, missed, undecided, records = [], [], [], list[dict[str, Any]]()
    for model, sample, radius, published, known in tasks(arguments):
        network = published_network(model)
        dataset = "fashion-mnist" if "fashion" in model else "mnist"
        pixels, labels = images(dataset)
        centre = np.minimum(pixels[sample], network.input.high)
        start = time.perf_counter()
        result = verify(local_robustness(network, centre, radius, label=int(labels[sample])), options)
        elapsed = time.perf_counter() - start
        name = f"{model} sample {sample} radius {radius}"
        counts[result.verdict.value] += 1
        seconds.append(elapsed)
        if contradiction(result.verdict.value, published, known):
            contradictions.append(f"{name}: {result.verdict.value}, but published {published}, counterexample known: {known}")
        if known and result.verdict.value != "non_robust":
            missed.append(f"{name}: {result.verdict.value}")
        if result.verdict.value == "unknown":
            undecided.append(f"{name} (published {published}): bound {result.bound_reached}, class {result.nearest_class}")
        if arguments.verbose:
            print(f"{name}: {result.verdict.value} {result.method} {elapsed:.2f} s, {result.nodes} nodes", flush=True)
        records.append(
            {"model": model, "sample": sample, "radius": radius, "verdict": result.verdict.value, "published": published}
            | {"method": result.method, "seconds": elapsed, "nodes": result.nodes}
        )
    if arguments.record:
        arguments.record.write_text("".join(json.dumps(record) + "\n" for record in records))
    total = len(seconds)
    print(f"{total} tasks: {dict(counts)}; decided {total - counts['unknown']} ({1 - counts['unknown'] / max(total, 1):.2%})")
    quantiles = {q: float(np.quantile(seconds, q)) for q in (0.5, 0.9, 0.95, 0.99, 1.0)} if seconds else {}
    print(
        "seconds in process:",
        {q: round(value, 3) for q, value in quantiles.items()},
        "mean",
        round(statistics.fmean(seconds), 3),
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    for title, lines in (
        ("contradictions", contradictions),
        ("known counterexamples missed", missed),
        ("undecided", undecided),
    ):
        print(f"{title}: {len(lines)}", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
