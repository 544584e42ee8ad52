"""float32-bounded answers hold for every float32 execution, also where all inputs are enumerated."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from qertify.queries.equivalence import equivalence, float32_bound
from qertify.queries.equivalence_result import Equivalence
from qertify.search.comparison import EquivalenceQuery, FloatSemantics, Outputs
from qertify.search.paired_input import grid
from qertify.specification.region import IntegerBox
from tests.oracle.random_pairs import quantized_pair


def _query(seed: int, **asked: bool | Fraction) -> EquivalenceQuery:
    left, right = quantized_pair(np.random.default_rng(seed), 2, 2)
    inputs = grid(right, IntegerBox(np.zeros(2, np.int64), np.full(2, 7)))
    return EquivalenceQuery(left, right, inputs, semantics=FloatSemantics.FLOAT32_BOUNDED, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_the_greatest_difference_has_the_error_on_both_sides(seed: int) -> None:
    query = _query(seed)
    answer = equivalence(query)
    error = float32_bound(query)
    assert error > 0
    assert answer.method == "enumeration"
    assert answer.max_delta is not None
    assert answer.max_delta[1] is not None
    assert answer.counterexample is not None
    attained = Fraction(answer.counterexample.difference)
    assert Fraction(answer.max_delta[0]) <= attained - error * Fraction(99, 100)
    assert Fraction(answer.max_delta[1]) >= attained + error * Fraction(99, 100)
    assert answer.verdict is Equivalence.EQUIVALENT


def test_classes_are_compared_with_the_error_on_both_sides() -> None:
    verdicts = {equivalence(_query(seed, top1=True)).verdict for seed in range(12)}
    assert verdicts == {Equivalence.EQUIVALENT, Equivalence.NOT_EQUIVALENT}


def test_a_lead_within_the_error_decides_nothing() -> None:
    near = Outputs([Fraction(1), Fraction(1, 2)], [Fraction(1), Fraction(0)])
    apart = Outputs([Fraction(1), Fraction(1, 2)], [Fraction(0), Fraction(1)])
    assert near.agree(Fraction(1, 5))
    assert not near.agree(Fraction(1, 4))
    assert apart.disagree(Fraction(1, 5))
    assert not apart.disagree(Fraction(1, 4))
    assert near.agree(Fraction(0))
    assert apart.disagree(Fraction(0))
