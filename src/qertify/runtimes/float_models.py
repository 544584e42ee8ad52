"""Float models on the runtime they were made for: what a float32 run really gives.

ONNX files run on onnxruntime, torch.export files on torch's operators, Keras weights as float32 products in numpy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.errors import InvalidInputError, ModelFileError
from qertify.importers.keras_fixed_point import read_layers
from qertify.importers.pt2_file import Call, ElementType, ExportedGraph, Reference, read_exported
from qertify.runtimes.float32 import Float32Array

if TYPE_CHECKING:
    import torch

PathLike: TypeAlias = str | os.PathLike[str]
Run = Callable[[Float32Array], NDArray[Any]]
"""From one input, shape (1, *input shape), to its outputs."""


def replay_float(model: PathLike | torch.nn.Module, inputs: ArrayLike) -> tuple[str, Float32Array]:
    """Run the original float model.

    Args:
        model: the .onnx, .pt2 or .h5 file, or a torch module.
        inputs: shape (batch, *input shape); float32 numbers, of any type. Each runs alone, as a batch of one.

    Returns:
        name and version of the runtime, and its outputs: float32, shape (batch, outputs), flattened.

    Raises:
        ModelFileError: the runtime refuses the file or the inputs.
        InvalidInputError: an input that is no finite float32 number.
        MissingExtraError: the runtime is not installed.
    """
    opened = RUNTIMES.get(Path(model).suffix.lower()) if isinstance(model, str | os.PathLike) else None
    if opened is None and isinstance(model, str | os.PathLike):
        raise ModelFileError(f"{model}: unknown float model format; readable suffixes are {', '.join(RUNTIMES)}")
    given = np.asarray(inputs)
    if given.dtype.kind not in "fiu" or given.ndim < 2:
        raise InvalidInputError(f"a batch of float32 inputs is needed, not {given.dtype} of shape {given.shape}")
    with np.errstate(over="ignore"):
        exact = given.astype(np.float32)
    if not np.all(np.isfinite(exact) & (exact.astype(np.float64) == given)):
        raise InvalidInputError("an input is no finite float32 number, and can't be given to a float32 runtime as it is")
    name, run = _module(model) if opened is None else opened(model)
    try:
        rows = [np.asarray(run(exact[i : i + 1]), dtype=np.float32).reshape(1, -1) for i in range(len(exact))]
    except Exception as error:  # the runtimes' exceptions share no base class
        what = type(model).__name__ if opened is None else model
        raise ModelFileError(f"{what}: {name} fails on it: {' '.join(str(error).split())[:300]}") from error
    return name, np.concatenate(rows)


def _onnx(path: PathLike) -> tuple[str, Run]:
    from qertify.runtimes.onnxruntime import open_session, version

    opened = open_session(str(path))
    info = opened.get_inputs()[0]
    return f"onnxruntime {version()}", lambda x: opened.run(None, {info.name: x})[0]


def _keras(path: PathLike) -> tuple[str, Run]:
    layers = read_layers(path)

    def run(x: Float32Array) -> Float32Array:
        for layer in layers[:-1]:
            x = np.maximum(x @ layer.kernel + layer.bias, np.float32(0))
        return x @ layers[-1].kernel + layers[-1].bias

    return f"numpy {np.__version__}", run


_SHAPED = ("flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "unflatten")
"""Operators that the shape of their result describes; their own arguments may hold open sizes."""


def _torch(path: PathLike) -> tuple[str, Run]:
    import torch

    return f"torch {torch.__version__}", exported_runner(read_exported(path))


def _module(module: Any) -> tuple[str, Run]:
    import torch

    return f"torch {torch.__version__}", module_runner(module)


def exported_runner(graph: ExportedGraph) -> Run:
    """A torch.export graph on torch's operators."""
    import torch

    constants = {name: torch.from_numpy(array) for name, array in graph.constants.items()}

    def run(x: Float32Array) -> NDArray[Any]:
        with torch.inference_mode(), torch.backends.nnpack.flags(False):  # NNPACK may use Winograd convolutions
            values = {**constants, graph.input: torch.from_numpy(x.copy())}
            for call in graph.calls:
                _execute(graph, call, values)
            return values[graph.output].numpy()

    return run


def module_runner(module: Any) -> Run:
    """A torch module."""
    import torch

    def run(x: Float32Array) -> NDArray[Any]:
        with torch.inference_mode(), torch.backends.nnpack.flags(False):
            return module(torch.from_numpy(x.copy())).numpy()

    return run


def _execute(graph: ExportedGraph, call: Call, values: dict[str, Any]) -> None:
    """Run one operator of ATen, or a quantizer."""
    name = call.op.split(".")[1]
    if name == "sym_size":
        return
    arguments = {key: _operand(value, values) for key, value in call.arguments.items() if value is not None}
    if name in _SHAPED:
        shape = [1 if size is None else size for size in graph.shapes[call.outputs[0]]]
        values[call.outputs[0]] = arguments["self"].reshape(shape)
    else:
        values[call.outputs[0]] = operator_of(call)(**arguments)


def operator_of(call: Call) -> Callable[..., Any]:
    """The operator of torch that a call names.

    Raises:
        ValueError: it is none of torch's own.
    """
    import torch

    namespace, name, overload = call.op.split(".")
    if namespace == "quantized_decomposed":
        import torch.ao.quantization.fx._decomposed as registered  # noqa: F401  # pyright: ignore[reportUnusedImport]
    elif namespace != "aten":
        raise ValueError(f"operator {call.op} is none of torch's own")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def _operand(value: Any, values: dict[str, Any]) -> Any:
    import torch

    match value:
        case list():
            return [_operand(item, values) for item in cast("list[Any]", value)]
        case Reference(name):
            return values[name]
        case ElementType(name):
            return getattr(torch, name)
        case _:
            return value


RUNTIMES: dict[str, Callable[[Any], tuple[str, Run]]] = {".onnx": _onnx, ".pt2": _torch, ".h5": _keras}
"""Suffix → how to open a file for running."""
