"""Networks on disk: .qnet, a zip of one JSON description and plain .npy arrays. Nothing is ever unpickled."""

from __future__ import annotations

import io
import json
import os
import tokenize
import zipfile
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from qertify.errors import InvalidNetworkError, ModelFileError, QertifyError
from qertify.network.network import Network
from qertify.network.nodes import NODE_KINDS, Node, Window
from qertify.network.staircase import Steps
from qertify.network.tensor import IntegerArray, QuantizationParameters, as_integers

FORMAT_VERSION = 1
SIZE_LIMIT = 4 << 30
"""Largest total size of the unpacked members, bytes: a hostile archive must not fill the memory."""

_KINDS = {kind.__name__: kind for kind in NODE_KINDS}
_RECORDS = {"Window": Window, "Steps": Steps}


def save(network: Network, path: str | os.PathLike[str]) -> None:
    """Write a network; the file appears whole or not at all.

    Raises:
        ModelFileError: the file can't be written.
    """
    arrays: dict[str, IntegerArray] = {}

    def describe(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[key := f"{len(arrays)}.npy"] = value
            return {"array": key}
        if isinstance(value, Window | Steps):
            return {"record": type(value).__name__, **{f.name: describe(getattr(value, f.name)) for f in fields(value)}}
        return list(value) if isinstance(value, tuple) else value

    description = {
        "format": "qnet",
        "version": FORMAT_VERSION,
        "runtime_profile": network.runtime_profile,
        "metadata": dict(network.metadata),
        "quantization": [
            {"scale": [float(s).hex() for s in q.scale], "zero_point": q.zero_point.tolist()}
            for q in (network.input_quantization, network.output_quantization)
        ],
        "nodes": [
            {"kind": type(node).__name__, **{f.name: describe(getattr(node, f.name)) for f in fields(node)}}
            for node in network.nodes
        ],
    }
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("network.json", json.dumps(description))
            for key, array in arrays.items():
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
                archive.writestr(key, buffer.getvalue())
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ModelFileError(f"can't write {target}: {error.strerror or error}") from error


def load(path: str | os.PathLike[str]) -> Network:
    """Read a network written by `save`. Safe on untrusted files: no pickle, bounded size, everything validated.

    Raises:
        ModelFileError: not such a file, truncated, damaged, too large, or of a newer version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > SIZE_LIMIT:
                raise ModelFileError(f"unpacks to more than {SIZE_LIMIT >> 30} GiB")
            description = json.loads(archive.read("network.json"))
            return _network(description, archive)
    except QertifyError as error:
        raise ModelFileError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file") from error
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError,
            RecursionError, NotImplementedError, RuntimeError, MemoryError, OverflowError, zlib.error, SyntaxError,
            tokenize.TokenError) as error:  # fmt: skip
        raise ModelFileError(f"{path}: not a readable .qnet file ({type(error).__name__}: {error})") from error


def _network(description: Any, archive: zipfile.ZipFile) -> Network:
    if description.get("format") != "qnet":
        raise ModelFileError("not a .qnet description")
    if description["version"] != FORMAT_VERSION:
        raise ModelFileError(f"written in .qnet version {description['version']}, this is version {FORMAT_VERSION}")

    def restore(value: Any) -> Any:
        if isinstance(value, dict) and "array" in value:
            with archive.open(value["array"]) as member:
                return as_integers(np.lib.format.read_array(member, allow_pickle=False))
        if isinstance(value, dict) and "record" in value:
            return _RECORDS[value["record"]](**{key: restore(item) for key, item in value.items() if key != "record"})
        return tuple(value) if isinstance(value, list) else value

    nodes: list[Node] = []
    for record in description["nodes"]:
        kind = _KINDS.get(record["kind"])
        if kind is None:
            raise InvalidNetworkError(record.get("name"), f"unknown node kind '{record['kind']}'")
        nodes.append(kind(**{key: restore(value) for key, value in record.items() if key != "kind"}))
    first, second = (
        QuantizationParameters.of([float.fromhex(s) for s in q["scale"]], q["zero_point"]) for q in description["quantization"]
    )
    return Network(tuple(nodes), first, second, str(description["runtime_profile"]), dict(description["metadata"]))
