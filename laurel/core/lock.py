"""One writer per folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from laurel.core.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: only two runs of one process are kept apart
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system without locks answers (some network disks): then nobody is kept out."""

_held: set[str] = set()


class Lock:
    """`folder` belongs to this process until `release`, or until the process ends.

    UsageError, naming the holder, if it is taken. A record lock of the system on `folder/.lock`: it
    goes with the process (kill -9 and power cuts included), and children that are forked do not
    inherit it, so a worker that outlives its parent keeps nobody out. Within a process the system
    does not tell two holders apart; `_held` does.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder).resolve() / NAME
        self.handle = -1
        if str(self.path) in _held:
            raise _folder_taken_error(folder, "this very process")
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            if fcntl is not None:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                who = os.read(handle, 200).decode("utf-8", "replace").strip() or "another process"
                os.close(handle)
                raise _folder_taken_error(folder, who) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self.handle = handle
        _held.add(str(self.path))

    def release(self) -> None:
        """Let others in. A second release does nothing."""
        if self.handle >= 0:
            _held.discard(str(self.path))
            os.close(self.handle)
            self.handle = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def _folder_taken_error(folder: str | Path, who: str) -> UsageError:
    fix = "Wait for it or stop it, or name another --output_dir."
    return UsageError(f"{who} is writing to this folder.", where=f"output_dir {folder}", fix=fix)
