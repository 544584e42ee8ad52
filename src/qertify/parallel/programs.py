"""Whole bound programs as plain data, for searches whose program a worker can't make again from a model file."""

from __future__ import annotations

import base64
import hashlib
import zlib
from dataclasses import fields
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.program import Program, Unit
from qertify.parallel.executor import Message

SIZE_LIMIT = 1 << 28
"""Largest number of bytes of one array."""


def can_travel(program: Program) -> bool:
    """Whether `pack_program` can write it: its equations are matrices."""
    return program.operators is None


def digest_of(text: str) -> str:
    """What stands for a packed program once a worker has it."""
    return hashlib.sha256(text.encode()).hexdigest()


def pack_program(program: Program) -> Message:
    """Every entry, exactly."""
    assert can_travel(program)
    data: Message = {
        "units": [[unit.node, unit.element, unit.label] for unit in program.units],
        "blocks": [list(block) for block in program.blocks],
    }
    for field in fields(program):
        value: Any = getattr(program, field.name)
        if isinstance(value, Tensor):
            value = value.cpu().numpy()
        if isinstance(value, np.ndarray):
            kind = {"f": "<f8", "i": "<i8", "b": "|b1"}[value.dtype.kind]
            text = base64.b64encode(zlib.compress(np.ascontiguousarray(value).astype(kind).tobytes(), 1)).decode()
            data[field.name] = {"kind": kind, "shape": list(value.shape), "data": text}
    return data


def unpack_program(data: Message) -> Program:
    """The inverse of `pack_program`.

    Raises:
        ValueError: not made by it.
    """
    values: dict[str, Any] = {
        "units": tuple(Unit(*item) for item in data["units"]),
        "blocks": tuple((first, last) for first, last in data["blocks"]),
    }
    for name, item in data.items():
        if name not in values:
            array = _array(item)
            values[name] = array if name == "input_index" else torch.from_numpy(array)
    return Program(**values)


def _array(item: Message) -> np.ndarray:
    kind = np.dtype(item["kind"])
    size = prod(item["shape"]) * kind.itemsize
    if size > SIZE_LIMIT:
        raise ValueError(f"an array of {size} bytes; {SIZE_LIMIT} are allowed")
    data = zlib.decompressobj().decompress(base64.b64decode(item["data"]), size + 1)
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes where {size} were announced")
    native = {"f": np.float64, "i": np.int64, "b": np.bool_}[kind.kind]
    return np.frombuffer(data, dtype=kind).astype(native).reshape(item["shape"])
