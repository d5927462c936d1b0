"""Killable workers: call a trusted function on untrusted input with a deadline.

The deadline holds even inside C code. Each slot of the pool is a small keeper process that imports
the function once and never runs it on input itself. It forks a child that does, and kills the child
when a call is late. A keeper has one thread, so its forks are safe however many threads (torch's,
say) the caller has; the caller never forks.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from laurel.core.errors import LaurelError
from laurel.core.result import Failed

START_SECONDS = 60.0
GRACE_SECONDS = 5.0
VALUE, RAISED, LATE, DIED = b"v", b"r", b"t", b"d"


class Workers:
    """A pool of killable processes for one function `(payload) -> value`.

    Both are picklable, and the function can be imported by name. `call` returns the value, or
    `Failed(reason)`: the function raised (the reason holds the traceback), took longer than
    `seconds` (its process is killed and replaced) or died. It never hangs: a call takes at most its
    deadline and 5 s, plus the wait for a free slot. warm: a payload that each keeper evaluates once
    on starting, to fill caches. recycle: calls after which a child is replaced. memory_mb: address
    space of a child. Nothing starts before the first call; a fork of this process starts its own.
    Children die with the keeper and keepers with this process.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        size: int = 2,
        seconds: float = 2.0,
        recycle: int = 500,
        memory_mb: int = 2048,
        warm: Any = None,
    ) -> None:
        self.function, self.size, self.seconds = function, size, seconds
        self._settings = {
            "function": (function.__module__, function.__qualname__),
            "recycle": recycle,
            "memory_mb": memory_mb,
            "warm": warm,
        }
        self._lock = threading.Lock()
        self._pid = 0
        self._slots: list[_Keeper | None] = []
        self._free: queue.LifoQueue[int] = queue.LifoQueue()
        atexit.register(self.close)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def call(self, payload: Any, *, seconds: float | None = None) -> Any:
        """The function's value for `payload`, or Failed(reason).

        At most `seconds` (default: the pool's).
        """
        seconds = self.seconds if seconds is None else seconds
        slots, free = self._here()
        try:
            index = free.get(timeout=START_SECONDS + 100 * (seconds + GRACE_SECONDS))
        except queue.Empty:
            return Failed("no worker became free")
        try:
            keeper = slots[index] or _Keeper(self._settings)
            reply = keeper.ask(pickle.dumps(payload), seconds)
            slots[index] = None if reply is None else keeper
            if reply is None:
                keeper.close()
        finally:
            free.put(index)
        return _value(reply, seconds)

    def map(self, payloads: Sequence[Any], *, seconds: float | None = None) -> list[Any]:
        """`call` for each payload, `size` at a time, in order."""
        if not payloads:
            return []
        with ThreadPoolExecutor(min(self.size, len(payloads))) as threads:
            return list(threads.map(partial(self.call, seconds=seconds), payloads))

    def close(self) -> None:
        """Stop every process of this pool. A later call starts afresh."""
        with self._lock:
            slots = self._slots
            self._slots, self._free = [], queue.LifoQueue()
            mine, self._pid = self._pid == os.getpid(), 0
        for keeper in slots:
            if keeper is not None and mine:
                keeper.close()

    def _here(self) -> tuple[list[_Keeper | None], queue.LifoQueue[int]]:
        """The slots of this very process: after a fork the parent's are left alone."""
        with self._lock:
            if self._pid != os.getpid():
                self._pid, self._free = os.getpid(), queue.LifoQueue()
                self._slots = [None for _ in range(self.size)]
                for index in range(self.size):
                    self._free.put(index)
            return self._slots, self._free


def _value(reply: bytes | None, seconds: float) -> Any:
    if reply is None:
        return Failed("the worker did not answer and was replaced")
    kind, body = reply[:1], reply[1:]
    if kind == VALUE:
        return pickle.loads(body)
    if kind == LATE:
        return Failed(f"took longer than {seconds:g} s")
    return Failed(
        body.decode("utf-8", "replace") if kind == RAISED else "the worker died (out of memory?)"
    )


class _Keeper:
    """The caller's end of one keeper process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from laurel.core.workers import keep; keep()"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.streams = (self.process.stdin, self.process.stdout)
        self.inlet, self.outlet = self.process.stdin.fileno(), self.process.stdout.fileno()
        deadline = time.monotonic() + START_SECONDS
        ready = (
            _receive(self.outlet, deadline)
            if _send(self.inlet, pickle.dumps(settings), deadline)
            else None
        )
        if ready != VALUE:
            self.close()
            module, name = settings["function"]
            story = ready[1:].decode("utf-8", "replace") if ready else "no answer"
            raise LaurelError(f"a worker for {module}.{name} did not start.", fix=story)

    def ask(self, payload: bytes, seconds: float) -> bytes | None:
        """The reply to one payload; None if the keeper itself is gone or stuck."""
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        if not _send(self.inlet, struct.pack(">d", seconds) + payload, deadline):
            return None
        return _receive(self.outlet, deadline)

    def close(self) -> None:
        """Kill the keeper and its child."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in self.streams:
            with contextlib.suppress(OSError):
                stream.close()


def _send(fd: int, data: bytes, deadline: float) -> bool:
    """Write one frame; False if the other end is gone or the deadline passed."""
    view = memoryview(struct.pack(">Q", len(data)) + data)
    os.set_blocking(fd, False)
    while view:
        if not select.select([], [fd], [], max(0.0, deadline - time.monotonic()))[1]:
            return False
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            continue
        except OSError:
            return False
    return True


def _receive(fd: int, deadline: float) -> bytes | None:
    """Read one frame; b"" means that the other end is gone, None that the deadline passed."""
    data, need = b"", 8
    parts: list[bytes] = []
    while need:
        if not select.select(
            [fd],
            [],
            [],
            None if deadline == float("inf") else max(0.0, deadline - time.monotonic()),
        )[0]:
            return None
        part = os.read(fd, min(need, 1 << 16))
        if not part:
            return b""
        parts.append(part)
        need -= len(part)
        if not need and not data:
            data = b"".join(parts)
            need, parts = struct.unpack(">Q", data)[0], []
    return b"".join(parts)


def keep() -> None:
    """The keeper process: import the function, then serve frames on stdin until it closes."""
    inlet, outlet = os.dup(0), os.dup(1)
    with open(os.devnull, "r+b") as null:
        for fd in (0, 1):
            os.dup2(null.fileno(), fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    forever = float("inf")
    settings = pickle.loads(_receive(inlet, forever) or b"N.")
    try:
        module, name = settings["function"]
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        if settings["warm"] is not None:
            function(settings["warm"])
    except Exception:
        _send(outlet, RAISED + traceback.format_exc().encode(), forever)
        return
    _send(outlet, VALUE, time.monotonic() + START_SECONDS)
    child: _Child | None = None
    while frame := _receive(inlet, forever):
        if child is not None and child.calls >= settings["recycle"]:
            child.close()
            child = None
        child = child or _Child(function, settings["memory_mb"], (inlet, outlet))
        reply = child.ask(frame)
        if reply[:1] in (LATE, DIED):
            child.close()
            child = None
        if not _send(outlet, reply, time.monotonic() + START_SECONDS):
            break
    if child is not None:
        child.close()


class _Child:
    """The keeper's end of one forked child."""

    def __init__(
        self, function: Callable[[Any], Any], memory_mb: int, others: tuple[int, ...]
    ) -> None:
        self.calls = 0
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for fd in (*others, down_write, up_read):
                os.close(fd)
            _serve(function, memory_mb, down_read, up_write)
        os.close(down_read)
        os.close(up_write)
        self.inlet, self.outlet = down_write, up_read

    def ask(self, frame: bytes) -> bytes:
        """One call, with the deadline that stands in the first eight bytes of the frame."""
        self.calls += 1
        deadline = time.monotonic() + struct.unpack(">d", frame[:8])[0]
        if not _send(self.inlet, frame, deadline):
            return DIED
        reply = _receive(self.outlet, deadline)
        return LATE if reply is None else reply or DIED

    def close(self) -> None:
        """Kill and reap the child."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.inlet)
        os.close(self.outlet)


def _serve(function: Callable[[Any], Any], memory_mb: int, inlet: int, outlet: int) -> None:
    """The child process; its own alarm ends it after a deadline if the keeper is gone."""
    import resource

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while frame := _receive(inlet, float("inf")):
        signal.setitimer(signal.ITIMER_REAL, struct.unpack(">d", frame[:8])[0] + 1.0)
        try:
            reply = VALUE + pickle.dumps(function(pickle.loads(frame[8:])))
        except BaseException as error:
            story = "".join(traceback.format_exception(error, limit=-8))
            reply = RAISED + f"{type(error).__name__}: {error}\n{story}".encode("utf-8", "replace")
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not _send(outlet, reply, time.monotonic() + START_SECONDS):
            break
    os._exit(0)
