"""Train and quantize the small network of ``qertify demo`` on scikit-learn's 8×8 digits, in seconds.

    pip install 'qertify[demo]'
    python examples/train_digits.py --out digits

writes digits.h5 (Keras weight-only layout, float32 weights that a fixed-point network rounds), images.npy (uint8 codes) and
labels.npy of held-out digits. Pixels 0 … 16 become 4-bit codes min(pixel, 15). The network is 64-32-10 with 6-bit weights and
activations; training sees the rounding through straight-through gradients, and images moved against it by two levels.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from qertify.importers.keras_fixed_point import load_keras_fixed_point
from qertify.network.evaluate import evaluate

BITS, INPUT_BITS, HIDDEN, CLASSES = 6, 4, 32, 10
HELD_OUT, SAVED = 400, 40


def quantized(values: Tensor, fraction_bits: int, low: int, high: int) -> Tensor:
    """Round half up to multiples of 2^-fraction_bits in low … high steps; the gradient passes straight through."""
    scale = 2.0**fraction_bits
    clipped = values.clamp(low / scale, high / scale)
    return clipped + (torch.floor(clipped * scale + 0.5) / scale - clipped).detach()


def forward(x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Outputs in real numbers, not yet clamped to the last layer's range, so that training sees a gradient."""
    half = 1 << (BITS - 1)
    for position, (kernel, bias) in enumerate(layers):
        weight = quantized(kernel, BITS - 1, -half, half - 1)
        x = x @ weight + quantized(bias, BITS - 2, -half, half - 1)
        if position < len(layers) - 1:
            x = quantized(x, BITS - 2, 0, (1 << BITS) - 1)
    return x


def loss_of(x: Tensor, y: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.nn.functional.cross_entropy(3.0 * forward(x, layers), y)


def train(x: Tensor, y: Tensor, epochs: int, strength: float) -> list[tuple[Tensor, Tensor]]:
    """Full-batch Adam on images shifted by one signed gradient step of ``strength`` real units (adversarial training)."""
    torch.manual_seed(0)
    sizes, largest = [x.shape[1], HIDDEN, CLASSES], float(x.max())
    layers = [
        (torch.empty(fan_in, width).uniform_(-1, 1).mul_(fan_in**-0.5).requires_grad_(), torch.zeros(width, requires_grad=True))
        for fan_in, width in pairwise(sizes)
    ]
    optimizer = torch.optim.Adam([tensor for layer in layers for tensor in layer], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        start = (x + torch.randint_like(x, -1, 2) / 2**INPUT_BITS).clamp(0, largest).requires_grad_()
        (slope,) = torch.autograd.grad(loss_of(start, y, layers), start)
        shifted = (x + strength * slope.sign()).clamp(0, largest)
        optimizer.zero_grad()
        loss_of(shifted, y, layers).backward()
        optimizer.step()
        schedule.step()
    return layers


def save_weights(path: Path, layers: list[tuple[Tensor, Tensor]]) -> None:
    """The layout of Keras' save_weights: one group a layer, listed in ``layer_names``."""
    with h5py.File(path, "w") as file:
        names = [f"dense_{position}" for position in range(len(layers))]
        file.attrs["layer_names"] = [name.encode() for name in names]
        for name, (kernel, bias) in zip(names, layers, strict=True):
            group = file.create_group(name)
            group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
            group["kernel:0"], group["bias:0"] = kernel.detach().numpy(), bias.detach().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits"))
    parser.add_argument("--epochs", type=int, default=600)
    arguments = parser.parse_args()
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    codes, labels = np.minimum(pixels[order].astype(np.int64), (1 << INPUT_BITS) - 1), labels[order]
    x, y = torch.tensor(codes / 2.0**INPUT_BITS, dtype=torch.float32), torch.tensor(labels)
    layers = train(x[HELD_OUT:], y[HELD_OUT:], arguments.epochs, strength=2 / 2**INPUT_BITS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_weights(arguments.out / "digits.h5", layers)
    np.save(arguments.out / "images.npy", codes[:SAVED].astype(np.uint8).reshape(-1, 8, 8))
    np.save(arguments.out / "labels.npy", labels[:SAVED].astype(np.uint8))
    network = load_keras_fixed_point(arguments.out / "digits.h5", bits=BITS, input_bits=INPUT_BITS)
    correct = evaluate(network, codes[:HELD_OUT]).argmax(axis=1) == labels[:HELD_OUT]
    print(f"{correct.sum()} of {HELD_OUT} held-out digits are right in exact integers ({correct.mean():.1%})")


if __name__ == "__main__":
    main()
