"""Float constants of quantized ONNX graphs: stored as float32, or quantized and dequantized by a node."""

from __future__ import annotations

import numpy as np

from qertify.errors import UnsupportedModelError
from qertify.importers.onnx_context import Lowering, attribute, integers, require_default
from qertify.importers.onnx_file import GraphNode
from qertify.runtimes.float32 import Float32Array


def _producer(lowering: Lowering, name: str) -> GraphNode | None:
    return next((node for node in lowering.graph.nodes if name in node.outputs), None)


def is_float_constant(lowering: Lowering, node: GraphNode, position: int) -> bool:
    """Whether an operand is a constant, stored or dequantized."""
    if position < len(node.inputs) and node.inputs[position] in lowering.values:
        return False
    source = _producer(lowering, node.inputs[position]) if position < len(node.inputs) else None
    dequantized = source is not None and source.op == "DequantizeLinear" and lowering.is_constant(source, 0)
    return lowering.is_constant(node, position) or dequantized


def float_constant(lowering: Lowering, node: GraphNode, position: int) -> tuple[Float32Array, GraphNode | None]:
    """An operand that is a float constant, stored or dequantized, and the node that dequantizes it."""
    if lowering.is_constant(node, position):
        array = lowering.constant(node, position, "f")
        if array.dtype != np.float32:
            raise UnsupportedModelError(node.name, node.op, None, f"operand {position} is {array.dtype}; float32 is needed")
        return array, None
    source = _producer(lowering, node.inputs[position])
    if source is None or source.op != "DequantizeLinear" or not lowering.is_constant(source, 0):
        raise UnsupportedModelError(node.name, node.op, None, f"operand {position} must be a constant, it is computed")
    return dequantized_constant(lowering, source), source


def dequantized_constant(lowering: Lowering, source: GraphNode) -> Float32Array:
    """What a DequantizeLinear makes of a stored constant."""
    require_default(source, block_size=0, output_dtype=0)
    stored, scale = lowering.constant(source, 0, "iu"), lowering.scales(source, 1)
    zero_point = lowering.constant(source, 2, "iu").reshape(-1) if len(source.inputs) > 2 and source.inputs[2] else np.zeros(1)
    shape = [1] * stored.ndim
    if max(scale.size, zero_point.size) > 1:
        shape[attribute(source, "axis", 1)] = -1
    codes, zeros = integers(stored), integers(zero_point).reshape(shape)
    return np.asarray((codes - zeros).astype(np.float32) * scale.reshape(shape), dtype=np.float32)
