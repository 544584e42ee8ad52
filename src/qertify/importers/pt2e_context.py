"""What the lowering rules of PT2E operators share: what tensors are made of, access to arguments, quantizers of constants."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qertify.importers import islands
from qertify.importers.islands import Island, Weights
from qertify.importers.lowering import Builder, Codes
from qertify.importers.pt2_context import Operands
from qertify.importers.pt2_file import Call, ElementType, Reference
from qertify.importers.reals import Real, Sum
from qertify.network.tensor import IntegerArray
from qertify.runtimes.float32 import is_normal

CODE_LIMIT = 1 << 8
"""Most codes of an activation: types of 8 bits."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Elements of the network's input before its quantizer; ``indices`` into the input, without the batch axis."""

    indices: IntegerArray


Value = Raw | Codes | Real | Sum | Island


@dataclass(frozen=True, slots=True)
class Lowering(Operands):
    """One import in progress.

    Attributes:
        values: of the tensors that depend on the input.
        weights: constants that were dequantized, by name, output channel first.
        inputs: the input's codes, once a quantizer has been met.
    """

    builder: Builder = field(default_factory=Builder)
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    weights: dict[str, Weights] = field(default_factory=dict[str, Weights])
    inputs: list[Codes] = field(default_factory=list[Codes])

    def value(self, call: Call, name: str) -> Value:
        """An argument that depends on the input."""
        found = call.arguments.get(name)
        if not isinstance(found, Reference) or found.name not in self.values:
            raise call.unsupported(name, "a tensor that depends on the input is needed")
        return self.values[found.name]

    def number(self, call: Call, name: str) -> float:
        """An argument that is a number, or a constant of one element."""
        array = self.constant(call, name)
        if array is None or array.size != 1:
            raise call.unsupported(name, "one constant number is needed")
        return array.reshape(-1)[0].item()

    def scale(self, call: Call) -> float:
        """The scale of a whole tensor, as float64."""
        scale = float(self.number(call, "scale"))
        if not (scale > 0 and all(is_normal(n) for n in (scale, 1 / scale, CODE_LIMIT * scale))):
            raise call.unsupported("scale", f"{scale} is outside the normal numbers of float32")
        return scale

    def range(self, call: Call) -> tuple[int, int]:
        """Least and greatest code of the result of a quantizer."""
        low, high = (int(self.number(call, name)) for name in ("quant_min", "quant_max"))
        kind = call.arguments.get("dtype")
        if not isinstance(kind, ElementType) or kind.name not in ("uint8", "int8"):
            raise call.unsupported("dtype", "activations of uint8 or int8 are needed")
        limits = np.iinfo(kind.name)
        if not limits.min <= low < high <= limits.max:
            raise call.unsupported("quant_min", f"{low} … {high} is no range of {kind.name}")
        return low, high


def island_of(lowering: Lowering, call: Call, value: Value, name: str = "") -> Island:
    """A computed float operand as an island; ``name`` tells several operands of one call apart."""
    prefix = f"{call.name}/{name}" if name else call.name
    match value:
        case Island():
            return value
        case Real(codes, values) if values is not None:
            return islands.from_codes(lowering.builder, f"{prefix}/real", codes, values)
        case Sum(a, b, low, high):
            parts = [linear_island(lowering, call, x, f"{name}{side}")[0] for side, x in (("a", a), ("b", b))]
            total = islands.add(lowering.builder, f"{prefix}/sum", parts[0], parts[1])
            if total is None:
                raise call.unsupported(None, "the scales of its operands are too far apart")
            return total if (low, high) == (-np.inf, np.inf) else islands.then(total, islands.clamp(low, high))
        case _:
            raise call.unsupported(None, "it computes in float, on what no quantizer and dequantizer precede")


def linear_island(lowering: Lowering, call: Call, value: Value, name: str = "") -> tuple[Island, int]:
    """A uniform, linear island, and the integer that stands for zero in it."""
    x = island_of(lowering, call, value, name)
    zero = islands.zero_point_of(x)
    if zero is None:
        return islands.regrid(lowering.builder, f"{call.name}/grid{name}", x), 0
    return x, zero


def fold_quantizer(lowering: Lowering, call: Call) -> bool:
    """Whether the call quantized or dequantized a constant."""
    op = call.op.removeprefix("quantized_decomposed.").partition(".")[0]
    constant = lowering.constant(call, "input")
    if op not in ("quantize_per_tensor", "quantize_per_channel", "dequantize_per_tensor", "dequantize_per_channel"):
        return False
    if constant is None or not constant.ndim:
        return False
    per_channel = op.endswith("channel")
    axis = int(call.arguments["axis"]) if per_channel else 0
    shape = [1] * constant.ndim
    shape[axis] = -1
    scale = lowering.constant(call, "scales") if per_channel else np.array(lowering.scale(call))
    zero_point = lowering.constant(call, "zero_points") if per_channel else np.array(int(lowering.number(call, "zero_point")))
    if scale is None or (per_channel and scale.dtype.name not in ("float32", "float64")) or not np.all(scale > 0):
        raise call.unsupported("scales", "positive constants of float32 or float64 are needed")
    zeros = np.zeros(1, dtype=np.int64) if zero_point is None else zero_point
    if zeros.dtype.kind not in "iu":
        raise call.unsupported("zero_points", f"integers are needed, not {zeros.dtype}")
    scales, zeros = scale.reshape(shape), zeros.astype(np.int64).reshape(shape)
    if op.startswith("quantize"):
        require(call, constant.dtype == np.float32, "input", f"float32 is needed, not {constant.dtype}")
        inverse = 1 / scales if per_channel else np.float32(1 / scales)
        low, high = int(lowering.number(call, "quant_min")), int(lowering.number(call, "quant_max"))
        codes = np.clip(np.rint(constant * inverse) + zeros, low, high).astype(np.int64)
        lowering.folded[call.outputs[0]] = codes
        return True
    require(call, constant.dtype.kind in "iu", "input", f"integers are needed, not {constant.dtype}")
    require(call, call.arguments.get("out_dtype") in (None, ElementType("float32")), "out_dtype", "float32 is needed")
    integers = constant.astype(np.int64) - zeros
    factor = scales if per_channel else scales.astype(np.float32)
    with np.errstate(over="ignore"):  # one rounding, in float32 or, where the scales are float64, from float64 to it
        exact = integers.astype(factor.dtype) * factor
        values = exact.astype(np.float32)
    require(
        call, bool(np.all(np.isfinite(values)) and np.all(np.abs(integers) < 1 << 24)), "input", "its numbers are too large"
    )
    lowering.folded[call.outputs[0]] = values
    if axis == 0:
        rounded = scales.reshape(-1).astype(np.float64)
        lowering.weights[call.outputs[0]] = Weights(values.astype(np.float64), integers, rounded)
    return True


def require(call: Call, condition: bool, attribute: str, reason: str) -> None:
    if not condition:
        raise call.unsupported(attribute, reason)
