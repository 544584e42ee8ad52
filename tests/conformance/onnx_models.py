"""Small ONNX models made on the spot: single operators, and whole networks quantized by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

onnxruntime.set_default_logger_severity(4)
TYPES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def model_of(
    nodes: list[Any],
    inputs: dict[str, tuple[str, list[Any]]],
    output: tuple[str, str],
    constants: dict[str, Any],
    opset: int = 17,
) -> Any:
    """A model of given nodes; ``inputs``: name → (type, shape), ``output``: (name, type)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TYPES[kind], shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(output[0], TYPES[output[1]], None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def save(model: Any, path: Path) -> Path:
    onnx.save(model, path)
    return path


def single(
    path: Path, op: str, operands: list[str], constants: dict[str, Any], x_shape: list[int], kind: str, **attributes: Any
) -> Path:
    """One operator that reads the codes "x" (batch open) and gives codes of the same type."""
    domain = "" if op in ("QLinearConv", "QLinearMatMul", "MaxPool") else "com.microsoft"
    node = helper.make_node(op, operands, ["y"], name="node", domain=domain, **attributes)
    return save(model_of([node], {"x": (kind, ["n", *x_shape])}, ("y", kind), constants), path)


def run(path: Path, x: NDArray[Any]) -> NDArray[Any]:
    """What onnxruntime computes, flattened to (batch, outputs)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0].reshape(len(x), -1)


class FloatNetwork:
    """Collects float operators with random weights."""

    def __init__(self, seed: int, shape: list[int]) -> None:
        self.random = np.random.default_rng(seed)
        self.shape, self.nodes, self.constants = shape, [], {}

    def add(self, op: str, *operands: str, **attributes: Any) -> str:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(operands), [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype=np.float32)
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.random.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:])))

    def convolution(self, x: str, channels: int, inputs: int, size: int, groups: int = 1, stride: int = 1) -> str:
        operands = (
            x,
            self.weight(channels, inputs // groups, size, size),
            self.constant(self.random.normal(size=channels) * 0.2),
        )
        return self.add("Conv", *operands, pads=[size // 2] * 4, group=groups, strides=[stride] * 2)

    def dense(self, x: str, outputs: int, inputs: int) -> str:
        return self.add(
            "Gemm", x, self.weight(outputs, inputs), self.constant(self.random.normal(size=outputs) * 0.2), transB=1
        )

    def model(self, output: str) -> Any:
        return model_of(self.nodes, {"x": ("float32", ["n", *self.shape])}, (output, "float32"), self.constants, opset=17)


def mlp(seed: int = 0) -> FloatNetwork:
    net = FloatNetwork(seed, [20])
    hidden = net.add("Relu", net.dense("x", 32, 20))
    hidden = net.add("Relu", net.dense(hidden, 24, 32))
    net.output = net.dense(hidden, 10, 24)
    return net


def cnn(seed: int = 0) -> FloatNetwork:
    """Convolution, max pooling, a strided convolution, global average pooling."""
    net = FloatNetwork(seed, [1, 10, 10])
    x = net.add("Relu", net.convolution("x", 6, 1, 3))
    x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Relu", net.convolution(x, 12, 6, 3, stride=2))
    x = net.add("Flatten", x)
    net.output = net.dense(x, 10, 12 * 9)
    return net


def residual(seed: int = 0) -> FloatNetwork:
    """Two residual blocks, one of them with a projection, and a global average."""
    net = FloatNetwork(seed, [2, 8, 8])
    x = net.add("Relu", net.convolution("x", 8, 2, 3))
    y = net.add("Relu", net.convolution(x, 8, 8, 3))
    x = net.add("Relu", net.add("Add", net.convolution(y, 8, 8, 3), x))
    y = net.add("Relu", net.convolution(x, 12, 8, 3, stride=2))
    x = net.add("Relu", net.add("Add", net.convolution(y, 12, 12, 3), net.convolution(x, 12, 8, 1, stride=2)))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.output = net.dense(x, 10, 12)
    return net


def mobile(seed: int = 0) -> FloatNetwork:
    """An inverted residual block with a depthwise convolution and ReLU6, a leaky ReLU, a concatenation."""
    net = FloatNetwork(seed, [3, 8, 8])
    low, high = net.constant(0.0), net.constant(6.0)
    x = net.add("Clip", net.convolution("x", 6, 3, 3), low, high)
    y = net.add("Clip", net.convolution(x, 12, 6, 1), low, high)
    y = net.add("Clip", net.convolution(y, 12, 12, 3, groups=12), low, high)
    x = net.add("Add", net.convolution(y, 6, 12, 1), x)
    x = net.add("Concat", x, net.add("LeakyRelu", net.convolution(x, 4, 6, 1), alpha=0.125), axis=1)
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.output = net.dense(x, 10, 10)
    return net


NETWORKS = {"mlp": mlp, "cnn": cnn, "residual": residual, "mobile": mobile}


def quantized(net: FloatNetwork, path: Path, form: str, activation: str, weight: str, per_channel: bool) -> Path:
    """The network quantized by onnxruntime's own tool on random calibration data.

    Args:
        form: "QOperator" or "QDQ". activation, weight: "QUInt8" or "QInt8".
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(net.random.normal(size=(24, 1, *net.shape)).astype(np.float32))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch}

    source = save(net.model(net.output), path.with_suffix(".float.onnx"))
    quantize_static(
        source,
        path,
        Reader(),
        quant_format=QuantFormat[form],
        activation_type=QuantType[activation],
        weight_type=QuantType[weight],
        per_channel=per_channel,
    )
    return path
