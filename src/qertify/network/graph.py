"""What integer and real networks share: a graph in topological order, shapes, and a digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qertify.errors import InvalidNetworkError
from qertify.network.nodes import Add, Max, Product, Rearrange, Window
from qertify.network.staircase import Steps

Shape = tuple[int, ...]


class GraphNode(Protocol):
    """Any node of either network."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...


AnyNode = TypeVar("AnyNode", bound=GraphNode)


def require(condition: bool, node: GraphNode, reason: str) -> None:
    """Raises: InvalidNetworkError: the condition does not hold."""
    if not condition:
        raise InvalidNetworkError(node.name, reason)


def infer_shapes(
    nodes: Sequence[AnyNode], input_kind: type, output_shape: Callable[[AnyNode, list[Shape]], Shape]
) -> dict[str, Shape]:
    """The shape of every node's value, without the batch axis.

    Args:
        nodes: in topological order.
        input_kind: the kind of which there must be exactly one.
        output_shape: checks a node against its inputs' shapes, returns its own.

    Raises:
        InvalidNetworkError: names the node that breaks a rule.
    """
    shapes: dict[str, Shape] = {}
    for node in nodes:
        if node.name in shapes:
            raise InvalidNetworkError(node.name, "two nodes have this name")
        for name in node.inputs:
            if name not in shapes:
                raise InvalidNetworkError(node.name, f"reads '{name}', which no earlier node computes")
        shape = output_shape(node, [shapes[name] for name in node.inputs])
        if not shape or any(size <= 0 for size in shape):
            raise InvalidNetworkError(node.name, f"has the empty shape {shape}")
        shapes[node.name] = shape
    if sum(isinstance(node, input_kind) for node in nodes) != 1:
        raise InvalidNetworkError(None, "a network needs exactly one input node")
    read = {name for node in nodes for name in node.inputs}
    for node in nodes[:-1]:
        if node.name not in read:
            raise InvalidNetworkError(node.name, "is read by no node and is not the output")
    return shapes


def _flat_fields(node: Any) -> Iterator[tuple[str, object]]:
    yield "kind", type(node).__name__
    for item in fields(node):
        value = getattr(node, item.name)
        if isinstance(value, Window | Steps):
            for inner in fields(value):
                yield f"{item.name}.{inner.name}", getattr(value, inner.name)
        elif value is not None:
            yield item.name, value


def hash_nodes(state: Any, nodes: Sequence[GraphNode]) -> None:
    """Feed every field of every node to a hash of `hashlib`."""
    for node in nodes:
        for key, value in _flat_fields(node):
            state.update(f"|{key}=".encode())
            if isinstance(value, np.ndarray):
                little_endian = "<f8" if value.dtype.kind == "f" else "<i8"
                state.update(f"{value.shape}".encode() + value.astype(little_endian).tobytes())
            else:
                state.update(repr(value).encode())


def require_arity(node: GraphNode, inputs: list[Shape], arity: int | None) -> None:
    """``arity``: how many inputs the node reads; None for one or more."""
    if arity is None:
        require(len(inputs) >= 1, node, "needs at least one input")
    else:
        require(len(inputs) == arity, node, f"needs {arity} input(s), got {len(inputs)}")


def dense_shape(node: GraphNode, weight: NDArray[Any], bias: NDArray[Any], shape: Shape) -> Shape:
    """Of weight (out, in) and bias (out,) on ``shape``."""
    require(weight.ndim == 2, node, f"weight must have two axes, not shape {weight.shape}")
    require(shape == (weight.shape[1],), node, f"weight {weight.shape} does not fit input {shape}")
    require(bias.shape == (weight.shape[0],), node, f"bias {bias.shape} does not fit {weight.shape}")
    return (weight.shape[0],)


def windowed_shape(node: GraphNode, window: Window, shape: Shape, channels: int | None = None) -> Shape:
    """Of a window sliding over ``shape``; ``channels`` of the result, None for those of the input."""
    require(len(shape) == 3, node, f"needs an input of shape (channels, height, width), got {shape}")
    require(min(*window.kernel, *window.stride, *window.dilation) >= 1, node, "kernel, stride and dilation must be ≥ 1")
    require(min(window.padding) >= 0, node, "padding must not be negative")
    return (shape[0] if channels is None else channels, *window.output_size(shape[1], shape[2]))


def convolution_shape(
    node: GraphNode, weight: NDArray[Any], bias: NDArray[Any], window: Window, groups: int, shape: Shape
) -> Shape:
    """Of weight (out, in / groups, kh, kw) and bias (out,) on ``shape``."""
    require(weight.ndim == 4, node, f"weight must have four axes, not shape {weight.shape}")
    out, per_group, *kernel = weight.shape
    result = windowed_shape(node, window, shape, out)
    require(tuple(kernel) == window.kernel, node, f"weight {weight.shape} does not fit {window.kernel}")
    require(groups >= 1 and out % groups == 0, node, f"{out} channels in {groups} groups")
    require(per_group * groups == shape[0], node, f"weight {weight.shape} does not fit input {shape}")
    require(bias.shape == (out,), node, f"bias {bias.shape} does not fit {weight.shape}")
    return result


def shared_shape(node: Add | Product | Max | Rearrange, inputs: list[Shape]) -> Shape:
    """Of the kinds whose rule is the same on integers and on real numbers."""
    match node:
        case Add() | Product():
            require(all(shape == inputs[0] for shape in inputs), node, f"input shapes differ: {inputs}")
            return inputs[0]
        case Max():
            shape = windowed_shape(node, node.window, inputs[0])
            reach = [d * (k - 1) + 1 for k, d in zip(node.window.kernel, node.window.dilation, strict=True)]
            pads = node.window.padding
            covered = max(pads[0], pads[2]) < reach[0] and max(pads[1], pads[3]) < reach[1]
            require(covered, node, "a window that holds only padding has no maximum")
            return shape
        case Rearrange():
            total = sum(prod(shape) for shape in inputs)
            require(bool(np.all((node.indices >= -1) & (node.indices < total))), node, f"an index is outside −1 … {total - 1}")
            return node.indices.shape
