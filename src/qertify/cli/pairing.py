"""The question that the flags of ``equiv`` ask, and its counterexamples on the original runtimes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from qertify.cli.common import say
from qertify.cli.flags import RegionFlags
from qertify.errors import InvalidInputError, MissingExtraError, ReplayError
from qertify.importers.original import Original
from qertify.importers.registry import ImportOptions, load_model
from qertify.inputs import read_raw_row
from qertify.network.network import Network
from qertify.network.real import RealNetwork
from qertify.queries.equivalence import describe
from qertify.queries.equivalence_result import EquivalenceResult
from qertify.runtimes.base import RUNTIMES, runtime_of
from qertify.runtimes.float_models import replay_float
from qertify.search.comparison import EquivalenceQuery, FloatSemantics
from qertify.search.paired_input import PairedInput, code_factor, grid, interval
from qertify.specification.region import IntegerBox, linf_ball
from qertify.specification.units import Unit, parse_rational

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
    inputs = region_of(quantized, read_raw_row(input_, quantized.input_shape), region, scale)
    query = EquivalenceQuery(original, quantized, inputs, delta, top1, output, semantics)
    found = describe(inputs)
    kind = "codes" if inputs.is_grid else "real inputs"
    say(f"region: {kind}; {found['free_inputs']} of {found['inputs']} inputs vary, codes {found['low']} … {found['high']}")
    return query


def region_of(network: Network, centre: np.ndarray, region: RegionFlags, input_scale: str | None) -> PairedInput:
    """The region that flags mean around an input as it is stored.

    Raises:
        InvalidInputError: whatever is wrong with the flags, or an empty region.
    """
    if (region.lower is None) != (region.upper is None):
        raise InvalidInputError("--lower and --upper go together")
    if (region.radius is None) == (region.lower is None):
        raise InvalidInputError("give a region: either --radius, or --lower and --upper")
    radius = None if region.radius is None else parse_rational(region.radius, "radius")
    if radius is not None and radius < 0:
        raise InvalidInputError(f"radius {region.radius} is negative")
    scale = None if input_scale is None else parse_rational(input_scale, "input scale")
    if scale is not None and scale <= 0:
        raise InvalidInputError(f"input scale {input_scale} must be positive")
    factor = code_factor(network) if scale is None else scale
    reads_codes = _reads_codes(network)
    are_codes = reads_codes and centre.dtype.kind != "f"
    unit = unit_of(network, region)
    if not reads_codes and region.radius_unit is None and region.radius is not None and region.radius.strip().isdecimal():
        raise InvalidInputError(f"radius {region.radius}: these models read real inputs, so name the unit with --radius-unit")
    if unit is Unit.PIXEL:
        raise InvalidInputError("a radius in pixels is not supported here; use levels or real, and --input-scale")
    limits = None if region.input_range is None else [parse_rational(text, "input range") for text in region.input_range]
    if limits is not None and limits[0] > limits[1]:
        raise InvalidInputError("the region is empty: the input range is upside down")
    if unit is Unit.LEVELS:
        if region.lower is not None and region.upper is not None:
            ends = [codes_of(network, read_raw_row(text, network.input_shape), factor) for text in (region.lower, region.upper)]
            box = IntegerBox(ends[0], ends[1])
        else:
            assert radius is not None
            codes = codes_of(network, centre, factor)
            box = linf_ball(codes, math.floor(radius), network.input.low, network.input.high)
        if limits is not None:
            box = IntegerBox(np.maximum(box.low, math.ceil(limits[0])), np.minimum(box.high, math.floor(limits[1])))
        return grid(network, box, factor)
    zero = int(network.input_quantization.zero_point[0])

    def reals(array: np.ndarray) -> np.ndarray:
        values = [Fraction(value) for value in array.reshape(-1).tolist()]
        result = np.empty(len(values), dtype=object)
        result[:] = [(value - zero) * factor for value in values] if array.dtype.kind != "f" and are_codes else values
        return result.reshape(array.shape)

    if region.lower is not None and region.upper is not None:
        low, high = (reals(read_raw_row(text, network.input_shape)) for text in (region.lower, region.upper))
    else:
        middle = reals(centre)
        low, high = middle - radius, middle + radius
    if limits is None and network.runtime_profile == "fixed-point":  # these have a domain of their own
        limits = [(end - zero) * factor for end in (network.input.low, network.input.high)]
    if limits is not None:
        first, last = (np.array(limit, dtype=object) for limit in limits)
        low, high = np.maximum(low, first), np.minimum(high, last)
    return interval(network, low, high, factor if reads_codes else scale)


def unit_of(network: Network, region: RegionFlags) -> Unit:
    """What a radius of one means."""
    return region.radius_unit or (Unit.LEVELS if _reads_codes(network) else Unit.REAL)


def _reads_codes(network: Network) -> bool:
    if network.runtime_profile not in RUNTIMES:
        return True
    codes = np.full(network.input_shape, network.input.low)
    return runtime_of(network).real_input(codes).dtype.kind in "iu"


def codes_of(network: Network, array: np.ndarray, factor: Fraction) -> np.ndarray:
    """Codes as given, or those of real inputs."""
    low, high = network.input.low, network.input.high
    if array.dtype.kind == "f":
        if not _reads_codes(network):
            return runtime_of(network).quantize_input(array[None].astype(np.float32))[0]
        return interval(network, array, array, factor).box.low
    codes = array.astype(np.int64)
    if codes.min() < low or codes.max() > high:
        raise InvalidInputError(f"codes {codes.min()} … {codes.max()} leave the valid range {low} … {high}")
    return codes


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
            real = runtime_of(network).real_input(codes) if _reads_codes(network) else x
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
