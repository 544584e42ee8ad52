"""A counterexample ends a search in the middle of a step: the domains of that step stay open."""

from __future__ import annotations

import numpy as np
import torch

from qertify.bounds.compile import compile_program
from qertify.network.ranges import ranges
from qertify.search.branch_and_bound import BranchAndBound
from qertify.search.leaf import Closure, LeafAnswer
from qertify.specification.property import Classification
from qertify.specification.region import IntegerBox
from qertify.specification.splitting import splitter_of
from tests.oracle.random_networks import random_network


def test_they_are_not_known() -> None:
    seen = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        network = random_network(generator)
        if network.output_size < 2:
            continue
        box = IntegerBox(np.full(network.input_shape, network.input.low), np.full(network.input_shape, network.input.high))
        known = ranges(network, box.low[None], box.high[None])
        splitter = splitter_of(network, Classification(0), known)
        cases = splitter.cases()
        if not cases:
            continue
        classes = tuple(sorted(frozenset[int]().union(*(case.indices for case in cases))))
        program = compile_program(network, box, known, splitter.view, classes)

        def replay(candidates: torch.Tensor, _objective: torch.Tensor) -> np.ndarray:
            return candidates[0].numpy().astype(np.int64)

        search = BranchAndBound(program, splitter, cases, replay, lambda *_: LeafAnswer(Closure.OPEN))
        outcome = search.run()
        if outcome.counterexample is not None:
            seen += 1
            assert not outcome.proved
            assert outcome.margins is None
    assert seen > 10
