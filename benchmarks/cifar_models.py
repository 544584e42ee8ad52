"""The CIFAR-10 networks of `cifar_networks`: published ones and a residual one trained here, quantized by onnxruntime.

The published ones (base, deep and wide, 3,172 to 6,756 rectifiers) were trained for robustness by Wong & Kolter's method. The
residual network has more than 50,000 activations; it is trained here, for a few minutes on one core, on 10,000 images,
with the interval bounds of a box of 2/255 in its loss (Gowal et al., "On the effectiveness of interval bound propagation",
2018). That makes it a network worth asking about; its accuracy is modest, and printed.
"""

from __future__ import annotations

import lzma
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tests.data import shared_data
from torch import Tensor, nn
from torch.nn import functional

PUBLISHED = ("base", "deep", "wide")
RESIDUAL = "residual"
MEANS, DEVIATION = (0.485, 0.456, 0.406), 0.225
"""What the published networks subtract from pixel/255, per channel, and divide it by; float32 in the runtime."""
CALIBRATION = 500
"""Training images that ranges of activations are taken from."""
PERCENTILE = 99.9
"""Part of the values that the range of an activation covers. Its least and greatest value give codes that are up to three
times as coarse at about the same accuracy, and far less of such networks can be decided: it is rounding that costs."""
RECORD = 3073
OPSET = 17


def cifar(test: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels (count, 3, 32, 32) and labels: 10,000 training or 1,000 test images."""
    folder = shared_data()
    assert folder is not None, "the networks need the data folder: set QERTIFY_DATA"
    name = "test_first1000.bin.xz" if test else "data_batch_1.bin.xz"
    content = lzma.decompress((folder / "cifar10" / name).read_bytes())
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


class _Calibration(CalibrationDataReader):
    def __init__(self, name: str, images: NDArray[np.float32]) -> None:
        self.name, self.images = name, iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {self.name: image[None]}


def normalized(model: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A network's input for images, (count, 3, 32, 32)."""
    scaled = pixels / 255
    if model != RESIDUAL:
        scaled = (scaled - np.array(MEANS)[:, None, None]) / DEVIATION
    return scaled.astype(np.float32)


def quantized(model: str, folder: Path, training_seconds: float, percentile: float = PERCENTILE) -> Path:
    """The int8 file of a network; made if it is not there. 100 percent of the values: calibration by least and greatest."""
    target = folder / f"{model}_{percentile:g}_int8.onnx"
    if target.exists():
        return target
    pixels, _ = cifar(test=False)
    with tempfile.TemporaryDirectory() as scratch:
        source, prepared = Path(scratch) / "float.onnx", Path(scratch) / "prepared.onnx"
        if model == RESIDUAL:
            onnx.save(exported(trained(training_seconds)), source)
        else:
            data = shared_data()
            assert data is not None
            published = onnx.load(data / "vnncomp" / "oval21" / f"cifar_{model}_kw.onnx")
            onnx.save(version_converter.convert_version(published, OPSET), source)
        quant_pre_process(str(source), str(prepared))
        loaded = onnx.load(prepared)
        constants = {tensor.name for tensor in loaded.graph.initializer}
        name = next(item.name for item in loaded.graph.input if item.name not in constants)
        quantize_static(
            str(prepared),
            str(target),
            _Calibration(name, normalized(model, pixels[:CALIBRATION])),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax if percentile == 100 else CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": percentile},
        )
    return target


class Residual(nn.Module):
    """53,000 activations: a wide stem, a residual block at full resolution, a strided convolution, another block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.mix = nn.Conv2d(16, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down = nn.Conv2d(16, 32, 4, stride=4)
        self.wide = nn.Conv2d(32, 32, 3, padding=1)
        self.dense = nn.Linear(2048, 10)

    def bounds(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Interval bounds of the scores for a box of inputs; the scores themselves where low = high."""

        def linear(layer: nn.Module, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
            middle, radius = (low + high) / 2, (high - low) / 2
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            if isinstance(layer, nn.Conv2d):
                spread = functional.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding, 1, layer.groups)
            else:
                spread = radius @ layer.weight.abs().T
            centre = layer(middle)
            return centre - spread, centre + spread

        def rectified(layer: nn.Module, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
            low, high = linear(layer, low, high)
            return low.relu(), high.relu()

        low, high = rectified(self.stem, low, high)
        inner_low, inner_high = linear(self.depthwise, *rectified(self.mix, low, high))
        low, high = (low + inner_low).relu(), (high + inner_high).relu()
        low, high = rectified(self.down, low, high)
        inner_low, inner_high = linear(self.wide, low, high)
        low, high = (low + inner_low).relu(), (high + inner_high).relu()
        return linear(self.dense, low.flatten(1), high.flatten(1))


def trained(seconds: float, radius: float = 2.4 / 255) -> Residual:
    """The residual network, after so many seconds; the box in the loss grows to ``radius``, a little more than 2/255."""
    torch.manual_seed(0)
    model = Residual()
    pixels, labels = cifar(test=False)
    images, classes = torch.from_numpy(normalized(RESIDUAL, pixels)), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    start, epoch = time.monotonic(), 0
    while (done := (time.monotonic() - start) / seconds) < 1:
        for batch in torch.randperm(len(images)).split(100):
            done = min(1.0, (time.monotonic() - start) / seconds)
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1.0, 2 * (1 - done)) + 1e-5
            x = images[batch].flip(-1) if epoch % 2 else images[batch]
            box = radius * min(1.0, done / 0.6)
            low, high = model.bounds((x - box).clamp(0, 1), (x + box).clamp(0, 1))
            own = functional.one_hot(classes[batch], 10).bool()
            worst = torch.where(own, low, high)
            scores, _ = model.bounds(x, x)
            loss = 0.5 * functional.cross_entropy(scores, classes[batch]) + 0.5 * functional.cross_entropy(
                worst, classes[batch]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        epoch += 1
    return model


def exported(model: Residual) -> onnx.ModelProto:
    """As a float ONNX model."""
    values = {name.replace(".", "_"): parameter.detach().numpy() for name, parameter in model.named_parameters()}

    def convolution(layer: str, source: str, target: str, **attributes: int | Sequence[int]) -> onnx.NodeProto:
        return helper.make_node("Conv", [source, f"{layer}_weight", f"{layer}_bias"], [target], name=layer, **attributes)

    pads = [1, 1, 1, 1]
    nodes = [
        convolution("stem", "image", "c0", pads=pads),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        convolution("mix", "r0", "c1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        convolution("depthwise", "r1", "c2", pads=pads, group=16),
        helper.make_node("Add", ["r0", "c2"], ["s2"], name="add2"),
        helper.make_node("Relu", ["s2"], ["r2"], name="relu2"),
        convolution("down", "r2", "c3", strides=[4, 4]),
        helper.make_node("Relu", ["c3"], ["r3"], name="relu3"),
        convolution("wide", "r3", "c4", pads=pads),
        helper.make_node("Add", ["r3", "c4"], ["s4"], name="add4"),
        helper.make_node("Relu", ["s4"], ["r4"], name="relu4"),
        helper.make_node("Flatten", ["r4"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "dense_weight", "dense_bias"], ["scores"], name="dense", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
