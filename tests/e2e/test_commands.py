"""Every command through the entry function, in this process: answers, exit statuses, JSON, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.importers.registry import ImportOptions, load_model
from qertify.network.evaluate import evaluate
from qertify.network.storage import save
from qertify.result import Result, Verdict
from tests.files import comparison_model, idx, model_flags


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a model and inputs (x₀, x₁), class 0 while x₀ ≥ x₁."""
    monkeypatch.chdir(tmp_path)
    comparison_model(tmp_path / "m.h5")
    save(load_model(tmp_path / "m.h5", ImportOptions(bits=4, input_bits=4)), tmp_path / "m.qnet")
    np.save(tmp_path / "x.npy", np.array([[15, 0], [0, 15], [9, 4], [4, 9]]))
    np.save(tmp_path / "y.npy", np.array([0, 1, 0, 0]))
    return tmp_path


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        status = run([str(argument) for argument in arguments], Direct())
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


H5 = ("m.h5", *model_flags())


def test_robust(call: Callable[..., Outcome]) -> None:
    outcome = call("verify", *H5, "--input", "x.npy[0]", "--radius", 2, "--label", 0, "--json")
    assert outcome.status == 0
    answer = outcome.json
    assert answer["verdict"] == "robust"
    assert answer["reason"] is None
    assert answer["evidence"] in ("exact_bounds", "exact_search", "exact_solver")
    assert (answer["label"], answer["predicted"], answer["target"], answer["ties"]) == (0, 0, None, "first")
    assert (answer["radius"], answer["radius_unit"]) == ("2", "levels")
    assert answer["region"]["low"] == 0
    assert answer["region"]["high"] == 15
    assert answer["counterexample"] is None
    assert answer["schema_version"] == 1
    assert len(answer["model_digest"]) == 64
    assert "region: radius 2 levels" in outcome.err


def test_non_robust_with_a_counterexample_that_replays(call: Callable[..., Outcome], folder: Path) -> None:
    outcome = call("verify", "m.qnet", "--input", "x.npy[2]", "--radius", 6, "--json", "--save-counterexample", "ce.npy")
    assert outcome.status == 1
    answer = outcome.json
    assert answer["verdict"] == "non_robust"
    assert answer["evidence"] == "replayed_counterexample"
    found = answer["counterexample"]
    levels = np.array(found["levels"])
    assert found["input"] == found["levels"]
    assert np.abs(levels - [9, 4]).max() == found["distance"] <= 6
    outputs = evaluate(load_model(folder / "m.qnet"), levels[None])[0]
    assert outputs.tolist() == found["outputs"]
    assert int(outputs.argmax()) == found["predicted"] == 1
    assert np.load(folder / "ce.npy").tolist() == found["levels"]
    assert Result.from_json(answer).verdict is Verdict.NON_ROBUST


def test_misclassified_is_its_own_verdict(call: Callable[..., Outcome]) -> None:
    outcome = call("verify", *H5, "--input", "x.npy[3]", "--labels", "y.npy", "--radius", 0, "--json")
    assert outcome.status == 1
    assert (outcome.json["verdict"], outcome.json["label"], outcome.json["predicted"]) == ("misclassified", 0, 1)


def test_unknown(call: Callable[..., Outcome]) -> None:
    outcome = call("verify", *H5, "--input", "x.npy[2]", "--radius", 6, "--json", "--method", "bounds")
    assert outcome.status == 3
    assert outcome.json["verdict"] == "unknown"
    assert outcome.json["reason"] == "unsupported"


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (("--input", "x.npy[0]", "--radius", "1"), 0, "ROBUST: class 0 wins at every input within 1 level "),
        (
            ("--input", "x.npy[2]", "--radius", "6"),
            1,
            "NOT ROBUST: an input within 6 levels of the given one is predicted",
        ),
        (("--input", "x.npy[2]", "--radius", "6", "--target", "1"), 1, "lets class 1 overtake class 0"),
        (
            ("--input", "x.npy[0]", "--radius", "1", "--label", "1"),
            1,
            "MISCLASSIFIED: the given input is itself predicted",
        ),
        (("--input", "x.npy[2]", "--radius", "6", "--method", "bounds"), 3, "UNKNOWN: the chosen method can't decide"),
    ],
)
def test_readable_answers(call: Callable[..., Outcome], flags: tuple[str, ...], status: int, words: str) -> None:
    outcome = call("verify", *H5, *flags)
    assert outcome.status == status
    assert words in outcome.out
    assert "\x1b" not in outcome.out


@pytest.mark.parametrize(
    ("flags", "radius", "reach"),
    [
        (("--radius", "5/2"), "5/2", 2),
        (("--radius", "0"), "0", 0),
        (("--radius", "1e30"), "1" + "0" * 30, 9),
        (("--radius", "0.2", "--radius-unit", "real"), "1/5", 3),
        (("--radius", "0.1875", "--radius-unit", "real"), "3/16", 3),
        (("--lower", "low.npy", "--upper", "high.npy"), "4", 4),
        (("--radius", "4", "--input-range", "3.5", "12"), "4", 4),
    ],
)
def test_regions(call: Callable[..., Outcome], folder: Path, flags: tuple[str, ...], radius: str, reach: int) -> None:
    np.save(folder / "low.npy", np.array([8, 0]))
    np.save(folder / "high.npy", np.array([12, 4]))
    answer = call("verify", *H5, "--input", "x.npy[2]", *flags, "--json").json
    assert answer["radius"] == radius
    assert answer["region"]["largest_distance"] == max(reach, 11 if radius.endswith("0" * 30) else 0)
    if "--input-range" in flags:
        assert (answer["region"]["low"], answer["region"]["high"]) == (4, 12)
    if "--lower" in flags:
        assert (answer["region"]["low"], answer["region"]["high"]) == (0, 12)


def test_ties(call: Callable[..., Outcome], folder: Path) -> None:
    """(7, 7) is a tie: class 0 wins it, loses it, or nobody does."""
    np.save(folder / "tie.npy", np.array([7, 7]))
    verdicts = {
        ties: call("verify", *H5, "--input", "tie.npy", "--radius", 0, "--label", 0, "--ties", ties, "--json").json["verdict"]
        for ties in ("first", "last", "violation")
    }
    assert verdicts == {"first": "robust", "last": "misclassified", "violation": "misclassified"}


def test_eval(call: Callable[..., Outcome], folder: Path) -> None:
    outcome = call("eval", *H5, "--inputs", "x.npy", "--labels", "y.npy", "--out", "out.npy", "--json")
    assert outcome.status == 0
    answer = outcome.json
    assert answer["predicted"] == [0, 1, 0, 1]
    assert answer["outputs"] == np.load(folder / "out.npy").tolist()
    assert answer["correct"] == 3
    assert (answer["scale"], answer["zero_point"]) == (0.25, 0)
    readable = call("eval", "m.qnet", "--inputs", "x.npy[1:3]", "--labels", "y.npy")
    assert readable.out.splitlines()[0].startswith("row 1: class 1 (label 1), outputs [")
    assert "2 of 2 correct (100.00%)" in readable.out


def test_eval_shows_the_first_of_many(call: Callable[..., Outcome], folder: Path) -> None:
    np.save(folder / "many.npy", np.zeros((3000, 2), dtype=int))
    assert "2980 more rows" in call("eval", *H5, "--inputs", "many.npy").out


def test_images_saturate(call: Callable[..., Outcome], folder: Path) -> None:
    (folder / "t-idx3-ubyte").write_bytes(idx([[[200, 3]], [[15, 3]]]))
    answer = call("eval", *H5, "--inputs", "t-idx3-ubyte", "--json").json
    assert answer["outputs"][0] == answer["outputs"][1]
    outcome = call("verify", *H5, "--input", "t-idx3-ubyte[0]", "--radius", 1)
    assert "1 pixel(s) saturated at 15" in outcome.err


def test_info(call: Callable[..., Outcome]) -> None:
    answer = call("info", *H5, "--json").json
    assert answer["input"]["shape"] == [2]
    assert (answer["input"]["low"], answer["input"]["high"]) == (0, 15)
    assert answer["parameters"] == 12
    assert [layer["kind"] for layer in answer["layers"]] == ["Input", "Dense", "Staircase", "Dense", "Staircase"]
    assert answer["layers"][1]["weight_bits"] == 4
    assert all(proof["proved"] for proof in answer["accumulators"])
    readable = call("info", "m.qnet")
    assert readable.status == 0
    for words in ("fixed-point", "of 32 bits", "proved to fit", answer["model_digest"]):
        assert words in readable.out


def test_an_overflowing_accumulator_is_shown_and_never_robust(call: Callable[..., Outcome], folder: Path) -> None:
    from dataclasses import replace

    network = load_model(folder / "m.qnet")
    narrow = replace(network.nodes[1], accumulator_bits=4)
    save(replace(network, nodes=(network.nodes[0], narrow, *network.nodes[2:])), folder / "narrow.qnet")
    assert "MAY OVERFLOW" in call("info", "narrow.qnet").out
    outcome = call("verify", "narrow.qnet", "--input", "x.npy[0]", "--radius", 1, "--json")
    assert (outcome.status, outcome.json["reason"]) == (3, "arithmetic")


def test_verbose_tells_the_stages(call: Callable[..., Outcome]) -> None:
    assert "interval:" in call("verify", *H5, "--input", "x.npy[2]", "--radius", 3, "-v").err


def test_demo(call: Callable[..., Outcome], folder: Path) -> None:
    outcome = call("demo", "--out", "shown", "--count", 4, "--timeout", 3)
    assert outcome.status == 0
    assert "12 questions" in outcome.out
    pictures = list((folder / "shown").glob("*.png"))
    assert pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for picture in pictures)
    results = [Result.from_json({k: v for k, v in item.items() if k != "image"})
               for item in json.loads((folder / "shown" / "results.json").read_text())]  # fmt: skip
    assert len(results) == 12
    assert {result.verdict for result in results} >= {Verdict.ROBUST, Verdict.NON_ROBUST}


def test_radius(call: Callable[..., Outcome]) -> None:
    flags = ["m.h5", *model_flags(), "--input", "x.npy[2]"]
    exact = call("radius", *flags, "--json")
    assert exact.status == 0
    answer = exact.json
    assert answer["exact"]
    assert answer["refuted_radius"] == answer["verified_radius"] + 1 == answer["counterexample"]["distance"]
    for radius, status in ((answer["verified_radius"], 0), (answer["refuted_radius"], 1)):
        assert call("verify", *flags, "--radius", str(radius)).status == status
    wrong = call("radius", *flags, "--label", "1")
    assert (wrong.status, wrong.out.split(":")[0]) == (1, "MISCLASSIFIED")
    open_ = call("radius", *flags, "--method", "attack")
    assert (open_.status, open_.out.split(":")[0]) == (3, "RADIUS AT LEAST 0")
    assert call("radius", *flags, "--max-radius", "-1").status == 2
