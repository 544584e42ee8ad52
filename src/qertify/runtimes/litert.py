"""LiteRT itself: who runs which operator, tables read off its kernels, its input quantizer, and replay."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.errors import InvalidInputError, MissingExtraError, ModelFileError, UnsupportedModelError
from qertify.network.network import Network
from qertify.network.ranges import accumulator_proofs
from qertify.network.tensor import IntegerArray
from qertify.runtimes.base import Replay, replayed
from qertify.runtimes.code_input import CodeInput
from qertify.runtimes.input_quantizer import InputQuantizer
from qertify.runtimes.litert_arithmetic import Kernels, quantize
from qertify.specification.region import IntegerBox

PROFILES = {
    "litert-xnnpack": Kernels.XNNPACK,
    "litert-builtin": Kernels.BUILTIN,
    "litert-reference": Kernels.REFERENCE,
}
"""Runtime profile → the kernels that it prefers."""
RESOLVERS = {
    Kernels.XNNPACK: "AUTO",
    Kernels.BUILTIN: "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    Kernels.REFERENCE: "BUILTIN_REF",
}
"""Kernels → LiteRT's operator resolver that prefers them."""
CONVERTIBLE = 2.0**30
"""Quotients x / s up to this magnitude fit LiteRT's 32-bit conversion in the quantizer, zero point included."""
PROBE_LIMIT = 1 << 22
"""Most elements of a tensor on which a unary operator is probed, one run a code."""


@contextmanager
def _quiet() -> Generator[None]:
    """Without the notes that LiteRT writes to the process's standard error, which no setting of its turns off."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _interpreter(content: bytes, resolver: str) -> Any:
    """An interpreter with its tensors allocated, on one thread.

    Raises:
        MissingExtraError: LiteRT is not installed.
        ModelFileError: LiteRT refuses the model.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise MissingExtraError("running TFLite files", "tflite") from error
    try:
        with _quiet():
            interpreter = Interpreter(
                model_content=content, num_threads=1, experimental_op_resolver_type=getattr(OpResolverType, resolver)
            )
            interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(f"LiteRT {version()} refuses the model: {_line(error)}") from error
    return interpreter


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def version() -> str:
    """Version of the installed LiteRT."""
    from importlib.metadata import version as installed

    return installed("ai-edge-litert")


def delegated_operators(content: bytes) -> frozenset[int]:
    """Positions of the operators that LiteRT, by default, gives to XNNPACK on this machine; the rest runs on its own kernels.

    Raises:
        ModelFileError: LiteRT refuses the model.
    """
    return _delegated(_interpreter(content, RESOLVERS[Kernels.XNNPACK]))


def _delegated(interpreter: Any) -> frozenset[int]:
    nodes: list[Any] = interpreter._get_ops_details()
    producer = {int(t): node for node in nodes if node["op_name"] != "DELEGATE" for t in node["outputs"]}
    replaced: set[int] = set()
    for delegate in (node for node in nodes if node["op_name"] == "DELEGATE"):
        given, wanted = {int(t) for t in delegate["inputs"]}, [int(t) for t in delegate["outputs"]]
        while wanted:
            tensor = wanted.pop()
            node = producer.get(tensor)
            if tensor in given or node is None or int(node["index"]) in replaced:
                continue
            replaced.add(int(node["index"]))
            wanted += [int(t) for t in node["inputs"]]
    return frozenset(replaced)


# Unary operators, read off the kernels.


@dataclass(frozen=True, slots=True)
class Quantized:
    """Type and meaning of a tensor: least code (−128 for int8, 0 for uint8), scale, zero point; no scale for float32."""

    low: int
    scale: np.float32 | None
    zero_point: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32 if self.scale is None else np.int8 if self.low < 0 else np.uint8)


REAL = Quantized(0, None, 0)
"""A float32 tensor."""
DEQUANTIZE_OPTIONS: tuple[str, Mapping[str, Any]] = ("DequantizeOptions", {})


@dataclass(frozen=True, slots=True, eq=False)
class UnaryTable:
    """What an element-wise operator makes of the 256 codes.

    Attributes:
        values: shape (rows, 256).
        row: int64 of the tensor's own shape without the batch: which row serves which element.
    """

    values: NDArray[Any]
    row: IntegerArray


def unary_table(
    name: str,
    op: str,
    options: tuple[str, Mapping[str, Any]],
    kernels: Kernels,
    shape: tuple[int, ...],
    x: Quantized,
    y: Quantized,
) -> UnaryTable:
    """Run an element-wise operator, alone, on tensors full of each code in turn: kernels may treat the last elements apart.

    Args:
        name: of the node, for errors.
        options: name of the options table in the schema, and its fields.
        shape: of the tensor, without the batch axis.

    Raises:
        UnsupportedModelError: the operator alone runs on other kernels, or is too large to probe.
        ModelFileError: LiteRT refuses the operator.
    """
    from qertify.runtimes.litert_writer import Writer

    if np.prod(shape) > PROBE_LIMIT:
        raise UnsupportedModelError(name, op, None, f"more than {PROBE_LIMIT} elements; its kernel can't be tabulated")
    writer, full = Writer(), (1, *shape)
    tensors = [writer.tensor(full, t.scale, t.zero_point, t.dtype) for t in (x, y)]
    writer.operator(op, tensors[:1], tensors[1:], options[0], **options[1])
    interpreter = _interpreter(writer.finish(tensors[:1], tensors[1:]), RESOLVERS[kernels])
    if kernels is Kernels.XNNPACK and not _delegated(interpreter):
        raise UnsupportedModelError(name, op, None, "XNNPACK does not take it alone, so its kernel can't be tabulated")
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    distinct: dict[tuple[bytes, ...], int] = {}
    results: list[NDArray[Any]] = []
    uniform = True
    for code in range(x.low, x.low + 256):
        interpreter.set_tensor(source, np.full(full, code, dtype=x.dtype))
        interpreter.invoke()
        result = interpreter.get_tensor(target).reshape(-1)
        uniform = uniform and bool(np.all(result == result[0]))
        results.append(result[:1] if uniform else result)
    if uniform:
        return UnaryTable(np.stack(results, axis=1), np.zeros((1,) * len(shape), dtype=np.int64))
    columns = np.stack([np.broadcast_to(result, (int(np.prod(shape)),)) for result in results])
    rows = [distinct.setdefault(tuple(value.tobytes() for value in column), len(distinct)) for column in columns.T]
    first = [rows.index(row) for row in range(len(distinct))]
    return UnaryTable(columns[:, first].T, np.array(rows, dtype=np.int64).reshape(shape))


def picked_elements(
    op: str,
    options: tuple[str, Mapping[str, Any]],
    kernels: Kernels,
    operands: Sequence[NDArray[Any] | tuple[int, ...]],
    results: Sequence[tuple[int, ...]],
) -> list[IntegerArray]:
    """Which element of its int8 operand each element of an operator's results is: run on the digits of the elements' numbers.

    Args:
        options: name of the options table in the schema, and its fields.
        operands: in order; the shape of the one that is moved, and constants.
        results: declared shapes.

    Returns:
        flat indices, of the results' true shapes.

    Raises:
        ModelFileError: LiteRT refuses the operator.
    """
    from qertify.runtimes.litert_writer import Writer

    writer = Writer()
    sources = [writer.tensor(x, 1.0) if isinstance(x, tuple) else writer.constant(x) for x in operands]
    targets = [writer.tensor(shape, 1.0) for shape in results]
    writer.operator(op, sources, targets, options[0], **options[1])
    position = next(i for i, x in enumerate(operands) if isinstance(x, tuple))
    interpreter = _interpreter(writer.finish([sources[position]], targets), RESOLVERS[kernels])
    source, shape = interpreter.get_input_details()[0]["index"], operands[position]
    number = np.arange(prod(shape)).reshape(shape)
    found = [np.zeros(1, dtype=np.int64)] * len(results)
    for place in range(0, max(1, int(number.size - 1).bit_length()), 8):
        interpreter.set_tensor(source, (number >> place).astype(np.uint8).view(np.int8))
        interpreter.invoke()
        digits = [interpreter.get_tensor(detail["index"]).view(np.uint8) for detail in interpreter.get_output_details()]
        found = [total + (digit.astype(np.int64) << place) for total, digit in zip(found, digits, strict=True)]
    return found


# The runtime of a network.


class LiteRt:
    """`Runtime` of a network imported from a TFLite file."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._resolver = RESOLVERS[PROFILES[network.runtime_profile]]
        kernels = Kernels(network.metadata["input_kernels"])
        scale, zero_point = np.float32(network.input_quantization.scale[0]), int(network.input_quantization.zero_point[0])
        shape, low, high = network.input_shape, network.input.low, network.input.high
        self._limit = np.inf
        self._inputs: InputQuantizer | CodeInput = CodeInput(shape, low, high)
        if network.metadata["input"] == "real":
            self._limit = np.inf if kernels is Kernels.XNNPACK else CONVERTIBLE * float(scale)
            self._inputs = InputQuantizer(
                shape,
                low,
                high,
                lambda x: quantize(kernels, x, scale, zero_point),
                lambda codes: (codes - zero_point).astype(np.float32) * scale,
            )

    def _checked(self, real: ArrayLike) -> NDArray[Any]:
        checked = self._inputs.checked(real)
        if np.any(np.abs(checked.astype(np.float64)) > self._limit):
            raise InvalidInputError(f"an input is beyond ±{self._limit:.4g}, where LiteRT's quantizer overflows")
        return checked

    def quantize_input(self, real: ArrayLike) -> IntegerArray:
        """As `Runtime`; also rejects numbers at which the runtime's quantizer overflows."""
        return self._inputs.codes(self._checked(real))

    def integer_image(self, low: ArrayLike, high: ArrayLike) -> IntegerBox:
        """As `Runtime`; also rejects regions in which the runtime's quantizer overflows."""
        if isinstance(self._inputs, InputQuantizer):
            self._checked(np.stack(self._inputs.bounds(low, high)))
        return self._inputs.image(low, high)

    def real_input(self, codes: IntegerArray, low: ArrayLike | None = None, high: ArrayLike | None = None) -> NDArray[Any]:
        """As `Runtime`."""
        return self._inputs.preimage(codes, low, high)

    def replay(self, path: str | os.PathLike[str], real: ArrayLike) -> Replay:
        """As `Runtime`; row by row, since a .tflite file fixes its batch.

        Raises:
            ModelFileError: unreadable file, or LiteRT refuses it.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ModelFileError(f"can't read {path}: {error.strerror or error}") from error
        return self.replay_content(content, real)

    def replay_content(self, content: bytes, real: ArrayLike) -> Replay:
        """`replay` of a file that is already in memory."""
        inputs = self._checked(real)
        outputs = run(content, self._resolver, inputs)
        codes = self._inputs.codes(inputs)
        return replayed(f"LiteRT {version()}", self.network, codes, outputs, self._dequantized)

    def _dequantized(self, codes: IntegerArray) -> NDArray[Any]:
        """Output codes as the runtime's own kernel dequantizes them."""
        meaning, kernels = self.network.output_quantization, Kernels(self.network.metadata["output_kernels"])
        x = Quantized(-128, np.float32(meaning.scale[0]), int(meaning.zero_point[0]))
        shape = codes.shape[1:]
        table = unary_table("output", "DEQUANTIZE", DEQUANTIZE_OPTIONS, kernels, shape, x, REAL)
        return table.values[table.row, codes + 128]


SAMPLES = 4
"""Random inputs on which an imported network is compared with the runtime at once."""


def confirm(network: Network, content: bytes) -> None:
    """A last check of an import: the runtime accepts the file, and gives the same integers on a few random inputs.

    Raises:
        ModelFileError: LiteRT refuses the model.
        UnsupportedModelError: this LiteRT, or this CPU, computes something else.
    """
    runtime, source = LiteRt(network), network.input
    codes = np.random.default_rng(0).integers(source.low, source.high + 1, (SAMPLES, *source.shape))
    replays = [runtime.replay_content(content, runtime.real_input(row[None])) for row in codes]  # one by one saves memory
    if not all(np.all(replay.agrees) for replay in replays):
        doubts = [proof.node for proof in accumulator_proofs(network) if not proof.proved]
        reason = f"accumulators overflow, perhaps that of '{doubts[0]}'" if doubts else "this CPU or version is not known"
        raise UnsupportedModelError(
            "model", "model", None, f"LiteRT {version()} computes other integers than expected: {reason}"
        )


def run(content: bytes, resolver: str, inputs: NDArray[Any]) -> NDArray[Any]:
    """Outputs of a one-input, one-output model, row by row, flattened to (batch, outputs).

    Raises:
        ModelFileError: LiteRT refuses the model or the inputs.
    """
    interpreter = _interpreter(content, resolver)
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    outputs: list[NDArray[Any]] = []
    try:
        for row in inputs:
            interpreter.set_tensor(source, row[None])
            interpreter.invoke()
            outputs.append(interpreter.get_tensor(target).reshape(-1))
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(f"LiteRT {version()} fails on the model: {_line(error)}") from error
    return np.stack(outputs)
