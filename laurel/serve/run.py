"""The server as a process: until SIGTERM or SIGINT, and what runs then is answered first."""

from __future__ import annotations

import signal
import socket
import sys
from typing import Any

import uvicorn

SWITCH = 0.0005
"""Seconds after which a thread hands over: sampling and answering share one interpreter."""

BACKLOG = 1024
"""Connections that may wait to be taken."""


def serve(app: Any, listening: socket.socket, seconds: float) -> None:
    """The application on a socket; at the end requests have so many seconds."""
    sys.setswitchinterval(SWITCH)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal once more when all is answered: that was an end as asked for
        signal.signal(number, lambda *_: None)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=max(1, int(seconds)),
        backlog=BACKLOG,
    )
    uvicorn.Server(settings).run([listening])
