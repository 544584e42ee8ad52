"""What is asked about two outputs, as rows of a joint program and cases on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qertify.bounds.builder import Builder
from qertify.bounds.fixed_point import RealForm, form_range
from qertify.errors import UnsupportedModelError
from qertify.network.network import Network
from qertify.network.real import RealNetwork
from qertify.network.tensor import FloatArray
from qertify.specification.cases import Case

RATIO_BITS = 20
"""Least number of bits of the ratio of two output scales."""


@dataclass(frozen=True, slots=True, eq=False)
class DifferenceRows:
    """One row for each output that counts: original − quantized, in units of ``unit`` · 2^−bits."""

    original: RealNetwork | Network
    quantized: Network
    outputs: tuple[int, ...]

    def unit(self, output: int) -> Fraction:
        """The original's output scale: one for a real network."""
        if isinstance(self.original, RealNetwork):
            return Fraction(1)
        return _parameter(self.original, output)[0]

    def __call__(self, builder: Builder, left: RealForm, right: FloatArray) -> tuple[Sequence[RealForm], int]:
        ratios = [_parameter(self.quantized, output)[0] / self.unit(output) for output in self.outputs]
        bits = max(left.bits, RATIO_BITS - min(int(np.frexp(float(ratio))[1]) for ratio in ratios))
        raised = left.raised(bits)
        low, high = form_range(builder, right)
        rows: list[RealForm] = []
        for output, ratio in zip(self.outputs, ratios, strict=True):
            exact = ratio * (Fraction(2) ** bits)
            factor, zero = round(exact), _parameter(self.quantized, output)[1]
            own_zero = 0 if isinstance(self.original, RealNetwork) else _parameter(self.original, output)[1]
            form = raised.form[:, output] - float(factor) * right[:, output]
            form[0] += factor * zero - own_zero * 2.0**bits
            lost = abs(exact - factor) * int(max(abs(low[output] - zero), abs(high[output] - zero)))
            rows.append(RealForm(form, raised.slack[output] + float(lost.__ceil__()), bits))
        return rows, bits

    def cases(self, limits: dict[tuple[int, int], int]) -> tuple[Case, ...]:
        """For (row, sign) → limit: the violation sign·row ≤ limit."""
        return tuple(Case(row, None, 0, 0, ((row, sign),), limit) for (row, sign), limit in limits.items())

    def limit(self, row: int, delta: Fraction, bits: int) -> int:
        """min ±row > limit, in the row's units, proves |original − quantized| ≤ delta."""
        return -(delta / self.unit(self.outputs[row]) * Fraction(2) ** bits).__floor__()

    def difference(self, row: int, bound: float, bits: int) -> Fraction:
        """The delta that a lower bound of ±row proves."""
        return -Fraction(bound) * self.unit(self.outputs[row]) / Fraction(2) ** bits


@dataclass(frozen=True, slots=True, eq=False)
class ClassRows:
    """Rows original_a − original_b and then quantized_a − quantized_b, for all classes a < b."""

    original: RealNetwork | Network
    quantized: Network

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        count = self.quantized.output_size
        return [(a, b) for a in range(count) for b in range(a + 1, count)]

    def __call__(self, _builder: Builder, left: RealForm, right: FloatArray) -> tuple[Sequence[RealForm], int]:
        for network in (self.original, self.quantized):
            if isinstance(network, Network) and not network.output_quantization.per_tensor:
                reason = "classes with different output scales can't be compared"
                raise UnsupportedModelError(network.output.name, type(network.output).__name__, None, reason)
        own = [RealForm(left.form[:, a] - left.form[:, b], left.slack[a] + left.slack[b], left.bits) for a, b in self._pairs]
        other = [RealForm(right[:, a] - right[:, b], np.zeros(()), left.bits) for a, b in self._pairs]
        return own + other, left.bits

    def cases(self, margin: Fraction, bits: int) -> tuple[Case, ...]:
        """Class j wins on the quantized network while class i beats it on the original; all pairs together cover the violation.

        Args:
            margin: by how much each output of the original may be off.
        """
        pairs = {pair: row for row, pair in enumerate(self._pairs)}
        count = len(pairs)
        integral = not isinstance(self.original, RealNetwork)
        least = (2 * margin * Fraction(2) ** bits).__ceil__()
        cases: list[Case] = []
        for j in range(self.quantized.output_size):
            wins_from = tuple((count + pairs[j, k], 0) for k in range(j + 1, self.quantized.output_size))
            wins_to = tuple((count + pairs[k, j], -1) for k in range(j))
            for i in range(self.quantized.output_size):
                if i != j:
                    weights = ((pairs[j, i], 1),) if j < i else ((pairs[i, j], -1),)
                    limit = -1 if integral and i > j else least
                    cases.append(Case(j, i, 0, 0, weights, limit, upper=wins_to, lower=wins_from))
        return tuple(cases)


def _parameter(network: Network, output: int) -> tuple[Fraction, int]:
    """Exact scale and zero point of an output."""
    quantization, size = network.output_quantization, network.output_size
    return (
        Fraction(float(np.broadcast_to(quantization.scale, size)[output])),
        int(np.broadcast_to(quantization.zero_point, size)[output]),
    )
