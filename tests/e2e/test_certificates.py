"""``--certificate`` and ``qertify check`` through the entry function: answers, exit statuses, files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.certificates.format import load, save
from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.importers.registry import ImportOptions, load_model
from qertify.network.storage import save as save_network
from qertify.result import Evidence
from tests.certificates import answered, without_enumeration
from tests.data import images, published_network, shared_data
from tests.files import comparison_model, model_flags


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.out.count("\n") == 1
        return json.loads(self.out)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a model and inputs (x₀, x₁), class 0 while x₀ ≥ x₁."""
    monkeypatch.chdir(tmp_path)
    comparison_model(tmp_path / "m.h5")
    save_network(load_model(tmp_path / "m.h5", ImportOptions(bits=4, input_bits=4)), tmp_path / "m.qnet")
    np.save(tmp_path / "x.npy", np.array([[15, 0], [0, 15], [9, 4], [4, 9]]))
    return tmp_path


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        status = run([str(argument) for argument in arguments], Direct())
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


QUESTIONS = {
    "robust": (("x.npy[0]", "--radius", 2), 0),
    "non_robust": (("x.npy[2]", "--radius", 6), 1),
    "misclassified": (("x.npy[3]", "--radius", 0, "--label", 0), 1),
}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_verify_then_check(call: Callable[..., Outcome], kind: str) -> None:
    flags, status = QUESTIONS[kind]
    answer = call("verify", "m.h5", *model_flags(), "--input", *flags, "--json", "--certificate", "c.cert")
    assert answer.status == status
    assert answer.json["verdict"] == kind
    assert "certificate: c.cert" in answer.err
    for model in (("m.h5",), ("m.h5", *model_flags()), ("m.qnet",)):  # the certificate knows how the file was read
        found = call("check", "c.cert", *model, "--json")
        assert found.status == 0, found.err
        assert found.json["verdict"] == "valid"
        assert found.json["claim"]["kind"] == kind
        assert found.json["model_digest"] == answer.json["model_digest"]
        assert found.json["reason"] is None
        assert found.json["trusted"] == []
    assert call("check", "c.cert", "m.qnet").out.startswith("VALID: ")


def test_radius_then_check(call: Callable[..., Outcome]) -> None:
    answer = call("radius", "m.qnet", "--input", "x.npy[2]", "--json", "--certificate", "r.cert")
    found = call("check", "r.cert", "m.qnet", "--json")
    assert (answer.status, found.status) == (0, 0)
    claim = found.json["claim"]
    assert (claim["radius"], claim["refuted"]) == (answer.json["verified_radius"], answer.json["refuted_radius"])
    assert claim["low"] == [9, 4]


def test_an_invalid_certificate_says_why(call: Callable[..., Outcome], folder: Path) -> None:
    call("verify", "m.qnet", "--input", "x.npy[2]", "--radius", 2, "--certificate", "c.cert")
    certificate = load(folder / "c.cert")
    region = replace(certificate.claim.region, radius=6)
    save(replace(certificate, claim=replace(certificate.claim, region=region)), folder / "false.cert")
    found = call("check", "false.cert", "m.qnet", "--json")
    assert found.status == 1
    assert found.json["verdict"] == "invalid"
    assert found.json["reason"]
    assert call("check", "false.cert", "m.qnet").out.startswith("INVALID: ")


def test_what_is_taken_on_trust_is_named(call: Callable[..., Outcome], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_enumeration(monkeypatch)
    item = next(item for item in answered(2, 900) if item.result.evidence is Evidence.EXACT_SOLVER)
    save_network(item.query.network, folder / "hard.qnet")
    save(item.certificate(), folder / "hard.cert")
    found = call("check", "hard.cert", "hard.qnet", "--json")
    assert found.status == 3
    assert found.json["verdict"] == "valid_if_trusted"
    assert any("cp-sat" in step for step in found.json["trusted"])
    assert "on trust" in call("check", "hard.cert", "hard.qnet").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x.npy", "m.qnet"), "not a readable certificate"),
        (("nothing.cert", "m.qnet"), "no such file"),
        (("cut.cert", "m.qnet"), "not a readable certificate"),
        (("c.cert", "m.h5", "--bits", 5), "is of network"),
        (("c.cert", "nothing.qnet"), "no such file"),
        (("c.cert", "x.npy"), "unknown model format"),
        (("c.cert", "m.qnet", "--timeout", -1), "must be a positive number"),
    ],
)
def test_unusable(call: Callable[..., Outcome], folder: Path, arguments: tuple[object, ...], words: str) -> None:
    call("verify", "m.h5", *model_flags(), "--input", "x.npy[0]", "--radius", 1, "--certificate", "c.cert")
    (folder / "cut.cert").write_bytes((folder / "c.cert").read_bytes()[:-300])
    found = call("check", *arguments)
    assert found.status == 2
    assert found.out == ""
    assert words in found.err
    assert found.err.count("\n") == 1


def test_without_a_proof_nothing_is_written(call: Callable[..., Outcome], folder: Path) -> None:
    flags = ("m.qnet", "--input", "x.npy[2]", "--radius", 6, "--method", "bounds", "--certificate", "c.cert")
    found = call("verify", *flags)
    assert found.status == 3
    assert "c.cert is not written" in found.err
    assert not (folder / "c.cert").exists()


def test_a_folder_that_can_not_be_written_is_told_at_once(call: Callable[..., Outcome]) -> None:
    found = call("verify", "m.qnet", "--input", "x.npy[0]", "--radius", 1, "--certificate", "nowhere/c.cert")
    assert (found.status, found.out) == (2, "")
    assert "--certificate" in found.err


def test_notes_in_a_certificate_never_let_code_run(call: Callable[..., Outcome], folder: Path) -> None:
    call("verify", "m.qnet", "--input", "x.npy[0]", "--radius", 1, "--certificate", "c.cert")
    save(replace(load(folder / "c.cert"), model_options={"trust_code": True}), folder / "c.cert")
    found = call("check", "c.cert", "m.qnet")
    assert found.status == 2
    assert "trust_code" in found.err


def test_the_checker_loads_no_engine() -> None:
    code = "import sys, qertify.certificates.check; print([m for m in ('torch', 'highspy', 'ortools') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


@pytest.mark.skipif(shared_data() is None, reason="the data folder is not there")
def test_a_published_task(call: Callable[..., Outcome], folder: Path) -> None:
    name, sample = "mnist_1blk_64_in_8_qu_6.h5", 106
    pixels, labels = images("mnist")
    np.save(folder / "image.npy", pixels[sample])
    save_network(published_network(name), folder / "published.qnet")
    flags = ("--input", "image.npy", "--label", int(labels[sample]), "--radius", 10, "--json", "--certificate", "c.cert")
    answer = call("verify", "published.qnet", *flags)
    assert (answer.status, answer.json["evidence"]) == (0, "exact_search")
    found = call("check", "c.cert", "published.qnet", "--json")
    assert (found.status, found.json["verdict"]) == (0, "valid")
    assert found.json["leaves"] > 20
    proof = load(folder / "c.cert").proof
    assert proof is not None
    value = proof.multipliers.value.copy()
    value[len(value) // 2] += 1 << 20
    save(
        replace(load(folder / "c.cert"), proof=replace(proof, multipliers=replace(proof.multipliers, value=value))),
        folder / "d",
    )
    changed = call("check", "d", "published.qnet", "--json")
    assert (changed.status, changed.json["verdict"]) == (1, "invalid")
    assert "node" in changed.json["reason"]
