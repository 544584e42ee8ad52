"""Quantized PyTorch modules, in memory or in TorchScript files, as an engine of PyTorch runs them on x86.

fbgemm and qnnpack are reproduced bit for bit; the linear layers of x86 and oneDNN are enclosed.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch

from qertify.errors import InvalidInputError, InvalidNetworkError, ModelFileError, UnsupportedModelError
from qertify.importers.lowering import Codes
from qertify.importers.pt2e_quantized import import_exported, is_quantized_graph
from qertify.importers.torch_context import Decision, Lowering, Raw, Real
from qertify.importers.torch_graph import Operation, Rule, Traced, Walk, program_of
from qertify.importers.torch_operators import OPERATORS
from qertify.network.network import Network
from qertify.runtimes.saturation import arithmetic_doubts, host_cpu_class
from qertify.runtimes.torch_arithmetic import LANES, Engine, dequantize
from qertify.runtimes.torch_int8 import TorchInt8, load_program, read_torchscript, running, version

ELEMENT_LIMIT = 1 << 24
"""Most elements of an input."""
CHECKED_INPUTS = 8
"""Random inputs on which an import is compared with the module."""


def import_torch(module: torch.nn.Module | torch.export.ExportedProgram, example_input: Any, engine: str = "fbgemm") -> Network:
    """Import a converted int8 module of torch.ao.quantization, eager or FX, or a graph of torchao's convert_pt2e.

    Args:
        module: in evaluation mode; takes one float32 tensor, gives one tensor, quantized or dequantized at the end. A copy
            is packed for the engine and traced; the module itself is not changed. Graphs with explicit quantizers, and
            exported programs, have no engine; they are imported as `pt2e_quantized.import_exported` says.
        example_input: float32, batch axis first; only the shape of its first row matters.
        engine: "fbgemm", "qnnpack", "x86" or "onednn". Claims are about modules packed for, and run under, this engine, on
            batches of one.

    Returns:
        The integer network, of the profile "torch-" and the engine; an enclosure for x86 and onednn.

    Raises:
        UnsupportedModelError: something that is not exact integer arithmetic under this engine; names the node.
        InvalidInputError: a module in training mode, or an example that is no batch of float32 inputs.
    """
    if isinstance(module, torch.export.ExportedProgram) or is_quantized_graph(module):
        return import_exported(module, example_input)
    if module.training:
        raise InvalidInputError("the module is in training mode; call module.eval() first")
    example = torch.as_tensor(example_input)
    if example.ndim < 2 or example.shape[0] < 1 or example.dtype is not torch.float32:
        raise InvalidInputError(
            f"the example input must be float32 with the batch axis first, not {example.dtype} of shape {tuple(example.shape)}"
        )
    with running(_engine(engine)):
        try:
            packed = copy.deepcopy(module)
        except Exception as error:  # user code runs here and may raise anything
            reason = f"it can't be copied ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
            raise UnsupportedModelError(type(module).__name__, "module", None, reason) from error
        network = _lower(program_of(packed), tuple(example.shape[1:]), _engine(engine), {})
    _check(network, module)
    return network


def load_torchscript(
    path: str | os.PathLike[str],
    input_shape: Sequence[int] | None = None,
    trust_code: bool = False,
    runtime: str = "torch-fbgemm",
) -> Network:
    """Import a TorchScript file of a converted int8 module.

    Args:
        path: the file. Its name alone decides nothing about its content: it is a program.
        input_shape: full shape of the input, batch axis of one first; the file does not tell it.
        trust_code: whether the file's code may run. Without it, nothing of the file is loaded.
        runtime: "torch-" and the engine.

    Raises:
        ModelFileError: a damaged file, or another kind of file.
        InvalidInputError: no trust, or no usable input shape.
        UnsupportedModelError: as `import_torch`.
    """
    if not trust_code:
        raise InvalidInputError(f"{path}: a TorchScript file is a program; give --trust-code (trust_code=True) to let it run")
    if input_shape is None:
        raise InvalidInputError(f"{path}: TorchScript files do not tell their input's shape; give --input-shape, batch first")
    shape = tuple(int(size) for size in input_shape)
    if len(shape) < 2 or shape[0] != 1 or min(shape) < 1 or prod(shape) > ELEMENT_LIMIT:
        raise InvalidInputError(f"input shape {shape}: a batch axis of one and at least one more axis are needed")
    prefix, _, name = runtime.partition("-")
    if prefix != "torch":
        raise InvalidInputError(
            f"{path}: TorchScript files run on {', '.join(f'torch-{e.value}' for e in Engine)}, not on '{runtime}'"
        )
    engine = _engine(name)
    content, digest = read_torchscript(path)
    try:
        with running(engine):
            network = _lower(load_program(path, content), shape[1:], engine, {"file_sha256": digest})
    except InvalidNetworkError as error:
        raise ModelFileError(f"{path}: {error}") from error
    _check(network, path)
    return network


def _engine(name: str) -> Engine:
    try:
        return Engine(name)
    except ValueError as error:
        known = ", ".join(item.value for item in Engine)
        raise InvalidInputError(f"unknown quantized engine '{name}'; known: {known}") from error


def _lower(program: torch.jit.ScriptModule, shape: tuple[int, ...], engine: Engine, notes: dict[str, str]) -> Network:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in LANES:
        raise InvalidInputError(f"torch runs on '{capability}' instructions here; its bits are known for {', '.join(LANES)}")
    lowering = Lowering(engine, shape, LANES[capability])
    rules: dict[str, Rule] = {kind: _bind(lowering, kind) for kind in OPERATORS}
    indices = np.arange(prod(shape), dtype=np.int64).reshape(shape)
    result = Walk(rules).run(program, Traced(torch.zeros(1, *shape), Raw(indices)))
    codes, kind = _output(result)
    if lowering.input is None or lowering.input.quantization is None or codes.quantization is None:
        raise UnsupportedModelError("graph", "forward", "output", "does not depend on a quantized input")
    metadata = {
        "format": "torch",
        "engine": engine.value,
        "runtime_version": version(),
        "cpu_capability": capability,
        "input": "real",
        "output": kind,
        "kernels": json.dumps(lowering.kernels, sort_keys=True),
        **({"enclosed": json.dumps(lowering.builder.enclosed)} if lowering.builder.enclosed else {}),
        **notes,
    }
    output_quantization = codes.quantization
    codes = lowering.builder.reshape("flattened output", codes, (prod(codes.shape),))
    return lowering.builder.build(codes, lowering.input.quantization, output_quantization, f"torch-{engine.value}", metadata)


def _bind(lowering: Lowering, kind: str) -> Rule:
    def rule(operation: Operation) -> Any:
        return OPERATORS[kind](lowering, operation)

    return rule


def _output(result: Any) -> tuple[Codes, str]:
    """The codes behind the program's output, and what the program makes of them."""
    match result:
        case Traced(value=Codes() as codes):
            return codes, "codes"
        case Traced(value=Decision(codes, kind)):
            return codes, kind
        case Traced(value=Real(codes, values)):
            quantization = codes.quantization
            if quantization is not None:
                scale, zero_point = np.float32(quantization.scale[0]), int(quantization.zero_point[0])
                if np.array_equal(values, dequantize(np.arange(len(values)), scale, zero_point)):
                    return codes, "dequantized"
            raise UnsupportedModelError("graph", "forward", "output", "is changed after it was dequantized; quantize it again")
        case Traced():
            raise UnsupportedModelError("graph", "forward", "output", "is float; no quantizer was met")
        case _:
            raise UnsupportedModelError("graph", "forward", "output", f"is a {type(result).__name__}; one tensor is needed")


def _check(network: Network, module: torch.nn.Module | str | os.PathLike[str]) -> None:
    """Compare with the module on a few random inputs, unless saturation of this CPU's kernels is possible."""
    if arithmetic_doubts(network, host_cpu_class()):
        return
    codes = np.random.default_rng(0).integers(network.input.low, network.input.high + 1, (CHECKED_INPUTS, *network.input_shape))
    runtime = TorchInt8(network)
    if not np.all(runtime.replay(module, runtime.real_input(codes)).agrees):
        raise UnsupportedModelError(
            "module",
            "forward",
            None,
            "it computes other integers than its graph says; hooks and changed state are not followed",
        )
