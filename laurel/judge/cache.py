"""Answers that are kept: a SQLite file by content, so that no question is asked twice.

The key is a digest of all that an answer depends on: the model, the version of the prompt, the
whole request (texts, order, temperature) and its seed. Each answer is on disk before it counts, so
a killed run goes on where it was. Failures are not kept: they are asked again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

from laurel.core.errors import LaurelError

SECONDS = 60.0
"""That another process may hold the file."""


class Cache:
    """A file of answers; without a path they are kept in memory, for this process."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = ":memory:" if path is None else str(path)
        self.guard = threading.Lock()
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            self.base = sqlite3.connect(self.path, timeout=SECONDS, check_same_thread=False)
            self.base.execute("PRAGMA journal_mode=WAL")
            self.base.execute("CREATE TABLE IF NOT EXISTS answer (key TEXT PRIMARY KEY, body TEXT)")
            self.base.commit()
        except sqlite3.Error as error:
            raise self.problem(error) from None

    def get(self, key: str) -> Any:
        """The answer to this question, or None."""
        try:
            with self.guard:
                row = self.base.execute("SELECT body FROM answer WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self.problem(error) from None
        return None if row is None else json.loads(row[0])

    def put(self, key: str, body: Any) -> None:
        """Keep an answer; it is on disk when this returns."""
        text = json.dumps(body)  # ASCII: half a surrogate pair is no UTF-8
        try:
            with self.guard, self.base:
                self.base.execute("INSERT OR REPLACE INTO answer VALUES (?, ?)", (key, text))
        except sqlite3.Error as error:
            raise self.problem(error) from None

    def problem(self, error: sqlite3.Error) -> LaurelError:
        """What is wrong with the file."""
        fix = "Is it a cache of laurel's, and is there room on the disk?"
        return LaurelError(f"the cache cannot be used: {error}.", where=self.path, fix=fix)

    def close(self) -> None:
        """Close the file."""
        with self.guard:
            self.base.close()


def cache_key(**parts: Any) -> str:
    """The digest of all that an answer depends on."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
