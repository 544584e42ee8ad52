"""How each quantized PyTorch operator becomes integer nodes; ends in the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qertify.importers.decisions import softmax_obstacle
from qertify.importers.lowering import Codes, Requantize
from qertify.importers.torch_context import (
    HIGH,
    LOW,
    Decision,
    Lowering,
    Raw,
    Real,
    Spread,
    Value,
    codes_of,
    image_shape,
    is_channels_last,
    memory_positions,
    quantization_of,
    random_sample,
    scale_of,
    shape_of,
)
from qertify.importers.torch_graph import Operation, Traced
from qertify.importers.torch_linear import LINEAR
from qertify.importers.torch_pools import POOLS
from qertify.network.tensor import IntegerArray
from qertify.runtimes.float32 import is_normal
from qertify.runtimes.torch_arithmetic import (
    BODY,
    Addition,
    Engine,
    NativeAddition,
    QnnpackAddition,
    dequantize,
    dequantize_in_vectors,
    product,
    quantize,
    quantize_after,
    quantize_inside,
)
from qertify.runtimes.torch_int8 import probed, softmax_keeps_ties, unary_tables

GRAIN = 1 << 15
"""Largest tensor that an element-wise kernel never divides among threads."""


def _quantize(lowering: Lowering, operation: Operation) -> Value:
    scale, zero_point = scale_of(operation, operation.result)
    quantization = quantization_of(operation, operation.result)
    source = operation.arguments.get("self")
    match source.value if isinstance(source, Traced) else None:
        case Raw(indices):
            if lowering.input is None:
                lowering.input = lowering.builder.input("input", lowering.input_shape, LOW, HIGH, quantization)
            found = lowering.input.quantization
            if found is None or (found.scale[0], found.zero_point[0]) != (float(scale), zero_point):
                raise operation.unsupported(None, "the input is quantized in several ways; one quantizer is needed")
            return lowering.builder.rearrange(operation.name, (lowering.input,), indices)
        case Real(codes, values):
            image = np.clip(quantize(values, scale, zero_point), LOW, HIGH)
            return lowering.builder.unary(operation.name, codes, image[None, :], LOW, HIGH, quantization)
        case Spread(codes, least, greatest):
            images = [np.clip(quantize(values, scale, zero_point), LOW, HIGH) for values in (least, greatest)]
            if not np.array_equal(images[0], images[1]):
                raise operation.unsupported(None, "which code it gives depends on the position in the tensor; use other scales")
            return lowering.builder.unary(operation.name, codes, images[0][None, :], LOW, HIGH, quantization)
        case _:
            raise operation.unsupported(None, "it does not quantize one float tensor")


def _dequantize(lowering: Lowering, operation: Operation) -> Value:
    codes, tensor = codes_of(operation, next(iter(operation.arguments.values())))
    return Real(codes, dequantize(np.arange(LOW, HIGH + 1), *scale_of(operation, tensor)))


def _move(lowering: Lowering, operation: Operation) -> Any:
    """Any operator that only moves elements: it is run on the elements' indices."""
    if operation.arguments.get("train") or operation.arguments.get("training"):
        raise operation.unsupported("train", "only the inference form of dropout is supported; call eval() first")
    name, source = next((key, value) for key, value in operation.arguments.items() if isinstance(value, Traced))
    kind = torch.float64 if "upsample" in operation.op else torch.int64
    indices = torch.arange(source.tensor.numel(), dtype=kind).reshape(source.tensor.shape)
    try:
        moved = operation.repeat({name: indices})
    except RuntimeError as error:
        raise operation.unsupported(
            None, f"how it moves elements can't be read off: {' '.join(str(error).split())[:120]}"
        ) from error
    moved = moved.long() if isinstance(moved, torch.Tensor) else moved
    _check_move(operation, name, source.tensor, moved)
    if isinstance(moved, list | tuple):
        return [_picked(lowering, operation, source.value, item, f"{operation.name}/{i}") for i, item in enumerate(moved)]
    return _picked(lowering, operation, source.value, moved, operation.name)


def _check_move(operation: Operation, name: str, tensor: torch.Tensor, moved: Any) -> None:
    """Some operators move the elements of quantized tensors differently: compare on random codes."""
    if not tensor.is_quantized:
        return
    codes, sample = random_sample(tensor)
    results, indices = operation.repeat({name: sample}), moved
    if not isinstance(moved, list | tuple):
        results, indices = [results], [moved]
    for result, index in zip(results, indices, strict=True):
        if not np.array_equal(result.int_repr().numpy(), codes.reshape(-1)[index.numpy()]):
            raise operation.unsupported(None, "it moves the elements of a quantized tensor that lies in memory like this one")


def _picked(lowering: Lowering, operation: Operation, value: Value, moved: torch.Tensor, name: str) -> Value:
    shape_of(operation, moved)
    indices = moved[0].numpy().astype(np.int64)
    match value:
        case Raw(earlier):
            return Raw(earlier.reshape(-1)[indices])
        case Codes():
            return lowering.builder.rearrange(name, (value,), indices)
        case Real(codes, values):
            return Real(lowering.builder.rearrange(name, (codes,), indices), values)
        case Spread(codes, least, greatest):
            return Spread(lowering.builder.rearrange(name, (codes,), indices), least, greatest)
        case Decision():
            raise operation.unsupported(None, "nothing may follow the final softmax")


def _unary(lowering: Lowering, operation: Operation) -> Value:
    """Any element-wise operator of one quantized tensor: its table is read off the operator itself."""
    name, source = next((key, value) for key, value in operation.arguments.items() if isinstance(value, Traced))
    if isinstance(source.value, Real):
        return _function(lowering, operation)
    x, tensor = codes_of(operation, source)
    scale_of(operation, tensor)
    body, tail, sample = unary_tables(lambda q: operation.repeat({name: q}), tensor.q_scale(), tensor.q_zero_point())
    if (sample.q_scale(), sample.q_zero_point()) != (operation.result.q_scale(), operation.result.q_zero_point()):
        raise operation.unsupported(None, "the scale of its result depends on its input")
    alike = np.array_equal(body, tail)
    tables = body[None, :] if alike else np.stack([body, tail])
    row = np.zeros(x.shape, dtype=np.int64) if alike else _tail(operation, tensor).astype(np.int64)
    source = _source(operation, name, tensor, tables, row)
    x = lowering.builder.rearrange(f"{operation.name}/order", (x,), source)
    quantization = quantization_of(operation, operation.result)
    return lowering.builder.unary(operation.name, x, tables, LOW, HIGH, quantization, None if alike else row)


def _function(_: Lowering, operation: Operation) -> Value:
    """An element-wise float operator of numbers known through the same codes, and of single constants: read off itself."""
    tables: dict[str, Real] = {}
    for key, value in operation.arguments.items():
        if isinstance(value, Traced):
            if not isinstance(value.value, Real):
                raise operation.unsupported(None, "it computes in float; a quantized operator is needed")
            tables[key] = value.value
        elif isinstance(value, torch.Tensor) and value.numel() != 1:
            raise operation.unsupported(key, f"a constant of shape {tuple(value.shape)}; one number is needed, or quantize it")
    codes = next(iter(tables.values())).codes
    if any((real.codes.node, real.codes.shape) != (codes.node, codes.shape) for real in tables.values()):
        raise operation.unsupported(None, "it computes in float, of several tensors; a quantized operator is needed")
    found = probed(
        lambda chosen: operation.repeat({key: torch.from_numpy(real.values[chosen]) for key, real in tables.items()}).numpy(),
        HIGH - LOW + 1,
    )
    if found is None:
        raise operation.unsupported(None, "some code gives NaN or infinity")
    return Real(codes, found[0]) if np.array_equal(*found) else Spread(codes, *found)


def _batch_normalization(relu: bool, lowering: Lowering, operation: Operation) -> Value:
    """Codes channel by channel, read off the operator itself: on all codes, at two places of the image each."""
    x, tensor = codes_of(operation, operation.arguments["qx"])
    channels = image_shape(operation, x)[0]
    layout = torch.channels_last if is_channels_last(tensor) else torch.contiguous_format
    tables: list[IntegerArray] = []
    for codes in (np.arange(256), np.arange(256)[::-1].copy()):
        plane = torch.from_numpy(codes.astype(np.uint8)).reshape(1, 1, 16, 16).repeat(1, channels, 1, 1)
        sample = torch.ops.aten._make_per_tensor_quantized_tensor(plane, tensor.q_scale(), tensor.q_zero_point())
        result = operation.repeat({"qx": sample.contiguous(memory_format=layout)})
        tables.append(result.int_repr().reshape(channels, 256).numpy().astype(np.int64)[:, codes])
    if not np.array_equal(tables[0], tables[1]):
        raise operation.unsupported(None, "how it rounds depends on the position in the image")
    _, zero_point = scale_of(operation, operation.result)
    low = max(LOW, zero_point) if relu else LOW
    return lowering.builder.unary(operation.name, x, tables[0], low, HIGH, quantization_of(operation, operation.result))


def _source(operation: Operation, name: str, tensor: torch.Tensor, tables: IntegerArray, row: IntegerArray) -> IntegerArray:
    """Which element of the operand each element of the result comes from, found by running the operator on random codes.

    Some kernels of qnnpack keep the order in memory but not the memory layout, which moves elements.
    """
    codes, sample = random_sample(tensor)
    layout = memory_positions(sample)
    result = operation.repeat({name: sample})
    found = result.int_repr()[0].numpy()
    if np.array_equal(tables[row, codes], found):
        return np.arange(codes.size).reshape(codes.shape)
    after = memory_positions(result)
    if layout is not None and after is not None and len(tables) == 1:
        source = np.argsort(layout, axis=None)[after]
        if np.array_equal(tables[0, codes.reshape(-1)[source]], found):
            return source
    raise operation.unsupported(None, "it is not element-wise for a tensor that lies in memory like this one")


def _tail(operation: Operation, *operands: torch.Tensor) -> NDArray[np.bool_]:
    """Which elements the kernel takes one at a time, of the shape without batch; bool."""
    tensors = (*operands, operation.result)
    positions = [memory_positions(tensor) for tensor in tensors]
    first, size = positions[0], tensors[0].numel()
    if first is None or any(other is None or not np.array_equal(first, other) for other in positions[1:]):
        raise operation.unsupported(
            None, "its rounding depends on where elements lie in memory, and its operands are laid out differently"
        )
    if size > GRAIN:
        raise operation.unsupported(None, f"its rounding depends on the number of threads for more than {GRAIN} elements")
    return first >= size // BODY * BODY


def _addition(relu: bool, lowering: Lowering, operation: Operation) -> Value:
    (a, a_tensor), (b, b_tensor) = (codes_of(operation, operation.arguments[key]) for key in ("qa", "qb"))
    shape = shape_of(operation, operation.result)
    broadcast = not a.shape == b.shape == shape
    if broadcast and lowering.engine is Engine.QNNPACK:
        raise operation.unsupported(None, f"qnnpack does not broadcast {a.shape} and {b.shape}; expand them first")
    a, b = (lowering.builder.broadcast(f"{operation.name}/wide_{side}", x, shape) for side, x in (("a", a), ("b", b)))
    parameters = [scale_of(operation, tensor) for tensor in (a_tensor, b_tensor, operation.result)]
    scales = (parameters[0][0], parameters[1][0], parameters[2][0])
    zero_points = (parameters[0][1], parameters[1][1], parameters[2][1])
    quantization = quantization_of(operation, operation.result)
    low = max(LOW, zero_points[2]) if relu else LOW
    codes = np.arange(LOW, HIGH + 1)

    def sum_of(name: str, x: Codes, y: Codes, rule: Addition) -> Codes:
        return lowering.builder.combine(name, x, y, rule, rule.terms(codes, codes), low, HIGH, quantization)

    if lowering.engine is Engine.QNNPACK:
        return sum_of(operation.name, a, b, QnnpackAddition(scales, zero_points, relu))
    body, tail = (NativeAddition(scales, zero_points, relu, tail=tail) for tail in (False, True))
    images = [np.clip(rule(codes[:, None], codes[None, :]), low, HIGH) for rule in (body, tail)]
    if np.array_equal(images[0], images[1]):
        return sum_of(operation.name, a, b, body)
    if broadcast:
        raise operation.unsupported(None, "its rounding depends on where elements lie; expand its operands first")
    in_tail = _tail(operation, a_tensor, b_tensor).reshape(-1)
    parts: list[Codes] = []
    for name, rule, chosen in (("body", body, np.flatnonzero(~in_tail)), ("tail", tail, np.flatnonzero(in_tail))):
        if chosen.size:
            full = f"{operation.name}/{name}"
            x, y = (lowering.builder.rearrange(f"{full}/{side}", (z,), chosen) for side, z in (("a", a), ("b", b)))
            parts.append(sum_of(full, x, y, rule))
    order = np.argsort(np.argsort(in_tail, kind="stable"), kind="stable")
    return lowering.builder.rearrange(f"{operation.name}/joined", parts, order.reshape(a.shape))


def _multiplication(relu: bool, lowering: Lowering, operation: Operation) -> Value:
    (a, a_tensor), (b, b_tensor) = (codes_of(operation, operation.arguments[key]) for key in ("qa", "qb"))
    shape = shape_of(operation, operation.result)
    parameters = [scale_of(operation, tensor) for tensor in (a_tensor, b_tensor, operation.result)]
    scale, zero_point = parameters[2]
    a, b = (lowering.builder.broadcast(f"{operation.name}/{side}", x, shape) for side, x in (("a", a), ("b", b)))
    function = product(parameters[0][0], parameters[1][0], scale, zero_point)
    between = float(parameters[0][0]) * float(parameters[1][0])
    if not (is_normal(between / 2) and is_normal(between / 2 / float(scale)) and between / float(scale) < 1 << 12):
        raise operation.unsupported("scale", "a quotient of its scales is too large or too small for the kernel's float32")
    low = max(LOW, zero_point) if relu else LOW
    requantize = Requantize(function, 1, low, HIGH, quantization_of(operation, operation.result))
    return lowering.builder.product(operation.name, a, b, (parameters[0][1], parameters[1][1]), requantize)


def _cat(lowering: Lowering, operation: Operation) -> Value:
    operands = operation.arguments[next(key for key in ("qx", "tensors") if key in operation.arguments)]
    pairs = [codes_of(operation, operand) for operand in operands]
    scale, zero_point = scale_of(operation, operation.result)
    rank = operation.result.ndim
    axis = int(operation.arguments["dim"]) % rank
    if axis == 0:
        raise operation.unsupported("dim", "it joins along the batch axis")
    channels_last = axis == 1 and all(is_channels_last(tensor) for _, tensor in pairs)
    quantization = quantization_of(operation, operation.result)
    parts: list[Codes] = []
    for position, (codes, tensor) in enumerate(pairs):
        same = (tensor.q_scale(), tensor.q_zero_point()) == (operation.result.q_scale(), operation.result.q_zero_point())
        table = _cat_table(operation, scale_of(operation, tensor), (scale, zero_point), channels_last and not same)
        parts.append(lowering.builder.unary(f"{operation.name}/{position}", codes, table[None, :], LOW, HIGH, quantization))
    return lowering.builder.concatenate(operation.name, parts, axis - 1)


def _cat_table(
    operation: Operation, source: tuple[np.float32, int], target: tuple[np.float32, int], channels_last: bool
) -> IntegerArray:
    """What concatenation makes of each code of one operand: codes go through float32."""
    codes, plain = np.arange(LOW, HIGH + 1), dequantize(np.arange(LOW, HIGH + 1), *source)
    table = np.clip(quantize(plain, *target), LOW, HIGH)
    if channels_last:
        inverses = (np.float32(1) / target[0], np.float32(1 / operation.result.q_scale()))
        rivals = [quantize_after(dequantize_in_vectors(codes, *source), inverse, target[1]) for inverse in inverses]
        rivals.append(quantize_inside(plain, inverses[0], target[1]))
        if not all(np.array_equal(np.clip(rival, LOW, HIGH), table) for rival in rivals):
            raise operation.unsupported(None, "how it rounds depends on the channel for these scales; use other scales")
    return table


def _decided(operation: Operation) -> Real:
    """The scores that a final operator reads: numbers of one tensor that grow strictly with its codes, over all outputs."""
    source = operation.arguments["self"]
    if not isinstance(source, Traced) or not isinstance(source.value, Real):
        raise operation.unsupported(None, "it does not read one dequantized tensor")
    codes, values = source.value.codes, source.value.values
    axis = -1 if operation.arguments["dim"] is None else int(operation.arguments["dim"]) % source.tensor.ndim
    if axis <= 0 or codes.shape[axis - 1] != np.prod(codes.shape) or operation.arguments.get("dtype") is not None:
        raise operation.unsupported("dim", f"it must run over all outputs in float32, not over one axis of {codes.shape}")
    if np.any(np.diff(values) <= 0):
        raise operation.unsupported(None, "different codes stand for the same number before it")
    return source.value


def _softmax(softmax: Callable[[torch.Tensor, int], torch.Tensor], _: Lowering, operation: Operation) -> Value:
    """A float softmax at the end, or its logarithm: dropped after a proof that it keeps order and ties."""
    scores = _decided(operation)
    classes = int(np.prod(scores.codes.shape))
    obstacle = softmax_obstacle(scores.values, classes, partial(softmax_keeps_ties, softmax))
    if obstacle is not None:
        raise operation.unsupported(None, obstacle)
    return Decision(scores.codes, "softmax")


Lower = Callable[[Lowering, Operation], Any]


def _of_two(rule: Lower) -> Lower:
    """A rule for two tensors; with a number in place of the second one the operator maps single codes."""
    return lambda lowering, operation: (rule if "qb" in operation.arguments else _unary)(lowering, operation)


_MOVES = (
    "alias", "channel_shuffle", "chunk", "clone", "contiguous", "detach", "dropout", "expand", "feature_dropout", "flatten",
    "flip", "narrow", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat", "reshape", "roll", "select", "slice", "split",
    "split_with_sizes", "squeeze", "transpose", "unflatten", "unsqueeze", "upsample_nearest1d", "upsample_nearest2d", "view",
)  # fmt: skip
_UNARY = (
    "aten::clamp", "aten::elu", "aten::hardsigmoid", "aten::hardswish", "aten::hardtanh", "aten::hardtanh_", "aten::leaky_relu",
    "aten::relu", "aten::relu6", "aten::relu6_", "aten::relu_", "aten::sigmoid", "aten::tanh", "quantized::elu",
    "quantized::hardswish", "quantized::leaky_relu", "quantized::relu6", "quantized::sigmoid",
)  # fmt: skip
_FUNCTIONS = (
    "abs", "add", "celu", "div", "exp", "gelu", "log_sigmoid", "mish", "mul", "neg", "rsub", "selu", "silu", "softplus", "sub",
    "threshold",
)  # fmt: skip
OPERATORS: dict[str, Lower] = {
    "aten::quantize_per_tensor": _quantize,
    "aten::dequantize": _dequantize,
    **{f"aten::{name}": _move for name in _MOVES},
    **dict.fromkeys(_UNARY, _unary),
    **{f"aten::{name}{suffix}": _function for name in _FUNCTIONS for suffix in ("", "_")},
    "quantized::add": _of_two(partial(_addition, False)),
    "quantized::add_relu": _of_two(partial(_addition, True)),
    "quantized::mul": _of_two(partial(_multiplication, False)),
    "quantized::mul_relu": _of_two(partial(_multiplication, True)),
    "quantized::prelu": partial(_batch_normalization, False),
    "aten::softmax": partial(_softmax, torch.softmax),
    "aten::log_softmax": partial(_softmax, torch.log_softmax),
    "aten::argmax": lambda _, operation: Decision(_decided(operation).codes, "argmax"),
    "quantized::batch_norm2d": partial(_batch_normalization, False),
    "quantized::batch_norm2d_relu": partial(_batch_normalization, True),
    "quantized::cat": _cat,
    "aten::cat": _cat,
    **LINEAR,
    **POOLS,
}
"""The lowering of each operator; a list of values for an operator with several results."""
