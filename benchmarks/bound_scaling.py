"""Time and memory of one bound pass against the number of neurons, 10³ … 10⁶, with a plot.

    python -m benchmarks.bound_scaling --largest 6 --out bound_scaling.svg

Each network has four convolutions of 16 channels on a square image, a pooling and a dense layer, random 4-bit weights and
8-bit activations; only the size of the image grows. A pass is everything that a bound takes: exact intervals of all nodes,
compiling the operators, one backward pass for nine objectives, and the exact evaluation in integers.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch

from qertify.bounds.chords import initial_multipliers
from qertify.bounds.dual import prove
from qertify.bounds.operate import compile_operators
from qertify.network.network import Network
from qertify.network.nodes import Convolution, Dense, Input, Node, PoolSum, Rearrange, Staircase, Window, per_channel_rows
from qertify.network.ranges import ranges
from qertify.network.staircase import Rounding, shift_steps
from qertify.network.tensor import QuantizationParameters, as_integers
from qertify.search.domains import root_domains
from qertify.specification.property import Classification
from qertify.specification.region import linf_ball
from qertify.specification.splitting import splitter_of

CHANNELS, LAYERS, CLASSES, POOLED = 16, 4, 10, 8


def random_network(side: int, generator: np.random.Generator) -> Network:
    """16·4·side² neurons and a few; ``side`` is a multiple of 8."""
    nodes: list[Node] = [Input("image", (3, side, side), 0, 255)]
    channels, window = 3, Window((3, 3), (1, 1), (1, 1, 1, 1))
    for layer in range(LAYERS):
        weight = as_integers(generator.integers(-8, 8, size=(CHANNELS, channels, 3, 3)))
        bias = as_integers(generator.integers(0, 2000, size=CHANNELS))
        nodes.append(Convolution(f"z{layer}", (nodes[-1].name,), weight, bias, window))
        steps = shift_steps(7, Rounding.HALF_TOWARD_POSITIVE, 0, 255)
        nodes.append(Staircase(f"y{layer}", (f"z{layer}",), steps, per_channel_rows(1, (CHANNELS, side, side))))
        channels = CHANNELS
    cell = side // POOLED
    nodes.append(PoolSum("sum", (nodes[-1].name,), Window((cell, cell), (cell, cell))))
    shift = int(np.log2(cell * cell))
    pooled = CHANNELS * POOLED * POOLED
    steps = shift_steps(shift, Rounding.HALF_TOWARD_POSITIVE, 0, 255)
    nodes.append(Staircase("mean", ("sum",), steps, per_channel_rows(1, (CHANNELS, POOLED, POOLED))))
    nodes.append(Rearrange("flat", ("mean",), as_integers(np.arange(pooled))))
    weight = as_integers(generator.integers(-8, 8, size=(CLASSES, pooled)))
    nodes.append(Dense("scores", ("flat",), weight, as_integers(np.zeros(CLASSES, dtype=np.int64))))
    scale = QuantizationParameters.of(1.0)
    return Network(tuple(nodes), scale, scale, "random")


def measure(side: int) -> dict[str, float]:
    """Neurons, units that vary, and seconds of each part of a pass."""
    generator = np.random.default_rng(side)
    network = random_network(side, generator)
    centre = generator.integers(0, 256, size=network.input_shape)
    box = linf_ball(centre, 1, 0, 255)
    neurons = CHANNELS * LAYERS * side * side + CHANNELS * POOLED * POOLED + CLASSES
    clock = [time.perf_counter()]
    known = ranges(network, box.low[None], box.high[None])
    clock.append(time.perf_counter())
    splitter = splitter_of(network, Classification(0), known)
    program = compile_operators(network, box, known, splitter.view, tuple(range(CLASSES)))
    clock.append(time.perf_counter())
    domains = root_domains(program, splitter.cases())
    margin = prove(program, domains, initial_multipliers(program, domains)).margin
    clock.append(time.perf_counter())
    assert bool(torch.isfinite(margin).all())
    parts = dict(zip(("intervals", "compile", "dual"), np.diff(clock).tolist(), strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"neurons": neurons, "units": len(program.units), **parts, "total": clock[-1] - clock[0], "peak_mib": peak}


def plot(rows: list[dict[str, float]], target: Path) -> None:
    """Both axes logarithmic; the dashed line is linear growth from the largest network."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), constrained_layout=True)
    neurons = [row["neurons"] for row in rows]
    for part in ("total", "dual", "intervals", "compile"):
        axes.loglog(neurons, [row[part] for row in rows], marker="o", label=part)
    linear = [rows[-1]["total"] * count / neurons[-1] for count in neurons]
    axes.loglog(neurons, linear, linestyle="--", color="grey", label="linear")
    axes.set_xlabel("neurons")
    axes.set_ylabel("seconds a pass, nine objectives, one thread")
    axes.legend()
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=float, default=6, help="decimal logarithm of the largest number of neurons")
    parser.add_argument("--out", type=Path, help="a picture: .svg or .png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows: list[dict[str, float]] = []
    measure(POOLED)  # what is slow only the first time
    for side in (8, 16, 32, 64, 128):
        if CHANNELS * LAYERS * side * side > 1.1 * 10**arguments.largest:
            break
        rows.append(measure(side))
        print({name: round(value, 3) for name, value in rows[-1].items()}, flush=True)
    growth = np.polyfit(np.log([row["neurons"] for row in rows[1:]]), np.log([row["total"] for row in rows[1:]]), 1)[0]
    print(f"time grows as neurons to the power {growth:.2f}")
    if arguments.out is not None:
        plot(rows, arguments.out)


if __name__ == "__main__":
    main()
