"""Maximum robustness radii of the published samples, against the published ones.

    python -m benchmarks.published_radii --timeout 60

Prints how many radii are exact, every disagreement with its counterexample's distance, and the total time on the rows
that the published method solved beside its own.
"""

from __future__ import annotations

import argparse
import csv
import time

import numpy as np
from benchmarks.published_tasks import images, published_network, shared_data

from qertify.options import Options
from qertify.queries.radius import maximum_radius


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="part of the model's file name")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--only-solved", action="store_true", help="only samples whose radius was published")
    arguments = parser.parse_args()
    folder = shared_data()
    assert folder is not None, "the published radii need the data folder: set QERTIFY_DATA"
    published: dict[tuple[str, int], list[tuple[int | None, float]]] = {}
    with (folder / "qvip" / "published" / "mrr.csv").open() as file:
        for row in csv.DictReader(file):
            solved = row["status"] == "solved"
            answer = (int(row["mrr"]), float(row["seconds"])) if solved else (None, 7200.0)
            published.setdefault((row["model"], int(row["sample_id"])), []).append(answer)
    exact = agree = rows = 0
    ours = theirs = 0.0
    for (model, sample), answers in published.items():
        radii = {radius for radius, _ in answers if radius is not None}
        if arguments.model not in model or (arguments.only_solved and not radii):
            continue
        network = published_network(model)
        pixels, labels = images("fashion-mnist" if "fashion" in model else "mnist")
        start = time.perf_counter()
        result = maximum_radius(
            network,
            np.minimum(pixels[sample], network.input.high),
            label=int(labels[sample]),
            options=Options(timeout=arguments.timeout),
        )
        elapsed = time.perf_counter() - start
        rows += 1
        exact += result.exact
        verdict = "no published radius"
        if radii:
            ours, theirs = ours + elapsed, theirs + min(seconds for radius, seconds in answers if radius is not None)
            agree += result.exact and radii == {result.verified_radius}
            low = -1 if result.verified_radius is None else result.verified_radius
            wrong = [r for r in radii if r < low or (result.refuted_radius is not None and r >= result.refuted_radius)]
            verdict = f"published {sorted(radii)}" + (" CONTRADICTED" if wrong else "")
        print(
            f"{model} sample {sample}: [{result.verified_radius}, {result.refuted_radius}) {verdict}, {elapsed:.2f} s",
            flush=True,
        )
    print(f"{rows} samples, {exact} exact, {agree} equal to the published radius")
    if theirs:
        print(
            f"rows with a published radius: {ours:.1f} s here, {theirs:.1f} s published, ratio {theirs / max(ours, 1e-9):.0f}"
        )


if __name__ == "__main__":
    main()
