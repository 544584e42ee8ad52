"""Validation names the node; the digest sees every change; storage returns what it was given and refuses the rest."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.errors import InvalidNetworkError, ModelFileError
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.network.nodes import Dense, Input, Max, Staircase, Window
from qertify.network.staircase import Steps
from qertify.network.storage import load, save
from qertify.network.tensor import QuantizationParameters, as_integers
from tests.unit.network.samples import every_kind

UNIT = QuantizationParameters.of(1.0)


def with_node(network: Network, name: str, /, **changes: Any) -> Network:
    """The network with fields of one node replaced."""
    nodes = tuple(replace(node, **changes) if node.name == name else node for node in network.nodes)
    return replace(network, nodes=nodes)


def bumped(value: Any) -> Any:
    """A value that differs a little, of the same type and shape."""
    if isinstance(value, np.ndarray):
        changed = np.array(value)
        changed.flat[-1] += 1
        return as_integers(changed)
    if isinstance(value, Steps):
        return Steps(bumped(value.thresholds), value.low)
    if isinstance(value, Window):
        return replace(value, padding=(*value.padding[:3], value.padding[3] + 1))
    if isinstance(value, tuple) and value and isinstance(value[0], int):
        return (*value[:-1], value[-1] + 1)
    return value + 1


def test_digest_sees_every_field_of_every_node() -> None:
    network = every_kind()
    digests = {network.digest}
    changes = 0
    for node in network.nodes:
        for item in fields(node):
            value = getattr(node, item.name)
            if item.name in ("name", "inputs", "row", "shape", "groups", "indices") or isinstance(value, Window | None):
                continue
            digests.add(with_node(network, node.name, **{item.name: bumped(value)}).digest)
            changes += 1
    assert changes > 15
    assert len(digests) == changes + 1


def test_digest_sees_shapes_wiring_and_meaning() -> None:
    network = every_kind()
    identity = as_integers([[1, 0], [0, 1]])
    nodes = (Input("x", (2,), 0, 3), Dense("y", ("x",), identity, as_integers([0, 0])))
    small = Network(nodes, UNIT, UNIT, "test")
    renamed = Network((Input("w", (2,), 0, 3), Dense("y", ("w",), identity, as_integers([0, 0]))), UNIT, UNIT, "test")
    others = [
        replace(network, metadata={}),
        replace(network, runtime_profile="other"),
        replace(network, input_quantization=QuantizationParameters.of(0.5, 4)),
        replace(network, output_quantization=QuantizationParameters.of(np.nextafter(0.25, 1))),
        with_node(network, "pool", window=Window((2, 2), (1, 1), (0, 1, 1, 0), (2, 1))),
        with_node(network, "residual", inputs=("pool", "average", "average")),
        with_node(network, "flat", indices=as_integers(network.by_name["flat"].indices[::-1])),
        small,
        renamed,
    ]
    assert len({network.digest, *(other.digest for other in others)}) == len(others) + 1


def test_digest_does_not_depend_on_memory_layout() -> None:
    network = every_kind()
    weight = network.by_name["dense"].weight
    fortran = np.asfortranarray(weight)
    assert with_node(network, "dense", weight=fortran).digest == network.digest


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: with_node(n, "dense", bias=as_integers([0])), "node 'dense': bias"),
        (lambda n: with_node(n, "dense", weight=as_integers([[1]])), "node 'dense': weight"),
        (lambda n: with_node(n, "conv", groups=3), "node 'conv': 4 channels in 3 groups"),
        (lambda n: with_node(n, "conv", groups=0), "node 'conv'"),
        (lambda n: with_node(n, "conv", window=Window((3, 2), (0, 1))), "node 'conv': kernel, stride"),
        (lambda n: with_node(n, "conv", window=Window((2, 2))), "node 'conv': weight"),
        (lambda n: with_node(n, "pool", window=Window((9, 9))), "node 'pool': has the empty shape"),
        (lambda n: with_node(n, "pool", window=Window((2, 2), padding=(2, 0, 0, 0))), "node 'pool': a window that holds only"),
        (lambda n: with_node(n, "residual", inputs=("pool", "flat")), "node 'residual': reads 'flat'"),
        (lambda n: with_node(n, "residual", inputs=("pool", "conv")), "node 'residual': input shapes differ"),
        (lambda n: with_node(n, "residual", inputs=()), "node 'residual': needs at least one input"),
        (lambda n: with_node(n, "gate", inputs=("pool",)), "node 'gate': needs 2 input"),
        (lambda n: with_node(n, "flat", indices=as_integers([9999])), "node 'flat': an index is outside"),
        (lambda n: with_node(n, "activation", row=as_integers([[[1]]])), "node 'activation': a row index"),
        (lambda n: with_node(n, "requantize", row=as_integers([[0, 0]] * 5)), "node 'requantize': row of shape"),
        (lambda n: with_node(n, "input", high=-1), "node 'input': an empty input range"),
        (lambda n: with_node(n, "dense", name="conv"), "node 'conv': two nodes"),
        (lambda n: replace(n, nodes=()), "exactly one input"),
    ],
)
def test_validation_names_the_node(make: Callable[[Network], Network], message: str) -> None:
    with pytest.raises(InvalidNetworkError, match=message):
        make(every_kind())


def test_an_unread_node_is_rejected() -> None:
    loose = Max("loose", ("pool",), Window((1, 1)))
    network = every_kind()
    with pytest.raises(InvalidNetworkError, match="node 'loose': is read by no node"):
        replace(network, nodes=(*network.nodes[:5], loose, *network.nodes[5:]))


def test_round_trip(tmp_path: Path) -> None:
    network = every_kind()
    save(network, tmp_path / "model.qnet")
    again = load(tmp_path / "model.qnet")
    assert again.digest == network.digest
    assert dict(again.metadata) == dict(network.metadata)
    inputs = np.random.default_rng(0).integers(0, 16, size=(5, 2, 6, 6))
    assert np.array_equal(evaluate(again, inputs), evaluate(network, inputs))
    assert [path.name for path in tmp_path.iterdir()] == ["model.qnet"]


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Pass every member of an archive through a function; None drops it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if (changed := change(name, content)) is not None:
                archive.writestr(name, changed)


def edit_json(edit: Callable[[Any], Any]) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if name != "network.json":
            return content
        description = json.loads(content)
        return json.dumps(edit(description) or description).encode()

    return change


def replace_arrays(content: bytes) -> Callable[[str, bytes], bytes]:
    return lambda name, old: content if name.endswith(".npy") else old


class Bomb:
    def __reduce__(self) -> Any:
        return print, ("unpickled",)


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def claims_a_terabyte() -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<i8", "fortran_order": False, "shape": (1 << 37,)})
    return buffer.getvalue()


def floats() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        replace_arrays(pickled()),
        replace_arrays(pickle.dumps([1, 2])),
        replace_arrays(claims_a_terabyte()),
        replace_arrays(floats()),
        replace_arrays(b""),
        replace_arrays(floats()[:10] + b"(" * 118),
        replace_arrays(floats()[:10] + b" \t)" * 40),
        lambda name, content: None if name == "3.npy" else content,
        lambda name, content: None if name == "network.json" else content,
        lambda name, content: b"[1, 2" if name == "network.json" else content,
        lambda name, content: b"[" * 100_000 if name == "network.json" else content,
        edit_json(lambda d: [d]),
        edit_json(lambda d: d.update(version=99)),
        edit_json(lambda d: d.update(format="other")),
        edit_json(lambda d: d.pop("quantization") and None),
        edit_json(lambda d: d["quantization"][0].update(scale=["nan"])),
        edit_json(lambda d: d["quantization"][0].update(scale=["-0x1p0"])),
        edit_json(lambda d: d["nodes"][1].update(kind="Softmax")),
        edit_json(lambda d: d["nodes"][1].update(extra=1)),
        edit_json(lambda d: d["nodes"][1].update(inputs=["nothing"])),
        edit_json(lambda d: d["nodes"][0].update(shape=["a"])),
        edit_json(lambda d: d["nodes"][0].update(shape=[1 << 60, 1 << 60])),
        edit_json(lambda d: d["nodes"][2]["steps"].update(record="os")),
    ],
)
def test_hostile_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any) -> None:
    path = tmp_path / "model.qnet"
    save(every_kind(), path)
    rewrite(path, change)
    with pytest.raises(ModelFileError, match=r"model\.qnet"):
        load(path)
    assert "unpickled" not in capsys.readouterr().out


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "model.qnet"
    save(every_kind(), path)
    whole = path.read_bytes()
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match=r"model\.qnet"):
            load(path)
    with pytest.raises(ModelFileError, match="no such file"):
        load(tmp_path / "missing.qnet")
    with pytest.raises(ModelFileError, match=r"not a readable"):
        load(tmp_path)


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    """Damage is either noticed, or the file still describes a valid network."""
    path = tmp_path / "model.qnet"
    save(every_kind(), path)
    whole = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    noticed = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[int(generator.integers(len(whole)))] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load(path)
        except ModelFileError:
            noticed += 1
    assert noticed > 75


def test_staircase_rows_are_checked_against_the_shape() -> None:
    steps = Steps(as_integers([[0], [1]]), 0)
    nodes = (Input("x", (3,), 0, 1), Staircase("s", ("x",), steps, as_integers([0, 1])))
    with pytest.raises(InvalidNetworkError, match="row of shape"):
        Network(nodes, UNIT, UNIT, "test")
