"""Float ONNX models: every operator against onnxruntime within the proved rounding error, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
from onnx import TensorProto, helper

from qertify.errors import InvalidInputError, ModelFileError, QertifyError, UnsupportedModelError
from qertify.importers.float_onnx import load_float_onnx
from qertify.importers.registry import ImportOptions, load_float_model, load_model
from qertify.network.real import RealNetwork
from qertify.network.real_error import float32_error
from qertify.network.real_evaluate import evaluate_exactly
from tests.conformance.onnx_models import FloatNetwork, cnn, mlp, mobile, model_of, quantized, residual, run, save
from tests.data import shared_data
from tests.unit.importers.test_onnx_bad_files import mutations

RANDOM = np.random.default_rng(7)


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return (np.abs(numbers(*shape)) + 0.1).astype(np.float32)


def agrees(path: Path, network: RealNetwork, inputs: np.ndarray, worth: float = 1e-2) -> None:
    """onnxruntime gives the exact values up to the proved error, and the bound is worth something."""
    outputs = run(path, inputs)
    for x, y in zip(inputs, outputs, strict=True):
        exact = evaluate_exactly(network, x)
        bound = float32_error(network, x, x)[network.output.name].reshape(-1)
        assert len(exact) == len(y) == network.output_size
        for value, true, most in zip(y, exact, bound, strict=True):
            assert abs(Fraction(float(value)) - true) <= Fraction(float(most))
            assert most < worth * max(1.0, abs(float(true)))


IMAGE = [4, 6, 5]
CASES: dict[str, tuple[str, list[int], list[Any], dict[str, Any]]] = {
    "gemm": ("Gemm", [5], [numbers(5, 3), numbers(3)], {"alpha": 0.3, "beta": -1.7}),
    "gemm_transposed": ("Gemm", [5], [numbers(3, 5), numbers(1, 3)], {"transB": 1}),
    "gemm_without_bias": ("Gemm", [5], [numbers(3, 5)], {"transB": 1}),
    "matmul": ("MatMul", [5], [numbers(5, 3)], {}),
    "matmul_rows": ("MatMul", [2, 3, 5], [numbers(5, 4)], {}),
    "conv": ("Conv", IMAGE, [numbers(6, 2, 3, 2), numbers(6)], {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "conv_dilated": ("Conv", IMAGE, [numbers(2, 4, 2, 2)], {"dilations": [2, 3]}),
    "conv_same": ("Conv", IMAGE, [numbers(2, 4, 2, 2)], {"strides": [2, 1], "auto_pad": "SAME_LOWER"}),
    "conv_1d": ("Conv", [4, 9], [numbers(3, 4, 3), numbers(3)], {"pads": [1, 2]}),
    "depthwise": ("Conv", IMAGE, [numbers(4, 1, 3, 3), numbers(4)], {"group": 4}),
    "batch_norm": ("BatchNormalization", IMAGE, [numbers(4), numbers(4), numbers(4), positive(4)], {"epsilon": 1e-3}),
    "batch_norm_1d": ("BatchNormalization", [4], [numbers(4), numbers(4), 9 * numbers(4), 1e-4 * positive(4)], {}),
    "relu": ("Relu", [7], [], {}),
    "leaky_relu": ("LeakyRelu", [7], [], {"alpha": 0.3}),
    "prelu": ("PRelu", IMAGE, [numbers(4, 1, 1)], {}),
    "relu6": ("Clip", [7], [np.float32(0), np.float32(0.6)], {}),
    "clip": ("Clip", [7], [np.float32(-0.3), np.float32(0.4)], {}),
    "clip_low": ("Clip", [7], [np.float32(-0.3)], {}),
    "add": ("Add", IMAGE, [numbers(4, 1, 1)], {}),
    "add_vector": ("Add", [7], [numbers(7)], {}),
    "sub": ("Sub", IMAGE, [numbers(1, 1, 6, 1)], {}),
    "mul": ("Mul", IMAGE, [numbers(5)], {}),
    "div": ("Div", IMAGE, [positive(1, 4, 1, 1)], {}),
    "div_255": ("Div", [7], [np.float32(255)], {}),
    "neg": ("Neg", [7], [], {}),
    "broadcast": ("Add", [1, 5], [numbers(1, 3, 5)], {}),
    "max_pool": ("MaxPool", IMAGE, [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "max_pool_ceil": ("MaxPool", IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "average_pool": ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "average_pool_padded": (
        "AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1, "strides": [2, 2]},
    ),
    "average_pool_1d": ("AveragePool", [4, 9], [], {"kernel_shape": [2]}),
    "global_average": ("GlobalAveragePool", IMAGE, [], {}),
    "global_max": ("GlobalMaxPool", IMAGE, [], {}),
    "mean": ("ReduceMean", IMAGE, [], {"axes": [-1, -2], "keepdims": 0}),
    "mean_over_channels": ("ReduceMean", IMAGE, [], {"axes": [1]}),
    "max": ("ReduceMax", IMAGE, [], {"axes": [3], "keepdims": 0}),
    "reflected": ("Pad", IMAGE, [np.array([0, 0, 1, 2, 0, 0, 3, 0])], {"mode": "reflect"}),
    "flatten": ("Flatten", IMAGE, [], {}),
    "reshape": ("Reshape", IMAGE, [np.array([0, 5, -1])], {}),
    "transpose": ("Transpose", IMAGE, [], {"perm": [0, 2, 3, 1]}),
    "pad": ("Pad", IMAGE, [np.array([0, 0, 1, 2, 0, 0, 3, -1])], {}),
    "identity": ("Identity", [7], [], {}),
    "dropout": ("Dropout", [7], [], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators(tmp_path: Path, name: str) -> None:
    op, shape, operands, attributes = CASES[name]
    constants = {f"c{i}": value for i, value in enumerate(operands)}
    node = helper.make_node(op, ["x", *constants], ["y"], name="node", **attributes)
    path = save(model_of([node], {"x": ("float32", ["n", *shape])}, ("y", "float32"), constants), tmp_path / "m.onnx")
    agrees(path, load_float_onnx(path), numbers(4, *shape), worth=1e-4)


@pytest.mark.parametrize("op", ["Sub", "Add", "MatMul"])
def test_constants_first(tmp_path: Path, op: str) -> None:
    node = helper.make_node(op, ["c", "x"], ["y"], name="node")
    constant = numbers(3, 2) if op == "MatMul" else numbers(2, 4)
    path = save(model_of([node], {"x": ("float32", ["n", 2, 4])}, ("y", "float32"), {"c": constant}), tmp_path / "m.onnx")
    agrees(path, load_float_onnx(path), numbers(3, 2, 4))


def test_operators_of_several_tensors(tmp_path: Path) -> None:
    net = FloatNetwork(0, [2, 4])
    a = net.add("Relu", "x")
    b = net.add("Sub", net.add("Mul", "x", net.constant(numbers(2, 1))), a)
    joined = net.add("Concat", a, b, net.add("Add", a, b), axis=1)
    path = save(net.model(net.add("Flatten", joined)), tmp_path / "m.onnx")
    agrees(path, load_float_onnx(path), numbers(5, 2, 4))


@pytest.mark.parametrize("build", [mlp, cnn, residual, mobile])
def test_networks(tmp_path: Path, build: Any) -> None:
    net = build()
    path = save(net.model(net.output), tmp_path / "m.onnx")
    agrees(path, load_float_model(path), numbers(3, *net.shape), worth=2e-2)


@pytest.mark.parametrize(("op", "kind"), [("Softmax", "softmax"), ("LogSoftmax", "softmax"), ("ArgMax", "argmax")])
def test_final_decisions_are_dropped(tmp_path: Path, op: str, kind: str) -> None:
    net = FloatNetwork(0, [5])
    scores = net.dense("x", 3, 5)
    output = net.add(op, scores, axis=1)
    inputs = {"x": ("float32", ["n", 5])}
    result = "int64" if kind == "argmax" else "float32"
    path = save(model_of(net.nodes, inputs, (output, result), net.constants), tmp_path / "m.onnx")
    network = load_float_onnx(path)
    assert network.metadata["output"] == kind
    exact = evaluate_exactly(network, x := numbers(5))
    found = run(path, x[None])[0]
    assert int(np.argmax(exact)) == (int(found[0]) if kind == "argmax" else int(np.argmax(found)))
    after = save(net.model(net.add("Relu", f"{op}1")), tmp_path / "after.onnx")
    with pytest.raises(UnsupportedModelError, match="nothing may follow"):
        load_float_onnx(after)


def refused(tmp_path: Path, model: Any, error: type[QertifyError], *texts: str, **options: Any) -> None:
    with pytest.raises(error) as found:
        load_float_onnx(save(model, tmp_path / "m.onnx"), **options)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 500
    for text in texts:
        assert text in str(found.value)


def one(op: str, *constants: Any, shape: tuple[Any, ...] = ("n", 4), kind: str = "float32", **attributes: Any) -> Any:
    named = {f"c{i}": value for i, value in enumerate(constants)}
    node = helper.make_node(op, ["x", *named], ["y"], name="node", **attributes)
    return model_of([node], {"x": (kind, list(shape))}, ("y", kind), named)


NAN = np.full((4, 3), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("model", "error", "texts"),
    [
        (lambda: one("Sigmoid"), UnsupportedModelError, ["node", "Sigmoid", "piecewise linear"]),
        (lambda: one("MatMul", NAN), ModelFileError, ["NaN"]),
        (lambda: one("Mul", np.float32(np.inf)), ModelFileError, ["infinity"]),
        (lambda: one("Gemm", numbers(3, 4)), ModelFileError, ["do not fit"]),
        (lambda: one("Gemm", numbers(4, 3), transA=1), UnsupportedModelError, ["transA"]),
        (lambda: one("MatMul", np.ones((4, 3))), UnsupportedModelError, ["float64"]),
        (lambda: one("Div", np.zeros(4, dtype=np.float32)), ModelFileError, ["divides by zero"]),
        (lambda: one("BatchNormalization", *[-positive(4)] * 4), ModelFileError, ["not positive"]),
        (lambda: one("BatchNormalization", *[positive(3)] * 4), ModelFileError, ["channels"]),
        (lambda: one("Clip", np.float32(2), np.float32(1)), ModelFileError, ["empty range"]),
        (lambda: one("Clip", np.float32(np.nan)), ModelFileError, ["not one number"]),
        (lambda: one("Add", numbers(3, 4)), UnsupportedModelError, ["batch axis"]),
        (lambda: one("Add", numbers(3)), ModelFileError, ["do not fit"]),
        (lambda: one("Softmax", axis=1, shape=("n", 2, 2)), UnsupportedModelError, ["axis"]),
        (
            lambda: one("AveragePool", shape=("n", 1, 5, 5), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
            UnsupportedModelError,
            ["ceil_mode"],
        ),
        (lambda: one("Pad", np.array([0, 1, 0, 1]), np.float32(2)), UnsupportedModelError, ["padding value"]),
        (lambda: one("Relu", shape=("n", "m")), UnsupportedModelError, ["--input-shape"]),
        (lambda: one("Relu", kind="uint8"), UnsupportedModelError, ["quantized model", "float original"]),
    ],
)
def test_what_is_refused(tmp_path: Path, model: Any, error: type[QertifyError], texts: list[str]) -> None:
    refused(tmp_path, model(), error, *texts)


def test_products_of_computed_tensors(tmp_path: Path) -> None:
    for op in ("Mul", "Div"):
        node = helper.make_node(op, ["x", "x"], ["y"], name="node")
        refused(tmp_path, model_of([node], {"x": ("float32", ["n", 4])}, ("y", "float32"), {}), UnsupportedModelError, "linear")


def test_what_is_computed_from_shapes(tmp_path: Path) -> None:
    """``x.view(x.size(0), -1)`` with an open batch, and a pad whose widths are put together: as torch writes them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape", start=0, end=2),
        helper.make_node("Gather", ["shape", "first"], ["size"], name="size", axis=0),
        helper.make_node("Unsqueeze", ["size", "axes"], ["sizes"], name="sizes"),
        helper.make_node("Concat", ["sizes", "rest"], ["target"], name="target", axis=0),
        helper.make_node("ConstantOfShape", ["two"], ["zeros"], name="zeros",
                         value=helper.make_tensor("value", TensorProto.INT64, [1], [0])),
        helper.make_node("Concat", ["zeros", "one", "two"], ["pads"], name="pads", axis=0),
        helper.make_node("Reshape", ["x", "target"], ["rows"], name="rows"),
        helper.make_node("Slice", ["pads", "one", "four", "axes"], ["widths"], name="widths"),
        helper.make_node("Concat", ["zeros", "widths"], ["all"], name="all", axis=0),
        helper.make_node("Slice", ["all", "axes", "four"], ["chosen"], name="chosen"),
        helper.make_node("Pad", ["rows", "chosen"], ["y"], name="y"),
    ]  # fmt: skip
    constants = {"first": np.array(0), "axes": np.array([0]), "rest": np.array([-1]), "one": np.array([1]),
                 "two": np.array([2]), "four": np.array([4])}  # fmt: skip
    path = save(model_of(nodes, {"x": ("float32", ["n", 2, 3])}, ("y", "float32"), constants), tmp_path / "m.onnx")
    agrees(path, load_float_onnx(path), numbers(4, 2, 3))


def test_open_shapes(tmp_path: Path) -> None:
    path = save(one("Relu", shape=("n", "m")), tmp_path / "m.onnx")
    assert load_float_model(path, ImportOptions(input_shape=(1, 6))).input_shape == (6,)
    with pytest.raises(InvalidInputError):
        load_float_model(path, ImportOptions(input_shape=(1, 6, 2)))
    with pytest.raises(InvalidInputError, match="no meaning"):
        load_float_model(path, ImportOptions(bits=8))


def test_quantized_and_float_files_are_told_apart(tmp_path: Path) -> None:
    for form in ("QOperator", "QDQ"):
        path = quantized(mlp(), tmp_path / "q.onnx", form, "QUInt8", "QInt8", False)
        with pytest.raises(UnsupportedModelError, match="float original"):
            load_float_model(path)
    net = mlp()
    with pytest.raises(UnsupportedModelError, match="float model"):
        load_model(save(net.model(net.output), tmp_path / "f.onnx"))


def test_mutated_files(tmp_path: Path) -> None:
    """Whatever the bytes: a network or one of qertify's errors, in one line."""
    net = residual()
    source, path = save(net.model(net.output), tmp_path / "source.onnx"), tmp_path / "mutated.onnx"
    outcomes, lines = {"read": 0, "refused": 0}, set()
    for data in mutations(source.read_bytes(), 300):
        path.write_bytes(data)
        try:
            load_float_onnx(path)
            outcomes["read"] += 1
        except QertifyError as error:
            outcomes["refused"] += 1
            lines.add(str(error).count("\n"))
    assert lines == {0}
    assert min(outcomes.values()) > 0


@pytest.mark.skipif(shared_data() is None, reason="needs the data folder: set QERTIFY_DATA")
@pytest.mark.parametrize("name", ["mnist_fc/*256x2*", "acasxu/*.onnx", "oval21/**/*base*", "verivital_avgpool/*"])
def test_published_networks(name: str) -> None:
    folder = shared_data()
    assert folder is not None
    path = next(item for item in sorted((folder / "vnncomp").glob(name)) if item.suffix == ".onnx")
    network = load_float_model(path)
    agrees(path, network, RANDOM.random((1, *network.input_shape), dtype=np.float32))
