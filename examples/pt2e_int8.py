"""A PT2E graph verified: trains a small CNN on handwritten digits, quantizes it with torchao, and decides robustness of
held-out digits from the torch.export file alone. Counterexamples are replayed on torch. Takes less than a minute.

    pip install 'qertify[torchao,demo]'
    python examples/pt2e_int8.py --out digits
    qertify verify digits/cnn_int8.pt2 --input digits/images.npy[0] --labels digits/labels.npy --radius 1/16
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from digits import arguments_of, cnn, load, save_inputs, show, train
from numpy.typing import NDArray
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from qertify import load_model


def quantized(model: torch.nn.Sequential, images: NDArray[np.float32]) -> torch.export.ExportedProgram:
    """uint8 activations, int8 weights with a scale a channel, float scores."""
    batches = torch.from_numpy(images).split(1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(model, (batches[0],)).module(), quantizer)
        for batch in batches:
            prepared(batch)
        return torch.export.export(convert_pt2e(prepared), (batches[0],))


def main() -> None:
    arguments = arguments_of(__doc__).parse_args()
    digits = load(arguments.mnist)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model, path = train(cnn(digits.test.shape[2]), digits), arguments.out / "cnn_int8.pt2"
    torch.export.save(quantized(model, digits.train[:200]), path)
    save_inputs(arguments.out, digits)
    show(load_model(path), path, digits, arguments)


if __name__ == "__main__":
    main()
