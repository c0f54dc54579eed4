"""Verdicts on disk: what a judge was asked once, in any process and any run, it is not asked again; and how often it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

LOCK_LIMIT = 5.0  # seconds to wait for another process that writes; the runner ends a call after 10


@dataclass(frozen=True, slots=True)
class VerdictCache:
    """One SQLite file, which several processes of one machine may share.

    It is opened for each look, which costs a millisecond beside the seconds of a judge: so it holds nothing that could not
    go to another process or thread.

    Args:
        path: The file; made, with its folder, where there is none.

    Raises:
        ValueError: The file is no such cache, or cannot be written; so may every later look.
    """

    path: Path

    def __post_init__(self) -> None:
        import sqlite3

        with self._opened() as database:
            with suppress(
                sqlite3.OperationalError
            ):  # another process is just doing the same, and SQLite does not wait for it
                database.execute("PRAGMA journal_mode = WAL")  # so that who reads does not wait for who writes
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)")
            database.execute("CREATE TABLE IF NOT EXISTS calls (model TEXT PRIMARY KEY, number INTEGER NOT NULL)")
            database.execute("SELECT key, verdict, model, number FROM verdicts, calls LIMIT 1")

    def get(self, key: str) -> str | None:
        """Returns the verdict that was kept under a key, `None` if there is none."""
        with self._opened() as database:
            row = database.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, verdict: str) -> None:
        """Keeps a verdict; of two under the same key, the first."""
        with self._opened() as database:
            database.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", (key, verdict))

    def begin_call(self, model: str, limit: int) -> bool:
        """Counts a call of a model, unless `limit` calls have been counted; says whether it may be made."""
        with self._opened() as database:
            database.execute("INSERT OR IGNORE INTO calls VALUES (?, 0)", (model,))
            counting = "UPDATE calls SET number = number + 1 WHERE model = ? AND number < ?"
            return database.execute(counting, (model, limit)).rowcount == 1

    def take_back_call(self, model: str) -> None:
        """Takes back a call that came to nothing."""
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
            told = f"the judge's cache {str(self.path)!r} cannot be used ({error})"
            raise ValueError(f"{told}; give the path of a file of its own on a local disk, or of none yet") from error
