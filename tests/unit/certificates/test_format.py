"""Certificate files: what is written is read; damaged, hostile and foreign ones are one clear error."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.certificates.check import Verdict, check
from qertify.certificates.format import VERSION, Certificate, Multipliers, Proof, Tree, load, save
from qertify.errors import CertificateError
from tests.certificates import Answered, answered, without_enumeration


@pytest.fixture(scope="module")
def item() -> Answered:
    """A question whose proof has splits, multipliers and root bounds."""
    with pytest.MonkeyPatch.context() as patch:
        without_enumeration(patch)
        for found in answered(206, 40):
            proof = found.certificate().proof
            if proof is not None and proof.tree.side.any() and len(proof.tighten) and not proof.trusted:
                return found
    raise AssertionError("no such question")


@pytest.fixture
def path(item: Answered, tmp_path: Path) -> Path:
    save(item.certificate(), tmp_path / "proof.cert")
    return tmp_path / "proof.cert"


def same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray):
        return first.shape == second.shape and bool((first == second).all())
    if isinstance(first, Certificate | Proof | Tree | Multipliers):
        return all(same(getattr(first, part.name), getattr(second, part.name)) for part in fields(first))
    return True if not isinstance(first, int | str | tuple) else first == second


def test_what_is_written_is_read(item: Answered, path: Path) -> None:
    assert same(item.certificate(), load(path))
    assert check(load(path), item.query.network).verdict is Verdict.VALID
    assert not list(path.parent.glob("*.partial"))


def test_no_floats_and_no_pickle(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                assert np.load(io.BytesIO(archive.read(name)), allow_pickle=False).dtype.kind == "i"


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    description = json.loads(members.pop("certificate.json"))
    change(description, members)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("certificate.json", json.dumps(description))
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values), allow_pickle=True)
    return buffer.getvalue()


DAMAGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, bytes]], Any], str]] = {
    "version": (lambda d, m: d.update(version=VERSION + 1), "version 2"),
    "format": (lambda d, m: d.update(format="qnet"), "not a certificate"),
    "claim": (lambda d, m: d["claim"].update(kind="perfect"), "unknown claim"),
    "ties": (lambda d, m: d["claim"].update(ties="any"), "ties"),
    "label": (lambda d, m: d["claim"].update(label="seven"), "label"),
    "huge label": (lambda d, m: d["claim"].update(label=1 << 70), "label"),
    "boolean": (lambda d, m: d["claim"].update(label=True), "label"),
    "no proof kind": (lambda d, m: d.update(proof={"kind": "faith"}), "unknown kind of proof"),
    "no key": (lambda d, m: d.pop("network"), "not a readable certificate"),
    "no array": (lambda d, m: m.pop("tree.parent.npy"), "not a readable certificate"),
    "floats": (lambda d, m: m.update({"tree.case.npy": npy([0.5])}), "no signed integers"),
    "pickle": (lambda d, m: m.update({"tree.case.npy": npy([{}])}), "not a readable certificate"),
    "axes": (lambda d, m: m.update({"tree.case.npy": npy([[0]])}), "axes"),
    "lengths": (lambda d, m: m.update({"tree.case.npy": npy([0])}), "differ in length"),
    "rows": (lambda d, m: m.update({"multipliers.bits.npy": npy([0])}), "rows of multipliers"),
    "cycle": (lambda d, m: m.update({"tree.parent.npy": npy([0] * 3)}), "parent|length"),
    "cases": (lambda d, m: d["proof"].update(cases=[]), "case outside"),
    "weights": (lambda d, m: d["proof"].update(cases=[[0, 0, 0, [[1]]]]), "not a readable certificate"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line(damage: str, path: Path) -> None:
    change, words = DAMAGES[damage]
    with pytest.raises(CertificateError, match=words) as caught:
        load(rewritten(path, change))
    assert str(path) in str(caught.value)


def test_truncated_and_scrambled_files(path: Path) -> None:
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for number in range(120):
        broken = bytearray(data)
        if number % 2:
            broken = broken[: int(generator.integers(len(broken)))]
        else:
            for position in generator.integers(0, len(broken), size=4):
                broken[position] = int(generator.integers(256))
        path.write_bytes(broken)
        with suppress(CertificateError):  # a change may not matter; anything but this error is a defect
            load(path)


def test_missing_file_and_unwritable_folder(item: Answered, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="no such file"):
        load(tmp_path / "nothing")
    with pytest.raises(CertificateError, match="can't write"):
        save(item.certificate(), tmp_path / "no folder" / "c")


def test_a_certificate_of_another_network(item: Answered, path: Path) -> None:
    other = replace(item.query.network, metadata={"source": "elsewhere"})
    with pytest.raises(CertificateError, match="is of network"):
        check(load(path), other)
