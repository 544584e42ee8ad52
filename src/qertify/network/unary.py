"""Element-wise integer maps given row by row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qertify.network.tensor import IntegerArray


def apply_rows(
    row: IntegerArray, rows: int, z: IntegerArray, value: Callable[[int, IntegerArray], IntegerArray]
) -> IntegerArray:
    """Apply ``value(r, ·)`` to the elements of z whose row is r.

    Args:
        row: broadcastable to one element of the batch.
        rows: number of rows.
        z: shape (batch, *shape).
        value: the map of one row, on arrays of any shape.

    Returns:
        int64, the shape of z.
    """
    if rows == 1:
        return value(0, z)
    if row.size == z.shape[1] == rows and row.shape[0] == rows:  # one row a channel
        return np.stack([value(int(row.flat[channel]), z[:, channel]) for channel in range(rows)], axis=1)
    result = np.empty_like(z)
    full = np.broadcast_to(row, z.shape)
    for index in range(rows):
        mine = full == index
        result[mine] = value(index, z[mine])
    return result
