"""Campaigns as commands: answers, resuming, comparing, exporting, and what is said about bad input."""

from __future__ import annotations

import csv
import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qertify.campaign.store import open_store
from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.queries.radius_result import Span
from tests.campaigns import verdicts
from tests.files import comparison_model, model_flags

CAMPAIGN = ["campaign", "m.h5", *model_flags(), "--inputs", "x.npy", "--labels", "y.npy", "--radius", "1", "3", "6", "--out"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, inputs, labels and the campaign r.db."""
    folder = tmp_path_factory.mktemp("campaign")
    comparison_model(folder / "m.h5")
    np.save(folder / "x.npy", np.array([[15, 0], [0, 15], [9, 4], [4, 9], [8, 7]]))
    np.save(folder / "y.npy", np.array([0, 1, 0, 0, 0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run([*CAMPAIGN, "r.db"], Direct()) == 0
    return folder


@pytest.fixture
def folder(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(finished)
    return finished


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = run(list(arguments), Direct())
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_answers(folder: Path) -> None:
    with open_store(folder / "r.db") as store:
        found = {(at, str(radius)): verdict for at, radius, verdict, *_ in verdicts(store)}
        assert store.campaign.radii == ("1", "3", "6")
        assert store.campaign.labelled
    assert found == {
        (0, "1"): "robust", (0, "3"): "robust", (0, "6"): "robust",
        (1, "1"): "robust", (1, "3"): "robust", (1, "6"): "robust",
        (2, "1"): "robust", (2, "3"): "non_robust", (2, "6"): "non_robust",
        (3, "1"): "misclassified", (3, "3"): "misclassified", (3, "6"): "misclassified",
        (4, "1"): "robust", (4, "3"): "non_robust", (4, "6"): "non_robust",
    }  # fmt: skip


def test_resuming_a_complete_campaign_asks_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, *CAMPAIGN, "r.db", "--resume", "--json")
    assert status == 0
    summary = json.loads(out)
    assert summary["complete"]
    assert summary["answers"] == 15
    assert summary["clean_accuracy"] == 0.8
    for row in summary["radii"]:
        assert row["robust"] + row["non_robust"] + row["misclassified"] == 5
        assert row["certified"] == [row["robust"] / 5] * 2


def test_radius_search(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["campaign", "m.h5", *model_flags(), "--inputs", "x.npy[0:3]", "--search-radius", "--out", "s.db", "--json"]
    status, out, _ = call(capsys, *arguments)
    assert status == 0
    assert json.loads(out)["radii"]
    with open_store(folder / "s.db") as store:
        found = [(s.result.verified_radius, s.result.refuted_radius, s.result.exact) for s in store.searches()]
        assert not store.campaign.labelled
    assert all(exact and refuted == verified + 1 for verified, refuted, exact in found)


def test_radius_search_in_real_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fixed-point input is code / 16: the exact radius is the distance of the counterexample."""
    search = ["campaign", "m.h5", *model_flags(), "--inputs", "x.npy", "--labels", "y.npy", "--search-radius"]
    status, out, _ = call(capsys, *search, "--radius-unit", "real", "--out", "q.db", "--json")
    assert status == 0
    assert call(capsys, *search, "--out", "l.db")[0] == 0
    with open_store(folder / "q.db") as store, open_store(folder / "l.db") as levels:
        assert store.campaign.radius_unit == "real"
        assert levels.campaign.radius_unit == "levels"
        for real, whole in zip(store.searches(), levels.searches(), strict=True):
            assert real.result.exact == whole.result.exact
            assert real.result.misclassified == whole.result.misclassified
            if whole.result.refuted_radius is not None:
                at = Fraction(whole.result.refuted_radius, 16)
                assert real.result.span == Span(at, at, below=True)
            elif not whole.result.misclassified:
                assert real.result.span.refuted is None
    rows = json.loads(out)["radii"]
    assert 5 < len(rows) <= 20
    assert [row["robust"] + row["non_robust"] + row["misclassified"] for row in rows] == [5] * len(rows)
    assert sorted((row["robust"] for row in rows), reverse=True) == [row["robust"] for row in rows]
    assert call(capsys, "export", "q.db", "--out", "q.csv")[0] == 0
    with (folder / "q.csv").open(newline="") as file:
        exported = list(csv.DictReader(file))
    assert {row["radius_unit"] for row in exported} == {"real"}
    assert any(row["verified_below"] == row["refuted_at"] != "" for row in exported)
    assert call(capsys, "compare", "q.db", "q.db")[0] == 0
    assert call(capsys, "report", "q.db", "--out", "q.html")[0] == 0
    assert "below" in (folder / "q.html").read_text()
    status, _, err = call(capsys, *search, "--radius-unit", "real", "--out", "l.db", "--resume")
    assert (status, "another radius unit" in err) == (2, True)
    status, _, err = call(capsys, *search, "1/3", "--radius-unit", "real", "--out", "m.db", "--json")
    assert status == 0
    with open_store(folder / "m.db") as store:
        assert store.campaign.search == "1/3"
        assert all((s.result.span.verified or 0) <= Fraction(1, 3) for s in store.searches())


def test_real_inputs_are_replayed_on_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    from tests.conformance.onnx_models import mlp, quantized

    monkeypatch.chdir(tmp_path)
    network = mlp()
    quantized(network, tmp_path / "m.onnx", "QDQ", "QUInt8", "QInt8", False)
    inputs = np.random.default_rng(0).standard_normal((3, *network.shape)).astype(np.float32)
    np.save(tmp_path / "x.npy", inputs)
    campaign = ["campaign", "m.onnx", "--inputs", "x.npy", "--timeout", "2", "--out", "r.db"]
    status, _, err = call(capsys, *campaign, "--radius", "1")
    assert (status, "name the unit" in err) == (2, True)
    np.save(tmp_path / "nan.npy", np.where(np.arange(3)[:, None] == 1, np.nan, inputs))
    status, _, err = call(capsys, "eval", "m.onnx", "--inputs", "nan.npy")
    assert (status, "'nan.npy': row 1 holds NaN or infinity" in err) == (2, True)
    assert call(capsys, *campaign, "--radius", "1/100", "1.5", "3", "--search-radius", "5", "--radius-unit", "real")[0] == 0
    with open_store(tmp_path / "r.db") as store:
        records, searches = list(store.records()), list(store.searches())
        assert store.campaign.radii == ("1/100", "3/2", "3")
    found = [record for record in records if record.result.counterexample is not None]
    assert any(record.implied_by is not None for record in found)
    for record in found:
        example = record.result.counterexample
        assert example is not None
        assert example.input is not None
        assert example.replayed_on.startswith("onnxruntime ")
        assert np.abs(np.float32(example.input) - inputs[record.position].reshape(-1)).max() <= Fraction(record.radius)
    assert len(searches) == 3
    for search in searches:
        example = search.result.counterexample
        assert (example is None) == search.result.misclassified
        if example is not None:
            assert example.replayed_on.startswith("onnxruntime ")
            distance = max(abs(Fraction(float(a)) - Fraction(float(b))) for a, b in
                           zip(np.float32(example.input), inputs[search.position].reshape(-1), strict=True))  # fmt: skip
            assert distance <= search.result.span.refuted


def test_export(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "export", "r.db", "--out", "r.csv")[0] == 0
    with (folder / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    assert {row["verdict"] for row in rows} == {"robust", "non_robust", "misclassified"}
    assert call(capsys, "export", "r.db", "--out", "r.json")[0] == 0
    data = json.loads((folder / "r.json").read_text())
    assert len(data["results"]) == 15
    assert data["campaign"]["model_digest"] == data["results"][0]["model_digest"]
    pyarrow = pytest.importorskip("pyarrow.parquet")
    assert call(capsys, "export", "r.db", "--out", "r.parquet")[0] == 0
    assert pyarrow.read_table(folder / "r.parquet").column("verdict").to_pylist() == [row["verdict"] for row in rows]


def test_compare(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "compare", "r.db", "r.db")
    assert status == 0
    assert "0 of 15 verdicts changed" in out
    assert "no contradiction" in out
    with open_store(folder / "r.db") as store:
        example = next(r for r in store.records() if r.result.counterexample is not None).result.to_json()
    forged = tmp_path / "forged.db"
    forged.write_bytes((folder / "r.db").read_bytes())
    with closing(sqlite3.connect(forged)) as connection, connection:
        text = json.dumps(example | {"radius": "3"})
        connection.execute("UPDATE results SET verdict = 'non_robust', result = ? WHERE position = 0 AND radius = '3'", (text,))
    status, out, _ = call(capsys, "compare", "r.db", str(forged), "--json")
    assert status == 1
    found = json.loads(out)
    assert [(c["row"], c["verified"], c["refuted"], c["verified_in"]) for c in found["contradictions"]] == [
        (0, "6", "3", "first")
    ]
    assert found["transitions"] == {"robust → non_robust": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*CAMPAIGN, "r.db"], "exists already; --resume continues it"),
        ([*CAMPAIGN, "r.db", "--resume", "--timeout", "9"], "another options (timeout); nothing was changed"),
        ([*CAMPAIGN, "r.db", "--resume", "--radius", "2"], "another radii"),
        ([*CAMPAIGN, "n.db", "--radius", "-1"], "radius -1 is negative"),
        ([*CAMPAIGN, "n.db", "--radius", "x"], "radius 'x' is not a number"),
        ([*CAMPAIGN, "n.db", "--budget", "0"], "must be a positive number"),
        ([*CAMPAIGN, "n.txt"], "must end with .db"),
        ([*CAMPAIGN, "nowhere/n.db"], "can't write there"),
        ([*CAMPAIGN, "n.db", "--labels", "short.npy"], "selects 3 label(s) for 5 row(s)"),
        ([*CAMPAIGN, "n.db", "--labels", "long.npy"], "selects 6 label(s) for 5 row(s)"),
        ([*CAMPAIGN, "n.db", "--labels", "wrong.npy"], "label 7 is not a class"),
        ([*CAMPAIGN, "text.db", "--resume"], "damaged, or not a results file"),
        ([*CAMPAIGN, "n.db", "--search-radius", "2", "--input-range", "0", "9"], "does not go with --input-range"),
        (["campaign", "m.h5", *model_flags(), "--inputs", "x.npy", "--out", "n.db"], "give --radius or --search-radius"),
        ([*CAMPAIGN, "n.db", "--search-radius", "1/2"], "a whole number of levels is needed"),
        ([*CAMPAIGN, "n.db", "--search-radius", "-1"], "--search-radius -1 is negative"),
        (["compare", "r.db", "missing.db"], "no such file"),
        (["export", "r.db", "--out", "r.txt"], "must end with .csv, .parquet, .json"),
        (["export", "text.db", "--out", "r.csv"], "damaged, or not a results file"),
        (["report", "text.db", "--out", "r.html"], "damaged, or not a results file"),
        (["report", "r.db", "--out", "r.txt"], "must end with .html"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    for name, labels in (("short", [0, 1, 0]), ("long", [0, 1, 0, 0, 0, 1]), ("wrong", [0, 1, 0, 0, 7])):
        np.save(folder / f"{name}.npy", np.array(labels))
    (folder / "text.db").write_text("hardly a database " * 99)
    before = (folder / "r.db").read_bytes(), (folder / "text.db").read_bytes()
    status, out, err = call(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert ((folder / "r.db").read_bytes(), (folder / "text.db").read_bytes()) == before
    assert not (folder / "n.db").exists()


LONG = [sys.executable, "-m", "qertify", *CAMPAIGN, "k.db", "--resume", "--workers", "2"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs the supervisor's process tree")
def test_kills_and_interrupts_of_the_command(tmp_path: Path) -> None:
    comparison_model(tmp_path / "m.h5")
    rng = np.random.default_rng(3)
    np.save(tmp_path / "x.npy", rng.integers(0, 16, size=(200, 2)))
    np.save(tmp_path / "y.npy", rng.integers(0, 2, size=200))
    counts = [0]
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(LONG, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and _answers(tmp_path / "k.db") <= counts[-1]:
            time.sleep(0.02)
        assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == (130 if number == signal.SIGINT else -9)
        assert b"Traceback" not in said
        time.sleep(0.5)  # the watchdog of a killed parent needs a moment
        counts.append(_answers(tmp_path / "k.db"))
        assert counts[-1] > counts[-2]
    assert subprocess.run(LONG, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120).returncode == 0
    assert _answers(tmp_path / "k.db") == 600


def _answers(path: Path) -> int:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM results").fetchone()[0]
    except sqlite3.Error:
        return 0
