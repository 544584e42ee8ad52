"""What a search needs to know of a property: a test of outputs, and its violation in cases on output accumulators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from qertify.network.network import Network
from qertify.network.ranges import Range
from qertify.network.tensor import IntegerArray
from qertify.specification.cases import Case, CaseSplitter, OutputView, output_view
from qertify.specification.linear import LinearSplitter, RowViolation, row_view
from qertify.specification.orders import OrderViolation, order_splitter
from qertify.specification.property import Classification


class Property(Protocol):
    """What must hold of the output codes."""

    def check(self, outputs: int, /) -> None:
        """Raises InvalidInputError if the property does not fit a network of so many outputs."""
        ...

    def violated(self, outputs: IntegerArray) -> np.ndarray:
        """Whether it fails, shape (batch, outputs) → bool (batch,). The definition."""
        ...

    def possible(self, low: IntegerArray, high: IntegerArray) -> np.ndarray:
        """Whether outputs between low and high may violate it, shapes (batch, outputs) → bool (batch,); never too few."""
        ...

    def convincing(self, outputs: IntegerArray) -> np.ndarray:
        """Which of some violations make the better counterexamples, shape (batch, outputs) → bool (batch,)."""
        ...


class Bisector(Protocol):
    """Divides cases of several levels."""

    def bisect(self, case: Case) -> tuple[Case, ...]:
        """The parts of a case of several levels; together they cover it."""
        ...

    def levels(self, case: Case) -> tuple[Case, ...]:
        """The single levels of a case; together they are the case's violations."""
        ...


class OneLevel:
    """For cases of one level: there is nothing to divide."""

    def bisect(self, case: Case) -> tuple[Case, ...]:
        """The case itself."""
        return (case,)

    def levels(self, case: Case) -> tuple[Case, ...]:
        """The case itself."""
        return (case,)


class Splitter(Bisector, Protocol):
    """Makes and bisects the cases of one property on one network."""

    @property
    def view(self) -> OutputView:
        """The output accumulators."""
        ...

    @property
    def low(self) -> IntegerArray:
        """Proved lower bound of each output accumulator."""
        ...

    @property
    def high(self) -> IntegerArray:
        """Proved upper bound of each output accumulator."""
        ...

    def narrowed(self, low: IntegerArray, high: IntegerArray) -> Splitter:
        """The same with tighter ranges of the output accumulators."""
        ...

    def cases(self) -> tuple[Case, ...]:
        """Cases that together cover every violation; empty if none is possible."""
        ...

    def objectives(self, case: Case) -> tuple[Case, ...]:
        """The same case with every inequality worth bounding in place of its own; to exclude one excludes the case."""
        ...


def splitter_of(network: Network, property_: Property, known: Mapping[str, Range]) -> Splitter:
    """The splitter of a property.

    Args:
        known: proved ranges of all nodes over the region, shape (1, *node shape).

    Raises:
        UnsupportedModelError: output codes that the property can't compare.
    """
    if isinstance(property_, Classification | OrderViolation):
        view = output_view(network)
        low, high = (bound[0].reshape(-1)[view.element] for bound in known[view.node])
        if isinstance(property_, OrderViolation):
            return order_splitter(view, property_, low, high)
        return CaseSplitter(view, property_, low, high)
    if isinstance(property_, RowViolation):
        low, high = (bound[0] for bound in known[network.output.name])
        return LinearSplitter(row_view(network), property_, low, high)
    raise TypeError(f"no splitter for {type(property_).__name__}")
