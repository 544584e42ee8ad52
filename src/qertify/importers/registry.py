"""The one table of model formats: suffix → importer. Adding a format is one line here and one file beside this one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path

from qertify.errors import InvalidInputError, MissingExtraError, ModelFileError
from qertify.network.network import Network


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
    """

    bits: int | None = None
    input_bits: int | None = None
    weights: str | None = None
    input_shape: tuple[int, ...] | None = None
    trust_code: bool | None = None
    runtime: str | None = None

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
        ("bits", "input_bits", "weights"),
        ("bits",),
    ),
    ".qnet": Format("qertify's own format", "qertify.network.storage:load"),
    ".onnx": Format("ONNX", "qertify.importers.onnx_quantized:load_onnx", ("input_shape",), extra="onnx"),
    ".tflite": Format("TensorFlow Lite", "qertify.importers.tflite_quantized:load_tflite", ("runtime",), extra="tflite"),
    ".ts.pt": Format(
        "TorchScript", "qertify.importers.torch_quantized:load_torchscript", ("input_shape", "trust_code", "runtime")
    ),
    ".pt2": Format("torch.export"),
}
"""Suffix of the file's name, lower case → format. No suffix may end with another one."""


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format of a file, by its name alone.

    Raises:
        ModelFileError: a suffix that is not in the table.
    """
    name = Path(path).name.lower()
    found = next((FORMATS[suffix] for suffix in FORMATS if name.endswith(suffix)), None)
    if found is None:
        readable = ", ".join(suffix for suffix, entry in FORMATS.items() if entry.importer)
        raise ModelFileError(f"{path}: unknown model format; readable suffixes are {readable}")
    return found


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
    found, given = format_of(path), (options or ImportOptions()).given()
    if found.importer is None:
        readable = ", ".join(suffix for suffix, entry in FORMATS.items() if entry.importer)
        raise ModelFileError(f"{path}: {found.name} files can't be read by this version; readable suffixes are {readable}")
    for name in given:
        if name not in found.options:
            raise InvalidInputError(f"{_flag(name)} has no meaning for {found.name} ({path})")
    for name in found.required:
        if name not in given:
            raise InvalidInputError(f"{path}: {found.name} need {_flag(name)}")
    module, function = found.importer.split(":")
    try:
        importer: Callable[..., Network] = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        if found.extra is None:
            raise
        raise MissingExtraError(f"reading {found.name} files", found.extra) from error
    if not Path(path).exists():
        raise ModelFileError(f"{path}: no such file")
    return importer(path, **given)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
