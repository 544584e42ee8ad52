"""PT2E graphs: by torchao's own tools from float networks, and single operators between explicit quantizers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import nn

OPS = torch.ops.quantized_decomposed


def x86() -> Any:
    """uint8 activations; the last layer stays float."""
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as made

    return made.X86InductorQuantizer().set_global(made.get_default_x86_inductor_quantization_config())


def symmetric() -> Any:
    """int8 activations, the output's, too."""
    from torchao.testing.pt2e import _xnnpack_quantizer as made

    return made.XNNPACKQuantizer().set_global(made.get_symmetric_quantization_config(is_per_channel=True))


QUANTIZERS: dict[str, Callable[[], Any]] = {"x86": x86, "symmetric": symmetric}


def pt2e(net: nn.Module, quantizer: str, spread: float = 4.0, fold: bool = True) -> torch.fx.GraphModule:
    """Quantized by torchao on random calibration data."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(net.eval(), (torch.zeros(1, *net.shape),)).module()
        prepared = prepare_pt2e(exported, QUANTIZERS[quantizer]())
        for _ in range(32):
            prepared(spread * torch.randn(1, *net.shape))
        return convert_pt2e(prepared, fold_quantize=fold)


class Between(nn.Module):
    """A function between a quantizer and a dequantizer on either side."""

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        shape: tuple[int, ...],
        scale: float = 0.05,
        zero_point: int = 10,
        out: tuple[float, int] | None = (0.07, 3),
        **tensors: torch.Tensor,
    ) -> None:
        super().__init__()
        self.function, self.shape, self.scale, self.zero_point, self.out = function, shape, scale, zero_point, out
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.function(self, requantized(x, self.scale, self.zero_point))
        return y if self.out is None else requantized(y, *self.out)


def requantized(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Quantized to uint8 and dequantized."""
    codes = OPS.quantize_per_tensor(x, scale, zero_point, 0, 255, torch.uint8)
    return OPS.dequantize_per_tensor(codes, scale, zero_point, 0, 255, torch.uint8)


def exported(module: nn.Module, batch: bool = False) -> torch.export.ExportedProgram:
    sizes = ({0: torch.export.Dim("batch")},) if batch else None
    return torch.export.export(module, (torch.zeros(2 if batch else 1, *module.shape),), dynamic_shapes=sizes)
