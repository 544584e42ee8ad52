"""How far two networks differ: QEBVerif's published tasks and networks, and CNNs quantized by onnxruntime.

    python -m benchmarks.equivalence tasks --samples 3 --bits 4 8
    python -m benchmarks.equivalence tight --samples 3 --model 1blk_100 --budget 60
    python -m benchmarks.equivalence width --samples 2 --radii 1 3 6
    python -m benchmarks.equivalence acasxu
    python -m benchmarks.equivalence cnn
    python -m benchmarks.equivalence ratio --samples 2 --solver highs

`tasks`: the difference of the predicted class's outputs stays within 1, 2, 4, 6 or 8 at radius 3 (Zhang, Song, Sun,
"QEBVerif", CAV 2023): how many are decided within the budget; every refutation is replayed on both networks. `tight`: the
same at thresholds a factor above what a strong attack reaches. `width`: the proved difference over the attained one, after
ten seconds. `acasxu`: every input step of a box enumerated, five published points. `cnn`: 676 activations a channel in each
of the two networks, 5,408 in both by default, bounded.
`ratio`: the integer program of both networks alone (`--method ilp`) and the full engine on the same tight questions, one
after the other.

Pixel p is p/255 to the float network and the code p to the quantized one, as published. Times are wall clock within the
process, imports excluded; compare only times of one run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tests.data import images, shared_data

from qertify.cli.flags import PixelFlags, RegionFlags
from qertify.cli.pairing import Files, ask, confirm
from qertify.importers.registry import ImportOptions
from qertify.network.real_evaluate import evaluate_float64
from qertify.options import Method, Options
from qertify.queries.equivalence import equivalence
from qertify.queries.equivalence_result import EquivalenceResult
from qertify.search.comparison import EquivalenceQuery, FloatSemantics
from qertify.specification.units import Unit

SAMPLES = (
    3236, 5656, 7219, 7098, 3825, 521, 9886, 7389, 3064, 4544, 7773, 1340, 7894, 8463, 6930,
    2898, 2190, 1866, 914, 5574, 3770, 3016, 6395, 2897, 8541, 5082, 3712, 150, 2486, 3986,
)  # fmt: skip
"""The published samples of MNIST's test set."""
THRESHOLDS = (1, 2, 4, 6, 8)
POINTS = (
    (0, 0, 0, 0, 0), (0.2, -0.1, 0, -0.3, 0.4), (0.45, -0.23, -0.4, 0.12, 0.33),
    (-0.2, -0.25, -0.5, -0.3, -0.44), (0.61, 0.36, 0, 0, -0.24),
)  # fmt: skip
"""The published inputs of ACAS Xu."""
CLOSE = 1.0 + 1e-5
"""Attained and proved differences this near each other are taken for the same."""


def data() -> Path:
    folder = shared_data()
    assert folder is not None, "the published networks need the data folder: set QERTIFY_DATA"
    return folder


def quiet_ask(
    files: Files, input_: str, region: RegionFlags, scale: str | None = None, output: int | None = None
) -> EquivalenceQuery:
    """The query for the greatest difference, as the command line makes it."""
    with contextlib.redirect_stderr(io.StringIO()):
        return ask(files, input_, region, PixelFlags(), scale, None, False, output, FloatSemantics.REAL)


def mnist_query(model: str, bits: int, sample: int, radius: int) -> tuple[EquivalenceQuery, Path]:
    """Which difference is the greatest at the predicted class?"""
    (path,) = (data() / "qebverif" / "mnist").glob(f"PTQ_mnist_{model}_in_8_relu_0.h5")
    files = Files(path, path, ImportOptions(bits=bits, scheme="qebverif"))
    region = RegionFlags(str(radius), Unit.LEVELS)
    query = quiet_ask(files, f"{data() / 'mnist' / 't10k-images-idx3-ubyte.gz'}[{sample}]", region, "1/255")
    pixels = images("mnist")[0][sample].reshape(query.quantized.input_shape)
    predicted = int(evaluate_float64(query.original, (pixels[None] / 255).astype(np.float32))[0].argmax())  # pyright: ignore
    return replace(query, output=predicted), path


def answer(query: EquivalenceQuery, path: Path, options: Options) -> EquivalenceResult:
    """The engine's answer, its input replayed on the original models."""
    return confirm(equivalence(query, options), query, path, path)


def describe(result: EquivalenceResult) -> str:
    found = result.max_delta
    ends = "" if found is None else f", difference {found[0]:.5g} … {'?' if found[1] is None else f'{found[1]:.5g}'}"
    replayed = "" if result.counterexample is None else f", replayed on the reference and {result.counterexample.replayed_on}"
    return f"{result.verdict.value} by {result.method} in {result.seconds:.2f} s{ends}{replayed}"


def summary(name: str, results: list[EquivalenceResult]) -> None:
    counts = Counter(result.verdict.value for result in results)
    decided = len(results) - counts["unknown"]
    seconds = [result.seconds for result in results]
    print(
        f"{name}: {decided} of {len(results)} decided ({decided / len(results):.1%}), {dict(counts)}; "
        f"seconds: median {statistics.median(seconds):.2f}, greatest {max(seconds):.2f}",
        flush=True,
    )


def say(arguments: argparse.Namespace, line: str) -> None:
    if arguments.verbose:
        print(line, flush=True)


def tasks(arguments: argparse.Namespace) -> None:
    options = Options(timeout=arguments.budget)
    for model in arguments.model:
        results: list[EquivalenceResult] = []
        for bits in arguments.bits:
            for sample in SAMPLES[: arguments.samples]:
                query, path = mnist_query(model, bits, sample, 3)
                for threshold in THRESHOLDS:
                    results.append(answer(replace(query, delta=Fraction(threshold)), path, options))
                    say(arguments, f"{model}, {bits} bits, {sample}, {threshold}: {describe(results[-1])}")
        summary(f"{model}, published thresholds", results)


def tight_query(arguments: argparse.Namespace, query: EquivalenceQuery) -> EquivalenceQuery:
    """The query with a threshold a factor above what the attack reaches."""
    reached = equivalence(query, Options(method=Method.ATTACK, timeout=20.0)).max_delta
    assert reached is not None
    return replace(query, delta=Fraction(reached[0]) * Fraction(str(arguments.factor)))


def tight(arguments: argparse.Namespace) -> None:
    for model in arguments.model:
        results: list[EquivalenceResult] = []
        for bits in arguments.bits:
            for sample in SAMPLES[: arguments.samples]:
                query, path = mnist_query(model, bits, sample, arguments.radii[0])
                query = tight_query(arguments, query)
                results.append(answer(query, path, Options(timeout=arguments.budget)))
                assert query.delta is not None
                name = f"{model}, {bits} bits, {sample}, threshold {float(query.delta):.5g}"
                say(arguments, f"{name}: {describe(results[-1])}")
        summary(f"{model}, radius {arguments.radii[0]}, {arguments.factor} times the attack", results)


def width(arguments: argparse.Namespace) -> None:
    for model in arguments.model:
        every: list[float] = []
        for radius in arguments.radii:
            ratios: list[float] = []
            for bits in arguments.bits:
                for sample in SAMPLES[: arguments.samples]:
                    query, _ = mnist_query(model, bits, sample, radius)
                    result = equivalence(query, Options(timeout=arguments.budget))
                    found = result.max_delta
                    ratios.append(found[1] / found[0] if found is not None and found[1] is not None else np.inf)
                    say(arguments, f"{model}, {bits} bits, {sample}, radius {radius}: {describe(result)}, {ratios[-1]:.3f}")
            every += ratios
            print(f"{model}, radius {radius}: proved / attained, median {statistics.median(ratios):.3f}", flush=True)
        print(f"{model}: median of all {len(every)} {statistics.median(every):.3f} after {arguments.budget:g} s", flush=True)


def acasxu(arguments: argparse.Namespace) -> None:
    paths = sorted((data() / "qebverif" / "acasxu").glob("*.h5"))[: arguments.samples]
    exact = total = 0
    with tempfile.TemporaryDirectory() as scratch:
        for path in paths:
            for number, point in enumerate(POINTS):
                np.save(Path(scratch) / f"{number}.npy", np.array(point, dtype=np.float32))
                for bits in arguments.bits:
                    files = Files(path, path, ImportOptions(bits=bits, scheme="qebverif-acasxu"))
                    region = RegionFlags(str(arguments.radii[0]), Unit.LEVELS)
                    query = quiet_ask(files, str(Path(scratch) / f"{number}.npy"), region)
                    result = answer(query, path, Options(timeout=arguments.budget))
                    found = result.max_delta
                    exact += found is not None and found[1] is not None and found[1] <= found[0] * CLOSE
                    total += 1
                    size = query.inputs.box.size
                    say(arguments, f"{path.stem}, {bits} bits, point {number}, {size} inputs: {describe(result)}")
    print(f"acasxu, radius {arguments.radii[0]} steps: exact maximum of {exact} in {total} boxes", flush=True)


def cnn(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        float_path, quantized_path = small_cnn(Path(scratch), arguments.channels, arguments.training)
        pixels, _ = images("mnist")
        ratios: list[float] = []
        for sample in SAMPLES[: arguments.samples]:
            image = Path(scratch) / "x.npy"
            np.save(image, (pixels[sample] / 255).astype(np.float32).reshape(1, 28, 28))
            files = Files(float_path, quantized_path, ImportOptions())
            for radius in ("1/255", "3/255"):
                region = RegionFlags(radius, Unit.REAL, input_range=("0", "1"))
                query = quiet_ask(files, str(image), region)
                result = confirm(
                    equivalence(query, Options(timeout=arguments.budget, method=Method(arguments.method))),
                    query,
                    float_path,
                    quantized_path,
                )
                found = result.max_delta
                ratios.append(found[1] / found[0] if found is not None and found[1] is not None else np.inf)
                say(arguments, f"cnn, sample {sample}, radius {radius}: {describe(result)}, {ratios[-1]:.3f}")
        size = 2 * 676 * arguments.channels
        print(
            f"cnn, {size} activations in both networks: proved / attained, median {statistics.median(ratios):.3f}", flush=True
        )


def small_cnn(folder: Path, channels: int, seconds: float) -> tuple[Path, Path]:
    """A float CNN for MNIST, channels × 26 × 26 activations, trained here, and its int8 version by onnxruntime."""
    import onnx
    import torch
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, channels, 3), nn.ReLU(), nn.Flatten(), nn.Linear(channels * 676, 10))
    pixels, labels = images("mnist", "train")
    x, y = torch.from_numpy(pixels / 255).float().reshape(-1, 1, 28, 28), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        batch = torch.randint(len(x), (200,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    names = ("weight", "bias", "matrix", "shift")
    constants = [numpy_helper.from_array(p.detach().numpy(), name) for p, name in zip(model.parameters(), names, strict=True)]
    nodes = [
        helper.make_node("Conv", ["x", "weight", "bias"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Flatten", ["relu"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix", "shift"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 28, 28])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        constants,
    )
    source, target = folder / "cnn.onnx", folder / "cnn_int8.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    quant_pre_process(str(source), str(folder / "prepared.onnx"))

    class Calibration(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(x[:200].numpy())

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            return None if row is None else {"x": row[None]}

    quantize_static(
        str(folder / "prepared.onnx"),
        str(target),
        Calibration(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return source, target


def ratio(arguments: argparse.Namespace) -> None:
    alone = Options(timeout=arguments.budget, method=Method.ILP, solver=arguments.solver, accept_solver_claims=True)
    for model in arguments.model:
        pairs: list[tuple[EquivalenceResult, EquivalenceResult]] = []
        for bits in arguments.bits:
            for sample in SAMPLES[: arguments.samples]:
                query, path = mnist_query(model, bits, sample, arguments.radii[0])
                query = tight_query(arguments, query)
                first, second = answer(query, path, Options(timeout=arguments.budget)), answer(query, path, alone)
                pairs.append((first, second))
                say(arguments, f"{model}, {bits} bits, {sample}: {describe(first)}; alone: {describe(second)}")
        summary(f"{model}, full engine", [first for first, _ in pairs])
        summary(f"{model}, integer program alone ({arguments.solver})", [second for _, second in pairs])
        times = [max(second.seconds, 1e-3) / max(first.seconds, 1e-3) for first, second in pairs]
        print(
            f"{model}: alone / full, median {statistics.median(times):.2f}, geometric mean "
            f"{statistics.geometric_mean(times):.2f}; one that is undecided counts with the time it took",
            flush=True,
        )


PARTS = {"tasks": tasks, "tight": tight, "width": width, "acasxu": acasxu, "cnn": cnn, "ratio": ratio}
SHORT = ("1blk_100", "2blk_100_100")
DEFAULTS: dict[str, dict[str, Any]] = {
    "tasks": {"model": SHORT, "bits": (4, 6, 8, 10), "budget": 60.0},
    "tight": {"model": SHORT, "bits": (4, 6, 8, 10), "radii": (3,), "budget": 60.0},
    "width": {"model": (*SHORT, "2blk_512_512"), "bits": (8,), "radii": (1, 3, 6), "budget": 10.0},
    "acasxu": {"bits": (8,), "radii": (3,), "budget": 60.0},
    "cnn": {"budget": 10.0},
    "ratio": {"model": SHORT[:1], "bits": (8,), "radii": (3,), "budget": 60.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", nargs="+", help="parts of the models' names, for example 2blk_512_512")
    parser.add_argument("--bits", nargs="+", type=int)
    parser.add_argument("--radii", nargs="+", type=int)
    parser.add_argument("--samples", type=int, default=2, help="how many of the published ones (of the networks, for acasxu)")
    parser.add_argument("--budget", type=float, help="seconds for each question")
    parser.add_argument("--factor", default="1.1", help="thresholds over what the attack reaches")
    parser.add_argument("--method", default="auto", choices=[method.value for method in Method], help="of cnn")
    parser.add_argument("--solver", default="highs", help="of ratio")
    parser.add_argument("--channels", type=int, default=4, help="of cnn")
    parser.add_argument("--training", type=float, default=15.0, help="seconds of training, of cnn")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    for name, value in DEFAULTS[arguments.part].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    PARTS[arguments.part](arguments)


if __name__ == "__main__":
    main()
