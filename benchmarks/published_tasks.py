"""Decide the published fixed-point tasks and compare with everything known about them.

    python -m benchmarks.published_tasks --model mnist_1blk_64 --max-radius 4 --timeout 5
    python -m benchmarks.published_tasks --max-radius 30 --timeout 60 --record tasks.jsonl

Prints how many tasks are decided, the quantiles of the wall time (in process, imports excluded), and every contradiction
with a published verdict of a block without known errors or with a known counterexample. A run that was cut short goes on
where its record ends.
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
    records: list[dict[str, Any]] = []
    if arguments.record and arguments.record.exists():
        records = [json.loads(line) for line in arguments.record.read_text().splitlines()]
    done = {(record["model"], record["sample"], record["radius"]) for record in records}
    for model, sample, radius, published, known in tasks(arguments):
        if (model, sample, radius) in done:
            continue
        network = published_network(model)
        dataset = "fashion-mnist" if "fashion" in model else "mnist"
        pixels, labels = images(dataset)
        centre = np.minimum(pixels[sample], network.input.high)
        start, processor = time.perf_counter(), time.process_time()
        result = verify(local_robustness(network, centre, radius, label=int(labels[sample])), options)
        elapsed = time.perf_counter() - start
        record = {"model": model, "sample": sample, "radius": radius, "verdict": result.verdict.value, "published": published}
        record |= {"known": known, "method": result.method, "nodes": result.nodes}
        record |= {"seconds": elapsed, "processor_seconds": time.process_time() - processor}
        record |= {"bound_reached": result.bound_reached, "nearest_class": result.nearest_class}
        records.append(record)
        if arguments.verbose:
            print(f"{title(record)}: {elapsed:.2f} s, {result.method}, {result.nodes} nodes", flush=True)
        if arguments.record:
            with arguments.record.open("a") as file:
                file.write(json.dumps(record) + "\n")
    summarize(records)


def title(record: dict[str, Any]) -> str:
    """One line about a task."""
    line = f"{record['model']} sample {record['sample']} radius {record['radius']}: {record['verdict']}"
    return f"{line} (published {record['published']}, counterexample known: {record['known']})"


def summarize(records: list[dict[str, Any]]) -> None:
    """Print what was decided, in what time, and everything that should not be so."""
    counts = Counter(record["verdict"] for record in records)
    seconds = [record["seconds"] for record in records]
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
    at_odds = [title(item) for item in records if contradiction(item["verdict"], item["published"], item["known"])]
    missed = [title(item) for item in records if item["known"] and item["verdict"] != "non_robust"]
    undecided = [
        f"{title(item)}: bound {item['bound_reached']}, class {item['nearest_class']}"
        for item in records
        if item["verdict"] == "unknown"
    ]
    for heading, lines in (
        ("contradictions", at_odds),
        ("known counterexamples missed", missed),
        ("undecided", undecided),
    ):
        print(f"{heading}: {len(lines)}", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
