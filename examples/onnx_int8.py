"""An int8 ONNX model, made by onnxruntime's own tool, verified: trains a small CNN on handwritten digits, quantizes it, and
decides robustness of held-out digits. Counterexamples are replayed on onnxruntime itself. Takes less than a minute.

    pip install 'qertify[onnx,demo]'
    python examples/onnx_int8.py --out digits
    qertify verify digits/cnn_int8.onnx --input digits/images.npy[0] --labels digits/labels.npy --radius 2/16
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from digits import arguments_of, cnn, load, save_inputs, show, train
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from qertify import load_model


class Calibration(CalibrationDataReader):
    """Hands training images to the quantizer, one by one."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self.images = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {"image": image[None]}


def float_onnx(model: torch.nn.Sequential, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The same network as a float ONNX model."""
    nodes, constants, x = [], [], "image"
    for position, layer in enumerate(model):
        y, operands, options = f"y{position}", [x], {}
        for name, parameter in layer.named_parameters():
            constants.append(numpy_helper.from_array(parameter.detach().numpy(), f"{name}{position}"))
            operands.append(f"{name}{position}")
        match layer:
            case torch.nn.Conv2d():
                op, options = "Conv", {"strides": list(layer.stride), "pads": [*layer.padding, *layer.padding]}
            case torch.nn.Linear():
                op, options = "Gemm", {"transB": 1}
            case _:
                op = "Relu" if isinstance(layer, torch.nn.ReLU) else "Flatten"
        nodes.append(helper.make_node(op, operands, [y], name=f"{op.lower()}{position}", **options))
        x = y
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantize(source: Path, target: Path, images: NDArray[np.float32]) -> None:
    """uint8 activations, int8 weights with a scale a channel."""
    quantize_static(
        source,
        target,
        Calibration(images),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def main() -> None:
    arguments = arguments_of(__doc__).parse_args()
    digits = load(arguments.mnist)
    arguments.out.mkdir(parents=True, exist_ok=True)
    original, path = arguments.out / "cnn_float.onnx", arguments.out / "cnn_int8.onnx"
    shape = digits.test.shape[1:]
    onnx.save(float_onnx(train(cnn(shape[1]), digits), shape), original)
    quantize(original, path, digits.train[:200])
    save_inputs(arguments.out, digits)
    show(load_model(path), path, digits, arguments)


if __name__ == "__main__":
    main()
