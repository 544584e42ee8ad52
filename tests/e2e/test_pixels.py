"""Images and radii in pixel steps for a model that reads real inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct

pytest.importorskip("onnxruntime")

from tests.conformance.onnx_models import mlp, quantized
from tests.conformance.onnx_models import run as run_model

MEAN, STD = 0.4, 0.25


def prepared(pixels: Any) -> Any:
    return (pixels.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    network = mlp()
    quantized(network, tmp_path / "m.onnx", "QDQ", "QUInt8", "QInt8", False)
    np.save(tmp_path / "x.npy", np.random.default_rng(1).integers(0, 256, (8, *network.shape), dtype=np.uint8))

    def call(*arguments: object) -> tuple[int, str, str]:
        status = run([str(arguments[0]), "--mean", str(MEAN), "--std", str(STD), *map(str, arguments[1:])], Direct())
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_images_are_read_as_the_model_reads_them(call: Callable[..., Any]) -> None:
    status, out, _ = call("eval", "m.onnx", "--inputs", "x.npy", "--json")
    assert status == 0
    expected = run_model(Path("m.onnx"), prepared(np.load("x.npy"))).reshape(8, -1).argmax(axis=1)
    assert json.loads(out)["predicted"] == expected.tolist()


def test_the_radius_is_that_of_the_nearest_image(call: Callable[..., Any]) -> None:
    pixels = np.load("x.npy")
    for row in (1, 3, 6):
        flags = ("m.onnx", "--input", f"x.npy[{row}]", "--radius-unit", "pixel", "--json")
        status, out, _ = call("radius", *flags, "--timeout", "30")
        answer = json.loads(out)
        assert (status, answer["exact"], answer["radius_unit"]) == (0, True, "pixel")
        found = np.array(answer["counterexample"]["input"], dtype=np.float32).reshape(pixels.shape[1:])
        images = prepared(np.arange(256))
        moved = np.abs(found.reshape(-1)[:, None] - images).argmin(1)
        assert np.array_equal(images[moved], found.reshape(-1))  # an image indeed
        assert np.abs(moved - pixels[row].reshape(-1).astype(int)).max() == answer["refuted_radius"]
        assert run_model(Path("m.onnx"), found[None]).reshape(-1).argmax() != answer["label"]
        for radius, expected in ((answer["verified_radius"], 0), (answer["refuted_radius"], 1)):
            assert call("verify", *flags, "--radius", radius)[0] == expected


def test_a_radius_of_an_enclosure_is_refuted_by_runs_on_images(call: Callable[..., Any]) -> None:
    flags = ("--runtime", "onnx-spec", "--radius-unit", "pixel", "--method", "attack", "--max-radius", "8", "--json")
    status, out, _ = call("radius", "m.onnx", "--input", "x.npy[1]", *flags)
    answer = json.loads(out)
    assert status == 3
    images = prepared(np.arange(256))
    assert set(np.float32(answer["counterexample"]["input"]).tolist()) <= set(images.tolist())
    assert 0 < answer["refuted_radius"] <= 8


def test_campaigns_of_images(call: Callable[..., Any]) -> None:
    flags = ("m.onnx", "--inputs", "x.npy", "--radius-unit", "pixel", "--radius", "1", "2", "--json", "--out", "r.db")
    status, out, _ = call("campaign", *flags)
    assert status == 0
    asked = ("--radius-unit", "pixel", "--radius", 2)
    statuses = [call("verify", "m.onnx", "--input", f"x.npy[{row}]", *asked)[0] for row in range(8)]
    assert json.loads(out)["radii"][1]["robust"] == statuses.count(0)


def test_where_pixel_steps_skip_codes_only_images_count(call: Callable[..., Any]) -> None:
    """A violation between the images decides nothing; with a step of several codes there are some, and proofs still hold."""
    statuses = set()
    for row, radius in ((0, 4), (1, 1), (3, 4), (6, 4), (7, 4)):
        flags = ("m.onnx", "--input", f"x.npy[{row}]", "--radius-unit", "pixel", "--std", "0.05", "--json")
        assert call("radius", *flags)[0] == 2
        status, out, _ = call("verify", *flags, "--radius", radius)
        answer = json.loads(out)
        statuses.add((status, answer["reason"]))
        if status == 1:
            images = (np.arange(256).astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(0.05)
            assert set(answer["counterexample"]["input"]) <= set(images.tolist())
    assert {status for status, _ in statuses} == {0, 1, 3}
    assert (3, "unsupported") in statuses


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--radius", "1", "--radius-unit", "pixel", "--input-range", "0", "1"), "--radius alone"),
        (("--radius", "0.1", "--std", "0"), "std positive"),
        (("--radius", "0.1", "--mean", "1,2"), "fit no axis"),
        (("--radius", "0.1", "--mean", "x"), "--mean 'x'"),
    ],
)
def test_one_line_for_bad_flags(call: Callable[..., Any], flags: tuple[str, ...], words: str) -> None:
    status, out, err = call("verify", "m.onnx", "--input", "x.npy[0]", *flags)
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_reals_are_no_images(call: Callable[..., Any]) -> None:
    np.save("y.npy", prepared(np.load("x.npy")))
    assert "fractions" in call("verify", "m.onnx", "--input", "y.npy[0]", "--radius", "1", "--radius-unit", "pixel")[2]
