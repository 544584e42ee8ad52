"""Small model and input files that tests make themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import ArrayLike

BITS = 4
INPUT_BITS = 4


def write_h5(path: Path, layers: Sequence[tuple[ArrayLike, ArrayLike]]) -> Path:
    """A Keras weight-only file of dense layers, each (kernel (in, out), bias (out,))."""
    with h5py.File(path, "w") as file:
        names = [f"dense_{position}" for position in range(len(layers))]
        file.attrs["layer_names"] = [name.encode() for name in names]
        for name, (kernel, bias) in zip(names, layers, strict=True):
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel:0".encode(), f"{name}/bias:0".encode()]
            group[f"{name}/kernel:0"] = np.asarray(kernel, dtype=np.float32)
            group[f"{name}/bias:0"] = np.asarray(bias, dtype=np.float32)
    return path


def comparison_model(path: Path) -> Path:
    """Two inputs, two classes: class 0 wins while x₀ ≥ x₁, up to rounding; codes 0 … 15 with 4 bits.

    hidden = x / 16 in quarters (the identity), outputs = ±(h₀ − h₁).
    """
    identity = [[0.875, 0.0], [0.0, 0.875]]
    return write_h5(path, [(identity, [0.0, 0.0]), ([[0.875, -0.875], [-0.875, 0.875]], [0.0, 0.0])])


def model_flags() -> list[str]:
    return ["--bits", str(BITS), "--input-bits", str(INPUT_BITS)]


def idx(array: ArrayLike) -> bytes:
    """The idx form of unsigned bytes."""
    pixels = np.asarray(array, dtype=np.uint8)
    return bytes([0, 0, 8, pixels.ndim]) + np.array(pixels.shape, dtype=">u4").tobytes() + pixels.tobytes()
