"""A float network and its int8 version, compared: trains an MLP and a CNN on handwritten digits, quantizes each by onnxruntime
and by PyTorch, saves every pair, and asks how far their scores can be apart around a digit. Takes about a minute.

    pip install 'qertify[onnx,demo]'
    python examples/equivalence.py --out digits
    qertify equiv digits/cnn_float.onnx digits/cnn_int8.onnx --input digits/images.npy[0] --radius 1/255 --delta 2
    qertify equiv digits/mlp_float.pt2 digits/mlp_int8.ts.pt --trust-code --input-shape 1,1,8,8 --input digits/images.npy[0] \\
        --radius 1/255 --top1
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import torch
from digits import Digits, arguments_of, cnn, load, mlp, save_inputs, train
from numpy.typing import NDArray
from onnx_int8 import float_onnx, quantize
from torch_int8 import quantized

from qertify import EquivalenceQuery, Network, Options, equivalence, load_float_model, load_model, paired_reals
from qertify.importers.registry import ImportOptions


def save_pairs(name: str, model: torch.nn.Sequential, digits: Digits, folder: Path) -> list[tuple[Path, Path, ImportOptions]]:
    """Float and quantized files of one network, and what the importer must be told about the quantized one."""
    shape, example = digits.test.shape[1:], torch.from_numpy(digits.test[:1])
    files = [folder / f"{name}_{suffix}" for suffix in ("float.onnx", "int8.onnx", "float.pt2", "int8.ts.pt")]
    onnx.save(float_onnx(model, shape), files[0])
    quantize(files[0], files[1], digits.train[:200])
    torch.export.save(torch.export.export(model, (example,)), files[2])
    torch.jit.save(torch.jit.script(quantized(model, digits.train[:200], "fbgemm")), files[3])
    trusted = ImportOptions(trust_code=True, input_shape=(1, *shape))
    return [(files[0], files[1], ImportOptions()), (files[2], files[3], trusted)]


def compare(original: Path, network: Network, image: NDArray[np.float32], arguments: argparse.Namespace) -> None:
    """The greatest difference of the scores within each radius of one image."""
    exact = np.array([Fraction(float(v)) for v in image.reshape(-1)], dtype=object).reshape(image.shape)
    for radius in arguments.radii or [Fraction(1)]:
        inputs = paired_reals(network, exact - radius / 255, exact + radius / 255)
        result = equivalence(EquivalenceQuery(load_float_model(original), network, inputs), Options(timeout=arguments.timeout))
        least, most = result.max_delta or (None, None)
        print(
            f"{original.name}, radius {radius}/255: scores differ by {least} … {most} at most, {result.seconds:.2f} s",
            flush=True,
        )


def main() -> None:
    arguments = arguments_of(__doc__).parse_args()
    digits = load(arguments.mnist)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_inputs(arguments.out, digits)
    for name, build in (("mlp", mlp), ("cnn", cnn)):
        model = train(build(digits.test.shape[2]), digits)
        for original, path, options in save_pairs(name, model, digits, arguments.out):
            network = load_model(path, options)
            for image in digits.test[:1]:
                compare(original, network, image, arguments)


if __name__ == "__main__":
    main()
