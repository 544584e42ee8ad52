"""``--certificate FILE``: the proof of an answer, written beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qertify.cli.common import check_writable, say
from qertify.errors import CertificateError, UnsupportedModelError
from qertify.options import Options

if TYPE_CHECKING:
    from qertify.certificates.format import Certificate
    from qertify.importers.registry import ImportOptions
    from qertify.network.network import Network
    from qertify.queries.radius_result import RadiusResult
    from qertify.queries.robustness import RobustnessQuery
    from qertify.result import Result
    from qertify.search.question import Decision

CertificateOption = Annotated[
    Path | None,
    typer.Option("--certificate", metavar="FILE", help="Write the proof there, for 'qertify check'.", show_default=False),
]


class Notary:
    """Keeps what a certificate is made of while a question is decided; does nothing without a path.

    Attributes:
        decisions: radius → decision, for radius queries; 0 for a single question.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.decisions: dict[int, Decision] = {}
        if path is not None:
            check_writable(path, path.suffix, "--certificate")

    def options(self, options: Options) -> Options:
        """The options under which proofs are kept, if they are wanted."""
        return options if self._path is None else replace(options, keep_proof=True)

    def require_covered(self, network: Network) -> None:
        """Refuse before the work what could not be certified after it.

        Raises:
            UnsupportedModelError: a network that certificates don't cover.
        """
        from qertify.certificates.system import require_covered

        if self._path is not None:
            require_covered(network)

    @property
    def keep(self) -> Callable[[int, Decision], None] | None:
        """Takes the decision about one radius; only proofs are kept."""
        return None if self._path is None else self._keep

    @property
    def keep_one(self) -> Callable[[Decision], None] | None:
        """Takes the decision about the only question."""
        return None if self._path is None else lambda decision: self._keep(0, decision)

    def _keep(self, radius: int, decision: Decision) -> None:
        if decision.evidence is not None:
            self.decisions = {known: kept for known, kept in self.decisions.items() if known > radius}  # larger ones prove more
            self.decisions[radius] = decision

    def write_answer(self, query: RobustnessQuery, result: Result, flags: ImportOptions) -> None:
        """Write the certificate of a verdict, or say why there is none."""
        from qertify.certificates.write import certificate_of

        self._write(lambda: certificate_of(query, result, self.decisions.get(0), flags))

    def write_radius(self, query: RobustnessQuery, result: RadiusResult, flags: ImportOptions) -> None:
        """The same for a maximum radius."""
        from qertify.certificates.write import radius_certificate

        self._write(lambda: radius_certificate(query.network, query.centre, result, self.decisions, flags))

    def _write(self, make: Callable[[], Certificate]) -> None:
        if self._path is None:
            return
        from qertify.certificates.format import save

        try:
            save(make(), self._path)
            say(f"certificate: {self._path}, {self._path.stat().st_size / 1000:.0f} kB")
        except (CertificateError, UnsupportedModelError, OverflowError, MemoryError) as error:  # the verdict stands
            say(f"{self._path} is not written: {error or type(error).__name__}")
