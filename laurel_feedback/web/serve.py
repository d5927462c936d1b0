"""The server: uvicorn with one or more processes, each with an application of its own."""

from __future__ import annotations

import errno
import ipaddress
import multiprocessing.connection
import os
import signal
import socket
import threading
from collections.abc import Sequence

import uvicorn
from sqlalchemy import func, select
from starlette.applications import Starlette

from laurel.core.errors import UsageError
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Admin
from laurel_feedback.web.app import address_of, create_app
from laurel_feedback.web.connections import BACKLOG, limit_logs

DATABASE, PUBLIC_URL = "LAUREL_FEEDBACK_DATABASE", "LAUREL_FEEDBACK_PUBLIC_URL"
"""How the processes learn what they serve."""


def make_worker_app() -> Starlette:
    """The application of this process.

    It ends with the process that began it, however that ended.
    """
    limit_logs()
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()
    return create_app(Store(os.environ[DATABASE]), public_url=os.environ[PUBLIC_URL])


def end_with(sentinel: int) -> None:
    """End this process when another one ends: a worker without its parent would keep the port."""
    multiprocessing.connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def serve(
    store: Store,
    host: str,
    port: int,
    workers: int,
    public_url: str,
    *,
    say: str = "",
    proxies: Sequence[str] = (),
) -> None:
    """Serve until interrupted; `say` is printed before, once `check` has nothing against it.

    proxies: addresses or networks that may say whom they ask for (X-Forwarded-For); this machine's
    own are always among them.
    """
    check(store, host, port, workers, public_url)
    for proxy in proxies:
        check_proxy(proxy)
    os.environ[DATABASE], os.environ[PUBLIC_URL] = store.url, public_url
    store.close()
    print(say, flush=True)
    uvicorn.run(
        f"laurel_feedback.web.serve:{make_worker_app.__name__}",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        log_level="warning",
        server_header=False,
        forwarded_allow_ips=["127.0.0.1", "::1", *proxies],
        http="laurel_feedback.web.connections:LimitedProtocol",
        backlog=BACKLOG,
    )


def check(
    store: Store, host: str, port: int, workers: int, public_url: str, *, demo: bool = False
) -> None:
    """Raise UsageError where the pages cannot be served.

    A wrong address, a port in use, or nobody with a password at an address that others reach.

    demo: a coordinator is about to be made.
    """
    if workers < 1:
        raise UsageError("there is at least one process.", where="--workers")
    if not 0 < port < 65536:
        raise UsageError(f"{port} is no port.", where="--port", fix="Take one from 1024 to 65535.")
    with store.read() as session:
        admins = session.scalar(select(func.count()).select_from(Admin)) or 0
    if not is_loopback(host) and not admins and not demo:
        fix = "Make a coordinator first: laurel feedback admin NAME. Or serve on 127.0.0.1."
        raise UsageError(
            f"{host} can be reached from outside, and no coordinator has a password.",
            where="--host",
            fix=fix,
        )
    address_of(public_url)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as the server does: one that has just ended is not in the way
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        number, message = (
            getattr(error, "errno", 0),
            getattr(error, "strerror", "") or "no host has such a name",
        )
        if number == errno.EADDRINUSE:
            fix = "Another program listens there: end it, or take another --port."
        elif number == errno.EACCES:
            fix = "Take a --port from 1024 to 65535."
        else:
            fix = "Give --host an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them."
        raise UsageError(
            f"{host}, port {port}, cannot be listened on: {message}.",
            where="laurel feedback serve",
            fix=fix,
        ) from error


def check_proxy(proxy: str) -> None:
    """UsageError for what is no address and no network."""
    try:
        ipaddress.ip_network(proxy)
    except ValueError as error:
        fix = "Give an address such as 10.0.0.5, or a network such as 172.16.0.0/12."
        raise UsageError(
            f"`{proxy}` is no address: {error}.", where="--trusted-proxy", fix=fix
        ) from error


def is_loopback(host: str) -> bool:
    """Does only this machine reach it?"""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
