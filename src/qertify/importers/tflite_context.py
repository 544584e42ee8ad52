"""What the lowering rules of TFLite operators share: values under construction, and checked access to operands.

Tensors of four axes, (1, height, width, channels) in the file, are (channels, height, width) in the network; tensors of any
other number of axes keep their order, without the batch axis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.errors import ModelFileError, UnsupportedModelError
from qertify.importers.lowering import Builder, Codes
from qertify.importers.tflite_file import Graph, Operator, Tensor
from qertify.network.nodes import Window
from qertify.network.tensor import IntegerArray, QuantizationParameters
from qertify.runtimes.litert import Quantized
from qertify.runtimes.litert_arithmetic import Kernels, clamp

LEAST_MULTIPLIER, MULTIPLIER_LIMIT = 2.0**-32, 2.0**8
"""Range of the multipliers that the kernels were established for."""
WINDOW_LIMIT = 1 << 12
"""Largest kernel, stride, dilation or padding."""

BUDGETS = {"weights": 1 << 27, "results": 1 << 27, "window elements": 1 << 30}
"""Most elements of each kind that one network may have: operators may share tensors, and a hostile file must not cost much."""
WINDOW_ELEMENTS = 1 << 26
"""Most elements of all windows of one operator together."""

RANGES = {"int8": (-128, 127), "uint8": (0, 255)}
ACTIVATIONS = {0: (None, None), 1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
"""Fused activation of the schema → its real bounds: none, ReLU, ReLU between −1 and 1, ReLU6."""


@dataclass(frozen=True, slots=True)
class RealInput:
    """The network's float32 input before its quantizer."""


@dataclass(frozen=True, slots=True)
class RealOutput:
    """A float32 tensor: codes dequantized by known kernels, in an order that the numbers keep."""

    codes: Codes
    kernels: Kernels


Value = Codes | RealInput | RealOutput


@dataclass(slots=True)
class Lowering:
    """One import in progress.

    Attributes:
        kernels: the runtime's preference.
        delegated: positions of the operators that XNNPACK runs; they matter only if it is preferred.
        values: of the tensors computed so far, by index.
        numbers: of the tensors computed from shapes alone, by index.
        input_quantization: of the network's input, once known.
        input_kernels: who quantizes a real input, once known.
    """

    graph: Graph
    kernels: Kernels
    delegated: frozenset[int]
    builder: Builder = field(default_factory=Builder)
    values: dict[int, Value] = field(default_factory=dict)
    numbers: dict[int, IntegerArray] = field(default_factory=dict)
    input_quantization: QuantizationParameters | None = None
    input_kernels: Kernels | None = None
    spent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BUDGETS, 0))

    def spend(self, node: Operator, kind: str, amount: int) -> None:
        """Count elements against a budget.

        Raises:
            ModelFileError: the network is larger than the budget.
        """
        self.spent[kind] += amount
        if self.spent[kind] > BUDGETS[kind]:
            raise ModelFileError(f"node '{node.name}': the network has more than {BUDGETS[kind]} {kind}")

    def kernels_of(self, node: Operator) -> Kernels:
        """Whose kernels run an operator."""
        if self.kernels is Kernels.XNNPACK and node.index not in self.delegated:
            return Kernels.BUILTIN
        return self.kernels

    def tensor(self, node: Operator, position: int) -> Tensor:
        """An operand."""
        if position >= len(node.inputs) or node.inputs[position] < 0:
            raise ModelFileError(f"node '{node.name}': operand {position} is missing")
        return self.graph.tensors[node.inputs[position]]

    def result(self, node: Operator) -> Tensor:
        """The only result."""
        if len(node.outputs) != 1:
            raise UnsupportedModelError(node.name, node.op, None, f"it has {len(node.outputs)} results, one is needed")
        return self.graph.tensors[node.outputs[0]]

    def value(self, node: Operator, position: int) -> Value:
        """An operand that depends on the network's input."""
        tensor = self.tensor(node, position)
        index = node.inputs[position]
        if index not in self.values:
            what = "a constant here" if tensor.data is not None else "not computed by any earlier node"
            raise UnsupportedModelError(node.name, node.op, None, f"operand '{tensor.name}' is {what}")
        return self.values[index]

    def codes(self, node: Operator, position: int) -> Codes:
        """An operand that is an integer tensor computed earlier."""
        value = self.value(node, position)
        if not isinstance(value, Codes):
            raise UnsupportedModelError(node.name, node.op, None, "it computes in float; an int8 operator is needed")
        return value

    def image(self, node: Operator, position: int) -> Codes:
        """An operand of shape (channels, height, width)."""
        if len(self.tensor(node, position).shape) != 4:
            raise UnsupportedModelError(node.name, node.op, None, "an operand of shape (1, height, width, channels) is needed")
        return self.codes(node, position)

    def constant(self, node: Operator, position: int, dtype: str) -> NDArray[Any]:
        """An operand that the file holds."""
        tensor = self.tensor(node, position)
        if tensor.data is None or tensor.dtype != dtype:
            found = f"a {tensor.dtype} tensor" + ("" if tensor.data is not None else " computed at run time")
            raise UnsupportedModelError(
                node.name, node.op, None, f"operand {position} must be a constant {dtype}, it is {found}"
            )
        return tensor.data

    def input(self, shape: tuple[int, ...], low: int, high: int, quantization: QuantizationParameters) -> Codes:
        """The network's input, in the file's order, as a value of the file's shape (batch axis included)."""
        self.input_quantization = quantization
        return self.placed("input", self.builder.input("input", shape[1:], low, high, quantization), shape)

    def filed(self, name: str, value: Codes, shape: tuple[int, ...]) -> Codes:
        """The same elements in the file's order, of the file's shape without the batch axis."""
        return self.builder.transpose(name, value, (1, 2, 0)) if len(shape) == 4 else value

    def placed(self, name: str, value: Codes, shape: tuple[int, ...]) -> Codes:
        """Elements in the file's order as a value of the file's shape (batch axis included)."""
        value = self.builder.reshape(f"{name}/file order", value, shape[1:])
        return self.builder.transpose(f"{name}/channels first", value, (2, 0, 1)) if len(shape) == 4 else value


def layout(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the network of a tensor in the file."""
    return (shape[3], shape[1], shape[2]) if len(shape) == 4 else shape[1:]


def require_batch_of_one(name: str, op: str, shape: tuple[int, ...]) -> None:
    """Every computed tensor must have a batch axis of length one, first, and no empty axis."""
    if len(shape) < 2 or shape[0] != 1 or min(shape) < 1:
        raise UnsupportedModelError(name, op, "shape", f"{list(shape)} given, a first axis of 1 for the batch is needed")


def scale_of(tensor: Tensor, node: Operator) -> tuple[np.float32, int]:
    """Scale and zero point of an 8-bit activation.

    Raises:
        UnsupportedModelError: another type, or not quantized as a whole.
    """
    if tensor.dtype not in RANGES:
        kind = "it is a float operator" if tensor.dtype == "float32" else f"it works on {tensor.dtype}"
        raise UnsupportedModelError(node.name, node.op, None, f"{kind}; int8 is needed")
    if tensor.scale.size != 1:
        raise UnsupportedModelError(node.name, node.op, "scale", f"tensor '{tensor.name}' needs one scale")
    low, high = RANGES[tensor.dtype]
    zero_point = int(tensor.zero_point[0])
    if not low <= zero_point <= high:
        raise ModelFileError(f"tensor '{tensor.name}': zero point {zero_point} is outside {low} … {high}")
    return np.float32(tensor.scale[0]), zero_point


def int8(tensor: Tensor, node: Operator) -> tuple[np.float32, int]:
    """As `scale_of`, for int8 only."""
    if tensor.dtype == "uint8":
        raise UnsupportedModelError(node.name, node.op, None, "it works on uint8; int8 is needed")
    return scale_of(tensor, node)


def quantized(tensor: Tensor, node: Operator) -> Quantized:
    """Type and meaning of an 8-bit activation."""
    scale, zero_point = scale_of(tensor, node)
    return Quantized(RANGES[tensor.dtype][0], scale, zero_point)


def parameters(scale: np.float32, zero_point: int) -> QuantizationParameters:
    return QuantizationParameters.of(float(scale), zero_point)


def activation(node: Operator, kernels: Kernels, scale: np.float32, zero_point: int) -> tuple[int, int]:
    """Least and greatest code after the fused activation."""
    kind = node.options.get("FusedActivationFunction", 0)
    if kind not in ACTIVATIONS:
        raise UnsupportedModelError(node.name, node.op, "fused_activation_function", f"unknown activation {kind}")
    low, high = RANGES["int8"]
    least, greatest = ACTIVATIONS[kind]
    if least is not None:
        low = max(low, clamp(kernels, least, scale, zero_point))
    if greatest is not None:
        high = min(high, clamp(kernels, greatest, scale, zero_point))
    if low > high:
        raise UnsupportedModelError(node.name, node.op, "fused_activation_function", "it leaves no code")
    return low, high


def require_multiplier(node: Operator, values: ArrayLike, least: float = LEAST_MULTIPLIER) -> None:
    """Reject multipliers that the kernels were not established for."""
    array = np.asarray(values)
    if not np.all((array >= least) & (array < MULTIPLIER_LIMIT)):
        reason = f"the ratio of scales must lie in {least:.3g} … {MULTIPLIER_LIMIT:.0f}"
        raise UnsupportedModelError(node.name, node.op, "scale", reason)


def require_same_quantization(node: Operator, *tensors: Tensor) -> tuple[np.float32, int]:
    """The scale and zero point that all of these int8 tensors share."""
    found = {int8(tensor, node) for tensor in tensors}
    if len(found) != 1:
        raise UnsupportedModelError(node.name, node.op, "scale", "its operands and result must share scale and zero point")
    return found.pop()


def window_of(lowering: Lowering, node: Operator, x: Codes, kernel: tuple[int, int]) -> Window:
    """The sliding window of a convolution or pool over x, (channels, height, width)."""
    options, size = node.options, (x.shape[1], x.shape[2])
    stride = (options["StrideH"], options["StrideW"])
    dilation = (options.get("DilationHFactor", 1), options.get("DilationWFactor", 1))
    if not all(1 <= value <= WINDOW_LIMIT for value in (*kernel, *stride, *dilation)):
        raise ModelFileError(f"node '{node.name}': kernel {kernel}, stride {stride}, dilation {dilation}")
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    match options["Padding"]:
        case 0:
            total = [max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(size, stride, reach, strict=True)]
            padding = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
        case 1:
            padding = (0, 0, 0, 0)
        case other:
            raise ModelFileError(f"node '{node.name}': unknown padding {other}")
    if any(n + p + q < r for n, p, q, r in zip(size, padding[:2], padding[2:], reach, strict=True)):
        raise ModelFileError(f"node '{node.name}': the window {reach} does not fit the input {size}")
    window = Window(kernel, stride, padding, dilation)
    amount = prod(window.output_size(*size)) * prod(kernel) * x.shape[0]
    if amount > WINDOW_ELEMENTS:
        raise ModelFileError(f"node '{node.name}': its windows hold {amount} elements, more than {WINDOW_ELEMENTS}")
    lowering.spend(node, "window elements", amount)
    return window


def window_counts(window: Window, size: tuple[int, int]) -> NDArray[np.int64]:
    """How many elements of an undilated window lie inside the image, shape (out_h, out_w)."""
    inside: list[NDArray[np.int64]] = []
    for axis, length in enumerate(window.output_size(*size)):
        start = np.arange(length) * window.stride[axis] - window.padding[axis]
        inside.append(np.minimum(start + window.kernel[axis], size[axis]) - np.maximum(start, 0))
    return inside[0][:, None] * inside[1][None, :]


def require_shape(node: Operator, value: Codes, shape: tuple[int, ...]) -> None:
    """Check a result against the shape that the file declares."""
    if value.shape != layout(shape) or prod(value.shape) != prod(shape):
        raise ModelFileError(f"node '{node.name}': computes {value.shape}, but the file declares {list(shape)}")
