"""A campaign's questions about two models: how far apart are they around these inputs?

Questions about one input are asked one after the other, the middle one of those that are open, in the order of radius and
then of falling delta. Two models that agree do so on every smaller region and for every larger delta; an input at which they
differ counts wherever it lies in the region and differs by enough, which is judged anew, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from qertify.campaign.records import Compared
from qertify.campaign.store import Store
from qertify.campaign.study import Task
from qertify.options import Options
from qertify.parallel.executor import Executor, LostError, Message
from qertify.queries.equivalence import describe, equivalence, float32_bound
from qertify.queries.equivalence_result import DifferingInput, Equivalence, EquivalenceResult, question_name
from qertify.queries.pieces import comparison_piece
from qertify.search.comparison import EquivalenceQuery, FloatSemantics, Judge


class PosedPair(Protocol):
    """A question and its way back to the model files."""

    @property
    def query(self) -> EquivalenceQuery:
        """About both networks."""
        ...

    def confirm(self, result: EquivalenceResult) -> EquivalenceResult:
        """Replay an input on the runtimes of both models, if there is one."""
        ...


PairPoser = Callable[[int, Fraction, str], PosedPair]
"""(position, radius, what is asked) → question; what is asked is one of `qertify.campaign.records.Comparison.asked`."""


class EquivalenceStudy:
    """As `qertify.campaign.study.Study`.

    Args:
        store: open for writing.
        pose: makes the questions.
        options: of each question.
    """

    def __init__(self, store: Store, pose: PairPoser, options: Options) -> None:
        self._store, self._pose, self._options = store, pose, options
        campaign = store.campaign
        assert campaign.comparison is not None
        every = [(radius, asked) for radius in campaign.radii for asked in reversed(campaign.comparison.asked)]
        answered = {(record.position, record.radius, record.asked) for record in store.compared()}
        points = [point.position for point in store.points()]
        self.total, self.done = len(points) * len(every), len(answered)
        self._open = {at: [pair for pair in every if (at, *pair) not in answered] for at in points}

    def open(self) -> Iterable[int]:
        return [position for position, left in self._open.items() if left]

    def next(self, position: int) -> Task | None:
        left = self._open[position]
        return Task(position, *left[len(left) // 2]) if left else None

    def _posed(self, task: Task) -> PosedPair:
        assert task.radius is not None
        assert task.asked is not None
        return self._pose(task.position, Fraction(task.radius), task.asked)

    def piece(self, task: Task) -> Message:
        return comparison_piece(self._posed(task).query)

    def share(self, task: Task, options: Options, stopped: Callable[[], bool], executor: Executor) -> Message:
        return {"result": equivalence(self._posed(task).query, options, executor=executor, stopped=stopped).to_json()}

    def keep(self, task: Task, open_: Message) -> None:
        raise AssertionError("no worker hands in open domains of two models")

    def lost(self, task: Task, lost: LostError) -> Message:
        query = self._posed(task).query
        return EquivalenceResult(
            query.original.digest, query.quantized.digest, query.quantized.runtime_profile, Equivalence.UNKNOWN,
            question_name(query.delta, query.top1), lost.seconds, self._options.method.value,
            delta=None if query.delta is None else str(query.delta), output=query.output,
            float_semantics=query.semantics.value, reason=lost.reason, region=describe(query.inputs), explanation=(lost.why,),
        ).to_json()  # fmt: skip

    def settle(self, task: Task, data: dict[str, Any], attempts: int) -> None:
        assert task.radius is not None
        assert task.asked is not None
        posed = self._posed(task)
        result = posed.confirm(EquivalenceResult.from_json(data))
        record = Compared(task.position, task.radius, task.asked, result, None, attempts)
        records = [record, *self._implied(record, posed.query)]
        self._store.add_compared(records)
        known = {(each.radius, each.asked) for each in records}
        self._open[task.position] = [pair for pair in self._open[task.position] if pair not in known]
        self.done += len(records)

    def _implied(self, source: Compared, query: EquivalenceQuery) -> Iterable[Compared]:
        """Answers to open questions about the same input that follow from one."""
        result = source.result
        if result.verdict is Equivalence.UNKNOWN or result.question == "max_delta":
            return
        for radius, asked in self._open[source.position]:
            if (radius, asked) == (source.radius, source.asked):
                continue
            other = self._pose(source.position, Fraction(radius), asked).query
            if (found := result.counterexample) is not None:
                follows = _differs(other, found)
            else:
                enough = query.delta is None or other.delta is None or query.delta <= other.delta
                follows = enough and query.inputs.covers(other.inputs)
            if follows:
                implied = replace(
                    result, delta=None if other.delta is None else str(other.delta), region=describe(other.inputs),
                    max_delta=None, bound_reached=None, seconds=0.0, nodes=0,
                    explanation=(f"implied by the answer for radius {source.radius}, {source.asked}",),
                )  # fmt: skip
                yield Compared(source.position, radius, asked, implied, (source.radius, source.asked))


def _differs(query: EquivalenceQuery, found: DifferingInput) -> bool:
    """Whether an input that was found for another question is one of this region, and differs by more than is allowed."""
    x = np.array(found.input, dtype=np.float32).reshape(query.quantized.input_shape)
    codes = np.array(found.levels, dtype=np.int64).reshape(query.quantized.input_shape)
    if not query.inputs.holds(x, codes):
        return False
    outputs = Judge(query).exactly(x, codes)
    margin = float32_bound(query) if query.semantics is FloatSemantics.FLOAT32_BOUNDED else Fraction(0)
    if query.delta is None:
        return outputs.disagree(margin)
    differences = outputs.differences()
    return max(differences[index] for index in query.outputs) > query.delta + margin
