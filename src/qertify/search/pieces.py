"""What workers do for a shared search: the same program is made from plain data, and some of its domains are searched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qertify._version import __version__
from qertify.attack.gradient import forward
from qertify.bounds.program import Program
from qertify.errors import WorkerError
from qertify.ilp.process import SolverProcesses
from qertify.network.network import Network
from qertify.network.ranges import ranges
from qertify.network.tensor import FloatArray
from qertify.options import Options
from qertify.parallel.executor import Message
from qertify.parallel.partition import case_from, pack, pack_rows, unpack, unpack_rows
from qertify.parallel.programs import digest_of, unpack_program
from qertify.parallel.worker import Desk
from qertify.runtimes.base import runner
from qertify.search.branch_and_bound import BranchAndBound, Replay
from qertify.search.branching import Gains
from qertify.search.domains import root_domains
from qertify.search.equivalence_attack import polish
from qertify.search.equivalence_ilp import JointSolver, close_leaf
from qertify.search.leaf import Leaf, open_leaf
from qertify.search.portfolio import one_thread
from qertify.search.question import Decision, Question
from qertify.search.stages import compile_cases, narrow
from qertify.search.turns import solve_leaf
from qertify.specification.property import Classification, Ties
from qertify.specification.region import IntegerBox
from qertify.specification.splitting import Bisector, OneLevel, splitter_of

CANDIDATES, CANDIDATES_A_BATCH = 32, 4
"""Most candidates that travel back with a piece, and of one batch of domains: the most promising come first."""


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What a search needs: made by a recipe from the context of a piece.

    Attributes:
        candidates: inputs (n,) of the program that whoever asked should try; the worker itself can't.
        enough: polled; once it is true, the candidates should be tried before anything else is done.
    """

    program: Program
    splitter: Bisector
    replay: Replay
    leaf: Leaf
    candidates: Callable[[], list[Tensor]] = list[Tensor]
    enough: Callable[[], bool] = lambda: False


class Recipe(Protocol):
    """Makes a bench, and clears up after it."""

    def __call__(self, desk: Desk, context: Message, deadline: float | None, stopped: Callable[[], bool]) -> Generator[Bench]:
        """One bench. ``context`` is that of `qertify.search.sharing.Shared`, without what a worker may remember.

        Raises:
            MissingError: of which the worker remembers nothing.
        """
        ...


class MissingError(Exception):
    """A part of the context that was sent before, but not to this worker."""


def answer_search(desk: Desk, piece: Message, stopped: Callable[[], bool]) -> Message:
    """Search some domains for a time.

    Returns:
        {"domains": what is open, "gains": what splits have brought, "nodes", "leaf_solvers", "counterexample": codes or None,
        "candidates": inputs to try, "eager": whether it ended early for them, "seconds"}, or {"missing": True} where the
        context has to be sent in full.
    """
    try:
        return _search(desk, piece, stopped)
    except MissingError:
        return {"missing": True}


def _search(desk: Desk, piece: Message, stopped: Callable[[], bool]) -> Message:
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
        until = time.monotonic() + piece["budget"]
        outcome = tree.run(deadline, stopped=lambda: stopped() or bench.enough(), pause=until)
    found = outcome.counterexample
    return {
        "domains": pack(tree.hand_over()),
        "gains": pack_rows(list(gains.table - known)),
        "nodes": outcome.nodes,
        "leaf_solvers": sorted(outcome.leaf_solvers),
        "counterexample": None if found is None else found.reshape(-1).tolist(),
        "candidates": [len(points := bench.candidates()), pack_rows(points)],
        "eager": bench.enough(),
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
    question = replace(
        prepared, deadline=deadline, stopped=stopped, processes=_solvers(options.memory), decision=Decision(), run=run
    )
    assert question.program is not None
    yield Bench(question.program, question.splitter, question.polish, partial(solve_leaf, question))
    # local search pauses between pieces as it does within one
    prepared.last_descent, prepared.next_descent = question.last_descent, question.next_descent


def any_program(desk: Desk, context: Message, deadline: float | None, stopped: Callable[[], bool]) -> Generator[Bench]:
    """A program that travels once to every worker; candidates travel back, since its networks stay where they are.

    Points of relaxations are improved here, and the best of each batch are kept. One that satisfies a case as far as the
    program can tell ends the piece if the driver is eager to see it.
    """
    program = _program(context)
    cases = [case_from(item) for item in context["cases"]]
    domains = root_domains(program, cases)
    outputs = torch.tensor(list(program.output_units().values()), dtype=torch.long, device=program.low.device)
    generator = torch.Generator().manual_seed(context["seed"])
    candidates: list[tuple[float, Tensor]] = []
    promising = False

    def collect(points: Tensor, objective: Tensor) -> None:
        nonlocal promising
        ends, reached = polish(program, points, objective, generator, stopped)
        z = forward(program, ends)[0]
        inside = (domains.low[:, outputs] <= z[:, None, outputs]) & (z[:, None, outputs] <= domains.high[:, outputs])
        hits = ((z @ domains.objective.T <= domains.limit) & inside.all(-1)).any(1)
        reached = torch.where(hits, -torch.inf, reached)
        candidates.extend((float(reached[row]), ends[row]) for row in reached.argsort()[:CANDIDATES_A_BATCH].tolist())
        promising |= bool(hits.any())

    def consider(point: FloatArray) -> None:
        candidates.extend((-np.inf, row) for row in torch.from_numpy(point))

    def best() -> list[Tensor]:
        return [point for _, point in sorted(candidates, key=lambda item: item[0])[:CANDIDATES]]

    options, real = replace(desk.options, seed=context["seed"]), np.array(context["real"], dtype=bool)
    solver = JointSolver(program, real, options, _solvers(options.memory), coupled=True, consider=consider)
    leaf = partial(close_leaf, solver, deadline) if context["leaves"] else open_leaf
    yield Bench(program, OneLevel(), collect, leaf, best, lambda: promising and context["eager"])


@lru_cache(maxsize=1)
def _solvers(memory: int | None) -> SolverProcesses:
    """Those of this process, which go on from piece to piece; they end with it."""
    return SolverProcesses(memory)


def _program(context: Message) -> Program:
    """The program of a context.

    Raises:
        MissingError: it was sent to another worker.
    """
    digest, text = context["digest"], context.get("program")
    if text is None and digest not in _PROGRAMS:
        raise MissingError
    if text is not None:
        if digest_of(text) != digest:
            raise WorkerError("a program was damaged on its way")
        _PROGRAMS[digest] = unpack_program(json.loads(text))
        while len(_PROGRAMS) > PROGRAMS:
            del _PROGRAMS[next(iter(_PROGRAMS))]
    return _PROGRAMS[digest]


PROGRAMS = 3
_PROGRAMS: dict[str, Program] = {}
"""The programs that this process was sent last, by digest."""


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
    question.put_off_descents(0)
    return question
