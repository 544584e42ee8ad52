"""An int8 TFLite file from training to a verdict, without TensorFlow: trains a small network on handwritten digits, quantizes
it, and decides robustness of held-out digits. Counterexamples are replayed on LiteRT itself. Takes less than a minute.

    pip install 'qertify[tflite,demo]'
    python examples/tflite_int8.py --out digits
    qertify verify digits/mlp_int8.tflite --input digits/images.npy[0] --labels digits/labels.npy --radius 2/16

Weights are rounded to int8 a channel at a time, activations to the range seen in training, and both are written as the file
that a converter would write: float32 pixels in 0 … 1, a quantizer, two fully connected layers, int8 scores.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from digits import arguments_of, load, mlp, save_inputs, show, train
from numpy.typing import NDArray

from qertify import load_model
from qertify.runtimes.litert_writer import NONE, RELU, Writer

INPUT_SCALE, INPUT_ZERO_POINT = 1 / 255, -128
Layers = list[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Weights (out, in) and biases."""


def write(path: Path, layers: Layers, images: NDArray[np.float32]) -> None:
    """Quantize after training and write the file; ``images`` (count, pixels) show the range of the activations."""
    writer = Writer()
    shape = (1, images.shape[1])
    source = writer.tensor(shape, None, 0, np.float32)
    x, scale, values = writer.tensor(shape, INPUT_SCALE, INPUT_ZERO_POINT), np.float32(INPUT_SCALE), images
    writer.operator("QUANTIZE", [source], [x], "QuantizeOptions")
    for position, (weight, bias) in enumerate(layers):
        last = position == len(layers) - 1
        weight_scale = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
        w = writer.constant(np.rint(weight / weight_scale[:, None]).astype(np.int8), weight_scale)
        b = writer.constant(np.rint(bias / (weight_scale * scale)).astype(np.int32), weight_scale * scale)
        values = values @ weight.T + bias
        values = values if last else np.maximum(values, 0)
        low, high = min(0.0, float(values.min())), float(values.max())
        scale = np.float32((high - low) / 255)
        y = writer.tensor((1, len(bias)), scale, round(-128 - low / float(scale)))
        activation = NONE if last else RELU
        writer.operator("FULLY_CONNECTED", [x, w, b], [y], "FullyConnectedOptions", fusedActivationFunction=activation)
        x = y
    writer.save(path, [source], [x])


def main() -> None:
    arguments = arguments_of(__doc__).parse_args()
    digits = load(arguments.mnist)
    size = digits.test.shape[-1]
    digits = replace(digits, train=digits.train.reshape(-1, size * size), test=digits.test.reshape(-1, size * size))
    model = train(mlp(size), digits)
    layers = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in (model[1], model[3])]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "mlp_int8.tflite"
    write(path, layers, digits.train)
    save_inputs(arguments.out, digits)
    show(load_model(path), path, digits, arguments)


if __name__ == "__main__":
    main()
