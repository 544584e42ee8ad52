"""What qertify asks of a runtime: its input quantizer, exactly, and a run of the real thing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.errors import InvalidInputError, ReplayError
from qertify.network.evaluate import evaluate_interval
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.specification.region import IntegerBox


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """A run of the real runtime beside the reference evaluator; batch first.

    Attributes:
        runtime: name and version, for reports.
        codes: int64, the input codes that the runtime's quantizer makes of the inputs.
        outputs: what the runtime returned, flattened to (batch, outputs).
        reference: int64, output codes of the reference evaluator; the least ones, for an enclosure.
        predicted: int64 (batch,), the class by the runtime's own outputs, lowest index first.
        agrees: bool (batch,), whether the runtime's outputs are those of the reference evaluator, bit for bit, or lie within
            the enclosure.
        ordered: int64 (batch, outputs), the output codes that the runtime's outputs stand for; where the model ends with a
            softmax or an argmax, or in float32, other numbers in the same order.
    """

    runtime: str
    codes: IntegerArray
    outputs: NDArray[Any]
    reference: IntegerArray
    predicted: IntegerArray
    agrees: NDArray[np.bool_]
    ordered: IntegerArray


def replayed(
    runtime: str,
    network: Network,
    codes: IntegerArray,
    outputs: NDArray[Any],
    dequantize: Callable[[IntegerArray], NDArray[Any]],
) -> Replay:
    """Compare what a runtime returned with the reference evaluator.

    Args:
        codes: input codes.
        outputs: (batch, outputs), or one class a row where the model ends with an argmax.
        dequantize: what the runtime makes of output codes where the model dequantizes them; non-decreasing.
    """
    low, high = evaluate_interval(network, codes)
    kind = network.metadata["output"]
    if kind in ("argmax", "softmax"):
        predicted = (outputs.reshape(-1) if kind == "argmax" else np.argmax(outputs, axis=1)).astype(np.int64)
        winner = np.take_along_axis(high, predicted[:, None], axis=1)
        classes = np.arange(low.shape[1])
        beaten = np.where(classes < predicted[:, None], winner > low, winner >= low) | (classes == predicted[:, None])
        if kind == "argmax":
            ordered = (classes == predicted[:, None]).astype(np.int64)
        else:
            ordered = (outputs[:, :, None] > outputs[:, None, :]).sum(axis=2)
        return Replay(runtime, codes, outputs, low, predicted, beaten.all(axis=1), ordered)
    if kind == "ranks":
        above = outputs[:, :, None] > outputs[:, None, :]
        surely, perhaps = (bound[:, :, None] > other[:, None, :] for bound, other in ((low, high), (high, low)))
        agrees = np.all((above | ~surely) & (perhaps | ~above), axis=(1, 2))
        return Replay(runtime, codes, outputs, low, np.argmax(outputs, axis=1), agrees, above.sum(axis=2))
    if kind == "float32":
        scale = float(network.output_quantization.scale[0])
        ordered = (outputs[:, :, None] > outputs[:, None, :]).sum(axis=2)
        agrees = np.all((scale * low <= outputs) & (outputs <= scale * high), axis=1)
        return Replay(runtime, codes, outputs, low, np.argmax(outputs, axis=1), agrees, ordered)
    if kind == "dequantized":
        meaning = network.output_quantization
        ordered = np.rint(outputs.astype(np.float64) / meaning.scale).astype(np.int64) + meaning.zero_point
        low_out, high_out = dequantize(low), dequantize(high)
    else:
        ordered, low_out, high_out = outputs.astype(np.int64), low, high
    agrees = np.all((low_out <= outputs) & (outputs <= high_out), axis=1)
    return Replay(runtime, codes, outputs, low, np.argmax(outputs, axis=1), agrees, ordered)


class Runtime(Protocol):
    """One runtime's view of one network. Real inputs are in the model's own input domain, shape (batch, *input shape)."""

    def quantize_input(self, real: ArrayLike) -> IntegerArray:
        """The codes that the runtime makes of real inputs, int64."""
        ...

    def integer_image(self, low: ArrayLike, high: ArrayLike) -> IntegerBox:
        """The exact set of codes of all inputs in low … high (floats, or exact ``Fraction`` objects), of the input's shape.

        Raises:
            InvalidInputError: an empty region: no value of the model's input type lies in it.
        """
        ...

    def real_input(self, codes: IntegerArray, low: ArrayLike | None = None, high: ArrayLike | None = None) -> NDArray[Any]:
        """Inputs in low … high that the runtime maps to these codes, which must come from that region's image."""
        ...

    def replay(self, path: Any, real: ArrayLike) -> Replay:
        """Run the model file (or, where the runtime takes one, the model itself) on the real runtime and compare."""
        ...


RUNTIMES = {
    "onnxruntime": "qertify.runtimes.onnxruntime:OnnxRuntime",
    "onnx-spec": "qertify.runtimes.onnxruntime:OnnxRuntime",
    "litert-xnnpack": "qertify.runtimes.litert:LiteRt",
    "litert-builtin": "qertify.runtimes.litert:LiteRt",
    "litert-reference": "qertify.runtimes.litert:LiteRt",
    "torch-fbgemm": "qertify.runtimes.torch_int8:TorchInt8",
    "torch-qnnpack": "qertify.runtimes.torch_int8:TorchInt8",
    "torch-x86": "qertify.runtimes.torch_int8:TorchInt8",
    "torch-onednn": "qertify.runtimes.torch_int8:TorchInt8",
    "torch-pt2e": "qertify.runtimes.torch_exported:TorchExported",
}
"""Runtime profile of a network → its class."""


def runtime_of(network: Network) -> Runtime:
    """The runtime that a network was imported for.

    Raises:
        InvalidInputError: no runtime is known for its profile.
    """
    if network.runtime_profile not in RUNTIMES:
        raise InvalidInputError(f"networks of the profile '{network.runtime_profile}' can't be replayed on a runtime")
    module, name = RUNTIMES[network.runtime_profile].split(":")
    return getattr(import_module(module), name)(network)


def reads_codes(network: Network) -> bool:
    """Whether the model's own inputs are its input codes, rather than real numbers that a runtime quantizes."""
    if network.runtime_profile not in RUNTIMES:
        return True
    codes = np.full(network.input_shape, network.input.low)
    return runtime_of(network).real_input(codes).dtype.kind in "iu"


def runner(
    network: Network, model: Any, low: ArrayLike | None = None, high: ArrayLike | None = None
) -> Callable[[IntegerArray], IntegerArray] | None:
    """What an enclosure needs to be refuted: input codes (batch, *input shape) → outputs of the real runtime, as integers.

    Args:
        model: the model's file, or the module that was imported.
        low, high: bounds of the region in the model's own input domain, if there is one.

    Returns:
        the runtime as a function; None for exact networks, whose reference evaluator suffices, and where nothing can be run.
        It raises ReplayError if outputs leave the enclosure, which is a defect.
    """
    saved = isinstance(model, str | os.PathLike) and os.fspath(model).endswith(".qnet")
    if network.exactness == "exact" or saved or network.runtime_profile not in RUNTIMES:
        return None
    runtime = runtime_of(network)

    def run(codes: IntegerArray) -> IntegerArray:
        replay = runtime.replay(model, runtime.real_input(codes, low, high))
        if not np.all(replay.agrees) or not np.array_equal(replay.codes, codes):
            raise ReplayError(f"{replay.runtime} computes values outside of the enclosure; please report this defect")
        return replay.ordered

    return run
