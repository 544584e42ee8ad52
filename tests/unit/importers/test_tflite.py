"""TFLite files that must be refused with one clear line: damaged, hostile, float, or beyond what is known bit for bit."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra 'tflite' is not installed")

from qertify.errors import InvalidInputError, MissingExtraError, ModelFileError, QertifyError, UnsupportedModelError
from qertify.importers.registry import ImportOptions, load_model
from qertify.importers.tflite_context import BUDGETS
from qertify.importers.tflite_quantized import load_tflite
from qertify.network.storage import load, save
from qertify.runtimes.base import runtime_of
from qertify.runtimes.litert_writer import RELU, SAME, Writer
from tests.conformance.tflite_models import RandomNetwork, cnn, mlp, saved, single

F = np.float32


def refused(tmp_path: Path, content: bytes, error: type[QertifyError], match: str, runtime: str = "litert-xnnpack") -> None:
    """The file gives this error, on one line."""
    with pytest.raises(error, match=match) as caught:
        load_tflite(saved(content, tmp_path / "model.tflite"), runtime)
    assert "\n" not in str(caught.value)


def test_truncated(tmp_path: Path) -> None:
    content = mlp()
    for size in (0, 3, 7, 8, 12, 40, 200, len(content) // 2, len(content) - 400):
        refused(tmp_path, content[:size], ModelFileError, "not a TFLite file|damaged|refuses|missing|claims|bytes of data")


def test_missing_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="can't read"):
        load_tflite(tmp_path / "none.tflite")
    refused(tmp_path, b"PK\3\4 a zip, not a flatbuffer", ModelFileError, "not a TFLite file")
    refused(tmp_path, b"\x1c\0\0\0TFL3" + b"\xff" * 64, ModelFileError, "damaged|claims")
    with pytest.raises(InvalidInputError, match="unknown runtime 'tpu'"):
        load_tflite(saved(mlp(), tmp_path / "model.tflite"), "tpu")


def test_float_model(tmp_path: Path) -> None:
    shape = [1, 4]
    model = single(
        "FULLY_CONNECTED", [(shape, None, 0, F)], ([1, 3], None, 0, F), "FullyConnectedOptions", (np.zeros((3, 4), F),)
    )
    refused(tmp_path, model, UnsupportedModelError, "node '0:FULLY_CONNECTED'.*float model")


def test_float_operator_between_integers(tmp_path: Path) -> None:
    writer = Writer()
    x, real, y = writer.tensor([1, 4], 0.1), writer.tensor([1, 4], None, 0, F), writer.tensor([1, 4], None, 0, F)
    writer.operator("DEQUANTIZE", [x], [real], "DequantizeOptions")
    writer.operator("LOGISTIC", [real], [y])
    refused(tmp_path, writer.finish([x], [y]), UnsupportedModelError, "node '1:LOGISTIC'.*computes in float")


def test_unknown_operator(tmp_path: Path) -> None:
    model = single("CUMSUM", [([1, 4], 0.1, 0)], ([1, 4], 0.1, 0), "CumsumOptions", (np.zeros(1, np.int32),))
    refused(tmp_path, model, UnsupportedModelError, r"node '0:CUMSUM' \(CUMSUM\).*supported are ADD")


def test_softmax(tmp_path: Path) -> None:
    model = single("SOFTMAX", [([1, 4], 0.1, 0)], ([1, 4], 1 / 256, -128), "SoftmaxOptions", beta=1.0)
    refused(tmp_path, model, UnsupportedModelError, "makes ties")


def dense(change: Callable[[RandomNetwork], None], shape: tuple[int, ...] = (6,)) -> bytes:
    """One dense layer, then a change of the file: tensors are input 0, weight 1, bias 2, output 3."""
    net = RandomNetwork(0)
    y = net.dense(net.input(*shape), 5, RELU)
    change(net)
    return net.writer.finish([0], [y.index])


def set_quantization(index: int, **values: Any) -> Callable[[RandomNetwork], None]:
    def change(net: RandomNetwork) -> None:
        for key, value in values.items():
            setattr(net.writer.tensors[index].quantization, key, value)

    return change


def set_tensor(index: int, **values: Any) -> Callable[[RandomNetwork], None]:
    def change(net: RandomNetwork) -> None:
        for key, value in values.items():
            setattr(net.writer.tensors[index], key, value)

    return change


DAMAGED = {
    "NaN scale": (set_quantization(3, scale=[float("nan")]), UnsupportedModelError, "positive normal float32"),
    "negative scale": (set_quantization(1, scale=[-0.1] * 5), UnsupportedModelError, "positive normal float32"),
    "missing scale": (set_tensor(3, quantization=None), UnsupportedModelError, "node '0:FULLY_CONNECTED'.*needs one scale"),
    "missing zero points": (set_quantization(1, zeroPoint=[0, 0]), ModelFileError, "5 scales and 2 zero points"),
    "asymmetric weight": (set_quantization(1, zeroPoint=[1] * 5), UnsupportedModelError, "weight's zero point must be 0"),
    "zero point out of range": (set_quantization(3, zeroPoint=[300]), ModelFileError, "zero point 300 is outside"),
    "huge multiplier": (set_quantization(3, scale=[1e-7]), UnsupportedModelError, "ratio of scales"),
    "shape against data": (set_tensor(1, shape=[5, 7]), ModelFileError, "bytes of data"),
    "declared shape": (set_tensor(3, shape=[1, 4]), ModelFileError, "does not fit"),
    "huge shape": (set_tensor(3, shape=[1, 1 << 30]), ModelFileError, "elements, more than"),
    "negative shape": (set_tensor(3, shape=[1, -5]), ModelFileError, "has the shape"),
    "batch of two": (set_tensor(3, shape=[2, 5]), UnsupportedModelError, "first axis of 1"),
    "no such buffer": (set_tensor(1, buffer=77), ModelFileError, "buffer that does not exist"),
    "another type": (set_tensor(2, type=10), UnsupportedModelError, "tensor.type.*int8 is needed"),
    "float bias": (set_tensor(2, type=0), UnsupportedModelError, "constant int32"),
    "variable": (set_tensor(0, isVariable=True), UnsupportedModelError, "keeps state"),
    "no operator": (lambda net: net.writer.operators.clear(), ModelFileError, "no operator"),
    "no such tensor": (lambda net: setattr(net.writer.operators[0], "inputs", [0, 99, 2]), ModelFileError, "does not exist"),
    "own result": (lambda net: setattr(net.writer.operators[0], "inputs", [3, 1, 2]), UnsupportedModelError, "not computed by"),
    "computed twice": (lambda net: net.writer.operators.append(net.writer.operators[0]), ModelFileError, "computed twice"),
    "options of another": (
        lambda net: setattr(net.writer.operators[0], "builtinOptionsType", 1),
        ModelFileError,
        "has no Fully",
    ),
    "odd activation": (
        lambda net: setattr(net.writer.operators[0].builtinOptions, "fusedActivationFunction", 4),
        UnsupportedModelError,
        "unknown activation 4",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(tmp_path: Path, name: str) -> None:
    change, error, match = DAMAGED[name]
    refused(tmp_path, dense(change), error, match)


def test_overflowing_accumulators(tmp_path: Path) -> None:
    """A bias of the largest integer wraps around in the runtime, which the import notices."""

    def change(net: RandomNetwork) -> None:
        net.writer.buffers[2].data = np.frombuffer(np.full(5, (1 << 31) - 1, np.int32).tobytes(), np.uint8)

    refused(tmp_path, dense(change), UnsupportedModelError, "accumulators overflow, perhaps that of '0:FULLY_CONNECTED/acc")


def test_overflowing_product_of_optimized_kernels(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor([1, 64], 1.0)
    square = writer.tensor([1, 64], 0.5)
    writer.operator("MUL", [x, x], [square], "MulOptions")
    content = writer.finish([x], [square])
    refused(tmp_path, content, UnsupportedModelError, "16 bits of the optimized kernel", "litert-builtin")
    load_tflite(saved(content, tmp_path / "model.tflite"), "litert-xnnpack")


def test_dequantized_outputs_that_depend_on_the_position(tmp_path: Path) -> None:
    net = RandomNetwork(0)
    content = net.writer.finish([0], [net.dequantized(net.dense(net.input(6), 10))])
    refused(tmp_path, content, UnsupportedModelError, "equal codes to different numbers", "litert-builtin")
    load_tflite(saved(content, tmp_path / "model.tflite"), "litert-reference")


def test_grouped_convolution(tmp_path: Path) -> None:
    net = RandomNetwork(0)
    values = {"padding": SAME, "strideW": 1, "strideH": 1}
    y = net.linear("CONV_2D", net.input(4, 4, 6), (4, 3, 3, 3), 0, (1, 4, 4, 4), "Conv2DOptions", **values)
    refused(tmp_path, net.writer.finish([0], [y.index]), UnsupportedModelError, "grouped convolutions")


def test_windows_that_would_fill_the_memory(tmp_path: Path) -> None:
    net = RandomNetwork(0)
    y = net.convolution(net.input(1500, 1500, 1), 1, 64)
    refused(tmp_path, net.writer.finish([0], [y.index]), ModelFileError, "its windows hold 9216000000 elements")


def test_weights_shared_by_many_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = RandomNetwork(0)
    x = net.input(30)
    y = net.dense(x, 30)
    weight, bias = net.writer.operators[0].inputs[1:]
    for _ in range(20):
        x, y = y, net.tensor((1, 30), 0.1, 0)
        net.writer.operator("FULLY_CONNECTED", [x.index, weight, bias], [y.index], "FullyConnectedOptions")
    monkeypatch.setitem(BUDGETS, "weights", 10_000)
    refused(tmp_path, net.writer.finish([0], [y.index]), ModelFileError, "more than 10000 weights")


def test_tiny_scale_of_codes(tmp_path: Path) -> None:
    """An input of codes is not quantized, so no scale makes it overflow; a real input's scale must have an inverse."""
    codes = single("RELU", [([1, 8], 1e-37, 0)], ([1, 8], 1e-37, 0))
    for runtime in ("litert-xnnpack", "litert-builtin", "litert-reference"):
        assert load_tflite(saved(codes, tmp_path / "model.tflite"), runtime).input_shape == (8,)
    real = single("QUANTIZE", [([1, 8], None, 0, F)], ([1, 8], 1e38, 0), "QuantizeOptions")
    refused(tmp_path, real, UnsupportedModelError, "inverse may be no normal float32")


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(mlp(), tmp_path / "model.tflite")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(MissingExtraError, match=r"qertify\[tflite\]"):
        load_tflite(path)


def test_registry_and_storage(tmp_path: Path) -> None:
    path = saved(cnn(), tmp_path / "model.tflite")
    digests = {load_model(path, ImportOptions(runtime=name)).digest for name in ("litert-xnnpack", "litert-builtin")}
    network = load_model(path)
    assert digests == {network.digest, *digests}
    assert len(digests) == 2, "the runtime is part of a network's identity"
    save(network, tmp_path / "model.qnet")
    again = load(tmp_path / "model.qnet")
    assert again.digest == network.digest
    codes = np.random.default_rng(0).integers(-128, 128, (3, *network.input_shape))
    runtime = runtime_of(again)
    assert np.all(runtime.replay(path, runtime.real_input(codes)).agrees)
    assert network.input_shape == (11, 9, 2), "inputs keep the file's own order of axes"


@pytest.mark.parametrize("runtime", ["litert-xnnpack", "litert-builtin", "litert-reference"])
def test_region_of_real_inputs(tmp_path: Path, runtime: str) -> None:
    """The box of codes is the exact image: its corners are reached, the codes beside them are not."""
    network = load_tflite(saved(mlp(), tmp_path / "model.tflite"), runtime)
    view, scale = runtime_of(network), Fraction(float(F(0.05)))
    low, high = np.full(20, Fraction(-1, 3)), np.full(20, Fraction(7, 5))
    box = view.integer_image(low, high)
    assert set(box.low.tolist()) == {round(Fraction(-1, 3) / scale) + 3}
    assert set(box.high.tolist()) == {round(Fraction(7, 5) / scale) + 3}
    for codes in (box.low, box.high):
        inputs = view.real_input(codes[None], low, high)
        assert np.all((inputs >= -1 / 3) & (inputs <= 1.4))
        np.testing.assert_array_equal(view.quantize_input(inputs)[0], codes)
    with pytest.raises(InvalidInputError, match="no input in the region"):
        view.real_input(box.high[None] + 1, low, high)
    with pytest.raises(InvalidInputError, match="the region is empty"):
        view.integer_image(high, low)


def test_quantizers_that_overflow(tmp_path: Path) -> None:
    path = saved(mlp(), tmp_path / "model.tflite")
    huge = np.full((1, 20), 1e30, F)
    assert np.all(runtime_of(load_tflite(path)).quantize_input(huge) == 127)
    for runtime in ("litert-builtin", "litert-reference"):
        view = runtime_of(load_tflite(path, runtime))
        with pytest.raises(InvalidInputError, match="overflows"):
            view.quantize_input(huge)
        with pytest.raises(InvalidInputError, match="overflows"):
            view.integer_image(np.full(20, -1.0), huge[0])


def test_inputs_of_codes(tmp_path: Path) -> None:
    network = load_tflite(saved(cnn(), tmp_path / "model.tflite"))
    view = runtime_of(network)
    box = view.integer_image(np.full(network.input_shape, Fraction(-5, 2)), np.full(network.input_shape, 300))
    assert (set(box.low.reshape(-1).tolist()), set(box.high.reshape(-1).tolist())) == ({-2}, {127})
    for bad in (np.zeros((1, 3)), np.zeros((1, *network.input_shape)), np.full((1, *network.input_shape), 128)):
        with pytest.raises(InvalidInputError):
            view.quantize_input(bad)


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """A few bytes, words or ranges changed; half of the time only in the part that is not weights."""
    data = bytearray(content)
    reach = len(data) if random.random() < 0.5 else min(len(data), 3000)
    for _ in range(int(random.integers(1, 6))):
        reach = min(reach, len(data) - 1)
        place = int(random.integers(0, reach))
        match random.integers(0, 5):
            case 0:
                data[place] ^= 1 << int(random.integers(0, 8))
            case 1:
                data[place : place + 4] = int(random.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF, place])).to_bytes(4, "little")
            case 2:
                del data[place : place + int(random.integers(1, 40))]
            case 3:
                data[place] = int(random.integers(0, 256))
            case _:
                source = int(random.integers(0, reach))
                data[place : place + 8] = data[source : source + 8]
    return bytes(data)


def test_mutated_files(tmp_path: Path) -> None:
    """A thousand damaged files: each is refused with an error of ours, or read; none takes long."""
    random = np.random.default_rng(0)
    sources, path = [mlp(), cnn()], tmp_path / "model.tflite"
    outcomes = {"read": 0, "refused": 0}
    start, slowest, lines = time.monotonic(), 0.0, 0
    for trial in range(1000):
        path.write_bytes(mutated(sources[trial % 2], random))
        began = time.monotonic()
        try:
            load_tflite(path)
            outcomes["read"] += 1
        except QertifyError as error:
            outcomes["refused"] += 1
            lines = max(lines, len(str(error).splitlines()))
        slowest = max(slowest, time.monotonic() - began)
    assert min(outcomes.values()) > 100
    assert lines == 1
    assert slowest < 5
    assert time.monotonic() - start < 60
