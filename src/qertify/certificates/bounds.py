"""Bounds of a system of equations on parts of its box, in exact integers.

For a linear objective c on accumulators and ANY integers λ, with s = 2^bits and t = c·s + λ,

    g = t·constant + Σ_i min_{x_i} (t·input_matrix)_i · x_i + Σ_u min_{L_u ≤ z ≤ U_u} (a_u·σ_u(z) − λ_u·z),   a = t·unit_matrix

is at most s times the least c·z for low ≤ z ≤ high: each equation is added, weighed with its multiplier, and what is left
is minimised term by term. A term is least at an end of a step: at its right end for λ_u ≥ 0, at its left end for λ_u < 0.
Between the first and the last step these ends are on a line if the thresholds are evenly spaced; else all are tried.
"""

from __future__ import annotations

import numpy as np

from qertify.certificates.exact import Integers, Matrix, add, ceil_shift, fit, largest, narrow, product, times, total
from qertify.certificates.system import System, Unit
from qertify.network.tensor import IntegerArray

CHUNK = 1 << 20
"""Most steps times domains that are looked at at once."""


def values(system: System, z: IntegerArray, start: int, stop: int) -> IntegerArray:
    """σ of the hidden ones among units start … stop − 1, from z (batch, N)."""
    result = np.empty((len(z), max(0, min(stop, system.hidden) - start)), dtype=np.int64)
    for column, unit in enumerate(system.units[start : min(stop, system.hidden)]):
        result[:, column] = unit.first_value + np.searchsorted(unit.thresholds, z[:, start + column], side="right")
    return result


class Propagation:
    """Interval arithmetic on the equations."""

    def __init__(self, system: System) -> None:
        self._system = system
        inputs, units = system.input_matrix.values, system.unit_matrix.values
        low, high = system.input_low[:, None], system.input_high[:, None]
        positive, negative = np.maximum(inputs, 0), np.minimum(inputs, 0)
        self._least = add(add(product(positive, low), product(negative, high))[:, 0], system.constant)
        self._greatest = add(add(product(positive, high), product(negative, low))[:, 0], system.constant)
        self._blocks = [
            (
                start,
                stop,
                *(Matrix(part(units[start:stop, : min(start, system.hidden)], 0).T) for part in (np.maximum, np.minimum)),
            )
            for start, stop in system.blocks
        ]

    def __call__(self, low: IntegerArray, high: IntegerArray) -> tuple[IntegerArray, IntegerArray, np.ndarray]:
        """Tighter bounds of accumulators, (batch, N), block by block, and whether a domain is empty, (batch,)."""
        low, high = low.copy(), high.copy()
        system = self._system
        first, last = (np.zeros((len(low), system.hidden), dtype=np.int64) for _ in range(2))
        for start, stop, more, less in self._blocks:
            y, w = first[:, :start], last[:, :start]
            least = add(add(more.after(y), less.after(w)), self._least[start:stop])
            greatest = add(add(more.after(w), less.after(y)), self._greatest[start:stop])
            low[:, start:stop] = np.maximum(low[:, start:stop], narrow(least))
            high[:, start:stop] = np.minimum(high[:, start:stop], narrow(greatest))
            first[:, start:stop] = values(system, low, start, stop)
            last[:, start:stop] = values(system, high, start, stop)
        return low, high, np.any(low > high, axis=1)


def lower_bounds(
    system: System,
    low: IntegerArray,
    high: IntegerArray,
    objective: IntegerArray,
    multipliers: IntegerArray,
    bits: IntegerArray,
) -> Integers:
    """⌈g / 2^bits⌉ of each domain, at most the least objective · z on it.

    Args:
        low, high: (batch, N), low ≤ high.
        objective: (batch, N).
        multipliers: (batch, N), the integers λ.
        bits: (batch,), 0 … 62.

    Returns:
        (batch,).
    """
    scale = np.left_shift(np.ones_like(bits), bits)[:, None]
    weights = add(times(objective, scale), multipliers)
    inputs, slopes = system.input_matrix.after(weights), system.unit_matrix.after(weights)
    result = product(weights, system.constant[:, None])[:, 0]
    result = add(result, total(np.minimum(times(inputs, system.input_low), times(inputs, system.input_high))))
    first, last = (values(system, bound, 0, system.hidden) for bound in (low, high))
    terms: list[Integers] = []
    for position, unit in enumerate(system.units):
        ends = low[:, position], high[:, position]
        if position < system.hidden:
            steps = first[:, position], last[:, position]
            terms.append(_unit_term(unit, *ends, *steps, slopes[:, position], multipliers[:, position]))
        else:
            terms.append(-np.maximum(*(times(multipliers[:, position], end) for end in ends)))
    for term in terms:
        result = add(result, term)
    return ceil_shift(result, bits)


def _unit_term(
    unit: Unit,
    low: IntegerArray,
    high: IntegerArray,
    first: IntegerArray,
    last: IntegerArray,
    slope: Integers,
    multiplier: Integers,
) -> Integers:
    """min over low ≤ z ≤ high of slope·σ(z) − multiplier·z; all (batch,), ``first`` and ``last`` the values at the ends."""
    furthest = max(largest(low), largest(high), largest(unit.thresholds) + 1)
    size = largest(slope) * (abs(unit.first_value) + unit.thresholds.size + 1) + largest(multiplier) * furthest
    slope, multiplier = fit(4 * size, slope, multiplier)
    left = multiplier < 0
    least = np.where(left, slope * first - multiplier * low, slope * last - multiplier * high)
    inner = np.flatnonzero(first < last)
    if not inner.size:
        return least
    slope, multiplier, left = slope[inner], multiplier[inner], left[inner]
    # the end of step k is T[k] − 1 with value k from the right, T[k] with value k + 1 from the left
    base = slope * unit.first_value + np.where(left, slope, multiplier)
    begin, end = first[inner] - unit.first_value, last[inner] - unit.first_value - 1
    steps = unit.thresholds
    best = np.minimum(*(slope * k - multiplier * steps[k] for k in (begin, end)))
    if not unit.even and (crowded := np.flatnonzero(end - begin > 1)).size:
        best[crowded] = np.minimum(
            best[crowded], _all_steps(steps, slope[crowded], multiplier[crowded], begin[crowded], end[crowded])
        )
    least[inner] = np.minimum(least[inner], base + best)
    return least


def _all_steps(steps: IntegerArray, slope: Integers, multiplier: Integers, begin: IntegerArray, end: IntegerArray) -> Integers:
    """min over begin ≤ k ≤ end of slope·k − multiplier·T[k]."""
    result = np.empty_like(slope)
    chunk = max(1, CHUNK // steps.size)
    for row in range(0, len(slope), chunk):
        part = slice(row, row + chunk)
        k = np.arange(int(begin[part].min()), int(end[part].max()) + 1)
        inside = (k >= begin[part, None]) & (k <= end[part, None])
        ends = slope[part, None] * k - multiplier[part, None] * steps[k]
        result[part] = np.where(inside, ends, ends[np.arange(len(ends)), begin[part] - k[0]][:, None]).min(axis=1)
    return result
