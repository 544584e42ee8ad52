"""Fixed-point networks stored as Keras weight-only HDF5, as in QVIP (ASE 2022) and Henzinger et al. (AAAI 2021).

The file holds float32 kernels and biases of a dense ReLU network; bits and input bits fix the arithmetic:
weights have bits−1 fractional bits, biases and activations bits−2; accumulators are rounded half towards plus infinity,
hidden layers clamped to [0, 2^bits − 1], the last one to [−2^(bits−1), 2^(bits−1) − 1].
"""

from __future__ import annotations

import os
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.errors import ModelFileError, UnsupportedModelError
from qertify.network.network import Network
from qertify.network.nodes import Dense, Input, Node, Staircase, per_channel_rows
from qertify.network.staircase import Rounding, shift_steps
from qertify.network.tensor import IntegerArray, QuantizationParameters, as_integers

Float32Array = NDArray[np.float32]
PARAMETER_LIMIT = 1 << 28
"""Most values read from one file, so that a hostile header can't fill the memory."""


class WeightRounding(Enum):
    """How float weights become integer codes."""

    VERIFIER = "verifier"
    """Half away from zero on the exact float32 value, as the published verifiers do."""
    TENSORFLOW = "tensorflow"
    """fake_quant_with_min_max_args: ⌊fl(fl(clip(w) + 1)·2^(bits−1)) + 1/2⌋ − 2^(bits−1) in float32."""


def _codes(values: Float32Array, fraction_bits: int, bits: int, rounding: WeightRounding, node: str) -> IntegerArray:
    """Integer codes of clipped float32 values; the clip is to the range of a signed ``bits``-bit code."""
    if not np.all(np.isfinite(values)):
        raise ModelFileError(f"'{node}' holds NaN or infinity")
    half = 1 << (bits - 1)
    scaled = np.clip(values.astype(np.float64) * (1 << fraction_bits), -half, half - 1)  # exact: a power of two
    if rounding is WeightRounding.VERIFIER:
        return as_integers((np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int64))
    step = np.float32(2.0**-fraction_bits)
    low, high = np.float32(-half) * step, np.float32(half - 1) * step
    shifted = np.float32(np.clip(values, low, high) - low) * np.float32(1 << fraction_bits)
    return as_integers(np.floor(shifted.astype(np.float64) + 0.5).astype(np.int64) - half)


def _read_layers(path: str | os.PathLike[str]) -> list[tuple[str, Float32Array, Float32Array]]:
    """(name, kernel, bias) of every dense layer, in the file's layer order."""
    import h5py

    def array(group: Any, name: str, axes: int) -> Float32Array:
        data = group[name]
        if not isinstance(data, h5py.Dataset) or data.external:
            raise ModelFileError(f"{path}: '{name}' is not a plain dataset")
        if data.dtype != np.float32 or data.ndim != axes or not 0 < (data.size or 0) <= PARAMETER_LIMIT:
            raise ModelFileError(
                f"{path}: '{name}' has dtype {data.dtype} and shape {data.shape}, expected float32 with {axes} axes"
            )
        return np.asarray(data[()], dtype=np.float32)

    def text(name: Any) -> str:
        return name.decode() if isinstance(name, bytes) else str(name)

    try:
        with h5py.File(path, "r") as file:
            root: Any = file.get("model_weights", file)
            layers = []
            for layer in (text(name) for name in root.attrs["layer_names"]):
                group = root[layer]
                names = [text(name) for name in group.attrs["weight_names"]]
                if not names:
                    continue
                if len(names) != 2:
                    raise UnsupportedModelError(
                        layer, "layer", None, f"has {len(names)} weights; only dense layers with a bias are read"
                    )
                layers.append((layer, array(group, names[0], 2), array(group, names[1], 1)))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file") from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path}: not a readable Keras weight file ({error})") from error
    if not layers:
        raise ModelFileError(f"{path}: holds no dense layer")
    return layers


def load_keras_fixed_point(
    path: str | os.PathLike[str],
    bits: int,
    input_bits: int = 8,
    weights: WeightRounding | str = WeightRounding.VERIFIER,
) -> Network:
    """Import a fixed-point dense network.

    Args:
        path: the .h5 file: float32 kernels of shape (in, out) and biases (out,).
        bits: quantization bits of weights, biases and activations, 2 … 16.
        input_bits: bits of an input code, 1 … 16; a code x means x / 2^input_bits.
        weights: how float weights become codes.

    Returns:
        The integer network; input (in,) in 0 … 2^input_bits − 1, every layer a Dense and a Staircase node.

    Raises:
        ModelFileError: unreadable file, or bits out of range.
        UnsupportedModelError: layers other than dense ones.
    """
    rounding = WeightRounding(weights)
    if not 2 <= bits <= 16:
        raise ModelFileError(f"--bits {bits} is outside 2 … 16")
    if not 1 <= input_bits <= 16:
        raise ModelFileError(f"--input-bits {input_bits} is outside 1 … 16")
    layers = _read_layers(path)
    largest_weight = max(float(np.abs(kernel).max()) for _, kernel, _ in layers)
    if not np.isfinite(largest_weight):
        raise ModelFileError(f"{path}: a kernel holds NaN or infinity")
    nodes: list[Node] = [Input("input", (layers[0][1].shape[0],), 0, (1 << input_bits) - 1)]
    fraction_bits = input_bits
    for position, (layer, kernel, bias) in enumerate(layers):
        last = position == len(layers) - 1
        if bias.shape != (kernel.shape[1],) or (position and kernel.shape[0] != layers[position - 1][1].shape[1]):
            raise ModelFileError(
                f"{path}: layer '{layer}' with kernel {kernel.shape} and bias {bias.shape} does not fit its neighbours"
            )
        weight = _codes(kernel, bits - 1, bits, rounding, layer)
        offset = _codes(bias, bits - 2, bits, WeightRounding.VERIFIER, layer) << (fraction_bits + 1)
        half = 1 << (bits - 1)
        low, high = (-half, half - 1) if last else (0, (1 << bits) - 1)
        steps = shift_steps(fraction_bits + 1, Rounding.HALF_TOWARD_POSITIVE, low, high)
        dense = Dense(f"{layer}/accumulator", (nodes[-1].name,), as_integers(weight.T), as_integers(offset))
        nodes += [dense, Staircase(f"{layer}/requantize", (dense.name,), steps, per_channel_rows(1, (kernel.shape[1],)))]
        fraction_bits = bits - 2
    return Network(
        tuple(nodes),
        QuantizationParameters.of(2.0**-input_bits),
        QuantizationParameters.of(2.0 ** -(bits - 2)),
        runtime_profile="fixed-point",
        metadata={"format": "keras-h5", "bits": str(bits), "input_bits": str(input_bits), "weights": rounding.value},
    )
