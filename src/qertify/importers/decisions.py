"""When a float softmax at the end of a network may be dropped: only if it keeps order and ties of all scores there are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qertify.runtimes.float32 import Float32Array

CLASS_LIMIT = 1 << 16
EXP_ERROR = 2.0**-16
"""Assumed bound on the relative error of a runtime's float32 exponential; it is about 2⁻²²."""


def softmax_obstacle(values: Float32Array | None, classes: int, keeps_ties: Callable[[Float32Array, int], bool]) -> str | None:
    """Why a softmax over all classes can't be dropped; None if it can.

    Its results are F(e_i / Σe) with e_i ≈ exp(x_i − max). Distinct x differ by at least the step of the quantizer, so their
    e differ by a factor of exp(step), more than all rounding together; nothing underflows while the span of x stays small.

    Args:
        values: every score there is, strictly ascending.
        keeps_ties: tries on the runtime whether equal scores get equal results at every position.
    """
    if values is None or not 1 < classes <= CLASS_LIMIT:
        return f"it does not read 2 … {CLASS_LIMIT} real scores"
    exact = values.astype(np.float64)
    step, span = float(np.diff(exact).min()), float(exact[-1] - exact[0])
    difference_error = 2.0**-23 * max(span, float(np.abs(exact).max()))
    if step - 2 * difference_error < 8 * EXP_ERROR or span + np.log(classes) > 80:
        return f"can't be dropped: with scores {step:.2g} apart over {span:.3g} it may make ties; export the network without it"
    if not keeps_ties(values, classes):
        return "equal scores get different results; export the network without it"
    return None
