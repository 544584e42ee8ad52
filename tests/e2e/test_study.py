"""A campaign in one Python call: the example of the documentation, and what is said about unusual inputs."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qertify
from tests.files import BITS, INPUT_BITS, comparison_model

INPUTS = np.array([[15, 0], [0, 15], [9, 4], [4, 9]])
LABELS = [0, 1, 0, 0]


def imports() -> qertify.ImportOptions:
    return qertify.ImportOptions(bits=BITS, input_bits=INPUT_BITS)


def study(folder: Path, inputs: Any = INPUTS, labels: Any = LABELS, **more: Any) -> qertify.Store:
    asked: dict[str, Any] = {"radii": [1, 3], "out": folder / "r.db", "imports": imports()}
    return qertify.study(folder / "m.h5", inputs, labels, **asked | more)


def test_answers_progress_and_resuming(tmp_path: Path) -> None:
    comparison_model(tmp_path / "m.h5")
    told: list[tuple[int, int]] = []
    with study(
        tmp_path, search="1/2", unit="real", radii=["1/16", "3/16"], progress=lambda p: told.append((p.done, p.total))
    ) as store:
        summary, first = qertify.summarise(store), [record.result.to_json() for record in store.records()]
        spans = [search.result.span for search in store.searches()]
        assert store.campaign.command_line == ()
    assert told[-1] == (12, 12)
    assert (summary.complete, summary.correct, [row.radius for row in summary.radii]) == (True, 3, ["1/16", "3/16"])
    assert [row.robust for row in summary.radii] == [3, 2]
    assert spans[2].verified == spans[2].refuted == Fraction(3, 16)
    assert spans[3].refuted == 0
    with study(tmp_path, search="1/2", unit="real", radii=["1/16", "3/16"], resume=True) as store:
        assert [record.result.to_json() for record in store.records()] == first
    with pytest.raises(qertify.StoreError, match="exists already"):
        study(tmp_path)


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "python-api.md").read_text()
    found = re.search(r"## A campaign in one call\n\n```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    comparison_model(tmp_path / "model.h5")
    monkeypatch.chdir(tmp_path)
    code = found[1].replace("bits=6", f"bits={BITS}, input_bits={INPUT_BITS}")
    exec(code, {"qertify": qertify, "images": INPUTS, "labels": LABELS})
    with qertify.open_store(tmp_path / "results.db") as store:
        assert len(list(store.searches())) == len(INPUTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": np.zeros((4, 3))}, "no rows of shape"),
        ({"inputs": np.zeros((0, 2))}, "no rows of shape"),
        ({"inputs": np.full((4, 2), np.nan)}, "NaN"),
        ({"inputs": np.full((4, 2), 0.5)}, "fractions"),
        ({"inputs": np.full((4, 2), 99)}, "leave the valid range"),
        ({"inputs": np.array([["a", "b"]] * 4)}, "integer codes are needed"),
        ({"labels": [0, 1]}, "labels of shape"),
        ({"labels": [0, 1, 2, 0]}, "label 2 is not a class"),
        ({"labels": [0, 1, -1, 0]}, "label -1 is not a class"),
        ({"labels": [0.5, 1, 0, 0]}, "fractions"),
        ({"radii": []}, "give radii or a radius search"),
        ({"radii": ["-1"]}, "negative"),
        ({"radii": ["many"]}, "not a number"),
        ({"search": "0.5"}, "whole number of levels"),
        ({"unit": "miles"}, "miles"),
        ({"out": "nowhere/r.db"}, "nowhere"),
    ],
)
def test_bad_input(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    comparison_model(tmp_path / "m.h5")
    with pytest.raises(qertify.QertifyError, match=re.escape(said)) as caught:
        study(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r.db").exists()
