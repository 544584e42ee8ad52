"""A builder of integer networks, shared by all importers of quantized files; knows no file format and no runtime.

An importer hands over what an operator does (integer weights, and its requantization as a function on accumulators, taken
from the runtime's own arithmetic); the builder makes nodes of it and keeps scale and zero point of every tensor.
Shapes never include the batch axis; images are (channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import frexp, prod

import numpy as np
from numpy.typing import ArrayLike

from qertify.errors import InvalidNetworkError, UnsupportedModelError
from qertify.importers.moving import Codes, Mover, Shape
from qertify.network.network import Network
from qertify.network.nodes import (
    Add,
    Convolution,
    Dense,
    Input,
    Node,
    PoolSum,
    Product,
    Staircase,
    Table,
    Window,
    per_channel_rows,
)
from qertify.network.staircase import Steps, steps_from_function
from qertify.network.tensor import FloatArray, IntegerArray, QuantizationParameters, as_integers

FINEST_GRID = 48
"""Finest grid, in bits after the binary point, that `Builder.combine` tries."""
SUM_BITS = 60
"""Width that every integer sum of `Builder.combine` must fit."""


@dataclass(frozen=True, slots=True)
class Requantize:
    """From accumulators to codes.

    Attributes:
        function: non-decreasing, int64 accumulators of shape (rows, n) → integers of that shape, row by row; clamped later.
        rows: 1 for the whole tensor, or one a channel of the first axis.
        low, high: the clamp: range of the type, narrowed by a fused activation.
        quantization: of the result.
        row: broadcastable to the result: which row serves which element; None for one row, or one a channel.
    """

    function: Callable[[IntegerArray], IntegerArray]
    rows: int
    low: int
    high: int
    quantization: QuantizationParameters | None = None
    row: IntegerArray | None = None


class Builder(Mover[Node]):
    """Makes nodes of integer networks; a method that makes several appends "/accumulator", "/requantize" and the like.

    Attributes:
        enclosed: names of the operators whose results are only enclosed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enclosed: list[str] = []

    def input(self, name: str, shape: Shape, low: int, high: int, quantization: QuantizationParameters) -> Codes:
        """The network's input."""
        return self._add(Input(name, shape, low, high), shape, low, high, quantization)

    # Linear nodes, each with its requantization; without one they give their accumulator.

    def dense(
        self,
        name: str,
        x: Codes,
        weight: ArrayLike,
        bias: ArrayLike,
        zero_point: int,
        requantize: Requantize | None,
        accumulator_bits: int = 32,
    ) -> Codes:
        """weight · (x − zero_point) + bias over the last axis of x; weight (out, in), bias (out,)."""
        weight, bias = as_integers(weight, name), as_integers(bias, name)
        if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:] or bias.shape != weight.shape[:1]:
            raise InvalidNetworkError(name, f"weight {weight.shape} and bias {bias.shape} do not fit the input {x.shape}")
        if len(x.shape) == 1:
            node = Dense(f"{name}/accumulator", (x.node,), weight, bias, zero_point, accumulator_bits)
            return self.requantize(name, self._accumulator(node, weight.shape[:1]), requantize)
        return self.on_last_axis(
            name,
            x,
            lambda image: self.convolution(
                name, image, weight[:, :, None, None], bias, Window((1, 1)), zero_point, 1, requantize, accumulator_bits
            ),
        )

    def convolution(
        self,
        name: str,
        x: Codes,
        weight: ArrayLike,
        bias: ArrayLike,
        window: Window,
        zero_point: int,
        groups: int,
        requantize: Requantize | None,
        accumulator_bits: int = 32,
    ) -> Codes:
        """Cross-correlation of (x − zero_point), zero padded; x (channels, height, width), weight as in `Convolution`."""
        weight, bias = as_integers(weight, name), as_integers(bias, name)
        node = Convolution(f"{name}/accumulator", (x.node,), weight, bias, window, zero_point, groups, accumulator_bits)
        return self.requantize(name, self._accumulator(node, self._windowed(name, x, window, weight.shape[0])), requantize)

    def pool_sum(self, name: str, x: Codes, window: Window, zero_point: int, requantize: Requantize | None) -> Codes:
        """The sum of (x − zero_point) over each window, zero padded, requantized: average pooling."""
        node = PoolSum(f"{name}/accumulator", (x.node,), window, zero_point)
        return self.requantize(name, self._accumulator(node, self._windowed(name, x, window, x.shape[0])), requantize)

    def product(self, name: str, a: Codes, b: Codes, zero_points: tuple[int, int], requantize: Requantize | None) -> Codes:
        """(a − zero_points[0]) · (b − zero_points[1]), requantized; a and b of one shape."""
        node = Product(f"{name}/accumulator", (a.node, b.node), zero_points)
        return self.requantize(name, self._accumulator(node, a.shape), requantize)

    def _accumulator(self, node: Node, shape: Shape) -> Codes:
        return self._add(node, shape, -(1 << 31), (1 << 31) - 1)

    def requantize(self, name: str, z: Codes, requantize: Requantize | None) -> Codes:
        """The staircase of an accumulator; thresholds by bisection on the function, one row a distinct staircase."""
        if requantize is None:
            return z
        r = requantize
        steps = steps_from_function(r.function, r.rows, r.low, r.high)
        row = per_channel_rows(r.rows, z.shape) if r.row is None else as_integers(r.row, name)
        node = Staircase(f"{name}/requantize", (z.node,), steps, row)
        return self._add(node, z.shape, r.low, r.high, r.quantization)

    def enclose(self, name: str, z: Codes, lower: Requantize, upper: Requantize, limit: int) -> Codes:
        """A staircase between two requantizations, lower ≤ upper, of accumulators within ±limit; exact where they agree."""
        steps, above = (steps_from_function(r.function, r.rows, r.low, r.high, limit) for r in (lower, upper))
        row = per_channel_rows(lower.rows, z.shape) if lower.row is None else as_integers(lower.row, name)
        exact = np.array_equal(steps.thresholds, above.thresholds)
        if not exact:
            self.enclosed.append(name)
        node = Staircase(f"{name}/requantize", (z.node,), steps, row, None if exact else above)
        return self._add(node, z.shape, lower.low, lower.high, lower.quantization)

    def weighted_sum(self, name: str, a: Codes, b: Codes, factors: IntegerArray) -> Codes:
        """factors[c, 0] · a + factors[c, 1] · b, channel c of the first axis, or with one row for all channels."""
        channels, size = len(factors), prod(a.shape) // len(factors)
        pair = np.arange(2 * prod(a.shape)).reshape(2, channels, 1, size).swapaxes(0, 1)
        stacked = self.rearrange(f"{name}/operands", (a, b), pair.reshape(2 * channels, 1, size))
        weight, bias = as_integers(factors[:, :, None, None]), as_integers(np.zeros(channels, dtype=np.int64))
        node = Convolution(
            f"{name}/accumulator", (stacked.node,), weight, bias, Window((1, 1)), groups=channels, accumulator_bits=64
        )
        return self.reshape(f"{name}/sum", self._accumulator(node, (channels, 1, size)), a.shape)

    # Maps of one code, and of two.

    def table(self, name: str, x: Codes, values: ArrayLike) -> Codes:
        """Any integer a code: the images of x.low … x.high, shape (1, codes)."""
        values = as_integers(values, name)
        node = Table(name, (x.node,), values, x.low, per_channel_rows(1, x.shape))
        return self._add(node, x.shape, int(values.min()), int(values.max()))

    def unary(
        self,
        name: str,
        x: Codes,
        values: ArrayLike,
        low: int,
        high: int,
        quantization: QuantizationParameters | None,
        row: ArrayLike | None = None,
    ) -> Codes:
        """Any map of single codes: a staircase where it is non-decreasing, else a table.

        Args:
            values: integers in low … high, shape (rows, x.high − x.low + 1): the images of x.low … x.high.
            row: broadcastable to x.shape: which row serves which element; None for one row, or one a channel.
        """
        values = as_integers(values, name)
        if values.ndim != 2 or values.shape[1] != x.high - x.low + 1:
            raise InvalidNetworkError(name, f"images of shape {values.shape} for the codes {x.low} … {x.high}")
        rows = per_channel_rows(values.shape[0], x.shape) if row is None else as_integers(row, name)
        if np.array_equal(values, np.arange(x.low, x.high + 1)[None, :]):
            return replace(x, quantization=quantization)
        if np.any(np.diff(values, axis=1) < 0):
            return self._add(Table(name, (x.node,), values, x.low, rows), x.shape, low, high, quantization)
        levels = np.arange(low + 1, high + 1)
        thresholds = np.stack([x.low + np.searchsorted(row_values, levels) for row_values in values])
        return self._add(
            Staircase(name, (x.node,), Steps(as_integers(thresholds), low), rows), x.shape, low, high, quantization
        )

    def combine(
        self,
        name: str,
        a: Codes,
        b: Codes,
        function: Callable[[IntegerArray, IntegerArray], IntegerArray],
        terms: tuple[FloatArray, FloatArray],
        low: int,
        high: int,
        quantization: QuantizationParameters | None,
    ) -> Codes:
        """A quantized addition: function(a, b) as a staircase of an exact integer sum, verified on every pair of codes.

        ``function`` must depend on, and not decrease in, terms[0][a] + terms[1][b] (exact real numbers, dyadic). The sum is
        an affine map p·a + q·b where one grid tells all pairs apart, else a sum of two tables; then the coarsest grid that
        reproduces the function on every pair is used.

        Args:
            a, b: tensors of one shape.
            function: int64 codes → codes, broadcasts.
            terms: float64, the images of a.low … a.high and of b.low … b.high.

        Raises:
            UnsupportedModelError: codes of more than 8 bits, or no grid of `FINEST_GRID` bits reproduces the function.
        """
        if (a.high - a.low + 1) * (b.high - b.low + 1) > 1 << 16:
            raise UnsupportedModelError(name, "addition", None, "only operands of up to 8 bits can be verified pair by pair")
        codes = [np.arange(x.low, x.high + 1, dtype=np.int64) for x in (a, b)]
        image = np.clip(function(codes[0][:, None], codes[1][None, :]), low, high)
        largest = max(float(np.abs(term).max()) for term in terms)
        finest = min(FINEST_GRID, SUM_BITS - frexp(max(largest, 1.0))[1] - 8)
        slopes = [(term[-1] - term[0]) / max(1, len(term) - 1) for term in terms]
        for bits in range(10, finest):
            factors = [round(slope * 2.0**bits) for slope in slopes]
            steps = _steps_of_sum(codes[0] * factors[0], codes[1] * factors[1], image, low, high)
            if steps is not None:
                return self._weighted_sum(name, a, b, factors, steps, quantization)
        for bits in range(10, finest):
            tables = [np.rint(term * 2.0**bits).astype(np.int64) for term in terms]
            steps = _steps_of_sum(tables[0], tables[1], image, low, high)
            if steps is not None:
                parts = [
                    self.table(f"{name}/table_{side}", x, t[None, :]) for side, x, t in zip("ab", (a, b), tables, strict=True)
                ]
                total = self._add(Add(f"{name}/accumulator", tuple(p.node for p in parts)), a.shape, 0, 0)
                node = Staircase(f"{name}/requantize", (total.node,), steps, per_channel_rows(1, a.shape))
                return self._add(node, a.shape, low, high, quantization)
        raise UnsupportedModelError(name, "addition", None, f"no grid of {finest} bits reproduces it")

    def _weighted_sum(
        self, name: str, a: Codes, b: Codes, factors: Sequence[int], steps: Steps, quantization: QuantizationParameters | None
    ) -> Codes:
        """The staircase of factors[0]·a + factors[1]·b."""
        z = self.weighted_sum(name, a, b, np.array([factors], dtype=np.int64))
        node = Staircase(f"{name}/requantize", (z.node,), steps, per_channel_rows(1, z.shape))
        return self._add(node, z.shape, steps.low, steps.high, quantization)

    def build(
        self,
        output: Codes,
        input_quantization: QuantizationParameters,
        output_quantization: QuantizationParameters,
        runtime_profile: str,
        metadata: Mapping[str, str],
    ) -> Network:
        """The network that computes ``output``, without the nodes it does not read.

        Raises:
            InvalidNetworkError: a node breaks a rule of the integer network.
        """
        return Network(self._needed(output), input_quantization, output_quantization, runtime_profile, metadata)


def _steps_of_sum(a: IntegerArray, b: IntegerArray, image: IntegerArray, low: int, high: int) -> Steps | None:
    """Thresholds on a[i] + b[j] that give image[i, j] for every pair, or None if there are none.

    Args:
        a, b: int64, shapes (n,) and (m,). image: int64, shape (n, m), in low … high.
    """
    total = (a[:, None] + b[None, :]).reshape(-1)
    order = np.lexsort((image.reshape(-1), total))
    sums, values = total[order], image.reshape(-1)[order]
    rises = np.diff(values)
    if np.any(rises < 0) or np.any((np.diff(sums) == 0) & (rises != 0)):
        return None
    first = np.searchsorted(values, np.arange(low + 1, high + 1))
    beyond = np.append(sums, sums[-1] + 1)
    return Steps(as_integers(beyond[first][None, :]), low)
