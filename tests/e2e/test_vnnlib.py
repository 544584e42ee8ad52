"""``qertify vnnlib``: answers against enumeration, result files, replay on the runtime, bad input."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.errors import InvalidInputError
from qertify.importers.registry import ImportOptions, load_model
from qertify.network.evaluate import evaluate
from qertify.network.network import Network
from qertify.queries.vnnlib import decide_specification
from qertify.queries.vnnlib_replay import exact_decimal
from qertify.search import stages
from qertify.specification.vnnlib import read_vnnlib
from tests.files import comparison_model, model_flags

HEAD = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    comparison_model(tmp_path / "m.h5")
    return tmp_path


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        status = run([str(argument) for argument in arguments], Direct())
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def write(folder: Path, box: str, violation: str, name: str = "p.vnnlib") -> Path:
    (folder / name).write_text(HEAD + f"(assert (and {box}))\n(assert {violation})\n")
    return folder / name


def fixed_point(folder: Path) -> Network:
    return load_model(folder / "m.h5", ImportOptions(bits=4, input_bits=4))


def test_random_properties_agree_with_enumeration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "ENUMERATION_LIMIT", 0)
    monkeypatch.setattr(stages, "SWEEP_LIMIT", 0)
    network, generator = fixed_point(folder), np.random.default_rng(1)
    codes = np.array(list(itertools.product(range(16), repeat=2)))
    outputs = evaluate(network, codes)
    seen: Counter[str] = Counter()
    for _ in range(120):
        ends = np.sort(generator.integers(0, 33, size=(2, 2)), axis=0) / 32  # every other bound lies between two codes
        lower, upper = (generator.choice(names, size=2) for names in ([">=", ">"], ["<=", "<"]))
        factors, bound = generator.choice([-2, -1, 1, 2], size=(2, 2)), generator.integers(-8, 9, size=2) / 8
        relation = generator.choice(["<=", "<", ">=", ">"], size=2)
        terms = [
            f"({r} (+ (* {a} Y_0) (* {b} Y_1)) {c})" for r, (a, b), c in zip(relation, factors.tolist(), bound, strict=True)
        ]
        box = " ".join(f"({lower[i]} X_{i} {ends[0, i]}) ({upper[i]} X_{i} {ends[1, i]})" for i in range(2))
        join = "and" if generator.random() < 0.5 else "or"
        text = HEAD + f"(assert (and {box}))\n(assert ({join} {' '.join(terms)}))"
        holds = {"<=": np.less_equal, "<": np.less, ">=": np.greater_equal, ">": np.greater}
        inside = np.all([holds[lower[i]](codes[:, i] / 16, ends[0, i]) for i in range(2)], axis=0)
        inside &= np.all([holds[upper[i]](codes[:, i] / 16, ends[1, i]) for i in range(2)], axis=0)
        values = outputs / 4  # exact: binary fractions of a few bits
        parts = [holds[r](values @ np.array(f), c) for r, f, c in zip(relation, factors, bound, strict=True)]
        violated = (parts[0] & parts[1] if join == "and" else parts[0] | parts[1]) & inside
        (folder / "r.vnnlib").write_text(text)
        if not inside.any():
            seen["empty"] += 1
            with pytest.raises(InvalidInputError, match=r"empty|contradictory"):
                decide_specification(network, read_vnnlib(folder / "r.vnnlib"))
            continue
        result = decide_specification(network, read_vnnlib(folder / "r.vnnlib"))
        seen[result.verdict.value] += 1
        assert result.verdict.value == ("sat" if violated.any() else "unsat"), text
    print(dict(seen))
    assert min(seen["sat"], seen["unsat"]) > 20


def test_answers_and_result_files(call: Callable[..., Any], folder: Path) -> None:
    box = "(>= X_0 0.5) (<= X_0 1) (>= X_1 0) (<= X_1 0.25)"
    write(folder, box, "(<= Y_0 Y_1)")
    status, out, _ = call("vnnlib", "m.h5", "p.vnnlib", *model_flags(), "--result-file", "r.txt", "--json")
    assert (status, json.loads(out)["verdict"]) == (0, "unsat")
    assert (folder / "r.txt").read_text() == "unsat\n"
    write(folder, box, "(and (>= Y_0 0.25) (< Y_1 Y_0))")
    status, out, _ = call("vnnlib", "m.h5", "p.vnnlib", *model_flags(), "--result-file", "r.txt")
    assert (status, out.splitlines()[0]) == (1, "SAT: an input satisfies what the property states")
    text = (folder / "r.txt").read_text()
    assert text.startswith("sat\n((X_0 ")
    values = {name: Fraction(value) for name, value in re.findall(r"\(([XY]_\d) ([-0-9.]+)\)", text)}
    assert sorted(values) == ["X_0", "X_1", "Y_0", "Y_1"]
    assert Fraction(1, 2) <= values["X_0"] <= 1
    assert 0 <= values["X_1"] <= Fraction(1, 4)
    codes = np.array([[int(values["X_0"] * 16), int(values["X_1"] * 16)]])
    assert evaluate(fixed_point(folder), codes)[0].tolist() == [values["Y_0"] * 4, values["Y_1"] * 4]
    assert values["Y_0"] >= Fraction(1, 4)
    write(folder, box, "(<= Y_0 Y_1)")
    status, out, _ = call(
        "vnnlib", "m.h5", "p.vnnlib", *model_flags(), "--method", "attack", "--json", "--result-file", "r.txt"
    )
    assert (status, json.loads(out)["reason"], (folder / "r.txt").read_text()) == (3, "unsupported", "unknown\n")


def test_a_strict_bound_leaves_its_code_out(call: Callable[..., Any], folder: Path) -> None:
    """Y_0 is the least at X_0 = 1/2 on this box: reached with ≥ only."""
    least = Fraction(int(evaluate(fixed_point(folder), np.array([[8, 0]]))[0, 0]), 4)
    after = Fraction(int(evaluate(fixed_point(folder), np.array([[9, 0]]))[0, 0]), 4)
    reached = next(x for x in range(9, 16) if evaluate(fixed_point(folder), np.array([[x, 0]]))[0, 0] > least * 4)
    assert after >= least
    start = Fraction(reached - 1, 16)
    for operator, status in ((">=", 1), (">", 0)):
        write(folder, f"({operator} X_0 {float(start)}) (<= X_0 1) (>= X_1 0) (<= X_1 0)", f"(<= Y_0 {float(least)})")
        assert call("vnnlib", "m.h5", "p.vnnlib", *model_flags())[0] == status
    for operator, status in (("<=", 1), ("<", 0)):
        write(folder, "(>= X_0 0.5) (<= X_0 0.5) (>= X_1 0) (<= X_1 0)", f"({operator} Y_0 {float(least)})")
        assert call("vnnlib", "m.h5", "p.vnnlib", *model_flags())[0] == status


@pytest.mark.parametrize(
    ("box", "violation", "complaint"),
    [
        ("(>= X_0 0) (>= X_1 0)", "(<= Y_0 0)", "X_0 has no upper bound"),
        ("(>= X_0 2) (<= X_0 3) (>= X_1 0) (<= X_1 1)", "(<= Y_0 0)", "the region is empty"),
        ("(>= X_0 0.51) (<= X_0 0.52) (>= X_1 0) (<= X_1 1)", "(<= Y_0 0)", "the region is empty"),
        ("(>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1)", "(<= (+ (* 1e-60 Y_0) Y_1) 0.1)", "integer coefficients"),
    ],
)
def test_unusable_properties(call: Callable[..., Any], folder: Path, box: str, violation: str, complaint: str) -> None:
    write(folder, box, violation)
    status, out, err = call("vnnlib", "m.h5", "p.vnnlib", *model_flags())
    assert (status, out) == (2, "")
    assert complaint in err.splitlines()[-1]


def test_other_sizes_and_places(call: Callable[..., Any], folder: Path) -> None:
    (folder / "p.vnnlib").write_text(
        HEAD + "(declare-const X_2 Real)" + "".join(f"(assert (<= 0 X_{i}))(assert (<= X_{i} 1))" for i in range(3))
    )
    status, _, err = call("vnnlib", "m.h5", "p.vnnlib", *model_flags())
    assert status == 2
    assert "declares 3 input(s), but the model has 2" in err
    assert call("vnnlib", "m.h5", "missing.vnnlib", *model_flags())[0] == 2
    assert call("vnnlib", "m.h5", "p.vnnlib", *model_flags(), "--result-file", "none/r.txt")[0] == 2


def test_counterexamples_on_onnxruntime(call: Callable[..., Any], folder: Path) -> None:
    """What the result file says is what onnxruntime computes, and it satisfies the statement in exact arithmetic."""
    pytest.importorskip("onnxruntime")
    from tests.conformance.onnx_models import mlp, quantized
    from tests.conformance.onnx_models import run as run_model

    network = mlp()
    quantized(network, folder / "m.onnx", "QDQ", "QUInt8", "QInt8", False)
    generator = np.random.default_rng(3)
    inputs = int(np.prod(network.shape))
    seen: Counter[int] = Counter()
    for number in range(8):
        centre = generator.standard_normal(inputs).astype(np.float32)
        scores = run_model(folder / "m.onnx", centre.reshape(1, *network.shape)).reshape(-1)
        best, second = scores.argsort()[::-1][:2].tolist()
        text = "".join(f"(declare-const X_{i} Real)\n" for i in range(inputs))
        text += "".join(f"(declare-const Y_{i} Real)\n" for i in range(len(scores)))
        reach = 0.02 if number % 2 else 0.4
        text += "".join(
            f"(assert (<= X_{i} {v + reach:.6f}))(assert (> X_{i} {v - reach:.6f}))\n" for i, v in enumerate(centre)
        )
        text += f"(assert (and (>= Y_{second} (- Y_{best} 0.0625)) (<= (+ Y_{best} Y_{second}) {float(scores[best]) * 2})))\n"
        (folder / "p.vnnlib").write_text(text)
        status, out, err = call("vnnlib", "m.onnx", "p.vnnlib", "--json", "--timeout", "10", "--result-file", "r.txt")
        assert status in (0, 1, 3), err
        seen[status] += 1
        if status != 1:
            continue
        found = {name: Fraction(v) for name, v in re.findall(r"\(([XY]_\d+) ([-0-9.]+)\)", (folder / "r.txt").read_text())}
        x = np.array([float(found[f"X_{i}"]) for i in range(inputs)], dtype=np.float32)
        assert all(Fraction(float(value)) == found[f"X_{i}"] for i, value in enumerate(x))
        for i, value in enumerate(centre):
            assert Fraction(f"{value - reach:.6f}") < found[f"X_{i}"] <= Fraction(f"{value + reach:.6f}")
        y = run_model(folder / "m.onnx", x.reshape(1, *network.shape)).reshape(-1)
        assert [Fraction(float(value)) for value in y] == [found[f"Y_{i}"] for i in range(len(scores))]
        answer = json.loads(out)["counterexample"]
        assert answer["replayed_on"].startswith("onnxruntime")
        assert answer["holds_in_runtime"] == (found[f"Y_{second}"] >= found[f"Y_{best}"] - Fraction(1, 16))
    assert seen[1] >= 2, dict(seen)
    assert seen[0] >= 1, dict(seen)


def test_exact_decimals() -> None:
    for value in (0.0, 1.0, -0.1, 3.0, 1e-45, 123456.789, float(np.float32(0.03)), -(2.0**70)):
        text = exact_decimal(Fraction(value))
        assert Fraction(text) == Fraction(value)
        assert re.fullmatch(r"-?\d+\.\d+", text)


@pytest.mark.parametrize("wrong", ["é", "9" * 50])
def test_what_the_package_cannot_parse_is_one_line(tmp_path: Path, wrong: str) -> None:
    pytest.importorskip("vnnlib")
    head = "(vnnlib-version <2.0>)\n(declare-network f (declare-input X Real [1]) (declare-output Y Real [1]))\n"
    (tmp_path / "p.vnnlib").write_text(f"{head}(assert (and (>= X[0] 0.0) (<= X[0] 1.0)))\n(assert (> (- Y[0] {wrong}) 0.5))\n")
    with pytest.raises(InvalidInputError, match="vnnlib") as caught:
        read_vnnlib(tmp_path / "p.vnnlib")
    assert "\n" not in str(caught.value)
