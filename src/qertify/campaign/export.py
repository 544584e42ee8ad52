"""A campaign's answers for other programs: CSV and Parquet as one flat table, JSON in full."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qertify.campaign.agreement import agreement
from qertify.campaign.store import Store
from qertify.campaign.summary import summarise
from qertify.errors import InvalidInputError, MissingExtraError, StoreError
from qertify.queries.radius_result import RealRadiusResult

Rows = list[dict[str, Any]]


def table(store: Store) -> Rows:
    """One row an answer. A radius search has no ``radius`` but ``verified_radius`` and ``refuted_radius``; one for real radii,
    whose ends these are rounded apart, also the exact ``verified_below`` and ``refuted_at``.
    """
    if store.campaign.comparison is not None:
        return _compared(store)
    points = {point.position: point for point in store.points()}
    rows: Rows = []
    for record in store.records():
        result, found = record.result, record.result.counterexample
        rows.append(
            _identity(points[record.position])
            | {
                "kind": "robustness",
                "radius": record.radius,
                "radius_unit": result.radius_unit,
                "verdict": result.verdict.value,
                "reason": None if result.reason is None else result.reason.value,
                "evidence": None if result.evidence is None else result.evidence.value,
                "verified_radius": None,
                "refuted_radius": None,
                "verified_below": None,
                "refuted_at": None,
                "method": result.method,
                "nodes": result.nodes,
                "seconds": result.seconds,
                "implied_by": record.implied_by,
                "attempts": record.attempts,
                "bound_reached": result.bound_reached,
                "nearest_class": result.nearest_class,
                "counterexample_class": None if found is None else found.predicted,
                "counterexample_distance": None if found is None else found.distance,
                "replayed_on": None if found is None else found.replayed_on,
            }
        )
    for search in store.searches():
        result, found = search.result, search.result.counterexample
        rows.append(
            _identity(points[search.position])
            | {
                "kind": "radius",
                "radius": None,
                "radius_unit": result.radius_unit,
                "verdict": "exact" if result.exact else "interval",
                "reason": None if result.reason is None else result.reason.value,
                "evidence": None,
                "verified_radius": result.verified_radius,
                "refuted_radius": result.refuted_radius,
                "verified_below": result.verified_below if isinstance(result, RealRadiusResult) else None,
                "refuted_at": result.refuted_at if isinstance(result, RealRadiusResult) else None,
                "method": result.method,
                "nodes": result.nodes,
                "seconds": result.seconds,
                "implied_by": None,
                "attempts": search.attempts,
                "bound_reached": None,
                "nearest_class": None,
                "counterexample_class": None if found is None else found.predicted,
                "counterexample_distance": None if found is None else found.distance,
                "replayed_on": None if found is None else found.replayed_on,
            }
        )
    return rows


def _compared(store: Store) -> Rows:
    """Of two models: ``label`` is the original's class, ``predicted`` the quantized one's."""
    points = {point.position: point for point in store.points()}
    rows: Rows = []
    for record in store.compared():
        result, found = record.result, record.result.counterexample
        rows.append(
            _identity(points[record.position])
            | {
                "kind": result.question,
                "radius": record.radius,
                "radius_unit": store.campaign.radius_unit,
                "delta": result.delta,
                "verdict": result.verdict.value,
                "reason": None if result.reason is None else result.reason.value,
                "evidence": None if result.evidence is None else result.evidence.value,
                "attained": None if result.max_delta is None else result.max_delta[0],
                "proved": None if result.max_delta is None else result.max_delta[1],
                "method": result.method,
                "nodes": result.nodes,
                "seconds": result.seconds,
                "implied_by": None if record.implied_by is None else ", ".join(record.implied_by),
                "attempts": record.attempts,
                "counterexample_difference": None if found is None else found.difference,
                "counterexample_output": None if found is None else found.output,
                "counterexample_classes": None if found is None else f"{found.original_predicted} {found.quantized_predicted}",
                "replayed_on": None if found is None else found.replayed_on,
            }
        )
    return rows


def export(store: Store, path: Path) -> int:
    """Write a store's answers to a .csv, .parquet or .json file; returns their number.

    Raises:
        InvalidInputError: another suffix.
        MissingExtraError: Parquet without its library.
        StoreError: a damaged store, or a file that can't be written, which is then left as it was.
    """
    writer = _WRITERS.get(path.suffix)
    if writer is None:
        raise InvalidInputError(f"--out {path}: the file's name must end with {', '.join(_WRITERS)}")
    rows = table(store)
    replace_file(path, lambda temporary: writer(temporary, rows, store))
    return len(rows)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside a file, then take its place, so that it is never seen half written.

    Raises:
        StoreError: the system's reason.
    """
    temporary = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        write(temporary)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: can't be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _identity(point: Any) -> dict[str, Any]:
    return {
        "position": point.position,
        "row": point.row,
        "sha256": point.sha256,
        "label": point.label,
        "predicted": point.predicted,
    }


def _write_csv(path: Path, rows: Rows, _: Store) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["position"])
        writer.writeheader()
        writer.writerows(rows)


def _write_json(path: Path, _: Rows, store: Store) -> None:
    pair = store.campaign.comparison is not None
    answers = [
        {"position": r.position, "radius": r.radius, "implied_by": r.implied_by, "attempts": r.attempts, **r.result.to_json()}
        for r in (store.compared() if pair else store.records())
    ]
    searches = [{"position": s.position, "attempts": s.attempts, **s.result.to_json()} for s in store.searches()]
    inputs = [_identity(point) | {"outputs": list(point.outputs)} for point in store.points()]
    data = {
        "campaign": asdict(store.campaign),
        "summary": (agreement(store) if pair else summarise(store)).to_json(),
        "inputs": inputs,
        "results": answers,
        "searches": searches,
    }
    path.write_text(json.dumps(data, allow_nan=False) + "\n", encoding="utf-8")


def _write_parquet(path: Path, rows: Rows, _: Store) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("writing Parquet files", "export") from error
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


_WRITERS: dict[str, Callable[[Path, Rows, Store], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".json": _write_json,
}
