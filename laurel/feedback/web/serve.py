"""The server: uvicorn with one or more processes, each of which makes the application for itself."""

from __future__ import annotations

import ipaddress
import os

import uvicorn
from sqlalchemy import func, select
from starlette.applications import Starlette

from laurel.core.errors import UsageError
from laurel.feedback.store import Store
from laurel.feedback.tables import Admin
from laurel.feedback.web.app import create_app

DATABASE, PUBLIC_URL = "LAUREL_FEEDBACK_DATABASE", "LAUREL_FEEDBACK_PUBLIC_URL"
"""How the processes learn what they serve."""


def made() -> Starlette:
    """The application of this process."""
    return create_app(Store(os.environ[DATABASE]), public_url=os.environ[PUBLIC_URL])


def serve(store: Store, host: str, port: int, workers: int, public_url: str, *, say: str = "") -> None:
    """Serve until interrupted; `say` is printed before. An address that others reach is refused while no coordinator has a password."""
    if workers < 1:
        raise UsageError("there is at least one process.", where="--workers")
    if not 0 < port < 65536:
        raise UsageError(f"{port} is no port.", where="--port", fix="Take one from 1024 to 65535.")
    with store.read() as session:
        admins = session.scalar(select(func.count()).select_from(Admin)) or 0
    if not is_loopback(host) and not admins:
        fix = "Make a coordinator first: laurel feedback admin NAME. Or serve on 127.0.0.1."
        raise UsageError(f"{host} can be reached from outside, and no coordinator has a password.", where="--host", fix=fix)
    os.environ[DATABASE], os.environ[PUBLIC_URL] = store.url, public_url
    create_app(store, public_url=public_url)  # a wrong address is told before anything is served
    store.close()
    print(say, flush=True)
    uvicorn.run(
        "laurel.feedback.web.serve:made", factory=True, host=host, port=port, workers=workers, log_level="warning", server_header=False
    )


def is_loopback(host: str) -> bool:
    """Does only this machine reach it?"""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
