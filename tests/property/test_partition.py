"""Parts cover and do not overlap: every input of tiny networks is enumerated."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from qertify.bounds.compile import compile_program
from qertify.bounds.program import Program
from qertify.network.evaluate import evaluate
from qertify.network.ranges import ranges
from qertify.network.tensor import IntegerArray
from qertify.parallel.partition import at_threshold, by_levels, by_output, deal, halves, pack, unpack
from qertify.search.domains import Subproblem, root_subproblems
from qertify.specification.cases import CaseSplitter
from qertify.specification.property import Classification, Ties
from qertify.specification.region import IntegerBox, linf_ball
from qertify.specification.splitting import splitter_of
from tests.oracle.random_networks import random_network


class Tiny:
    """A random network over a box, with the accumulators of every input of the box."""

    def __init__(self, generator: np.random.Generator, number: int) -> None:
        network = random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        box = linf_ball(centre, int(generator.integers(1, 4)), network.input.low, network.input.high)
        self.property = Classification(int(generator.integers(network.output_size)), None, list(Ties)[number % 3])
        known = ranges(network, box.low[None], box.high[None])
        splitter = splitter_of(network, self.property, known)
        assert isinstance(splitter, CaseSplitter)
        self.splitter, self.cases = splitter, splitter.cases()
        classes = tuple(sorted(frozenset[int]().union(*(case.indices for case in self.cases))))
        self.program: Program = compile_program(network, box, known, splitter.view, classes)
        self.points: IntegerArray = box.points()
        self.outputs: IntegerArray = evaluate(network, self.points)
        self.z = self._accumulators()

    def _accumulators(self) -> Tensor:
        """(points, N), straight from the program's equations."""
        program = self.program
        x = torch.tensor(self.points.reshape(len(self.points), -1)[:, program.input_index], dtype=torch.float64)
        z = x @ program.input_matrix.T + program.constant
        for start, stop in program.blocks[1:]:
            y = program.values(z)
            z[:, start:stop] = (x @ program.input_matrix.T + y @ program.unit_matrix.T + program.constant)[:, start:stop]
        return z

    def inside(self, part: Subproblem) -> np.ndarray:
        """Which inputs lie in a part."""
        outputs, case = self.program.output_units(), part.case
        found = ((self.z >= part.low) & (self.z <= part.high)).all(-1)
        found &= sum((weight * self.z[:, outputs[i]] for i, weight in case.weights), torch.zeros(len(self.z))) <= case.limit
        for i, bound in case.upper:
            found &= self.z[:, outputs[i]] <= bound
        for i, bound in case.lower:
            found &= self.z[:, outputs[i]] >= bound
        return found.numpy()

    def beaten(self, competitor: int | None) -> np.ndarray:
        """Which inputs let the competitor win."""
        own = self.outputs[:, self.property.label]
        if competitor is None:
            return self.property.violated(self.outputs)
        other = self.outputs[:, competitor]
        return other >= own if self.property.ties.beaten_by_tie(self.property.label, competitor) else other > own


@pytest.mark.parametrize("number", range(60))
def test_cuts_compose_cover_and_do_not_overlap(number: int) -> None:
    generator = np.random.default_rng(number)
    tiny = Tiny(generator, number)
    roots = root_subproblems(tiny.program, tiny.cases)
    covered = np.zeros(len(tiny.points), dtype=bool)
    for root in roots:
        violations = tiny.inside(root) & tiny.beaten(root.case.competitor)
        covered |= violations
        parts: list[Subproblem] = list(by_levels(tiny.program, tiny.splitter, root, int(generator.integers(1, 6))))
        for _ in range(3):  # a neuron, then levels again
            unit = int(generator.integers(len(tiny.program.units)))
            low, high = int(tiny.program.low[unit]), int(tiny.program.high[unit])
            threshold = float(generator.integers(low, high + 2))
            chosen = int(generator.integers(len(parts)))
            parts[chosen : chosen + 1] = at_threshold(tiny.program, parts[chosen], unit, threshold)
            chosen = int(generator.integers(len(parts)))
            parts[chosen : chosen + 1] = by_levels(tiny.program, tiny.splitter, parts[chosen], 2)
        counts = np.sum([tiny.inside(part) for part in parts], axis=0)
        assert np.all(counts[violations] == 1), f"{len(parts)} parts of {root.case}"
    assert np.array_equal(covered, tiny.property.violated(tiny.outputs))


def test_there_is_something_to_cut() -> None:
    """Without violations and several levels the test above would pass for nothing."""
    seen: Counter[str] = Counter()
    for number in range(60):
        tiny = Tiny(np.random.default_rng(number), number)
        seen["violated"] += bool(tiny.property.violated(tiny.outputs).any())
        for root in root_subproblems(tiny.program, tiny.cases):
            seen["several"] += len(by_levels(tiny.program, tiny.splitter, root, 4)) > 2
    assert seen["violated"] > 20
    assert seen["several"] > 20


@pytest.mark.parametrize("number", range(40))
def test_intervals_of_an_output_cover_and_do_not_overlap(number: int) -> None:
    """Of codes, where the unit has values, and of accumulators; composed with each other and with neurons."""
    generator = np.random.default_rng(number)
    tiny = Tiny(generator, number)
    program = tiny.program
    for root in root_subproblems(program, tiny.cases)[:3]:
        inside = tiny.inside(root)
        for unit in (0, len(program.units) - 1):
            count = int(generator.integers(2, 6))
            parts = list(by_output(program, root, unit, count))
            assert len(parts) <= count
            for _ in range(2):
                chosen, other = int(generator.integers(len(parts))), int(generator.integers(len(program.units)))
                middle = float((program.low[other] + program.high[other]) // 2) + 1
                parts[chosen : chosen + 1] = at_threshold(program, parts[chosen], other, middle)
                chosen = int(generator.integers(len(parts)))
                parts[chosen : chosen + 1] = by_output(program, parts[chosen], len(program.units) - 1, 3)
            assert np.array_equal(np.sum([tiny.inside(part) for part in parts], axis=0), inside)


def test_intervals_of_an_output_have_about_equal_cost() -> None:
    widths: list[list[int]] = []
    for number in range(40):
        tiny = Tiny(np.random.default_rng(number), number)
        program = tiny.program
        for unit in range(len(program.units)):
            if not tiny.cases or not bool(program.has_value[unit]):
                continue
            root = root_subproblems(program, tiny.cases)[0]
            parts = by_output(program, root, unit, 4)
            ends = [program.values(torch.stack([part.low, part.high]))[:, unit].tolist() for part in parts]
            assert all(last < first for (_, last), (first, _) in itertools.pairwise(ends))
            widths.append([int(last - first) + 1 for first, last in ends])
    whole = [row for row in widths if sum(row) >= 8]
    assert len(whole) > 5
    assert all(len(row) == 4 and max(row) <= 2 * min(row) + 1 for row in whole)


def test_levels_are_cut_by_cost() -> None:
    tiny = next(
        tiny
        for tiny in (Tiny(np.random.default_rng(number), number) for number in range(60))
        if any(case.last - case.first >= 6 for case in tiny.cases)
    )
    root = next(root for root in root_subproblems(tiny.program, tiny.cases) if root.case.last - root.case.first >= 6)

    def levels(part: Subproblem) -> int:
        return part.case.last - part.case.first + 1

    even = sorted(map(levels, by_levels(tiny.program, tiny.splitter, root, 4)))
    assert even[-1] <= 2 * even[0] + 1
    low_first = by_levels(tiny.program, tiny.splitter, root, 4, cost=lambda part: -part.case.first)
    assert levels(low_first[0]) <= levels(low_first[-1])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 1000])
def test_halves_are_a_partition_of_the_box(count: int) -> None:
    box = IntegerBox(np.array([[0, 3], [-2, 5]]), np.array([[2, 3], [4, 6]]))
    boxes = halves(box, count)
    assert len(boxes) == min(count, box.size)
    points = [tuple(point.reshape(-1)) for part in boxes for point in part.points()]
    assert len(points) == len(set(points)) == box.size


@pytest.mark.parametrize("number", range(8))
def test_parts_survive_a_journey_as_text(number: int) -> None:
    tiny = Tiny(np.random.default_rng(number), number)
    parts = [
        part for root in root_subproblems(tiny.program, tiny.cases) for part in by_levels(tiny.program, tiny.splitter, root, 3)
    ]
    again = unpack(json.loads(json.dumps(pack(parts), allow_nan=False)), tiny.program)
    assert len(again) == len(parts)
    for old, new in zip(parts, again, strict=True):
        assert (old.case, old.margin, old.depth, old.stuck) == (new.case, new.margin, new.depth, new.stuck)
        assert torch.equal(old.low, new.low)
        assert torch.equal(old.high, new.high)


def test_a_parcel_of_another_size_is_refused() -> None:
    tiny = Tiny(np.random.default_rng(0), 0)
    data = pack(root_subproblems(tiny.program, tiny.cases))
    data["low"] = pack([])["low"]
    with pytest.raises(ValueError, match="announced"):
        unpack(data, tiny.program)


@pytest.mark.parametrize("hands", [1, 2, 3, 50])
def test_dealing_gives_everything_to_somebody(hands: int) -> None:
    tiny = Tiny(np.random.default_rng(4), 4)
    cards = [Subproblem(tiny.cases[0], tiny.program.low, tiny.program.high, margin=-float(i)) for i in range(10)]
    dealt = deal(cards, hands)
    assert sorted(id(card) for hand in dealt for card in hand) == sorted(map(id, cards))
    assert all(dealt)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
