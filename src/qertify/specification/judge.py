"""Which inputs are counterexamples: the one place where candidates become violations, for exact networks and enclosures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qertify.network.evaluate import evaluate, evaluate_interval
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.specification.splitting import Property

Run = Callable[[IntegerArray], IntegerArray]
"""A run of the real runtime: input codes (batch, *input shape) → outputs (batch, outputs), of which only the order counts."""
RUNS = 16
"""Most candidates of one call that the real runtime is asked about."""


class Judgement(NamedTuple):
    """About a batch of inputs, bool (batch,) each; neither is true of what nobody knows.

    Attributes:
        violated: the runtime violates the property there. For an exact network the reference evaluator says so, for an
            enclosure a run of the runtime itself.
        safe: the property is proved to hold there.
        outputs: int64 (batch, outputs), of the reference evaluator, or of the runtime where it was run.
    """

    violated: np.ndarray
    safe: np.ndarray
    outputs: IntegerArray


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Judges inputs of one network by one property.

    Attributes:
        run: the real runtime, for enclosures; without it no input of an enclosure is ever a counterexample.
    """

    network: Network
    property: Property
    run: Run | None = None

    def judge(self, codes: IntegerArray) -> Judgement:
        """Judge inputs, (batch, *input shape)."""
        outputs = evaluate(self.network, codes)
        violated = self.property.violated(outputs)
        if self.network.exactness == "exact":
            return Judgement(violated, ~violated, outputs)
        possible = self.property.possible(*evaluate_interval(self.network, codes))
        confirmed = np.zeros(len(codes), dtype=bool)
        if self.run is not None and possible.any():
            asked = np.flatnonzero(possible)
            asked = asked[np.argsort(~violated[asked], kind="stable")][:RUNS]
            outputs[asked] = self.run(codes[asked])
            confirmed[asked] = self.property.violated(outputs[asked])
        return Judgement(confirmed, ~possible, outputs)
