"""The question that the flags of ``equiv`` ask, and its counterexamples on the original runtimes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from qertify.cli.common import say
from qertify.cli.flags import PixelFlags, RegionFlags
from qertify.errors import InvalidInputError, MissingExtraError, ReplayError
from qertify.importers.original import Original
from qertify.importers.registry import ImportOptions, load_model
from qertify.inputs import read_raw_rows, read_rows
from qertify.network.network import Network
from qertify.network.real import RealNetwork
from qertify.network.tensor import IntegerArray
from qertify.queries.equivalence import describe
from qertify.queries.equivalence_result import EquivalenceResult
from qertify.queries.posing import ExactArray, cut, limits_of, radius_of
from qertify.runtimes.base import RUNTIMES, reads_codes, runtime_of
from qertify.runtimes.float32 import Float32Array
from qertify.runtimes.float_models import replay_float
from qertify.search.comparison import EquivalenceQuery, FloatSemantics
from qertify.search.paired_input import Codes, PairedInput, codes_of, grid, images, interval
from qertify.specification.pixels import PixelBox, Preprocessing
from qertify.specification.region import IntegerBox, exact_array, linf_ball
from qertify.specification.units import Unit, parse_rational, radius_in_levels

SOFTMAX_TIE = 1e-5
"""Scores this close to each other, relative to the greatest, may be equal after a float32 softmax."""


@dataclass(frozen=True, slots=True)
class Files:
    """The two models; ``bits`` and ``runtime`` make the first one a quantized model, too."""

    original: Path
    quantized: Path
    flags: ImportOptions
    bits: int | None = None
    runtime: str | None = None

    @property
    def first(self) -> Original:
        return Original(self.original, self.flags, self.bits, self.runtime)

    def load(self) -> tuple[RealNetwork | Network, Network]:
        """Both networks.

        Raises:
            QertifyError: a model that can't be read, or models that read inputs of different sizes.
        """
        quantized, original = load_model(self.quantized, self.flags), self.first.load()
        shapes = original.input_shape, quantized.input_shape
        if shapes[0] != shapes[1] and math.prod(shapes[0]) != math.prod(shapes[1]):
            raise InvalidInputError(f"the models read inputs of shapes {shapes[0]} and {shapes[1]}")
        return original, quantized


def ask(
    files: Files,
    input_: str,
    region: RegionFlags,
    pixels: PixelFlags,
    scale: str | None,
    delta: Fraction | None,
    top1: bool,
    output: int | None,
    semantics: FloatSemantics,
) -> EquivalenceQuery:
    """The query; says on stderr how the region was understood. ``scale`` is what one code is to the float model.

    Raises:
        QertifyError: whatever is wrong with the flags, the models, the input or the region.
    """
    original, quantized = files.load()
    view = View.of(quantized, scale, pixels.preprocessing(quantized, region.radius_unit))
    inputs = view.region(view.row(input_), region)
    query = EquivalenceQuery(original, quantized, inputs, delta, top1, output, semantics)
    found = describe(inputs)
    kind = {"images": "8-bit images", "codes": "codes", "real_box": "real inputs"}[inputs.kind]
    say(f"region: {kind}; {found['free_inputs']} of {found['inputs']} inputs vary, codes {found['low']} … {found['high']}")
    return query


@dataclass(frozen=True, slots=True)
class View:
    """How a quantized network's inputs are given in files.

    Attributes:
        codes: what its codes are to the float model.
        prepare: how images become inputs, where images are given.
    """

    network: Network
    codes: Codes
    prepare: Preprocessing | None

    @staticmethod
    def of(network: Network, input_scale: str | None, prepare: Preprocessing | None) -> View:
        """``input_scale``: what one code is to the float model, as it was spelt, if it was.

        Raises:
            InvalidInputError: a scale that is no positive number, or that has no meaning for the network.
        """
        scale = None if input_scale is None else parse_rational(input_scale, "input scale")
        return View(network, codes_of(network, scale), prepare)

    def rows(self, text: str) -> tuple[IntegerArray, np.ndarray]:
        """(positions in the file, rows): images, codes, or what the float model reads.

        Raises:
            InvalidInputError: as `qertify.inputs.read_rows`.
        """
        if self.prepare is not None:
            found = read_rows(text, self.network, self.prepare)
            assert found.pixels is not None
            return found.index, found.pixels
        index, rows = read_raw_rows(text, self.network.input_shape)
        if rows.dtype.kind == "f" or not reads_codes(self.network):
            return index, rows.astype(np.float64)
        low, high = self.network.input.low, self.network.input.high
        if int(rows.min()) < low or int(rows.max()) > high:
            raise InvalidInputError(f"codes {rows.min()} … {rows.max()} leave the valid range {low} … {high}")
        return index, rows.astype(np.int64)

    def row(self, text: str) -> np.ndarray:
        """One of them.

        Raises:
            InvalidInputError: also if there are several rows.
        """
        _, rows = self.rows(text)
        if len(rows) != 1:
            raise InvalidInputError(f"'{text}' holds {len(rows)} rows; name one, as in {text}[0]")
        return rows[0]

    def read(self, rows: np.ndarray) -> tuple[Float32Array, IntegerArray]:
        """What the float model reads of rows, and their codes."""
        if self.prepare is None and rows.dtype.kind != "f":
            return self.codes.stand_for(rows), rows
        x = rows.astype(np.float32) if self.prepare is None else self.prepare.apply(rows)
        return x, self.codes.quantize(x)

    def unit(self, region: RegionFlags) -> Unit:
        """What a radius of one means."""
        return region.radius_unit or (Unit.LEVELS if reads_codes(self.network) else Unit.REAL)

    def region(self, centre: np.ndarray, region: RegionFlags) -> PairedInput:
        """The region that flags mean around a row.

        Raises:
            InvalidInputError: whatever is wrong with the flags, or an empty region.
        """
        network, unit, radius, limits = self.network, self.unit(region), radius_of(region), limits_of(region)
        if unit is Unit.REAL and region.radius_unit is None and region.radius is not None and region.radius.strip().isdecimal():
            raise InvalidInputError(
                f"radius {region.radius}: these models read real inputs, so name the unit with --radius-unit"
            )
        if unit is Unit.PIXEL and self.prepare is not None:
            if radius is None or limits is not None:
                raise InvalidInputError("a region in pixels is given by --radius alone, without a box or --input-range")
            ball = PixelBox(centre, centre, centre, self.prepare, runtime_of(network).quantize_input)
            return images(network, ball.around(math.floor(radius)))
        if unit is Unit.REAL:
            low, high = self._reals(centre, region, radius)
            if limits is None and network.runtime_profile == "fixed-point":  # these have a domain of their own
                first, last = self._real(np.array([network.input.low, network.input.high]))
                limits = first, last
            if limits is not None:
                first, last = (np.array(limit, dtype=object) for limit in limits)
                low, high = np.maximum(low, first), np.minimum(high, last)
            return interval(network, low, high, self.codes.one)
        return grid(network, cut(self._levels(centre, region, radius, unit), region), self.codes.one)

    def _levels(self, centre: np.ndarray, region: RegionFlags, radius: Fraction | None, unit: Unit) -> IntegerBox:
        """A region of codes."""
        if radius is None:
            ends = np.stack([self.row(str(text)) for text in (region.lower, region.upper)])
            return IntegerBox(*self.read(ends)[1])
        reach = math.floor(radius_in_levels(self.network, radius, unit))
        return linf_ball(self.read(centre[None])[1][0], reach, self.network.input.low, self.network.input.high)

    def _reals(self, centre: np.ndarray, region: RegionFlags, radius: Fraction | None) -> tuple[ExactArray, ExactArray]:
        """Bounds of a region of what the float model reads."""
        if radius is None:
            low, high = (self._real(self.row(str(text))) for text in (region.lower, region.upper))
            return low, high
        middle = self._real(centre.astype(np.float32) if centre.dtype.kind == "f" else centre)
        return middle - radius, middle + radius

    def _real(self, row: np.ndarray) -> ExactArray:
        """What the float model reads of a row, exactly."""
        if self.prepare is not None:
            return exact_array(self.prepare.apply(row[None])[0])
        exact, zero = exact_array(row), int(self.network.input_quantization.zero_point[0])
        return exact if row.dtype.kind == "f" else (exact - zero) * self.codes.one


def confirm(result: EquivalenceResult, query: EquivalenceQuery, original: Path, quantized: Path) -> EquivalenceResult:
    """Replay the reported input on the runtimes of both models, as far as there are any.

    Raises:
        ReplayError: a runtime disagrees with the exact evaluation by more than it may.
    """
    found = result.counterexample
    if found is None:
        return result
    x = np.array(found.input, dtype=np.float32).reshape(query.original.input_shape)
    seen: list[str] = []
    for network, path in ((query.original, original), (query.quantized, quantized)):
        if isinstance(network, RealNetwork):
            try:
                runtime, outputs = replay_float(path, x[None])
            except MissingExtraError:
                continue
            assert result.float32_error is not None
            if not _near(outputs[0], network.metadata.get("output", "values"), np.array(found.original), result.float32_error):
                raise ReplayError(f"{runtime} is further from real arithmetic than proved; please report this defect")
            seen.append(runtime)
        elif network.runtime_profile in RUNTIMES and path.suffix != ".qnet":
            codes = np.array(found.levels, dtype=np.int64).reshape(network.input_shape)
            real = runtime_of(network).real_input(codes) if reads_codes(network) else x
            replay = runtime_of(network).replay(path, real[None])
            if not bool(replay.agrees[0]) or not np.array_equal(replay.codes[0], codes):
                raise ReplayError(f"an input does not replay on {replay.runtime}; please report this defect")
            seen.append(replay.runtime)
    return replace(result, counterexample=replace(found, replayed_on=" and ".join(seen) or "reference"))


def _near(outputs: np.ndarray, kind: str, exact: np.ndarray, error: float) -> bool:
    """Whether a float32 run is as near to real arithmetic as proved; where it decides, whether its class may be right."""
    if kind == "values":
        return bool(np.all(np.abs(outputs - exact) <= error * (1 + 1e-9) + np.abs(exact) * 2.0**-50))
    chosen = int(outputs[0]) if kind == "argmax" else int(outputs.argmax())
    return bool(exact[chosen] >= exact.max() - 2 * error - (1 + np.abs(exact).max()) * SOFTMAX_TIE)
