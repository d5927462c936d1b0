"""Run untrusted Python: a subprocess limited in time, memory, files, network and processes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, cast

Reason = Literal["", "time", "memory", "error", "exit", "forbidden", "output", "crash", "sandbox"]

START_SECONDS = 30.0
OUTPUT_BYTES = 1 << 20
TAIL_BYTES = 16 << 10
FILE_MB = 4
JAIL = ("-P", "-s", "-S", "-B", str(Path(__file__).with_name("jail.py")))
"""The interpreter without the script's folder, user packages, site and bytecode files."""
ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended, with the last 16 KiB of what it printed.

    ok: it ran to its last line. reason, where not: `time`, `memory`, `error` (an exception: see
    stderr), `exit` (it left by SystemExit or os._exit before its last line, whatever the status),
    `forbidden` (ended by something not allowed), `output` (more than 1 MiB printed), `crash` (a
    signal), `sandbox` (it never started: not the program's fault).
    """

    ok: bool
    stdout: str
    stderr: str
    reason: Reason


def run_python(
    source: str,
    *,
    seconds: float,
    memory_mb: int = 512,
    stdin: str = "",
    tests: str | None = None,
    setup: str = "",
) -> Outcome:
    """Run `source` as a script in a fresh interpreter with only the standard library.

    tests: a script that uses what the program defines; then `ok` says that the tests ran to their
    last line. They run in a process of their own, which the program can neither read nor write; its
    functions are called across a pipe and answer with plain data, so that a forged `==`, other
    builtins, a walk up the frames or a forged report earn nothing. What is no plain data (an object
    of the program's own class) can be called, read, iterated and passed back, and compared with
    nothing. setup: run before the tests, and before the program where it can do without it.

    seconds: wall clock from the program's first line, and CPU. memory_mb: address space. The
    program sees an empty environment, an empty folder of its own (files up to 4 MiB, gone
    afterwards), `stdin`, and a fixed hash seed.

    What stops it: resource limits and the clock everywhere; on Linux, as far as the kernel allows
    (`isolation()` tells), user, network and IPC namespaces, Landlock (write only in its folder,
    read only there and in the system's libraries: not /etc, not a home), a seccomp filter (no new
    process or program, no socket, no signal, no tracing, no mount), and a parent-death signal;
    above these a Python audit hook that refuses the same things with a clear error.

    What it is not: a virtual machine. The kernel is shared, and where neither Landlock nor seccomp
    is available (other systems) only the audit hook and the limits stand, which determined native
    code can pass. Without `tests`, the program itself says that it came to its end, and one written
    against this very file can lie. It can fill its own folder until the time is up. Keep secrets
    off machines that run strangers' code.
    """
    nonce = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="laurel-sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as stdin_file,
    ):
        stdin_file.write(stdin.encode("utf-8", "replace"))
        stdin_file.seek(0)
        order = {
            "source": source,
            "folder": os.path.realpath(folder),
            "seconds": seconds,
            "memory_mb": memory_mb,
            "file_mb": FILE_MB,
        }
        if tests is None:
            watch = _start({**order, "nonce": nonce}, None, stdin_file)
        else:
            watch = _start({**order, "setup": setup}, {"tests": tests, "nonce": nonce}, stdin_file)
        began = time.monotonic()
        how = watch.until_over(seconds)
        spent = time.monotonic() - began
    reason = how or _end_reason(watch, nonce, late=spent >= seconds)
    return Outcome(reason == "", watch.text("stdout"), watch.text("stderr"), reason)


@functools.cache
def isolation() -> dict[str, object]:
    """What this system can enforce. Runs an empty program once.

    {"limits", "audit", "namespaces": [...], "landlock": its ABI or 0, "seccomp"}.
    """
    with tempfile.TemporaryDirectory(prefix="laurel-sandbox-") as folder:
        order: dict[str, object] = {
            "source": "",
            "folder": os.path.realpath(folder),
            "seconds": 5,
            "memory_mb": 512,
            "file_mb": FILE_MB,
            "nonce": "",
        }
        watch = _start(order, None, subprocess.DEVNULL)
        watch.until_over(5.0)
    lines = watch.kept["report"].splitlines()
    return {
        "limits": True,
        "audit": True,
        **(json.loads(lines[0]) if lines else {"namespaces": [], "landlock": 0, "seccomp": False}),
    }


@dataclass(slots=True)
class _RunningProgram:
    """A running program and what it has said so far."""

    process: subprocess.Popen[bytes]
    streams: tuple[IO[bytes], IO[bytes]]
    report_fd: int
    kept: dict[str, bytearray] = field(
        default_factory=lambda: {
            "stdout": bytearray(),
            "stderr": bytearray(),
            "report": bytearray(),
        }
    )
    size: int = 0

    def text(self, name: str) -> str:
        return bytes(self.kept[name]).decode("utf-8", "replace")

    def until_over(self, seconds: float) -> Reason:
        """Read until the program ends, is late or prints too much; then kill what is left.

        The clock starts when it reports ready.
        """
        deadline, started = time.monotonic() + START_SECONDS, False
        try:
            with selectors.DefaultSelector() as selector:
                for name, fd in (
                    ("stdout", self.streams[0].fileno()),
                    ("stderr", self.streams[1].fileno()),
                    ("report", self.report_fd),
                ):
                    os.set_blocking(fd, False)
                    selector.register(fd, selectors.EVENT_READ, name)
                while selector.get_map():
                    for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                        if not self._read(key.data, key.fd):
                            selector.unregister(key.fd)
                    if not started and b"\n" in self.kept["report"]:
                        deadline, started = time.monotonic() + seconds, True
                    if self.size > OUTPUT_BYTES:
                        return "output"
                    if time.monotonic() >= deadline:
                        return "time" if started else "sandbox"
            self.process.wait(max(0.01, deadline - time.monotonic()))
            return ""
        except subprocess.TimeoutExpired:
            return "time"
        finally:
            self._end()

    def _read(self, name: str, fd: int) -> bool:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        self.size += len(data)
        self.kept[name] += data
        del self.kept[name][:-TAIL_BYTES]
        return bool(data)

    def _end(self) -> None:
        for kill in (lambda: os.killpg(self.process.pid, signal.SIGKILL), self.process.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill()
        self.process.wait()
        for stream in self.streams:
            stream.close()
        os.close(self.report_fd)


def _start(
    order: dict[str, object], secret: dict[str, str] | None, stdin: IO[bytes] | int
) -> _RunningProgram:
    """Start the jail in a session of its own, with a clean environment.

    It inherits no descriptors but the order, the report, and the one of `secret`.
    """
    folder = str(order["folder"])
    reader, writer = os.pipe()
    try:
        with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as hidden:
            for place, text in ((file, {**order, "parent": os.getpid()}), (hidden, secret)):
                place.write(json.dumps(text).encode())
                place.seek(0)
            fds = (file.fileno(), writer, *(() if secret is None else (hidden.fileno(),)))
            process = subprocess.Popen(
                [sys.executable, *JAIL, *map(str, fds)],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                env={"HOME": folder, "TMPDIR": folder, **ENVIRONMENT},
                pass_fds=fds,
                start_new_session=True,
            )
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    assert process.stdout is not None and process.stderr is not None
    return _RunningProgram(process, (process.stdout, process.stderr), reader)


def _end_reason(watch: _RunningProgram, nonce: str, *, late: bool) -> Reason:
    """Why a program ended that was not stopped: from its report, else from how it died."""
    lines = watch.kept["report"].splitlines()
    code = watch.process.returncode
    for line in lines[1:]:
        # the program may have written into the report, too
        with contextlib.suppress(ValueError, AttributeError):
            report = cast(dict[str, str], json.loads(line))
            if report.get("nonce") == nonce:
                return cast(Reason, report["why"])
    if not lines:
        return "sandbox"
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and late):
        return "time"
    if code == -signal.SIGKILL:
        return "memory"
    if code < 0:
        return "crash"
    return "exit"
