"""TFLite files as plain data: read with bounds on everything, so that a damaged or hostile file costs little and does nothing.

A flatbuffer is a web of offsets. Only a fixed set of fields is followed, to a fixed depth, so that cyclic offsets can't loop;
lengths are checked before anything is allocated, and an offset that leads out of the file raises.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.errors import MissingExtraError, ModelFileError, UnsupportedModelError
from qertify.network.tensor import IntegerArray
from qertify.runtimes.float32 import Float32Array, is_normal

FILE_LIMIT = (1 << 31) - 1
"""Largest file, bytes: offsets of a flatbuffer are signed 32-bit."""
COUNT_LIMIT = 1 << 14
"""Most tensors, operators, operator codes, or operands."""
AXES_LIMIT = 6
ELEMENT_LIMIT = 1 << 24
"""Most elements of one computed tensor."""
CONSTANT_LIMIT = 1 << 28
"""Most bytes of all constants together; several tensors may share one buffer."""
NAME_LIMIT = 80

TYPES = {0: "float32", 2: "int32", 3: "uint8", 4: "int64", 7: "int16", 9: "int8"}
"""The schema's tensor types that are read."""

OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "CONV_2D": (
        "Conv2DOptions",
        ("Padding", "StrideH", "StrideW", "DilationHFactor", "DilationWFactor", "FusedActivationFunction"),
    ),
    "DEPTHWISE_CONV_2D": (
        "DepthwiseConv2DOptions",
        ("Padding", "StrideH", "StrideW", "DilationHFactor", "DilationWFactor", "FusedActivationFunction", "DepthMultiplier"),
    ),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("FusedActivationFunction", "WeightsFormat", "KeepNumDims")),
    "ADD": ("AddOptions", ("FusedActivationFunction",)),
    "SUB": ("SubOptions", ("FusedActivationFunction",)),
    "MUL": ("MulOptions", ("FusedActivationFunction",)),
    "AVERAGE_POOL_2D": (
        "Pool2DOptions",
        ("Padding", "StrideH", "StrideW", "FilterHeight", "FilterWidth", "FusedActivationFunction"),
    ),
    "MAX_POOL_2D": (
        "Pool2DOptions",
        ("Padding", "StrideH", "StrideW", "FilterHeight", "FilterWidth", "FusedActivationFunction"),
    ),
    "MEAN": ("ReducerOptions", ("KeepDims",)),
    "CONCATENATION": ("ConcatenationOptions", ("Axis", "FusedActivationFunction")),
    "LEAKY_RELU": ("LeakyReluOptions", ("Alpha",)),
    "REDUCE_MAX": ("ReducerOptions", ("KeepDims",)),
    "RESIZE_NEAREST_NEIGHBOR": ("ResizeNearestNeighborOptions", ("AlignCorners", "HalfPixelCenters")),
    "SPLIT": ("SplitOptions", ("NumSplits",)),
    "SPLIT_V": ("SplitVOptions", ("NumSplits",)),
    "UNPACK": ("UnpackOptions", ("Num", "Axis")),
    "GATHER": ("GatherOptions", ("Axis", "BatchDims")),
    "DEPTH_TO_SPACE": ("DepthToSpaceOptions", ("BlockSize",)),
    "SPACE_TO_DEPTH": ("SpaceToDepthOptions", ("BlockSize",)),
    "MIRROR_PAD": ("MirrorPadOptions", ("Mode",)),
    "STRIDED_SLICE": (
        "StridedSliceOptions",
        ("BeginMask", "EndMask", "EllipsisMask", "NewAxisMask", "ShrinkAxisMask"),
    ),
}
"""Operator → its options table in the schema, and the fields that are read; other operators have none that matter."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One tensor.

    Attributes:
        shape: batch axis included.
        dtype: numpy name of its type.
        scale: float32, one or one a channel; empty where it is not quantized.
        zero_point: int64, as many.
        axis: the one that several scales belong to.
        data: the constant that the file holds, of this shape and type, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: Float32Array
    zero_point: IntegerArray
    axis: int
    data: NDArray[Any] | None


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator; tensors by index, −1 for an omitted operand."""

    index: int
    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For messages, and for the nodes it becomes; unique."""
        return f"{self.index}:{self.op}"


@dataclass(frozen=True, slots=True)
class Graph:
    """The only subgraph of a model, operators in the order they run."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    input: int
    output: int


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The file's bytes.

    Raises:
        ModelFileError: missing, unreadable, too large, or not a TFLite file.
    """
    try:
        size = os.stat(path).st_size
        if size > FILE_LIMIT:
            raise ModelFileError(f"{path}: larger than {FILE_LIMIT} bytes")
        content = Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(f"can't read {path}: {error.strerror or error}") from error
    if len(content) < 8 or content[4:8] != b"TFL3":
        raise ModelFileError(f"{path}: not a TFLite file")
    return content


def read_graph(content: bytes) -> Graph:
    """The graph of a model.

    Raises:
        MissingExtraError: the schema is not installed.
        ModelFileError: damaged, or beyond a limit.
        UnsupportedModelError: several subgraphs, inputs or outputs; tensors of types or layouts that are not read.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise MissingExtraError("TFLite import", "tflite") from error
    try:
        return _graph(schema, content)
    except (struct.error, ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, MemoryError) as error:
        raise ModelFileError(f"damaged or truncated ({type(error).__name__}: {error})"[:300]) from error


def _count(length: int, what: str, limit: int = COUNT_LIMIT) -> int:
    if not 0 <= length <= limit:
        raise ModelFileError(f"claims {length} {what}, more than {limit}")
    return length


def _integers(length: int, get: Callable[[int], int], what: str, limit: int = COUNT_LIMIT) -> tuple[int, ...]:
    return tuple(int(get(position)) for position in range(_count(length, what, limit)))


def _graph(schema: Any, content: bytes) -> Graph:
    model: Any = schema.Model.GetRootAs(content, 0)
    if model.SubgraphsLength() != 1:
        raise UnsupportedModelError("model", "model", "subgraphs", f"one is needed, it has {model.SubgraphsLength()}")
    graph = model.Subgraphs(0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    codes: list[str] = []
    for position in range(_count(model.OperatorCodesLength(), "operator codes")):
        code = model.OperatorCodes(position)
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        codes.append(names.get(number, f"operator {number}"))
    used = 0
    tensors: list[Tensor] = []
    for position in range(_count(graph.TensorsLength(), "tensors")):
        tensor = _tensor(model, graph.Tensors(position), position)
        used += 0 if tensor.data is None else tensor.data.nbytes
        if used > CONSTANT_LIMIT:
            raise ModelFileError(f"its constants take more than {CONSTANT_LIMIT} bytes")
        tensors.append(tensor)
    operators = [
        _operator(schema, graph.Operators(position), position, codes, len(tensors))
        for position in range(_count(graph.OperatorsLength(), "operators"))
    ]
    ends = [
        _integers(length, get, what)
        for length, get, what in (
            (graph.InputsLength(), graph.Inputs, "inputs"),
            (graph.OutputsLength(), graph.Outputs, "outputs"),
        )
    ]
    if len(ends[0]) != 1 or len(ends[1]) != 1:
        raise UnsupportedModelError(
            "model", "model", None, f"one input and one output are needed, it has {len(ends[0])} and {len(ends[1])}"
        )
    if not all(0 <= end[0] < len(tensors) for end in ends):
        raise ModelFileError("its input or output is no tensor")
    return Graph(tuple(tensors), tuple(operators), ends[0][0], ends[1][0])


def _text(raw: bytes | None, position: int) -> str:
    text = (raw or b"").decode("utf-8")[:NAME_LIMIT]
    return text if text.isprintable() and text else f"tensor {position}"


def _tensor(model: Any, tensor: Any, position: int) -> Tensor:
    name = _text(tensor.Name(), position)
    shape = _integers(tensor.ShapeLength(), tensor.Shape, "axes")
    kind = TYPES.get(tensor.Type())
    if kind is None:
        raise UnsupportedModelError(name, "tensor", "type", f"type {tensor.Type()} of the schema; int8 is needed")
    if tensor.IsVariable() or tensor.Sparsity() is not None:
        raise UnsupportedModelError(name, "tensor", None, "it is sparse or keeps state between runs")
    if len(shape) > AXES_LIMIT or (shape and min(shape) < 0):
        raise ModelFileError(f"tensor '{name}' has the shape {list(shape)}")
    scale, zero_point, axis = _quantization(tensor.Quantization(), name)
    data = _constant(model, tensor, name, shape, np.dtype(kind))
    if data is None and prod(shape) > ELEMENT_LIMIT:
        raise ModelFileError(f"tensor '{name}' has {prod(shape)} elements, more than {ELEMENT_LIMIT}")
    return Tensor(name, shape, kind, scale, zero_point, axis, data)


def _quantization(parameters: Any, name: str) -> tuple[Float32Array, IntegerArray, int]:
    if parameters is None or parameters.ScaleLength() == 0:
        return np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64), 0
    count = _count(parameters.ScaleLength(), "scales")
    scale = np.asarray(parameters.ScaleAsNumpy(), dtype=np.float32)
    if parameters.ZeroPointLength() not in (0, count):
        raise ModelFileError(f"tensor '{name}' has {count} scales and {parameters.ZeroPointLength()} zero points")
    zero_point = np.zeros(count, dtype=np.int64)
    if parameters.ZeroPointLength():
        zero_point = np.asarray(parameters.ZeroPointAsNumpy(), dtype=np.int64)
    if parameters.DetailsType():
        raise UnsupportedModelError(name, "tensor", "quantization", "only one scale, or one a channel, is read")
    if not all(is_normal(float(value)) for value in scale):
        raise UnsupportedModelError(name, "tensor", "scale", "every scale must be a positive normal float32")
    return scale, zero_point, int(parameters.QuantizedDimension())


def _constant(model: Any, tensor: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """The buffer of a tensor, or None for one computed at run time."""
    if tensor.ExternalBuffer():
        raise UnsupportedModelError(name, "tensor", "buffer", "it lies outside the file")
    index = tensor.Buffer()
    if not 0 <= index < model.BuffersLength():
        raise ModelFileError(f"tensor '{name}' names a buffer that does not exist")
    buffer = model.Buffers(index)
    if buffer.Offset() or buffer.Size():
        raise UnsupportedModelError(name, "tensor", "buffer", "it lies behind the flatbuffer, in a file larger than 2 GiB")
    if buffer.DataLength() == 0:
        return None
    if buffer.DataLength() != prod(shape) * dtype.itemsize:
        raise ModelFileError(f"tensor '{name}' of shape {list(shape)} has {buffer.DataLength()} bytes of data")
    return np.frombuffer(buffer.DataAsNumpy().tobytes(), dtype=dtype.newbyteorder("<")).reshape(shape)


def _operator(schema: Any, operator: Any, position: int, codes: list[str], tensors: int) -> Operator:
    op = codes[operator.OpcodeIndex()]
    inputs = _integers(operator.InputsLength(), operator.Inputs, "operands")
    outputs = _integers(operator.OutputsLength(), operator.Outputs, "results")
    if any(not -1 <= index < tensors for index in inputs) or any(not 0 <= index < tensors for index in outputs):
        raise ModelFileError(f"node '{position}:{op}' names a tensor that does not exist")
    return Operator(position, op, inputs, outputs, _options(schema, operator, op, position))


def _options(schema: Any, operator: Any, op: str, position: int) -> dict[str, Any]:
    if op not in OPTIONS:
        return {}
    name, wanted = OPTIONS[op]
    table = operator.BuiltinOptions()
    options = getattr(schema, name)()
    if table is None or operator.BuiltinOptionsType() != getattr(schema.BuiltinOptions, name):
        raise ModelFileError(f"node '{position}:{op}' has no {name}")
    options.Init(table.Bytes, table.Pos)
    return {item: getattr(options, item)() for item in wanted}
