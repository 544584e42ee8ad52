"""onnxruntime itself: the graph it runs, tables read off its kernels, its input quantizer, and replay."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.errors import MissingExtraError, ModelFileError
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.runtimes import onnx_reference
from qertify.runtimes.base import Replay, replayed
from qertify.runtimes.code_input import CodeInput
from qertify.runtimes.float32 import Float32Array
from qertify.runtimes.input_quantizer import InputQuantizer
from qertify.runtimes.input_steps import from_json
from qertify.runtimes.onnxruntime_arithmetic import dequantize, quantize
from qertify.specification.region import IntegerBox


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("running ONNX files", "onnx") from error
    return onnxruntime


def version() -> str:
    """Version of the installed onnxruntime."""
    return str(_onnxruntime().__version__)


def open_session(model: bytes | str, optimized: str | None = None) -> Any:
    """A session on the CPU at the default optimisation level; writes the graph it runs to ``optimized``.

    Raises:
        ModelFileError: onnxruntime refuses the model.
    """
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = optimized
    try:
        # The NCHWc layout blocks the channels of what stays in float; it computes the same up to the order of sums.
        left_out = [] if optimized is None else ["NchwcTransformer"]
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)
    except Exception as error:  # its exceptions share no base class
        reason = " ".join(str(error).split())[:300]
        raise ModelFileError(f"onnxruntime {runtime.__version__} refuses the model: {reason}") from error


def optimized_model(model: bytes) -> bytes:
    """The graph that onnxruntime really runs, at its default optimisation level, on this machine.

    Args:
        model: a serialized ModelProto without external data.

    Raises:
        ModelFileError: onnxruntime refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="qertify-") as folder:
        target = Path(folder) / "optimized.onnx"
        open_session(model, str(target))
        return target.read_bytes()


@cache
def _table(
    op: str, low: int, x: tuple[float, int], y: tuple[float, int], attributes: tuple[tuple[str, Any], ...]
) -> IntegerArray:
    from onnx import TensorProto, helper, numpy_helper

    dtype = np.int8 if low < 0 else np.uint8
    numbers = [np.float32(x[0]), dtype(x[1]), np.float32(y[0]), dtype(y[1])]
    initializers = [numpy_helper.from_array(np.asarray(v), n) for v, n in zip(numbers, ("xs", "xz", "ys", "yz"), strict=True)]
    concat = op == "QLinearConcat"
    inputs = ["ys", "yz", "x", "xs", "xz"] if concat else ["x", "xs", "xz", "ys", "yz"]
    chosen: dict[str, Any] = {"axis": 0} if concat else dict(attributes)
    node = helper.make_node(op, inputs, ["y"], domain="com.microsoft", **chosen)
    kind = TensorProto.INT8 if low < 0 else TensorProto.UINT8
    tensors = [helper.make_tensor_value_info(name, kind, [256]) for name in "xy"]
    graph = helper.make_graph([node], "table", tensors[:1], tensors[1:], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    codes = np.arange(low, low + 256).astype(dtype)
    result = open_session(model.SerializeToString()).run(None, {"x": codes})[0].astype(np.int64)
    result.setflags(write=False)
    return result


def unary_table(
    op: str, low: int, x: tuple[np.float32, int], y: tuple[np.float32, int], attributes: Mapping[str, Any]
) -> IntegerArray:
    """Codes that a unary quantized operator gives for all 256 codes low …, as the installed onnxruntime computes them.

    Args:
        op: QLinearSigmoid, QLinearLeakyRelu, or QLinearConcat (of one operand).
        low: 0 for uint8, −128 for int8.
        x, y: scale and zero point of the input and of the output.
    """
    return _table(op, low, (float(x[0]), x[1]), (float(y[0]), y[1]), tuple(sorted(attributes.items())))


PROBES = 256
"""About how many places of a table tensors of each length are taken from."""
PROBE_LENGTHS = (1, 3, 8, 15, 33, 256)
"""Lengths of the tensors on which a float operator is probed: vector bodies and tails of every kernel width."""


def _float_operator(
    op: str, axes: int, attributes: Mapping[str, Any], opset: int, parameters: Sequence[Float32Array] = ()
) -> Any:
    """A session of one float operator from x, and constant parameters, to y."""
    from onnx import TensorProto, defs, helper, numpy_helper

    names = [f"p{i}" for i in range(len(parameters))]
    domain = "" if defs.has(op, opset) else "com.microsoft"
    node = helper.make_node(op, ["x", *names], ["y"], domain=domain, **dict[str, Any](attributes))
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * axes) for name in "xy"]
    constants = [numpy_helper.from_array(value, name) for name, value in zip(names, parameters, strict=True)]
    graph = helper.make_graph([node], "probe", tensors[:1], tensors[1:], constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return open_session(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def picked_elements(
    op: str,
    shape: Sequence[int],
    attributes: Mapping[str, Any],
    opset: int,
    operands: Sequence[NDArray[Any] | None],
    limit: int,
) -> IntegerArray | None:
    """Which element of its first operand each element of an operator's result is, as the installed onnxruntime moves them.

    Args:
        op: an operator that only moves and repeats elements.
        shape: of the first operand; it must have fewer than 2²⁴ elements, whose numbers are float32.
        operands: the others, constants; None for one that is left out.
        limit: most elements of the result.

    Returns:
        flat indices, of the result's shape; None if that can't be told without running it, or is larger than ``limit``.
    """
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    names = ["" if value is None else f"p{i}" for i, value in enumerate(operands)]
    constants = [numpy_helper.from_array(value, name) for value, name in zip(operands, names, strict=True) if value is not None]
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], **dict[str, Any](attributes))],
        "moves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    axes = shape_inference.infer_shapes(model, data_prop=True).graph.output[0].type.tensor_type.shape.dim
    if not axes or any(not axis.HasField("dim_value") for axis in axes) or prod(axis.dim_value for axis in axes) > limit:
        return None
    return open_session(model.SerializeToString()).run(None, {"x": x})[0].astype(np.int64)


def unary_floats(
    op: str, values: Float32Array, attributes: Mapping[str, Any], opset: int, parameters: Sequence[Float32Array] = ()
) -> tuple[Float32Array, Float32Array] | None:
    """What an element-wise float operator makes of each value, as the installed onnxruntime computes it.

    Args:
        values: float32, one axis.
        parameters: further operands, one number a channel of the second axis.

    Returns:
        float32 of the same shape, or (channels, values) with parameters: the least and the greatest result of each value,
        which differ where vectors compute otherwise than scalars; None if some result is no number.
    """
    channels = len(parameters[0]) if parameters else 1
    session = _float_operator(op, 3, attributes, opset, parameters)

    def run(chosen: Float32Array) -> Float32Array:
        x = np.broadcast_to(chosen, (1, channels, len(chosen)))
        return session.run(None, {"x": np.ascontiguousarray(x)})[0][0]

    least = run(values)
    greatest = least.copy()
    for length in PROBE_LENGTHS:
        for start in range(0, len(values), max(1, len(values) * channels // PROBES)):
            chosen = (start + np.arange(length)) % len(values)
            found = run(values[chosen])
            least[:, chosen], greatest[:, chosen] = np.minimum(least[:, chosen], found), np.maximum(greatest[:, chosen], found)
    if not np.all(np.isfinite(least) & np.isfinite(greatest)):
        return None
    return (least, greatest) if parameters else (least[0], greatest[0])


def softmax_keeps_ties(op: str, values: Float32Array, classes: int) -> bool:
    """Whether equal scores get equal results at every position, as far as the installed onnxruntime shows.

    Args:
        op: Softmax or LogSoftmax.
        values: every score there is, ascending. Each is put at all positions beside the largest one.
        classes: number of scores that the softmax runs over.
    """
    x = np.broadcast_to(values[:, None], (len(values), classes)).copy()
    session = _float_operator(op, 2, {"axis": 1}, 17)
    for position in (0, -1):
        beside = x.copy()
        beside[:, position] = values[-1]
        others = np.delete(session.run(None, {"x": beside})[0], position, axis=1)
        if np.any(others != others[:, :1]):
            return False
    return True


class OnnxRuntime:
    """`Runtime` of a network imported from ONNX, for onnxruntime or for the standard itself."""

    def __init__(self, network: Network) -> None:
        self.network = network
        scale, zero_point = np.float32(network.input_quantization.scale[0]), int(network.input_quantization.zero_point[0])
        shape, low, high = network.input_shape, network.input.low, network.input.high
        self._inputs: InputQuantizer | CodeInput = CodeInput(shape, low, high)
        if network.metadata["input"] == "real":
            self._inputs = InputQuantizer(
                shape,
                low,
                high,
                lambda x: quantize(x, scale, zero_point),
                lambda codes: dequantize(codes, scale, zero_point),
                from_json(network.metadata.get("input_steps", "[]")),
            )

    def quantize_input(self, real: ArrayLike) -> IntegerArray:
        """As `Runtime`. Numbers of other types are first rounded to float32, as callers of the model must do."""
        return self._inputs.codes(self._inputs.checked(real))

    def integer_image(self, low: ArrayLike, high: ArrayLike) -> IntegerBox:
        """As `Runtime`."""
        return self._inputs.image(low, high)

    def real_input(self, codes: IntegerArray, low: ArrayLike | None = None, high: ArrayLike | None = None) -> NDArray[Any]:
        """As `Runtime`; about the number each code stands for, moved to the nearest bound of the region if it lies outside."""
        return self._inputs.preimage(codes, low, high)

    def replay(self, path: str | os.PathLike[str], real: ArrayLike) -> Replay:
        """As `Runtime`.

        Raises:
            ModelFileError: onnxruntime refuses the file, or it is not the one the network came from.
        """
        inputs = self._inputs.checked(real)
        if self.network.runtime_profile == "onnx-spec":
            name, outputs = f"onnx.reference {onnx_reference.version()}", self._reference_outputs(path, inputs)
        else:
            name, outputs = f"onnxruntime {version()}", self._outputs(path, inputs)
        codes = self._inputs.codes(inputs)
        return replayed(name, self.network, codes, outputs, self._dequantized)

    def _reference_outputs(self, path: str | os.PathLike[str], inputs: NDArray[Any]) -> NDArray[Any]:
        return onnx_reference.run(path, inputs, self.network.metadata["input_name"])

    def _outputs(self, path: str | os.PathLike[str], inputs: NDArray[Any]) -> NDArray[Any]:
        session = open_session(str(path))
        if [item.name for item in session.get_inputs()] != [self.network.metadata["input_name"]]:
            raise ModelFileError(f"{path}: its input is not '{self.network.metadata['input_name']}'")
        name = session.get_inputs()[0].name
        try:
            if not isinstance(session.get_inputs()[0].shape[0], int):
                outputs = np.asarray(session.run(None, {name: inputs})[0])
                if outputs.shape[:1] == inputs.shape[:1]:  # else some node was given shapes for a batch of one
                    return outputs.reshape(len(inputs), -1)
            rows = [session.run(None, {name: inputs[i : i + 1]})[0] for i in range(len(inputs))]
            return np.concatenate([np.asarray(row).reshape(1, -1) for row in rows])
        except Exception as error:  # its exceptions share no base class
            raise ModelFileError(f"{path}: onnxruntime fails on it: {' '.join(str(error).split())[:300]}") from error

    def _dequantized(self, codes: IntegerArray) -> Float32Array:
        meaning = self.network.output_quantization
        return dequantize(codes, np.float32(meaning.scale[0]), int(meaning.zero_point[0]))
