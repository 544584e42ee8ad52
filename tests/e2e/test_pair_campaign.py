"""``qertify campaign --float`` and what reads its file, through the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from tests.files import write_h5

FLAGS = ["--bits", "5", "--scheme", "qebverif", "--inputs", "x.npy", "--out", "r.db"]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(3)
    layers = [(generator.normal(size=shape) / 2, generator.normal(size=shape[1]) / 4) for shape in ((3, 5), (5, 3))]
    write_h5(tmp_path / "f.h5", layers)
    np.save(tmp_path / "x.npy", generator.integers(0, 256, size=(4, 3)).astype(np.uint8))

    def call(command: str, *arguments: object) -> tuple[int, str, str]:
        status = run([command, *(str(argument) for argument in arguments)], Direct())
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_from_the_question_to_the_report(call: Callable[..., Any], tmp_path: Path) -> None:
    asked = ["f.h5", "--float", "f.h5", *FLAGS, "--delta", "1/50", "1", "--radius", "0", "2", "--json"]
    status, out, err = call("campaign", *asked)
    found = json.loads(out)
    assert status == 0, err
    assert (found["inputs"], found["answers"], found["complete"]) == (4, 16, True)
    assert [(row["radius"], row["asked"]) for row in found["rows"]] == [
        ("0", "1/50"), ("0", "1"), ("2", "1/50"), ("2", "1"),
    ]  # fmt: skip
    assert all(row["equivalent"] + row["not_equivalent"] == 4 for row in found["rows"])
    assert len({row["equivalent"] for row in found["rows"]}) > 1
    assert len(found["apart"]) == 8
    status, out, _ = call("campaign", *asked[:-1], "--resume")
    assert status == 0
    assert "16 answers" in out
    assert call("export", "r.db", "--out", "r.csv")[0] == 0
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 17
    assert call("export", "r.db", "--out", "r.json")[0] == 0
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["campaign"]["comparison"]["asked"] == ["1/50", "1"]
    assert {result["verdict"] for result in data["results"]} == {"equivalent", "not_equivalent"}
    assert call("report", "r.db", "--out", "r.html")[0] == 0
    page = (tmp_path / "r.html").read_text()
    table = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])  # type: ignore[index]
    assert len(table["rows"]) == 16
    assert "apart by" in page
    status, out, _ = call("compare", "r.db", "r.db")
    assert status == 0
    assert "no contradiction" in out


BAD = {
    "no question": (["--float", "f.h5", "--radius", "1"], "--delta D, --top1 or --max-delta"),
    "no other model": (["--delta", "1", "--radius", "1"], "--float FLOAT_MODEL"),
    "no radius": (["--float", "f.h5", "--delta", "1"], "give --radius"),
    "two questions": (["--float", "f.h5", "--delta", "1", "--top1", "--radius", "1"], "ask one question"),
    "delta of zero": (["--float", "f.h5", "--delta", "0", "--radius", "1"], "must be positive"),
    "labels": (["--float", "f.h5", "--top1", "--radius", "1", "--labels", "y.npy"], "does not go with --labels"),
    "missing original": (["--float", "none.h5", "--top1", "--radius", "1"], "none.h5: no such file"),
    "unknown semantics": (["--float", "f.h5", "--top1", "--radius", "1", "--float-semantics", "magic"], "magic"),
    "output out of range": (["--float", "f.h5", "--delta", "1", "--radius", "1", "--output", "9"], "output 9"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(call: Callable[..., Any], name: str, tmp_path: Path) -> None:
    arguments, said = BAD[name]
    status, out, err = call("campaign", "f.h5", *FLAGS, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "r.db").exists()
