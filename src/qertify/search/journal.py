"""The open domains of a search, written down while it runs: whoever asks the question again goes on from them.

What a journal holds together covers every violation that is not excluded yet, so it may stand in for all cases of the
question. It belongs to one digest: of the question and of the units that bounds are about.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from qertify._version import __version__
from qertify.bounds.program import Program
from qertify.ilp.engine import EXACT_SOLVER
from qertify.network.network import Network
from qertify.parallel.executor import Message
from qertify.parallel.partition import unpack
from qertify.parallel.programs import digest_of
from qertify.search.branch_and_bound import BranchAndBound
from qertify.search.domains import Subproblem
from qertify.specification.region import IntegerBox
from qertify.specification.splitting import Property


class Journal(Protocol):
    """Where open domains are kept, packed, in numbered parts."""

    @property
    def budget(self) -> float | None:
        """Seconds after which a search in one process hands in what is open; None to go on."""
        ...

    def read(self, digest: str) -> list[Message]:
        """All parts; none if nothing is known of that search."""
        ...

    def write(self, digest: str, gone: Iterable[int] | None, new: Mapping[int, Message]) -> None:
        """Replace some parts, or all for None, by others: all at once, or nothing of it. Parts of another search go as well."""
        ...


@dataclass(slots=True, eq=False)
class Handed:
    """A journal in memory, for a search whose open domains travel with the question and its answer.

    Attributes:
        written: whether there is something new in it.
    """

    budget: float | None = None
    digest: str = ""
    parts: dict[int, Message] = field(default_factory=dict[int, Message])
    written: bool = False

    def read(self, digest: str) -> list[Message]:
        return list(self.parts.values()) if digest == self.digest else []

    def write(self, digest: str, gone: Iterable[int] | None, new: Mapping[int, Message]) -> None:
        closed = set(self.parts if gone is None or digest != self.digest else gone)
        self.digest, self.written = digest, True
        self.parts = {number: part for number, part in self.parts.items() if number not in closed} | dict(new)


def search_digest(network: Network, box: IntegerBox, property_: Property, program: Program) -> str:
    """What a journal's domains are about."""
    units = [[unit.node, unit.element, unit.label] for unit in program.units]
    ends = [box.low.reshape(-1).tolist(), box.high.reshape(-1).tolist()]
    return digest_of(json.dumps([__version__, network.digest, ends, repr(property_), units]))


def go_on(journal: Journal, digest: str, tree: BranchAndBound, program: Program) -> float | None:
    """Put what the journal holds, if anything, in the place of the tree's cases; until when to search, of `time.monotonic`.

    Domains are cut to the program's ranges, which may be tighter than those that they were found with.
    """
    if parts := journal.read(digest):
        tree.hand_over()
        tree.add(_restored(parts, program))
        tree.credit(EXACT_SOLVER)  # the parts do not say who closed the rest, so the proof claims no more than it may
    return None if journal.budget is None else time.monotonic() + journal.budget


def _restored(parts: Iterable[Message], program: Program) -> list[Subproblem]:
    device = program.low.device
    return [
        replace(
            item, low=torch.maximum(item.low.to(device), program.low), high=torch.minimum(item.high.to(device), program.high)
        )
        for part in parts
        for item in unpack(part, program)
    ]
