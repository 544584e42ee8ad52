"""What the lowering rules of PyTorch operators share: what tensors are made of, and checked access to arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from qertify.importers.lowering import Builder, Codes
from qertify.importers.torch_graph import Operation, Traced
from qertify.network.tensor import IntegerArray, QuantizationParameters
from qertify.runtimes.float32 import Float32Array, is_normal
from qertify.runtimes.torch_arithmetic import Engine

LOW, HIGH = 0, 255
"""Range of quint8, the only type of activations."""


@dataclass(frozen=True, slots=True, eq=False)
class Raw:
    """Elements of the network's input before its quantizer; ``indices`` into the input, without the batch axis."""

    indices: IntegerArray


@dataclass(frozen=True, slots=True, eq=False)
class Real:
    """A float32 tensor that is known through codes; ``values``: float32 (256,), the number of each code."""

    codes: Codes
    values: Float32Array


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """A float32 tensor of which each number is known up to where it lies: between two numbers for each code, float32 (256,)."""

    codes: Codes
    least: Float32Array
    greatest: Float32Array


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What a final operator makes of strictly ordered codes: "softmax" or "argmax". Only the output may be one."""

    codes: Codes
    kind: str


Value = Raw | Codes | Real | Spread | Decision


@dataclass(slots=True)
class Lowering:
    """One import in progress.

    Attributes:
        input_shape: without the batch axis.
        lanes: channels that a pooling kernel takes at once on this machine.
        input: the input's codes, once a quantizer has been met.
        kernels: for each linear node the types its multiplication runs on, which saturation analysis needs.
    """

    engine: Engine
    input_shape: tuple[int, ...]
    lanes: int
    builder: Builder = field(default_factory=Builder)
    input: Codes | None = None
    kernels: dict[str, dict[str, Any]] = field(default_factory=dict)


def shape_of(operation: Operation, tensor: torch.Tensor) -> tuple[int, ...]:
    """Shape of a batch of one, without the batch axis."""
    if tensor.ndim < 2 or tensor.shape[0] != 1:
        raise operation.unsupported(
            None, f"its result {tuple(tensor.shape)} has no batch axis of one in front of at least one other"
        )
    return tuple(tensor.shape[1:])


def codes_of(operation: Operation, value: Any) -> tuple[Codes, torch.Tensor]:
    """An argument that is a quantized tensor: its codes, all of whose type count, and what it is for the example."""
    match value:
        case Traced(tensor=tensor, value=Codes() as codes):
            return replace(codes, low=LOW, high=HIGH), tensor
        case _:
            raise operation.unsupported(None, "it computes in float; a quantized operand is needed")


def scale_of(operation: Operation, tensor: torch.Tensor) -> tuple[np.float32, int]:
    """Scale and zero point of a quantized tensor.

    Raises:
        UnsupportedModelError: not quint8 with one scale, or a scale that is no normal float32, or whose inverse is none.
    """
    if tensor.dtype is not torch.quint8 or tensor.qscheme() is not torch.per_tensor_affine:
        raise operation.unsupported("dtype", f"activations must be quint8 with one scale, not {tensor.dtype}")
    scale = float(np.float32(tensor.q_scale()))
    if not (is_normal(scale) and is_normal(1 / scale) and is_normal(256 * scale)):
        raise operation.unsupported("scale", f"{scale} is outside the normal numbers of float32")
    return np.float32(scale), int(tensor.q_zero_point())


def quantization_of(operation: Operation, tensor: torch.Tensor) -> QuantizationParameters:
    scale, zero_point = scale_of(operation, tensor)
    return QuantizationParameters.of(float(scale), zero_point)


def sizes(operation: Operation, name: str, default: Sequence[int] = ()) -> tuple[int, int]:
    """An argument of two sizes, of which one may stand for both, and none for the default."""
    given = operation.arguments.get(name)
    values = [given] if isinstance(given, int) else list(given or default)
    values = values * 2 if len(values) == 1 else values
    if len(values) != 2:
        raise operation.unsupported(name, f"two sizes are needed, not {values}")
    return int(values[0]), int(values[1])


def image_shape(operation: Operation, x: Codes) -> tuple[int, int, int]:
    """Channels, height and width of an operand that must be an image."""
    if len(x.shape) != 3:
        raise operation.unsupported(None, f"it is applied to {x.shape}; (channels, height, width) is needed")
    return x.shape[0], x.shape[1], x.shape[2]


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether PyTorch's kernels take the path for channels last."""
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def memory_positions(tensor: torch.Tensor) -> IntegerArray | None:
    """Where each element lies in memory, of the tensor's shape without batch; None if memory has gaps or overlaps."""
    position = np.zeros((1,) * tensor.ndim, dtype=np.int64)
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        shape = [1] * tensor.ndim
        shape[axis] = size
        position = position + (np.arange(size, dtype=np.int64) * stride).reshape(shape)
    if not np.array_equal(np.sort(position, axis=None), np.arange(tensor.numel())):
        return None
    return position[0]


def random_sample(tensor: torch.Tensor) -> tuple[IntegerArray, torch.Tensor]:
    """Random codes, of the tensor's shape without batch, and as a quantized tensor that lies in memory like the given one."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = torch.randint(LOW, HIGH + 1, (extent,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    quantized = torch.ops.aten._make_per_tensor_quantized_tensor(memory, tensor.q_scale(), tensor.q_zero_point())
    sample = quantized.as_strided(tensor.shape, tensor.stride())
    return sample.int_repr()[0].numpy().astype(np.int64), sample
