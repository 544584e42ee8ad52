"""``qertify check``: does a certificate prove what it claims of a model?"""

from __future__ import annotations

import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qertify._version import __version__
from qertify.cli.flags import (
    CpuClassOption,
    EngineFlags,
    JsonOption,
    MemoryOption,
    ModelArgument,
    ModelFlags,
    TimeoutOption,
    VerboseOption,
    with_flags,
)
from qertify.cli.render import render_answer
from qertify.cli.supervisor import Channel
from qertify.errors import CertificateError
from qertify.importers.registry import ImportOptions, format_of

if TYPE_CHECKING:
    from qertify.certificates.format import Certificate

EXIT_STATUS = {"valid": 0, "invalid": 1, "valid_if_trusted": 3}


@with_flags
def check_command(
    context: typer.Context,
    *,
    certificate: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="Written by --certificate.", show_default=False)],
    model: ModelArgument,
    flags: ModelFlags,
    cpu_class: CpuClassOption = None,
    timeout: TimeoutOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Check a certificate against a model. Exit status: 0 valid, 1 invalid, 2 unusable, 3 valid if named steps are trusted."""
    channel: Channel = context.obj
    limits = EngineFlags(cpu_class=cpu_class, timeout=timeout, memory=memory).options()
    channel.limit(limits.timeout, limits.memory)
    start = time.monotonic()

    from qertify.certificates.check import check
    from qertify.certificates.format import load
    from qertify.importers.registry import load_model

    found = load(certificate)
    network = load_model(model, _completed(flags.options(), found, model))
    answer = describe(found) | {"verdict": "unknown", "reason": "timeout", "trusted": [], "leaves": 0, "seconds": 0.0}
    channel.draft(answer, as_json)
    report = check(found, network)
    trusted = list(report.trusted)
    verdict = report.verdict.value
    if verdict != "invalid":
        trusted = list(dict.fromkeys([*trusted, *_doubts(network, found, limits.cpu_class)]))
        verdict = "valid_if_trusted" if trusted else verdict
    answer |= {
        "verdict": verdict,
        "reason": report.reason,
        "trusted": trusted,
        "leaves": report.leaves,
        "seconds": time.monotonic() - start,
    }
    return channel.finish(render_answer(answer, as_json, sys.stdout.isatty()), EXIT_STATUS[verdict])


def _completed(given: ImportOptions, certificate: Certificate, model: Path) -> ImportOptions:
    """The flags, and for those that were not given what the certificate notes; the digest tells whether that was right.

    Raises:
        CertificateError: notes that are no flags.
    """
    known = format_of(model).options
    notes: dict[str, Any] = dict(certificate.model_options)
    allowed = {item.name for item in fields(ImportOptions)} - {"trust_code"}
    values: dict[str, Any] = {}
    for name, value in notes.items():
        right = type(value) in (int, str, bool) or (isinstance(value, list) and all(type(size) is int for size in value))
        if name not in allowed or not right:
            raise CertificateError(f"the certificate notes an unknown way to read a model: {name}")
        if name in known:
            values[name] = tuple(value) if isinstance(value, list) else value
    values.update(given.given())
    return ImportOptions(**values)


def _doubts(network: Any, certificate: Certificate, cpu_class: str | None) -> tuple[str, ...]:
    """Why the runtime's integers may not be those that the certificate speaks of."""
    from qertify.certificates.check import box
    from qertify.runtimes.saturation import CpuClass, arithmetic_doubts, host_cpu_class
    from qertify.specification.region import IntegerBox

    chosen = host_cpu_class() if cpu_class is None else CpuClass(cpu_class)
    return arithmetic_doubts(network, chosen, IntegerBox(*box(certificate.claim, network)))


def describe(certificate: Certificate) -> dict[str, Any]:
    """What is claimed, as JSON data."""
    from qertify.result import SCHEMA_VERSION

    claim, region = certificate.claim, certificate.claim.region
    return {
        "schema_version": SCHEMA_VERSION,
        "qertify_version": __version__,
        "model_digest": certificate.digest,
        "runtime_profile": certificate.runtime_profile,
        "claim": {
            "kind": claim.kind,
            "label": claim.label,
            "target": claim.target,
            "ties": claim.ties,
            "radius": region.radius,
            "refuted": claim.refuted,
            "low": region.low.reshape(-1).tolist(),
            "high": region.high.reshape(-1).tolist(),
        },
    }
