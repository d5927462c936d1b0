"""A real server in a process of its own, for tests with a real browser."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

from laurel_feedback.store.database import Store


def free_port():
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(folder, *options):
    """(store, address) of `laurel feedback serve` on a new database in the folder; stopped at the
    end.
    """
    port, database = free_port(), folder / "feedback.db"
    words = [
        sys.executable,
        "-m",
        "laurel",
        "feedback",
        "serve",
        "--database",
        str(database),
        "--port",
        str(port),
        *options,
    ]
    with open(folder / "server.log", "w+") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        store = Store(str(database))
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urlopen(f"{address}/", timeout=5).read()
                    break
                except URLError as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise AssertionError(f"the server does not answer: {log.read()}") from error
                    time.sleep(0.2)
            yield store, address
        finally:
            process.terminate()
            process.wait(30)
            store.close()
