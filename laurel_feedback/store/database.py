"""The database: a SQLite file, or PostgreSQL by URL.

It is migrated when it is opened. Two kinds of transaction: reading and writing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.util
from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session

from laurel.core.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

MIGRATIONS = Path(__file__).with_name("migrations")
LOCK = 0x6C6175
"""PostgreSQL's advisory lock: "lau". Writers take turns, as they do on SQLite."""
BUSY_SECONDS, CONNECT_SECONDS = 30.0, 10
FILE_FIX = (
    "Name a database that laurel made, or a file that does not exist yet in a folder that can be"
    " written."
)
SERVER_FIX = "Is the server running, and are address, user and password right?"


class Store:
    """Transactions on a database. A commit is on disk before anybody is told.

    url: a path of a SQLite file, or an SQLAlchemy URL: sqlite:///FILE, postgresql://USER@HOST/NAME.
    now: the clock. Raises UsageError where there is no such database, or it is newer than this
    laurel.
    """

    def __init__(self, url: str, *, now: Callable[[], float] = time.time) -> None:
        self.now, self.lock = now, threading.Lock()
        self.url = url_of(url)
        self.engine = open_engine(self.url)
        migrate(self.engine)

    @property
    def sqlite(self) -> bool:
        """Is it a file?"""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads: it sees one state of the database and blocks nobody."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that writes: alone from its first statement to its commit, in all processes.

        An exception undoes it.
        """
        with (
            self._turn(),
            Session(
                self.engine.execution_options(laurel_write=True), expire_on_commit=False
            ) as session,
            session.begin(),
        ):
            if not self.sqlite:
                session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            yield session

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The lock file on which writers of a SQLite file queue.

        SQLite itself lets them sleep and try again, some of them for seconds.
        """
        if not self.sqlite or fcntl is None:
            yield
            return
        with self.lock, open(f"{self.engine.url.database}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def shown(self) -> str:
        """The address without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    def scrub(self) -> None:
        """Remove what was erased from the files of the database.

        From SQLite's log (as far as nobody reads there now), or from PostgreSQL's dead rows.
        """
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(
                "PRAGMA wal_checkpoint(TRUNCATE)" if self.sqlite else "VACUUM"
            )

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


def url_of(url: str) -> str:
    """A path becomes sqlite:///PATH; postgresql:// takes psycopg 3."""
    if "://" not in url:
        if odd := set(url) & set("?#%"):
            raise UsageError(
                f"a name with {' '.join(sorted(odd))} is not taken.",
                where=url,
                fix="Name the file otherwise.",
            )
        return f"sqlite:///{Path(url).expanduser()}"
    return url.replace("postgresql://", "postgresql+psycopg://", 1).replace(
        "postgres://", "postgresql+psycopg://", 1
    )


def open_engine(url: str) -> Engine:
    """An engine whose connections are set up.

    SQLite: write-ahead log, full synchronisation, foreign keys, patient writers.
    """
    where, sqlite = "database", url.startswith("sqlite")
    try:
        if sqlite:
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        wait = {"timeout": BUSY_SECONDS} if sqlite else {"connect_timeout": CONNECT_SECONDS}
        engine = create_engine(
            url, pool_pre_ping=not sqlite, connect_args=wait, hide_parameters=True
        )  # they are people's words
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        fix = "Give a path of a SQLite file, or postgresql://USER:PASSWORD@HOST/NAME."
        raise UsageError(
            f"this is not a database's address: {error}", where=where, fix=fix
        ) from error
    if sqlite:
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _: Any) -> None:
    """A new SQLite connection. Transactions are begun by `_begin`, not by the driver."""
    connection.isolation_level = None
    for line in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {line}")


def _begin(connection: Any) -> None:
    """A writer takes the lock at once: waiting for it later would end in "database is locked"."""
    writes = connection.get_execution_options().get("laurel_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def migrate(engine: Engine) -> None:
    """Bring the tables up to this version, one process at a time.

    A database made by a newer laurel is refused.
    """
    config, shown = alembic.config.Config(), engine.url.render_as_string(hide_password=True)
    config.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.execution_options(laurel_write=True).begin() as connection:
            if engine.dialect.name != "sqlite":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            known = inspect(connection).get_table_names()
            if known and "alembic_version" not in known:
                fix = "Give an empty database, or a file that does not exist yet."
                raise UsageError(
                    f"it holds tables of something else: {', '.join(known[:5])}.",
                    where=shown,
                    fix=fix,
                )
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
    except DBAPIError as error:
        fix = FILE_FIX if engine.dialect.name == "sqlite" else SERVER_FIX
        raise UsageError(
            f"the database cannot be used: {error.orig}", where=shown, fix=fix
        ) from error
    except alembic.util.CommandError as error:
        raise UsageError(
            f"a newer laurel made this database ({error}).", where=shown, fix="Update laurel."
        ) from error
