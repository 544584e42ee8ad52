"""Whatever a user gets wrong: exactly one line on stderr, nothing on stdout, exit status 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import qertify.queries.robustness
from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from tests.files import comparison_model, model_flags

H5 = ["m.h5", *model_flags()]
X = ["--input", "x.npy"]
R = ["--radius", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    content = comparison_model(tmp_path / "m.h5").read_bytes()
    (tmp_path / "truncated.h5").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "text.qnet").write_text("not a zip")
    (tmp_path / "text.onnx").write_text("not a protobuf")
    for name, array in {
        "x": np.array([9, 4]), "rows": np.array([[9, 4], [4, 9]]), "three": np.array([1, 2, 3]), "nan": np.array([np.nan, 1]),
        "half": np.array([0.5, 1]), "negative": np.array([-1, 4]), "large": np.array([16, 4]), "text": np.array(["a", "b"]),
        "low": np.array([10, 0]), "high": np.array([8, 4]), "far": np.array([12, 12]), "y": np.array([0, 7]),
    }.items():  # fmt: skip
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-3])
    (tmp_path / "garbage.gz").write_bytes(b"\x1f\x8b" + bytes(50))
    return tmp_path


BAD = {
    "no command": ([], "Missing command"),
    "unknown command": (["frobnicate"], "frobnicate"),
    "unknown option": (["verify", *H5, *X, *R, "--magic", "c"], "--magic"),
    "no model": (["verify"], "MODEL"),
    "no input": (["verify", *H5, *R], "--input"),
    "missing model": (["verify", "none.h5", "--bits", "4", *X, *R], "none.h5: no such file"),
    "truncated HDF5": (["verify", "truncated.h5", "--bits", "4", *X, *R], "truncated.h5: not a readable Keras weight file"),
    "not HDF5": (["info", "text.h5", "--bits", "4"], "text.h5"),
    "not a qnet": (["info", "text.qnet"], "text.qnet"),
    "a folder": (["info", ".", "--bits", "4"], "unknown model format"),
    "unknown suffix": (["info", "m.txt"], "unknown model format"),
    "a format to come": (["info", "a.tflite"], "a.tflite"),
    "no bits": (["info", "m.h5"], "--bits"),
    "bits too small": (["info", "m.h5", "--bits", "1"], "bits 1"),
    "bits too large": (["info", "m.h5", "--bits", "64"], "bits 64"),
    "bits not a number": (["info", "m.h5", "--bits", "four"], "--bits"),
    "bits for a qnet": (["info", "text.qnet", "--bits", "4"], "no meaning"),
    "unknown weights": (["info", *H5, "--weights", "magic"], "--weights"),
    "missing input": (["verify", *H5, "--input", "none.npy", *R], "none.npy: no such file"),
    "wrong shape": (["verify", *H5, "--input", "three.npy", *R], "shape"),
    "several rows": (["verify", *H5, "--input", "rows.npy", *R], "rows.npy[0]"),
    "row out of range": (["verify", *H5, "--input", "rows.npy[2]", *R], "row 2 is outside 0 … 1"),
    "bad selection": (["verify", *H5, "--input", "rows.npy[a]", *R], "[17]"),
    "NaN": (["verify", *H5, "--input", "nan.npy", *R], "NaN"),
    "fractions": (["eval", *H5, "--inputs", "half.npy"], "fractions"),
    "negative code": (["eval", *H5, "--inputs", "negative.npy"], "valid range 0 … 15"),
    "large code": (["eval", *H5, "--inputs", "large.npy"], "valid range 0 … 15"),
    "text array": (["eval", *H5, "--inputs", "text.npy"], "numbers"),
    "pickled array": (["eval", *H5, "--inputs", "object.npy"], "object.npy"),
    "truncated array": (["eval", *H5, "--inputs", "cut.npy"], "truncated"),
    "damaged gzip": (["eval", *H5, "--inputs", "garbage.gz"], "garbage.gz"),
    "model as input": (["eval", *H5, "--inputs", "m.h5"], "neither"),
    "label too large": (["verify", *H5, *X, *R, "--label", "2"], "label 2 is outside 0 … 1"),
    "label negative": (["verify", *H5, *X, *R, "--label", "-1"], "label -1 is outside"),
    "label from a file": (["verify", *H5, "--input", "rows.npy[1]", *R, "--labels", "y.npy"], "label 7 is outside"),
    "two labels": (["verify", *H5, *X, *R, "--label", "0", "--labels", "y.npy"], "not both"),
    "too few labels": (["eval", *H5, "--inputs", "rows.npy", "--labels", "y.npy[0]"], "1 label(s) for 2 row(s)"),
    "target out of range": (["verify", *H5, *X, *R, "--target", "9"], "target 9"),
    "target is the label": (["verify", *H5, *X, *R, "--target", "0"], "label itself"),
    "no region": (["verify", *H5, *X], "--radius"),
    "negative radius": (["verify", *H5, *X, "--radius", "-1"], "radius -1 is negative"),
    "radius NaN": (["verify", *H5, *X, "--radius", "nan"], "radius 'nan'"),
    "radius garbage": (["verify", *H5, *X, "--radius", "big"], "radius 'big'"),
    "radius too long": (["verify", *H5, *X, "--radius", "1e999999999"], "radius"),
    "unknown unit": (["verify", *H5, *X, *R, "--radius-unit", "miles"], "--radius-unit"),
    "pixels without 8 bits": (["verify", *H5, *X, *R, "--radius-unit", "pixel"], "8-bit pixels"),
    "half a box": (["verify", *H5, *X, "--lower", "x.npy"], "go together"),
    "box and radius": (["verify", *H5, *X, *R, "--lower", "x.npy", "--upper", "x.npy"], "either --radius"),
    "empty box": (["verify", *H5, *X, "--lower", "low.npy", "--upper", "high.npy"], "empty"),
    "box without the input": (["verify", *H5, *X, "--lower", "far.npy", "--upper", "far.npy"], "does not contain the centre"),
    "empty range": (["verify", *H5, *X, *R, "--input-range", "5", "4"], "empty"),
    "range without a code": (["verify", *H5, *X, *R, "--input-range", "3.2", "3.8"], "empty"),
    "range without the input": (["verify", *H5, *X, *R, "--input-range", "0", "8"], "contain the centre"),
    "unknown solver": (["verify", *H5, *X, *R, "--solver", "magic"], "unknown solver 'magic'; known: highs, cp-sat"),
    "unknown method": (["verify", *H5, *X, *R, "--method", "magic"], "--method"),
    "unknown ties": (["verify", *H5, *X, *R, "--ties", "magic"], "--ties"),
    "unknown device": (["verify", *H5, *X, *R, "--device", "abacus"], "unknown device 'abacus'"),
    "timeout zero": (["verify", *H5, *X, *R, "--timeout", "0"], "timeout"),
    "timeout NaN": (["verify", *H5, *X, *R, "--timeout", "nan"], "timeout"),
    "timeout infinite": (["verify", *H5, *X, *R, "--timeout", "inf"], "timeout"),
    "memory negative": (["verify", *H5, *X, *R, "--memory", "-1"], "memory"),
    "seed negative": (["verify", *H5, *X, *R, "--seed", "-1"], "--seed"),
    "output folder missing": (["verify", *H5, *X, *R, "--save-counterexample", "no/ce.npy"], "can't write"),
    "output suffix": (["verify", *H5, *X, *R, "--save-counterexample", "ce.txt"], ".npy"),
    "eval output": (["eval", *H5, *X[:0], "--inputs", "x.npy", "--out", "no/y.npy"], "can't write"),
    "demo folder": (["demo", "--out", "x.npy"], "--out x.npy"),
    "demo count": (["demo", "--count", "0"], "--count"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_line_and_status_2(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    arguments, words = BAD[case]
    assert run(arguments, Direct()) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line for line in lines if not line.startswith("region: ")] == lines[-1:]
    assert lines[-1].startswith("error: ")
    assert words in lines[-1]
    assert captured.out == ""


def test_cuda_without_a_gpu(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(["verify", *H5, *X, *R, "--device", "cuda"], Direct()) == 2
    assert "device 'cuda' is not available" in capsys.readouterr().err


def test_control_characters_do_not_reach_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "a\nb\x1b[31m.h5", "--bits", "4"], Direct()) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    assert "\x1b" not in captured


def failing(error: BaseException) -> Callable[..., None]:
    def verify(*_: object) -> None:
        raise error

    return verify


@pytest.mark.parametrize("verbose", [False, True])
def test_a_defect_is_one_line_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verbose: bool
) -> None:
    monkeypatch.setattr(qertify.queries.robustness, "verify", failing(RuntimeError("two\nlines")))
    assert run(["verify", *H5, *X, *R, *(["-v"] if verbose else [])], Direct()) == 2
    captured = capsys.readouterr()
    assert "error: RuntimeError: two lines; this is a defect of qertify, please report" in captured.err
    assert ("Traceback" in captured.err) is verbose
    assert captured.out == ""


def test_memory_error(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An exhausted memory is an unknown verdict, not a defect."""
    monkeypatch.setattr(qertify.queries.robustness, "verify", failing(MemoryError()))
    assert run(["verify", *H5, *X, *R, "--json"], Direct()) == 3
    assert '"reason": "memory"' in capsys.readouterr().out
