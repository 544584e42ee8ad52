"""PyTorch itself as a runtime of int8 modules: its engines, tables read off its kernels, its input quantizer, and replay."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from qertify.errors import InvalidInputError, ModelFileError
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.runtimes.base import Replay, replayed
from qertify.runtimes.float32 import Float32Array
from qertify.runtimes.input_quantizer import InputQuantizer
from qertify.runtimes.torch_arithmetic import BODY, Engine, dequantize, quantize
from qertify.specification.region import IntegerBox


def version() -> str:
    """Version of the installed torch."""
    return str(torch.__version__)


@contextmanager
def running(engine: Engine) -> Generator[None]:
    """PyTorch with this quantized engine, no gradients, and without its deprecation warnings.

    Weights that are unpickled, copied or loaded meanwhile are packed for the engine.

    Raises:
        InvalidInputError: this build of torch does not have the engine.
    """
    backend = torch.backends.quantized
    if engine.value not in backend.supported_engines:
        raise InvalidInputError(f"this build of torch has no quantized engine '{engine.value}'")
    before = backend.engine
    backend.engine = engine.value
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)  # else its one warning may reach stderr later
            yield
    finally:
        backend.engine = before


def read_torchscript(path: str | os.PathLike[str]) -> tuple[bytes, str]:
    """The content of a file and its SHA-256; nothing is executed.

    Raises:
        ModelFileError: a file that can't be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: can't be read ({error.strerror or error})") from error
    return content, hashlib.sha256(content).hexdigest()


def load_program(path: str | os.PathLike[str], content: bytes) -> torch.jit.ScriptModule:
    """The program of a TorchScript file, in evaluation mode. Loading it executes code of the file. Call within `running`.

    Raises:
        ModelFileError: damaged, truncated, or something else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch checks no checksum, and may abort on damaged programs
            damaged = archive.testzip()
        if damaged is not None:
            raise ModelFileError(f"{path}: not a TorchScript file, or a damaged one (checksum of '{damaged[:80]}')")
        module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    except ModelFileError:
        raise
    except Exception as error:  # its exceptions share no base class
        first = str(error).strip().split("\n", 1)[0][:200]
        raise ModelFileError(f"{path}: not a TorchScript file, or a damaged one ({type(error).__name__}: {first})") from error
    module.eval()
    return module


def quantized_codes(scale: float, zero_point: int) -> torch.Tensor:
    """All 256 codes of quint8 as a quantized tensor of shape (1, 256)."""
    codes = torch.arange(256, dtype=torch.uint8)[None]
    return torch.ops.aten._make_per_tensor_quantized_tensor(codes, scale, zero_point)


def unary_tables(
    function: Callable[[torch.Tensor], torch.Tensor], scale: float, zero_point: int
) -> tuple[IntegerArray, IntegerArray, torch.Tensor]:
    """Codes that an element-wise operator gives for all 256 codes: in whole groups of `BODY` elements, and in a tail.

    Returns:
        int64 (256,) twice, and the quantized tensor of the first, which tells the result's scale and zero point.
    """
    codes = quantized_codes(scale, zero_point)
    assert codes.numel() % BODY == 0
    body = function(codes.clone())
    tail = [int(function(codes[:, i : i + 1].clone()).int_repr()) for i in range(256)]  # clones: it may work in place
    return body.int_repr()[0].numpy().astype(np.int64), np.array(tail, dtype=np.int64), body


PROBES = 256
"""About how many places of a table tensors of each length are taken from: all of an 8-bit type's codes."""
PROBE_LENGTHS = (1, 3, 17)
"""Lengths of tensors whose elements lie at other positions of a kernel's vectors than those of a whole table."""


def probed(run: Callable[[IntegerArray], Float32Array], length: int) -> tuple[Float32Array, Float32Array] | None:
    """What an element-wise float operator makes of each number of a table, whatever stands around it.

    Args:
        run: the operator on the numbers at some places of the table.

    Returns:
        the least and the greatest result of each number, which differ where the kernel's vectors compute otherwise than its
        scalars; None if some result is no number.
    """
    with torch.inference_mode():
        least = run(np.arange(length)).copy()
        greatest = least.copy()
        for short in PROBE_LENGTHS:
            for start in range(0, length, max(1, length // PROBES)):
                chosen = (start + np.arange(short)) % length
                found = run(chosen)
                least[chosen], greatest[chosen] = np.minimum(least[chosen], found), np.maximum(greatest[chosen], found)
    return (least, greatest) if bool(np.all(np.isfinite(least) & np.isfinite(greatest))) else None


def softmax_keeps_ties(softmax: Callable[[torch.Tensor, int], torch.Tensor], values: Float32Array, classes: int) -> bool:
    """Whether equal scores get equal results at every position, as far as the installed torch shows.

    Args:
        softmax: torch.softmax or torch.log_softmax.
        values: every score there is, ascending. Each is put at all positions beside the largest one.
        classes: number of scores that the softmax runs over.
    """
    for position in (0, classes - 1):
        x = torch.from_numpy(values.copy())[:, None].repeat(1, classes)
        x[:, position] = float(values[-1])
        others = np.delete(softmax(x, 1).numpy(), position, axis=1)
        if np.any(others != others[:, :1]):
            return False
    return True


class TorchInt8:
    """`Runtime` of a network imported from a PyTorch module or a TorchScript file. Modules run on batches of one input."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.engine = Engine(network.metadata["engine"])
        scale = np.float32(network.input_quantization.scale[0])
        zero_point = int(network.input_quantization.zero_point[0])
        self._quantizer = InputQuantizer(
            network.input_shape,
            network.input.low,
            network.input.high,
            lambda x: quantize(x, scale, zero_point),
            lambda codes: dequantize(codes, scale, zero_point),
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

    def replay(self, path: str | os.PathLike[str] | torch.nn.Module, real: ArrayLike) -> Replay:
        """As `Runtime`; also takes the module itself, of which a copy packed for the network's engine runs.

        Raises:
            ModelFileError: not the file that the network was imported from, so nothing of it is executed.
        """
        inputs = self._quantizer.checked(real)
        with running(self.engine):
            outputs = run(self._module(path), inputs)
        codes = self._quantizer.codes(inputs)
        return replayed(f"torch {version()} {self.engine.value}", self.network, codes, outputs, self._dequantized)

    def _dequantized(self, codes: IntegerArray) -> Float32Array:
        meaning = self.network.output_quantization
        return dequantize(codes, np.float32(meaning.scale[0]), int(meaning.zero_point[0]))

    def _module(self, path: str | os.PathLike[str] | torch.nn.Module) -> torch.nn.Module:
        if isinstance(path, torch.nn.Module):
            return copy.deepcopy(path)
        content, digest = read_torchscript(path)
        if digest != self.network.metadata.get("file_sha256"):
            raise ModelFileError(f"{path}: not the file that the network was imported from; it is not executed")
        return load_program(path, content)


def run(module: torch.nn.Module, inputs: Float32Array) -> Any:
    """Outputs of a module on batches of one, shape (batch, outputs): codes if it returns a quantized tensor, else float32."""
    rows: list[Any] = []
    for row in inputs:
        y = module(torch.from_numpy(row[None].copy()))
        rows.append((y.int_repr() if y.is_quantized else y).reshape(1, -1).numpy())
    return np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float32)
