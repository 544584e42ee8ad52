"""What qertify asks of a runtime: its input quantizer, exactly, and a run of the real thing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.errors import InvalidInputError
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
        reference: int64, output codes of the reference evaluator.
        predicted: int64 (batch,), the class by the runtime's own outputs, lowest index first.
        agrees: bool (batch,), whether the runtime's outputs are those of the reference evaluator, bit for bit.
    """

    runtime: str
    codes: IntegerArray
    outputs: NDArray[Any]
    reference: IntegerArray
    predicted: IntegerArray
    agrees: NDArray[np.bool_]


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

    def replay(self, path: str | os.PathLike[str], real: ArrayLike) -> Replay:
        """Run the model file on the real runtime and compare."""
        ...


RUNTIMES = {
    "onnxruntime": "qertify.runtimes.onnxruntime:OnnxRuntime",
    "litert-xnnpack": "qertify.runtimes.litert:LiteRt",
    "litert-builtin": "qertify.runtimes.litert:LiteRt",
    "litert-reference": "qertify.runtimes.litert:LiteRt",
    "torch-fbgemm": "qertify.runtimes.torch_int8:TorchInt8",
    "torch-qnnpack": "qertify.runtimes.torch_int8:TorchInt8",
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
