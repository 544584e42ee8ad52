"""The joint program of an equivalence query."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qertify.bounds.difference import Joint, compile_difference
from qertify.bounds.forms import OutputRows
from qertify.bounds.pairing import find_pairs
from qertify.bounds.sides import Pair
from qertify.errors import UnsupportedModelError
from qertify.network.real import RealNetwork
from qertify.search.comparison import EquivalenceQuery

SAMPLES = 24
"""Random inputs of the region, and of a wider one, on which activations that correspond are found."""


def joint_program(
    query: EquivalenceQuery, rows: OutputRows, coupled: bool, dense: bool | None, seed: int, late: Callable[[], bool]
) -> tuple[Joint, int]:
    """Compile both networks; returns the pairs of layers that are coupled, too.

    Args:
        rows: what is asked about the outputs.
        coupled: whether rows are added for the difference of what corresponds; where their numbers are too large, none are.
        dense, late: as in `compile_difference`.

    Raises:
        UnsupportedModelError: networks too large, or with numbers too large.
    """
    two = query.original, query.quantized, query.inputs.box, query.inputs.relation
    pairs = _pairs(query, seed) if coupled else ()
    try:
        return compile_difference(*two, pairs, rows, late, dense), len(pairs)
    except UnsupportedModelError:
        if not pairs:
            raise
        return compile_difference(*two, (), rows, late, dense), 0


def _pairs(query: EquivalenceQuery, seed: int) -> tuple[Pair, ...]:
    box, whole = query.inputs.box, query.quantized.input
    random = np.random.default_rng(seed)
    reach = np.maximum((whole.high - whole.low) // 4, box.high - box.low)
    noise = random.integers(-reach, reach + 1, (SAMPLES, *box.low.shape))
    inside = random.integers(box.low, box.high + 1, (SAMPLES, *box.low.shape))
    codes = np.clip(np.concatenate([inside, (box.low + box.high) // 2 + noise]), whole.low, whole.high)
    real = isinstance(query.original, RealNetwork)
    return find_pairs(
        query.original, query.quantized, query.inputs.stand_for(codes).astype(np.float64) if real else codes, codes
    )
