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
from qertify.network.network import Network
from qertify.network.nodes import (
    Add,
    Convolution,
    Dense,
    Input,
    Max,
    Node,
    PoolSum,
    Product,
    Rearrange,
    Staircase,
    Table,
    Window,
    per_channel_rows,
)
from qertify.network.staircase import Steps, steps_from_function
from qertify.network.tensor import FloatArray, IntegerArray, QuantizationParameters, as_integers

Shape = tuple[int, ...]
ELEMENT_LIMIT = 1 << 26
"""Most elements of one tensor: a hostile shape must not fill the memory."""
FINEST_GRID = 48
"""Finest grid, in bits after the binary point, that `Builder.combine` tries."""
SUM_BITS = 60
"""Width that every integer sum of `Builder.combine` must fit."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A tensor of integers in a network under construction.

    Attributes:
        node: name of the node that computes it.
        shape: without the batch axis.
        low, high: range of the codes, as the type or the clamp gives it.
        quantization: what a code means, or None where it means nothing (an accumulator).
    """

    node: str
    shape: Shape
    low: int
    high: int
    quantization: QuantizationParameters | None = None


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


class Builder:
    """Collects nodes; every method returns the tensor that the new node computes.

    Names must be unique; a method that makes several nodes appends "/accumulator", "/requantize" and the like.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._shapes: dict[str, Shape] = {}

    def _add(self, node: Node, shape: Shape, low: int, high: int, quantization: QuantizationParameters | None = None) -> Codes:
        if node.name in self._nodes:
            raise InvalidNetworkError(node.name, "two nodes have this name")
        if prod(shape) > ELEMENT_LIMIT:
            raise InvalidNetworkError(node.name, f"has {prod(shape)} elements, more than {ELEMENT_LIMIT}")
        self._nodes[node.name], self._shapes[node.name] = node, shape
        return Codes(node.name, shape, low, high, quantization)

    def input(self, name: str, shape: Shape, low: int, high: int, quantization: QuantizationParameters) -> Codes:
        """The network's input."""
        return self._add(Input(name, shape, low, high), shape, low, high, quantization)

    # Linear nodes, each with its requantization.

    def dense(
        self,
        name: str,
        x: Codes,
        weight: ArrayLike,
        bias: ArrayLike,
        zero_point: int,
        requantize: Requantize,
        accumulator_bits: int = 32,
    ) -> Codes:
        """weight · (x − zero_point) + bias over the last axis of x; weight (out, in), bias (out,)."""
        weight, bias = as_integers(weight, name), as_integers(bias, name)
        if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:] or bias.shape != weight.shape[:1]:
            raise InvalidNetworkError(name, f"weight {weight.shape} and bias {bias.shape} do not fit the input {x.shape}")
        if len(x.shape) == 1:
            node = Dense(f"{name}/accumulator", (x.node,), weight, bias, zero_point, accumulator_bits)
            return self.requantize(name, self._accumulator(node, weight.shape[:1]), requantize)
        rest, features = x.shape[:-1], x.shape[-1]
        image = self.reshape(f"{name}/columns", x, (prod(rest), features, 1))
        image = self.transpose(f"{name}/image", image, (1, 0, 2))
        window = Window((1, 1))
        result = self.convolution(
            name, image, weight[:, :, None, None], bias, window, zero_point, 1, requantize, accumulator_bits
        )
        back = self.transpose(f"{name}/rows", result, (1, 0, 2))
        return self.reshape(f"{name}/output", back, (*rest, weight.shape[0]))

    def convolution(
        self,
        name: str,
        x: Codes,
        weight: ArrayLike,
        bias: ArrayLike,
        window: Window,
        zero_point: int,
        groups: int,
        requantize: Requantize,
        accumulator_bits: int = 32,
    ) -> Codes:
        """Cross-correlation of (x − zero_point), zero padded; x (channels, height, width), weight as in `Convolution`."""
        weight, bias = as_integers(weight, name), as_integers(bias, name)
        node = Convolution(f"{name}/accumulator", (x.node,), weight, bias, window, zero_point, groups, accumulator_bits)
        return self.requantize(name, self._accumulator(node, self._windowed(name, x, window, weight.shape[0])), requantize)

    def pool_sum(self, name: str, x: Codes, window: Window, zero_point: int, requantize: Requantize) -> Codes:
        """The sum of (x − zero_point) over each window, zero padded, requantized: average pooling."""
        node = PoolSum(f"{name}/accumulator", (x.node,), window, zero_point)
        return self.requantize(name, self._accumulator(node, self._windowed(name, x, window, x.shape[0])), requantize)

    def product(self, name: str, a: Codes, b: Codes, zero_points: tuple[int, int], requantize: Requantize) -> Codes:
        """(a − zero_points[0]) · (b − zero_points[1]), requantized; a and b of one shape."""
        node = Product(f"{name}/accumulator", (a.node, b.node), zero_points)
        return self.requantize(name, self._accumulator(node, a.shape), requantize)

    def _accumulator(self, node: Node, shape: Shape) -> Codes:
        return self._add(node, shape, -(1 << 31), (1 << 31) - 1)

    def _windowed(self, name: str, x: Codes, window: Window, channels: int) -> Shape:
        if len(x.shape) != 3:
            raise InvalidNetworkError(name, f"needs an input of shape (channels, height, width), got {x.shape}")
        return (channels, *window.output_size(x.shape[1], x.shape[2]))

    def requantize(self, name: str, z: Codes, requantize: Requantize) -> Codes:
        """The staircase of an accumulator; thresholds by bisection on the function, one row a distinct staircase."""
        r = requantize
        steps = steps_from_function(r.function, r.rows, r.low, r.high)
        row = per_channel_rows(r.rows, z.shape) if r.row is None else as_integers(r.row, name)
        node = Staircase(f"{name}/requantize", (z.node,), steps, row)
        return self._add(node, z.shape, r.low, r.high, r.quantization)

    # Maps of one code, and of two.

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
                    self._add(
                        Table(f"{name}/table_{side}", (x.node,), as_integers(t[None, :]), x.low, per_channel_rows(1, x.shape)),
                        x.shape,
                        int(t.min()),
                        int(t.max()),
                    )
                    for side, x, t in zip("ab", (a, b), tables, strict=True)
                ]
                total = self._add(Add(f"{name}/accumulator", tuple(p.node for p in parts)), a.shape, 0, 0)
                node = Staircase(f"{name}/requantize", (total.node,), steps, per_channel_rows(1, a.shape))
                return self._add(node, a.shape, low, high, quantization)
        raise UnsupportedModelError(name, "addition", None, f"no grid of {finest} bits reproduces it")

    def _weighted_sum(
        self, name: str, a: Codes, b: Codes, factors: Sequence[int], steps: Steps, quantization: QuantizationParameters | None
    ) -> Codes:
        """The staircase of factors[0]·a + factors[1]·b, as a 1 × 1 convolution over both, stacked as two channels."""
        size = prod(a.shape)
        stacked = self.rearrange(f"{name}/operands", (a, b), np.arange(2 * size).reshape(2, 1, size))
        weight = as_integers(np.array(factors, dtype=np.int64).reshape(1, 2, 1, 1))
        bias, window = as_integers(np.zeros(1, dtype=np.int64)), Window((1, 1))
        sums = Convolution(f"{name}/accumulator", (stacked.node,), weight, bias, window, accumulator_bits=64)
        z = self._accumulator(sums, (1, 1, size))
        node = Staircase(f"{name}/requantize", (z.node,), steps, per_channel_rows(1, z.shape))
        result = self._add(node, z.shape, steps.low, steps.high, quantization)
        return self.reshape(f"{name}/output", result, a.shape)

    def max_pool(self, name: str, x: Codes, window: Window) -> Codes:
        """The maximum over each window; padded positions don't take part."""
        shape = self._windowed(name, x, window, x.shape[0] if x.shape else 0)
        return self._add(Max(name, (x.node,), window), shape, x.low, x.high, x.quantization)

    # Moving elements. Codes keep their meaning, so inputs of several tensors must agree on it (the importer checks).

    def rearrange(self, name: str, inputs: Sequence[Codes], indices: ArrayLike, fill: int = 0) -> Codes:
        """Elements picked by flat index from the concatenated inputs, −1 for ``fill``; composed with earlier picks."""
        chosen, first = as_integers(indices, name), inputs[0]
        origins = [self._origin(x) for x in inputs]
        sources = tuple(node for node, _ in origins)
        if sources != tuple(x.node for x in inputs):
            starts = np.cumsum([0, *(prod(self._shapes[node]) for node in sources)])
            position = np.concatenate([start + origin for start, (_, origin) in zip(starts, origins, strict=False)])
            chosen = as_integers(np.where(chosen < 0, -1, position[chosen]))
        if len(sources) == 1 and self._shapes[sources[0]] == chosen.shape and _is_identity(chosen):
            return replace(first, node=sources[0], shape=chosen.shape)
        low, high = min(x.low for x in inputs), max(x.high for x in inputs)
        if np.any(chosen < 0):
            low, high = min(low, fill), max(high, fill)
        return self._add(Rearrange(name, sources, chosen, fill), chosen.shape, low, high, first.quantization)

    def _origin(self, x: Codes) -> tuple[str, IntegerArray]:
        """Where the elements of a tensor come from: a node, and flat indices into its value."""
        node = self._nodes[x.node]
        if isinstance(node, Rearrange) and len(node.inputs) == 1 and not np.any(node.indices < 0):
            return node.inputs[0], node.indices.reshape(-1)
        return x.node, np.arange(prod(x.shape))

    def reshape(self, name: str, x: Codes, shape: Shape) -> Codes:
        """The same elements in C order."""
        if prod(shape) != prod(x.shape):
            raise InvalidNetworkError(name, f"can't reshape {x.shape} to {shape}")
        return x if shape == x.shape else self.rearrange(name, (x,), np.arange(prod(shape)).reshape(shape))

    def transpose(self, name: str, x: Codes, axes: Sequence[int]) -> Codes:
        """Axes permuted, numpy's rule; without the batch axis."""
        return self.rearrange(name, (x,), np.arange(prod(x.shape)).reshape(x.shape).transpose(axes))

    def broadcast(self, name: str, x: Codes, shape: Shape) -> Codes:
        """Repeated to ``shape`` by numpy's rule."""
        if shape == x.shape:
            return x
        return self.rearrange(name, (x,), np.broadcast_to(np.arange(prod(x.shape)).reshape(x.shape), shape))

    def concatenate(self, name: str, inputs: Sequence[Codes], axis: int) -> Codes:
        """Joined along an axis."""
        starts = np.cumsum([0, *(prod(x.shape) for x in inputs)])
        parts = [start + np.arange(prod(x.shape)).reshape(x.shape) for start, x in zip(starts, inputs, strict=False)]
        return self.rearrange(name, inputs, np.concatenate(parts, axis=axis))

    def pad(self, name: str, x: Codes, widths: Sequence[tuple[int, int]], fill: int) -> Codes:
        """``fill`` codes before and after each axis; a negative width crops."""
        size = prod(max(0, n + before + after) for n, (before, after) in zip(x.shape, widths, strict=True))
        if not 0 < size <= ELEMENT_LIMIT:
            raise InvalidNetworkError(name, f"padding {x.shape} by {list(widths)} gives {size} elements")
        indices = np.arange(prod(x.shape)).reshape(x.shape)
        indices = np.pad(indices, [(max(0, b), max(0, a)) for b, a in widths], constant_values=-1)
        crop = tuple(slice(max(0, -b), n - max(0, -a)) for n, (b, a) in zip(indices.shape, widths, strict=True))
        return self.rearrange(name, (x,), indices[crop], fill)

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
        needed = {output.node}
        for name in reversed(self._nodes):
            if name in needed:
                needed.update(self._nodes[name].inputs)
        nodes = tuple(node for name, node in self._nodes.items() if name in needed)
        return Network(nodes, input_quantization, output_quantization, runtime_profile, metadata)


def _is_identity(indices: IntegerArray) -> bool:
    return bool(np.array_equal(indices.reshape(-1), np.arange(indices.size)))


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
