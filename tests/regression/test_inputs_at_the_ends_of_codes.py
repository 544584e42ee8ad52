"""Points of relaxations lie at the very ends of codes, just beyond what the quantizer keeps there: they are brought back."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np

from qertify.network.network import Network
from qertify.search.paired_input import interval
from tests.oracle.random_networks import random_network

BITS = 30


def test_points_keep_their_codes() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        network: Network = random_network(generator)
        factor = Fraction(float(generator.uniform(0.001, 0.1)))
        span = (network.input.high - network.input.low) * factor
        low = network.input.low * factor + span * Fraction(int(generator.integers(0, 40)), 100)
        inputs = interval(network, np.full(network.input_shape, low), np.full(network.input_shape, low + span / 2), factor)
        box, size = inputs.box, inputs.box.low.size
        if np.any(box.low == box.high):
            continue
        middle = (box.low + box.high) // 2
        joint: Any = SimpleNamespace(middle=middle, error_index=np.arange(size), input_bits=BITS)
        codes = generator.integers(box.low, box.high + 1, (30, *box.low.shape))
        ends = np.where(generator.random(codes.shape) < 0.5, inputs.relation.error_low, inputs.relation.error_high)
        errors = np.round(ends * 2**BITS).reshape(30, -1)
        candidates = np.concatenate([(codes - middle).reshape(30, -1), errors], axis=1).astype(np.float64)
        x, found = inputs.points(joint, candidates)
        assert np.array_equal(found, codes)
        assert all(inputs.holds(row, code) for row, code in zip(x, codes, strict=True))
