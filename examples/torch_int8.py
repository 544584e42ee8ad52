"""An int8 PyTorch module verified: trains a small CNN on handwritten digits, quantizes it with torch.ao.quantization, and
decides robustness of held-out digits. Counterexamples are replayed on the module itself. Takes less than a minute.

    pip install 'qertify[demo]'
    python examples/torch_int8.py --out digits
    qertify verify digits/cnn_int8.ts.pt --trust-code --input-shape 1,1,8,8 --input digits/images.npy[0] \\
        --labels digits/labels.npy --radius 1/16
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from digits import arguments_of, cnn, load, save_inputs, show, train
from numpy.typing import NDArray
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from qertify import import_torch


def quantized(model: torch.nn.Sequential, images: NDArray[np.float32], engine: str) -> torch.nn.Module:
    """The int8 module for an engine, calibrated on images."""
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(model, get_default_qconfig_mapping(engine), (torch.from_numpy(images[:1]),))
        prepared(torch.from_numpy(images))
        return convert_fx(prepared)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--engine", choices=["fbgemm", "qnnpack"], default="fbgemm")
    arguments = parser.parse_args()
    digits = load(arguments.mnist)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = train(cnn(digits.test.shape[2]), digits)
    example = torch.from_numpy(digits.test[:1])
    torch.export.save(torch.export.export(model, (example,)), arguments.out / "cnn_float.pt2")
    module = quantized(model, digits.train[:200], arguments.engine)
    torch.jit.save(torch.jit.script(module), arguments.out / "cnn_int8.ts.pt")
    save_inputs(arguments.out, digits)
    show(import_torch(module, example, arguments.engine), module, digits, arguments)


if __name__ == "__main__":
    main()
