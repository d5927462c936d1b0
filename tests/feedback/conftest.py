"""Databases for the tests of people's feedback: a SQLite file for each test, and a PostgreSQL
server where one is installed.
"""

import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from feedback_server import free_port
from sqlalchemy import create_engine

from laurel_feedback.store import accounts
from laurel_feedback.store.database import Store, url_of


class Clock:
    """A clock that is set."""

    def __init__(self):
        self.time = 1_000_000.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def dear_passwords():
    """This test's passwords are hashed as the product does it, at a fifth of a second each."""


@pytest.fixture(autouse=True)
def cheap_passwords(request, monkeypatch):
    """Everybody else's, by the same algorithm at the least cost: a coordinator logs in in half of
    all tests.
    """
    if "dear_passwords" not in request.fixturenames:
        monkeypatch.setattr(accounts, "HASHER", CHEAP)


@pytest.fixture(scope="session")
def postgres():
    """The address of a PostgreSQL server of the tests' own, started for them and stopped after;
    skips where none is installed.
    """
    programs = [
        shutil.which("initdb"),
        *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))),
    ]
    initdb = next((path for path in programs[::-1] if path), None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (no initdb)")
    bin_, folder = Path(initdb).resolve().parent, Path(tempfile.mkdtemp(prefix="laurel-postgres-"))
    user = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres")
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    port = free_port()

    def call(program, *words):
        subprocess.run(
            [*user, str(bin_ / program), *words],
            check=True,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    call("initdb", "-D", str(folder / "data"), "-U", "postgres", "--auth=trust", "--no-sync")
    options = (
        f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    )
    call(
        "pg_ctl",
        "-D",
        str(folder / "data"),
        "-o",
        options,
        "-w",
        "-l",
        str(folder / "log"),
        "start",
    )
    yield f"postgresql://postgres@127.0.0.1:{port}"
    call("pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "-w", "stop")
    subprocess.Popen(
        ["rm", "-rf", str(folder)], start_new_session=True
    )  # a hundred thousand files: nobody need wait for that


def fresh(postgres):
    """A new database on the server; its address."""
    name = f"t{uuid.uuid4().hex[:12]}"
    engine = create_engine(url_of(f"{postgres}/postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return f"{postgres}/{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The address of an empty database, of both kinds."""
    return (
        str(tmp_path / "feedback.db")
        if request.param == "sqlite"
        else fresh(request.getfixturevalue("postgres"))
    )


@pytest.fixture
def store(url, clock):
    """A store on an empty database, with a clock that is set."""
    made = Store(url, now=clock)
    yield made
    made.close()
