"""The one table of model formats: suffix → importer. Adding a format is one line here and one file beside this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from qertify.errors import InvalidInputError, MissingExtraError, ModelFileError
from qertify.network.network import Network
from qertify.network.real import RealNetwork


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What a file does not say about itself. None means "not given"; an importer only gets what was given.

    Attributes:
        bits: quantization bits of a fixed-point network.
        input_bits: bits of its input codes.
        weights: how its float weights become codes, "verifier" or "tensorflow".
        input_shape: full shape of its input, batch axis first, where the file leaves it open.
        trust_code: whether code in the file may run.
        runtime: whose arithmetic a file gets that several runtimes, or kernels of one, run differently.
        allow_float_islands: whether what a runtime computes in float between quantized operators may be enclosed.
        scheme: which published arithmetic a fixed-point network has, "qvip", "qebverif" or "qebverif-acasxu".
    """

    bits: int | None = None
    input_bits: int | None = None
    weights: str | None = None
    input_shape: tuple[int, ...] | None = None
    trust_code: bool | None = None
    runtime: str | None = None
    allow_float_islands: bool | None = None
    scheme: str | None = None

    def given(self) -> dict[str, object]:
        """The options that were given, by name."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) is not None}


@dataclass(frozen=True, slots=True)
class Format:
    """How to read one kind of file.

    Attributes:
        name: for messages.
        importer: "module:function", called with the path and the given options as keywords; None while nobody wrote it.
        options: names of the `ImportOptions` it takes.
        required: those that it can't do without.
        extra: the extra that brings its dependencies, or None if the base installation has them.
    """

    name: str
    importer: str | None = None
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    extra: str | None = None


FORMATS: dict[str, Format] = {
    ".h5": Format(
        "fixed-point Keras weights",
        "qertify.importers.keras_fixed_point:load_keras_fixed_point",
        ("bits", "input_bits", "weights", "scheme"),
        ("bits",),
    ),
    ".qnet": Format("qertify's own format", "qertify.network.storage:load"),
    ".onnx": Format(
        "ONNX", "qertify.importers.onnx_quantized:load_onnx", ("input_shape", "runtime", "allow_float_islands"), extra="onnx"
    ),
    ".tflite": Format("TensorFlow Lite", "qertify.importers.tflite_quantized:load_tflite", ("runtime",), extra="tflite"),
    ".ts.pt": Format(
        "TorchScript", "qertify.importers.torch_quantized:load_torchscript", ("input_shape", "trust_code", "runtime")
    ),
    ".pt2": Format("torch.export", "qertify.importers.pt2e_quantized:load_pt2e", ("runtime",)),
}
"""Suffix of the file's name, lower case → format. No suffix may end with another one."""

FLOAT_FORMATS: dict[str, Format] = {
    ".h5": Format("float Keras weights", "qertify.importers.float_keras:load_float_keras"),
    ".onnx": Format("float ONNX", "qertify.importers.float_onnx:load_float_onnx", ("input_shape",), extra="onnx"),
    ".pt2": Format("torch.export", "qertify.importers.float_torch:load_float_pt2"),
}
"""The same for float networks."""


def format_of(path: str | os.PathLike[str], formats: Mapping[str, Format] = FORMATS) -> Format:
    """The format of a file, by its name alone.

    Raises:
        ModelFileError: a suffix that is not in the table.
    """
    name = Path(path).name.lower()
    found = next((formats[suffix] for suffix in formats if name.endswith(suffix)), None)
    if found is None:
        kind = "model" if formats is FORMATS else "float model"
        raise ModelFileError(f"{path}: unknown {kind} format; readable suffixes are {_readable(formats)}")
    return found


def _readable(formats: Mapping[str, Format]) -> str:
    return ", ".join(suffix for suffix, entry in formats.items() if entry.importer)


def load_model(path: str | os.PathLike[str], options: ImportOptions | None = None) -> Network:
    """Read a model file of any known format.

    Args:
        path: the file; its suffix decides the format.
        options: what the file does not say; an option that the format does not use is an error.

    Raises:
        ModelFileError: unreadable file, unknown format, or a format without an importer.
        InvalidInputError: an option that is missing or does not belong to the format.
        UnsupportedModelError: a valid file with something qertify can't represent.
        MissingExtraError: the format needs an optional dependency.
    """
    return _load(path, options, FORMATS)


def load_float_model(path: str | os.PathLike[str], options: ImportOptions | None = None) -> RealNetwork:
    """Read a float network of any known format, as exact real arithmetic.

    Args:
        path: the file; its suffix decides the format.
        options: as `load_model`.

    Raises:
        As `load_model`; a quantized model is an UnsupportedModelError.
    """
    return _load(path, options, FLOAT_FORMATS)


def _load(path: str | os.PathLike[str], options: ImportOptions | None, formats: Mapping[str, Format]) -> Any:
    found, given = format_of(path, formats), (options or ImportOptions()).given()
    if found.importer is None:
        readable = _readable(formats)
        raise ModelFileError(f"{path}: {found.name} files can't be read by this version; readable suffixes are {readable}")
    for name in given:
        if name not in found.options:
            raise InvalidInputError(f"{_flag(name)} has no meaning for {found.name} ({path})")
    for name in found.required:
        if name not in given:
            raise InvalidInputError(f"{path}: {found.name} need {_flag(name)}")
    module, function = found.importer.split(":")
    try:
        importer: Callable[..., Any] = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        if found.extra is None:
            raise
        raise MissingExtraError(f"reading {found.name} files", found.extra) from error
    if not Path(path).exists():
        raise ModelFileError(f"{path}: no such file")
    return importer(path, **given)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
