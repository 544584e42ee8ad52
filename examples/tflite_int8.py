"""An int8 TFLite file from training to a verdict: a small network on 8 × 8 digits, without TensorFlow.

    pip install 'qertify[tflite,demo]'
    python examples/tflite_int8.py --out digits.tflite

A 64-24-10 network is trained in float, its weights are rounded to int8 a channel at a time, its activations to the range seen
in training, and both are written as the file that a converter would write: float32 pixels in 0 … 1, a quantizer, two fully
connected layers, int8 scores. qertify reads the file, proves or refutes robustness for a few held-out digits, and runs every
counterexample on LiteRT itself.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from qertify import Classification, Options, RobustnessQuery, load_model, verify
from qertify.result import Verdict
from qertify.runtimes.base import runtime_of
from qertify.runtimes.litert_writer import NONE, RELU, Writer

HIDDEN, CLASSES, HELD_OUT = 24, 10, 300
INPUT_SCALE, INPUT_ZERO_POINT = 1 / 255, -128
RADII = (Fraction(1, 100), Fraction(1, 25), Fraction(1, 10))
Layers = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


def train(x: NDArray[np.float32], y: NDArray[np.int64], strength: float) -> Layers:
    """Weights (out, in) and biases of two layers, trained on images moved against the network by ``strength``."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-4)
    images, labels = torch.tensor(x), torch.tensor(y)
    for _ in range(250):
        start = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(start), labels), start)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model((images + strength * slope.sign()).clamp(0, 1)), labels).backward()
        optimizer.step()
    return [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in (model[0], model[2])]


def write(path: Path, layers: Layers, images: NDArray[np.float32]) -> None:
    """Quantize after training and write the file; ``images`` show the range of the activations."""
    writer = Writer()
    source = writer.tensor((1, 64), None, 0, np.float32)
    x, scale, values = writer.tensor((1, 64), INPUT_SCALE, INPUT_ZERO_POINT), np.float32(INPUT_SCALE), images
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits.tflite"))
    parser.add_argument("--count", type=int, default=4, help="held-out digits to verify")
    arguments = parser.parse_args()
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (pixels[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    write(arguments.out, train(images[HELD_OUT:], labels[HELD_OUT:], 0.05), images[HELD_OUT:])

    network = load_model(arguments.out)
    runtime = runtime_of(network)
    replay = runtime.replay(arguments.out, images[:HELD_OUT])
    accuracy = (replay.predicted == labels[:HELD_OUT]).mean()
    print(f"{arguments.out}: {network.runtime_profile}, {network.parameter_count} parameters; {replay.runtime} gives the same")
    print(
        f"integers as qertify on {replay.agrees.sum()} of {HELD_OUT} held-out digits, {accuracy:.1%} of them classified right"
    )
    for index in range(arguments.count):
        centre = runtime.quantize_input(images[index : index + 1])[0]
        for radius in RADII:
            low = [max(Fraction(0), Fraction(float(value)) - radius) for value in images[index]]
            high = [min(Fraction(1), Fraction(float(value)) + radius) for value in images[index]]
            region = runtime.integer_image(np.array(low, dtype=object), np.array(high, dtype=object))
            property_ = Classification(int(labels[index]))
            query = RobustnessQuery(network, centre, region, property_, radius, radius_unit="real")
            result = verify(query, Options(timeout=20))
            line = f"digit {index} (a {labels[index]}), every pixel within ±{radius}: {result.verdict.value}"
            if result.verdict is Verdict.NON_ROBUST:
                codes = np.array(result.counterexample.levels).reshape(1, 64)
                shown = runtime.replay(arguments.out, runtime.real_input(codes, low, high))
                line += f"; LiteRT takes the counterexample for a {shown.predicted[0]}"
            print(f"{line} ({result.seconds:.2f} s)")


if __name__ == "__main__":
    main()
