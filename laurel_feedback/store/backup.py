"""A copy of the whole database while it is in use, opened and counted before it is done."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from sqlalchemy import func, select, text
from sqlalchemy.engine import make_url

from laurel.core.errors import LaurelError, UsageError
from laurel_feedback.store.audit import record
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Base


def backup(store: Store, out: str | Path, *, actor: str = "operator") -> dict[str, int]:
    """Write a copy to a file that does not exist yet.

    Rows of each table, which were read back from it.

    SQLite: a database of its own (VACUUM INTO). PostgreSQL: an archive of pg_dump, for pg_restore.
    Writers wait while it is made, so that the counts are of one moment. A copy that differs is
    taken away, and that is an error.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UsageError(
            "there is something of this name already.", where=str(out), fix="Name another file."
        )
    if not out.parent.is_dir():
        raise UsageError("no such folder.", where=str(out.parent), fix="Make it first.")
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        counts, found = (_sqlite if store.sqlite else _postgres)(store, draft)
        if found != counts:
            wrong = ", ".join(
                f"{name} {found.get(name)} of {count}"
                for name, count in counts.items()
                if found.get(name) != count
            )
            raise LaurelError(
                f"the copy is not whole: {wrong}.",
                where=str(out),
                fix="Is the disk full? Try again.",
            )
        _flush_to_disk(draft)
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    with store.write() as session:
        record(session, actor, "backup", out.name, store.now(), rows=sum(counts.values()))
    return counts


def count_rows(store: Store) -> dict[str, int]:
    """Rows of every table."""
    with store.read() as session:
        return {
            table.name: session.scalar(select(func.count()).select_from(table)) or 0
            for table in Base.metadata.sorted_tables
        }


def _sqlite(store: Store, draft: Path) -> tuple[dict[str, int], dict[str, int]]:
    """(rows before, rows in the copy). No writer comes between counting and copying."""
    with store.engine.connect() as connection, store.write():
        counts = count_rows(store)
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.execute("VACUUM INTO ?", (str(draft),))
    copy = Store(str(draft))
    try:
        with copy.read() as session:
            if (outcome := session.scalar(text("PRAGMA integrity_check"))) != "ok":
                raise LaurelError(f"the copy is damaged: {outcome}.", where=str(draft))
            session.execute(text("PRAGMA foreign_key_check")).all()
        found = count_rows(copy)
        with copy.engine.connect() as connection:  # one file, without a log beside it
            connection.connection.driver_connection.execute("PRAGMA journal_mode=DELETE")  # type: ignore[union-attr]
        return counts, found
    finally:
        copy.close()
        for suffix in ("-wal", "-shm"):
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)


def _postgres(store: Store, draft: Path) -> tuple[dict[str, int], dict[str, int]]:
    """(rows before, rows in the archive): the archive is read back in whole, table by table."""
    url = make_url(store.url).set(drivername="postgresql")
    secret = {"PGPASSWORD": url.password} if url.password else {}
    with store.write():
        counts = count_rows(store)
        plain = url.set(password=None).render_as_string()
        _run_program(["pg_dump", "--format=custom", "--no-owner", f"--file={draft}", plain], secret)
    script = _run_program(["pg_restore", "--data-only", "--file=-", str(draft)], {})
    found, table = dict.fromkeys(counts, 0), ""
    for line in script.splitlines():
        if table:
            if line == "\\.":
                table = ""
            elif table in found:
                found[table] += 1
        elif copying := re.match(r'COPY (?:\w+\.)?"?(\w+)"? ', line):
            table = copying[1]
    return counts, found


def _run_program(words: list[str], environment: dict[str, str]) -> str:
    """Run a program of PostgreSQL; what it prints."""
    found = shutil.which(words[0]) or next(
        map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{words[0]}"), reverse=True)), ""
    )
    if not found:
        raise LaurelError(
            f"`{words[0]}` is not installed.",
            where="backup",
            fix="Install PostgreSQL's client programs.",
        )
    done = subprocess.run(
        [found, *words[1:]],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        raise LaurelError(
            f"{words[0]} failed: {' '.join(done.stderr.split())[:300]}", where="backup"
        )
    return done.stdout


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
