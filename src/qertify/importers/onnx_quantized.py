"""Quantized ONNX models as onnxruntime runs them on a CPU, bit for bit.

QOperator graphs are read as stored: they give the same bits at every optimisation level. In a QDQ graph the file leaves
open what is computed in integers, so the graph that onnxruntime makes of it, at its default optimisation level, is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qertify.errors import InvalidInputError, InvalidNetworkError, ModelFileError, UnsupportedModelError
from qertify.importers.islands import Island, scores
from qertify.importers.lowering import Builder, Codes
from qertify.importers.onnx_constants import dequantized_constant
from qertify.importers.onnx_context import Decision, Lowering, Real, Sum, Value
from qertify.importers.onnx_file import Graph, GraphNode, freeze_input_shape, is_quantized, read_graph, read_model
from qertify.importers.onnx_folding import fold
from qertify.importers.onnx_inputs import input_quantizers, input_steps, lower_input
from qertify.importers.onnx_islands import ISLANDS, as_island, uniform
from qertify.importers.onnx_moves import MOVES
from qertify.importers.onnx_operators import OPERATORS
from qertify.importers.reals import Scaled, ranked
from qertify.network.network import Network
from qertify.network.tensor import QuantizationParameters
from qertify.runtimes.input_steps import to_json
from qertify.runtimes.onnx_reference import version as standard_version
from qertify.runtimes.onnxruntime import optimized_model, version
from qertify.runtimes.onnxruntime_arithmetic import dequantize

FLOAT_OPERATORS = (
    "AveragePool", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "Shape",
)  # fmt: skip
"""Operators that onnxruntime may fuse with the quantizers around them, or fold away."""
STANDARD = frozenset({
    *(MOVES.keys() - {"NhwcMaxPool", "Resize", "Upsample"}), *(ISLANDS.keys() - {"QLinearAveragePool"}), "Add", "ArgMax",
    "Clip", "DequantizeLinear", "Div", "Mul", "QuantizeLinear", "Relu", "Sub",
})  # fmt: skip
"""Operators whose float32 results the standard defines, up to the order of sums."""


SPECIFICATION = "onnx-spec"
"""The runtime that is the standard itself: the stored graph, in float between integers."""


def load_onnx(
    path: str | os.PathLike[str],
    input_shape: Sequence[int] | None = None,
    runtime: str = "onnxruntime",
    allow_float_islands: bool = False,
) -> Network:
    """Import a quantized ONNX model, QOperator or QDQ.

    Args:
        path: the .onnx file; external data must lie in its folder.
        input_shape: the input's full shape, batch axis first (it must be 1), where the file leaves more than it open.
        runtime: "onnxruntime", or "onnx-spec": a QDQ file as the standard defines it, each quantizer and each float
            operator by itself. Sums have no defined order in float32 there, so they are enclosed.
        allow_float_islands: enclose what onnxruntime computes in float between quantized operators.

    Returns:
        The integer network, whose profile is the runtime; an enclosure if "enclosed" in its metadata names operators. They
        also tell whether inputs are real numbers or codes ("input"), what became of the outputs ("output": codes,
        dequantized, softmax, argmax; ranks: codes number all values that outputs take, in ascending order; float32: codes of a
        grid), which graph was read, and the operand types of every multiplication ("kernels", JSON).

    Raises:
        ModelFileError: a damaged or hostile file, or one that onnxruntime refuses.
        UnsupportedModelError: an operator that is not integer arithmetic; names every such node.
        InvalidInputError: an input shape that contradicts the file.
    """
    if runtime not in ("onnxruntime", SPECIFICATION):
        raise InvalidInputError(f"{path}: ONNX files run on onnxruntime, or as {SPECIFICATION}, not on '{runtime}'")
    model = read_model(path)
    try:
        graph = read_graph(model, input_shape)
        _require_quantized(graph)
        _require_known(graph)
        if runtime == SPECIFICATION:
            _require_standard(graph)
            return _network(graph, "stored", SPECIFICATION, True)
        if _stored_graph_decides(graph):
            return _network(graph, "stored", runtime, allow_float_islands)
        freeze_input_shape(model, graph)
        optimized = type(model)()
        optimized.ParseFromString(optimized_model(model.SerializeToString()))
        return _network(read_graph(optimized), "optimized", runtime, allow_float_islands)
    except (ValueError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path}: damaged: its shapes or values do not fit together ({reason})") from error
    except InvalidNetworkError as error:
        raise ModelFileError(f"{path}: {error}") from error
    except ModelFileError as error:
        raise error if str(error).startswith(str(path)) else ModelFileError(f"{path}: {error}") from error


def _stored_graph_decides(graph: Graph) -> bool:
    """Whether no operator between integers is left to the runtime's optimizer.

    The optimizer fuses float operators with the quantizers around them, and may drop or merge quantizers.
    """
    at_input = input_quantizers(graph) if graph.input_dtype == np.float32 else []
    inner = any(node.op == "QuantizeLinear" and node not in at_input for node in graph.nodes)
    return not inner and all(node.op in OPERATORS for node in graph.nodes)


def _require_quantized(graph: Graph) -> None:
    if not is_quantized(graph):
        raise UnsupportedModelError(
            graph.nodes[0].name if graph.nodes else "graph",
            "graph",
            None,
            "this is a float model: it has no quantized operator",
        )


def _require_standard(graph: Graph) -> None:
    """Reject operators whose numbers the standard does not define."""
    for node in graph.nodes:
        if node.op not in STANDARD:
            raise UnsupportedModelError(
                node.name, node.op, None, f"{SPECIFICATION} covers QDQ files: quantizers around {', '.join(sorted(STANDARD))}"
            )


def _network(graph: Graph, source: str, runtime: str, allow_islands: bool) -> Network:
    lowering = _with_numbers(Lowering(graph, Builder()))
    lower_input(lowering)
    failures: list[UnsupportedModelError] = []
    failed: set[str] = set()
    for node in graph.nodes:
        try:
            if failed.isdisjoint(node.inputs):
                if not fold(lowering, node):
                    _lower(lowering, node)
                continue
        except UnsupportedModelError as error:
            failures.append(error)
        failed.update(node.outputs)
    if failures:
        raise _naming(failures[0], [node for node in graph.nodes if node.op not in (*OPERATORS, *ISLANDS)])
    if graph.output not in lowering.values:
        raise UnsupportedModelError(graph.output, "graph", "output", "does not depend on the input")
    codes, kind = _finish(lowering, lowering.values[graph.output])
    if lowering.builder.enclosed and not allow_islands:
        culprits = [node for node in lowering.islands if node.op != "QuantizeLinear"] or lowering.islands
        reason = "it runs in float, and has no exact integer form here; --allow-float-islands encloses it"
        raise _naming(UnsupportedModelError(culprits[0].name, culprits[0].op, None, reason), culprits)
    steps = input_steps(lowering)
    real = graph.input_dtype == np.float32
    if len(codes.shape) != 1:
        codes = lowering.builder.reshape("flattened output", codes, (int(np.prod(codes.shape)),))
    source_codes = lowering.values[graph.input]
    quantization = source_codes.codes.quantization if isinstance(source_codes, Real) else None
    unit = QuantizationParameters.of(1.0)
    metadata = {
        "format": "onnx",
        "graph": source,
        "runtime_version": standard_version() if runtime == SPECIFICATION else version(),
        "input": "real" if real else "codes",
        "input_name": graph.input,
        "output": kind,
        "kernels": json.dumps(lowering.kernels, sort_keys=True),
        **({"input_steps": to_json(steps)} if steps else {}),
        **({"enclosed": json.dumps(lowering.builder.enclosed)} if lowering.builder.enclosed else {}),
    }
    return lowering.builder.build(codes, quantization or unit, codes.quantization or unit, runtime, metadata)


def _with_numbers(lowering: Lowering) -> Lowering:
    """Single numbers that the file stores quantized, dequantized: for operators that take no tensor in their place."""
    constants = lowering.graph.constants
    stored = [node for node in lowering.graph.nodes if node.op == "DequantizeLinear" and lowering.is_constant(node, 0)]
    numbers = {node.outputs[0]: dequantized_constant(lowering, node) for node in stored if constants[node.inputs[0]].size == 1}
    return replace(lowering, graph=replace(lowering.graph, constants={**constants, **numbers}))


def _lower(lowering: Lowering, node: GraphNode) -> None:
    constants = lowering.graph.constants
    rule = OPERATORS.get(node.op) or ISLANDS.get(node.op)
    if rule is None:
        raise UnsupportedModelError(node.name, node.op, None, "it runs in float, and has no exact integer form here")
    if node.op == "DequantizeLinear" and node.inputs and node.inputs[0] in constants:
        return  # a weight; whoever computes with it in float looks it up
    if node.op in MOVES.keys() - {"Concat"}:
        uniform(lowering, node, 0)
    value = rule(lowering, node)
    if not node.outputs or not node.outputs[0]:
        raise ModelFileError(f"node '{node.name}' computes nothing")
    lowering.values[node.outputs[0]] = value


def _require_known(graph: Graph) -> None:
    unknown = [node for node in graph.nodes if node.op not in (*OPERATORS, *ISLANDS, *FLOAT_OPERATORS)]
    if unknown:
        error = UnsupportedModelError(unknown[0].name, unknown[0].op, None, "it has no exact integer form here")
        raise _naming(error, unknown)


def _naming(first: UnsupportedModelError, nodes: Sequence[GraphNode]) -> UnsupportedModelError:
    """An error about one node that names others of the same fate too."""
    others = list(dict.fromkeys(f"'{node.name}' ({node.op})" for node in nodes if node.name != first.node))
    if not others:
        return first
    more = f" and {len(others) - 8} more" if len(others) > 8 else ""
    reason = str(first).partition(" is not supported: ")[2]
    return UnsupportedModelError(first.node, first.op, first.attribute, f"{reason}; nor has {', '.join(others[:8])}{more}")


def _finish(lowering: Lowering, value: Value) -> tuple[Codes, str]:
    """The codes behind the graph's output, and what the file makes of them."""
    match value:
        case Codes():
            return value, "codes"
        case Decision(codes, kind):
            return codes, kind
        case Real(_, None):
            raise UnsupportedModelError(lowering.graph.output, "graph", "output", "is the input itself")
        case Real():
            clamped = _as_own_codes(lowering.builder, value)
            return (
                (ranked(lowering.builder, "output ranks", value).codes, "ranks")
                if clamped is None
                else (clamped, "dequantized")
            )
        case Scaled() if value.distinct:
            meaning = QuantizationParameters.of(float(value.multiplier[0]))
            return replace(value.codes, quantization=meaning), "dequantized"
        case Sum() | Scaled() | Island():
            producer = next(node for node in lowering.graph.nodes if lowering.graph.output in node.outputs)
            return scores(lowering.builder, "output", as_island(lowering, producer, value, "output")), "float32"


def _as_own_codes(builder: Builder, x: Real) -> Codes | None:
    """Codes whose own scale gives the numbers, up to a clamp; None if there are none."""
    codes, values = x.codes, x.values
    if codes.quantization is None or values is None or x.row is not None:
        return None
    scale, zero_point = np.float32(codes.quantization.scale[0]), int(codes.quantization.zero_point[0])
    plain = dequantize(np.arange(codes.low, codes.high + 1), scale, zero_point)
    image = np.searchsorted(plain, values)
    if np.any(np.diff(plain) <= 0) or np.any(image > codes.high - codes.low) or np.any(plain[image] != values):
        return None
    meant = codes.low + image[None, :].astype(np.int64)
    return builder.unary("output clamp", codes, meant, codes.low, codes.high, codes.quantization)
