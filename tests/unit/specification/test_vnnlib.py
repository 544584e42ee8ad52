"""The VNN-LIB reader: exact numbers, normal forms, and one clear line for every bad file."""

from __future__ import annotations

import gzip
from fractions import Fraction
from pathlib import Path

import pytest

from qertify.errors import InvalidInputError
from qertify.specification.formula import CONJUNCTION_LIMIT, Bound
from qertify.specification.linear import Constraint
from qertify.specification.vnnlib import read_vnnlib

HEAD = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
HEAD_2 = """(vnnlib-version <2.0>)
(declare-network N (declare-input X float32 [2]) (declare-output Y float32 [2]))
"""
BOX = "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 -0.5) (<= X_1 .5)))\n"
OUTPUT = "(assert (<= Y_0 Y_1))\n"


def read(tmp_path: Path, text: str):
    path = tmp_path / "property.vnnlib"
    path.write_text(text)
    return read_vnnlib(path)


def one(index: int, factor: int | str, bound: int | str, strict: bool = False) -> Constraint:
    return Constraint(((index, Fraction(factor)),), Fraction(bound), strict)


def test_numbers_are_exact(tmp_path: Path) -> None:
    text = (
        HEAD + "(assert (<= X_0 0.029999999329447746)) (assert (> X_0 -1e-3)) (assert (>= X_1 (/ 1 3)))(assert (<= X_1 1.5E+1))"
    )
    found = read(tmp_path, text + "(assert (<= (+ Y_0 (* 2.5 Y_1) (- 3)) (- Y_1 0.1 Y_0)))")
    (part,) = found.parts
    assert (found.inputs, found.outputs) == (2, 2)
    assert part.high == (Bound(Fraction("0.029999999329447746"), False), Bound(Fraction(15), False))
    assert part.low == (Bound(Fraction(-1, 1000), True), Bound(Fraction(1, 3), False))
    assert part.violation == ((Constraint(((0, Fraction(2)), (1, Fraction(3, 2))), Fraction("2.9")),),)


def test_operators(tmp_path: Path) -> None:
    def violation(formula: str):
        return read(tmp_path, HEAD + BOX + f"(assert {formula})").parts[0].violation

    assert violation("(< Y_0 1)") == ((one(0, 1, 1, True),),)
    assert violation("(>= Y_0 1)") == ((one(0, -1, -1),),)
    assert violation("(not (>= Y_0 1))") == ((one(0, 1, 1, True),),)
    assert violation("(= Y_0 1)") == ((one(0, 1, 1), one(0, -1, -1)),)
    assert violation("(not (= Y_0 1))") == ((one(0, -1, -1, True),), (one(0, 1, 1, True),))
    assert violation("(=> (< Y_0 1) (< Y_1 2))") == ((one(0, -1, -1),), (one(1, 1, 2, True),))
    assert violation("(or (and (< Y_0 1) (< Y_1 2)) (> Y_0 3))") == (
        (one(0, 1, 1, True), one(1, 1, 2, True)),
        (one(0, -1, -3, True),),
    )
    assert violation("(not (or (< Y_0 1) (< Y_1 2)))") == ((one(0, -1, -1), one(1, -1, -2)),)
    assert violation("(and (or (< Y_0 1) (< Y_0 2)) (or (< Y_1 1) (< Y_1 2)))") == tuple(
        (one(0, 1, a, True), one(1, 1, b, True)) for a in (1, 2) for b in (1, 2)
    )


def test_the_tightest_bound_counts_and_strictness_wins_ties(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        HEAD + BOX + OUTPUT + "(assert (< X_0 1)) (assert (<= X_0 1)) (assert (<= (* -2 X_1) 0.5)) (assert (<= X_1 3))",
    )
    (part,) = found.parts
    assert part.high == (Bound(Fraction(1), True), Bound(Fraction(1, 2), False))
    assert part.low[1] == Bound(Fraction(-1, 4), False)


def test_boxes_in_a_disjunction_are_parts(tmp_path: Path) -> None:
    boxes = [f"(and (>= X_0 {k}) (<= X_0 {k + 1}) (>= X_1 0) (<= X_1 1) (<= Y_{k % 2} {k}))" for k in range(3)]
    found = read(tmp_path, HEAD + f"(assert (or {' '.join(boxes)} {boxes[0].replace('Y_0', 'Y_1')}))")
    assert [part.low[0].value for part in found.parts] == [0, 1, 2]
    assert [len(part.violation) for part in found.parts] == [2, 1, 1]


def test_packed_files(tmp_path: Path) -> None:
    path = tmp_path / "property.vnnlib.gz"
    path.write_bytes(gzip.compress((HEAD + BOX + OUTPUT).encode()))
    assert read_vnnlib(path).inputs == 2
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InvalidInputError, match="gzip"):
        read_vnnlib(path)


BAD = {
    "": "declares no input",
    HEAD + BOX + "(assert (<= Y_0 Y_1)": "truncated",
    HEAD + BOX + OUTPUT + ")": "line 7: a closing parenthesis too many",
    HEAD + "(assert (<= X_0 1))" + OUTPUT: "X_0 has no lower bound",
    HEAD + BOX + "(assert (>= X_0 1.0000001))" + OUTPUT: "contradictory: no input fulfils the bounds of X_0",
    HEAD + BOX + "(assert (> X_0 1))" + OUTPUT: "contradictory",
    HEAD + BOX + "(assert (< 1 0))": "contradictory",
    HEAD + BOX + "(assert (<= Y_2 0))": "uses Y_2, which is not declared",
    HEAD + BOX + "(assert (<= Z 0))": "'Z' is neither a number",
    HEAD + BOX + "(assert (<= Y_0 nan))": "'nan' is neither a number",
    HEAD + BOX + "(assert (<= Y_0 1e9999))": "neither a number",
    HEAD + BOX + "(assert (<= (* Y_0 Y_1) 0))": "multiplies variables",
    HEAD + BOX + "(assert (<= (/ Y_0 0) 0))": "divides",
    HEAD + BOX + "(assert (<= (* 1e999 1e999 Y_0) 0))": "more than 4096 bits",
    HEAD + BOX + "(assert (<= X_0 X_1))": "relates X_0, X_1",
    HEAD + BOX + "(assert (<= X_0 Y_1))": "relates",
    HEAD + BOX + "(assert (xor (<= Y_0 0) (<= Y_1 0)))": "is no formula",
    HEAD + BOX + "(assert (<= (sin Y_0) 0))": "is no term",
    HEAD + BOX + "(assert (<= Y_0))": "is no formula",
    HEAD + BOX + "(assert)": "is not understood",
    HEAD + BOX + "(push 1)": "is not understood",
    HEAD + "(declare-const X_0 Real)": "declares X_0 twice",
    HEAD + "(declare-const X_3 Real)": "declares X_3, but not X_2",
    HEAD + "(declare-const Z_0 Real)": "variables must be called",
    HEAD + "(declare-const X_2 Int)": "is not understood",
    HEAD + BOX + "(assert " + "(not " * 500 + "(<= Y_0 0)" + ")" * 501: "nested deeper",
    HEAD + BOX + "(assert (or (< Y_0 1) (< Y_1 1)))\n" * 20: f"more than {CONJUNCTION_LIMIT} conjunctions",
    HEAD_2 + "(assert (<= Z[0] 1.0))": "Z",
    "(vnnlib-version <2.0>)\n(nonsense)": "",
}


@pytest.mark.parametrize("text", BAD, ids=list(map(str, range(len(BAD)))))
def test_bad_files_are_named_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path))
    assert BAD[text] in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x1f\x8b", b"(" * 2000])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "property.vnnlib"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError):
        read_vnnlib(path)
    with pytest.raises(InvalidInputError, match="can't be read"):
        read_vnnlib(tmp_path)
    with pytest.raises(InvalidInputError, match="can't be read"):
        read_vnnlib(tmp_path / "missing")


def test_hostile_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qertify.specification.vnnlib.TOKEN_LIMIT", 1000)
    with pytest.raises(InvalidInputError, match="more than 1000 parentheses"):
        read(tmp_path, "()" * 501)
    path = tmp_path / "bomb.vnnlib.gz"
    path.write_bytes(gzip.compress(b" " * (65 << 20)))
    with pytest.raises(InvalidInputError, match="more than 64 MiB"):
        read_vnnlib(path)


def test_version_2(tmp_path: Path) -> None:
    pytest.importorskip("vnnlib")
    network = "(declare-network N (declare-input X float32 [1,2]) (declare-output Y float32 [2,1]))\n"
    text = f"""(vnnlib-version <2.0>)
{network}(assert (and (>= X[0,0] 0.0) (<= X[0,0] 0.1) (> X[0,1] -0.3) (<= X[0,1] 1.0)))
(assert (or (<= (+ Y[0,0] 1.5) (* 2.0 Y[1,0])) (!= Y[1,0] 3.0)))"""
    found = read(tmp_path, text)
    (part,) = found.parts
    assert part.high[0] == Bound(Fraction(1, 10), False)
    assert part.low[1] == Bound(Fraction(-3, 10), True)
    first = Constraint(((0, Fraction(1)), (1, Fraction(-2))), Fraction("-1.5"))
    assert part.violation == ((first,), (one(1, 1, 3, True),), (one(1, -1, -3, True),))
    other = network.replace("N", "M").replace(" X ", " A ").replace(" Y ", " B ")
    with pytest.raises(InvalidInputError, match="same input 0"):
        read(tmp_path, text.replace(network, network + other))
