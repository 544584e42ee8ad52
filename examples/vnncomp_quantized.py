"""VNN-COMP's float networks, quantized to int8 by onnxruntime's own tool, and their properties decided on the result.

The calibration inputs are drawn from the property's input box, so each property gets a network that is quantized for it.
A file's answers on the quantized network are not those on the float one; that is the point.

    pip install 'qertify[onnx]'
    python examples/vnncomp_quantized.py BENCHMARKS/acasxu --timeout 60
    python examples/vnncomp_quantized.py BENCHMARKS/mnist_fc --match 256x2 --count 6
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from qertify import Options, load_model
from qertify.importers.registry import ImportOptions
from qertify.queries.vnnlib import decide_specification
from qertify.queries.vnnlib_result import SpecificationResult
from qertify.specification.formula import Specification
from qertify.specification.vnnlib import read_vnnlib

SAMPLES = 64


class Calibration(CalibrationDataReader):
    """Hands inputs to the quantizer, one by one."""

    def __init__(self, name: str, inputs: NDArray[np.float32]) -> None:
        self.name, self.inputs = name, iter(inputs)

    def get_next(self) -> dict[str, Any] | None:
        row = next(self.inputs, None)
        return None if row is None else {self.name: row}


def samples(specification: Specification, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Random inputs from the property's boxes, half of them corners."""
    generator = np.random.default_rng(seed)
    rows: list[NDArray[np.float32]] = []
    for number in range(SAMPLES):
        part = specification.parts[number % len(specification.parts)]
        low, high = (np.array([float(bound.value) for bound in side]) for side in (part.low, part.high))
        mix = generator.random(len(low))
        rows.append((low + (mix.round() if number % 2 else mix) * (high - low)).astype(np.float32).reshape(shape))
    return np.stack(rows)


def without_idle_input_step(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop a subtraction of zeros in front, so that the first thing done to an input is to quantize it."""
    graph = model.graph
    first = graph.node[0]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    if first.op_type == "Sub" and first.input[1] in values and not values[first.input[1]].any():
        for node in graph.node[1:]:
            for position, name in enumerate(node.input):
                if name == first.output[0]:
                    node.input[position] = first.input[0]
        graph.node.remove(first)
    return model


def quantized(source: Path, specification: Specification, target: Path) -> tuple[int, ...]:
    """Write the int8 network; returns its input shape."""
    prepared = target.with_suffix(".prepared.onnx")
    onnxruntime.set_default_logger_severity(3)
    quant_pre_process(without_idle_input_step(onnx.load(source)), str(prepared))
    model = onnx.load(prepared)
    constants = {tensor.name for tensor in model.graph.initializer}
    info = next(item for item in model.graph.input if item.name not in constants)
    shape = tuple(max(1, axis.dim_value) for axis in info.type.tensor_type.shape.dim)
    quantize_static(
        str(prepared),
        str(target),
        Calibration(info.name, samples(specification, shape)),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    return shape


def decide(folder: Path, model: str, property_: str, timeout: float) -> SpecificationResult:
    """Quantize for one property and decide it."""
    specification = read_vnnlib(folder / property_)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "quantized.onnx"
        shape = quantized(folder / model, specification, target)
        network = load_model(target, ImportOptions(input_shape=shape))
        return decide_specification(network, specification, Options(timeout=timeout), model=target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a benchmark's folder, with instances.csv")
    parser.add_argument("--match", default="", help="only instances whose line holds this text")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--timeout", type=float, default=60)
    arguments = parser.parse_args()
    with (arguments.folder / "instances.csv").open() as file:
        instances = [row for row in csv.reader(file) if row and arguments.match in ",".join(row)]
    for model, property_, _ in instances[: arguments.count]:
        result = decide(arguments.folder, model, property_, arguments.timeout)
        why = result.reason.value if result.reason else result.evidence.value if result.evidence else ""
        print(f"{model} {property_}: {result.verdict.value} ({why}), {result.method}, {result.seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
