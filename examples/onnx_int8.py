"""An int8 ONNX model, made by onnxruntime's own tool, verified: trains a small CNN on 8×8 digits, quantizes it, and decides
robustness of held-out digits. Counterexamples are replayed on onnxruntime itself. Takes about half a minute.

    pip install 'qertify[onnx,demo]'
    python examples/onnx_int8.py --out digits_int8.onnx --images 6 --radius 2
"""

from __future__ import annotations

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from sklearn.datasets import load_digits

from qertify import Options, RobustnessQuery, load_model, verify
from qertify.runtimes.base import runtime_of
from qertify.runtimes.saturation import CpuClass, arithmetic_doubts
from qertify.specification.property import Classification

HELD_OUT = 400


class Calibration(CalibrationDataReader):
    """Hands training images to the quantizer, one by one."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self.images = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {"image": image[None]}


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
    return model


def float_onnx(model: torch.nn.Sequential) -> onnx.ModelProto:
    """The same network as a float ONNX model."""
    values = {f"p{i}": p.detach().numpy() for i, p in enumerate(model.parameters())}
    nodes = [
        helper.make_node("Conv", ["image", "p0", "p1"], ["c0"], name="conv0", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "p2", "p3"], ["c1"], name="conv1", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Flatten", ["r1"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "p4", "p5"], ["scores"], name="dense", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits_int8.onnx"))
    parser.add_argument("--images", type=int, default=6, help="held-out images to verify")
    parser.add_argument("--radius", type=Fraction, default=Fraction(2), help="in grey levels of the original 0 … 16")
    arguments = parser.parse_args()

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    model = trained(images[:-HELD_OUT], digits.target[:-HELD_OUT])
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(float_onnx(model), Path(folder) / "float.onnx")
        quantize_static(
            Path(folder) / "float.onnx",
            arguments.out,
            Calibration(images[:200]),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )

    network = load_model(arguments.out)
    runtime = runtime_of(network)
    replay = runtime.replay(arguments.out, images[-HELD_OUT:])
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
            confirmed = runtime.replay(arguments.out, attack[None])
            line += f", seen as {confirmed.predicted[0]} by {confirmed.runtime}"
        print(line)


if __name__ == "__main__":
    main()
