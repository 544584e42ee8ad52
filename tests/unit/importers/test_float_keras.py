"""Float Keras networks, the fixed-point scheme made from the same file by definition, and both on published data."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from qertify.errors import InvalidInputError, ModelFileError
from qertify.importers.keras_fixed_point import read_layers
from qertify.importers.registry import ImportOptions, load_float_model, load_model
from qertify.network.evaluate import evaluate
from qertify.network.nodes import Dense
from qertify.network.real_error import float32_error
from qertify.network.real_evaluate import evaluate_exactly, evaluate_float64
from qertify.runtimes.float_models import replay_float
from tests.data import images, shared_data
from tests.files import write_h5

needs_data = pytest.mark.skipif(shared_data() is None, reason="needs the data folder: set QERTIFY_DATA")
SAMPLES = [
    3236, 5656, 7219, 7098, 3825, 521, 9886, 7389, 3064, 4544, 7773, 1340, 7894, 8463, 6930,
    2898, 2190, 1866, 914, 5574, 3770, 3016, 6395, 2897, 8541, 5082, 3712, 150, 2486, 3986,
]  # fmt: skip
"""MNIST test images of the published tasks."""
Layers = list[tuple[np.ndarray, np.ndarray]]


def random_layers(seed: int, sizes: list[int]) -> Layers:
    generator = np.random.default_rng(seed)
    return [
        (
            generator.uniform(-1.4, 1.4, (a, b)).astype(np.float32),
            (np.round(generator.uniform(-2.4, 2.4, b) * 8) / 8).astype(np.float32),  # some exact ties
        )
        for a, b in pairwise(sizes)
    ]


def test_float_networks_by_definition(tmp_path: Path) -> None:
    layers = random_layers(0, [5, 4, 4, 3])
    path = write_h5(tmp_path / "m.h5", layers)
    network = load_float_model(path)
    inputs = np.random.default_rng(1).random((6, 5), dtype=np.float32)
    runtime, outputs = replay_float(path, inputs)
    assert runtime.startswith("numpy ")
    for x, y in zip(inputs, outputs, strict=True):
        values = [Fraction(float(v)) for v in x]
        for position, (kernel, bias) in enumerate(layers):
            rows = zip(kernel.T.tolist(), bias.tolist(), strict=True)
            values = [sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(b)) for row, b in rows]
            values = values if position == 2 else [max(v, Fraction(0)) for v in values]
        assert evaluate_exactly(network, x) == values
        bound = float32_error(network, x, x)[network.output.name]
        assert all(abs(Fraction(float(a)) - b) <= Fraction(float(c)) for a, b, c in zip(y, values, bound, strict=True))


def half_away(x: Fraction) -> int:
    return (1 if x >= 0 else -1) * math.floor(abs(x) + Fraction(1, 2))


def by_definition(layers: Layers, bits: int, weight_bits: int, x: list[int]) -> list[Fraction]:
    """The quantized network in real numbers: ``weight_bits`` fractional bits a weight, an 8-bit input over 256."""

    def fixed(value: float, fraction: int) -> Fraction:
        code = half_away(Fraction(value) * (1 << fraction))
        return Fraction(min(max(code, -(1 << (bits - 1))), (1 << (bits - 1)) - 1), 1 << fraction)

    values = [Fraction(code, 256) for code in x]
    for position, (kernel, bias) in enumerate(layers):
        rows = zip(kernel.T.tolist(), bias.tolist(), strict=True)
        values = [
            sum((fixed(w, weight_bits) * v for w, v in zip(row, values, strict=True)), fixed(b, bits - 2)) for row, b in rows
        ]
        if position < len(layers) - 1:  # unsigned, bits − 2 fractional bits, ties up; the last layer stays as it is
            codes = [math.floor(v * (1 << (bits - 2)) + Fraction(1, 2)) for v in values]
            values = [Fraction(min(max(code, 0), (1 << bits) - 1), 1 << (bits - 2)) for code in codes]
    return values


@pytest.mark.parametrize("bits", [2, 4, 6, 8, 10])
@pytest.mark.parametrize("scheme", ["qebverif", "qebverif-acasxu"])
def test_affine_last_layer_by_definition(tmp_path: Path, scheme: str, bits: int) -> None:
    layers = random_layers(bits, [5, 4, 4, 3])
    network = load_model(write_h5(tmp_path / "m.h5", layers), ImportOptions(bits=bits, scheme=scheme))
    signed = scheme == "qebverif-acasxu"
    assert (network.input.low, network.input.high) == ((-128, 127) if signed else (0, 255))
    assert isinstance(network.output, Dense)
    inputs = np.random.default_rng(bits).integers(network.input.low, network.input.high + 1, (40, 5))
    scale = Fraction(float(network.output_quantization.scale[0]))
    for x, codes in zip(inputs, evaluate(network, inputs), strict=True):
        expected = by_definition(layers, bits, bits - 2 if signed else bits - 1, x.tolist())
        assert [scale * int(code) for code in codes] == expected


def test_schemes_differ_in_their_digest_and_output(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "m.h5", random_layers(0, [3, 2]))
    default = load_model(path, ImportOptions(bits=6))
    assert default.digest == load_model(path, ImportOptions(bits=6, scheme="qvip")).digest
    assert default.digest != load_model(path, ImportOptions(bits=6, scheme="qebverif")).digest
    with pytest.raises(InvalidInputError, match="unknown scheme 'q'; known: qvip, qebverif, qebverif-acasxu"):
        load_model(path, ImportOptions(bits=6, scheme="q"))
    with pytest.raises(InvalidInputError, match="--scheme has no meaning"):
        load_float_model(path, ImportOptions(scheme="qebverif"))


def test_damaged_files(tmp_path: Path) -> None:
    nan = random_layers(0, [3, 2])
    nan[0][1][0] = np.nan
    unfit = random_layers(0, [3, 2]) + random_layers(0, [3, 2])
    for layers, text in ((nan, "NaN"), (unfit, "does not fit")):
        path = write_h5(tmp_path / "m.h5", layers)
        for load in (load_float_model, lambda path: load_model(path, ImportOptions(bits=6))):
            with pytest.raises(ModelFileError, match=text):
                load(path)


@needs_data
@pytest.mark.parametrize("hidden", ["1blk_100", "2blk_100_100", "2blk_512_512", "3blk_100_100_100"])
def test_published_samples_are_classified_right(hidden: str) -> None:
    """Float networks on pixel/255, quantized ones on pixel/256."""
    folder = shared_data()
    assert folder is not None
    path = next((folder / "qebverif" / "mnist").glob(f"*_{hidden}_in_8*.h5"))
    pixels, labels = (array[SAMPLES] for array in images("mnist"))
    assert np.array_equal(evaluate_float64(load_float_model(path), pixels / 255).argmax(axis=1), labels)
    for bits in (4, 6, 8, 10):
        network = load_model(path, ImportOptions(bits=bits, scheme="qebverif"))
        assert np.array_equal(evaluate(network, pixels).argmax(axis=1), labels)


@needs_data
def test_published_accuracy() -> None:
    folder = shared_data()
    assert folder is not None
    path = next((folder / "qebverif" / "mnist").glob("*_1blk_100_in_8*.h5"))
    pixels, labels = images("mnist")
    assert np.count_nonzero(evaluate_float64(load_float_model(path), pixels / 255).argmax(axis=1) == labels) == 9692


@needs_data
@pytest.mark.parametrize("bits", [4, 8])
def test_published_collision_avoidance_points(bits: int) -> None:
    """Weights far beyond the two integer bits are cut off; the layers' order is not that of their sorted names."""
    folder = shared_data()
    assert folder is not None
    path = next((folder / "qebverif" / "acasxu").glob("*_5_9_*.h5"))
    points = [
        [0, 0, 0, 0, 0],
        [51, -26, 0, -77, 102],
        [115, -59, -102, 31, 84],
        [-51, -64, -128, -77, -113],
        [127, 92, 0, 0, -61],
    ]
    layers = [(layer.kernel, layer.bias) for layer in read_layers(path)]
    assert [kernel.shape for kernel, _ in layers] == [(5, 50), *[(50, 50)] * 5, (50, 5)]
    assert max(np.abs(kernel).max() for kernel, _ in layers) > 2
    network = load_model(path, ImportOptions(bits=bits, scheme="qebverif-acasxu"))
    scale = Fraction(float(network.output_quantization.scale[0]))
    for point, codes in zip(points, evaluate(network, np.array(points)), strict=True):
        assert [scale * int(code) for code in codes] == by_definition(layers, bits, bits - 2, point)
