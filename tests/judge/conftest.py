"""What the tests of judges have in common."""

import pytest
from judge_server import Scripted

from laurel.core import http
from laurel.judge.options import make_judge


@pytest.fixture
def hasty(monkeypatch):
    """Short pauses between tries."""
    monkeypatch.setattr(http, "PAUSES", (0.02, 0.05))


@pytest.fixture
def server(hasty):
    """The scripted judge; `server.fault` makes it misbehave."""
    with Scripted() as found:
        yield found


@pytest.fixture
def config(server):
    """`config(form="score")`: the options of a judge on it."""

    def make(**more):
        base = {"model": "m", "url": server.url, "timeout": 0.3, "retries": 1, "patience": 1.0}
        return make_judge({**base, **more}, "test")

    return make
