"""How each float operator of PyTorch becomes nodes of a real network; ends in the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod

import numpy as np

from qertify.importers.float_lowering import RealBuilder, averaged_elements
from qertify.importers.moving import Codes
from qertify.importers.pt2_context import MOVES, RESHAPING, Move, Operands, lifted, padded, pool_window, window_of
from qertify.importers.pt2_file import Call, Reference
from qertify.network.nodes import Window
from qertify.network.tensor import FloatArray


@dataclass(frozen=True, slots=True)
class Lowering(Operands):
    """One import in progress.

    Attributes:
        values: of the tensors that depend on the input.
        decisions: "softmax" or "argmax" for tensors that such a final operator made of their value.
    """

    builder: RealBuilder = field(default_factory=RealBuilder)
    values: dict[str, Codes] = field(default_factory=dict[str, Codes])
    decisions: dict[str, str] = field(default_factory=dict[str, str])

    def real(self, call: Call, name: str) -> Codes:
        """An argument that depends on the input."""
        value = call.arguments.get(name)
        if not isinstance(value, Reference) or value.name not in self.values:
            raise call.unsupported(name, "a tensor that depends on the input is needed")
        if value.name in self.decisions:
            raise call.unsupported(name, "nothing may follow the final softmax or argmax")
        return self.values[value.name]


def _linear(lowering: Lowering, call: Call) -> Codes:
    weight = lowering.numbers(call, "weight")
    bias = lowering.numbers(call, "bias", 0.0, weight.shape[:1])
    return lowering.builder.dense(call.name, lowering.real(call, "input"), weight, bias)


def _matmul(lowering: Lowering, call: Call, operands: tuple[str, str]) -> Codes:
    """x times a constant matrix; addmm adds its ``self``."""
    weight = lowering.numbers(call, operands[1])
    if weight.ndim != 2 or any(call.arguments.get(name, 1) != 1 for name in ("alpha", "beta")):
        raise call.unsupported(operands[1], f"a matrix is needed, not {weight.shape}, and neither alpha nor beta")
    bias = lowering.numbers(call, "self") if operands[0] != "self" else np.zeros(1)
    return lowering.builder.dense(
        call.name, lowering.real(call, operands[0]), weight.T, np.broadcast_to(bias, weight.shape[1:])
    )


def _on_image(lowering: Lowering, call: Call, x: Codes, axes: int, function: Callable[[Codes], Codes]) -> Codes:
    """Apply a map of images to a tensor with one or two spatial axes."""
    if len(x.shape) != axes + 1:
        raise call.unsupported(None, f"is applied to {x.shape}; channels and {axes} spatial axes are needed")
    if axes == 2:
        return function(x)
    result = function(lowering.builder.reshape(f"{call.name}/image", x, (x.shape[0], 1, x.shape[1])))
    return lowering.builder.reshape(f"{call.name}/signal", result, (result.shape[0], result.shape[2]))


def _convolution(lowering: Lowering, call: Call, axes: int) -> Codes:
    weight = lowering.numbers(call, "weight")
    if weight.ndim != axes + 2 or isinstance(call.arguments.get("padding"), str):
        raise call.unsupported("padding", f"weight {weight.shape} and padding as numbers are needed")
    kernel = (1, weight.shape[2]) if axes == 1 else (weight.shape[2], weight.shape[3])
    window, groups = window_of(call, axes, kernel), call.arguments.get("groups", 1)
    bias = lowering.numbers(call, "bias", 0.0, weight.shape[:1])
    lifted = weight.reshape(*weight.shape[:2], *kernel)
    build = lowering.builder.convolution
    return _on_image(
        lowering, call, lowering.real(call, "input"), axes, lambda image: build(call.name, image, lifted, bias, window, groups)
    )


def _pool(lowering: Lowering, call: Call, axes: int, average: bool) -> Codes:
    def pool(image: Codes) -> Codes:
        window = pool_window(call, axes, image.shape, lowering.result_shape(call))
        if not average:
            return lowering.builder.max_pool(call.name, image, window)
        divisor = call.arguments.get("divisor_override")
        count = averaged_elements(image.shape, window, bool(call.arguments.get("count_include_pad", True)))
        elements = count if divisor is None else np.full((1, 1, 1), int(divisor), dtype=np.int64)
        return lowering.builder.average(call.name, image, window, elements)

    name = "self" if "self" in call.arguments else "input"
    return _on_image(lowering, call, lowering.real(call, name), axes, pool)


def _adaptive(lowering: Lowering, call: Call, axes: int) -> Codes:
    sizes = lifted(call, axes, "output_size", (), 1)

    def pool(image: Codes) -> Codes:
        height, width = image.shape[1:]
        if min(sizes) < 1 or height % sizes[0] or width % sizes[1]:
            raise call.unsupported("output_size", f"{list(sizes)} does not divide the input {image.shape[1:]}")
        kernel = (height // sizes[0], width // sizes[1])
        window = Window(kernel, kernel)
        return lowering.builder.average(call.name, image, window, averaged_elements(image.shape, window, True))

    return _on_image(lowering, call, lowering.real(call, "self"), axes, pool)


def _mean(lowering: Lowering, call: Call) -> Codes:
    """The mean over all spatial axes of an image."""
    x = lowering.real(call, "self")
    rank = len(x.shape) + 1
    axes = sorted(axis % rank for axis in call.arguments.get("dim") or [])
    if len(x.shape) != 3 or axes != [2, 3] or call.arguments.get("dtype") is not None:
        raise call.unsupported("dim", f"{axes} of {x.shape}; only the mean over both spatial axes of an image is supported")
    window = Window((x.shape[1], x.shape[2]))
    pooled = lowering.builder.average(f"{call.name}/mean", x, window, averaged_elements(x.shape, window, True))
    return lowering.builder.reshape(call.name, pooled, lowering.result_shape(call))


def _batch_norm(lowering: Lowering, call: Call) -> Codes:
    if call.arguments.get("training"):
        raise call.unsupported("training", "only the inference form is supported; call eval() first")
    x = lowering.real(call, "input")
    size = x.shape[:1]
    mean, variance = lowering.numbers(call, "running_mean"), lowering.numbers(call, "running_var")
    gamma, beta = lowering.numbers(call, "weight", 1.0, size), lowering.numbers(call, "bias", 0.0, size)
    return lowering.builder.normalize(call.name, x, gamma, beta, mean, variance, float(call.arguments.get("eps", 1e-5)))


def _clamp(lowering: Lowering, call: Call, names: tuple[str, str], bounds: tuple[float, float]) -> Codes:
    given = [call.arguments.get(name) for name in names]
    low, high = (default if value is None else value for value, default in zip(given, bounds, strict=True))
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        raise call.unsupported(names[0], "bounds as numbers are needed")
    return lowering.builder.clip(call.name, lowering.real(call, "self"), _float32(low), _float32(high))


def _leaky_relu(lowering: Lowering, call: Call) -> Codes:
    x = lowering.real(call, "self")
    if "weight" not in call.arguments:
        slope = np.array(_float32(float(call.arguments.get("negative_slope", 0.01))))
    else:  # one slope, or one a channel
        slope = lowering.numbers(call, "weight").reshape((-1,) + (1,) * (len(x.shape) - 1))
    return lowering.builder.leaky_relu(call.name, x, slope)


def _float32(value: float) -> float:
    """A number of the module's source as the float32 that its kernels compute with."""
    return float(np.float32(value))


def _reshaped(lowering: Lowering, call: Call) -> Codes:
    """Any operator that keeps the order of the elements, of a tensor that depends on the input."""
    if call.arguments.get("train"):
        raise call.unsupported("train", "only the inference form of dropout is supported; call eval() first")
    x = lowering.real(call, "self" if "self" in call.arguments else "input")
    return lowering.builder.reshape(call.name, x, lowering.result_shape(call))


def _moved(lowering: Lowering, call: Call, move: Move) -> Codes:
    """An operator that moves elements: it is applied to their indices, batch axis included."""
    x = lowering.real(call, "self")
    indices = np.arange(prod(x.shape)).reshape(1, *x.shape)
    moved = move(indices, call)
    if moved.shape[:1] != (1,) or moved.shape[1:] != lowering.result_shape(call):
        raise call.unsupported(None, f"gives the shape {moved.shape}, which moves the batch axis")
    return lowering.builder.rearrange(call.name, (x,), moved[0])


def _cat(lowering: Lowering, call: Call) -> Codes:
    tensors = call.arguments.get("tensors") or []
    parts = [lowering.values.get(item.name) if isinstance(item, Reference) else None for item in tensors]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or not known or any(item.name in lowering.decisions for item in tensors):
        raise call.unsupported("tensors", "tensors that depend on the input are needed")
    axis = call.arguments.get("dim", 0) % (len(known[0].shape) + 1)
    if axis == 0:
        raise call.unsupported("dim", "joins along the batch axis")
    return lowering.builder.concatenate(call.name, known, axis - 1)


def _operands(lowering: Lowering, call: Call) -> tuple[Codes, FloatArray | Codes, bool]:
    """The computed operand, the other one (constant, lifted to the result's axes, or computed), and whether it is first."""
    shape, builder = lowering.result_shape(call), lowering.builder
    if call.arguments.get("alpha", 1) != 1 or call.arguments.get("rounding_mode") is not None:
        raise call.unsupported("alpha", "alpha and rounding modes are not supported")
    fixed = next((name for name in ("self", "other") if lowering.constant(call, name) is not None), None)
    if fixed is None:
        a, b = lowering.real(call, "self"), lowering.real(call, "other")
        return builder.broadcast(f"{call.name}/a", a, shape), builder.broadcast(f"{call.name}/b", b, shape), False
    values = lowering.numbers(call, fixed)
    if values.ndim == 0:
        values = np.array(_float32(float(values)))
    if values.ndim > len(shape) + 1 or (values.ndim == len(shape) + 1 and values.shape[0] != 1):
        raise call.unsupported(fixed, f"constant of shape {values.shape} on {shape} moves the batch axis")
    lifted = values.reshape((1,) * (len(shape) + 1 - values.ndim) + values.shape)[0]
    x = lowering.real(call, "other" if fixed == "self" else "self")
    return builder.broadcast(f"{call.name}/broadcast", x, shape), lifted, fixed == "self"


def _sum(lowering: Lowering, call: Call, sign: float, reverse: bool = False) -> Codes:
    """self + sign · other, or other + sign · self."""
    builder = lowering.builder
    a, b, constant_first = _operands(lowering, call)
    if not isinstance(b, Codes):
        if constant_first != reverse:
            return builder.scale(call.name, a, sign, b)
        return builder.scale(call.name, a, 1.0, sign * b)
    first, second = (b, a) if reverse else (a, b)
    return builder.add(call.name, [first, second if sign > 0 else builder.scale(f"{call.name}/negative", second, -1.0, 0.0)])


def _product(lowering: Lowering, call: Call, divide: bool) -> Codes:
    x, constant, constant_first = _operands(lowering, call)
    if isinstance(constant, Codes) or (divide and constant_first):
        raise call.unsupported(None, "the product or quotient of computed tensors is not linear")
    return lowering.builder.divide(call.name, x, constant) if divide else lowering.builder.scale(call.name, x, constant, 0.0)


def _decision(lowering: Lowering, call: Call, kind: str) -> Codes:
    """A final softmax or argmax over all outputs: dropped, since in real arithmetic it keeps order and ties."""
    x = lowering.real(call, "self")
    axis = call.arguments.get("dim")
    if axis is None or x.shape[axis % (len(x.shape) + 1) - 1] != prod(x.shape):
        raise call.unsupported("dim", f"must run over all outputs, not one axis of {x.shape}")
    lowering.decisions[call.outputs[0]] = kind
    return x


Rule = Callable[[Lowering, Call], Codes]
_WINDOWED: dict[str, Rule] = {
    f"aten.{name}{axes}d": partial(rule, axes=axes, **options)
    for axes in (1, 2)
    for name, rule, options in (
        ("conv", _convolution, {}),
        ("max_pool", _pool, {"average": False}),
        ("avg_pool", _pool, {"average": True}),
        ("adaptive_avg_pool", _adaptive, {}),
    )
}
OPERATORS: dict[str, Rule] = {
    **dict.fromkeys(RESHAPING, _reshaped),
    **{op: partial(_moved, move=move) for op, move in MOVES.items()},
    **_WINDOWED,
    "aten.linear": _linear,
    "aten.mm": partial(_matmul, operands=("self", "mat2")),
    "aten.matmul": partial(_matmul, operands=("self", "other")),
    "aten.addmm": partial(_matmul, operands=("mat1", "mat2")),
    "aten.batch_norm": _batch_norm,
    "aten.mean": _mean,
    "aten.relu": lambda lowering, call: lowering.builder.relu(call.name, lowering.real(call, "self")),
    "aten.relu_": lambda lowering, call: lowering.builder.relu(call.name, lowering.real(call, "self")),
    "aten.leaky_relu": _leaky_relu,
    "aten.leaky_relu_": _leaky_relu,
    "aten.prelu": _leaky_relu,
    "aten.relu6": partial(_clamp, names=("", ""), bounds=(0.0, 6.0)),
    "aten.hardtanh": partial(_clamp, names=("min_val", "max_val"), bounds=(-1.0, 1.0)),
    "aten.hardtanh_": partial(_clamp, names=("min_val", "max_val"), bounds=(-1.0, 1.0)),
    "aten.clamp": partial(_clamp, names=("min", "max"), bounds=(-np.inf, np.inf)),
    "aten.clamp_min": partial(_clamp, names=("min", ""), bounds=(-np.inf, np.inf)),
    "aten.constant_pad_nd": partial(_moved, move=padded),
    "aten.pad": partial(_moved, move=padded),
    "aten.cat": _cat,
    "aten.add": partial(_sum, sign=1.0),
    "aten.add_": partial(_sum, sign=1.0),
    "aten.sub": partial(_sum, sign=-1.0),
    "aten.rsub": partial(_sum, sign=-1.0, reverse=True),
    "aten.mul": partial(_product, divide=False),
    "aten.div": partial(_product, divide=True),
    "aten.neg": lambda lowering, call: lowering.builder.scale(call.name, lowering.real(call, "self"), -1.0, 0.0),
    "aten.softmax": partial(_decision, kind="softmax"),
    "aten.log_softmax": partial(_decision, kind="softmax"),
    "aten.argmax": partial(_decision, kind="argmax"),
}
"""The lowering of each float operator, all overloads alike."""
