"""What errors can do to many differences together: a norm of a matrix, bounded by semidefinite programming, in integers.

Σ_k|Σ_v B_kv·u_v| over |u_v| ≤ 1 is the norm ∞ → 1 of B, which every k at its own worst overestimates by far. Any μ_v > 0 and
τ_k with diag τ − B·diag(1/μ)·Bᵀ ⪰ 0 prove that it is at most (Στ + Σμ)/2. They are found in floating point; the matrix is
shown to be semidefinite by an integer root and a diagonal that dominates the rest. (Grothendieck's inequality; Raghunathan,
Steinhardt, Liang, "Semidefinite relaxations for certifying robustness to adversarial examples", NeurIPS 2018; the search: Wang,
Chang, Kolter, "The mixing method", 2017.)
"""

from __future__ import annotations

import numpy as np

from qertify.network.tensor import FloatArray

MATRIX_BITS = 17
"""Of the entries of B."""
SCALED_BITS = 58
"""Of the entries of the scaled matrix that is shown to be semidefinite."""
EXACT_INT64 = 2.0**61
SWEEPS, RANK = 40, 16
"""Of the search for τ and μ: how often, and the length of its vectors."""
ROUNDING = 2.0**-40
"""Far more than the relative error of the few float64 operations on the way."""
MOST_ROWS, MOST_COLUMNS = 400, 4000


def greatest_sum(matrix: FloatArray, error: FloatArray) -> float:
    """A bound on Σ_k|Σ_v matrix_kv·u_v| for all |u_v| ≤ 1, where the k-th sum may be off by ``error``.

    Args:
        matrix: (count, columns). error: (count,), ≥ 0.
    """
    plain = float(np.abs(matrix).sum())
    largest = float(np.abs(matrix).max(initial=0.0))
    if largest and matrix.shape[0] <= MOST_ROWS and matrix.shape[1] <= MOST_COLUMNS:
        unit = 2.0 ** (np.frexp(largest)[1] - MATRIX_BITS)
        rounded = np.round(matrix / unit)
        plain = min(plain, unit * (semidefinite_bound(rounded) + float(np.abs(matrix / unit - rounded).sum())))
    return (plain + float(error.sum())) * (1 + ROUNDING)


def semidefinite_bound(matrix: FloatArray) -> float:
    """The same for integers below 2^`MATRIX_BITS`, (count, columns); infinite where the proof fails."""
    tau, mu = _diagonals(matrix)
    shift = SCALED_BITS - int(np.frexp(tau.max())[1])
    reciprocal = np.floor(2.0**shift / mu)  # integers ν; μ = 2^shift / ν
    if (np.abs(matrix) * reciprocal @ np.abs(matrix).T).max() >= EXACT_INT64 or reciprocal.min() < 1:
        return np.inf
    whole = matrix.astype(np.int64)
    square = (whole * reciprocal.astype(np.int64)) @ whole.T
    normal = np.diag(tau * 2.0**shift) - square.astype(np.float64)
    scale = 1 / np.sqrt(tau * 2.0**shift)
    least = float(np.linalg.eigvalsh(normal * scale * scale[:, None])[0])
    normal[np.diag_indices(len(tau))] += tau * 2.0**shift * (max(-least, 0.0) + 1e-6)
    try:
        root = np.round(np.linalg.cholesky(normal))
    except np.linalg.LinAlgError:
        return np.inf
    if (root**2).sum(1).max() >= EXACT_INT64:
        return np.inf
    root = root.astype(np.int64)
    product = root @ root.T
    rest = np.abs((square + product).astype(np.float64)) * (1 + ROUNDING)  # −square − product, off the diagonal
    np.fill_diagonal(rest, 0.0)
    diagonal = (product + square).diagonal().astype(np.float64) + rest.sum(1)
    return float(diagonal.sum() * 2.0**-shift + (2.0**shift / reciprocal).sum()) / 2 * (1 + ROUNDING)


def _diagonals(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """τ and μ, positive, near the best ones: norms at the optimum of max Σ matrix_kv·⟨a_k, b_v⟩ over unit vectors."""
    random = np.random.default_rng(0)
    inner = random.standard_normal((matrix.shape[1], RANK))
    inner /= np.linalg.norm(inner, axis=1, keepdims=True)
    least = float(np.abs(matrix).max()) * 2.0**-4
    tau, mu = np.zeros(matrix.shape[0]), np.zeros(matrix.shape[1])
    for _ in range(SWEEPS):
        outer = matrix @ inner
        tau = np.maximum(np.linalg.norm(outer, axis=1), least)
        outer /= tau[:, None]
        inner = matrix.T @ outer
        mu = np.maximum(np.linalg.norm(inner, axis=1), least * 2.0**-10)
        inner /= mu[:, None]
    return tau, mu
