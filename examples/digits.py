"""What the examples of quantized formats share: handwritten digits, a small CNN trained on them, and a line a verdict.

MNIST where its idx files are at hand (28 × 28, 256 grey levels), else scikit-learn's digits (8 × 8, 17 grey levels).
"""

from __future__ import annotations

import argparse
import gzip
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qertify import Network, Options, RobustnessQuery, verify
from qertify.runtimes.base import runner, runtime_of
from qertify.runtimes.saturation import CpuClass, arithmetic_doubts
from qertify.specification.property import Classification

TRAINED, TESTED = 12_000, 400
RADII = {16: [Fraction(1), Fraction(8)], 255: [Fraction(2), Fraction(60)]}
"""Grey levels between black and white → radii that show both verdicts."""


@dataclass(frozen=True)
class Digits:
    """Images (count, 1, size, size), float32 in 0 … 1, and labels; ``levels``: grey levels between black and white."""

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    levels: int


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all these examples take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's idx files; else the digits of scikit-learn")
    parser.add_argument("--out", type=Path, default=Path("digits"), help="folder for the models and images")
    parser.add_argument("--images", type=int, default=4, help="held-out images to verify")
    parser.add_argument("--radii", type=Fraction, nargs="+", help="in grey levels; a small and a large one if not given")
    parser.add_argument("--timeout", type=float, default=5, help="seconds for each question")
    return parser


def load(mnist: Path | None) -> Digits:
    if mnist is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images, labels = (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64)
        return Digits(images[:-TESTED], labels[:-TESTED], images[-TESTED:], labels[-TESTED:], 16)

    def idx(name: str, offset: int) -> NDArray[np.uint8]:
        content = (
            (mnist / name).read_bytes() if (mnist / name).exists() else gzip.decompress((mnist / f"{name}.gz").read_bytes())
        )
        return np.frombuffer(content, np.uint8, offset=offset)

    def images_of(split: str, count: int) -> NDArray[np.float32]:
        pixels = idx(f"{split}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)[:count]
        return (pixels / np.float32(255)).astype(np.float32)

    def labels_of(split: str, count: int) -> NDArray[np.int64]:
        return idx(f"{split}-labels-idx1-ubyte", 8)[:count].astype(np.int64)

    return Digits(
        images_of("train", TRAINED), labels_of("train", TRAINED), images_of("t10k", TESTED), labels_of("t10k", TESTED), 255
    )


def cnn(size: int) -> torch.nn.Sequential:
    """Two strided convolutions and a dense layer."""
    last = -(-size // 4)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 8, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * last * last, 10),
    )


def mlp(size: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size * size, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10))


def train(model: torch.nn.Sequential, digits: Digits) -> torch.nn.Sequential:
    """Adam on noisy images, some twenty seconds at most."""
    torch.manual_seed(0)
    for layer in model:
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x, y = torch.from_numpy(digits.train), torch.from_numpy(digits.train_labels)
    for _ in range(max(1, 56_000 // len(x))):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            noisy = x[batch] + 0.1 * torch.randn_like(x[batch])
            torch.nn.functional.cross_entropy(model(noisy), y[batch]).backward()
            optimizer.step()
    return model.eval()


def show(network: Network, model: Path | torch.nn.Module, digits: Digits, arguments: argparse.Namespace) -> None:
    """Agreement with the runtime, CPU classes, and verdicts; every counterexample is replayed on the runtime."""
    runtime = runtime_of(network)
    replay = runtime.replay(model, digits.test)
    accuracy = np.mean(replay.predicted == digits.test_labels)
    outside = np.count_nonzero(~replay.agrees)
    print(f"{replay.runtime}: {network.exactness}; {outside} of {TESTED} outputs differ; accuracy {accuracy:.3f}")
    for cpu_class in CpuClass:
        doubts = arithmetic_doubts(network, cpu_class)
        print(f"CPU class {cpu_class.value}: {'; '.join(doubts) or 'overflow and int16 saturation proved absent'}")
    for image, label in list(zip(digits.test, digits.test_labels.tolist(), strict=True))[: arguments.images]:
        exact = np.array([Fraction(float(v)) for v in image.reshape(-1)], dtype=object).reshape(image.shape)
        for grey in arguments.radii or RADII[digits.levels]:
            radius = grey / digits.levels
            low, high = np.maximum(exact - radius, 0), np.minimum(exact + radius, 1)
            region, centre = runtime.integer_image(low, high), runtime.quantize_input(image[None])[0]
            query = RobustnessQuery(network, centre, region, Classification(label), radius, "real")
            result = verify(query, Options(timeout=arguments.timeout), run=runner(network, model, low, high))
            line = f"digit {label}, {grey} of {digits.levels} grey levels: {result.verdict.value} in {result.seconds:.2f} s"
            if result.counterexample is not None:
                codes = np.array(result.counterexample.levels).reshape(network.input_shape)
                attack = runtime.real_input(codes, low, high)
                confirmed = runtime.replay(model, attack[None])
                line += f", seen as {confirmed.predicted[0]} by {confirmed.runtime}"
            print(line, flush=True)


def save_inputs(folder: Path, digits: Digits) -> None:
    """The held-out images and labels, for the command line."""
    np.save(folder / "images.npy", digits.test)
    np.save(folder / "labels.npy", digits.test_labels)
