"""Flags that several commands share, and what they mean."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from qertify.errors import InvalidInputError
from qertify.importers.registry import ImportOptions
from qertify.options import Method, Options
from qertify.runtimes.saturation import CpuClass


class Weights(str, Enum):
    """Spelled here too, so that parsing needs no importer."""

    VERIFIER = "verifier"
    TENSORFLOW = "tensorflow"


ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Model file, its format by its suffix.", show_default=False)
]
BitsOption = Annotated[int | None, typer.Option("--bits", help="Quantization bits of an .h5 model.", show_default=False)]
InputBitsOption = Annotated[
    int | None, typer.Option("--input-bits", help="Bits of an input code of an .h5 model (8 if not given).", show_default=False)
]
WeightsOption = Annotated[
    Weights | None,
    typer.Option("--weights", help="How an .h5 model's weights become codes (verifier if not given).", show_default=False),
]
SchemeOption = Annotated[
    str | None,
    typer.Option(
        "--scheme", help="Arithmetic of an .h5 model: qvip (if not given), qebverif or qebverif-acasxu.", show_default=False
    ),
]
InputShapeOption = Annotated[
    str | None,
    typer.Option("--input-shape", metavar="N,…", help="Input shape of a model that leaves it open.", show_default=False),
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(
        "--runtime", metavar="NAME", help="Whose arithmetic, for formats that several runtimes run.", show_default=False
    ),
]
TrustCodeOption = Annotated[
    bool, typer.Option("--trust-code", help="Let code in the model file run; a TorchScript file (.ts.pt) is a program.")
]
FloatIslandsOption = Annotated[
    bool,
    typer.Option("--allow-float-islands", help="Enclose what the runtime computes in float between quantized operators."),
]
SolverOption = Annotated[str, typer.Option("--solver", help="Solver of integer programs: highs, cp-sat, scip or gurobi.")]
EncodingOption = Annotated[str, typer.Option("--encoding", help="Form of integer programs: compact or one-hot.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]
INPUT_HELP = "FILE, FILE[17] or FILE[0:10]: .npy, .npz or idx data."


def import_options(
    bits: int | None,
    input_bits: int | None,
    weights: Weights | None,
    input_shape: str | None,
    runtime: str | None,
    trust_code: bool,
    allow_float_islands: bool = False,
    scheme: str | None = None,
) -> ImportOptions:
    """The model flags as one value.

    Raises:
        InvalidInputError: an input shape that is not a list of positive integers.
    """
    shape = None
    if input_shape is not None:
        if not re.fullmatch(r"[1-9]\d{0,8}(,[1-9]\d{0,8}){0,7}", input_shape, re.ASCII):
            raise InvalidInputError(f"input shape '{input_shape}' is not a list of sizes like 1,3,32,32")
        shape = tuple(int(size) for size in input_shape.split(","))
    return ImportOptions(
        bits,
        input_bits,
        None if weights is None else weights.value,
        shape,
        runtime=runtime,
        trust_code=trust_code or None,
        allow_float_islands=allow_float_islands or None,
        scheme=scheme,
    )


def engine_options(
    method: Method,
    solver: str,
    timeout: float | None,
    memory: float | None,
    seed: int,
    device: str,
    cpu_class: CpuClass | None,
    accept_solver_claims: bool = False,
    encoding: str = "compact",
) -> Options:
    """The engine flags as one value; memory in gigabytes.

    Raises:
        InvalidInputError: an unknown solver, encoding or device, a limit that is not positive and finite, or no CUDA device.
        MissingExtraError: a solver that is not installed.
    """
    for what, limit in (("timeout", timeout), ("memory limit", memory)):
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise InvalidInputError(f"{what} {limit} must be a positive number")
    options = Options(
        method=method,
        solver=solver,
        encoding=encoding,
        timeout=timeout,
        memory=None if memory is None else int(memory * 1e9),
        seed=seed,
        device=device,
        accept_solver_claims=accept_solver_claims,
        cpu_class=None if cpu_class is None else cpu_class.value,
    )
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InvalidInputError("device 'cuda' is not available on this machine")
    return options


def within(options: Options, left: float | None) -> Options:
    """The options with what is left of the time, less a little, so that the engines end in time to say how far they got."""
    return options if left is None else replace(options, timeout=max(0.85 * left - 0.1, 1e-3))


def check_writable(path: Path | None, suffix: str, flag: str) -> None:
    """Fail before the work rather than after it.

    Raises:
        InvalidInputError: another suffix, or a folder that does not exist or can't be written.
    """
    if path is None:
        return
    if path.suffix != suffix:
        raise InvalidInputError(f"{flag} {path}: the file's name must end with {suffix}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        raise InvalidInputError(f"{flag} {path}: can't write there")


def say(line: str) -> None:
    """One line for the human, on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def status_line(text: str) -> Generator[Callable[[str], None]]:
    """A live line on stderr if that is a terminal, nothing otherwise; yields what changes it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(text) as status:
        yield lambda line: status.update(escape(line))
