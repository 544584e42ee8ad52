"""The input side of onnxruntime: quantizer, exact images of regions, real inputs for codes, replay."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from onnx import helper

from qertify.errors import InvalidInputError, ModelFileError
from qertify.importers.onnx_quantized import load_onnx
from qertify.runtimes.base import runtime_of
from tests.conformance.onnx_models import model_of, run, save

F = np.float32


ZERO_POINT = np.uint8(91)


def quantizer(tmp_path, scale=0.0173, zero_point=ZERO_POINT, size=3):
    """Quantize, multiply by the identity, dequantize."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "one", "wz", "s", "z"], ["m"], name="product"),
        helper.make_node("DequantizeLinear", ["m", "s", "z"], ["y"]),
    ]
    constants = {"s": F(scale), "z": zero_point, "w": np.eye(size, dtype=np.int8), "one": F(1), "wz": np.int8(0)}
    path = save(model_of(nodes, {"x": ("float32", ["n", size])}, ("y", "float32"), constants), tmp_path / "model.onnx")
    return path, load_onnx(path)


@pytest.mark.parametrize("zero_point", [ZERO_POINT, np.int8(-5)])
def test_codes_of_real_inputs_are_the_runtime_s(tmp_path, zero_point):
    path, network = quantizer(tmp_path, zero_point=zero_point)
    runtime = runtime_of(network)
    x = np.random.default_rng(0).normal(size=(4000, 3)).astype(F) * 2
    codes = runtime.quantize_input(x)
    assert np.array_equal(((codes - int(zero_point)).astype(F) * F(0.0173)), run(path, x))
    replay = runtime.replay(path, x)
    assert replay.agrees.all()
    assert np.array_equal(replay.codes, codes)
    assert np.array_equal(replay.predicted, np.argmax(run(path, x), axis=1))


def test_the_image_of_a_region_is_exact(tmp_path):
    """Every code of the image is reached by some float32 in the region, and none outside is."""
    _, network = quantizer(tmp_path)
    runtime = runtime_of(network)
    random = np.random.default_rng(1)
    for _ in range(200):
        centre = random.normal(size=3).astype(F)
        radius = Fraction(int(random.integers(0, 60)), 997)
        exact = np.array([Fraction(float(v)) for v in centre], dtype=object)
        low, high = exact - radius, exact + radius
        box = runtime.integer_image(low, high)
        for side, bound in ((box.low, low), (box.high, high)):
            x = runtime.real_input(side, low, high)
            assert np.array_equal(runtime.quantize_input(x[None])[0], side)
            assert all(a <= Fraction(float(v)) <= b for v, a, b in zip(x, low, high, strict=True))
            assert bound is not None
        middle = runtime.real_input((box.low + box.high) // 2, low, high)
        assert all(a <= Fraction(float(v)) <= b for v, a, b in zip(middle, low, high, strict=True))
        inside = np.array([random.uniform(float(a), float(b), size=200) for a, b in zip(low, high, strict=True)]).T.astype(F)
        inside = np.clip(inside, centre - F(float(radius)) * F(0.999), centre + F(float(radius)) * F(0.999))
        assert box.contains(runtime.quantize_input(inside)).all()


def test_a_bound_between_two_floats_is_rounded_inwards(tmp_path):
    """The tie 0.5·s + a hair: the least float32 above an exact bound decides, not the nearest one."""
    _, network = quantizer(tmp_path, scale=1.0, zero_point=np.uint8(0))
    runtime = runtime_of(network)
    bound = Fraction(3, 2) - Fraction(1, 1 << 40)  # nearest float32 is 1.5, which rounds to 2; the region stays below it
    box = runtime.integer_image([Fraction(1)] * 3, [bound] * 3)
    assert box.high.tolist() == [1, 1, 1]
    assert runtime.integer_image([Fraction(1)] * 3, [Fraction(3, 2)] * 3).high.tolist() == [2, 2, 2]


def test_regions_and_inputs_that_make_no_sense(tmp_path):
    path, network = quantizer(tmp_path)
    runtime = runtime_of(network)
    with pytest.raises(InvalidInputError, match="empty"):
        runtime.integer_image([1.0] * 3, [0.5] * 3)
    with pytest.raises(InvalidInputError, match="empty"):
        runtime.integer_image([Fraction(1) + Fraction(1, 1 << 50)] * 3, [Fraction(1) + Fraction(1, 1 << 40)] * 3)
    with pytest.raises(InvalidInputError, match="finite"):
        runtime.integer_image([float("nan")] * 3, [1.0] * 3)
    with pytest.raises(InvalidInputError, match="NaN"):
        runtime.quantize_input(np.array([[0.0, np.inf, 1.0]]))
    with pytest.raises(InvalidInputError, match="shape"):
        runtime.quantize_input(np.zeros((1, 4)))
    with pytest.raises(InvalidInputError, match="no input"):
        runtime.real_input(np.array([200, 200, 200]), [0.0] * 3, [0.1] * 3)
    other = tmp_path / "other.onnx"
    other.write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match="refuses"):
        runtime.replay(other, np.zeros((1, 3)))
    assert path.exists()


def test_models_that_read_codes(tmp_path):
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])
    path = save(model_of([node], {"x": ("int8", [1, 1, 4, 4])}, ("y", "int8"), {}), tmp_path / "model.onnx")
    network = load_onnx(path)
    runtime = runtime_of(network)
    x = np.random.default_rng(0).integers(-128, 128, size=(30, 1, 4, 4))
    assert runtime.replay(path, x).agrees.all()
    box = runtime.integer_image(np.full((1, 4, 4), Fraction(-7, 2)), np.full((1, 4, 4), 300))
    assert (box.low.min(), box.high.max()) == (-3, 127)
    assert runtime.real_input(box.low).dtype == np.int8
    with pytest.raises(InvalidInputError, match="int8 codes"):
        runtime.quantize_input(x + 200)


def test_a_decision_at_the_end_is_dropped(tmp_path):
    path, network = quantizer(tmp_path)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "one", "wz", "s", "z"], ["m"]),
        helper.make_node("ArgMax", ["m"], ["y"], axis=1, keepdims=0),
    ]
    constants = {"s": F(0.0173), "z": np.uint8(91), "w": np.eye(3, dtype=np.int8), "one": F(1), "wz": np.int8(0)}
    path = save(model_of(nodes, {"x": ("float32", ["n", 3])}, ("y", "int64"), constants), tmp_path / "argmax.onnx")
    x = np.round(np.random.default_rng(0).normal(size=(500, 3)), 1).astype(F)
    replay = runtime_of(load_onnx(path)).replay(path, x)
    assert replay.agrees.all()
    assert np.array_equal(replay.predicted, np.argmax(network.output_quantization.dequantize(replay.reference), axis=1))
