"""``qertify vnnlib`` with two networks: answers against enumeration, refusals, a float network on its runtime."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.errors import InvalidInputError
from qertify.importers.registry import ImportOptions, load_model
from qertify.network.evaluate import evaluate
from qertify.network.storage import save
from qertify.queries.vnnlib import decide_specification
from qertify.queries.vnnlib_pair import decide_pair_specification
from qertify.queries.vnnlib_result import Answer
from qertify.search.comparison import dequantized
from qertify.specification.vnnlib import read_vnnlib
from tests.files import comparison_model, write_h5

pytest.importorskip("vnnlib")

HEAD = """(vnnlib-version <2.0>)
(declare-network f (declare-input X Real [2]) (declare-output Y Real [2]))
(declare-network g (declare-input A Real [2]) (declare-output B Real [2]))
"""
SAME = "(assert (== A[0] X[0]))\n(assert (and (== X[1] A[1])))\n"
BOX = "(assert (and (>= X[0] {0}) (<= X[0] {1}) (>= X[1] {2}) (<= A[1] {3})))\n"
FLAGS = ImportOptions(bits=4, input_bits=4)


def differ(index: int, delta: str) -> str:
    return f"(> (- Y[{index}] B[{index}]) {delta}) (> B[{index}] (+ Y[{index}] {delta}))"


def text(violation: str, box: tuple[str, ...] = ("0.0", "1.0", "0.0", "1.0"), same: str = SAME) -> str:
    return HEAD + same + BOX.format(*box) + f"(assert (or {violation}))\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    comparison_model(tmp_path / "f.h5")
    second = [[0.625, 0.125], [-0.125, 0.875]], [[0.875, -0.5], [-0.875, 0.75]]
    write_h5(tmp_path / "g.h5", [(second[0], [0.1, 0.0]), (second[1], [0.0, 0.25])])
    return tmp_path


def read(folder: Path, content: str) -> Path:
    (folder / "p.vnnlib").write_text(content)
    return folder / "p.vnnlib"


def test_answers_agree_with_enumeration(folder: Path) -> None:
    networks = [load_model(folder / name, FLAGS) for name in ("f.h5", "g.h5")]
    codes = np.array(list(itertools.product(range(16), repeat=2)))
    values = [[dequantized(network, row) for row in evaluate(network, codes)] for network in networks]
    generator, seen = np.random.default_rng(0), set[Answer]()
    for number in range(24):
        ends = np.sort(generator.integers(0, 33, size=(2, 2)), axis=0) / 32
        box = ends[0, 0], ends[1, 0], ends[0, 1], ends[1, 1]
        chosen = [[0], [1], [0, 1]][number % 3]
        deltas = [Fraction(int(generator.integers(1, 12)), 8) for _ in chosen]
        inside = [box[0] <= a / 16 <= box[1] and box[2] <= b / 16 <= box[3] for a, b in codes.tolist()]
        if not any(inside):
            continue
        violated = any(
            abs(values[0][row][i] - values[1][row][i]) > delta
            for row in np.flatnonzero(inside)
            for i, delta in zip(chosen, deltas, strict=True)
        )
        violation = " ".join(differ(i, str(float(delta))) for i, delta in zip(chosen, deltas, strict=True))
        specification = read_vnnlib(read(folder, text(violation, tuple(map(str, box)))))
        result = decide_pair_specification(networks[0], networks[1], specification)
        assert result.verdict is (Answer.SAT if violated else Answer.UNSAT)
        seen.add(result.verdict)
        if result.counterexample is not None:
            row = codes.tolist().index(list(result.counterexample.levels))
            assert inside[row]
            assert [Fraction(v) for v in result.counterexample.output] == [*values[0][row], *values[1][row]]
    assert seen == {Answer.SAT, Answer.UNSAT}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (text(differ(0, "0.5"), same="(assert (== A[0] X[0]))\n"), "read the same input 1"),
        (text(differ(0, "0.5"), same="(assert (and (<= A[0] X[0]) (== X[1] A[1])))\n"), "read the same input 0"),
        (text("(> (- Y[0] B[0]) 0.5)"), "bounds the difference of outputs 0 by 1/2 above and no number below"),
        (text("(>= (- Y[0] B[0]) 0.5) (>= (- B[0] Y[0]) 0.5)"), "one strict inequality for each sign"),
        (text("(> (- Y[0] B[1]) 0.5) (> (- B[1] Y[0]) 0.5)"), "of the form"),
        (text("(> (- Y[0] B[0]) 0.5) (> (- B[0] Y[0]) 0.25)"), "1/2 above and 1/4 below"),
        (text("(> (- Y[0] B[0]) -1.0) (> (- B[0] Y[0]) -1.0)"), "one positive number"),
        (text("(and (> Y[0] B[0]) (> Y[1] B[1]))"), "of the form"),
        (text(differ(0, "0.5")).replace("A Real [2]", "A Real [3]"), "the same"),
    ],
)
def test_other_questions_are_refused(folder: Path, content: str, complaint: str) -> None:
    network = load_model(folder / "f.h5", FLAGS)
    with pytest.raises(InvalidInputError, match=complaint):
        decide_pair_specification(network, network, read_vnnlib(read(folder, content)))


def test_one_model_for_two_networks_and_two_for_one(folder: Path) -> None:
    network = load_model(folder / "f.h5", FLAGS)
    with pytest.raises(InvalidInputError, match="speaks of 2 networks, but one"):
        decide_specification(network, read_vnnlib(read(folder, text(differ(0, "0.5")))))
    with pytest.raises(InvalidInputError, match="itself"):
        read_vnnlib(read(folder, text(differ(0, "0.5")).replace("network g ", "network g (equal-to f) ")))


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "fg":
        save(load_model(folder / f"{name}.h5", FLAGS), folder / f"{name}.qnet")

    def call(*arguments: str) -> tuple[int, str, str]:
        status = run(["vnnlib", "f.qnet", "p.vnnlib", *arguments], Direct())
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    read(folder, text(differ(0, "0.125")))
    status, out, _ = call("--second", "g.qnet", "--json", "--result-file", "r.txt")
    found = json.loads(out)
    assert (status, found["verdict"], found["evidence"]) == (1, "sat", "replayed_counterexample")
    assert (folder / "r.txt").read_text().splitlines()[0] == "sat"
    assert "(Y_3 " in (folder / "r.txt").read_text()
    status, out, _ = call("--second", "f.qnet")
    assert (status, out.split(":")[0]) == (0, "UNSAT")
    assert call()[0] == 2
    assert "two networks" in call("--second", "g.qnet")[2]


def test_a_float_network_and_its_quantization(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    from tests.conformance.onnx_models import mlp, quantized

    network = mlp()
    quantized(network, folder / "g.onnx", "QDQ", "QUInt8", "QInt8", False)
    (folder / "g.float.onnx").rename(folder / "f.onnx")
    size, outputs = int(np.prod(network.shape)), load_model(folder / "g.onnx", ImportOptions()).output_size
    for delta, status in (("100.0", 0), ("0.0001", 1)):
        lines = [
            "(vnnlib-version <2.0>)",
            f"(declare-network f (declare-input X Real [{size}]) (declare-output Y Real [{outputs}]))",
            f"(declare-network g (declare-input A Real [{size}]) (declare-output B Real [{outputs}]))",
            *(f"(assert (and (== A[{i}] X[{i}]) (>= X[{i}] 0.0) (<= X[{i}] 0.01)))" for i in range(size)),
            f"(assert (or {' '.join(differ(i, delta) for i in range(outputs))}))",
        ]
        read(folder, "\n".join(lines))
        assert run(["vnnlib", "f.onnx", "p.vnnlib", "--second", "g.onnx", "--json"], Direct()) == status
        found = json.loads(capsys.readouterr().out)
        if status == 1:
            assert "onnxruntime" in found["counterexample"]["replayed_on"]
            differences = np.array(found["counterexample"]["output"], dtype=float).reshape(2, -1)
            assert np.abs(differences[0] - differences[1]).max() > float(delta)
