"""Reading ONNX files: a checked, sorted view of the graph in plain Python data. Treats the file as hostile."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.errors import InvalidInputError, MissingExtraError, ModelFileError, UnsupportedModelError

FILE_SIZE_LIMIT = (1 << 31) - 1
"""Largest file read, external data included: the limit of the protobuf format."""
DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Operator sets whose operators are known by their bare names."""
Constant = NDArray[Any]


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One operator; ``name`` is unique and never empty, ``inputs`` holds "" for an omitted optional input."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph with one input and one output.

    Attributes:
        nodes: in topological order.
        constants: initializers and the values of Constant nodes; what an importer folds is added.
        input_shape, input_dtype: of one element of the batch; the dtype is float32, uint8 or int8.
        opset: version of the default domain.
    """

    nodes: tuple[GraphNode, ...]
    constants: dict[str, Constant]
    input: str
    input_shape: tuple[int, ...]
    input_dtype: np.dtype[Any]
    output: str
    opset: int


def require_onnx() -> None:
    """Raises MissingExtraError unless onnx and onnxruntime can be imported."""
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import onnxruntime  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MissingExtraError("reading ONNX files", "onnx") from error


def read_model(path: str | os.PathLike[str]) -> Any:
    """The parsed ModelProto with external data loaded into it.

    Raises:
        ModelFileError: missing, truncated or too large file, external data outside its folder, a newer format version.
    """
    require_onnx()
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        if os.path.getsize(path) > FILE_SIZE_LIMIT:
            raise ModelFileError(f"{path}: larger than 2 GiB")
        model.ParseFromString(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file") from error
    except OSError as error:
        raise ModelFileError(f"{path}: can't be read ({error.strerror or error})") from error
    except (DecodeError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{path}: not an ONNX file, or a truncated one") from error
    if not model.graph.node or not model.opset_import:
        raise ModelFileError(f"{path}: not an ONNX file: it holds no graph")
    _check_versions(model, path)
    _load_external_data(model, path)
    return model


def _check_versions(model: Any, path: str | os.PathLike[str]) -> None:
    import onnx

    known = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and not 7 <= entry.version <= known:
            raise ModelFileError(f"{path}: uses opset {entry.version}; opsets 7 … {known} are read")
    if not 3 <= model.ir_version <= onnx.IR_VERSION:
        raise ModelFileError(f"{path}: has format version {model.ir_version}; versions 3 … {onnx.IR_VERSION} are read")
    if model.functions or model.graph.sparse_initializer:
        raise ModelFileError(f"{path}: holds local functions or sparse tensors, which are not read")


def _load_external_data(model: Any, path: str | os.PathLike[str]) -> None:
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    folder = Path(path).resolve().parent
    total = 0
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        relative = Path(location)
        target = (folder / relative).resolve()
        if not location or relative.is_absolute() or ".." in relative.parts or not target.is_relative_to(folder):
            raise ModelFileError(f"{path}: external data '{location}' of '{tensor.name}' lies outside the model's folder")
        try:
            total += target.stat().st_size
            if total > FILE_SIZE_LIMIT:
                raise ModelFileError(f"{path}: external data larger than 2 GiB")
            load_external_data_for_tensor(tensor, str(folder))
        except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
            raise ModelFileError(f"{path}: external data '{location}' of '{tensor.name}' can't be read") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _text(value: Any) -> str:
    """A name in the file; protobuf hands over damaged ones as bytes."""
    if not isinstance(value, str) or not value.isprintable():
        raise ModelFileError(f"the graph is damaged: {value!r} is no name"[:200])
    return value


def _constant(tensor: Any, name: str) -> Constant:
    import onnx

    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        raise UnsupportedModelError(name, "tensor", None, "holds packed 4-bit integers; 8-bit weights would be needed")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelFileError(f"tensor '{name}' has external data where only embedded data are read")
    try:
        if any(size < 0 for size in tensor.dims) or prod(tensor.dims) > FILE_SIZE_LIMIT:
            raise ValueError("a negative or huge dimension")
        return np.array(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError, AttributeError) as error:
        raise ModelFileError(f"tensor '{name}' is damaged: its data do not fit its type and shape") from error


def _constant_value(node: GraphNode) -> Constant:
    """What a Constant node gives: a tensor, or numbers."""
    for name, dtype in (
        ("value_int", "int64"),
        ("value_ints", "int64"),
        ("value_float", "float32"),
        ("value_floats", "float32"),
    ):
        if name in node.attributes:
            return np.array(node.attributes[name], dtype=dtype)
    value = node.attributes.get("value")
    if not isinstance(value, np.ndarray):
        raise UnsupportedModelError(node.name, node.op, None, "only constants given as a tensor or as numbers are read")
    return value


def _attribute(attribute: Any, node: str, op: str) -> Any:
    import onnx

    kinds = onnx.AttributeProto
    match attribute.type:
        case kinds.INT | kinds.FLOAT | kinds.STRING | kinds.INTS | kinds.FLOATS | kinds.STRINGS:
            value = onnx.helper.get_attribute_value(attribute)
            return tuple(value) if isinstance(value, list) else value
        case kinds.TENSOR:
            return _constant(attribute.t, f"{node}.{attribute.name}")
        case _:
            raise UnsupportedModelError(node, op, attribute.name, "only numbers, strings and tensors are read")


def _nodes(graph: Any) -> list[GraphNode]:
    """The nodes in topological order, with unique names."""
    producer: dict[str, int] = {}
    for position, node in enumerate(graph.node):
        for name in (node.name, node.op_type, node.domain, *node.input, *node.output, *(item.name for item in node.attribute)):
            _text(name)
        for output in filter(None, node.output):
            if output in producer:
                raise ModelFileError(f"the graph is damaged: two nodes compute '{output}'")
            producer[output] = position
    order = TopologicalSorter({i: [producer[x] for x in n.input if x in producer] for i, n in enumerate(graph.node)})
    try:
        positions = list(order.static_order())
    except CycleError as error:
        names = ", ".join(f"'{graph.node[i].name or graph.node[i].op_type}'" for i in error.args[1][:4])
        raise ModelFileError(f"the graph has a cycle through {names}") from error
    result: list[GraphNode] = []
    taken: set[str] = set()
    for node in (graph.node[position] for position in positions):
        name = node.name or next(filter(None, node.output), node.op_type)
        while name in taken:
            name += "'"
        taken.add(name)
        op = node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}"
        attributes = {item.name: _attribute(item, name, op) for item in node.attribute}
        result.append(GraphNode(name, op, tuple(node.input), tuple(node.output), attributes))
    return result


def read_graph(model: Any, input_shape: Sequence[int] | None = None) -> Graph:
    """A checked view of a model.

    Args:
        model: a ModelProto.
        input_shape: the input's full shape, batch axis first (it must be 1), where the file leaves more than it open.

    Raises:
        ModelFileError: a damaged or cyclic graph.
        UnsupportedModelError: several inputs or outputs, open axes, 4-bit tensors, subgraphs.
        InvalidInputError: ``input_shape`` contradicts the file.
    """
    try:
        constants = {_text(tensor.name): _constant(tensor, tensor.name) for tensor in model.graph.initializer}
        nodes: list[GraphNode] = []
        for node in _nodes(model.graph):
            if node.op == "Constant":
                constants[node.outputs[0]] = _constant_value(node)
            else:
                nodes.append(node)
        known = set(constants) | {item.name for item in model.graph.input} | {x for node in nodes for x in node.outputs}
        for node in nodes:
            for name in filter(None, node.inputs):
                if name not in known:
                    raise ModelFileError(f"node '{node.name}' reads '{name}', which nothing computes")
        inputs = [item for item in model.graph.input if _text(item.name) not in constants]
        outputs = [_text(item.name) for item in model.graph.output]
        if len(inputs) != 1 or len(outputs) != 1:
            names = ", ".join(f"'{name}'" for name in ([item.name for item in inputs] if len(inputs) != 1 else outputs)[:8])
            kind = "input" if len(inputs) != 1 else "output"
            raise UnsupportedModelError(model.graph.name or "graph", "graph", kind, f"exactly one is needed, it has: {names}")
        shape, dtype = _input_type(inputs[0], input_shape)
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
        return Graph(tuple(nodes), constants, inputs[0].name, shape, dtype, outputs[0], opset)
    except (UnicodeError, IndexError) as error:
        raise ModelFileError("the graph is damaged: a name or an output is missing") from error


def _input_type(info: Any, given: Sequence[int] | None) -> tuple[tuple[int, ...], np.dtype[Any]]:
    import onnx

    types = onnx.TensorProto
    tensor = info.type.tensor_type
    dtypes = {types.FLOAT: np.float32, types.UINT8: np.uint8, types.INT8: np.int8}
    if tensor.elem_type not in dtypes:
        raise UnsupportedModelError(info.name, "input", "type", "float32, uint8 or int8 is needed")
    dims = [item.dim_value if item.HasField("dim_value") else None for item in tensor.shape.dim]
    if given is not None:
        if tensor.HasField("shape") and (
            len(given) != len(dims) or any(own not in (None, size) for own, size in zip(dims, given, strict=True))
        ):
            raise InvalidInputError(f"--input-shape {list(given)} contradicts the model's {dims}")
        dims = list(given)
    elif dims and dims[0] is None:
        dims[0] = 1
    if not tensor.HasField("shape") or any(size is None for size in dims):
        raise UnsupportedModelError(info.name, "input", "shape", f"is open: {dims}; give it with --input-shape")
    if len(dims) < 2 or dims[0] != 1:
        raise UnsupportedModelError(info.name, "input", "shape", f"{dims} needs a batch axis of size 1 (or open) in front")
    shape = tuple(int(size) for size in dims[1:] if size is not None)
    if any(size <= 0 for size in shape) or prod(shape) > 1 << 26:
        raise UnsupportedModelError(info.name, "input", "shape", f"{dims} is empty or too large")
    return shape, np.dtype(dtypes[tensor.elem_type])


def freeze_input_shape(model: Any, graph: Graph) -> None:
    """Write the resolved input shape into the model, so that the runtime can fold what depends on it."""
    info = next(item for item in model.graph.input if item.name == graph.input)
    dims = info.type.tensor_type.shape.dim
    del dims[:]
    for size in (1, *graph.input_shape):
        dims.add().dim_value = size


def is_quantized(graph: Graph) -> bool:
    """Whether the graph reads integer codes or has a quantized operator."""
    marks = ("QLinear", "QGemm", "QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "MatMulInteger", "ConvInteger")
    return graph.input_dtype != np.float32 or any(node.op.startswith(marks) for node in graph.nodes)
