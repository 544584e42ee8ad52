"""int8 TFLite models as LiteRT runs them on an x86 CPU, bit for bit.

The file does not say whose arithmetic it gets: the resolver does, and by default LiteRT gives each operator it can to XNNPACK.
Which ones is asked of LiteRT itself, with the file at hand.
"""

from __future__ import annotations

import os
from math import prod

from qertify.errors import InvalidInputError, InvalidNetworkError, ModelFileError, UnsupportedModelError
from qertify.importers.lowering import Codes
from qertify.importers.tflite_context import (
    RANGES,
    Lowering,
    RealInput,
    RealOutput,
    parameters,
    require_batch_of_one,
    require_shape,
    scale_of,
)
from qertify.importers.tflite_file import Graph, Operator, read_file, read_graph
from qertify.importers.tflite_operators import OPERATORS, XNNPACK_OPERATORS
from qertify.importers.tflite_shapes import fold
from qertify.network.network import Network
from qertify.runtimes.litert import PROFILES, confirm, delegated_operators, version
from qertify.runtimes.litert_arithmetic import Kernels


def load_tflite(path: str | os.PathLike[str], runtime: str = "litert-xnnpack") -> Network:
    """Import an int8 TFLite model.

    Args:
        path: the .tflite file: one input, one output, every computed tensor with a batch axis of 1.
        runtime: "litert-xnnpack" (LiteRT's default), "litert-builtin" or "litert-reference".

    Returns:
        The integer network; its input has the file's shape and order without the batch axis. Its metadata tell whether inputs
        are real numbers or codes ("input"), and what the model returns ("output": codes, dequantized).

    Raises:
        InvalidInputError: an unknown runtime.
        ModelFileError: a damaged or hostile file, or one that LiteRT refuses.
        UnsupportedModelError: an operator that is not int8 arithmetic, or whose arithmetic is not known bit for bit.
        MissingExtraError: LiteRT is not installed.
    """
    if runtime not in PROFILES:
        raise InvalidInputError(f"unknown runtime '{runtime}' for a TFLite file; known: {', '.join(PROFILES)}")
    content = read_file(path)
    try:
        graph = read_graph(content)
        _require_quantized(graph)
        expected = frozenset(node.index for node in graph.operators if _expects_xnnpack(graph, node))
        network = _network(graph, runtime, expected)
        if PROFILES[runtime] is Kernels.XNNPACK and (found := delegated_operators(content)) != expected:
            network = _network(graph, runtime, found)
        confirm(network, content)
        return network
    except (InvalidNetworkError, ModelFileError) as error:
        raise ModelFileError(f"{path}: {error}") from error


def _require_quantized(graph: Graph) -> None:
    if not graph.operators:
        raise ModelFileError("it holds no operator")
    if not any(tensor.dtype == "int8" and tensor.scale.size for tensor in graph.tensors):
        first = graph.operators[0]
        raise UnsupportedModelError(first.name, first.op, None, "this is a float model: it has no int8 tensor")


def _expects_xnnpack(graph: Graph, node: Operator) -> bool:
    tensors = [graph.tensors[index] for index in (*node.inputs, *node.outputs) if index >= 0]
    return node.op in XNNPACK_OPERATORS and all(tensor.dtype != "uint8" for tensor in tensors)


def _network(graph: Graph, runtime: str, delegated: frozenset[int]) -> Network:
    kernels = PROFILES[runtime]
    lowering = Lowering(graph, kernels, delegated)
    _lower_input(lowering)
    for node in graph.operators:
        _lower(lowering, node)
    if graph.output not in lowering.values:
        raise UnsupportedModelError("model", "model", "output", "does not depend on the input")
    output = lowering.values[graph.output]
    codes, output_kernels = (output.codes, output.kernels) if isinstance(output, RealOutput) else (output, kernels)
    if not isinstance(codes, Codes):
        raise UnsupportedModelError("model", "model", "output", "is the input itself")
    shape = graph.tensors[graph.output].shape
    flat = lowering.builder.reshape("flattened output", lowering.filed("output", codes, shape), (prod(shape),))
    metadata = {
        "format": "tflite",
        "runtime_version": version(),
        "input": "codes" if lowering.input_kernels is None else "real",
        "input_kernels": (lowering.input_kernels or kernels).value,
        "output": "dequantized" if isinstance(output, RealOutput) else "codes",
        "output_kernels": output_kernels.value,
    }
    assert lowering.input_quantization is not None
    assert codes.quantization is not None
    return lowering.builder.build(flat, lowering.input_quantization, codes.quantization, runtime, metadata)


def _lower_input(lowering: Lowering) -> None:
    """Codes where the file's input holds codes; a real input waits for its quantizer."""
    index = lowering.graph.input
    tensor = lowering.graph.tensors[index]
    require_batch_of_one("model", "input", tensor.shape)
    if tensor.data is not None:
        raise ModelFileError("its input is a constant")
    if tensor.dtype == "float32":
        lowering.values[index] = RealInput()
        return
    scale, zero_point = scale_of(tensor, Operator(-1, "input", (), (), {}))
    low, high = RANGES[tensor.dtype]
    lowering.values[index] = lowering.input(tensor.shape, low, high, parameters(scale, zero_point))


def _lower(lowering: Lowering, node: Operator) -> None:
    if fold(lowering, node):
        return
    if node.op not in OPERATORS:
        raise UnsupportedModelError(node.name, node.op, None, f"supported are {', '.join(sorted(OPERATORS))}")
    targets = [lowering.graph.tensors[index] for index in node.outputs]
    for index, target in zip(node.outputs, targets, strict=True):
        require_batch_of_one(node.name, node.op, target.shape)
        lowering.spend(node, "results", prod(target.shape))
        if target.data is not None or index in lowering.values or node.outputs.count(index) > 1:
            raise ModelFileError(f"node '{node.name}': its result '{target.name}' is computed twice, or a constant")
    found = OPERATORS[node.op](lowering, node)
    values = found if isinstance(found, list) else [found]
    if len(values) != len(targets):
        raise UnsupportedModelError(node.name, node.op, None, f"it has {len(targets)} results, one is needed")
    for index, target, value in zip(node.outputs, targets, values, strict=True):
        codes = value.codes if isinstance(value, RealOutput) else value
        assert isinstance(codes, Codes)
        require_shape(node, codes, target.shape)
        lowering.values[index] = value
