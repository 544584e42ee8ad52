"""A search whose program travels with its pieces: nothing is proved that is not so, and candidates come back."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qertify.bounds.program import Program
from qertify.importers.registry import ImportOptions
from qertify.network.storage import save
from qertify.network.tensor import IntegerArray
from qertify.options import Options
from qertify.parallel.executor import InProcess
from qertify.parallel.programs import pack_program, unpack_program
from qertify.parallel.worker import Desk, greeting
from qertify.search import sharing
from qertify.search.branch_and_bound import BranchAndBound
from qertify.search.branching import Gains
from qertify.search.leaf import Closure, LeafAnswer
from tests.oracle.random_networks import random_network
from tests.property.test_partition import Tiny


@pytest.mark.parametrize("number", range(6))
def test_a_program_survives_a_journey_as_text(number: int) -> None:
    old = Tiny(np.random.default_rng(number), number).program
    new = unpack_program(json.loads(json.dumps(pack_program(old), allow_nan=False)))
    for field in fields(Program):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if isinstance(before, Tensor):
            assert torch.equal(before, after)
            assert before.dtype == after.dtype
        elif isinstance(before, np.ndarray):
            assert np.array_equal(before, after)
        else:
            assert str(before) == str(after)


def test_a_damaged_program_is_refused() -> None:
    data = pack_program(Tiny(np.random.default_rng(0), 0).program)
    data["low"]["shape"] = [len(data["units"]) + 1]
    with pytest.raises(ValueError, match="announced"):
        unpack_program(data)
    data["low"]["shape"] = [1 << 40]
    with pytest.raises(ValueError, match="allowed"):
        unpack_program(data)


def test_shared_searches_of_any_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_SECONDS", "FIRST_NODES", "FIRST_LIMIT"):
        monkeypatch.setattr(sharing, name, 0)
    save(random_network(np.random.default_rng(0)), tmp_path / "m.qnet")
    desk = Desk(greeting(tmp_path / "m.qnet", ImportOptions(), Options()))
    proved = refuted = 0
    for number in range(60):
        tiny = Tiny(np.random.default_rng(number), number)
        program, box_low = tiny.program, tiny.points.reshape(len(tiny.points), -1).min(0)
        cases = tuple(part for case in tiny.cases for part in tiny.splitter.levels(case))
        violated = tiny.property.violated(tiny.outputs)
        points = tiny.points.reshape(len(tiny.points), -1)

        def judge(
            candidates: Tensor,
            program: Program = program,
            box_low: IntegerArray = box_low,
            points: IntegerArray = points,
            violated: np.ndarray = violated,
        ) -> IntegerArray | None:
            for candidate in program.inside_box(candidates.round()).numpy().astype(np.int64):
                codes = box_low.copy()
                codes[program.input_index] = candidate
                if violated[(points == codes).all(1)].any():
                    return codes
            return None

        gains = Gains(program)
        tree = BranchAndBound(program, tiny.splitter, cases, lambda *_: None, lambda *_: LeafAnswer(Closure.OPEN), gains=gains)
        context = sharing.program_context(program, cases, [False] * len(program.input_low), number)
        shared = sharing.Shared(context, program, tiny.splitter, gains, None, lambda: False, lambda _: None, judge)
        outcome, lost = sharing.run_shared(InProcess(desk.answer, ready=2, size=2), shared, tree)
        assert lost is None
        if outcome.proved:
            assert not violated.any()
            proved += 1
        if outcome.counterexample is not None:
            assert violated.any()
            refuted += 1
    assert proved > 3
    assert refuted > 3
