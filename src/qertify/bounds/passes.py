"""What one pass through the operators of a network carries: values or weights of nodes, and what it asks at units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Fill = Callable[[int, int, Tensor], Tensor]
"""First and last+1 of a block of units, and what the pass found for them, (batch, count) → what goes on from them."""


@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """Integers in float64, and the forms of them that passes have asked for."""

    exact: Tensor
    forms: dict[tuple[torch.dtype, bool], Tensor] = field(default_factory=dict[tuple[torch.dtype, bool], Tensor])

    def form(self, mode: Mode) -> Tensor:
        if mode not in self.forms:
            self.forms[mode] = (self.exact.abs() if mode[1] else self.exact).to(mode[0])
        return self.forms[mode]


Mode = tuple[torch.dtype, bool]
"""Number type of a pass, and whether it is absolute."""


def scatter(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Zeros, (batch, size), with values, (batch, count), added at positions (count,)."""
    return values.new_zeros(len(values), size).scatter_add_(1, index.expand(len(values), -1), values)


class Pass:
    """One pass through the graph: what is known of each node so far, flat, (batch, elements).

    Attributes:
        mode: its number type, and whether it is absolute.
        units: (batch, N), what the blocks found. inputs: (batch, n), given to a forward pass, result of a backward one.
        largest: in an absolute pass the greatest entry of all tensors.
    """

    def __init__(self, mode: Mode, units: Tensor, inputs: Tensor, fill: Fill) -> None:
        self.mode, self.units, self.inputs, self.largest = mode, units, inputs, 0.0
        self._fill = fill
        self.values: dict[str, Tensor] = {}

    def block(self, first: int, last: int, found: Tensor) -> Tensor:
        self._see(found)
        self.units[:, first:last] = found
        return self.ask(first, last, found)

    def ask(self, first: int, last: int, found: Tensor) -> Tensor:
        """What goes on from a block, without keeping what was found for it."""
        return self._fill(first, last, found)

    def add(self, name: str, value: Tensor) -> None:
        """Add to what is known of a node."""
        total = self.values[name] + value if name in self.values else value
        self._see(total)
        self.values[name] = total

    def take(self, name: str, size: int) -> Tensor:
        """The weight of a value, zero where nothing reads it: its units have equations all the same."""
        weight = self.values.pop(name, None)
        return self.units.new_zeros(len(self.units), size) if weight is None else weight

    def put(self, name: str, value: Tensor) -> None:
        """A node's value; a magnitude is one at least, so that magnitudes bound the coefficients of backward passes, too."""
        if self.mode[1]:
            value = value.clamp(min=1)
            self._see(value)
        self.values[name] = value

    def minus(self, left: Tensor, right: Tensor) -> Tensor:
        """The difference; in an absolute pass the magnitude of it."""
        return left + right if self.mode[1] else left - right

    def _see(self, value: Tensor) -> None:
        if self.mode[1] and value.numel():
            self.largest = max(self.largest, float(value.max()))
