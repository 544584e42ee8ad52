"""Fixed-point networks stored as Keras weight-only HDF5: QVIP (ASE 2022), Henzinger et al. (AAAI 2021), QEBVerif (CAV 2023).

The file holds float32 kernels and biases of a dense ReLU network; bits, input bits and a `Scheme` fix the arithmetic:
weights have bits−1 fractional bits (bits−2 where they have two integer bits), biases and activations bits−2; accumulators
are rounded half towards plus infinity, hidden layers clamped to [0, 2^bits − 1], the last one, where it is rounded at
all, to [−2^(bits−1), 2^(bits−1) − 1].
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.errors import InvalidInputError, ModelFileError, UnsupportedModelError
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


@dataclass(frozen=True, slots=True)
class Scheme:
    """What tells one published arithmetic from another.

    Attributes:
        weight_integer_bits: of a weight, the sign among them.
        signed_input: whether input codes are signed; a code x means x / 2^input_bits either way.
        rounded_output: whether the last layer is rounded and clamped; else its accumulator is the output.
    """

    weight_integer_bits: int
    signed_input: bool
    rounded_output: bool


SCHEMES: dict[str, Scheme] = {
    "qvip": Scheme(1, signed_input=False, rounded_output=True),
    "qebverif": Scheme(1, signed_input=False, rounded_output=False),
    "qebverif-acasxu": Scheme(2, signed_input=True, rounded_output=False),
}
"""The arithmetics by name."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One dense layer: float32 kernel (in, out) and bias (out,)."""

    name: str
    kernel: Float32Array
    bias: Float32Array


def _codes(values: Float32Array, fraction_bits: int, bits: int, rounding: WeightRounding) -> IntegerArray:
    """Integer codes of clipped float32 values; the clip is to the range of a signed ``bits``-bit code."""
    half = 1 << (bits - 1)
    scaled = np.clip(values.astype(np.float64) * (1 << fraction_bits), -half, half - 1)  # exact: a power of two
    if rounding is WeightRounding.VERIFIER:
        return as_integers((np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int64))
    step = np.float32(2.0**-fraction_bits)
    low, high = np.float32(-half) * step, np.float32(half - 1) * step
    shifted = np.float32(np.clip(values, low, high) - low) * np.float32(1 << fraction_bits)
    return as_integers(np.floor(shifted.astype(np.float64) + 0.5).astype(np.int64) - half)


def read_layers(path: str | os.PathLike[str]) -> list[Layer]:
    """Every dense layer, in the file's layer order, finite and fitting its neighbours.

    Raises:
        ModelFileError: an unreadable file.
        UnsupportedModelError: layers other than dense ones.
    """
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
            layers: list[Layer] = []
            for layer in (text(name) for name in root.attrs["layer_names"]):
                group = root[layer]
                names = [text(name) for name in group.attrs["weight_names"]]
                if not names:
                    continue
                if len(names) != 2:
                    raise UnsupportedModelError(
                        layer, "layer", None, f"has {len(names)} weights; only dense layers with a bias are read"
                    )
                layers.append(Layer(layer, array(group, names[0], 2), array(group, names[1], 1)))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file") from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path}: not a readable Keras weight file ({error})") from error
    if not layers:
        raise ModelFileError(f"{path}: holds no dense layer")
    for position, item in enumerate(layers):
        before = layers[position - 1].kernel.shape[1] if position else item.kernel.shape[0]
        if item.bias.shape != (item.kernel.shape[1],) or item.kernel.shape[0] != before:
            raise ModelFileError(
                f"{path}: layer '{item.name}' with kernel {item.kernel.shape} and bias {item.bias.shape} does not fit its"
                " neighbours"
            )
        if not (np.all(np.isfinite(item.kernel)) and np.all(np.isfinite(item.bias))):
            raise ModelFileError(f"{path}: layer '{item.name}' holds NaN or infinity")
    return layers


def load_keras_fixed_point(
    path: str | os.PathLike[str],
    bits: int,
    input_bits: int = 8,
    weights: WeightRounding | str = WeightRounding.VERIFIER,
    scheme: str = "qvip",
) -> Network:
    """Import a fixed-point dense network.

    Args:
        path: the .h5 file: float32 kernels of shape (in, out) and biases (out,).
        bits: quantization bits of weights, biases and activations, 2 … 16.
        input_bits: bits of an input code, 1 … 16; a code x means x / 2^input_bits.
        weights: how float weights become codes.
        scheme: "qvip"; "qebverif", whose last layer is neither rounded nor clamped: its accumulator is the output; or
            "qebverif-acasxu", the same with two integer bits a weight and signed input codes.

    Returns:
        The integer network; input (in,) of input_bits-bit codes, every layer a Dense and (but for the last one of some
        schemes) a Staircase node.

    Raises:
        ModelFileError: unreadable file, or bits out of range.
        InvalidInputError: an unknown scheme.
        UnsupportedModelError: layers other than dense ones.
    """
    rounding = WeightRounding(weights)
    if scheme not in SCHEMES:
        raise InvalidInputError(f"unknown scheme '{scheme}'; known: {', '.join(SCHEMES)}")
    arithmetic = SCHEMES[scheme]
    if not 2 <= bits <= 16:
        raise ModelFileError(f"--bits {bits} is outside 2 … 16")
    if not 1 <= input_bits <= 16:
        raise ModelFileError(f"--input-bits {input_bits} is outside 1 … 16")
    layers = read_layers(path)
    low = -(1 << (input_bits - 1)) if arithmetic.signed_input else 0
    nodes: list[Node] = [Input("input", (layers[0].kernel.shape[0],), low, low + (1 << input_bits) - 1)]
    weight_fraction, fraction, result_fraction = bits - arithmetic.weight_integer_bits, input_bits, bits - 2
    half = 1 << (bits - 1)
    for layer in layers:
        last = layer is layers[-1]
        spare = fraction + weight_fraction - (bits - 2)  # fractional bits of the accumulator that codes do not have
        weight = _codes(layer.kernel, weight_fraction, bits, rounding)
        offset = _codes(layer.bias, bits - 2, bits, WeightRounding.VERIFIER) << spare
        dense = Dense(f"{layer.name}/accumulator", (nodes[-1].name,), as_integers(weight.T), as_integers(offset))
        nodes.append(dense)
        if last and not arithmetic.rounded_output:
            result_fraction = fraction + weight_fraction
        else:
            clamp = (-half, half - 1) if last else (0, (1 << bits) - 1)
            steps = shift_steps(spare, Rounding.HALF_TOWARD_POSITIVE, *clamp)
            row = per_channel_rows(1, (layer.kernel.shape[1],))
            nodes.append(Staircase(f"{layer.name}/requantize", (dense.name,), steps, row))
        fraction = bits - 2
    metadata = {"format": "keras-h5", "bits": str(bits), "input_bits": str(input_bits), "weights": rounding.value}
    if scheme != "qvip":
        metadata["scheme"] = scheme
    return Network(
        tuple(nodes),
        QuantizationParameters.of(2.0**-input_bits),
        QuantizationParameters.of(2.0**-result_fraction),
        runtime_profile="fixed-point",
        metadata=metadata,
    )
