"""A network's affine equations as operators: node after node, instead of one dense matrix.

`Program` writes its equations z = input_matrix·x + unit_matrix·y + constant. Here the two matrices are never formed.
`Operators.backward` multiplies them from the left, by transposed convolutions and products from the outputs to the inputs;
`Operators.forward` multiplies them from the right. Both stop at every block of units and ask what to put in there, so one
pass is also a whole network evaluation, or a whole backward relaxation.

In float64 on integers nothing rounds as long as partial sums stay below 2⁵³. A pass in *absolute* mode replaces every
coefficient by its absolute value and every sum by one of magnitudes: it bounds them all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from qertify.bounds.passes import Coefficients, Fill, Pass, scatter
from qertify.network.nodes import Convolution, Dense, Linear, PoolSum, Window
from qertify.network.real import RealAverage, RealConvolution, RealDense, RealLinear

Shape = tuple[int, ...]


class Operator(Protocol):
    """One node."""

    def forward(self, state: Pass) -> None:
        """From the values of the node's inputs to its own."""
        ...

    def backward(self, state: Pass) -> None:
        """From the weight of the node's value, if it has one, to those of its inputs."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class InputOperator:
    """The network's input: a constant, and at elements that vary the first of the program's inputs."""

    name: str
    constant: Coefficients
    varies: Tensor

    def forward(self, state: Pass) -> None:
        value = self.constant.form(state.mode).expand(len(state.inputs), -1).clone()
        value[:, self.varies] += state.inputs[:, : len(self.varies)]
        state.put(self.name, value)

    def backward(self, state: Pass) -> None:
        weight = state.values.pop(self.name, None)
        if weight is not None:
            state.inputs[:, : len(self.varies)] = weight[:, self.varies]


@dataclass(frozen=True, slots=True, eq=False)
class LinearOperator:
    """weight · (value − zero_point) + bias; ``weight`` shaped as the node's, ones for a pool sum; bias per output element."""

    name: str
    source: str
    node: Linear | RealLinear
    weight: Coefficients
    bias: Coefficients
    zero_point: Coefficients
    before: Shape
    after: Shape

    def forward(self, state: Pass) -> None:
        value = state.minus(state.values[self.source], self.zero_point.form(state.mode))
        weight, bias = self.weight.form(state.mode), self.bias.form(state.mode)
        if isinstance(self.node, Dense | RealDense):
            state.put(self.name, value @ weight.T + bias)
            return
        window = self.node.window
        top, left, bottom, right = window.padding
        image = functional.pad(value.reshape(-1, *self.before), (left, right, top, bottom))
        groups = groups_of(self.node, self.before)
        summed = functional.conv2d(image, weight, None, window.stride, 0, window.dilation, groups)
        state.put(self.name, summed.flatten(1) + bias)

    def backward(self, state: Pass) -> None:
        above = state.values.pop(self.name, None)
        if above is None:
            return
        weight = self.weight.form(state.mode)
        if isinstance(self.node, Dense | RealDense):
            state.add(self.source, above @ weight)
            return
        if not bool(above.any()):  # of a network that was not asked about
            return
        window = self.node.window
        image = above.reshape(-1, *self.after)
        groups = groups_of(self.node, self.before)
        spread = functional.conv_transpose2d(image, weight, None, window.stride, 0, 0, groups, window.dilation)
        state.add(self.source, _crop(spread, window, self.before).flatten(1))


def groups_of(node: Convolution | PoolSum | RealConvolution | RealAverage, before: Shape) -> int:
    """A pool sum is a convolution channel by channel."""
    return before[0] if isinstance(node, PoolSum | RealAverage) else node.groups


def _crop(spread: Tensor, window: Window, before: Shape) -> Tensor:
    """Cut the padding off, and give back the border that the stride never reached."""
    top, left = window.padding[:2]
    rows, columns = spread.shape[-2:]
    return functional.pad(spread, (-left, before[2] + left - columns, -top, before[1] + top - rows))


@dataclass(frozen=True, slots=True, eq=False)
class AddOperator:
    """The sum of the inputs."""

    name: str
    sources: tuple[str, ...]

    def forward(self, state: Pass) -> None:
        first, *rest = (state.values[name] for name in self.sources)
        for value in rest:
            first = first + value
        state.put(self.name, first)

    def backward(self, state: Pass) -> None:
        weight = state.values.pop(self.name, None)
        if weight is not None:
            for name in self.sources:
                state.add(name, weight)


@dataclass(frozen=True, slots=True, eq=False)
class PickOperator:
    """Elements picked from the inputs one after the other, or the constant ``fill``.

    Attributes:
        sizes: elements of each input.
        index: of each element, one past the last for the constant.
    """

    name: str
    sources: tuple[str, ...]
    sizes: tuple[int, ...]
    index: Tensor
    fill: Coefficients

    def forward(self, state: Pass) -> None:
        parts = [state.values[name] for name in self.sources]
        everything = torch.cat([*parts, self.fill.form(state.mode).expand(len(parts[0]), 1)], dim=1)
        state.put(self.name, everything[:, self.index])

    def backward(self, state: Pass) -> None:
        weight = state.values.pop(self.name, None)
        if weight is None:
            return
        everything = scatter(weight, self.index, sum(self.sizes) + 1)
        for name, part in zip(self.sources, everything[:, :-1].split(list(self.sizes), dim=1), strict=True):
            state.add(name, part)


@dataclass(frozen=True, slots=True, eq=False)
class Errors:
    """Additional inputs that make up the difference at some elements.

    Attributes:
        constant: per element. chosen: elements with an input of their own. first: the first of these inputs.
    """

    constant: Coefficients
    chosen: Tensor
    first: int

    def forward(self, state: Pass, value: Tensor) -> Tensor:
        value = value + self.constant.form(state.mode)
        value[:, self.chosen] += state.inputs[:, self.first : self.first + len(self.chosen)]
        return value

    def backward(self, state: Pass, weight: Tensor) -> None:
        state.inputs[:, self.first : self.first + len(self.chosen)] = weight[:, self.chosen]


@dataclass(frozen=True, slots=True, eq=False)
class UnitsOperator:
    """A staircase: its units first … first + len(chosen) − 1, constants elsewhere, errors of an enclosure."""

    name: str
    source: str
    chosen: Tensor
    first: int
    constant: Coefficients
    errors: Errors | None

    def forward(self, state: Pass) -> None:
        given = state.values[self.source]
        found = state.block(self.first, self.first + len(self.chosen), given[:, self.chosen])
        value = self.constant.form(state.mode).repeat(len(given), 1)
        value[:, self.chosen] = found
        state.put(self.name, value if self.errors is None else self.errors.forward(state, value))

    def backward(self, state: Pass) -> None:
        weight = state.take(self.name, self.constant.exact.numel())
        if self.errors is not None:
            self.errors.backward(state, weight)
        total = state.block(self.first, self.first + len(self.chosen), weight[:, self.chosen])
        state.add(self.source, scatter(total, self.chosen, weight.shape[1]))


@dataclass(frozen=True, slots=True, eq=False)
class Challenge:
    """One more element of each window of a maximum: it wins, it loses, or a unit decides.

    Attributes:
        wins, wins_from: windows where it is always greater, and its elements.
        open, open_from: windows where a unit max(element − best, 0) is added to the best so far, and its elements.
        first: the first of these units.
    """

    wins: Tensor
    wins_from: Tensor
    open: Tensor
    open_from: Tensor
    first: int

    @property
    def last(self) -> int:
        return self.first + len(self.open)


@dataclass(frozen=True, slots=True, eq=False)
class MaxOperator:
    """max(m, e) = m + max(e − m, 0), element after element of the window, starting with elements ``leader``."""

    name: str
    source: str
    size: int
    leader: Tensor
    challenges: tuple[Challenge, ...]

    def forward(self, state: Pass) -> None:
        given = state.values[self.source]
        best = given[:, self.leader]
        for item in self.challenges:
            difference = state.minus(given[:, item.open_from], best[:, item.open])
            found = state.block(item.first, item.last, difference)
            best[:, item.open] += found
            best[:, item.wins] = given[:, item.wins_from]
        state.put(self.name, best)

    def backward(self, state: Pass) -> None:
        best = state.take(self.name, len(self.leader)).clone()
        below = best.new_zeros(len(best), self.size)
        for item in reversed(self.challenges):
            total = state.block(item.first, item.last, best[:, item.open])
            below += scatter(best[:, item.wins], item.wins_from, self.size) + scatter(total, item.open_from, self.size)
            best[:, item.wins] = 0.0
            best[:, item.open] = state.minus(best[:, item.open], total)
        state.add(self.source, below + scatter(best, self.leader, self.size))


@dataclass(frozen=True, slots=True, eq=False)
class SlopeOperator:
    """Σ slope · (value − zero) over the inputs, and an error: a table around a line, a product around its middle."""

    name: str
    sources: tuple[str, ...]
    slopes: tuple[Coefficients, ...]
    errors: Errors

    def forward(self, state: Pass) -> None:
        parts = [state.values[name] * slope.form(state.mode) for name, slope in zip(self.sources, self.slopes, strict=True)]
        state.put(self.name, self.errors.forward(state, torch.stack(parts).sum(0)))

    def backward(self, state: Pass) -> None:
        weight = state.values.pop(self.name, None)
        if weight is None:
            return
        self.errors.backward(state, weight)
        for name, slope in zip(self.sources, self.slopes, strict=True):
            state.add(name, weight * slope.form(state.mode))


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """What rows follow: elements ``chosen`` of a node's value, which weighs ``factor`` in them.

    A row can take the weight of its element over, all of it or a part: this is what a backward pass offers it. A forward
    pass lets what goes on from the row, 0 unless it is a relaxation, make up for it.
    """

    name: str
    chosen: Tensor
    factor: float

    def offer(self, state: Pass) -> Tensor:
        return state.values[self.name][:, self.chosen] / -self.factor

    def replace(self, state: Pass, found: Tensor) -> None:
        value = state.values[self.name].clone()
        value[:, self.chosen] -= found / self.factor
        state.values[self.name] = value


@dataclass(frozen=True, slots=True, eq=False)
class OutputsOperator:
    """Units without a value: the output accumulators, and rows."""

    source: str
    size: int
    chosen: Tensor
    first: int
    followed: Followed | None = None

    def forward(self, state: Pass) -> None:
        found = state.block(self.first, self.first + len(self.chosen), state.values[self.source][:, self.chosen])
        if self.followed is not None and not state.mode[1]:
            self.followed.replace(state, found)

    def backward(self, state: Pass) -> None:
        offer = state.units.new_zeros(len(state.units), len(self.chosen))
        if self.followed is not None and self.followed.name in state.values:
            offer = self.followed.offer(state)
        total = state.ask(self.first, self.first + len(self.chosen), offer)
        state.add(self.source, scatter(total, self.chosen, self.size))


@dataclass(frozen=True, slots=True, eq=False)
class Operators:
    """The equations of a program, one operator a node, in topological order.

    Attributes:
        inputs, units: n and N.
        reach: a bound on Σ_u |coefficient| of one multiplier each in any sum of a backward pass.
    """

    steps: tuple[Operator, ...]
    inputs: int
    units: int
    reach: float = 0.0

    def backward(self, like: Tensor, fill: Fill, absolute: bool = False) -> Pass:
        """From weights of the accumulators to weights of inputs and of values.

        Args:
            like: supplies batch, number type and device.
            fill: gets the weights of a block's values, returns those of its accumulators.

        Returns:
            the pass, with `inputs` = total·input_matrix and `units` = total·unit_matrix.
        """
        batch = len(like)
        state = Pass((like.dtype, absolute), like.new_zeros(batch, self.units), like.new_zeros(batch, self.inputs), fill)
        for step in reversed(self.steps):
            step.backward(state)
        return state

    def forward(self, x: Tensor, fill: Fill, absolute: bool = False) -> Pass:
        """From inputs, (batch, n), to accumulators, in `units`.

        Args:
            fill: gets a block's accumulators, returns its values.
        """
        state = Pass((x.dtype, absolute), x.new_zeros(len(x), self.units), x, fill)
        for step in self.steps:
            step.forward(state)
        return state

    def head(self, first: int) -> Operators:
        """The equations up to the staircase whose units start at ``first``; these units become outputs."""
        for position, step in enumerate(self.steps):
            if isinstance(step, UnitsOperator) and step.first == first and len(step.chosen):
                last = OutputsOperator(step.source, step.constant.exact.numel(), step.chosen, first)
                return replace(self, steps=(*self.steps[:position], last), units=first + len(step.chosen))
        raise ValueError(f"no staircase has its first unit at {first}")

    def to(self, device: str) -> Operators:
        """The same on another device."""
        return replace(self, steps=tuple(_moved(step, device) for step in self.steps))


def _moved(item: Any, device: str) -> Any:
    if isinstance(item, Tensor):
        return item.to(device)
    if isinstance(item, tuple):
        return tuple(_moved(part, device) for part in item)
    if isinstance(item, Coefficients):
        return Coefficients(item.exact.to(device))
    if is_dataclass(item) and not isinstance(item, type) and not isinstance(item, Linear | RealLinear):
        return replace(item, **{each.name: _moved(getattr(item, each.name), device) for each in fields(item)})
    return item
