"""Float PyTorch modules as exact real arithmetic: torch.export files, and modules in memory through torch.export."""

from __future__ import annotations

import io
import os
from typing import Any

from qertify.errors import InvalidInputError, InvalidNetworkError, ModelFileError, UnsupportedModelError
from qertify.importers.float_torch_operators import OPERATORS, Lowering
from qertify.importers.pt2_context import fold, require_unshared
from qertify.importers.pt2_file import Call, ExportedGraph, parse_exported, read_exported
from qertify.network.real import RealNetwork


def import_torch_float(module: Any, example_input: Any) -> RealNetwork:
    """Import a float module.

    Args:
        module: a torch.nn.Module in evaluation mode that torch.export can trace; one float32 tensor in, one out.
        example_input: float32, batch axis first; only the shape of its first row matters.

    Returns:
        The real network, as `load_float_pt2`.

    Raises:
        InvalidInputError: a module in training mode, or an example that is no batch of float32 inputs.
        UnsupportedModelError: torch.export can't trace it, or an operator is not piecewise linear; names it.
    """
    import torch

    if module.training:
        raise InvalidInputError("the module is in training mode; call module.eval() first")
    example = torch.as_tensor(example_input)
    if example.ndim < 2 or example.shape[0] < 1 or example.dtype is not torch.float32:
        raise InvalidInputError(
            f"the example input must be float32 with the batch axis first, not {example.dtype} of shape {tuple(example.shape)}"
        )
    stream = io.BytesIO()
    try:
        torch.export.save(torch.export.export(module, (torch.zeros_like(example[:1]),)), stream)
    except Exception as error:  # user code runs here and may raise anything
        reason = f"torch.export can't trace it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise UnsupportedModelError(type(module).__name__, "module", None, reason) from error
    return _network(parse_exported(stream.getvalue(), "the module"), "the module")


def load_float_pt2(path: str | os.PathLike[str]) -> RealNetwork:
    """Import a float module from a torch.export file. Nothing of the file runs, and nothing is unpickled.

    Args:
        path: the .pt2 file; exported with a batch of one, or an open batch.

    Returns:
        The real network; its metadata as `float_onnx.load_float_onnx` has them.

    Raises:
        ModelFileError: a damaged or hostile file.
        UnsupportedModelError: a quantized module, or an operator that is not piecewise linear; names it.
    """
    return _network(read_exported(path), str(path))


def _network(graph: ExportedGraph, path: str) -> RealNetwork:
    lowering = Lowering(graph)
    try:
        lowering.values[graph.input] = lowering.builder.input(graph.input, graph.input_shape)
        for call in graph.calls:
            _lower(lowering, call)
        if graph.output not in lowering.values:
            raise UnsupportedModelError(graph.output, "forward", "output", "does not depend on the input")
        kind = lowering.decisions.get(graph.output, "values")
        metadata = {"format": "torch-export", "torch_version": graph.version, "output": kind}
        return lowering.builder.build(lowering.values[graph.output], metadata)
    except (ValueError, OverflowError, MemoryError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path}: damaged: its shapes or values do not fit together ({reason})") from error
    except InvalidNetworkError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _lower(lowering: Lowering, call: Call) -> None:
    if call.op.startswith("aten.sym_size"):
        return  # sizes are read off the description of every tensor
    if call.op.rpartition(".")[0].endswith("_"):
        require_unshared(lowering.graph, call)
    if call.op.startswith("quantized"):
        raise call.unsupported(None, "this is a quantized model; the float original it was made from is needed")
    if fold(lowering, call):
        return
    rule = OPERATORS.get(call.op.rpartition(".")[0])
    if rule is None or len(call.outputs) != 1:
        raise call.unsupported(None, "only piecewise linear float operators are read")
    lowering.values[call.outputs[0]] = rule(lowering, call)
