"""The input of a quantized ONNX graph: codes, or real numbers up to their first quantizer, perhaps normalized before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qertify.errors import UnsupportedModelError
from qertify.importers.onnx_context import Lowering, attribute, require_default
from qertify.importers.onnx_file import Constant, Graph, GraphNode
from qertify.importers.onnx_moves import MOVES
from qertify.importers.reals import Real
from qertify.network.tensor import QuantizationParameters
from qertify.runtimes.float32 import Float32Array
from qertify.runtimes.input_steps import Step, Steps, merged, obstacle
from qertify.runtimes.onnxruntime_arithmetic import quantize

STEPS = {"Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide"}
"""ONNX's operators with a constant → steps of the input."""
NEUTRAL = {"add": 0.0, "subtract": 0.0, "multiply": 1.0, "divide": 1.0}


def lower_input(lowering: Lowering) -> None:
    """The network's input: codes where the graph reads codes, else what the first quantizer makes of the real input."""
    graph = lowering.graph
    if graph.input_dtype != np.float32:
        limits = np.iinfo(graph.input_dtype)
        unit = QuantizationParameters.of(1.0)
        lowering.values[graph.input] = lowering.builder.input(
            graph.input, graph.input_shape, int(limits.min), int(limits.max), unit
        )
        return
    quantizers = input_quantizers(graph)
    parameters = {_parameters(lowering, node) for node in quantizers}
    if len(parameters) != 1:
        raise UnsupportedModelError(
            quantizers[0].name, quantizers[0].op, None, "the input is quantized in several ways; one quantizer is needed"
        )
    scale, zero_point, low, high = parameters.pop()
    quantization = QuantizationParameters.of(scale, zero_point)
    codes = lowering.builder.input(graph.input, graph.input_shape, low, high, quantization)
    lowering.values[graph.input] = Real(codes, None)


def _parameters(lowering: Lowering, node: GraphNode) -> tuple[float, int, int, int]:
    require_default(node, block_size=0, output_dtype=0)
    scale, zero_point, low, high, _ = lowering.result(node, 1)
    return float(scale), zero_point, low, high


def input_quantizers(graph: Graph) -> list[GraphNode]:
    """The quantizers that read the input, perhaps after its elements were moved and normalized."""
    reached = {graph.input}
    found: list[GraphNode] = []
    for node in graph.nodes:
        if reached.isdisjoint(node.inputs) or node.op == "Shape":
            continue
        if node.op == "QuantizeLinear":
            found.append(node)
        elif node.op in MOVES.keys() - {"NhwcMaxPool"} or node.op in (*STEPS, "BatchNormalization"):
            reached.update(node.outputs)
        else:
            reason = "it computes on the real input; only constants added and multiplied may come before the first quantizer"
            raise UnsupportedModelError(node.name, node.op, None, reason)
    if not found:
        raise UnsupportedModelError(graph.input, "graph", "input", "no QuantizeLinear reads it")
    return found


def stepped(lowering: Lowering, node: GraphNode, x: Real, op: str, constant: Constant) -> Real:
    """The real input, as far as it was normalized already, after one more operation with a constant."""
    origin, index = lowering.builder.origin(x.codes)
    full = (1, *x.codes.shape)
    if origin != lowering.graph.input:
        raise UnsupportedModelError(node.name, node.op, None, "the input was padded or pooled before; normalize it first")
    if constant.dtype != np.float32 or (constant.size != 1 and np.broadcast_shapes(constant.shape, full) != full):
        reason = f"its constant is {constant.dtype} of shape {constant.shape}, which does not fit the input {full}"
        raise UnsupportedModelError(node.name, node.op, None, reason)
    each = np.broadcast_to(constant.reshape(constant.shape if constant.size != 1 else ()), full).reshape(-1)
    spread: Float32Array = np.full(int(np.prod(lowering.graph.input_shape)), np.nan, dtype=np.float32)
    spread[index] = each
    if np.any(spread[index] != each):
        raise UnsupportedModelError(node.name, node.op, None, "it treats copies of one input in several ways")
    return replace(x, steps=(*x.steps, Step(op, spread.reshape(lowering.graph.input_shape))))


def normalized(lowering: Lowering, node: GraphNode, x: Real, parameters: Sequence[Float32Array]) -> Real:
    """BatchNormalization of the real input as onnxruntime computes it: x · m + F(β − F(μ · m)), m = F(γ / √(σ² + ε))."""
    gamma, beta, mean, variance = parameters
    factor = gamma * (np.float32(1) / np.sqrt(variance + np.float32(attribute(node, "epsilon", 1e-5))))
    column = (-1, *(1,) * (len(x.codes.shape) - 1))
    multiplied = stepped(lowering, node, x, "multiply", factor.reshape(column))
    return stepped(lowering, node, multiplied, "add", (beta - mean * factor).reshape(column))


def input_steps(lowering: Lowering) -> Steps:
    """What happens to every input before it is quantized.

    Raises:
        UnsupportedModelError: an input is treated in several ways, or some codes have no input.
    """
    graph = lowering.graph
    if not lowering.quantized_inputs:
        return ()
    steps = merged([x.steps for x in lowering.quantized_inputs])
    quantizer = input_quantizers(graph)[0]
    if steps is None:
        raise UnsupportedModelError(quantizer.name, quantizer.op, None, "it reads an input that is normalized in several ways")
    whole = tuple(Step(s.op, np.where(np.isnan(s.constant), np.float32(NEUTRAL[s.op]), s.constant)) for s in steps)
    scale, zero_point, low, high = _parameters(lowering, quantizer)
    reason = obstacle(whole, lambda v: quantize(v, np.float32(scale), zero_point), low, high) if whole else None
    if reason is not None:
        raise UnsupportedModelError(quantizer.name, quantizer.op, None, f"of the normalization before it: {reason}")
    return whole
