"""Files that can't be read: one of qertify's errors, one clear line that names what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

import onnx
from onnx import TensorProto, helper

from qertify.errors import InvalidInputError, ModelFileError, QertifyError, UnsupportedModelError
from qertify.importers.onnx_quantized import load_onnx
from qertify.network.evaluate import evaluate
from tests.conformance.onnx_models import mlp, model_of, quantized, run, save

F = np.float32


def constants(**changes):
    values = {"s": F(0.02), "z": np.uint8(7), "w": np.arange(-6, 6, dtype=np.int8).reshape(4, 3), "wz": np.int8(0)}
    return values | changes


def nodes(**changes):
    matmul = helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "s", "wz", "s", "z"], ["m"], name="product")
    return [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        changes.get("matmul", matmul),
        helper.make_node("DequantizeLinear", ["m", "s", "z"], ["y"], name="dequantize"),
    ]


def model(node_list=None, shape=("n", 4), opset=17, **changes):
    chosen = nodes() if node_list is None else node_list
    return model_of(chosen, {"x": ("float32", list(shape))}, ("y", "float32"), constants(**changes), opset)


def refused(tmp_path, candidate, error, *texts, **options):
    path = tmp_path / "model.onnx"
    if isinstance(candidate, bytes):
        path.write_bytes(candidate)
    else:
        save(candidate, path)
    with pytest.raises(error) as found:
        load_onnx(path, **options)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 700
    for text in texts:
        assert text in str(found.value)


def test_the_plain_model_is_read(tmp_path):
    network = load_onnx(save(model(), tmp_path / "model.onnx"))
    assert network.input_shape == (4,)
    assert network.output_size == 3


def test_missing_empty_truncated_and_foreign_files(tmp_path):
    with pytest.raises(ModelFileError, match="no such file"):
        load_onnx(tmp_path / "none.onnx")
    with pytest.raises(ModelFileError):
        load_onnx(tmp_path)
    data = model().SerializeToString()
    for bad in (b"", b"\x00" * 100, b"PK\x03\x04 not a protobuf at all", data[: len(data) // 2], data[:-3]):
        refused(tmp_path, bad, ModelFileError)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "", "missing.bin"])
def test_external_data_stays_in_the_folder(tmp_path, location):
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    refused(tmp_path / "folder", with_external_weight(location), ModelFileError, "external data")


def with_external_weight(location):
    result = model()
    tensor = next(item for item in result.graph.initializer if item.name == "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return result


def test_external_data_through_a_link_is_refused_and_beside_the_model_read(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    weight = constants()["w"]
    (tmp_path / "secret.bin").write_bytes(weight.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    refused(folder, with_external_weight("link.bin"), ModelFileError, "outside the model's folder")
    (folder / "weights.bin").write_bytes(weight.tobytes())
    path = save(with_external_weight("weights.bin"), folder / "model.onnx")
    plain = save(model(), folder / "plain.onnx")
    codes = np.random.default_rng(0).integers(0, 256, size=(50, 4))
    assert np.array_equal(evaluate(load_onnx(path), codes), evaluate(load_onnx(plain), codes))


def test_cycles_and_dangling_names(tmp_path):
    loop = helper.make_node(
        "QLinearAdd", ["m", "s", "z", "m2", "s", "z", "s", "z"], ["m2"], name="loop", domain="com.microsoft"
    )
    last = helper.make_node("DequantizeLinear", ["m2", "s", "z"], ["y"], name="last")
    refused(tmp_path, model([*nodes()[:2], loop, last]), ModelFileError, "cycle", "loop")
    dangling = helper.make_node("DequantizeLinear", ["nothing", "s", "z"], ["y"], name="last")
    refused(tmp_path, model([*nodes()[:2], dangling]), ModelFileError, "'last' reads 'nothing'")
    refused(tmp_path, model([*nodes(), nodes()[2]]), ModelFileError, "two nodes compute 'y'")


def test_open_axes(tmp_path):
    refused(tmp_path, model(shape=("n", "features")), UnsupportedModelError, "--input-shape")
    refused(tmp_path, model(shape=("n", "features")), InvalidInputError, "contradicts", input_shape=(1, 4, 4))
    refused(tmp_path, model(shape=(8, 4)), UnsupportedModelError, "batch axis of size 1")
    path = save(model(shape=("n", "features")), tmp_path / "model.onnx")
    assert load_onnx(path, input_shape=(1, 4)).input_shape == (4,)


@pytest.mark.parametrize(("changes", "texts"), [
    ({"s": F(0)}, ["positive"]), ({"s": F(np.nan)}, ["scale"]), ({"s": F(-1)}, ["scale"]), ({"s": F(1e-42)}, ["scale"]),
    ({"s": np.float64(0.1)}, ["float64"]), ({"s": np.ones(4, F)}, ["one scale a tensor"]),
    ({"z": np.int16(3)}, ["int16", "uint8 or int8"]), ({"w": np.ones((4, 3), np.int16)}, ["int16"]),
    ({"w": np.ones((4, 3), F)}, ["float32"]),
])  # fmt: skip
def test_unusable_constants(tmp_path, changes, texts):
    refused(tmp_path, model(**changes), UnsupportedModelError, *texts)


@pytest.mark.parametrize("changes", [
    {"w": np.ones((5, 3), np.int8)}, {"w": np.ones((4, 3), np.uint8)}, {"wz": np.zeros(7, np.int8)}, {"w": np.int8(3)},
])  # fmt: skip
def test_constants_that_do_not_fit(tmp_path, changes):
    refused(tmp_path, model(**changes), ModelFileError, "product")


def test_missing_scale(tmp_path):
    bare = helper.make_node("QLinearMatMul", ["q", "", "z", "w", "s", "wz", "s", "z"], ["m"], name="product")
    refused(tmp_path, model(nodes(matmul=bare)), UnsupportedModelError, "product", "operand 1 is missing")
    refused(
        tmp_path, model(nodes(matmul=helper.make_node("QLinearMatMul", ["q"], ["m"], name="product"))), QertifyError, "missing"
    )


def test_int8_activations_times_uint8_weights(tmp_path):
    refused(
        tmp_path, model(z=np.int8(0), w=np.ones((4, 3), np.uint8), wz=np.uint8(0)), UnsupportedModelError, "int8 times uint8"
    )  # fmt: skip


def test_four_bit_weights(tmp_path):
    result = model(opset=21)
    packed = helper.make_tensor("w", TensorProto.INT4, [4, 3], np.zeros(12, np.int8))
    next(item for item in result.graph.initializer if item.name == "w").CopyFrom(packed)
    refused(tmp_path, result, UnsupportedModelError, "4-bit", "'w'")


def test_versions(tmp_path):
    refused(tmp_path, model(opset=99), ModelFileError, "opset 99")
    newer = model()
    newer.ir_version = 99
    refused(tmp_path, newer, ModelFileError, "format version 99")


def test_float_and_unknown_operators(tmp_path):
    refused(tmp_path, mlp().model(mlp().output), UnsupportedModelError, "float model")
    unknown = helper.make_node("Magic", ["m"], ["k"], name="trick", domain="com.example")
    last = helper.make_node("DequantizeLinear", ["k", "s", "z"], ["y"])
    refused(tmp_path, model([*nodes()[:2], unknown, last]), UnsupportedModelError, "'trick'", "com.example.Magic")
    conditional = helper.make_node("QLinearSoftmax", ["m", "s", "z", "s", "z"], ["k"], name="soft", domain="com.microsoft")
    refused(tmp_path, model([*nodes()[:2], conditional, last]), UnsupportedModelError, "'soft'", "ties")


def test_unknown_operators_are_named_before_what_the_runtime_would_fuse(tmp_path):
    path = quantized(mlp(), tmp_path / "plain.onnx", "QDQ", "QUInt8", "QInt8", False)
    fine = onnx.load(path)
    fine.graph.node.append(helper.make_node("Softplus", [fine.graph.output[0].name], ["end"], name="odd"))
    fine.graph.output[0].name = "end"
    refused(tmp_path, fine, UnsupportedModelError, "node 'odd' (Softplus)")


def test_float_island_is_named(tmp_path):
    tanh = [
        *nodes()[:2],
        helper.make_node("DequantizeLinear", ["m", "s", "z"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["u"], name="island"),
        helper.make_node("QuantizeLinear", ["u", "s", "z"], ["v2"]),
        helper.make_node("DequantizeLinear", ["v2", "s", "z"], ["y"]),
    ]
    refused(tmp_path, model(tanh, v=np.eye(3, dtype=F)), UnsupportedModelError, "'island' (MatMul)")


@pytest.mark.parametrize("value", [7, (1.5, 2.0), b"text"])
def test_constants_of_other_kinds(tmp_path, value):
    """They hold no tensor where one is expected: a line, not a traceback."""
    made = helper.make_node("Constant", [], ["v"], name="made")
    made.attribute.append(helper.make_attribute("value", value))
    refused(tmp_path, model([made, *nodes()]), UnsupportedModelError, "'made'", "tensor or as numbers")


def test_softmax_is_dropped_only_where_order_stays(tmp_path):
    soft = [
        *nodes()[:2],
        helper.make_node("DequantizeLinear", ["m", "s", "z"], ["r"]),
        helper.make_node("Softmax", ["r"], ["y"], name="soft"),
    ]
    path = save(model(soft), tmp_path / "model.onnx")
    network = load_onnx(path)
    assert network.metadata["output"] == "softmax"
    x = np.random.default_rng(0).normal(size=(500, 4)).astype(F)
    from qertify.runtimes.base import runtime_of

    assert runtime_of(network).replay(path, x).agrees.all()
    refused(tmp_path, model(soft, s=F(0.5)), UnsupportedModelError, "soft", "ties")
    refused(tmp_path, model(soft, s=F(1e-5)), UnsupportedModelError, "soft", "ties")


def mutations(data, count):
    """Files with bytes flipped, cut out, repeated, or integers made huge."""
    random = np.random.default_rng(0)
    for _ in range(count):
        bad = bytearray(data)
        for _ in range(int(random.integers(1, 6))):
            at, length = int(random.integers(len(bad))), int(random.integers(1, 9))
            match int(random.integers(5)):
                case 0:
                    bad[at] ^= 1 << int(random.integers(8))
                case 1:
                    bad[at : at + length] = random.integers(0, 256, size=length, dtype=np.uint8).tobytes()
                case 2:
                    del bad[at : at + length]
                case 3:
                    bad[at:at] = bad[at : at + length * 8]
                case _:
                    bad[at : at + 5] = b"\xff\xff\xff\xff\x7f"
        yield bytes(bad)


@pytest.mark.parametrize("form", ["QOperator", "QDQ", "operators"])
def test_mutated_files(tmp_path, form):
    """Whatever the bytes: a network or one of qertify's errors."""
    if form == "operators":
        source = save(all_operators(), tmp_path / "source.onnx")
        x = np.random.default_rng(1).integers(0, 256, size=(20, 2, 6, 6)).astype(np.uint8)
        assert np.array_equal(evaluate(load_onnx(source), x), run(source, x))
    else:
        source = quantized(mlp(), tmp_path / "source.onnx", form, "QUInt8", "QInt8", False)
    path = tmp_path / "mutated.onnx"
    outcomes, lines = {"read": 0, "refused": 0}, set()
    for data in mutations(source.read_bytes(), 334):
        path.write_bytes(data)
        try:
            load_onnx(path)
            outcomes["read"] += 1
        except QertifyError as error:
            outcomes["refused"] += 1
            lines.add(str(error).count("\n"))
    assert lines == {0}
    assert outcomes["refused"] > 100
    assert outcomes["read"] > 0


def all_operators():
    """A small graph of most operators, so that mutations meet their checks."""

    def quantized_node(op, *inputs, **attributes):
        return helper.make_node(op, [*inputs], [f"t{len(graph)}"], name=f"node{len(graph)}", **attributes)

    graph = []
    own = {"domain": "com.microsoft"}
    graph.append(quantized_node("QLinearConv", "x", "s", "z", "k", "s", "wz", "s", "z", "b", pads=[1, 1, 1, 1]))
    graph.append(quantized_node("MaxPool", "t0", kernel_shape=[2, 2], strides=[2, 2]))
    graph.append(quantized_node("Transpose", "t1", perm=[0, 1, 3, 2]))
    graph.append(quantized_node("QLinearLeakyRelu", "t2", "s", "z", "s", "z", alpha=0.1, **own))
    graph.append(quantized_node("QLinearAdd", "t3", "s", "z", "t1", "s", "z", "s2", "z", **own))
    graph.append(quantized_node("QLinearMul", "t4", "s", "z", "c", "s", "z", "s", "z", **own))
    graph.append(quantized_node("QLinearConcat", "s2", "z", "t4", "s", "z", "t5", "s2", "z", axis=1, **own))
    graph.append(quantized_node("Pad", "t6", "pads", "fill"))
    graph.append(quantized_node("Clip", "t7", "low", "high"))
    graph.append(quantized_node("QLinearGlobalAveragePool", "t8", "s", "z", "s", "z", **own))
    graph.append(quantized_node("Flatten", "t9"))
    graph.append(quantized_node("Reshape", "t10", "shape"))
    gemm = quantized_node("QGemm", "t11", "s", "z", "w", "s", "wz", "wb", "s2", "z", transB=1, **own)
    graph.append(gemm)
    random = np.random.default_rng(3)
    values = {"s": F(0.05), "s2": F(0.3), "z": np.uint8(100), "wz": np.int8(0), "c": np.array([[[90]], [[130]]], np.uint8)}
    values |= {"k": random.integers(-100, 100, size=(2, 2, 3, 3)).astype(np.int8), "b": np.array([40, -60], np.int32)}
    values |= {"pads": np.array([0, 0, 1, 0, 0, 0, 0, 2]), "fill": np.uint8(3), "low": np.uint8(9), "high": np.uint8(200)}
    values |= {
        "shape": np.array([-1, 4]),
        "w": random.integers(-128, 128, size=(3, 4)).astype(np.int8),
        "wb": np.arange(3, dtype=np.int32),
    }
    return model_of(graph, {"x": ("uint8", ["n", 2, 6, 6])}, (graph[-1].output[0], "uint8"), values)
