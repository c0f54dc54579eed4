"""Cache of verdicts on disk, shared by processes and runs, with the number of calls of each model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

LOCK_LIMIT = 5.0  # seconds to wait for another process that writes; the runner kills a call after 10


@dataclass(frozen=True, slots=True)
class VerdictCache:
    """A cache in one SQLite file, which several processes of one machine may share.

    The file is opened for each access, so that the object can go to any process or thread. That costs a millisecond, beside the
    seconds of a judge.

    Raises:
        ValueError: The file is no such cache, or cannot be written; also raised by every method.
    """

    path: Path
    """The file; created, with its folder, if it is missing."""

    def __post_init__(self) -> None:
        import sqlite3

        with self._opened() as database:
            with suppress(
                sqlite3.OperationalError
            ):  # another process does the same now, and SQLite does not wait for it
                database.execute("PRAGMA journal_mode = WAL")  # so that readers do not wait for writers
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)")
            database.execute("CREATE TABLE IF NOT EXISTS calls (model TEXT PRIMARY KEY, number INTEGER NOT NULL)")
            database.execute("SELECT key, verdict, model, number FROM verdicts, calls LIMIT 1")

    def get(self, key: str) -> str | None:
        """Returns the verdict of a key, or `None`."""
        with self._opened() as database:
            row = database.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, verdict: str) -> None:
        """Stores a verdict, unless its key has one."""
        with self._opened() as database:
            database.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", (key, verdict))

    def begin_call(self, model: str, limit: int) -> bool:
        """Counts a call of a model and returns True; returns False if `limit` calls have been counted."""
        with self._opened() as database:
            database.execute("INSERT OR IGNORE INTO calls VALUES (?, 0)", (model,))
            counting = "UPDATE calls SET number = number + 1 WHERE model = ? AND number < ?"
            return database.execute(counting, (model, limit)).rowcount == 1

    def take_back_call(self, model: str) -> None:
        """Uncounts a call that failed."""
        with self._opened() as database:
            database.execute("UPDATE calls SET number = number - 1 WHERE model = ?", (model,))

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        import sqlite3

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=LOCK_LIMIT)) as database, database:
                yield database
        except (OSError, sqlite3.Error) as error:
            message = f"the judge's cache {str(self.path)!r} cannot be used ({error})"
            raise ValueError(f"{message}; give the path of a new file, or of such a cache, on a local disk") from error
