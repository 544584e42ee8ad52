"""Which activations of two networks do the same thing, guessed from their values on samples.

Nothing rests on the guess: `difference` proves the ranges of what it builds from any pairs.
"""

from __future__ import annotations

import numpy as np

from qertify.bounds.sides import Pair
from qertify.network.evaluate import evaluate_nodes
from qertify.network.network import Network
from qertify.network.nodes import Staircase
from qertify.network.real import RealNetwork, Relu
from qertify.network.real_evaluate import evaluate_nodes_float64
from qertify.network.tensor import FloatArray, IntegerArray

LEAST_CORRELATION = 0.8
SAME_SCALE = 0.05
"""Relative deviation up to which the elements of an activation are taken to have one common scale."""


def find_pairs(
    left: RealNetwork | Network, right: Network, inputs: FloatArray | IntegerArray, codes: IntegerArray
) -> tuple[Pair, ...]:
    """Pair activations in topological order, each with the best correlated later one of its size.

    Args:
        inputs: the left network's inputs, (batch, *input shape): reals, or codes of a quantized network.
        codes: the right network's codes for the same samples.
    """
    if isinstance(left, RealNetwork):
        own = evaluate_nodes_float64(left, inputs)
        activations = [node for node in left.nodes if isinstance(node, Relu)]
    else:
        own = {name: value.astype(np.float64) for name, value in evaluate_nodes(left, inputs).items()}
        activations = [node for node in left.nodes if isinstance(node, Staircase) and node is not left.output]
    other = {name: value.astype(np.float64) for name, value in evaluate_nodes(right, codes).items()}
    candidates = [node for node in right.nodes if isinstance(node, Staircase) and node is not right.output]
    pairs: list[Pair] = []
    for node in activations:
        value = own[node.name].reshape(len(codes), -1)
        scored = [
            (_correlation(value, other[candidate.name].reshape(len(codes), -1)), -position)
            for position, candidate in enumerate(candidates)
        ]
        best, position = max(scored, default=(0.0, 0))
        if best < LEAST_CORRELATION:
            continue
        match = candidates[-position]
        candidates = candidates[1 - position :]
        pairs.append(
            Pair(
                node.name,
                match.name,
                _slopes(own[node.inputs[0]], other[match.inputs[0]]),
                _slope(value, other[match.name].reshape(len(codes), -1)),
            )
        )
    return tuple(pairs)


def _correlation(left: FloatArray, right: FloatArray) -> float:
    if left.shape != right.shape:
        return 0.0
    left, right = left - left.mean(), right - right.mean()
    size = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / size if size else 0.0


def _slope(left: FloatArray, right: FloatArray) -> float:
    """The factor of the least-squares line left ≈ factor · right + constant, without clamped codes if there are others."""
    inside = (right > right.min()) & (right < right.max())
    if np.count_nonzero(inside) > 1 and np.ptp(right[inside]) > 0:
        left, right = left[inside], right[inside]
    variance = float(((right - right.mean()) ** 2).sum())
    return float(((left - left.mean()) * (right - right.mean())).sum()) / variance if variance else 0.0


def _slopes(left: FloatArray, right: FloatArray) -> FloatArray:
    """Accumulator scales, element by element: one for all where they agree, else one a channel."""
    shape = left.shape[1:]
    left, right = left.reshape(len(left), -1), right.reshape(len(right), -1)
    left, right = left - left.mean(axis=0), right - right.mean(axis=0)
    if len(shape) == 3:
        groups = np.repeat(np.arange(shape[0]), shape[1] * shape[2])
    else:
        groups = np.arange(left.shape[1])
    product = np.bincount(groups, (left * right).sum(axis=0))
    variance = np.bincount(groups, (right**2).sum(axis=0))
    common = product.sum() / variance.sum() if variance.sum() else 0.0
    slope = np.divide(product, variance, out=np.full(len(variance), common), where=variance > 0)
    typical = float(np.median(slope)) if common else 0.0
    agree = np.abs(slope - typical) <= SAME_SCALE * abs(typical)
    if np.mean(agree) > 0.9:
        slope = np.full_like(slope, common if abs(common - typical) <= SAME_SCALE * abs(typical) else typical)
    return slope[groups]
