"""Input rows and labels from files, good and hostile."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qertify.errors import InvalidInputError
from qertify.inputs import parse_source, read_labels, read_row, read_rows
from qertify.network.network import Network
from qertify.network.nodes import Dense, Input, Rearrange
from qertify.network.tensor import QuantizationParameters, as_integers
from tests.files import idx


def network(*shape: int, high: int = 255) -> Network:
    size = int(np.prod(shape))
    unit = QuantizationParameters.of(1.0)
    flat = Rearrange("flat", ("input",), as_integers(np.arange(size)))
    dense = Dense("dense", ("flat",), as_integers(np.ones((2, size), dtype=int)), as_integers([0, 0]))
    return Network((Input("input", shape, 0, high), flat, dense), unit, unit, "fixed-point")


IMAGES = np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "one.npy", IMAGES[3])
    np.savez(tmp_path / "one.npz", x=IMAGES)
    np.savez(tmp_path / "two.npz", x=IMAGES, y=np.arange(5))
    (tmp_path / "images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx([7, 2, 1, 0, 4]))
    return tmp_path


@pytest.mark.parametrize("name", ["images.npy", "one.npz", "two.npz[x]", "images-idx3-ubyte", "images-idx3-ubyte.gz"])
@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3)])
def test_formats_and_selections(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    flat = IMAGES.astype(np.int64).reshape(5, *shape)
    for selection, rows in (
        ("", [0, 1, 2, 3, 4]),
        ("[3]", [3]),
        ("[-1]", [4]),
        ("[1:3]", [1, 2]),
        ("[3:]", [3, 4]),
        ("[:9]", range(5)),
    ):
        found = read_rows(f"{folder}/{name}{selection}", network(*shape))
        assert np.array_equal(found.codes, flat[list(rows)])
        assert found.codes.dtype == np.int64
        assert found.index.tolist() == list(rows)


def test_one_unbatched_row(folder: Path) -> None:
    assert read_row(f"{folder}/one.npy", network(6)).codes.tolist() == [IMAGES[3].reshape(-1).tolist()]
    with pytest.raises(InvalidInputError, match=r"holds 5 rows; name one, as in .*images\.npy\[0\]"):
        read_row(f"{folder}/images.npy", network(6))


def test_a_name_with_brackets_wins(tmp_path: Path) -> None:
    np.save(tmp_path / "a[1].npy", IMAGES)
    (tmp_path / "a[1].npy").rename(tmp_path / "a[1]")
    assert len(read_rows(f"{tmp_path}/a[1]", network(6)).codes) == 5
    assert read_rows(f"{tmp_path}/a[1][2]", network(6)).index.tolist() == [2]


def test_reshaping_never_moves_an_element(tmp_path: Path) -> None:
    """Channels last can't be passed off as channels first."""
    np.save(tmp_path / "last.npy", np.zeros((4, 4, 3), dtype=np.uint8))
    np.save(tmp_path / "grey.npy", np.arange(16, dtype=np.uint8).reshape(4, 4, 1))
    with pytest.raises(InvalidInputError, match="shape"):
        read_row(f"{tmp_path}/last.npy", network(3, 4, 4))
    assert read_row(f"{tmp_path}/grey.npy", network(1, 4, 4)).codes.reshape(-1).tolist() == list(range(16))


def test_images_saturate_and_codes_do_not(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.array([0, 14, 15, 16, 200, 255], dtype=np.uint8))
    np.save(tmp_path / "codes.npy", np.array([0, 14, 15, 16, 200, 255]))
    (tmp_path / "idx").write_bytes(idx(np.array([[0, 14, 15, 16, 200, 255]])))
    for name in ("pixels.npy", "idx"):
        rows = read_row(f"{tmp_path}/{name}", network(6, high=15))
        assert rows.codes.tolist() == [[0, 14, 15, 15, 15, 15]]
        assert rows.saturated == 3
    with pytest.raises(InvalidInputError, match="leave the valid range 0 … 15"):
        read_row(f"{tmp_path}/codes.npy", network(6, high=15))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1.5, 2.0]), "fractions"),
        (np.array([np.nan, 1.0]), "NaN or infinity"),
        (np.array([np.inf, 1.0]), "NaN or infinity"),
        (np.array([2.0**60, 1.0]), "too large"),
        (np.array([2**64 - 1, 0], dtype=np.uint64), "64 bits"),
        (np.array([-1, 0]), "valid range"),
        (np.array([0, 256]), "valid range"),
        (np.array([True, False]), "bool"),
        (np.array([1j, 0]), "complex"),
        (np.array(["a", "b"]), "numbers are needed"),
        (np.zeros((0, 2), dtype=int), "selects no row"),
        (np.zeros((4, 3), dtype=int), "row has shape"),
        (np.array(3), "single number"),
    ],
)
def test_unusable_arrays(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InvalidInputError, match=message):
        read_rows(f"{tmp_path}/x.npy", network(2))


def test_whole_numbers_in_floats_are_codes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([3.0, -0.0], dtype=np.float32))
    assert read_row(f"{tmp_path}/x.npy", network(2)).codes.tolist() == [[3, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images.npy[9]", "row 9 is outside 0 … 4"),
        ("images.npy[-6]", "outside"),
        ("images.npy[]", "selection"),
        ("images.npy[a]", "selection"),
        ("images.npy[1:2:3]", "selection"),
        ("images.npy[1][2]", "selection"),
        ("images.npy[4:2]", "selects no row"),
        ("images.npy[99999999999999999999]", "selection"),
        ("two.npz", r"several arrays \(x, y\)"),
        ("two.npz[z]", "no array 'z'"),
        ("missing.npy[3]", "no such file"),
        ("", "directory"),
    ],
)
def test_bad_selections(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_rows(f"{folder}/{text}", network(6))


def header(shape: tuple[int, ...], descr: str = "<i8") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def npz(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    return buffer.getvalue()


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def saved() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    return buffer.getvalue()


HOSTILE = {
    "empty": b"",
    "text": b"hello world",
    "terabyte.npy": header((1 << 40,)) + b"12345678",
    "negative.npy": header((-1, 6)) + bytes(48),
    "object.npy": pickled(),
    "truncated.npy": saved()[:-1],
    "longer.npy": saved() + b"x",
    "cut-header.npy": saved()[:20],
    "bad-header.npy": saved()[:10] + b"(" * 118,
    "version.npy": b"\x93NUMPY\x09\x00" + saved()[8:],
    "terabyte.npz": npz(header((1 << 40,)) + b"12345678"),
    "truncated.npz": npz(saved())[:-30],
    "middle.npz": npz(saved())[:40],
    "object.npz": npz(pickled()),
    "terabyte-idx": idx(IMAGES)[:4] + b"\xff" * 12 + idx(IMAGES)[16:],
    "truncated-idx": idx(IMAGES)[:-1],
    "longer-idx": idx(IMAGES) + b"x",
    "float-idx": b"\0\0\x0d" + idx(IMAGES)[3:],
    "axes-idx": b"\0\0\x08\x63" + idx(IMAGES)[4:],
    "header-idx": idx(IMAGES)[:6],
    "truncated.gz": gzip.compress(idx(IMAGES))[:-6],
    "terabyte.gz": gzip.compress(idx(IMAGES)[:4] + b"\xff" * 12 + bytes(100)),
    "gigabyte.gz": gzip.compress(b"\0\0\x08\x01\x3b\x9a\xca\x00" + bytes(1000)),
    "bomb.gz": gzip.compress(b"\0\0\x08\x01\0\0\0\x06" + bytes(50_000_000)),
    "garbage.gz": b"\x1f\x8b" + bytes(range(200)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInputError) as caught:
            read_rows(str(path), network(6))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert peak < 8 << 20


def test_labels(folder: Path) -> None:
    index = np.array([1, 3])
    assert read_labels(f"{folder}/labels-idx1-ubyte", index).tolist() == [2, 0]
    assert read_labels(f"{folder}/labels-idx1-ubyte[2:4]", index).tolist() == [1, 0]
    np.save(folder / "column.npy", np.array([[5], [6]]))
    np.save(folder / "halves.npy", np.array([0.5, 1.0]))
    assert read_labels(f"{folder}/column.npy", np.array([1])).tolist() == [6]
    for text, message in (
        ("labels-idx1-ubyte[2]", "1 label"),
        ("images.npy", "list of integers"),
        ("column.npy", "row 3 is asked for"),
        ("halves.npy", "holds fractions, but integer labels are needed"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            read_labels(f"{folder}/{text}", index)


def test_parse_source_keeps_windows_of_names(folder: Path) -> None:
    source = parse_source(f"{folder}/two.npz[x][1:2]")
    assert (source.key, source.rows) == ("x", "1:2")
