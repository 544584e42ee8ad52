"""An int8 PyTorch module verified: trains a small CNN on 8×8 digits, quantizes it with torch.ao.quantization, and decides
robustness of held-out digits. Counterexamples are replayed on the module itself. Takes about half a minute.

    pip install 'qertify[demo]'
    python examples/torch_int8.py --images 6 --radius 1 --save digits.ts.pt
"""

from __future__ import annotations

import argparse
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from qertify import Options, RobustnessQuery, import_torch, verify
from qertify.runtimes.base import runtime_of
from qertify.runtimes.saturation import CpuClass, arithmetic_doubts
from qertify.specification.property import Classification

HELD_OUT = 400


def trained(images: NDArray[np.float32], labels: NDArray[np.int64]) -> torch.nn.Sequential:
    """A CNN with two convolutions, the second one strided, and a dense layer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 8, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(40):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            noisy = x[batch] + 0.1 * torch.randn_like(x[batch])
            torch.nn.functional.cross_entropy(model(noisy), y[batch]).backward()
            optimizer.step()
    return model.eval()


def quantized(model: torch.nn.Sequential, images: NDArray[np.float32], engine: str) -> torch.nn.Module:
    """The int8 module for an engine, calibrated on images."""
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(model, get_default_qconfig_mapping(engine), (torch.from_numpy(images[:1]),))
        prepared(torch.from_numpy(images))
        return convert_fx(prepared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["fbgemm", "qnnpack"], default="fbgemm")
    parser.add_argument("--images", type=int, default=6, help="held-out images to verify")
    parser.add_argument("--radius", type=Fraction, default=Fraction(1), help="in grey levels of the original 0 … 16")
    parser.add_argument("--save", type=Path, help="also save the module as a TorchScript file (.ts.pt)")
    arguments = parser.parse_args()

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    model = trained(images[:-HELD_OUT], digits.target[:-HELD_OUT])
    module = quantized(model, images[:200], arguments.engine)
    if arguments.save is not None:
        torch.jit.save(torch.jit.script(module), arguments.save)

    network = import_torch(module, torch.from_numpy(images[:1]), arguments.engine)
    runtime = runtime_of(network)
    replay = runtime.replay(module, images[-HELD_OUT:])
    accuracy = np.mean(replay.predicted == digits.target[-HELD_OUT:])
    print(f"{replay.runtime}: {np.count_nonzero(~replay.agrees)} of {HELD_OUT} outputs differ; accuracy {accuracy:.3f}")
    for cpu_class in CpuClass:
        doubts = arithmetic_doubts(network, cpu_class)
        print(f"CPU class {cpu_class.value}: {'; '.join(doubts) or 'overflow and int16 saturation proved absent'}")

    for image, label in zip(images[-arguments.images :], digits.target[-arguments.images :], strict=True):
        exact = np.array([Fraction(float(v)) for v in image.reshape(-1)], dtype=object).reshape(image.shape)
        radius = arguments.radius / 16
        low, high = np.maximum(exact - radius, 0), np.minimum(exact + radius, 1)
        region = runtime.integer_image(low, high)
        centre = runtime.quantize_input(image[None])[0]
        query = RobustnessQuery(network, centre, region, Classification(int(label)), radius, "real")
        result = verify(query, Options(timeout=30))
        line = f"digit {label}: {result.verdict.value} in {result.seconds:.2f} s"
        if result.counterexample is not None:
            codes = np.array(result.counterexample.levels).reshape(network.input_shape)
            attack = runtime.real_input(codes, low, high)
            confirmed = runtime.replay(module, attack[None])
            line += f", seen as {confirmed.predicted[0]} by {confirmed.runtime}"
        print(line)


if __name__ == "__main__":
    main()
