"""The fixed-point importer: small files against the written formulas, published networks against their golden outputs."""

from __future__ import annotations

import csv
import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from qertify.errors import ModelFileError, QertifyError
from qertify.importers.keras_fixed_point import load_keras_fixed_point
from qertify.network.evaluate import evaluate
from qertify.network.nodes import Dense
from tests.data import images, published_network, shared_data
from tests.files import comparison_model, write_h5

needs_data = pytest.mark.skipif(shared_data() is None, reason="needs the data folder: set QERTIFY_DATA")


def half_away(x: Fraction) -> int:
    return (1 if x >= 0 else -1) * math.floor(abs(x) + Fraction(1, 2))


def by_definition(layers: list, bits: int, input_bits: int, x: list[int]) -> list[int]:
    """The published arithmetic in exact rationals, one input."""
    fraction_bits = input_bits
    for position, (kernel, bias) in enumerate(layers):
        half = 1 << (bits - 1)

        def code(value: np.float32, scale_bits: int, half: int = half) -> int:
            return min(max(half_away(Fraction(float(value)) * (1 << scale_bits)), -half), half - 1)

        result = []
        for out in range(len(bias)):
            total = sum(code(kernel[i][out], bits - 1) * x[i] for i in range(len(x)))
            total += code(bias[out], bits - 2) << (fraction_bits + 1)
            rounded = math.floor(Fraction(total, 1 << (fraction_bits + 1)) + Fraction(1, 2))
            last = position == len(layers) - 1
            result.append(min(max(rounded, -half), half - 1) if last else min(max(rounded, 0), 2 * half - 1))
        x, fraction_bits = result, bits - 2
    return x


@pytest.mark.parametrize(("bits", "input_bits"), [(2, 8), (4, 4), (6, 8), (8, 1), (10, 8)])
def test_arithmetic_by_definition(tmp_path: Path, bits: int, input_bits: int) -> None:
    generator = np.random.default_rng(bits)
    sizes = [5, 4, 3]
    layers = [
        (
            generator.uniform(-1.2, 1.2, (a, b)).astype(np.float32),
            (np.round(generator.uniform(-2.2, 2.2, b) * 8) / 8).astype(np.float32),  # some exact ties
        )
        for a, b in pairwise(sizes)
    ]
    network = load_keras_fixed_point(write_h5(tmp_path / "m.h5", layers), bits, input_bits)
    inputs = generator.integers(0, 1 << input_bits, size=(40, 5))
    expected = [by_definition(layers, bits, input_bits, row) for row in inputs.tolist()]
    assert evaluate(network, inputs).tolist() == expected


def test_metadata_is_in_the_digest(tmp_path: Path) -> None:
    path = comparison_model(tmp_path / "m.h5")
    digests = {load_keras_fixed_point(path, bits, input_bits).digest for bits, input_bits in ((4, 4), (4, 8), (6, 4), (6, 8))}
    assert len(digests) == 4


def damaged(path: Path, kind: str) -> Path:
    """A file with one thing wrong."""
    comparison_model(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:1500])
    elif kind == "not HDF5":
        path.write_bytes(b"not HDF5 at all" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        with h5py.File(path, "a") as file:
            kernel = file["dense_0"]["dense_0"]["kernel:0"]
            if kind == "NaN":
                kernel[0, 0] = np.nan
            elif kind == "no layer names":
                del file.attrs["layer_names"]
            elif kind == "no layers":
                file.attrs["layer_names"] = []
            elif kind == "missing layer":
                file.attrs["layer_names"] = [b"dense_0", b"elsewhere"]
            elif kind == "three weights":
                file["dense_0"].attrs["weight_names"] = [b"a", b"b", b"c"]
            else:
                replacement = {
                    "float64": np.zeros((2, 2)),
                    "four axes": np.zeros((1, 1, 2, 2), dtype=np.float32),
                    "misfit": np.zeros((2, 3), dtype=np.float32),
                    "text": np.array([b"abc"]),
                    "no elements": np.zeros((0, 2), dtype=np.float32),
                }[kind]
                del file["dense_0"]["dense_0"]["kernel:0"]
                file["dense_0"]["dense_0"]["kernel:0"] = replacement
    return path


KINDS = ["truncated", "not HDF5", "empty", "NaN", "no layer names", "no layers", "missing layer", "three weights", "float64",
         "four axes", "misfit", "text", "no elements"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    with pytest.raises(QertifyError):
        load_keras_fixed_point(damaged(tmp_path / "m.h5", kind), 4, 4)


def test_huge_claim(tmp_path: Path) -> None:
    """A dataset that says it is a terabyte, without storage behind it."""
    path = comparison_model(tmp_path / "m.h5")
    with h5py.File(path, "a") as file:
        del file["dense_0"]["dense_0"]["kernel:0"]
        file["dense_0"]["dense_0"].create_dataset("kernel:0", (1 << 20, 1 << 18), dtype=np.float32, chunks=(1024, 1024))
    with pytest.raises(ModelFileError, match="expected float32"):
        load_keras_fixed_point(path, 4, 4)


@pytest.mark.parametrize(("bits", "input_bits"), [(1, 8), (17, 8), (0, 8), (-4, 8), (4, 0), (4, 17)])
def test_bits_out_of_range(tmp_path: Path, bits: int, input_bits: int) -> None:
    with pytest.raises(ModelFileError, match="bits"):
        load_keras_fixed_point(comparison_model(tmp_path / "m.h5"), bits, input_bits)


@needs_data
def test_golden_outputs() -> None:
    folder = shared_data()
    assert folder is not None
    golden = np.load(folder / "qvip" / "check" / "golden_outputs.npz")
    assert len(golden.files) >= 14
    for name in golden.files:
        network = published_network(f"{name}.h5")
        pixels, _ = images("fashion-mnist" if "fashion" in name else "mnist")
        codes = np.minimum(pixels[:200], network.input.high)
        assert np.array_equal(evaluate(network, codes), golden[name]), name


@needs_data
def test_published_misclassified_samples_and_no_others() -> None:
    folder = shared_data()
    assert folder is not None
    listed: dict[str, dict[int, bool]] = {}
    with (folder / "qvip" / "published" / "tasks.csv").open() as file:
        for row in csv.DictReader(file):
            wrong = row["exact_check"] == "misclassified"
            listed.setdefault(row["model"], {})[int(row["sample_id"])] = wrong
    assert sum(sum(samples.values()) for samples in listed.values()) > 10
    for model, samples in listed.items():
        network = published_network(model)
        pixels, labels = images("fashion-mnist" if "fashion" in model else "mnist")
        index = np.array(sorted(samples))
        predicted = evaluate(network, np.minimum(pixels[index], network.input.high)).argmax(axis=1)
        assert np.array_equal(predicted != labels[index], [samples[i] for i in index.tolist()]), model


DIFFERENCES = {
    "mnist_1blk_64_in_8_qu_8.h5": {(610, 10): (52, 51)},
    "mnist_1blk_64_in_8_qu_10.h5": {(160, 27): (8, 7)},
    "mnist_1blk_100_in_8_qu_8.h5": {(492, 0): (18, 17), (661, 53): (-19, -20)},
    "mnist_1blk_100_in_8_qu_10.h5": {
        (447, 36): (33, 32), (506, 1): (-90, -91), (516, 76): (34, 33), (601, 77): (-51, -52), (757, 79): (-102, -103),
    },
    "mnist_2blk_64_32_in_8_qu_8.h5": {(0, 42): (13, 12), (60, 2): (36, 35)},
    "mnist_1blk_64_in_8_qu_6.h5": {},
}  # fmt: skip
"""First-layer weights [in, out] where TensorFlow's rounding differs: (TensorFlow's code, the verifier's)."""


@needs_data
@pytest.mark.parametrize("name", DIFFERENCES)
def test_tensorflow_rounds_a_few_weights_differently(name: str) -> None:
    folder = shared_data()
    assert folder is not None
    bits = int(name.removesuffix(".h5").rpartition("_")[2])
    first = []
    for rule in ("tensorflow", "verifier"):
        network = load_keras_fixed_point(folder / "qvip" / "models" / name, bits, weights=rule)
        dense = [node for node in network.nodes if isinstance(node, Dense)]
        first.append([node.weight.T for node in dense])
    for layer, (tensorflow, verifier) in enumerate(zip(*first, strict=True)):
        where = map(tuple, np.argwhere(tensorflow != verifier).tolist())
        found = {(i, j): (int(tensorflow[i, j]), int(verifier[i, j])) for i, j in where}
        assert found == (DIFFERENCES[name] if layer == 0 else {})
