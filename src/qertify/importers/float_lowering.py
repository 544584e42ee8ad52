"""A builder of real networks, shared by all importers of float files; knows no file format and no runtime.

Shapes never include the batch axis; images are (channels, height, width). Numbers are kept exactly as the file has them.
Where an operator's constants are no such numbers (the factor of a batch normalization, the inverse of a divisor), they
are computed in float64 and rounded once, and how far a float32 runtime's own may lie from them is kept beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from qertify.errors import InvalidNetworkError
from qertify.importers.moving import Codes, Mover, Shape
from qertify.network.linear import windows
from qertify.network.nodes import Add, Window
from qertify.network.real import (
    RealAverage,
    RealConvolution,
    RealDense,
    RealInput,
    RealNetwork,
    RealNode,
    RealScale,
    Relu,
    as_reals,
)
from qertify.network.tensor import FloatArray, IntegerArray, as_integers

UNIT = 2.0**-24
"""Unit roundoff of float32."""
NORMALIZATION_ROUNDINGS = 16
"""Roundings granted to a runtime on its way from the statistics of a batch normalization to its factor and shift: the sum,
square root, inverse and product are five for the factor, and the shift inherits them."""


class RealBuilder(Mover[RealNode]):
    """Makes nodes of real networks; a tensor is a `Codes` without range."""

    def _real(self, node: RealNode, shape: Shape) -> Codes:
        return self._add(node, shape, 0, 0)

    def input(self, name: str, shape: Shape) -> Codes:
        """The network's input."""
        return self._real(RealInput(name, shape), shape)

    def dense(self, name: str, x: Codes, weight: ArrayLike, bias: ArrayLike) -> Codes:
        """weight · x + bias over the last axis of x; weight (out, in), bias (out,)."""
        weights, biases = as_reals(weight, name), as_reals(bias, name)
        if weights.ndim != 2 or x.shape[-1:] != weights.shape[1:] or biases.shape != weights.shape[:1]:
            raise InvalidNetworkError(name, f"weight {weights.shape} and bias {biases.shape} do not fit the input {x.shape}")
        if len(x.shape) == 1:
            return self._real(RealDense(name, (x.node,), weights, biases), weights.shape[:1])
        kernel = weights[:, :, None, None]
        return self.on_last_axis(name, x, lambda image: self.convolution(name, image, kernel, biases, Window((1, 1))))

    def convolution(self, name: str, x: Codes, weight: ArrayLike, bias: ArrayLike, window: Window, groups: int = 1) -> Codes:
        """Cross-correlation, zero padded; x (channels, height, width), weight as in `RealConvolution`."""
        node = RealConvolution(name, (x.node,), as_reals(weight, name), as_reals(bias, name), window, groups)
        return self._real(node, self._windowed(name, x, window, node.weight.shape[0]))

    def average(self, name: str, x: Codes, window: Window, divisor: ArrayLike) -> Codes:
        """The sum over each window, zero padded, over ``divisor``, which broadcasts to the result."""
        node = RealAverage(name, (x.node,), window, as_integers(divisor, name))
        return self._real(node, self._windowed(name, x, window, x.shape[0]))

    def scale(
        self,
        name: str,
        x: Codes,
        factor: ArrayLike,
        shift: ArrayLike,
        factor_error: ArrayLike = 0.0,
        shift_error: ArrayLike = 0.0,
    ) -> Codes:
        """x · factor + shift; the operands broadcast to x, and are as in `RealScale`."""
        axes = len(x.shape)
        operands = [as_reals(np.asarray(value, dtype=np.float64), name) for value in (factor, shift, factor_error, shift_error)]
        lifted = [value.reshape((1,) * (axes - value.ndim) + value.shape) for value in operands]
        return self._real(RealScale(name, (x.node,), *lifted), x.shape)

    def divide(self, name: str, x: Codes, divisor: ArrayLike) -> Codes:
        """x / divisor, where 1 / divisor is rounded to float64."""
        exact = np.asarray(divisor, dtype=np.float64)
        with np.errstate(divide="ignore", over="ignore", under="ignore"):
            inverse = 1 / exact
        if not np.all(np.isfinite(inverse) & (np.abs(inverse) >= np.finfo(np.float64).tiny)):
            raise InvalidNetworkError(name, "divides by zero, or by a number whose inverse is no float64")
        return self.scale(name, x, inverse, np.zeros(1), factor_error=np.abs(inverse) * 2.0**-52)

    def normalize(
        self,
        name: str,
        x: Codes,
        gamma: FloatArray,
        beta: FloatArray,
        mean: FloatArray,
        variance: FloatArray,
        epsilon: float,
    ) -> Codes:
        """Batch normalization: (x − mean) · gamma / √(variance + epsilon) + beta, channel by channel of the first axis.

        Factor and shift are computed in float64 and rounded once to float32: the network is the one with these constants.
        """
        size = x.shape[0]
        if any(array.shape != (size,) for array in (gamma, beta, mean, variance)):
            raise InvalidNetworkError(name, f"its statistics do not fit {size} channels")
        if not np.all(variance + epsilon > 0):
            raise InvalidNetworkError(name, "variance + epsilon is not positive")
        factor = _once(gamma / np.sqrt(variance + epsilon))
        shift = _once(beta - mean * factor)
        granted = NORMALIZATION_ROUNDINGS * UNIT
        errors = granted * np.abs(factor), granted * (np.abs(beta) + np.abs(mean * factor))
        column = (size,) + (1,) * (len(x.shape) - 1)
        if not np.all(np.isfinite(factor) & np.isfinite(shift)):
            raise InvalidNetworkError(name, "its factor or shift is beyond float32")
        return self.scale(name, x, *(value.reshape(column) for value in (factor, shift, *errors)))

    def relu(self, name: str, x: Codes) -> Codes:
        return self._real(Relu(name, (x.node,)), x.shape)

    def leaky_relu(self, name: str, x: Codes, slope: ArrayLike) -> Codes:
        """x where it is positive, else slope · x: x⁺ − slope · (−x)⁺; ``slope`` broadcasts to x."""
        below = self.relu(f"{name}/below", self.scale(f"{name}/negative", x, -1.0, 0.0))
        fallen = self.scale(f"{name}/slope", below, -np.asarray(slope, dtype=np.float64), 0.0)
        return self.add(name, [self.relu(f"{name}/above", x), fallen])

    def clip(self, name: str, x: Codes, low: float, high: float) -> Codes:
        """min(max(x, low), high), by ReLU: low + (x − low)⁺ and high − (high − x)⁺; either bound may be infinite."""
        if not low <= high:
            raise InvalidNetworkError(name, f"clips to the empty range {low} … {high}")
        if low == 0:
            x = self.relu(f"{name}/positive", x)
        elif np.isfinite(low):
            x = self.relu(f"{name}/above", self.scale(f"{name}/from_low", x, 1.0, -low))
            x = self.scale(f"{name}/low", x, 1.0, low)
        if np.isfinite(high):
            x = self.relu(f"{name}/below", self.scale(f"{name}/to_high", x, -1.0, high))
            x = self.scale(f"{name}/high", x, -1.0, high)
        return x

    def add(self, name: str, inputs: Sequence[Codes]) -> Codes:
        """The sum of tensors of one shape."""
        return self._real(Add(name, tuple(x.node for x in inputs)), inputs[0].shape)

    def build(self, output: Codes, metadata: Mapping[str, str]) -> RealNetwork:
        """The network that computes ``output``, flattened, without the nodes it does not read.

        Raises:
            InvalidNetworkError: a node breaks a rule of the real network.
        """
        if len(output.shape) != 1:
            output = self.reshape("flattened output", output, (int(np.prod(output.shape)),))
        nodes = self._needed(output)
        if not any(isinstance(node, RealInput) for node in nodes):
            raise InvalidNetworkError(None, "the output does not depend on the input")
        return RealNetwork(nodes, metadata)


def _once(values: FloatArray) -> FloatArray:
    """Rounded to float32."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64)


def averaged_elements(shape: Shape, window: Window, count_padding: bool) -> IntegerArray:
    """How many elements each position of an average pool averages; shape (1, height, width), or (1, 1, 1) if always equal."""
    elements = window.kernel[0] * window.kernel[1]
    if count_padding or not any(window.padding):
        return np.full((1, 1, 1), elements, dtype=np.int64)
    ones = np.ones((1, 1, *shape[1:]), dtype=np.int64)
    return windows(ones, window).sum(axis=(-2, -1))[0]
