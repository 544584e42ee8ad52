"""Float dense networks stored as Keras weight-only HDF5, as in QEBVerif (CAV 2023): ReLU after every layer but the last."""

from __future__ import annotations

import os

from qertify.importers.float_lowering import RealBuilder
from qertify.importers.keras_fixed_point import read_layers
from qertify.network.real import RealNetwork


def load_float_keras(path: str | os.PathLike[str]) -> RealNetwork:
    """Import a float dense network.

    Args:
        path: the .h5 file: float32 kernels of shape (in, out) and biases (out,), in the order of ``layer_names``.

    Returns:
        The real network; input (in,), whatever numbers the network was trained on.

    Raises:
        ModelFileError: an unreadable file, or one that holds NaN or infinity.
        UnsupportedModelError: layers other than dense ones.
    """
    layers = read_layers(path)
    builder = RealBuilder()
    x = builder.input("input", (layers[0].kernel.shape[0],))
    for layer in layers[:-1]:
        x = builder.relu(f"{layer.name}/relu", builder.dense(layer.name, x, layer.kernel.T, layer.bias))
    x = builder.dense(layers[-1].name, x, layers[-1].kernel.T, layers[-1].bias)
    return builder.build(x, {"format": "keras-h5", "output": "values"})
