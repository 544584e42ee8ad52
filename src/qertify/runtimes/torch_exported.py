"""PyTorch itself as a runtime of PT2E graphs: their operators one by one, in float32 between explicit quantizers.

NNPACK is off, since it may use Winograd convolutions, which no bound here covers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike

from qertify.importers.pt2_file import Call, read_exported
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.runtimes.base import Replay, replayed
from qertify.runtimes.float32 import Float32Array
from qertify.runtimes.float_models import exported_runner, module_runner, operator_of
from qertify.runtimes.input_quantizer import InputQuantizer
from qertify.runtimes.torch_arithmetic import dequantize, quantize_decomposed
from qertify.runtimes.torch_int8 import probed
from qertify.specification.region import IntegerBox

Model: TypeAlias = str | os.PathLike[str] | torch.nn.Module | torch.export.ExportedProgram


def elementwise(
    call: Call, tables: Mapping[str, Float32Array], fixed: Mapping[str, float]
) -> tuple[Float32Array, Float32Array] | None:
    """What an element-wise operator makes of each number, as the installed torch computes it.

    Args:
        tables: the operands that are computed, by name, of one length.
        fixed: the operands that are tensors of one constant.

    Returns:
        float32: the least and the greatest result of each number, which differ where the kernel's vectors compute otherwise
        than its scalars; None if some result is no number.
    """
    function = operator_of(call)
    given = {
        key: value for key, value in call.arguments.items() if value is not None and key not in tables and key not in fixed
    }
    constants = {key: torch.tensor(value, dtype=torch.float32) for key, value in fixed.items()}
    length = len(next(iter(tables.values())))

    def run(chosen: IntegerArray) -> Float32Array:
        operands = {key: torch.from_numpy(table[chosen]) for key, table in tables.items()}
        return function(**{**given, **constants, **operands}).numpy()

    return probed(run, length)


class TorchExported:
    """`Runtime` of a network imported from a PT2E graph, a file or a module. It runs on batches of one input."""

    def __init__(self, network: Network) -> None:
        self.network = network
        scale, zero_point = float(network.input_quantization.scale[0]), int(network.input_quantization.zero_point[0])
        self._quantizer = InputQuantizer(
            network.input_shape,
            network.input.low,
            network.input.high,
            lambda x: quantize_decomposed(x, scale, zero_point),
            lambda codes: dequantize(codes, np.float32(scale), zero_point),
        )

    def quantize_input(self, real: ArrayLike) -> IntegerArray:
        """As `Runtime`. Numbers of other types are first rounded to float32, as callers of the module must do."""
        return self._quantizer.codes(self._quantizer.checked(real))

    def integer_image(self, low: ArrayLike, high: ArrayLike) -> IntegerBox:
        """As `Runtime`."""
        return self._quantizer.image(low, high)

    def real_input(self, codes: IntegerArray, low: ArrayLike | None = None, high: ArrayLike | None = None) -> Float32Array:
        """As `Runtime`; the number each code stands for, moved to the nearest bound of the region if it lies outside."""
        return self._quantizer.preimage(codes, low, high)

    def replay(self, path: Model, real: ArrayLike) -> Replay:
        """As `Runtime`; also takes the module or program itself.

        Raises:
            ModelFileError: the file can't be read any more.
        """
        inputs = self._quantizer.checked(real)
        match path:
            case torch.export.ExportedProgram():
                run = module_runner(path.module())
            case torch.nn.Module():
                run = module_runner(path)
            case _:
                run = exported_runner(read_exported(path))
        outputs = np.concatenate([np.asarray(run(inputs[i : i + 1])).reshape(1, -1) for i in range(len(inputs))])
        codes = self._quantizer.codes(inputs)
        return replayed(f"torch {torch.__version__}", self.network, codes, outputs, self._dequantized)

    def _dequantized(self, codes: IntegerArray) -> Float32Array:
        meaning = self.network.output_quantization
        return dequantize(codes, np.float32(meaning.scale[0]), int(meaning.zero_point[0]))
