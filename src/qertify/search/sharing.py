"""The second tier of parallelism: the open domains of one search, shared out among workers.

The search begins here. What is open when it has shown to be worth it, and when there are workers, is dealt to them as pieces.
A piece that outgrows its budget hands in what is open, which is dealt again, with a larger budget; and when a worker has
nothing to do, the piece that has run longest is asked to hand in what it has. The parts of every split cover it, so when no
domain is open anywhere, the violation is excluded; the first counterexample stops all pieces.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
from torch import Tensor

from qertify._version import __version__
from qertify.bounds.program import Program
from qertify.errors import QertifyError
from qertify.network.tensor import IntegerArray
from qertify.parallel.executor import Executor, LostError, Message, Reply, first_done
from qertify.parallel.partition import by_levels, deal, pack, pack_rows, unpack, unpack_rows
from qertify.parallel.programs import digest_of, pack_program
from qertify.result import Reason
from qertify.search.branch_and_bound import BranchAndBound
from qertify.search.branching import Gains
from qertify.search.domains import Subproblem
from qertify.search.question import Question
from qertify.search.tree import SearchOutcome, least_margins
from qertify.specification.cases import Case
from qertify.specification.property import Classification
from qertify.specification.splitting import Bisector

FIRST_SECONDS = 0.5
"""A search that ends within this time is not shared."""
FIRST_NODES = 192
FIRST_LIMIT = 2.0
"""It goes on here until it has bounded so many domains or taken so many seconds: the first ones teach how to branch."""
FIRST_BUDGET = 1.0
GROWTH = 2.0
LARGEST_BUDGET = 64.0
"""Seconds of the first pieces, growth from one generation to the next, and seconds of the largest."""
LEAST_AGE = 0.3
"""Seconds that a piece runs before it may be asked to share: what a message costs is then a few percent."""
LEAST_STEP = 0.01
POLL = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What the workers have to know about a search, and what its driver needs.

    Attributes:
        context: plain data with a "recipe" of `qertify.search.pieces`, from which a worker makes the same program. Its
            "program" is sent once to every worker.
        program, splitter, gains: of the search.
        deadline: of `time.monotonic`.
        stopped: polled; once it is true, the search ends as at the deadline.
        say: gets one line a piece: which pieces it came from, what it began with and handed in; together the split tree.
        judge: tries candidates, (batch, n) in the program's inputs, where workers can't; a counterexample or None.
        keep: writes down open domains: (numbers of parts that are settled, or None for all; new parts).
    """

    context: Message
    program: Program
    splitter: Bisector
    gains: Gains
    deadline: float | None
    stopped: Callable[[], bool]
    say: Callable[[str], None]
    judge: Callable[[Tensor], IntegerArray | None] = lambda _: None
    keep: Callable[[Iterable[int] | None, Mapping[int, Message]], None] = lambda _gone, _new: None


@dataclass(slots=True, eq=False)
class _Sent:
    """A piece on its way."""

    number: int
    items: list[tuple[int, int, Subproblem]]
    budget: float
    generation: int
    since: float
    stopped: bool = False


@dataclass(slots=True)
class _State:
    """What has become of the domains; (number of the piece they come from, generation, domain).

    Attributes:
        in_full: how many of the next pieces hold the whole context.
        eager: whether pieces should end for a promising candidate; not once one was no counterexample.
        patience: seconds that a piece runs before it may be asked to share; doubled whenever one was asked too soon.
        kept: numbers of the parts in the journal that hold the pool.
    """

    pool: list[tuple[int, int, Subproblem]]
    stuck: list[Subproblem] = field(default_factory=list[Subproblem])
    lost: Reason | None = None
    nodes: int = 0
    leaf_solvers: set[str] = field(default_factory=set[str])
    busy: float = 0.0
    pieces: int = 0
    in_full: int = 0
    eager: bool = True
    patience: float = 0.0
    kept: set[int] = field(default_factory=lambda: {0})


def program_context(program: Program, cases: Sequence[Case], real: Sequence[bool], seed: int, leaves: bool = True) -> Message:
    """A context that holds the program itself, for any search whose cases have one level; see `can_travel`.

    Args:
        cases: whose points are wanted.
        real: which inputs of the program are real numbers, (n,); the others are integers.
        seed: of everything random.
        leaves: whether solvers are asked about leaves.
    """
    text = json.dumps(pack_program(program))
    return {
        "recipe": "program",
        "program": text,
        "digest": digest_of(text),
        "cases": [asdict(case) for case in cases],
        "real": [bool(item) for item in real],
        "seed": seed,
        "leaves": leaves,
        "eager": True,
    }


def share_search(
    question: Question, tree: BranchAndBound, gains: Gains, report: Callable[[BranchAndBound], None], digest: str
) -> SearchOutcome | None:
    """Run the search with the question's executor; None, and nothing done, where there is none or it can't be used.

    What is open is written to the question's journal, under ``digest``, piece by piece.

    Search trees are kept in one process, so that certificates don't depend on the number of workers.
    """
    executor, program, property_ = question.executor, question.program, question.property
    if executor is None or executor.size < 2 or question.options.keep_proof or not isinstance(property_, Classification):
        return None
    assert program is not None
    context: Message = {
        "recipe": "robustness",
        "version": __version__,
        "digest": question.network.digest,
        "low": question.box.low.reshape(-1).tolist(),
        "high": question.box.high.reshape(-1).tolist(),
        "property": [property_.label, property_.target, property_.ties.value],
        "units": len(program.units),
        "ranges": [pack_rows([program.low]), pack_rows([program.high])],
        "device": question.options.device,
        "seed": question.options.seed,
    }
    shared = Shared(context, program, question.splitter, gains, question.deadline, question.stopped, question.say)
    if question.journal is not None:
        shared = replace(shared, keep=partial(question.journal.write, digest))
    outcome, lost = run_shared(executor, shared, tree, report)
    question.decision.reason = lost
    return outcome


def run_shared(
    executor: Executor, shared: Shared, tree: BranchAndBound, report: Callable[[BranchAndBound], None] | None = None
) -> tuple[SearchOutcome, Reason | None]:
    """Run a search here until it is worth sharing, then on the workers.

    Returns:
        the outcome, and why domains were given up, if some were.

    When the workers are lost, or can't do the work, the search goes on here.
    """
    start = time.monotonic()
    while True:
        until = time.monotonic() + FIRST_SECONDS
        outcome = tree.run(shared.deadline, report=report, stopped=shared.stopped, pause=until)
        ended = outcome.counterexample is not None or time.monotonic() < until  # or nothing is left, or it is late
        if ended:
            return outcome, None
        if executor.ready and (tree.nodes >= FIRST_NODES or time.monotonic() - start >= FIRST_LIMIT):
            break
    driver = _Driver(executor, shared, tree)
    outcome, lost = driver.run()
    if not driver.gone or outcome.counterexample is not None:
        return outcome, lost
    before, state = tree.nodes, driver.state
    tree.add(item for _, _, item in state.pool)
    rest = tree.run(shared.deadline, report=report, stopped=shared.stopped)
    stuck = [(item.case, item.margin) for item in state.stuck]
    margins = None if rest.margins is None else least_margins([*rest.margins.items(), *stuck])
    proved, nodes = rest.proved and not state.stuck, state.nodes + rest.nodes - before
    return replace(rest, proved=proved, nodes=nodes, margins=margins), lost


class _Driver:
    """The pieces of one search."""

    def __init__(self, executor: Executor, shared: Shared, tree: BranchAndBound) -> None:
        self.executor, self.shared = executor, shared
        self.state = _State([], nodes=tree.nodes, leaf_solvers=set(tree.leaf_solvers), in_full=executor.size)
        self.state.patience = LEAST_AGE
        self.running: dict[Reply, _Sent] = {}
        self.gone = False
        left = tree.hand_over()
        shared.keep(None, {0: pack(left)})
        self._take_in(0, 0, left)
        self.start = self.told = time.monotonic()

    def run(self) -> tuple[SearchOutcome, Reason | None]:
        counterexample = None
        try:
            while (self.state.pool or self.running) and counterexample is None and not self.gone and not self._late():
                self._deal()
                self._steal()
                for reply in first_done(self.running, POLL):
                    counterexample = self._settle(reply, self.running.pop(reply))
                    if counterexample is not None:
                        break
                self._tell()
        finally:
            self.executor.stop(self.running)
        state = self.state
        if self.gone:
            state.pool += [entry for sent in self.running.values() for entry in sent.items]
            self.running = {}
        left = [item for _, _, item in state.pool] + [
            item for sent in self.running.values() for _, _, item in sent.items
        ] + state.stuck  # fmt: skip
        worst = min(left, key=lambda item: item.margin, default=None)
        seconds = time.monotonic() - self.start
        self.shared.say(
            f"shared search: {state.pieces} pieces on {self.executor.size} workers, "
            f"{state.busy / max(seconds * self.executor.size, 1e-9):.0%} busy"
        )
        found = SearchOutcome(
            proved=counterexample is None and not left,
            counterexample=counterexample,
            nodes=state.nodes,
            leaf_solvers=frozenset(state.leaf_solvers),
            margin=None if worst is None else worst.margin,
            nearest=None if worst is None else worst.case,
            tree=None,
            margins=None if counterexample is not None else least_margins((item.case, item.margin) for item in left),
        )
        return found, state.lost

    def _late(self) -> bool:
        return self.shared.stopped() or (self.shared.deadline is not None and time.monotonic() > self.shared.deadline)

    def _take_in(self, number: int, generation: int, subproblems: list[Subproblem]) -> None:
        self.state.stuck += [item for item in subproblems if item.stuck]
        self.state.pool += [(number, generation, item) for item in subproblems if not item.stuck]

    def _take_back(self, sent: _Sent) -> None:
        """Put a piece that was not begun back into the pool."""
        self.state.pool += sent.items
        self.state.kept.add(sent.number)

    def _deal(self) -> None:
        """Give all that is open to those who have nothing to do."""
        idle = self.executor.idle
        if idle < 1 or not self.state.pool:
            return
        pool = self.state.pool
        if len(pool) < idle:  # too few for all: cut their levels
            share = -(-idle // len(pool))
            program, splitter = self.shared.program, self.shared.splitter
            pool = [(n, g, part) for n, g, item in pool for part in by_levels(program, splitter, item, share)]
        gains = pack_rows(list(self.shared.gains.table))
        origin = {id(item): (number, generation) for number, generation, item in pool}
        parts: dict[int, Message] = {}
        for hand in deal([item for _, _, item in pool], idle):
            items = [(*origin[id(item)], item) for item in hand]
            generation = max(generation for _, generation, _ in items)
            budget = min(FIRST_BUDGET * GROWTH**generation, LARGEST_BUDGET)
            left = None if self.shared.deadline is None else self.shared.deadline - time.monotonic()
            piece: Message = {
                "kind": "search",
                "context": self._context(),
                "domains": pack(hand),
                "gains": gains,
                "budget": budget if left is None else max(min(budget, left), 1e-3),
                "left": left,
            }
            self.state.pieces += 1
            parts[self.state.pieces] = piece["domains"]
            sent = _Sent(self.state.pieces, items, budget, generation, time.monotonic())
            self.running[self.executor.submit(piece, None if left is None else max(left, 0.0))] = sent
        self.shared.keep(self.state.kept, parts)
        self.state.pool, self.state.kept = [], set()

    def _context(self) -> Message:
        """For the next piece: without the program where all workers should have it by now."""
        context, state = self.shared.context, self.state
        if state.in_full:
            state.in_full -= 1
        else:
            context = {key: value for key, value in context.items() if key != "program"}
        return context if state.eager else context | {"eager": False}

    def _steal(self) -> None:
        """Where workers have nothing to do, ask the pieces that have run longest to share."""
        idle = self.executor.idle
        if idle < 1 or self.state.pool or any(sent.stopped for sent in self.running.values()):
            return
        now = time.monotonic()
        old = sorted((sent.since, number, reply) for number, (reply, sent) in enumerate(self.running.items()))
        victims = [reply for since, _, reply in old if now - since > self.state.patience][: -(-idle // 4)]
        for reply in victims:
            self.running[reply].stopped = True
        self.executor.stop(victims)

    def _settle(self, reply: Reply, sent: _Sent) -> np.ndarray | None:
        """Take in what a piece hands in; the counterexample if it found one."""
        state = self.state
        try:
            message = reply.result()
        except LostError as lost:
            if lost.reason is Reason.INTERRUPTED:  # stopped while it waited
                self._take_back(sent)
            else:
                state.lost = lost.reason
                state.stuck += [item for _, _, item in sent.items]
                self.shared.say(f"piece {sent.number}: given up, {lost.why}")
            return None
        except QertifyError as error:  # no answer from there; the search goes on here
            self.gone = True
            state.pool += sent.items
            self.shared.say(f"the workers are of no use any more: {error}")
            return None
        if "missing" in message:
            state.in_full += 1
            self._take_back(sent)
            return None
        left = unpack(message["domains"], self.shared.program)
        self.shared.gains.add(
            unpack_rows(message["gains"], 4, len(self.shared.program.units)).to(self.shared.program.low.device)
        )
        too_soon = sent.stopped and (not message["nodes"] or len(left) == 1)  # there was nothing to share yet
        if too_soon:
            state.patience = max(2 * state.patience, LEAST_STEP)
        state.nodes += message["nodes"]
        state.busy += message["seconds"]
        state.leaf_solvers |= set(message["leaf_solvers"])
        stuck = [item for item in left if item.stuck]
        self.shared.keep(
            [sent.number], ({sent.number: message["domains"]} if left else {}) | ({-sent.number: pack(stuck)} if stuck else {})
        )
        state.kept.add(sent.number)
        self._take_in(sent.number, sent.generation + (too_soon or not sent.stopped), left)
        origin = ", ".join(map(str, sorted({number for number, _, _ in sent.items})))
        end = "closed" if not left else f"{len(left)} left" + (", shared" if sent.stopped else "")
        self.shared.say(
            f"piece {sent.number} (of {origin}): {len(sent.items)} domains, {message['nodes']} bounded, {end}, "
            f"{message['seconds']:.2f} s"
        )
        if (found := message["counterexample"]) is not None:
            return np.array(found, dtype=np.int64)
        count, rows = message["candidates"]
        judged = self.shared.judge(unpack_rows(rows, count, len(self.shared.program.input_low))) if count else None
        state.eager = state.eager and (judged is not None or not message["eager"])
        return judged

    def _tell(self) -> None:
        if time.monotonic() - self.told > 1:
            self.told = time.monotonic()
            self.shared.say(
                f"search: {self.state.nodes} domains bounded, {len(self.running)} of {self.executor.ready} workers busy"
            )
