"""What must hold of the outputs: a class wins the argmax, under a stated rule for ties."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from qertify.errors import InvalidInputError
from qertify.network.tensor import IntegerArray


class Ties(str, Enum):
    """Who wins when several outputs share the maximum."""

    FIRST = "first"
    """The lowest index."""
    LAST = "last"
    """The highest index."""
    VIOLATION = "violation"
    """Nobody: a tie of the label with another class violates the property. The lowest index is reported."""

    def beaten_by_tie(self, label: int, competitor: int) -> bool:
        """Whether the competitor beats the label already when their outputs are equal."""
        if self is Ties.VIOLATION:
            return True
        return competitor < label if self is Ties.FIRST else competitor > label

    def predicted(self, outputs: IntegerArray) -> IntegerArray:
        """The winning class of each row of outputs, shape (batch, classes) → (batch,)."""
        if self is Ties.LAST:
            return outputs.shape[1] - 1 - np.argmax(outputs[:, ::-1], axis=1)
        return np.argmax(outputs, axis=1)


@dataclass(frozen=True, slots=True)
class Classification:
    """The label wins against every other class, or (targeted) against one of them.

    Attributes:
        label: the class that must win.
        target: the only competitor that counts, or None for all.
        ties: who wins a tie.
    """

    label: int
    target: int | None = None
    ties: Ties = Ties.FIRST

    def check(self, classes: int) -> None:
        """Raises InvalidInputError if the label or target is no class of the network."""
        for what, index in (("label", self.label), ("target", self.target)):
            if index is not None and not 0 <= index < classes:
                raise InvalidInputError(f"{what} {index} is outside 0 … {classes - 1}, the network's outputs")
        if self.target == self.label:
            raise InvalidInputError(f"the target {self.target} is the label itself")
        if classes < 2:
            raise InvalidInputError("a network with one output has no competing class")

    def competitors(self, classes: int) -> tuple[int, ...]:
        """The classes that must not win."""
        return (self.target,) if self.target is not None else tuple(j for j in range(classes) if j != self.label)

    def convincing(self, outputs: IntegerArray) -> np.ndarray:
        """Whether the target, if there is one, wins outright, shape (batch, classes) → bool (batch,)."""
        if self.target is None:
            return np.ones(len(outputs), dtype=bool)
        return self.ties.predicted(outputs) == self.target

    def possible(self, low: IntegerArray, high: IntegerArray) -> np.ndarray:
        """Whether some outputs between low and high violate it, shapes (batch, classes) → bool (batch,)."""
        worst = high.copy()
        worst[:, self.label] = low[:, self.label]
        return self.violated(worst)

    def violated(self, outputs: IntegerArray) -> np.ndarray:
        """Whether some competitor beats the label, shape (batch, classes) → bool (batch,). The definition."""
        own = outputs[:, self.label]
        result = np.zeros(len(outputs), dtype=bool)
        for competitor in self.competitors(outputs.shape[1]):
            other = outputs[:, competitor]
            result |= other >= own if self.ties.beaten_by_tie(self.label, competitor) else other > own
        return result
