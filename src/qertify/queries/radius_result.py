"""Answers about radii, as plain data: light to import, so that a command can answer before its engines are there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from qertify.result import SCHEMA_VERSION, Counterexample, Evidence, Reason
from qertify.specification.units import Unit


@dataclass(frozen=True, slots=True)
class Span:
    """Radii around one input at which its class is known to win, and known to lose.

    Attributes:
        verified: proved at this radius and all smaller ones; None if at none.
        refuted: refuted at this radius and all larger ones, 0 where the centre is wrong; None if at none.
        below: proved only at radii smaller than ``verified``.
    """

    verified: Fraction | None = None
    refuted: Fraction | None = None
    below: bool = False

    def proves(self, radius: Fraction) -> bool:
        """Whether the class is proved to win at this radius."""
        return self.verified is not None and (radius < self.verified or (radius == self.verified and not self.below))

    def refutes(self, radius: Fraction) -> bool:
        """Whether the class is known to lose at this radius."""
        return self.refuted is not None and radius >= self.refuted

    def joined(self, other: Span) -> Span:
        """What both say together."""
        proofs = [(span.verified, not span.below) for span in (self, other) if span.verified is not None]
        verified, reached = max(proofs, default=(None, True))
        refuted = min((span.refuted for span in (self, other) if span.refuted is not None), default=None)
        return Span(verified, refuted, not reached)


@dataclass(frozen=True, slots=True)
class RadiusResult:
    """The answer to a radius query.

    Attributes:
        verified_radius: proved robust at this radius, in levels; None if the label loses at the centre already.
        refuted_radius: the counterexample's distance; None if robust on the whole valid range, or up to ``max_radius``.
        exact: the radius is known: refuted = verified + 1, or nothing larger is left to ask.
        reason: why it is not exact.
        counterexample: at distance ``refuted_radius``, replayed.
        questions: number of robustness questions asked.
        evidence: what the verified radius rests on; None at radius 0 and for a misclassified centre.
    """

    model_digest: str
    runtime_profile: str
    label: int
    predicted: int
    verified_radius: int | None
    refuted_radius: int | None
    exact: bool
    seconds: float
    method: str
    reason: Reason | None = None
    target: int | None = None
    ties: str = "first"
    max_radius: int | None = None
    nodes: int = 0
    questions: int = 0
    counterexample: Counterexample | None = None
    evidence: Evidence | None = None
    radius_unit: str = "levels"

    @property
    def misclassified(self) -> bool:
        """Whether the label loses at the centre."""
        return self.verified_radius is None and self.reason is None

    @property
    def span(self) -> Span:
        """The same as exact numbers."""
        verified = None if self.verified_radius is None else Fraction(self.verified_radius)
        if self.misclassified:
            return Span(refuted=Fraction(0))
        return Span(verified, None if self.refuted_radius is None else Fraction(self.refuted_radius))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return plain(asdict(self))

    @staticmethod
    def from_json(data: dict[str, Any]) -> RadiusResult:
        """The inverse of `to_json`.

        Raises:
            ValueError: another schema version.
        """
        return RadiusResult(**fields_of(data))


@dataclass(frozen=True, slots=True)
class RealRadiusResult:
    """The answer to a radius query in the model's own input domain. JSON has the same fields.

    Attributes:
        verified_radius: proved robust at this radius and every smaller one; None if the label loses at the centre already.
        refuted_radius: a counterexample lies within it; None if none is known. Both are safe when read as decimals.
        verified_below: exact rational as text: proved at every radius below it; None if the centre is wrong, or no end is known
            up to ``max_radius``.
        refuted_at: exact rational as text: the counterexample's distance.
        exact: the two are one number, the least upper bound of robust radii; or nothing larger is left to ask.
        reason, counterexample, questions, evidence: as of `RadiusResult`.
    """

    model_digest: str
    runtime_profile: str
    label: int
    predicted: int
    verified_radius: float | None
    refuted_radius: float | None
    verified_below: str | None
    refuted_at: str | None
    exact: bool
    seconds: float
    method: str
    radius_unit: str = "real"
    reason: Reason | None = None
    target: int | None = None
    ties: str = "first"
    max_radius: str | None = None
    nodes: int = 0
    questions: int = 0
    counterexample: Counterexample | None = None
    evidence: Evidence | None = None

    @property
    def misclassified(self) -> bool:
        """Whether the label loses at the centre."""
        return self.verified_radius is None and self.reason is None

    @property
    def span(self) -> Span:
        """The same as exact numbers."""
        if self.misclassified:
            return Span(refuted=Fraction(0))
        refuted = None if self.refuted_at is None else Fraction(self.refuted_at)
        if self.verified_below is not None:
            return Span(Fraction(self.verified_below), refuted, below=True)
        end = None if self.verified_radius is None else self.max_radius or repr(self.verified_radius)
        return Span(None if end is None else Fraction(end), refuted)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return plain(asdict(self))

    @staticmethod
    def from_json(data: dict[str, Any]) -> RealRadiusResult:
        """The inverse of `to_json`.

        Raises:
            ValueError: another schema version.
        """
        return RealRadiusResult(**fields_of(data))


def radius_result(data: dict[str, Any]) -> RadiusResult | RealRadiusResult:
    """Whichever of the two this JSON is.

    Raises:
        ValueError: another schema version.
    """
    return (RealRadiusResult if data.get("radius_unit") == Unit.REAL.value else RadiusResult).from_json(data)


def plain(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a result about radii as JSON."""
    from qertify._version import __version__

    for name in ("reason", "evidence"):
        fields[name] = None if fields[name] is None else fields[name].value
    return {"schema_version": SCHEMA_VERSION, "qertify_version": __version__, **fields}


def fields_of(data: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `plain`.

    Raises:
        ValueError: another schema version.
    """
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema version {data.get('schema_version')}, expected {SCHEMA_VERSION}")
    fields = {key: value for key, value in data.items() if key not in ("schema_version", "qertify_version")}
    fields["reason"] = None if fields["reason"] is None else Reason(fields["reason"])
    fields["evidence"] = None if fields.get("evidence") is None else Evidence(fields["evidence"])
    if (found := fields["counterexample"]) is not None:
        tuples: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
        fields["counterexample"] = Counterexample(**tuples)
    return fields
