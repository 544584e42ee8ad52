"""From a question to a decision: the stages of each method, from cheap to complete.

attack → interval bounds → dual bounds → branch and bound by turns with stronger attacks, its leaves by an exact solver.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from qertify.ilp.process import SolverProcesses
from qertify.network.network import Network
from qertify.network.ranges import ranges
from qertify.options import Method, Options
from qertify.parallel.executor import Executor
from qertify.result import Reason
from qertify.search import stages, turns
from qertify.search.journal import Journal
from qertify.search.proof import ProofLog
from qertify.search.question import Decision, Question
from qertify.specification.judge import Run
from qertify.specification.region import IntegerBox
from qertify.specification.splitting import Property, splitter_of

_STAGES: dict[Method, tuple[stages.Stage, ...]] = {
    Method.AUTO: (
        stages.interval,
        stages.enumerate,
        stages.quick_attack,
        stages.dual,
        stages.early_sweep,
        turns.turn(1),
        stages.strong_attack,
        turns.turn(2),
        stages.align,
        stages.sweep,
        stages.dual_again,
        turns.narrow_cases,
        turns.search,
        stages.last_resort,
    ),
    Method.ATTACK: (stages.quick_attack, stages.strong_attack, stages.align),
    Method.BOUNDS: (stages.interval, stages.dual),
    Method.BAB: (stages.interval, stages.dual, turns.search),
    Method.ILP: (stages.interval, stages.ilp),
}
"""The stages of each method, in order."""


@contextmanager
def one_thread() -> Generator[None]:
    """One thread: the tensors here are small, and threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decide(
    network: Network,
    box: IntegerBox,
    property_: Property,
    options: Options,
    say: Callable[[str], None] = lambda _: None,
    deadline: float | None = None,
    executor: Executor | None = None,
    run: Run | None = None,
    plan: Sequence[stages.Stage] | None = None,
    processes: SolverProcesses | None = None,
    stopped: Callable[[], bool] = lambda: False,
    journal: Journal | None = None,
) -> Decision:
    """Decide whether the property holds on the whole box.

    Args:
        network, box, property_: the question.
        options: method, solver, seed and limits.
        say: gets one line a stage.
        deadline: of `time.monotonic`.
        executor: shares out the search, if there is one; its workers have read the same model.
        run: the real runtime, which an enclosure needs for counterexamples.
        plan: the stages, None for those of the method.
        processes: where solvers run, None for processes of this question alone.
        stopped: polled; once it is true, the question is given up as at the deadline.
        journal: keeps the search's open domains, and may hold some already. When it ends a search before the deadline, the
            reason is interrupted.

    Raises:
        UnsupportedModelError: the chosen method does not cover the network.
        InvalidInputError: the property does not fit the network's outputs.
    """
    property_.check(network.output_size)
    decision = Decision(proof=ProofLog() if options.keep_proof else None)

    def explain(line: str) -> None:
        decision.explanation.append(line)
        say(line)

    known = ranges(network, box.low[None], box.high[None])
    splitter = splitter_of(network, property_, known)
    generator = torch.Generator().manual_seed(options.seed)
    with SolverProcesses(options.memory) if processes is None else nullcontext(processes) as solvers, one_thread():
        question = Question(
            network,
            box,
            property_,
            options,
            deadline,
            explain,
            known,
            splitter,
            splitter.cases(),
            generator,
            decision,
            solvers,
            executor=executor,
            run=run,
            journal=journal,
            stopped=stopped,
        )
        for stage in plan or _STAGES[options.method]:
            if question.late():
                decision.reason = Reason.TIMEOUT
                return decision
            stage(question)
            if decision.settled:
                if decision.proof is not None:
                    decision.proof.program, decision.proof.cases = question.program, question.cases
                return decision
            if decision.reason is Reason.INTERRUPTED:
                return decision
    decision.reason = decision.reason or (Reason.TIMEOUT if question.late() else _undecided(network))
    return decision


def _undecided(network: Network) -> Reason:
    """Why the stages may end without an answer."""
    return Reason.UNSUPPORTED if network.exactness == "exact" else Reason.ENCLOSURE
