"""``qertify equiv`` through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.importers.registry import ImportOptions, load_model
from qertify.network.storage import save as save_network
from tests.files import write_h5

QUANTIZED = ["--bits", "6", "--scheme", "qebverif"]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    layers = [(generator.normal(size=shape) / 2, generator.normal(size=shape[1]) / 4) for shape in ((4, 6), (6, 3))]
    write_h5(tmp_path / "f.h5", layers)
    wide = [(generator.normal(size=shape) / 2, generator.normal(size=shape[1]) / 4) for shape in ((5, 6), (6, 3))]
    write_h5(tmp_path / "wide.h5", wide)
    bad = [(np.full((4, 3), np.nan), np.zeros(3))]
    write_h5(tmp_path / "nan.h5", bad)
    np.save(tmp_path / "x.npy", np.array([0, 40, 128, 255], dtype=np.uint8))
    np.save(tmp_path / "real.npy", np.array([0.0, 0.15, 0.5, 0.99]))

    def call(*arguments: object) -> tuple[int, str, str]:
        status = run(["equiv", *(str(argument) for argument in arguments)], Direct())
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def _answer(found: tuple[int, str, str]) -> tuple[int, dict[str, Any]]:
    return found[0], json.loads(found[1])


@pytest.mark.parametrize(
    "region", [["--radius", "2"], ["--radius", "1/100", "--radius-unit", "real"], ["--radius", "2", "--input-scale", "1/255"]]
)
def test_delta_is_decided_around_the_greatest_difference(call: Callable[..., Any], region: list[str]) -> None:
    _, known = _answer(call("f.h5", "f.h5", *QUANTIZED, "--input", "x.npy", *region, "--max-delta", "--timeout", 5, "--json"))
    attained, proved = known["max_delta"]
    assert 0 < attained <= proved
    assert known["float32_error"] > 0
    status, above = _answer(
        call("f.h5", "f.h5", *QUANTIZED, "--input", "x.npy", *region, "--delta", f"{proved * 1.1:.12f}", "--json")
    )
    assert (status, above["verdict"], above["reason"]) == (0, "equivalent", None)
    assert above["evidence"] in ("exact_bounds", "exact_search")
    status, below = _answer(
        call("f.h5", "f.h5", *QUANTIZED, "--input", "x.npy", *region, "--delta", f"{attained * 0.9:.12f}", "--json")
    )
    assert (status, below["verdict"]) == (1, "not_equivalent")
    found = below["counterexample"]
    assert found["difference"] > attained * 0.9
    assert found["replayed_on"].startswith("numpy")
    difference = np.abs(np.array(found["original"]) - np.array(found["quantized"])).max()
    assert difference == pytest.approx(found["difference"])


def test_one_output_and_real_inputs_as_reals(call: Callable[..., Any]) -> None:
    flags = ["--input", "real.npy", "--radius", "1/200", "--radius-unit", "real", "--delta", "1", "--output", "2", "--json"]
    status, answer = _answer(call("f.h5", "f.h5", *QUANTIZED, *flags))
    assert (status, answer["output"], answer["region"]["kind"]) == (0, 2, "real_box")


def test_same_class(call: Callable[..., Any]) -> None:
    status, answer = _answer(call("f.h5", "f.h5", *QUANTIZED, "--input", "x.npy", "--radius", "1", "--top1", "--json"))
    assert (status, answer["question"], answer["verdict"]) in ((0, "top1", "equivalent"), (1, "top1", "not_equivalent"))


def test_two_quantizations(call: Callable[..., Any]) -> None:
    flags = ["--original-bits", "8", "--input", "x.npy", "--radius", "1"]
    status, out, _ = call("f.h5", "f.h5", *QUANTIZED, *flags, "--delta", "0.0001")
    assert status == 1
    assert "NOT EQUIVALENT" in out
    status, out, _ = call("f.h5", "f.h5", *QUANTIZED, *flags, "--delta", "2")
    assert status == 0


def test_an_original_of_another_format_ignores_the_flags_of_the_other(call: Callable[..., Any]) -> None:
    save_network(load_model("f.h5", ImportOptions(bits=6, scheme="qebverif")), "q.qnet")
    status, answer = _answer(call("q.qnet", "f.h5", *QUANTIZED, "--input", "x.npy", "--radius", "1", "--max-delta", "--json"))
    assert (status, answer["max_delta"]) == (0, [0, 0])


def test_single_inputs_and_far_deltas_are_decided(call: Callable[..., Any]) -> None:
    flags = ["--input", "real.npy", "--radius-unit", "real"]
    status, known = _answer(call("f.h5", "f.h5", *QUANTIZED, *flags, "--radius", "0", "--max-delta", "--json"))
    assert (status, known["method"], known["region"]["kind"]) == (0, "enumeration", "real_box")
    status, out, _ = call("f.h5", "f.h5", *QUANTIZED, *flags, "--radius", "1/100", "--delta", "1e99")
    assert (status, out.split(":")[0]) == (0, "EQUIVALENT")


def test_float32_execution_is_taken_into_account(call: Callable[..., Any]) -> None:
    flags = ["--input", "x.npy", "--radius", "0", "--max-delta", "--json"]
    _, real = _answer(call("f.h5", "f.h5", *QUANTIZED, *flags))
    assert real["verdict"] == "equivalent"  # one input: both ends meet
    _, bounded = _answer(call("f.h5", "f.h5", *QUANTIZED, *flags, "--float-semantics", "float32-bounded"))
    assert bounded["float_semantics"] == "float32-bounded"
    assert bounded["max_delta"][1] >= real["max_delta"][1]


BAD = {
    "no question": (["f.h5", "f.h5", "--radius", "1"], "--delta D, --top1 or --max-delta"),
    "two questions": (["f.h5", "f.h5", "--radius", "1", "--top1", "--max-delta"], "--delta D, --top1 or --max-delta"),
    "no region": (["f.h5", "f.h5", "--top1"], "give a region"),
    "delta of zero": (["f.h5", "f.h5", "--radius", "1", "--delta", "0"], "must be positive"),
    "negative radius": (["f.h5", "f.h5", "--radius", "-1", "--top1"], "negative"),
    "NaN delta": (["f.h5", "f.h5", "--radius", "1", "--delta", "nan"], "is not a number"),
    "different inputs": (["wide.h5", "f.h5", "--radius", "1", "--top1"], "shapes"),
    "NaN weights": (["nan.h5", "f.h5", "--radius", "1", "--top1"], "NaN"),
    "missing file": (["none.h5", "f.h5", "--radius", "1", "--top1"], "none.h5: no such file"),
    "output out of range": (["f.h5", "f.h5", "--radius", "1", "--delta", "1", "--output", "7"], "output 7"),
    "scale beyond float32": (["f.h5", "f.h5", "--radius", "1", "--top1", "--input-scale", "1e99"], "of their own"),
    "unknown semantics": (["f.h5", "f.h5", "--radius", "1", "--top1", "--float-semantics", "magic"], "magic"),
    "empty region": (["f.h5", "f.h5", "--radius", "1", "--radius-unit", "real", "--input-range", "2", "1", "--top1"], "empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(call: Callable[..., Any], name: str) -> None:
    arguments, expected = BAD[name]
    status, out, err = call(*arguments, *QUANTIZED, "--input", "x.npy")
    assert status == 2, err
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1
