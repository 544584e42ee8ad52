"""Equivalence questions on small grids: every input is judged."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from qertify.network.real import RealNetwork
from qertify.network.real_error import float64_error
from qertify.result import Evidence
from qertify.search.comparison import Finding, Judge

CHUNK = 1 << 12


def enumerate_grid(
    judge: Judge, finding: Finding, margin: Fraction, late: Callable[[], bool], refuted: Callable[[], bool]
) -> None:
    """Judge every input of a grid, exactly where float64 leaves a doubt, and enter what follows into the finding.

    Args:
        margin: by how much the original's outputs may be off from real arithmetic.
    """
    query = judge.query
    box, inputs = query.inputs.box, query.inputs
    chosen = list(query.outputs)
    error = np.zeros(query.quantized.output_size)
    if isinstance(query.original, RealNetwork):
        ends = inputs.stand_for(np.stack([box.low, box.high])).astype(np.float64)
        error = float64_error(query.original, ends[0], ends[1])[query.original.output.name].reshape(-1)
    agree, finding.method = True, "enumeration"
    for start in range(0, box.size, CHUNK):
        if late():
            return
        codes = box.points(start, start + CHUNK)
        x = inputs.stand_for(codes)
        left, right = judge.estimates(x, codes)
        allowance = error + 1e-12 * (np.abs(left) + np.abs(right))
        size = (np.abs(left - right) + allowance)[:, chosen].max(axis=1)
        for row in np.flatnonzero(size > float(judge.attained)):
            if size[row] > float(judge.attained):
                judge.consider(x[row], codes[row])
        if query.top1:
            top = np.sort(left, axis=1)
            doubtful = (top[:, -1] - top[:, -2]) <= 4 * (allowance.max(axis=1) + float(margin))
            for row in np.flatnonzero(doubtful | (left.argmax(axis=1) != right.argmax(axis=1))):
                outputs = judge.exactly(x[row], codes[row])
                judge.compare(x[row], codes[row], outputs)
                agree = agree and outputs.agree(margin)
                if judge.disagreement is not None:
                    break
        if refuted():
            return
    finding.bound, finding.evidence = judge.attained + margin, Evidence.EXACT_SEARCH
    if query.top1:
        finding.proved = agree
    elif query.delta is not None:
        finding.proved = finding.bound <= query.delta
