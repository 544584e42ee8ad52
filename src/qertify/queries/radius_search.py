"""The search for a maximum radius, over whole numbers: levels, or positions in a list of radii.

The set of robust radii is an interval from 0, so each answer bounds the radius for good: a proof at r from below, a
counterexample at distance d from above.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from qertify.errors import ReplayError
from qertify.ilp.engine import EXACT_SOLVER
from qertify.options import Method, Options
from qertify.queries.nearest import NearestResult
from qertify.result import Counterexample, Evidence, Reason, Result, Verdict

LEAST_SECONDS = 0.5
OPTIMISATION_SHARE = 0.5
"""Part of the time that the integer program for the whole question may take."""
FEW = 8
"""Widest gap in which the radius just below the counterexample is asked about first."""
SHARE = 4
"""With a time limit, one question gets at most this part of what is left, then half, then all: the last, hard ones get it."""


class RadiusSearch:
    """The bounds known so far and the budget.

    Attributes:
        verified, refuted: proved robust at the one, a counterexample (or nothing left to ask) at the other.
        found: that counterexample.
        evidence: of ``verified``.
        reason: why they don't meet.
        improved: called after every question.
    """

    def __init__(
        self, ask: Callable[[int, Options], Result], measure: Callable[[Counterexample], int], options: Options, largest: int
    ) -> None:
        self.ask, self.measure, self.options, self.largest = ask, measure, options, largest
        self.deadline = None if options.timeout is None else time.monotonic() + options.timeout
        self.verified, self.refuted = 0, largest + 1
        self.found: Counterexample | None = None
        self.evidence: Evidence | None = None
        self.claimed = 0
        self.reason: Reason | None = None
        self.nodes = self.questions = 0
        self.improved: Callable[[], None] = lambda: None

    def left(self) -> float | None:
        """Seconds."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def decide(self, radius: int, method: Method, seconds: float | None) -> Result:
        """Ask about one radius and keep what the answer says about all radii."""
        left = self.left()
        limits = [limit for limit in (seconds, left) if limit is not None]
        timeout = max(min(limits), 1e-3) if limits else None
        result = self.ask(radius, replace(self.options, method=method, timeout=timeout))
        self.nodes, self.questions = self.nodes + result.nodes, self.questions + 1
        if result.verdict is Verdict.ROBUST:
            self._verify(radius, result.evidence)
        self.refute(result.counterexample)
        self.improved()
        return result

    def _verify(self, radius: int, evidence: Evidence | None) -> None:
        if radius > self.verified:
            self.verified, self.evidence = radius, evidence
            self._agree()

    def refute(self, found: Counterexample | None) -> None:
        """Take a counterexample for what it is worth.

        Raises:
            ReplayError: it contradicts a proof.
        """
        if found is not None and (distance := self.measure(found)) < self.refuted:
            self.refuted, self.found = distance, found
            self._agree()

    def _agree(self) -> None:
        if self.found is None or not 0 < self.verified >= self.refuted:
            return
        if self.evidence is not Evidence.SOLVER_CLAIM:
            raise ReplayError(f"radius {self.verified} is proved and refuted at {self.refuted}; please report this defect")
        self.verified, self.evidence = 0, None  # an accepted claim was wrong

    def optimise(self, nearest: Callable[[int, int, Options], NearestResult | None]) -> None:
        """Ask one integer program for the nearest violation below the known one, and take it for what it is worth.

        A floating-point solver's claim is remembered; what it leaves to prove goes to the integer solver.
        """
        left = self.left()
        if self.refuted - self.verified <= 1 or (left is not None and left <= 0):
            return
        limited = replace(self.options, timeout=None if left is None else left * OPTIMISATION_SHARE)
        answer = nearest(self.verified + 1, self.refuted - 1, limited)
        self.questions += 1
        if answer is not None:
            self.refute(answer.counterexample)
            if answer.evidence is not Evidence.SOLVER_CLAIM or self.options.accept_solver_claims:
                self._verify(min(answer.verified, self.refuted - 1), answer.evidence)
            else:
                self.claimed = answer.verified
        if not self.options.accept_solver_claims:
            self.options = replace(self.options, solver=EXACT_SOLVER)
        self.improved()

    def gallop(self) -> None:
        """Double the radius until an attack succeeds."""
        radius = 1
        while radius <= self.largest and self.decide(radius, Method.ATTACK, None).verdict is not Verdict.NON_ROBUST:
            radius = self.largest if radius < self.largest < 2 * radius else 2 * radius

    def attack_downwards(self) -> None:
        """Pull the counterexample closer with attacks alone: they cost milliseconds."""
        low = self.verified
        while self.refuted - low > 1:
            middle = (low + self.refuted) // 2
            if self.decide(middle, Method.ATTACK, None).verdict is not Verdict.NON_ROBUST:
                low = middle

    def close(self) -> None:
        """Let the bounds meet: passes with more time for each question, until one changes nothing that more time could."""
        share = SHARE
        while True:
            self._pass(share)
            left = self.left()
            if self.refuted - self.verified <= 1 or left is None or left <= LEAST_SECONDS or share == 1:
                break
            share //= 2
        if self.refuted - self.verified == 1:
            self.reason = None
        elif self.claimed >= self.refuted - 1:
            self.reason = Reason.SOLVER_CLAIM

    def _pass(self, share: int) -> None:
        """Bisect between proof and counterexample; what one radius leaves open, smaller ones may still narrow."""
        ceiling = self.refuted
        while ceiling - self.verified > 1:
            left = self.left()
            if left is not None and left <= 0:
                self.reason = Reason.TIMEOUT
                break
            # a refutation close below the counterexample is likely to fail, a proof there settles everything
            gap = ceiling - self.verified
            near = gap <= 3 or (ceiling == self.refuted and gap <= FEW)
            radius = ceiling - 1 if near else (self.verified + ceiling) // 2
            last_word = gap == 2
            seconds = None if left is None or last_word else max(LEAST_SECONDS, left / share)
            result = self.decide(radius, self.options.method, seconds)
            if result.verdict is Verdict.UNKNOWN:
                self.reason, ceiling = result.reason, min(radius, self.refuted)
            else:
                ceiling = min(ceiling, self.refuted)
