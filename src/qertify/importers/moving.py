"""Tensors in a network under construction, and the nodes that only move their elements, of integer and real networks alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Generic, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from qertify.errors import InvalidNetworkError
from qertify.network.graph import GraphNode, Shape
from qertify.network.nodes import Max, Rearrange, Window
from qertify.network.tensor import IntegerArray, QuantizationParameters, as_integers

ELEMENT_LIMIT = 1 << 24
"""Most elements of one tensor: a hostile shape must not fill the memory."""
TOTAL_LIMIT = 1 << 28
"""Most elements of all tensors together."""
AnyNode = TypeVar("AnyNode", bound=GraphNode)


@dataclass(frozen=True, slots=True)
class Codes:
    """A tensor in a network under construction: of integers, or of real numbers, which have no range and no quantization.

    Attributes:
        node: name of the node that computes it.
        shape: without the batch axis.
        low, high: range of the codes, as the type or the clamp gives it; 0 for real numbers.
        quantization: what a code means, or None where it means nothing (an accumulator).
    """

    node: str
    shape: Shape
    low: int
    high: int
    quantization: QuantizationParameters | None = None


class Mover(Generic[AnyNode]):
    """Collects nodes; every method returns the tensor that the new node computes. Names must be unique.

    ``AnyNode`` is a union that `Max` and `Rearrange` belong to.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, AnyNode] = {}
        self._shapes: dict[str, Shape] = {}
        self._elements = 0

    def _add(
        self, node: AnyNode, shape: Shape, low: int, high: int, quantization: QuantizationParameters | None = None
    ) -> Codes:
        if node.name in self._nodes:
            raise InvalidNetworkError(node.name, "two nodes have this name")
        _require_size(node.name, prod(shape))
        self._elements += prod(shape)
        if self._elements > TOTAL_LIMIT:
            raise InvalidNetworkError(node.name, f"with it the network has more than {TOTAL_LIMIT} elements")
        self._nodes[node.name], self._shapes[node.name] = node, shape
        return Codes(node.name, shape, low, high, quantization)

    def _windowed(self, name: str, x: Codes, window: Window, channels: int) -> Shape:
        if len(x.shape) != 3:
            raise InvalidNetworkError(name, f"needs an input of shape (channels, height, width), got {x.shape}")
        return (channels, *window.output_size(x.shape[1], x.shape[2]))

    def max_pool(self, name: str, x: Codes, window: Window) -> Codes:
        """The maximum over each window; padded positions don't take part."""
        shape = self._windowed(name, x, window, x.shape[0] if x.shape else 0)
        return self._add(cast("AnyNode", Max(name, (x.node,), window)), shape, x.low, x.high, x.quantization)

    # Moving elements. Codes keep their meaning, so inputs of several tensors must agree on it (the importer checks).

    def rearrange(self, name: str, inputs: Sequence[Codes], indices: ArrayLike, fill: int = 0) -> Codes:
        """Elements picked by flat index from the concatenated inputs, −1 for ``fill``; composed with earlier picks."""
        chosen, first = as_integers(indices, name), inputs[0]
        origins = [self.origin(x) for x in inputs]
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
        return self._add(cast("AnyNode", Rearrange(name, sources, chosen, fill)), chosen.shape, low, high, first.quantization)

    def origin(self, x: Codes) -> tuple[str, IntegerArray]:
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

    def on_last_axis(self, name: str, x: Codes, function: Callable[[Codes], Codes]) -> Codes:
        """Apply a map of images (channels, height, width) to x with its last axis as the channels."""
        rest, features = x.shape[:-1], x.shape[-1]
        image = self.reshape(f"{name}/columns", x, (prod(rest), features, 1))
        result = function(self.transpose(f"{name}/image", image, (1, 0, 2)))
        back = self.transpose(f"{name}/rows", result, (1, 0, 2))
        return self.reshape(f"{name}/output", back, (*rest, result.shape[0]))

    def broadcast(self, name: str, x: Codes, shape: Shape) -> Codes:
        """Repeated to ``shape`` by numpy's rule."""
        if shape == x.shape:
            return x
        _require_size(name, prod(shape))
        return self.rearrange(name, (x,), np.broadcast_to(np.arange(prod(x.shape)).reshape(x.shape), shape))

    def concatenate(self, name: str, inputs: Sequence[Codes], axis: int) -> Codes:
        """Joined along an axis."""
        _require_size(name, sum(prod(x.shape) for x in inputs))
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

    def _needed(self, output: Codes) -> tuple[AnyNode, ...]:
        """All nodes that ``output`` depends on, in order."""
        needed = {output.node}
        for name in reversed(self._nodes):
            if name in needed:
                needed.update(self._nodes[name].inputs)
        return tuple(node for name, node in self._nodes.items() if name in needed)


def _require_size(name: str, size: int) -> None:
    if size > ELEMENT_LIMIT:
        raise InvalidNetworkError(name, f"has {size} elements, more than {ELEMENT_LIMIT}")


def _is_identity(indices: IntegerArray) -> bool:
    return bool(np.array_equal(indices.reshape(-1), np.arange(indices.size)))
