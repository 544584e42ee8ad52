"""Input rows and labels from files: .npy, .npz and idx. Nothing is unpickled and no header is trusted with memory.

A file may be followed by a selection: ``FILE[17]`` is one row, ``FILE[0:10]`` a slice, ``FILE.npz[name]`` one array of an
archive, ``FILE.npz[name][17]`` a row of it.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qertify.errors import InvalidInputError
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.runtimes.base import RUNTIMES, runtime_of
from qertify.specification.pixels import Preprocessing

SIZE_LIMIT = 4 << 30
"""Largest array that is read, in bytes."""
_SELECTION = re.compile(r"^(?P<rest>.*)\[(?P<inside>[^\[\]]*)\]$", re.DOTALL)
_ROWS = re.compile(r"-?\d{1,18}|(-?\d{1,18})?:(-?\d{1,18})?", re.ASCII)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Source:
    """A file and what of it is meant.

    Attributes:
        path: the file.
        key: name of an array in an .npz file, or None.
        rows: "17", "0:10", or None for everything.
    """

    path: Path
    key: str | None = None
    rows: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Input codes ready for the evaluator.

    Attributes:
        codes: int64, shape (rows, *input shape).
        index: int64, shape (rows,): each row's position in its file, to find its label.
        saturated: number of pixels that were cut to the largest input code.
        real: the rows in the model's own input domain, shape (rows, *input shape), or None where that is the codes.
        pixels: int64, the images that ``real`` was made of by preprocessing, if it was.
    """

    codes: IntegerArray
    index: IntegerArray
    saturated: int = 0
    real: Array | None = None
    pixels: IntegerArray | None = None


def parse_source(text: str) -> Source:
    """Split ``FILE[key][rows]``. A file whose name holds the brackets itself wins.

    Raises:
        InvalidInputError: no such file, or a selection that is neither a row, a slice, nor a name in an .npz file.
    """
    rest, selections = text, list[str]()
    while not Path(rest).exists() and (found := _SELECTION.match(rest)):
        rest, selections = found["rest"], [found["inside"], *selections]
    path = Path(rest)
    if not path.exists():
        raise InvalidInputError(f"{rest}: no such file")
    if path.is_dir():
        raise InvalidInputError(f"{rest}: is a directory")
    key = None
    if selections and path.suffix == ".npz" and not _ROWS.fullmatch(selections[0]):
        key, *selections = selections
    if len(selections) > 1 or any(not _ROWS.fullmatch(selection) or selection == "" for selection in selections):
        raise InvalidInputError(f"'{text}': a selection is a row like [17] or a slice like [0:10]")
    return Source(path, key, selections[0] if selections else None)


def read_rows(text: str, network: Network, prepare: Preprocessing | None = None) -> Rows:
    """Input codes of the rows that ``FILE``, ``FILE[17]`` or ``FILE[0:10]`` names.

    A network that was imported for a runtime reads inputs of its model's own domain, which the runtime's quantizer turns
    into codes. For all others integers are codes; floating-point values are accepted where they hold exact integers, and
    8-bit images for a network with fewer input bits are saturated: code = min(pixel, 2^bits − 1).

    With ``prepare`` the file holds 8-bit images, which become the model's real inputs that way.

    Rows are reshaped if that moves no element: from or to one flat axis, or between shapes that differ in axes of length
    one.

    Raises:
        InvalidInputError: unreadable or damaged file, wrong shape, type or range, NaN or fractions, no row.
    """
    return _rows(text, network, *_select(text, network.input_shape), prepare)


def given_rows(array: ArrayLike, network: Network, prepare: Preprocessing | None = None) -> Rows:
    """The same of an array in memory: its rows, or a single one.

    Raises:
        InvalidInputError: as `read_rows`.
    """
    given, shape = np.asarray(array), network.input_shape
    rows = given[None] if given.size == prod(shape) and _fits(given.shape, shape) else given
    if rows.ndim == 0 or not len(rows) or not _fits(rows.shape[1:], shape):
        raise InvalidInputError(f"inputs of shape {given.shape} are no rows of shape {shape}, which the network reads")
    picked = rows.reshape(len(rows), *shape)
    return _rows("inputs", network, np.arange(len(rows), dtype=np.int64), picked, False, prepare)


def _rows(
    text: str, network: Network, index: IntegerArray, picked: Array, is_image: bool, prepare: Preprocessing | None
) -> Rows:
    if prepare is not None:
        pixels = _integers(text, picked)
        if int(pixels.min()) < 0 or int(pixels.max()) > 255:
            raise InvalidInputError(f"'{text}': pixels {pixels.min()} … {pixels.max()} leave 0 … 255")
        real = prepare.apply(pixels)
        return Rows(runtime_of(network).quantize_input(real), index, real=real, pixels=pixels)
    if network.runtime_profile in RUNTIMES:
        if picked.dtype.kind == "f" and not np.all(finite := np.isfinite(picked.reshape(len(picked), -1)).all(axis=1)):
            raise InvalidInputError(f"'{text}': row {index[np.argmin(finite)]} holds NaN or infinity")
        real = picked.astype(np.float32) if picked.dtype.kind == "f" else picked
        return Rows(runtime_of(network).quantize_input(real), index, real=real)
    codes = _integers(text, picked)
    low, high = network.input.low, network.input.high
    saturated = 0
    if is_image and low == 0 and high < 255:
        saturated = int(np.count_nonzero(codes > high))
        codes = np.minimum(codes, high)
    if int(codes.min()) < low or int(codes.max()) > high:
        raise InvalidInputError(f"'{text}': codes {codes.min()} … {codes.max()} leave the valid range {low} … {high}")
    return Rows(codes, index, saturated)


def _select(text: str, shape: tuple[int, ...]) -> tuple[IntegerArray, Array, bool]:
    """(positions, rows of shape (rows, *shape) as stored, whether they are 8-bit images) that a text names."""
    source = parse_source(text)
    array, is_image = _read(source)
    single = source.rows is None and array.size == prod(shape) and _fits(array.shape, shape)
    index, picked = (np.zeros(1, dtype=np.int64), array[None]) if single else _pick(source, array)
    if not len(picked):
        raise InvalidInputError(f"'{text}' selects no row")
    if not _fits(picked.shape[1:], shape):
        raise InvalidInputError(f"'{text}': a row has shape {picked.shape[1:]}, but the network reads {shape}")
    return index, picked.reshape(len(picked), *shape), is_image


def read_row(text: str, network: Network, prepare: Preprocessing | None = None) -> Rows:
    """As `read_rows`, for exactly one row.

    Raises:
        InvalidInputError: also if there are several rows.
    """
    rows = read_rows(text, network, prepare)
    if len(rows.codes) != 1:
        raise InvalidInputError(f"'{text}' holds {len(rows.codes)} rows; name one, as in {text}[0]")
    return rows


def read_raw_rows(text: str, shape: tuple[int, ...]) -> tuple[IntegerArray, Array]:
    """(positions in the file, rows as they are stored, brought to a shape); integers or floating-point numbers.

    Raises:
        InvalidInputError: as `read_rows`.
    """
    index, picked, _ = _select(text, shape)
    if picked.dtype.kind not in "iuf" or not np.all(np.isfinite(picked)):
        raise InvalidInputError(f"'{text}': finite numbers are needed")
    return index, picked


def read_labels(text: str, index: IntegerArray) -> IntegerArray:
    """Labels of the rows at ``index``, or of the rows that the text itself selects; int64 (rows,).

    Raises:
        InvalidInputError: unreadable file, not a list of integers, or fewer labels than rows.
    """
    source = parse_source(text)
    array, _ = _read(source)
    flat = array.ndim != 1 and max(array.shape, default=0) == array.size
    labels = _integers(text, array.reshape(-1) if flat else array, "labels")
    if labels.ndim != 1:
        raise InvalidInputError(f"'{text}': labels must be a list of integers, not of shape {labels.shape}")
    if source.rows is not None:
        _, labels = _pick(source, labels)
        if len(labels) != len(index):
            raise InvalidInputError(f"'{text}' selects {len(labels)} label(s) for {len(index)} row(s)")
        return labels
    if len(index) and int(index.max()) >= len(labels):
        raise InvalidInputError(f"'{text}' holds {len(labels)} labels, but row {index.max()} is asked for")
    return labels[index]


def given_labels(array: ArrayLike, count: int) -> IntegerArray:
    """Labels in memory, int64 (count,).

    Raises:
        InvalidInputError: not integers, or not one for each of ``count`` rows.
    """
    labels = _integers("labels", np.asarray(array), "labels")
    if labels.shape != (count,):
        raise InvalidInputError(f"labels of shape {labels.shape} for {count} row(s); one integer for each is needed")
    return labels


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether reshaping moves no element: flat on one side, or equal but for axes of length one."""
    if prod(shape) != prod(wanted):
        return False
    squeezed, other = ([size for size in axes if size != 1] for axes in (shape, wanted))
    return squeezed == other or len(squeezed) <= 1 or len(other) <= 1


def _pick(source: Source, array: Array) -> tuple[IntegerArray, Array]:
    """(positions, rows) that a source selects from the first axis."""
    if array.ndim == 0:
        raise InvalidInputError(f"{source.path}: holds a single number, not rows")
    positions = np.arange(len(array), dtype=np.int64)
    if source.rows is None:
        return positions, array
    if ":" in source.rows:
        first, last = (int(part) if part else None for part in source.rows.split(":"))
        return positions[first:last], array[first:last]
    row = int(source.rows)
    if not -len(array) <= row < len(array):
        raise InvalidInputError(f"{source.path}: row {row} is outside 0 … {len(array) - 1}")
    return positions[[row]], array[[row]]


def _integers(text: str, array: Array, what: str = "codes") -> IntegerArray:
    """Exact integers, whatever the storage; ``what`` they are to a reader.

    Raises:
        InvalidInputError: another kind of data, NaN, infinity, fractions, or numbers beyond 64 bits.
    """
    match array.dtype.kind:
        case "i" | "u":
            if array.dtype == np.uint64 and array.size and int(array.max()) >= 1 << 63:
                raise InvalidInputError(f"'{text}': holds {what} that do not fit 64 bits")
            return array.astype(np.int64)
        case "f":
            if not np.all(np.isfinite(array)):
                raise InvalidInputError(f"'{text}': holds NaN or infinity")
            if np.any(array != np.floor(array)):
                raise InvalidInputError(f"'{text}': holds fractions, but integer {what} are needed")
            if np.any(np.abs(array) >= 2.0**53):
                raise InvalidInputError(f"'{text}': a number is too large to be an exact integer")
            return array.astype(np.int64)
        case _:
            raise InvalidInputError(f"'{text}': holds {array.dtype}, but integer {what} are needed")


def _read(source: Source) -> tuple[Array, bool]:
    """(array, whether it is an 8-bit image) of a file, by its content."""
    path = source.path
    try:
        with path.open("rb") as file:
            magic = file.read(8)
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            if source.key is not None and not magic.startswith(b"PK"):
                raise InvalidInputError(f"{path}: not an .npz archive, so it has no array '{source.key}'")
            if magic.startswith(b"\x93NUMPY"):
                array = _npy(file, size, str(path))
            elif magic.startswith(b"PK"):
                array = _npz(file, source)
            elif magic.startswith(b"\x1f\x8b"):
                with gzip.open(file) as unpacked:
                    array = _idx(unpacked, path, None)
            elif magic.startswith(b"\x00\x00"):
                array = _idx(file, path, size)
            else:
                raise InvalidInputError(f"{path}: neither .npy, .npz nor idx data")
    except InvalidInputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError,
            MemoryError, KeyError, OverflowError) as error:  # fmt: skip
        raise InvalidInputError(f"{path}: damaged or truncated ({error or type(error).__name__})") from error
    return array, array.dtype == np.uint8


def _npy(file: IO[bytes], size: int, name: str) -> Array:
    """One .npy stream of ``size`` bytes; the header must account for every byte before anything is allocated."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise InvalidInputError(f"{name}: .npy version {version} is not supported")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read_header(file)
    except Exception as error:  # a header is Python source, and numpy lets every error of its parser through
        raise InvalidInputError(f"{name}: damaged or truncated: unreadable header") from error
    if dtype.kind not in "iufb":
        raise InvalidInputError(f"{name}: holds {dtype}, but numbers are needed")
    expected, present = prod(shape) * dtype.itemsize, size - file.tell()
    if expected != present or expected > SIZE_LIMIT or min(shape, default=0) < 0:
        raise InvalidInputError(f"{name}: damaged or truncated: {present} bytes of data for shape {shape} of {dtype}")
    array = np.frombuffer(file.read(expected), dtype=dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _npz(file: IO[bytes], source: Source) -> Array:
    with zipfile.ZipFile(file) as archive:
        members = {item.filename.removesuffix(".npy"): item for item in archive.infolist()}
        key = source.key
        if key is None:
            if len(members) != 1:
                names = ", ".join(sorted(members)[:8])
                raise InvalidInputError(f"{source.path}: holds several arrays ({names}); name one, as in {source.path}[NAME]")
            key = next(iter(members))
        if key not in members:
            raise InvalidInputError(f"{source.path}: holds no array '{key}', only {', '.join(sorted(members)[:8])}")
        if members[key].file_size > SIZE_LIMIT:
            raise InvalidInputError(f"{source.path}: '{key}' unpacks to more than {SIZE_LIMIT >> 30} GiB")
        with archive.open(members[key]) as member:
            content = member.read()
    return _npy(io.BytesIO(content), len(content), f"{source.path}[{key}]")


def _idx(file: IO[bytes] | gzip.GzipFile, path: Path, size: int | None) -> Array:
    """An idx array of unsigned bytes, as MNIST is published; ``size`` of the file, or None if it is being unpacked."""
    zero, kind, axes = struct.unpack(">HBB", file.read(4))
    if zero or kind != 8 or not 1 <= axes <= 4:
        raise InvalidInputError(f"{path}: not an idx file of unsigned bytes")
    shape = struct.unpack(f">{axes}I", file.read(4 * axes))
    expected = prod(shape)
    if expected > SIZE_LIMIT or (size is not None and expected != size - 4 - 4 * axes):
        raise InvalidInputError(f"{path}: damaged or truncated: the header says {shape}")
    data = bytearray()
    while chunk := file.read(min(1 << 20, expected + 1 - len(data))):
        data += chunk
    if len(data) != expected:
        raise InvalidInputError(f"{path}: damaged or truncated: the header says {shape}, {len(data)} bytes follow")
    return np.frombuffer(bytes(data), dtype=np.uint8).reshape(shape)
