"""Inputs on which pairs of products leave 16 bits, where their absence can't be proved: found by search, judged exactly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod

import numpy as np

from qertify.network.evaluate import evaluate_nodes
from qertify.network.linear import windows
from qertify.network.network import Network
from qertify.network.nodes import Convolution, Dense
from qertify.network.tensor import IntegerArray
from qertify.runtimes.saturation import PAIR_HIGH, PAIR_LOW, stored_weight

ROUNDS, BATCH = 24, 12
"""Rounds of the search, and inputs tried in each."""
CHUNK = 1 << 22
"""Most products that are held at once."""
WORK_LIMIT = 1 << 31
"""Most products that a search forms by default; larger networks are searched for fewer rounds, or not at all."""


@dataclass(frozen=True, slots=True, eq=False)
class SaturatingInput:
    """An input on which two products of one accumulator add up to a number beyond 16 bits.

    Attributes:
        codes: int64, the input shape.
        reached: that sum, in exact integers. Whether a kernel adds just these two depends on how it packs its operands.
    """

    codes: IntegerArray
    reached: int


def saturating_input(network: Network, name: str, limit: int = WORK_LIMIT, seed: int = 0) -> SaturatingInput | None:
    """Search for an input on which the named node saturates; None if none was found, which proves nothing.

    Args:
        name: of a Dense or Convolution whose operand types are in the network's metadata.
        limit: most products that the search may form.
    """
    node = network.by_name[name]
    assert isinstance(node, Dense | Convolution)
    raw = stored_weight(node, json.loads(network.metadata["kernels"])[name])
    generator = np.random.default_rng(seed)
    linear = [other for other in network.nodes if isinstance(other, Dense | Convolution)]
    products = sum(other.weight.size * prod(network.shapes[other.name][1:]) for other in (*linear, node))
    rounds = min(ROUNDS, limit // (2 * BATCH * products))
    candidates = _extremes(network, node, raw, generator)
    best, excess = candidates[0], -np.inf
    for _ in range(rounds):
        codes = evaluate_nodes(network, candidates)[node.inputs[0]]
        least, greatest = _pair_sums(node, raw, codes)
        over = np.maximum(greatest - PAIR_HIGH, PAIR_LOW - least)
        at = int(over.argmax())
        if over[at] > 0:
            return SaturatingInput(candidates[at], int(greatest[at] if greatest[at] > PAIR_HIGH else least[at]))
        if over[at] > excess:
            best, excess = candidates[at], float(over[at])
        candidates = _changes(network, best, generator)
    return None


def _extremes(network: Network, node: Dense | Convolution, raw: IntegerArray, generator: np.random.Generator) -> IntegerArray:
    """Inputs to begin with: the corners, those that rows of a first layer call for, and random ones."""
    low, high, shape = network.input.low, network.input.high, network.input_shape
    inputs = [np.full(shape, high), np.full(shape, low)]
    if node.inputs[0] == network.input.name and isinstance(node, Dense):
        inputs += [np.where(row > 0, high, low) for row in raw[np.argsort(-np.abs(raw).max(axis=1))[:BATCH]]]
    inputs += list(generator.integers(low, high + 1, size=(BATCH // 2, *shape)))
    return np.stack(inputs).astype(np.int64)


def _changes(network: Network, best: IntegerArray, generator: np.random.Generator) -> IntegerArray:
    """The best input so far with parts of it moved to the ends of the range."""
    size = (BATCH, *best.shape)
    ends = np.where(generator.random(size) < 0.5, network.input.low, network.input.high)
    share = generator.choice([0.02, 0.1, 0.4], size=(BATCH,) + (1,) * best.ndim)
    return np.where(generator.random(size) < share, ends, best).astype(np.int64)


def _pair_sums(node: Dense | Convolution, raw: IntegerArray, codes: IntegerArray) -> tuple[IntegerArray, IntegerArray]:
    """Least and greatest sum of two products of one accumulator, (batch,) each."""
    if isinstance(node, Dense):
        parts = [(codes[:, None, :], raw)]
    else:
        view = windows(codes, node.window, fill=node.zero_point)
        channels, outputs = view.shape[1] // node.groups, raw.shape[0] // node.groups
        parts = [
            (
                view[:, g * channels : (g + 1) * channels].transpose(0, 2, 3, 1, 4, 5).reshape(len(codes), -1, raw[0].size),
                raw[g * outputs : (g + 1) * outputs].reshape(outputs, -1),
            )
            for g in range(node.groups)
        ]
    least, greatest = np.zeros(len(codes), dtype=np.int64), np.zeros(len(codes), dtype=np.int64)
    for operands, weight in parts:
        for row in weight:  # one output at a time keeps memory small
            step = max(1, CHUNK // max(1, operands[0].size))
            for start in range(0, len(codes), step):
                mine = slice(start, start + step)
                products = operands[mine] * row
                padded = np.concatenate([products, np.zeros((*products.shape[:2], 2), dtype=np.int64)], axis=2)
                ordered = np.partition(padded, (1, padded.shape[2] - 2), axis=2)
                least[mine] = np.minimum(least[mine], ordered[:, :, :2].sum(axis=2).min(axis=1))
                greatest[mine] = np.maximum(greatest[mine], ordered[:, :, -2:].sum(axis=2).max(axis=1))
    return least, greatest
