"""Open domains of a campaign's long questions, in its results file: a campaign that is resumed goes on from them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

from qertify.campaign.store import Store, file_errors, transaction
from qertify.campaign.study import Task
from qertify.parallel.executor import Message
from qertify.search.journal import Handed

WAIT = 60.0
"""Seconds to wait while another thread writes."""


class StoreJournal:
    """As `qertify.search.journal.Journal`, for one question; of any thread, since it opens the file for itself.

    Raises:
        StoreError: the file can't be read or written; so do all methods.
    """

    budget = None

    def __init__(self, store: Store, task: Task) -> None:
        self._path, self._key = store.path, (task.position, task.radius or "", task.asked or "")

    def read(self, digest: str) -> list[Message]:
        with file_errors(self._path), closing(self._connect()) as connection:
            query = f"SELECT domains FROM pieces WHERE {_KEY} AND digest = ? ORDER BY number"
            return [json.loads(text) for (text,) in connection.execute(query, (*self._key, digest))]

    def write(self, digest: str, gone: Iterable[int] | None, new: Mapping[int, Message]) -> None:
        with file_errors(self._path, writing=True), closing(self._connect()) as connection, transaction(connection):
            connection.execute(f"DELETE FROM pieces WHERE {_KEY} AND digest <> ?", (*self._key, digest))
            if gone is None:
                connection.execute(f"DELETE FROM pieces WHERE {_KEY}", self._key)
            else:
                connection.executemany(f"DELETE FROM pieces WHERE {_KEY} AND number = ?", [(*self._key, item) for item in gone])
            rows = [(*self._key, number, digest, json.dumps(part)) for number, part in new.items()]
            connection.executemany("INSERT OR REPLACE INTO pieces VALUES (?, ?, ?, ?, ?, ?)", rows)

    def handed(self) -> dict[str, Any] | None:
        """What a worker needs to go on: {"digest", "parts"}; None if nothing is written down."""
        with file_errors(self._path), closing(self._connect()) as connection:
            rows = connection.execute(f"SELECT digest, number, domains FROM pieces WHERE {_KEY}", self._key).fetchall()
        return {"digest": rows[0][0], "parts": {number: json.loads(text) for _, number, text in rows}} if rows else None

    def take(self, handed: Handed) -> None:
        """Keep what a worker has handed in."""
        self.write(handed.digest, None, handed.parts)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None, timeout=WAIT)


_KEY = "position = ? AND radius = ? AND asked = ?"
