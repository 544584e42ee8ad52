"""Ranges of accumulators under the inequality of a case, judged by enumeration."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from qertify.attack.gradient import forward
from qertify.options import Options
from qertify.queries.robustness import local_robustness
from qertify.result import Reason
from qertify.search import stages, turns
from qertify.search.domains import root_domains
from qertify.search.journal import Handed
from qertify.search.portfolio import decide
from qertify.search.question import Question
from tests.oracle.random_networks import random_network, violated_somewhere


def test_ranges_under_a_case_hold_all_of_its_violations() -> None:
    generator = np.random.default_rng(5)
    narrower = inhabited = 0
    for _ in range(15):
        network = random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        query = local_robustness(network, centre, int(generator.integers(1, 4)))
        kept: list[Question] = []

        def keep(question: Question, kept: list[Question] = kept) -> None:
            if question.cases and stages.compile_cases(question, operators=False):
                kept.append(question)

        decide(network, query.region, query.property, Options(), plan=(stages.interval, keep))
        for question in kept:
            program = question.program
            assert program is not None
            x = torch.from_numpy(query.region.points().reshape(query.region.size, -1)[:, program.input_index]).double()
            z, _ = forward(program, x)
            for case in question.cases[:2]:
                domain = root_domains(program, [case])
                low, high = turns.narrow_case(program, case)
                inside = (z @ domain.objective[0] <= domain.limit[0]) & ((z >= domain.low) & (z <= domain.high)).all(-1)
                assert bool(((z[inside] >= low) & (z[inside] <= high)).all())
                narrower += bool((high - low < (domain.high - domain.low)[0]).any())
                inhabited += bool(inside.any())
    assert narrower > 5
    assert inhabited > 3


def test_a_search_goes_on_in_the_ranges_of_its_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Question, "polish", lambda *_: None)  # counterexamples are found in leaves only
    generator = np.random.default_rng(6)
    searched = 0
    for seed in range(9):
        network = random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        query = local_robustness(network, centre, int(generator.integers(1, 4)))
        plan = (stages.interval, stages.dual, _one_domain, turns.narrow_cases, turns.search)
        decision = decide(network, query.region, query.property, Options(seed=seed), plan=plan)
        assert decision.settled
        assert (decision.counterexample is not None) == violated_somewhere(query.network, query.region, query.property)
        searched += any(line.startswith("ranges under") for line in decision.explanation)
    assert searched


def _one_domain(question: Question) -> None:
    """A search that has begun."""
    turns.turn(0)(question)


def test_a_question_with_a_journal_gets_its_turn_unless_it_was_begun_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Question, "polish", lambda *_: None)
    for name in ("LEAST_TURN", "MOST_TURN"):
        monkeypatch.setattr(turns, name, 1)
    generator, stopped, begun = np.random.default_rng(7), 0, 0
    for seed in range(20):
        network = random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        query = local_robustness(network, centre, int(generator.integers(1, 4)))
        ask = partial(
            decide,
            network,
            query.region,
            query.property,
            Options(seed=seed),
            plan=(stages.interval, stages.dual, turns.turn(1), turns.search),
            journal=(journal := Handed(budget=0.0)),
        )
        decision = ask()
        if decision.reason is Reason.INTERRUPTED:
            stopped += 1
            assert decision.nodes  # of the turn
            journal.budget = None
            decision = ask()
            begun += sum(line.startswith("search: ") for line in decision.explanation) == 1
        assert decision.settled
        assert (decision.counterexample is not None) == violated_somewhere(query.network, query.region, query.property)
    assert stopped
    assert begun == stopped
