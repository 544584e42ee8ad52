"""Decide the robustness of CIFAR-10 images on int8 networks: how many within a limit, and how.

    python -m benchmarks.cifar_networks --model base --model residual --images 10 --timeout 60 --out records.jsonl

Each record is one image and radius: verdict, method, seconds, and units before and after. Radii are in grey levels of 0 … 255:
every real-valued image within that distance counts, after quantization. Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
from benchmarks.cifar_models import DEVIATION, MEANS, PERCENTILE, PUBLISHED, RESIDUAL, cifar, normalized, quantized

from qertify import Options, RobustnessQuery, load_model, verify
from qertify.network.evaluate import evaluate
from qertify.network.nodes import Staircase
from qertify.runtimes.base import Runtime, runtime_of
from qertify.specification.property import Classification
from qertify.specification.region import IntegerBox


def region(model: str, runtime: Runtime, pixels: np.ndarray, radius: Fraction) -> IntegerBox:
    """All codes of images within ``radius``/255 of one, clipped to black and white, normalized exactly."""
    grey = np.array([Fraction(int(value)) for value in pixels.reshape(-1)], dtype=object).reshape(pixels.shape)
    low, high = np.maximum(grey - radius, Fraction(0)) / 255, np.minimum(grey + radius, Fraction(255)) / 255
    if model != RESIDUAL:
        means = np.array([Fraction(str(value)) for value in MEANS], dtype=object)[:, None, None]
        low, high = ((side - means) / Fraction(str(DEVIATION)) for side in (low, high))
    return runtime.integer_image(low, high)


def measure(model: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """One record an image and radius, for the first images that the network classifies correctly."""
    path = quantized(model, arguments.folder, arguments.training_seconds, arguments.percentile)
    network = load_model(path)
    runtime = runtime_of(network)
    pixels, labels = cifar(test=True)
    codes = runtime.quantize_input(normalized(model, pixels))
    right = np.concatenate([evaluate(network, part).argmax(1) for part in np.array_split(codes, 20)]) == labels
    activations = sum(int(np.prod(network.shapes[node.name])) for node in network.nodes if isinstance(node, Staircase))
    print(f"{model}: {activations} activations, accuracy {right.mean():.3f} on {len(labels)} test images", flush=True)
    records: list[dict[str, object]] = []
    for radius in map(Fraction, arguments.radius or ["1", "2"]):
        mine: list[dict[str, object]] = []
        for image in np.flatnonzero(right)[: arguments.images].tolist():
            start = time.perf_counter()
            box = region(model, runtime, pixels[image], radius)
            query = RobustnessQuery(network, codes[image], box, Classification(int(labels[image])), radius / 255, "real")
            result = verify(query, Options(timeout=arguments.timeout))
            seconds = time.perf_counter() - start
            mine.append(
                {
                    "model": model,
                    "radius": str(radius),
                    "image": image,
                    "verdict": result.verdict.value,
                    "method": result.method,
                    "seconds": round(seconds, 2),
                    "bound_reached": result.bound_reached,
                }
            )
        decided = [record for record in mine if record["verdict"] != "unknown"]
        kinds = Counter(f"{record['verdict']} by {record['method']}" for record in decided)
        print(f"  {radius}/255: {len(decided)} of {len(mine)} decided; {dict(kinds)}", flush=True)
        records += mine
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=[*PUBLISHED, RESIDUAL], help="all by default")
    parser.add_argument("--radius", action="append", help="in grey levels; 1 and 2 by default")
    parser.add_argument("--images", type=int, default=100, help="correctly classified test images of each network")
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--folder", type=Path, default=Path("demo-output/cifar"), help="where the networks are kept")
    parser.add_argument("--training-seconds", type=float, default=240)
    parser.add_argument("--percentile", type=float, default=PERCENTILE, help="of activations, for their ranges")
    parser.add_argument("--out", type=Path, help="JSON lines, one a question")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    records = [record for model in arguments.model or [*PUBLISHED, RESIDUAL] for record in measure(model, arguments)]
    decided = sum(record["verdict"] != "unknown" for record in records)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{decided} of {len(records)} decided; peak memory {peak:.0f} MiB")
    if arguments.out is not None:
        arguments.out.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    main()
