"""The certificate file: a zip of one JSON description and plain .npy arrays of integers. Nothing is ever unpickled.

docs/certificates.md describes every member. Reading checks the form of everything, and the meaning of nothing: that is
`qertify.certificates.check`.
"""

from __future__ import annotations

import io
import json
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qertify.errors import CertificateError
from qertify.network.tensor import IntegerArray

FORMAT = "qertify certificate"
VERSION = 1
SIZE_LIMIT = 4 << 30
"""Largest total size of the unpacked members, bytes: a hostile archive must not fill the memory."""

CLAIMS = ("robust", "non_robust", "misclassified", "radius")
TIES = ("first", "last", "violation")
SPLIT, BOUND, INTERVAL, TRUSTED = range(4)
"""How a node of the tree is closed: by its children, by multipliers, by interval arithmetic, or by a solver's word."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """The box low ≤ x ≤ high; or, with a radius, all valid codes within it of the centre ``low``, which is ``high``, too."""

    low: IntegerArray
    high: IntegerArray
    radius: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """What is claimed of a network.

    Attributes:
        kind: "robust": the label wins on the whole region; "non_robust": not at ``counterexample``, which lies in the region;
            "misclassified": not at the region's centre; "radius": on the region, and no longer within ``refuted``.
        label, target, ties: as in `qertify.specification.property.Classification`.
        refuted: for "radius", a radius within which the counterexample lies; None if there is none.
    """

    kind: str
    label: int
    target: int | None
    ties: str
    region: Region
    refuted: int | None = None


@dataclass(frozen=True, slots=True)
class CaseClaim:
    """Levels first … last of one competitor (None: the label at its lowest level), and the objective Σ weight · z."""

    competitor: int | None
    first: int
    last: int
    weights: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Nodes, parents first; arrays of one entry a node.

    Attributes:
        parent: −1 for roots.
        case: index into the proof's cases.
        unit, threshold, side: what made the node from its parent: z_unit ≤ threshold − 1 for side −1, z_unit ≥ threshold for
            side 1; side 0 for roots and for parts of a case.
        closed: SPLIT, BOUND, INTERVAL or TRUSTED.
    """

    parent: IntegerArray
    case: IntegerArray
    unit: IntegerArray
    threshold: IntegerArray
    side: IntegerArray
    closed: IntegerArray


@dataclass(frozen=True, slots=True, eq=False)
class Multipliers:
    """Rows of sparse integers: those of row r are unit[start[r]:start[r+1]] and value[…], times 2^−bits[r]."""

    start: IntegerArray
    unit: IntegerArray
    value: IntegerArray
    bits: IntegerArray

    def dense(self, rows: IntegerArray, units: int) -> IntegerArray:
        """Some rows, (rows, units)."""
        result = np.zeros((len(rows), units), dtype=np.int64)
        for place, row in enumerate(rows.tolist()):
            mine = slice(int(self.start[row]), int(self.start[row + 1]))
            result[place, self.unit[mine]] = self.value[mine]
        return result


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """Why a property holds on a region.

    Attributes:
        enumeration: because it does at every point; nothing else is said then.
        units, hidden: number of units, of those before the outputs.
        tighten: (count, 3): round, unit and side of root bounds, with the first multipliers, in order.
        cases: of the tree.
        tree: empty if interval arithmetic excludes the violation.
        multipliers: one row a bound in ``tighten``, then one a node closed by a bound, in order.
        trusted: node → who says that it holds no violation.
    """

    enumeration: bool
    units: int
    hidden: int
    tighten: IntegerArray
    cases: tuple[CaseClaim, ...]
    tree: Tree
    multipliers: Multipliers
    trusted: Mapping[int, str] = field(default_factory=dict[int, str])


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """A claim and its proof.

    Attributes:
        digest: of the network.
        runtime_profile: for messages; the digest covers it.
        model_options: how the model file was read; a convenience that nothing rests on.
        counterexample: input codes of the network's input shape.
        qertify_version: that wrote it.
    """

    digest: str
    runtime_profile: str
    claim: Claim
    counterexample: IntegerArray | None = None
    proof: Proof | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    qertify_version: str = ""


_TREE = ("parent", "case", "unit", "threshold", "side", "closed")
_MULTIPLIERS = ("start", "unit", "value", "bits")


def save(certificate: Certificate, path: str | os.PathLike[str]) -> None:
    """Write a certificate; the file appears whole or not at all.

    Raises:
        CertificateError: the file can't be written.
    """
    claim, proof = certificate.claim, certificate.proof
    arrays: dict[str, IntegerArray] = {"region.low": claim.region.low}
    if claim.region.radius is None:
        arrays["region.high"] = claim.region.high
    if certificate.counterexample is not None:
        arrays["counterexample"] = certificate.counterexample
    description: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "qertify_version": certificate.qertify_version,
        "network": {
            "digest": certificate.digest,
            "runtime_profile": certificate.runtime_profile,
            "options": dict(certificate.model_options),
        },
        "claim": {
            "kind": claim.kind,
            "label": claim.label,
            "target": claim.target,
            "ties": claim.ties,
            "radius": claim.region.radius,
            "refuted": claim.refuted,
        },
        "proof": None,
    }
    if proof is not None:
        description["proof"] = {"kind": "enumeration"}
        if not proof.enumeration:
            description["proof"] = {
                "kind": "tree",
                "units": proof.units,
                "hidden": proof.hidden,
                "cases": [[case.competitor, case.first, case.last, [*map(list, case.weights)]] for case in proof.cases],
                "trusted": {str(node): name for node, name in proof.trusted.items()},
            }
            arrays |= {f"tree.{name}": getattr(proof.tree, name) for name in _TREE}
            arrays |= {f"multipliers.{name}": getattr(proof.multipliers, name) for name in _MULTIPLIERS}
            arrays["tighten"] = proof.tighten
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("certificate.json", json.dumps(description))
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, _small(array), allow_pickle=False)
                archive.writestr(f"{name}.npy", buffer.getvalue())
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CertificateError(f"can't write {target}: {error.strerror or error}") from error


def _small(array: IntegerArray) -> np.ndarray:
    """The same integers in the narrowest type."""
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    kind = next(
        kind for kind in (np.int8, np.int16, np.int32, np.int64) if np.iinfo(kind).min <= low <= high <= np.iinfo(kind).max
    )
    return np.ascontiguousarray(array, dtype=np.dtype(kind).newbyteorder("<"))


def load(path: str | os.PathLike[str]) -> Certificate:
    """Read a certificate. Safe on untrusted files: no pickle, bounded size, every index checked.

    Raises:
        CertificateError: not such a file, truncated, damaged, too large, or of another version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > SIZE_LIMIT:
                raise CertificateError(f"unpacks to more than {SIZE_LIMIT >> 30} GiB")
            return _certificate(json.loads(archive.read("certificate.json")), archive)
    except CertificateError as error:
        raise CertificateError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise CertificateError(f"{path}: no such file") from error
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError,
            RecursionError, NotImplementedError, RuntimeError, MemoryError, OverflowError, zlib.error, SyntaxError,
            tokenize.TokenError) as error:  # fmt: skip
        raise CertificateError(f"{path}: not a readable certificate ({type(error).__name__}: {error})") from error


def _certificate(description: Any, archive: zipfile.ZipFile) -> Certificate:
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CertificateError("not a certificate")
    if description["version"] != VERSION:
        raise CertificateError(f"written in certificate version {description['version']}, this is version {VERSION}")

    def array(name: str, axes: int | None = 1) -> IntegerArray:
        with archive.open(f"{name}.npy") as member:
            found = np.lib.format.read_array(member, allow_pickle=False)
        _require(found.dtype.kind == "i", f"{name} holds no signed integers")
        _require(axes is None or found.ndim == axes, f"{name} has {found.ndim} axes")
        return found.astype(np.int64)

    names = set(archive.namelist())
    network, claim, proof = description["network"], description["claim"], description["proof"]
    low, radius = array("region.low", None), claim["radius"]
    region = Region(low, low if radius is not None else array("region.high", None), _optional(radius, "radius"))
    _require(claim["kind"] in CLAIMS, f"an unknown claim '{claim['kind']}'")
    _require(claim["ties"] in TIES, f"an unknown rule for ties '{claim['ties']}'")
    return Certificate(
        _text(network["digest"]),
        _text(network["runtime_profile"]),
        Claim(
            claim["kind"],
            _integer(claim["label"], "label"),
            _optional(claim["target"], "target"),
            claim["ties"],
            region,
            _optional(claim["refuted"], "refuted radius"),
        ),
        array("counterexample", None) if "counterexample.npy" in names else None,
        None if proof is None else _proof(proof, array),
        dict(network["options"]),
        _text(description["qertify_version"]),
    )


def _proof(proof: Any, array: Callable[..., IntegerArray]) -> Proof:
    if proof["kind"] == "enumeration":
        return enumeration()
    _require(proof["kind"] == "tree", f"an unknown kind of proof '{proof['kind']}'")
    tree = Tree(*(array(f"tree.{name}") for name in _TREE))
    multipliers = Multipliers(*(array(f"multipliers.{name}") for name in _MULTIPLIERS))
    tighten = array("tighten", 2)
    cases = tuple(
        CaseClaim(
            _optional(competitor, "competitor"),
            _integer(first, "level"),
            _integer(last, "level"),
            tuple((_integer(index, "class"), _integer(weight, "weight")) for index, weight in weights),
        )
        for competitor, first, last, weights in proof["cases"]
    )
    trusted = {int(node): _text(name) for node, name in proof["trusted"].items()}
    units, hidden = _integer(proof["units"], "units"), _integer(proof["hidden"], "hidden units")
    nodes, rows = len(tree.parent), len(multipliers.bits)
    _require(all(len(getattr(tree, name)) == nodes for name in _TREE), "arrays of the tree differ in length")
    _require(bool(np.all((tree.parent >= -1) & (tree.parent < np.arange(nodes)))), "a node of the tree precedes its parent")
    _within(tree.case, 0, len(cases) - 1, "case")
    _within(tree.side, -1, 1, "side")
    _within(tree.unit[tree.side != 0], 0, units - 1, "unit")
    _within(tree.threshold, -(1 << 62), 1 << 62, "threshold")
    _within(tree.closed, SPLIT, TRUSTED, "closure")
    _require(tighten.shape[1] == 3, "tighten has no three columns")
    _within(tighten[:, 1], 0, units - 1, "unit")
    _require(bool(np.all(np.abs(tighten[:, 2]) == 1)), "a side of a root bound is neither −1 nor 1")
    _require(bool(np.all(np.diff(tighten[:, 0]) >= 0)), "rounds of root bounds are out of order")
    _require(
        rows == len(tighten) + int(np.count_nonzero(tree.closed == BOUND)), f"{rows} rows of multipliers don't fit the tree"
    )
    start = multipliers.start
    _require(len(start) == rows + 1 and int(start[0]) == 0, "multipliers don't start at 0")
    _require(bool(np.all(np.diff(start) >= 0)) and int(start[-1]) == len(multipliers.unit), "multipliers don't add up")
    _require(len(multipliers.unit) == len(multipliers.value), "multipliers and their units differ in number")
    _within(multipliers.unit, 0, units - 1, "unit")
    _within(multipliers.value, -(1 << 61), 1 << 61, "multiplier")
    _within(multipliers.bits, 0, 61, "scale")
    return Proof(False, units, hidden, tighten, cases, tree, multipliers, trusted)


def enumeration() -> Proof:
    """The proof that consists in looking at every point."""
    nothing = np.zeros(0, dtype=np.int64)
    tree = Tree(*[nothing] * len(_TREE))
    return Proof(
        True, 0, 0, np.zeros((0, 3), dtype=np.int64), (), tree, Multipliers(np.zeros(1, dtype=np.int64), *[nothing] * 3)
    )


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CertificateError(f"damaged: {what}")


def _within(values: IntegerArray, low: int, high: int, what: str) -> None:
    _require(not values.size or (int(values.min()) >= low and int(values.max()) <= high), f"a {what} outside {low} … {high}")


def _integer(value: Any, what: str) -> int:
    _require(type(value) is int and abs(value) < 1 << 61, f"{what} is no integer of 62 bits")
    return int(value)


def _optional(value: Any, what: str) -> int | None:
    return None if value is None else _integer(value, what)


def _text(value: Any) -> str:
    _require(isinstance(value, str), "a text is missing")
    return str(value)
