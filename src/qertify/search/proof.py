"""What a decision rests on, kept on request: certificates are written from it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.dual import Proof
from qertify.bounds.program import Program
from qertify.network.tensor import IntegerArray
from qertify.specification.cases import Case

Multipliers = tuple[IntegerArray, int]
"""λ·2^bits of every unit, (N,), and bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Tightened:
    """A proved range of one unit: z_unit ≥ g(λ) for sign 1, z_unit ≤ −g(λ) for sign −1.

    Attributes:
        block: ranges of one block are proved from the ranges before the block was begun.
    """

    block: int
    unit: int
    sign: int
    multipliers: Multipliers


@dataclass(slots=True)
class ProofLog:
    """The proof of a decision but for its search tree.

    Attributes:
        program: whose units all multipliers belong to.
        tightened: root ranges, in order.
        closed: cases closed at the root, with the inequality that did it; no multipliers where ranges contradict it.
        cases: what was left after that: for the search tree, or for a solver.
    """

    program: Program | None = None
    tightened: list[Tightened] = field(default_factory=list[Tightened])
    closed: list[tuple[Case, Multipliers | None]] = field(default_factory=list[tuple[Case, Multipliers | None]])
    cases: tuple[Case, ...] = ()

    def tighten(self, block: int, units: Tensor, sign: float, proof: Proof, helpful: Tensor) -> None:
        """Keep the bounds that improve a range; ``units`` and ``helpful`` are (batch,)."""
        for row in torch.nonzero(helpful)[:, 0].tolist():
            self.tightened.append(Tightened(block, int(units[row]), int(sign), multipliers_of(proof, row)))

    def close(self, case: Case, proof: Proof, row: int) -> None:
        """Keep how a case was closed at the root."""
        self.closed.append((case, multipliers_of(proof, row) if float(proof.margin[row]) >= 0 else None))


def multipliers_of(proof: Proof, row: int) -> Multipliers:
    """The integers of one domain of a batch."""
    return proof.multipliers[row].cpu().numpy().astype(np.int64), int(proof.bits[row])
