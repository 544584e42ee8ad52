"""What is asked about two networks on one region, and exact judgement of single inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction

import numpy as np

from qertify.errors import InvalidInputError, UnsupportedModelError
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.real import RealNetwork
from qertify.network.real_evaluate import evaluate_exactly, evaluate_float64
from qertify.network.tensor import FloatArray, IntegerArray
from qertify.result import Evidence, Reason
from qertify.runtimes.base import reads_codes, runtime_of
from qertify.runtimes.float32 import Float32Array
from qertify.search.paired_input import PairedInput


class FloatSemantics(str, Enum):
    """What the float network computes."""

    REAL = "real"
    """Exact real arithmetic on its float32 weights and inputs."""
    FLOAT32_BOUNDED = "float32-bounded"
    """Any float32 execution: real arithmetic plus or minus a proved bound on the rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class EquivalenceQuery:
    """A question about two networks; plain data.

    Attributes:
        original: the float network, or another quantized one with the same input codes.
        quantized: the quantized network.
        inputs: the region.
        delta: the greatest allowed |original − quantized|, over all outputs or for ``output``; None for the other questions.
        top1: whether to ask for the same class instead. Neither: the least such delta is wanted.
        output: the only output that counts, or None for all.
        semantics: of a float original.
    """

    original: RealNetwork | Network
    quantized: Network
    inputs: PairedInput
    delta: Fraction | None = None
    top1: bool = False
    output: int | None = None
    semantics: FloatSemantics = FloatSemantics.REAL

    def __post_init__(self) -> None:
        left, right = self.original, self.quantized
        if left.input_shape != right.input_shape:
            raise InvalidInputError(f"the networks read inputs of shapes {left.input_shape} and {right.input_shape}")
        if left.output_size != right.output_size:
            raise InvalidInputError(f"the networks have {left.output_size} and {right.output_size} outputs")
        for network in (left, right):
            kind = network.metadata.get("output", "values")
            if not self.top1 and kind not in ("values", "dequantized", "codes"):
                reason = f"a difference of outputs needs scores, and this model returns their {kind}; ask for --top1"
                raise UnsupportedModelError(network.output.name, kind, "output", reason)
        if self.delta is not None and self.delta <= 0:
            raise InvalidInputError(f"delta {self.delta} must be positive")
        if self.delta is not None and self.top1:
            raise InvalidInputError("ask for a delta or for the same class, not both")
        if self.output is not None and not 0 <= self.output < right.output_size:
            raise InvalidInputError(f"output {self.output} is outside 0 … {right.output_size - 1}")
        if self.top1 and right.output_size < 2:
            raise InvalidInputError("networks with one output have no classes that could differ")
        if self.output is not None and self.top1:
            raise InvalidInputError("a single output has no meaning for the class")
        if isinstance(left, Network):
            own, other = left.input_quantization, right.input_quantization
            same = np.array_equal(own.scale, other.scale) and np.array_equal(own.zero_point, other.zero_point)
            if not same or (left.input.low, left.input.high) != (right.input.low, right.input.high):
                raise InvalidInputError("the two quantized networks have different preprocessing: their input codes differ")
            if not reads_codes(left) and not self.inputs.agrees(runtime_of(left).quantize_input):
                raise InvalidInputError(
                    f"the two quantized networks make different codes of some inputs of the region ({left.runtime_profile} and "
                    f"{right.runtime_profile}); a radius in levels compares them on codes"
                )

    @property
    def outputs(self) -> tuple[int, ...]:
        """The outputs that count."""
        return tuple(range(self.quantized.output_size)) if self.output is None else (self.output,)


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """Exact outputs of both networks at one input."""

    original: list[Fraction]
    quantized: list[Fraction]

    def differences(self) -> list[Fraction]:
        return [abs(own - other) for own, other in zip(self.original, self.quantized, strict=True)]

    def predicted(self) -> tuple[int, int]:
        """Classes, lowest index first."""
        return self.original.index(max(self.original)), self.quantized.index(max(self.quantized))

    def agree(self, margin: Fraction) -> bool:
        """Whether the classes are the same whatever the original's outputs are within the margin."""
        own, other = self.predicted()
        if own != other or not margin:
            return own == other
        rivals = (value for index, value in enumerate(self.original) if index != own)
        return self.original[own] - max(rivals) > 2 * margin

    def disagree(self, margin: Fraction) -> bool:
        """Whether the classes differ whatever the original's outputs are within the margin."""
        own, other = self.predicted()
        return own != other and (not margin or self.original[own] - self.original[other] > 2 * margin)


def dequantized(network: Network, codes: IntegerArray) -> list[Fraction]:
    """scale · (code − zero point), exactly, of output codes (outputs,)."""
    quantization = network.output_quantization
    scale = np.broadcast_to(quantization.scale, codes.shape).tolist()
    zero = np.broadcast_to(quantization.zero_point, codes.shape).tolist()
    return [Fraction(s) * (int(code) - z) for s, code, z in zip(scale, codes.tolist(), zero, strict=True)]


class Judge:
    """Evaluates candidates of one query, fast and exactly, and remembers the worst.

    Args:
        margin: by how much the original's outputs may be off from real arithmetic.
    """

    def __init__(self, query: EquivalenceQuery, margin: Fraction = Fraction(0)) -> None:
        self.query, self._margin = query, margin
        self.attained = Fraction(-1)
        self.worst: tuple[Float32Array, IntegerArray, Outputs] | None = None
        self.disagreement: tuple[Float32Array, IntegerArray, Outputs] | None = None

    def estimates(self, x: Float32Array, codes: IntegerArray) -> tuple[FloatArray, FloatArray]:
        """Outputs in float64, (batch, outputs) each; for choosing candidates only."""
        quantization = self.query.quantized.output_quantization
        right = (evaluate(self.query.quantized, codes) - quantization.zero_point) * quantization.scale
        return self._left(x, codes), right

    def _left(self, x: Float32Array, codes: IntegerArray) -> FloatArray:
        original = self.query.original
        if isinstance(original, RealNetwork):
            return evaluate_float64(original, x)
        quantization = original.output_quantization
        return (evaluate(original, codes) - quantization.zero_point) * quantization.scale

    def exactly(self, x: Float32Array, codes: IntegerArray) -> Outputs:
        """Exact outputs at one input of the input shape."""
        original = self.query.original
        if isinstance(original, RealNetwork):
            left = evaluate_exactly(original, x)
        else:
            left = dequantized(original, evaluate(original, codes[None])[0])
        return Outputs(left, dequantized(self.query.quantized, evaluate(self.query.quantized, codes[None])[0]))

    def judge(self, x: Float32Array, codes: IntegerArray) -> None:
        """Take note of the best of a batch of candidates."""
        left, right = self.estimates(x, codes)
        chosen = list(self.query.outputs)
        size = np.abs(left - right)[:, chosen].max(axis=1)
        best = int(size.argmax())
        if size[best] > float(self.attained):
            self.consider(x[best], codes[best])
        if self.query.top1 and self.disagreement is None:
            for row in np.flatnonzero(left.argmax(axis=1) != right.argmax(axis=1))[:8]:
                self.compare(x[row], codes[row], self.exactly(x[row], codes[row]))

    def consider(self, x: Float32Array, codes: IntegerArray) -> None:
        """Evaluate one input exactly and remember it if it is the worst so far."""
        outputs = self.exactly(x, codes)
        differences = outputs.differences()
        found = max(differences[i] for i in self.query.outputs)
        if found > self.attained:
            self.attained, self.worst = found, (x, codes, outputs)

    def compare(self, x: Float32Array, codes: IntegerArray, outputs: Outputs) -> None:
        """Remember an input if it is the first on which the classes differ."""
        if self.disagreement is None and outputs.disagree(self._margin):
            self.disagreement = x, codes, outputs


def rounded(value: Fraction, up: bool) -> float:
    """The nearest float64 on one side."""
    result = float(value)
    if (up and Fraction(result) < value) or (not up and Fraction(result) > value):
        result = float(np.nextafter(result, np.inf if up else -np.inf))
    return result


Found = tuple[Float32Array, IntegerArray, Outputs]
"""An input, its codes, and both networks' outputs."""


@dataclass(slots=True)
class Finding:
    """What the search found out.

    Attributes:
        proved, refuted: the answer; neither means unknown.
        found: the input to report.
        attained, bound: |original − quantized| reaches the first and never exceeds the second, where known.
    """

    proved: bool = False
    refuted: bool = False
    found: Found | None = None
    attained: Fraction | None = None
    bound: Fraction | None = None
    evidence: Evidence | None = None
    reason: Reason | None = None
    method: str = ""
    solver: str | None = None
    nodes: int = 0
    explanation: list[str] = field(default_factory=list[str])

    def interval(self) -> tuple[float, float | None] | None:
        """[attained, bound], rounded outwards."""
        if self.attained is None or self.attained < 0:
            return None
        return rounded(self.attained, up=False), None if self.bound is None else rounded(self.bound, up=True)


def text_of(bound: Fraction | None) -> str:
    """A difference as one says it."""
    return "nothing known" if bound is None else f"{float(bound):.6g}"
