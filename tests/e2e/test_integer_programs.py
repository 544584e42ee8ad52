"""``--method ilp`` with every solver and encoding: what a proof, a claim, a missing package and a licence look like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qertify.cli.main import run
from qertify.cli.supervisor import Direct
from qertify.ilp.solvers import EXACT_SOLVERS, OPTIONAL
from qertify.ilp.steps import ENCODINGS
from tests.e2e.test_commands import Outcome
from tests.files import model_flags, write_h5
from tests.solvers import ALL, needs

H5 = ("m.h5", *model_flags())


def _model(path: Path, units: int, seed: int) -> None:
    """Random weights, 2-units-2. With seed 4 and 6 units radius 6 is robust around (9, 4), beyond intervals, and 7 is not."""
    generator = np.random.default_rng(seed)
    kernels = [generator.uniform(-1, 1, size=shape) for shape in ((2, units), (units, 2))]
    write_h5(path, [(kernel, np.zeros(kernel.shape[1])) for kernel in kernels])


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    monkeypatch.chdir(tmp_path)
    _model(tmp_path / "m.h5", 6, seed=4)
    np.save(tmp_path / "x.npy", np.array([9, 4]))

    def call(*arguments: object) -> Outcome:
        status = run([str(argument) for argument in arguments], Direct())
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("solver", ALL)
def test_verify(call: Callable[..., Outcome], solver: str, encoding: str) -> None:
    flags = ("--method", "ilp", "--solver", solver, "--encoding", encoding, "--json")
    broken = call("verify", *H5, "--input", "x.npy", "--radius", 7, *flags)
    assert (broken.status, broken.json["verdict"], broken.json["solver"]) == (1, "non_robust", solver)
    holds = call("verify", *H5, "--input", "x.npy", "--radius", 6, *flags)
    if solver in EXACT_SOLVERS:
        assert (holds.status, holds.json["verdict"], holds.json["evidence"]) == (0, "robust", "exact_solver")
        return
    assert (holds.status, holds.json["verdict"], holds.json["reason"]) == (3, "unknown", "solver_claim")
    accepted = call("verify", *H5, "--input", "x.npy", "--radius", 6, *flags, "--accept-solver-claims")
    assert (accepted.status, accepted.json["verdict"], accepted.json["evidence"]) == (0, "robust", "solver_claim")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("solver", ALL)
def test_radius(call: Callable[..., Outcome], solver: str, encoding: str) -> None:
    searched = call("radius", *H5, "--input", "x.npy", "--json").json
    optimised = call("radius", *H5, "--input", "x.npy", "--json", "--method", "ilp", "--solver", solver, "--encoding", encoding)
    assert optimised.status == 0
    answer = optimised.json
    assert answer["exact"]
    assert answer["evidence"] == "exact_solver"
    assert (answer["verified_radius"], answer["refuted_radius"]) == (6, 7)
    assert (searched["verified_radius"], searched["refuted_radius"]) == (6, 7)


@pytest.mark.parametrize("command", [("verify", "--radius", "1"), ("radius",)])
@pytest.mark.parametrize("solver", OPTIONAL)
def test_a_missing_extra_is_named(
    call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, solver: str, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr("qertify.ilp.solvers.find_spec", lambda _: None)
    outcome = call(command[0], *H5, "--input", "x.npy", *command[1:], "--solver", solver)
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert f"pip install 'qertify[{solver}]'" in outcome.err


def test_an_unknown_encoding(call: Callable[..., Outcome]) -> None:
    outcome = call("verify", *H5, "--input", "x.npy", "--radius", 1, "--encoding", "unary")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "unknown encoding 'unary'; known: compact, one-hot" in outcome.err


@needs("gurobi")
def test_a_licence_that_is_too_small(call: Callable[..., Outcome], tmp_path: Path) -> None:
    """One-hot programs of 700 units have more variables than the bundled licence admits: unknown, and -v says why."""
    _model(tmp_path / "wide.h5", 700, seed=0)
    wide = ("verify", "wide.h5", *model_flags(), "--input", "x.npy", "--radius", 7, "--method", "ilp", "--json", "-v")
    outcome = call(*wide, "--solver", "gurobi", "--encoding", "one-hot")
    if outcome.json["verdict"] == "non_robust" or outcome.json["reason"] == "solver_claim":
        pytest.skip("this Gurobi licence has no size limit")
    assert (outcome.status, outcome.json["verdict"], outcome.json["reason"]) == (3, "unknown", "unsupported")
    assert "the Gurobi licence is limited to small programs" in outcome.err
