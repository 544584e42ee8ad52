"""Groups of flags that several commands share: one dataclass a group, spelt out for the parser by `with_flags`."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from qertify.errors import InvalidInputError
from qertify.importers.registry import ImportOptions
from qertify.options import Method, Options
from qertify.runtimes.saturation import CpuClass
from qertify.specification.property import Ties
from qertify.specification.units import Unit, parse_rational

if TYPE_CHECKING:
    from qertify.network.network import Network
    from qertify.parallel.place import Place
    from qertify.specification.pixels import Preprocessing

INPUT_HELP = "FILE, FILE[17] or FILE[0:10]: .npy, .npz or idx data."

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Model file, its format by its suffix.", show_default=False)
]
InputOption = Annotated[str, typer.Option("--input", "-i", metavar="X", help=INPUT_HELP, show_default=False)]
InputsOption = Annotated[str, typer.Option("--inputs", metavar="XS", help=INPUT_HELP, show_default=False)]
TiesOption = Annotated[Ties, typer.Option("--ties", help="Who wins a tie.")]
TargetOption = Annotated[
    int | None, typer.Option("--target", metavar="J", help="Only ask whether class J can overtake the label.")
]
InputRangeOption = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--input-range", metavar="LO HI", help="Cut the region to these inputs (codes for levels).", show_default=False
    ),
]
UnitOption = Annotated[
    Unit | None,
    typer.Option("--radius-unit", help="What a radius of one means.", show_default="levels for codes, real for real inputs"),
]
EncodingOption = Annotated[str, typer.Option("--encoding", help="Form of integer programs: compact or one-hot.")]
CpuClassOption = Annotated[
    CpuClass | None,
    typer.Option("--cpu-class", help="How the deployed CPU multiplies bytes.", show_default="this machine's"),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", metavar="S", help="Hard limit on the wall clock, in seconds; of one question in a campaign."),
]
MemoryOption = Annotated[
    float | None, typer.Option("--memory", metavar="GB", help="Hard limit on the memory of all processes together.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]


class Weights(str, Enum):
    """Spelled here too, so that parsing needs no importer."""

    VERIFIER = "verifier"
    TENSORFLOW = "tensorflow"


@dataclass(frozen=True, slots=True)
class ModelFlags:
    """How the model's file is read."""

    bits: Annotated[int | None, typer.Option(help="Quantization bits of an .h5 model.", show_default=False)] = None
    input_bits: Annotated[
        int | None, typer.Option(help="Bits of an input code of an .h5 model (8 if not given).", show_default=False)
    ] = None
    weights: Annotated[
        Weights | None,
        typer.Option(help="How an .h5 model's weights become codes (verifier if not given).", show_default=False),
    ] = None
    scheme: Annotated[
        str | None,
        typer.Option(help="Arithmetic of an .h5 model: qvip (if not given), qebverif or qebverif-acasxu.", show_default=False),
    ] = None
    input_shape: Annotated[
        str | None, typer.Option(metavar="N,…", help="Input shape of a model that leaves it open.", show_default=False)
    ] = None
    runtime: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose arithmetic, for formats that several runtimes run.", show_default=False),
    ] = None
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Let code in the model file run; a TorchScript file (.ts.pt) is a program.")
    ] = False
    allow_float_islands: Annotated[
        bool,
        typer.Option("--allow-float-islands", help="Enclose what the runtime computes in float between quantized operators."),
    ] = False

    def options(self) -> ImportOptions:
        """The flags as the importers take them.

        Raises:
            InvalidInputError: an input shape that is not a list of positive integers.
        """
        shape = None
        if self.input_shape is not None:
            if not re.fullmatch(r"[1-9]\d{0,8}(,[1-9]\d{0,8}){0,7}", self.input_shape, re.ASCII):
                raise InvalidInputError(f"input shape '{self.input_shape}' is not a list of sizes like 1,3,32,32")
            shape = tuple(int(size) for size in self.input_shape.split(","))
        return ImportOptions(
            self.bits,
            self.input_bits,
            None if self.weights is None else self.weights.value,
            shape,
            runtime=self.runtime,
            trust_code=self.trust_code or None,
            allow_float_islands=self.allow_float_islands or None,
            scheme=self.scheme,
        )


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """Which engines may answer, with which limits; memory in gigabytes."""

    method: Annotated[Method, typer.Option(help="Engines that may answer.")] = Method.AUTO
    solver: Annotated[str, typer.Option(help="Solver of integer programs: highs, cp-sat, scip or gurobi.")] = "highs"
    device: Annotated[str, typer.Option(help="Where bounds are computed: cpu or cuda.")] = "cpu"
    cpu_class: CpuClassOption = None
    timeout: TimeoutOption = None
    memory: MemoryOption = None
    seed: Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=2**63 - 1)] = 0
    accept_solver_claims: Annotated[
        bool, typer.Option("--accept-solver-claims", help="Take a floating-point solver's claim for a proof.")
    ] = False

    def options(self, encoding: str = "compact") -> Options:
        """The flags as the engines take them.

        Raises:
            InvalidInputError: an unknown solver, encoding or device, no CUDA device, a limit that is not positive and finite.
            MissingExtraError: a solver that is not installed.
        """
        for what, limit in (("timeout", self.timeout), ("memory limit", self.memory)):
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise InvalidInputError(f"{what} {limit} must be a positive number")
        options = Options(
            method=self.method,
            solver=self.solver,
            encoding=encoding,
            timeout=self.timeout,
            memory=None if self.memory is None else int(self.memory * 1e9),
            seed=self.seed,
            device=self.device,
            accept_solver_claims=self.accept_solver_claims,
            cpu_class=None if self.cpu_class is None else self.cpu_class.value,
        )
        if options.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise InvalidInputError("device 'cuda' is not available on this machine")
        return options


@dataclass(frozen=True, slots=True)
class ComparisonFlags:
    """What is asked of two models, but for a delta, and what the first one is."""

    top1: Annotated[bool, typer.Option("--top1", help="Do both predict the same class?")] = False
    max_delta: Annotated[bool, typer.Option("--max-delta", help="What is the greatest difference of the outputs?")] = False
    output: Annotated[int | None, typer.Option(metavar="I", help="Only this output counts.", show_default=False)] = None
    float_semantics: Annotated[str, typer.Option(metavar="real|float32-bounded", help="What the float model computes.")] = (
        "real"
    )
    input_scale: Annotated[
        str | None,
        typer.Option(metavar="S", help="What one input code is to the float model, for example 1/255.", show_default=False),
    ] = None
    original_bits: Annotated[
        int | None, typer.Option(help="Bits of FLOAT_MODEL, if it is a quantized .h5 model.", show_default=False)
    ] = None
    original_runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help="Runtime of FLOAT_MODEL, if it is a quantized model.", show_default=False)
    ] = None
    coupled: Annotated[
        bool, typer.Option("--coupled", help="Integer programs get the rows that tie the two models together, too.")
    ] = False

    def check(self, deltas: int) -> None:
        """Raises:
        InvalidInputError: no question or several, or unknown semantics; ``deltas`` says how many deltas are asked.
        """
        if (deltas > 0) + self.top1 + self.max_delta != 1:
            raise InvalidInputError("ask one question: --delta D, --top1 or --max-delta")
        if self.float_semantics not in ("real", "float32-bounded"):
            raise InvalidInputError(f"float semantics '{self.float_semantics}' is neither real nor float32-bounded")


def parse_delta(text: str) -> Fraction:
    """A difference as it was spelt.

    Raises:
        InvalidInputError: not a positive number.
    """
    if (delta := parse_rational(text, "delta")) <= 0:
        raise InvalidInputError(f"delta {text} must be positive")
    return delta


@dataclass(frozen=True, slots=True)
class PlaceFlags:
    """Who shares the work."""

    workers: Annotated[
        int, typer.Option(metavar="N", help="Processes of this machine, each with one thread.", min=1, max=1024)
    ] = 1
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Use the Dask cluster whose scheduler is there.", show_default=False)
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(metavar="slurm:…", help="Start a cluster: slurm:jobs=4,cores=32,memory=64GB,…", show_default=False),
    ] = None

    def place(self) -> Place:
        """The flags as one value.

        Raises:
            QertifyError: as `qertify.parallel.place.parse_place`.
        """
        from qertify.parallel.place import parse_place

        return parse_place(self.workers, self.scheduler, self.cluster)


@dataclass(frozen=True, slots=True)
class RegionFlags:
    """The region as asked for: a ball, or the box between two files, either cut to a range of codes."""

    radius: Annotated[str | None, typer.Option(metavar="R", help="Radius: 3, 2/255, 0.03.", show_default=False)] = None
    radius_unit: UnitOption = None
    lower: Annotated[str | None, typer.Option(metavar="L", help="Lower bounds of a box, instead of --radius.")] = None
    upper: Annotated[str | None, typer.Option(metavar="U", help="Upper bounds of a box, instead of --radius.")] = None
    input_range: InputRangeOption = None


@dataclass(frozen=True, slots=True)
class PixelFlags:
    """How 8-bit images become a model's real inputs: (pixel / 255 − mean) / std."""

    mean: Annotated[
        str | None,
        typer.Option(metavar="M,…", help="Inputs are 8-bit images: mean of pixel/255, or one a channel.", show_default=False),
    ] = None
    std: Annotated[str | None, typer.Option(metavar="S,…", help="Likewise the standard deviation.", show_default=False)] = None

    def preprocessing(self, network: Network, unit: Unit | None = None) -> Preprocessing | None:
        """The flags for a network; None where inputs are what the model reads.

        Raises:
            InvalidInputError: not a list of numbers that fits the input's shape, or a model that reads codes.
        """
        from qertify.runtimes.base import reads_codes
        from qertify.specification.pixels import preprocessing

        given = self.mean is not None or self.std is not None
        if not given and (unit is not Unit.PIXEL or reads_codes(network)):
            return None
        if reads_codes(network):
            raise InvalidInputError("--mean and --std are for models that read real inputs; this one reads codes")
        numbers = [
            [float(parse_rational(part, f"--{name}")) for part in (text or default).split(",")]
            for name, text, default in (("mean", self.mean, "0"), ("std", self.std, "1"))
        ]
        return preprocessing(network.input_shape, *numbers)


@dataclass(frozen=True, slots=True)
class LabelFlags:
    """The class that must win, and against whom."""

    label: Annotated[int | None, typer.Option(metavar="K", help="The true class; the predicted one if not given.")] = None
    labels: Annotated[str | None, typer.Option(metavar="FILE", help="Take the label from here, at the input's row.")] = None
    target: TargetOption = None
    ties: TiesOption = Ties.FIRST


def with_flags(command: Callable[..., int]) -> Callable[..., int]:
    """A command whose parameters that are groups of flags are replaced by the flags themselves."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        flags = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(item.name, parameter.kind, default=item.default, annotation=flags[item.name])
            for item in fields(groups[name])
        ]

    @functools.wraps(command)
    def spelt_out(**values: Any) -> int:
        for name, group in groups.items():
            values[name] = group(**{item.name: values.pop(item.name) for item in fields(group)})
        return command(**values)

    vars(spelt_out)["__signature__"] = inspect.Signature(parameters, return_annotation=hints["return"])
    spelt_out.__annotations__ = {item.name: item.annotation for item in parameters} | {"return": hints["return"]}
    return spelt_out
