"""The results file of a campaign: SQLite with a write-ahead log, one transaction a result.

A process may die at any moment: what was added stays, and what was being added is either there in full or not at all.
Provenance and the inputs are written once, when the file is created, and never change.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from math import prod
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from qertify.campaign.records import Campaign, Compared, Comparison, Point, Record, Search
from qertify.errors import StoreError
from qertify.queries.equivalence_result import EquivalenceResult
from qertify.queries.radius_result import radius_result
from qertify.result import Result

SCHEMA_VERSION, FIRST_VERSION = 3, 1
"""Of the files that are written, and the oldest that can be read, and then continued: it knows no comparisons.

Version 2 searches for radii in levels only, whatever the unit of the others.
"""
APPLICATION_ID = 0x71657274
"""Says in the file's header that it is one of ours: "qert"."""
TABLES = """
CREATE TABLE campaign (data TEXT NOT NULL);
CREATE TABLE points (position INTEGER PRIMARY KEY, row INTEGER NOT NULL, sha256 TEXT NOT NULL, label INTEGER NOT NULL,
  predicted INTEGER NOT NULL, outputs TEXT NOT NULL, codes BLOB NOT NULL);
CREATE TABLE results (position INTEGER NOT NULL REFERENCES points, radius TEXT NOT NULL, verdict TEXT NOT NULL, reason TEXT,
  seconds REAL NOT NULL, implied_by TEXT, attempts INTEGER NOT NULL, result TEXT NOT NULL, PRIMARY KEY (position, radius));
CREATE TABLE searches (position INTEGER PRIMARY KEY REFERENCES points, verified INTEGER, refuted INTEGER,
  exact INTEGER NOT NULL, seconds REAL NOT NULL, attempts INTEGER NOT NULL, result TEXT NOT NULL);
"""
LATER_TABLES = """
CREATE TABLE IF NOT EXISTS comparisons (position INTEGER NOT NULL REFERENCES points, radius TEXT NOT NULL,
  asked TEXT NOT NULL, verdict TEXT NOT NULL, reason TEXT, seconds REAL NOT NULL, implied_by TEXT, attempts INTEGER NOT NULL,
  result TEXT NOT NULL, PRIMARY KEY (position, radius, asked));
CREATE TABLE IF NOT EXISTS pieces (position INTEGER NOT NULL REFERENCES points, radius TEXT NOT NULL, asked TEXT NOT NULL,
  number INTEGER NOT NULL, digest TEXT NOT NULL, domains TEXT NOT NULL, PRIMARY KEY (position, radius, asked, number));
"""


@dataclass(slots=True, eq=False)
class Store:
    """An open results file; made by `create_store` and `open_store`. Use as a context manager."""

    path: Path
    connection: sqlite3.Connection
    campaign: Campaign
    lock: IO[bytes] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Fold the log into the file if this was the writer."""
        with suppress(sqlite3.Error):  # on a full disk the log stays, and stays valid
            if self.lock is not None:
                self.connection.execute("PRAGMA journal_mode = DELETE")
        self.connection.close()
        if self.lock is not None:
            self.lock.close()

    def add(self, records: Sequence[Record]) -> None:
        """Add an answer and those that it implies: all or none; open domains of these questions are forgotten.

        Raises:
            StoreError: the disk is full, or an answer is there already.
        """
        rows = [
            (r.position, r.radius, r.result.verdict.value, None if r.result.reason is None else r.result.reason.value,
             r.result.seconds, r.implied_by, r.attempts, json.dumps(r.result.to_json(), allow_nan=False))
            for r in records
        ]  # fmt: skip
        with file_errors(self.path, writing=True), transaction(self.connection):
            self._forget_pieces([(r.position, r.radius, "") for r in records])
            self.connection.executemany("INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _forget_pieces(self, keys: Iterable[tuple[int, str, str]]) -> None:
        self.connection.executemany("DELETE FROM pieces WHERE position = ? AND radius = ? AND asked = ?", keys)

    def add_search(self, search: Search) -> None:
        """Add the answer of a radius search.

        Raises:
            StoreError: as `add`.
        """
        result = search.result
        row = (search.position, result.verified_radius, result.refuted_radius, result.exact, result.seconds, search.attempts,
               json.dumps(result.to_json(), allow_nan=False))  # fmt: skip
        with file_errors(self.path, writing=True), transaction(self.connection):
            self.connection.execute("INSERT INTO searches VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def add_compared(self, records: Iterable[Compared]) -> None:
        """Add an answer about two models and those that it implies: all or none.

        Raises:
            StoreError: as `add`.
        """
        rows = [
            (r.position, r.radius, r.asked, r.result.verdict.value, None if r.result.reason is None else r.result.reason.value,
             r.result.seconds, None if r.implied_by is None else json.dumps(r.implied_by), r.attempts,
             json.dumps(r.result.to_json(), allow_nan=False))
            for r in records
        ]  # fmt: skip
        with file_errors(self.path, writing=True), transaction(self.connection):
            self.connection.executemany("INSERT INTO comparisons VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def points(self) -> Iterator[Point]:
        """All inputs, in order.

        Raises:
            StoreError: a damaged row; so for the other readers below.
        """
        shape = self.campaign.input_shape
        query = "SELECT position, row, sha256, label, predicted, outputs, codes FROM points ORDER BY position"
        for position, row, sha256, label, predicted, outputs, codes in self._rows(query):
            with file_errors(self.path):
                array = np.frombuffer(_inflate(codes, 8 * prod(shape)), dtype="<i8").astype(np.int64).reshape(shape)
                point = Point(position, row, label, predicted, array, tuple(json.loads(outputs)))
                if point.sha256 != sha256:
                    raise ValueError(f"input {position} is not what its checksum says")
            yield point

    def records(self) -> Iterator[Record]:
        """All answers, by input."""
        query = "SELECT position, radius, implied_by, attempts, verdict, result FROM results ORDER BY position, rowid"
        for position, radius, implied_by, attempts, verdict, text in self._rows(query):
            with file_errors(self.path):
                result = Result.from_json(json.loads(text))
                if result.verdict.value != verdict or result.radius != radius:
                    raise ValueError(f"the answer for input {position}, radius {radius} contradicts itself")
                record = Record(position, radius, result, implied_by, attempts)
            yield record

    def searches(self) -> Iterator[Search]:
        """All answers of radius searches, by input."""
        for position, attempts, text in self._rows("SELECT position, attempts, result FROM searches ORDER BY position"):
            with file_errors(self.path):
                search = Search(position, radius_result(json.loads(text)), attempts)
            yield search

    def compared(self) -> Iterator[Compared]:
        """All answers about two models, by input."""
        if self.campaign.comparison is None:
            return
        query = (
            "SELECT position, radius, asked, implied_by, attempts, verdict, result FROM comparisons ORDER BY position, rowid"
        )
        for position, radius, asked, implied_by, attempts, verdict, text in self._rows(query):
            with file_errors(self.path):
                result = EquivalenceResult.from_json(json.loads(text))
                if result.verdict.value != verdict or asked != (result.delta or result.question):
                    raise ValueError(f"the answer for input {position}, radius {radius}, '{asked}' contradicts itself")
                source: Any = None if implied_by is None else tuple(json.loads(implied_by))
                record = Compared(position, radius, asked, result, source, attempts)
            yield record

    def answered(self) -> dict[int, set[str]]:
        """Position → the radii that have an answer."""
        found: dict[int, set[str]] = {}
        for position, radius in self._rows("SELECT position, radius FROM results"):
            found.setdefault(position, set()).add(radius)
        return found

    def _rows(self, query: str) -> list[Any]:
        with file_errors(self.path):
            return self.connection.execute(query).fetchall()


def create_store(path: Path, campaign: Campaign, points: Iterable[Point]) -> Store:
    """A new results file, locked for this process.

    Raises:
        StoreError: there is one already, or it can't be written.
    """
    if path.exists() and not _is_blank(path):
        raise StoreError(f"{path}: exists already; --resume continues it")
    with file_errors(path, writing=True):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            store = Store(path, connection, campaign, _lock(path))
            _write_ahead(connection)
            with transaction(connection):
                _make(connection, TABLES)
                _make(connection, LATER_TABLES)
                connection.execute("INSERT INTO campaign VALUES (?)", (json.dumps(asdict(campaign)),))
                connection.executemany("INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?)", map(_point_row, points))
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except BaseException:
            connection.close()
            raise
    return store


def open_store(path: Path, *, writing: bool = False) -> Store:
    """An existing results file; ``writing`` locks it for this process.

    Raises:
        StoreError: missing, not a results file, damaged, of another schema version, or locked by a running campaign.
    """
    store = _open(path, writing)
    if writing:
        with file_errors(path, writing=True):
            _prepare(store.connection)
    return store


def _open(path: Path, writing: bool) -> Store:
    """As `open_store`, without a change to the file."""
    if not path.is_file():
        raise StoreError(f"{path}: no such file")
    with file_errors(path):
        lock = _lock(path) if writing else None
        left = path.with_name(f"{path.name}-journal").exists()  # by a kill: only a connection that may write can roll it back
        mode = "rw" if writing or left else "ro"
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
        try:
            (application,), (version,) = (
                connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
            )
            if application != APPLICATION_ID:
                raise StoreError(f"{path}: an SQLite file, but not of a campaign")
            if not FIRST_VERSION <= version <= SCHEMA_VERSION:
                raise StoreError(f"{path}: schema version {version}; this version of qertify reads up to {SCHEMA_VERSION}")
            if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise ValueError(" ".join(str(found).split()))
            data = json.loads(connection.execute("SELECT data FROM campaign").fetchone()[0])
            return Store(path, connection, _campaign(data), lock)
        except BaseException:
            connection.close()
            raise


def resume_store(path: Path, campaign: Campaign, points: list[Point]) -> Store:
    """The results file of the same campaign, or a new one if there is none yet.

    Raises:
        StoreError: a file that can't be used, or the file of another campaign.
    """
    if not path.exists() or _is_blank(path):
        return create_store(path, campaign, points)
    store = _open(path, writing=True)
    try:
        differences = store.campaign.differences(campaign)
        stored = [(point.sha256, point.label) for point in store.points()]
        if stored != [(point.sha256, point.label) for point in points]:
            differences.append("other inputs or labels")
        if any(search.result.radius_unit != store.campaign.radius_unit for search in store.searches()):
            differences.append("a radius search in another unit")
        if differences:
            raise StoreError(f"{path}: holds another campaign: {', '.join(differences)}; nothing was changed")
        with file_errors(path, writing=True):
            _prepare(store.connection)
    except BaseException:
        store.close()
        raise
    return store


def _prepare(connection: sqlite3.Connection) -> None:
    """Make an existing file one of this version, to be written."""
    _write_ahead(connection)
    with transaction(connection):
        _make(connection, LATER_TABLES)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _make(connection: sqlite3.Connection, tables: str) -> None:
    for statement in tables.split(";\n"):
        connection.execute(statement)


def _write_ahead(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _is_blank(path: Path) -> bool:
    """Whether a campaign was killed between creating its file and filling it."""
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    except sqlite3.Error:
        return False


def _point_row(point: Point) -> tuple[Any, ...]:
    codes = zlib.compress(point.codes.astype("<i8").tobytes())
    return point.position, point.row, point.sha256, point.label, point.predicted, json.dumps(point.outputs), codes


def _inflate(data: bytes, size: int) -> bytes:
    """Unpack exactly ``size`` bytes; a hostile file gets no more memory than that."""
    found = zlib.decompressobj().decompress(data, size + 1)
    if len(found) != size:
        raise ValueError("an input has another size than the campaign says")
    return found


def _campaign(data: dict[str, Any]) -> Campaign:
    data = {"comparison": None} | data  # which files of the first version lack
    if set(data) != {item.name for item in fields(Campaign)}:
        raise ValueError("its description is incomplete")
    known = _tuples(data)
    if (comparison := known["comparison"]) is not None:
        known["comparison"] = Comparison(**_tuples(comparison))
    return Campaign(**known)


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _lock(path: Path) -> IO[bytes] | None:
    """Keep other campaigns out until the file is closed or the process dies.

    Raises:
        StoreError: another process holds it.
    """
    file = path.open("ab")
    try:
        import fcntl
    except ImportError:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StoreError(f"{path}: another campaign is writing to it") from error
    return file


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextmanager
def file_errors(path: Path, *, writing: bool = False) -> Generator[None]:
    """Every failure of the file as one error."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if writing and not isinstance(error, sqlite3.IntegrityError):
            raise StoreError(f"{path}: can't be written ({error}); what is stored so far stays valid") from error
        raise StoreError(f"{path}: damaged, or not a results file ({error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise StoreError(f"{path}: damaged: {error}") from error
