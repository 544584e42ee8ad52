"""What workers do for a shared search: the same program is made from plain data, and some of its domains are searched."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qertify._version import __version__
from qertify.bounds.program import Program
from qertify.errors import WorkerError
from qertify.ilp.process import SolverProcesses
from qertify.network.network import Network
from qertify.network.ranges import ranges
from qertify.options import Options
from qertify.parallel.executor import Message
from qertify.parallel.partition import pack, pack_rows, unpack, unpack_rows
from qertify.parallel.programs import unpack_program
from qertify.parallel.worker import Desk
from qertify.runtimes.base import runner
from qertify.search.branch_and_bound import BranchAndBound, Closure, Leaf, LeafAnswer, Replay
from qertify.search.branching import Gains
from qertify.search.portfolio import one_thread
from qertify.search.question import Decision, Question
from qertify.search.stages import compile_cases, narrow, solve_leaf
from qertify.specification.cases import Case
from qertify.specification.property import Classification, Ties
from qertify.specification.region import IntegerBox
from qertify.specification.splitting import Bisector, splitter_of

CANDIDATES, CANDIDATES_A_BATCH = 32, 4
"""Most candidates that travel back with a piece, and of one batch of domains: the most promising come first."""


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What a search needs: made by a recipe from the context of a piece.

    Attributes:
        candidates: inputs (n,) of the program that whoever asked should try; the worker itself can't.
    """

    program: Program
    splitter: Bisector
    replay: Replay
    leaf: Leaf
    candidates: deque[Tensor] = field(default_factory=deque[Tensor])


class Recipe(Protocol):
    """Makes a bench, and clears up after it."""

    def __call__(self, desk: Desk, context: Message, deadline: float | None, stopped: Callable[[], bool]) -> Generator[Bench]:
        """One bench. ``context`` is that of `qertify.search.sharing.Shared`."""
        ...


def answer_search(desk: Desk, piece: Message, stopped: Callable[[], bool]) -> Message:
    """Search some domains for a time.

    Returns:
        {"domains": what is open, "gains": what splits have brought, "nodes", "leaf_solvers", "counterexample": codes or None,
        "candidates": inputs to try, "seconds"}.
    """
    start = time.monotonic()
    context = piece["context"]
    deadline = None if piece["left"] is None else start + piece["left"]
    with one_thread(), contextmanager(RECIPES[context["recipe"]])(desk, context, deadline, stopped) as bench:
        gains = Gains(bench.program)
        gains.add(known := unpack_rows(piece["gains"], 4, len(bench.program.units)).to(bench.program.low.device))
        tree = BranchAndBound(
            bench.program, bench.splitter, (), bench.replay, bench.leaf, memory=desk.options.memory, gains=gains
        )
        tree.add(unpack(piece["domains"], bench.program))
        outcome = tree.run(time.monotonic() + piece["budget"], stopped=stopped)
    found = outcome.counterexample
    return {
        "domains": pack([] if found is not None else tree.hand_over()),
        "gains": pack_rows(list(gains.table - known)),
        "nodes": outcome.nodes,
        "leaf_solvers": sorted(outcome.leaf_solvers),
        "counterexample": None if found is None else found.reshape(-1).tolist(),
        "candidates": [len(bench.candidates), pack_rows(list(bench.candidates))],
        "seconds": time.monotonic() - start,
    }


def robustness(desk: Desk, context: Message, deadline: float | None, stopped: Callable[[], bool]) -> Generator[Bench]:
    """A classification property on a box.

    Raises:
        WorkerError: the driver speaks of another model, or of another program than is made here.
    """
    if context["digest"] != desk.network.digest:
        raise WorkerError("the search is about another model than the worker has read")
    if context["version"] != __version__:
        raise WorkerError(f"the search was begun by qertify {context['version']}, the worker runs {__version__}")
    options = replace(desk.options, device=context["device"], seed=context["seed"], timeout=None)
    prepared = _prepared(desk.network, options, json.dumps(context, sort_keys=True))
    run = runner(desk.network, desk.model)
    with SolverProcesses(options.memory) as processes:
        question = replace(prepared, deadline=deadline, stopped=stopped, processes=processes, decision=Decision(), run=run)
        assert question.program is not None
        yield Bench(question.program, question.splitter, question.polish, partial(solve_leaf, question))
    prepared.next_descent = question.next_descent  # local search pauses between pieces as it does within one


class _Single:
    """Cases of one level."""

    def bisect(self, case: Case) -> tuple[Case, ...]:
        """The case itself."""
        return (case,)

    def levels(self, case: Case) -> tuple[Case, ...]:
        """The case itself."""
        return (case,)


def any_program(desk: Desk, context: Message, deadline: float | None, stopped: Callable[[], bool]) -> Generator[Bench]:
    """A program that travels with the piece; candidates travel back, since its networks stay where they are."""
    candidates: deque[Tensor] = deque(maxlen=CANDIDATES)

    def collect(points: Tensor, objective: Tensor) -> None:
        candidates.extend(points[:CANDIDATES_A_BATCH])

    yield Bench(_unpacked(json.dumps(context["program"])), _Single(), collect, lambda *_: LeafAnswer(Closure.OPEN), candidates)


@lru_cache(maxsize=2)
def _unpacked(text: str) -> Program:
    return unpack_program(json.loads(text))


RECIPES: dict[str, Recipe] = {"robustness": robustness, "program": any_program}
"""Name in a context → recipe."""


@lru_cache(maxsize=2)
def _prepared(network: Network, options: Options, text: str) -> Question:
    """What all pieces of one search have in common."""
    context = json.loads(text)
    low, high = (np.array(context[name], dtype=np.int64).reshape(network.input_shape) for name in ("low", "high"))
    label, target, ties = context["property"]
    box, property_ = IntegerBox(low, high), Classification(label, target, Ties(ties))
    known = ranges(network, low[None], high[None])
    splitter = splitter_of(network, property_, known)
    generator = torch.Generator().manual_seed(options.seed)
    question = Question(
        network,
        box,
        property_,
        options,
        None,
        lambda _: None,
        known,
        splitter,
        splitter.cases(),
        generator,
        Decision(),
        SolverProcesses(),
    )
    made = compile_cases(question, operators=False)
    if not made or question.program is None or len(question.program.units) != context["units"]:
        raise WorkerError("the worker makes another program of the question than the driver")
    rows = [unpack_rows(text, 1, context["units"])[0].to(options.device) for text in context["ranges"]]
    question.program = replace(question.program, low=rows[0], high=rows[1])
    narrow(question)
    return question
