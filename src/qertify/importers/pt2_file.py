"""Reading torch.export files (.pt2): the graph and its weights in plain Python data, without torch and without unpickling.

The archive is a zip of a JSON description and raw weight files. torch itself would unpickle some of its members; such
members are refused here, and the example inputs, which are always pickled, are not read. Treats the file as hostile.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.errors import ModelFileError, UnsupportedModelError

SIZE_LIMIT = (1 << 31) - 1
"""Largest total of the unpacked members that are read, bytes."""
SCHEMA = 8
"""Major version of the description."""
_DTYPES: Mapping[int, str] = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f2", 7: "<f4", 8: "<f8", 12: "?"}
"""Number of a torch type in the description → numpy type."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An operand that is a tensor of the graph, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class ElementType:
    """An operand that is a type of numbers, by the name that numpy and torch share: "uint8"."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """One operator.

    Attributes:
        op: such as "aten.conv2d.default".
        arguments: by the names of the operator's schema; those with default values may be missing.
        outputs: names of the tensors it computes.
    """

    name: str
    op: str
    arguments: Mapping[str, Any]
    outputs: tuple[str, ...]

    def unsupported(self, attribute: str | None, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(self.name, self.op, attribute, reason)


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """One graph with one input and one output.

    Attributes:
        calls: in the order of execution.
        constants: parameters, buffers and constants by the names that the calls use.
        shapes: of every tensor, batch axis included; None stands for an open size.
        input_shape: without the batch axis.
        version: of the torch that wrote the file.
    """

    calls: tuple[Call, ...]
    constants: Mapping[str, NDArray[Any]]
    shapes: Mapping[str, tuple[int | None, ...]]
    input: str
    input_shape: tuple[int, ...]
    output: str
    version: str


def read_exported(path: str | os.PathLike[str]) -> ExportedGraph:
    """A checked view of a .pt2 file.

    Raises:
        ModelFileError: missing, damaged or hostile file, another version of the format, or pickled weights.
        UnsupportedModelError: several inputs or outputs, or an input that is no batch of float32 tensors of a fixed shape.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file") from error
    except OSError as error:
        raise ModelFileError(f"{path}: can't be read ({error.strerror or error})") from error
    return parse_exported(content, str(path))


def parse_exported(content: bytes, path: str) -> ExportedGraph:
    """`read_exported` of the file's content; ``path`` is for messages."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {item.filename.partition("/")[2]: item for item in archive.infolist()}
            return _graph(archive, members, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ModelFileError(f"{path}: not a torch.export file, or a truncated one") from error
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise ModelFileError(f"{path}: damaged: its description does not hold together ({reason})") from error


def _graph(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], path: str) -> ExportedGraph:
    if sum(item.file_size for item in members.values()) > SIZE_LIMIT:
        raise ModelFileError(f"{path}: larger than 2 GiB")
    if "models/model.json" not in members:
        raise ModelFileError(f"{path}: not a torch.export file: it holds no exported program")
    program = json.loads(archive.read(members["models/model.json"]))
    version = program["schema_version"]
    if version["major"] != SCHEMA:
        raise ModelFileError(f"{path}: has version {version['major']}.{version['minor']} of the format; {SCHEMA}.x is read")
    if "byteorder" in members and archive.read(members["byteorder"]).strip() != b"little":
        raise ModelFileError(f"{path}: its weights are not little-endian")
    graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
    stored = {
        **_tensors(archive, members, "weights", path),
        **_tensors(archive, members, "constants", path),
    }
    constants: dict[str, NDArray[Any]] = {}
    inputs: list[str] = []
    for spec in signature["input_specs"]:
        (kind, item), *_ = spec.items()
        if kind == "user_input":
            inputs.append(item["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            constants[item["arg"]["name"]] = stored[item[f"{kind}_name"]]
        else:
            raise UnsupportedModelError("graph", "forward", kind, "only tensors are read as inputs and constants")
    outputs = [(kind, item) for spec in signature["output_specs"] for kind, item in spec.items()]
    if len(inputs) != 1 or len(outputs) != 1 or outputs[0][0] != "user_output":
        reason = f"it has {len(inputs)} inputs and {len(outputs)} outputs; one of each is needed"
        raise UnsupportedModelError("graph", "forward", None, reason)
    shapes = {name: _shape(meta) for name, meta in graph["tensor_values"].items()}
    meta = graph["tensor_values"][inputs[0]]
    shape = shapes[inputs[0]]
    if _DTYPES.get(meta["dtype"]) != "<f4":
        raise UnsupportedModelError(inputs[0], "input", "type", "float32 is needed")
    inner = tuple(size for size in shape[1:] if size is not None)
    if len(shape) < 2 or shape[0] not in (1, None) or len(inner) != len(shape) - 1 or min(inner) < 1 or prod(inner) > 1 << 26:
        raise UnsupportedModelError(
            inputs[0], "input", "shape", f"{list(shape)}: a batch axis of 1 (or open) and fixed sizes after it are needed"
        )
    calls = tuple(_call(node, index) for index, node in enumerate(graph["nodes"]))
    output = outputs[0][1]["arg"]["as_tensor"]["name"]
    return ExportedGraph(calls, constants, shapes, inputs[0], inner, output, str(program.get("torch_version", "")))


def _shape(meta: Any) -> tuple[int | None, ...]:
    return tuple(int(size["as_int"]) if "as_int" in size else None for size in meta["sizes"])


def _tensors(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], folder: str, path: str
) -> dict[str, NDArray[Any]]:
    """Weights or constants by their names in the module."""
    config = f"data/{folder}/model_{folder}_config.json"
    if config not in members:
        return {}
    found: dict[str, NDArray[Any]] = {}
    for name, item in json.loads(archive.read(members[config]))["config"].items():
        if item["use_pickle"]:
            raise ModelFileError(f"{path}: '{name}' is pickled, which may run code and is not read; export the module again")
        meta = item["tensor_meta"]
        dtype = _DTYPES.get(meta["dtype"])
        if dtype is None:
            raise ModelFileError(f"{path}: '{name}' has a type that is not read (number {meta['dtype']})")
        data = np.frombuffer(archive.read(members[f"data/{folder}/{item['path_name']}"]), dtype=dtype)
        shape = [int(size["as_int"]) for size in meta["sizes"]]
        strides = [int(size["as_int"]) for size in meta["strides"]]
        offset = int(meta["storage_offset"]["as_int"])
        reach = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
        if min([0, *shape, *strides, offset]) < 0 or (prod(shape) and reach > data.size) or prod(shape) * 8 > SIZE_LIMIT:
            raise ModelFileError(f"{path}: '{name}' is damaged: its data do not fit its shape")
        view = np.lib.stride_tricks.as_strided(data[offset:], shape, [stride * data.itemsize for stride in strides])
        found[name] = np.array(view)
    return found


def _call(node: Any, index: int) -> Call:
    target = str(node["target"])
    op = target.removeprefix("torch.ops.")
    outputs = tuple(str(item["as_tensor"]["name"]) if "as_tensor" in item else "" for item in node["outputs"])
    arguments = {str(item["name"]): _value(item["arg"], op) for item in node["inputs"]}
    return Call(str(node.get("name") or (outputs[0] if outputs else "") or f"{op}_{index}"), op, arguments, outputs)


def _value(argument: Any, op: str) -> Any:
    """A literal, None for what only torch understands, or references."""
    (kind, value), *_ = argument.items()
    match kind:
        case "as_tensor":
            return Reference(str(value["name"]))
        case "as_tensors":
            return [Reference(str(item["name"])) for item in value]
        case "as_int" | "as_float" | "as_bool" | "as_string" | "as_ints" | "as_floats" | "as_bools":
            return value
        case "as_scalar_type" if value in _DTYPES:
            return ElementType(np.dtype(_DTYPES[value]).name)
        case "as_sym_int" | "as_sym_float":
            return value.get("as_int", value.get("as_float"))
        case "as_sym_ints":
            return [item.get("as_int") for item in value]
        case _:
            return None
