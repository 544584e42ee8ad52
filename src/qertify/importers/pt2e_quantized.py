"""Quantized PT2E graphs (torchao's convert_pt2e), in torch.export files or in memory, as torch runs them operator by operator.

The graph quantizes and dequantizes explicitly and computes in float32 between, so its sums are enclosed.
"""

from __future__ import annotations

import io
import os
from math import prod
from typing import Any

import numpy as np

from qertify.errors import InvalidInputError, InvalidNetworkError, ModelFileError, UnsupportedModelError
from qertify.importers import islands
from qertify.importers.islands import Island
from qertify.importers.lowering import Codes
from qertify.importers.pt2_context import fold, require_unshared
from qertify.importers.pt2_file import Call, ExportedGraph, parse_exported, read_exported
from qertify.importers.pt2e_context import Lowering, Raw, Value, fold_quantizer, island_of
from qertify.importers.pt2e_operators import OPERATORS
from qertify.importers.reals import Real, Sum
from qertify.network.network import Network
from qertify.network.tensor import QuantizationParameters
from qertify.runtimes.torch_arithmetic import dequantize
from qertify.runtimes.torch_exported import TorchExported

PROFILE = "torch-pt2e"
CHECKED_INPUTS = 8
"""Random inputs on which an import is compared with torch."""
NAMESPACE = "quantized_decomposed."


def load_pt2e(path: str | os.PathLike[str], runtime: str = PROFILE) -> Network:
    """Import a quantized graph from a torch.export file. Nothing of the file runs, and nothing is unpickled.

    Args:
        path: the .pt2 file; exported with a batch of one, or an open batch.
        runtime: "torch-pt2e", the only one there is.

    Returns:
        The integer network, of the profile "torch-pt2e"; an enclosure unless all its float32 sums are proved exact.

    Raises:
        ModelFileError: a damaged or hostile file.
        InvalidInputError: another runtime.
        UnsupportedModelError: a float graph, or an operator that is neither exact nor enclosed; names it.
    """
    if runtime != PROFILE:
        raise InvalidInputError(f"{path}: torch.export files run on {PROFILE}, not on '{runtime}'")
    network = _network(read_exported(path), str(path))
    _check(network, path)
    return network


def import_exported(module: Any, example_input: Any) -> Network:
    """Import a quantized graph in memory.

    Args:
        module: what convert_pt2e returned, or the ExportedProgram of it.
        example_input: float32, batch axis first; only the shape of its first row matters.

    Raises:
        InvalidInputError: an example that is no batch of float32 inputs.
        UnsupportedModelError: as `load_pt2e`, or torch.export can't trace it.
    """
    import torch

    example = torch.as_tensor(example_input)
    if example.ndim < 2 or example.shape[0] < 1 or example.dtype is not torch.float32:
        raise InvalidInputError(
            f"the example input must be float32 with the batch axis first, not {example.dtype} of shape {tuple(example.shape)}"
        )
    stream = io.BytesIO()
    try:
        known = isinstance(module, torch.export.ExportedProgram)
        torch.export.save(module if known else torch.export.export(module, (torch.zeros_like(example[:1]),)), stream)
    except Exception as error:  # user code runs here and may raise anything
        reason = f"torch.export can't trace it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise UnsupportedModelError(type(module).__name__, "module", None, reason) from error
    network = _network(parse_exported(stream.getvalue(), "the module"), "the module")
    _check(network, module)
    return network


def is_quantized_graph(module: Any) -> bool:
    """Whether a module is a graph with explicit quantizers, as convert_pt2e returns it."""
    import torch

    return isinstance(module, torch.fx.GraphModule) and any(NAMESPACE in str(node.target) for node in module.graph.nodes)


def _network(graph: ExportedGraph, path: str) -> Network:
    if not any(call.op.startswith(NAMESPACE) for call in graph.calls):
        raise UnsupportedModelError(path, "torch.export", None, "this is a float model; a quantized one is needed")
    lowering = Lowering(graph)
    try:
        indices = np.arange(prod(graph.input_shape), dtype=np.int64).reshape(graph.input_shape)
        lowering.values[graph.input] = Raw(indices)
        for call in graph.calls:
            _lower(lowering, call)
        if graph.output not in lowering.values:
            raise UnsupportedModelError(graph.output, "forward", "output", "does not depend on the input")
        codes, kind = _output(lowering, lowering.values[graph.output])
        if not lowering.inputs or lowering.inputs[0].quantization is None or codes.quantization is None:
            raise UnsupportedModelError(graph.output, "forward", "output", "does not depend on a quantized input")
        metadata = {"format": "torch-export", "runtime_version": graph.version, "input": "real", "output": kind}
        meaning = codes.quantization
        codes = lowering.builder.reshape("flattened output", codes, (prod(codes.shape),))
        return lowering.builder.build(codes, lowering.inputs[0].quantization, meaning, PROFILE, metadata)
    except (ValueError, OverflowError, MemoryError, LookupError, TypeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path}: damaged: its shapes or values do not fit together ({reason})") from error
    except InvalidNetworkError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _check(network: Network, model: Any) -> None:
    """Compare with torch on a few random inputs."""
    codes = np.random.default_rng(0).integers(network.input.low, network.input.high + 1, (CHECKED_INPUTS, *network.input_shape))
    runtime = TorchExported(network)
    try:
        agrees = runtime.replay(model, runtime.real_input(codes)).agrees
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        reason = f"torch refuses the graph ({' '.join(str(error).split())[:200]})"
        raise UnsupportedModelError("graph", "forward", None, reason) from error
    if not np.all(agrees):
        raise UnsupportedModelError("graph", "forward", None, "torch computes other numbers than its operators enclose")


def _lower(lowering: Lowering, call: Call) -> None:
    if call.op.startswith("aten.sym_size"):
        return  # sizes are read off the description of every tensor
    op = call.op.rpartition(".")[0]
    if op.endswith("_"):
        require_unshared(lowering.graph, call)
    if fold(lowering, call) or fold_quantizer(lowering, call):
        return
    rule = OPERATORS.get(op)
    if rule is None or len(call.outputs) != 1:
        raise call.unsupported(None, "it has neither an exact integer form here nor an enclosure")
    lowering.values[call.outputs[0]] = rule(lowering, call)


def _output(lowering: Lowering, value: Value) -> tuple[Codes, str]:
    """The codes behind the graph's output, and what the graph makes of them."""
    last = Call("output", "forward", {}, ())
    match value:
        case Codes():
            return value, "codes"
        case Real(codes, values) if values is not None and _is_dequantized(codes, values):
            return codes, "dequantized"
        case Real() | Sum() | Island():
            return islands.scores(lowering.builder, "output", island_of(lowering, last, value)), "float32"
        case _:
            raise UnsupportedModelError(lowering.graph.output, "forward", "output", "is the input itself")


def _is_dequantized(codes: Codes, values: Any) -> bool:
    meaning: QuantizationParameters | None = codes.quantization
    if meaning is None:
        return False
    scale, zero_point = np.float32(meaning.scale[0]), int(meaning.zero_point[0])
    return np.array_equal(values, dequantize(np.arange(codes.low, codes.high + 1), scale, zero_point))
