"""The optional data folder: $QERTIFY_DATA, or shared/data beside the repository."""

from __future__ import annotations

import gzip
import os
import re
from functools import cache
from pathlib import Path

import numpy as np

from qertify.importers.keras_fixed_point import load_keras_fixed_point
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray


def shared_data() -> Path | None:
    """The folder, or None if there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("QERTIFY_DATA", beside))
    return folder if folder.is_dir() else None


@cache
def images(dataset: str, split: str = "t10k") -> tuple[IntegerArray, IntegerArray]:
    """Images (count, 784) and labels (count,) of "mnist" or "fashion-mnist"."""
    folder = shared_data()
    assert folder is not None
    pixels = gzip.decompress((folder / dataset / f"{split}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / dataset / f"{split}-labels-idx1-ubyte.gz").read_bytes())
    flat = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 784).astype(np.int64)
    return flat, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


@cache
def published_network(name: str) -> Network:
    """A published fixed-point model by its file name; the name tells the bits."""
    folder = shared_data()
    assert folder is not None
    found = re.search(r"in_(\d+)_qu_(\d+)", name)
    assert found is not None
    return load_keras_fixed_point(folder / "qvip" / "models" / name, bits=int(found[2]), input_bits=int(found[1]))
