"""The sandbox holds whatever runs in it, and killable workers always answer."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from laurel.core import jail, workers
from laurel.core.errors import LaurelError
from laurel.core.result import Failed
from laurel.core.sandbox import isolation, run_python
from laurel.core.workers import Workers

IGNORE_SIGNALS = """
import signal
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
"""
LINUX = sys.platform.startswith("linux")


def run(source, seconds=5.0, **options):
    return run_python(textwrap.dedent(source), seconds=seconds, **options)


def test_a_program_runs_prints_and_reads():
    outcome = run(
        "import math, sys\nprint(math.pi, input())\nprint('oops', file=sys.stderr)", stdin="hello\n"
    )
    assert outcome.ok and outcome.reason == ""
    assert outcome.stdout == "3.141592653589793 hello\n" and outcome.stderr == "oops\n"


def test_standard_library_and_own_folder_work():
    source = """
    import asyncio, collections, dataclasses, datetime, decimal, hashlib, re, sqlite3, tempfile, threading, typing, unittest, zoneinfo

    @dataclasses.dataclass
    class Point:
        x: int

    async def three():
        return 3

    open("a.txt", "w").write("kept")
    thread = threading.Thread(target=print, args=("thread",))
    thread.start(), thread.join()
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    print(Point(1), asyncio.run(three()), open("a.txt").read(), hashlib.md5(b"").hexdigest()[:4])
    """
    outcome = run(source)
    assert outcome.ok, outcome.stderr
    assert outcome.stdout == "thread\nPoint(x=1) 3 kept d41d\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("while True: pass", "time"),
        ("import time; time.sleep(60)", "time"),
        ("import os\nos.closerange(0, 100)\nwhile True: pass", "time"),
        (IGNORE_SIGNALS, "time"),
        ("9 ** 9 ** 9 ** 9", "time"),
        ("x = ' ' * 10 ** 10", "memory"),
        ("while True: print('x' * 1000)", "output"),
        ("1 / 0", "error"),
        ("def f(): return f()\nf()", "error"),
        ("x = (", "error"),
        ("(" * 100_000, "error"),
        ("open('big', 'wb').write(b'x' * 10 ** 7)", "error"),
        ("raise SystemExit(0)", "exit"),
        ("import os; os._exit(0)", "exit"),
        ("import os; os.abort()", "crash"),
    ],
)
def test_every_end_has_its_reason(source, reason):
    began = time.monotonic()
    outcome = run_python(source, seconds=0.5)
    assert not outcome.ok and outcome.reason == reason, outcome
    assert time.monotonic() - began < 10 and len(outcome.stdout) <= 16 << 10


@pytest.mark.parametrize(
    "source",
    [
        "import os\nwhile True: os.fork()",
        "import os; os.system('touch {outside}')",
        "import subprocess; subprocess.run(['touch', '{outside}'])",
        "import os; os.execv('/usr/bin/touch', ['touch', '{outside}'])",
        "import os; os.posix_spawn('/usr/bin/touch', ['touch', '{outside}'], {{}})",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.killpg(0, 9)",
        "open('{outside}', 'w')",
        "import os; os.open('{outside}', os.O_CREAT | os.O_WRONLY)",
        "open('../../../../../../../../{outside}', 'w')",
        "import os; os.symlink('/etc', 'door'); print(open('door/passwd').read())",
        "import os; os.remove('{inside}')",
        "import os; os.rename('{inside}', 'mine')",
        "import shutil; shutil.rmtree('{parent}')",
        "print(open('/etc/passwd').read())",
        "print(open('{inside}').read())",
        "import os; os.listdir('/')",
        "import sqlite3; sqlite3.connect('{outside}')",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "import socket; socket.socket().connect(('127.0.0.1', 80))",
        "import ctypes",
        "import sys, gc; gc.get_objects()",
    ],
)
def test_what_is_not_allowed_ends_the_program(source, tmp_path):
    """A fork bomb, the shell, new programs, signals to the parent, files outside, the network,
    native code.
    """
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    inside.write_text("precious")
    outcome = run_python(
        source.format(outside=outside, inside=inside, parent=tmp_path), seconds=5.0
    )
    assert not outcome.ok and outcome.reason == "forbidden", outcome
    assert (
        not outside.exists() and inside.read_text() == "precious" and "root:" not in outcome.stdout
    )


def test_rebinding_builtins_does_not_open_the_door(tmp_path):
    source = (
        "import builtins\nbuiltins.isinstance = lambda *a: False\nbuiltins.str ="
        f" int\nopen({str(tmp_path / 'x')!r}, 'w')"
    )
    assert not run_python(source, seconds=5).ok and not (tmp_path / "x").exists()


def test_nothing_of_this_environment_is_seen(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    outcome = run(
        "import os, sys\nprint(sorted(os.environ), os.listdir('.'), sys.argv, any('site-packages'"
        " in p for p in sys.path))"
    )
    assert (
        outcome.ok
        and "SECRET_TOKEN" not in outcome.stdout
        and "[] ['program.py'] False" in outcome.stdout
    )
    assert run("import numpy").reason == "error"


def test_the_same_program_prints_the_same():
    outcomes = {run("print({'a', 'b', 'c', 'd', 'e'}, hash('x'))").stdout for _ in range(3)}
    assert len(outcomes) == 1


def test_a_program_cannot_report_its_own_success():
    """Lines on the report descriptor without the secret count for nothing."""
    source = """
    import os
    for fd in range(3, 64):
        try:
            os.write(fd, b'{"nonce": "", "why": ""}\\n[]\\n7\\n')
        except OSError:
            pass
    os._exit(0)
    """
    assert run(source).reason == "exit"


def test_leftover_folders_and_processes_are_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(
        "import os\nos.makedirs('a/b/c')\nopen('a/b/c/d', 'w')\nos.chmod('a', 0)\nwhile True: pass",
        seconds=0.3,
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [] or os.getuid() != 0


@pytest.mark.skipif(not LINUX, reason="kernel fences are Linux")
def test_kernel_fences_hold_without_the_audit_hook(tmp_path):
    """With the hook left out, Landlock and seccomp alone refuse the same things (each where the
    kernel has it).
    """
    source = f"""
    import errno, importlib.util, os, resource, socket
    spec = importlib.util.spec_from_file_location("jail", {str(Path(jail.__file__))!r})
    jail = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(jail)
    library = os.path.dirname(os.path.realpath(os.__file__))
    active = jail.close_kernel_doors({str(tmp_path)!r}, os.getppid(), [library, *jail.READABLE])
    def refused(action):
        try:
            action()
        except OSError as error:
            return error.errno in (errno.EPERM, errno.EACCES)
        return False
    if active["landlock"]:
        open({str(tmp_path / "mine")!r}, "w").close()
        assert refused(lambda: open("/etc/passwd"))
        assert refused(lambda: open({str(tmp_path.parent / "escaped")!r}, "w"))
        assert refused(lambda: os.listdir("/"))
    if active["seccomp"]:
        assert refused(os.fork)
        assert refused(lambda: os.kill(os.getppid(), 0))
        assert refused(socket.socket)
        assert refused(lambda: os.execv("/bin/true", ["true"]))
        import threading
        thread = threading.Thread(target=print)
        thread.start(), thread.join()
    print("held")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.endswith("held\n"), done.stderr


def test_isolation_says_what_stands():
    active = isolation()
    assert (
        active["limits"] is True
        and active["audit"] is True
        and set(active) == {"limits", "audit", "namespaces", "landlock", "seccomp"}
    )


# Killable workers. The functions live in a module that a fresh process can import.


def behave(what):
    if what == "hang":
        while True:
            pass
    if what == "raise":
        raise ValueError("bad thing")
    if what == "die":
        os._exit(3)
    if what == "memory":
        return len([0] * 10**10)
    if what == "pid":
        return os.getpid()
    if what == "print":
        print("noise on stdout", flush=True)
    return f"did {what[:20]}"


def test_workers_answer_fail_and_go_on():
    with Workers(behave, seconds=0.3, size=1) as pool:
        assert pool.call("this") == "did this" and pool.call("print") == "did print"
        assert pool.call("hang") == Failed("took longer than 0.3 s")
        raised = pool.call("raise")
        assert raised.reason.startswith("ValueError: bad thing") and "in behave" in raised.reason
        assert isinstance(pool.call("die"), Failed) and pool.call("memory").reason.startswith(
            "MemoryError"
        )
        assert pool.call("x" * 10**6) == "did " + "x" * 20
        assert pool.call("that") == "did that"


def test_a_hundred_hangs_in_bounded_time_and_in_order():
    with Workers(behave, seconds=0.1, size=2) as pool:
        began = time.monotonic()
        answers = pool.map(["hang", "a", "b"] * 10)
        assert time.monotonic() - began < 15
    assert [isinstance(answer, Failed) for answer in answers] == [
        True,
        False,
        False,
    ] * 10 and answers[1:3] == ["did a", "did b"]


def test_children_are_recycled_and_kept_between_calls():
    with Workers(behave, size=1, recycle=3, seconds=2) as pool:
        pids = [pool.call("pid") for _ in range(7)]
    assert len(set(pids)) == 3 and pids[0] == pids[2] != pids[3]


def test_close_ends_the_processes_and_a_later_call_starts_afresh():
    pool = Workers(behave, size=1)
    first = pool.call("pid")
    pool.close()
    deadline = time.monotonic() + 5
    while _alive(first) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(first)
    assert pool.call("pid") != first
    pool.close()


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_workers_die_with_a_killed_parent():
    """kill -9 of the caller, with a worker idle and a worker in an endless loop: both are gone
    soon.
    """
    source = f"""
    import sys, threading, time
    sys.path[:] = {sys.path!r}
    from laurel.core.workers import Workers
    import test_core_sandbox as here
    pool = Workers(here.behave, size=2, seconds=0.5)
    print(pool.call("pid"), flush=True)
    print(pool._slots[1].process.pid, flush=True)
    pool.call("hang")
    """
    code = textwrap.dedent(source)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    time.sleep(0.1)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in pids)


def test_a_fork_of_the_caller_uses_its_own_workers():
    with Workers(behave, size=1) as pool:
        mine = pool.call("pid")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, str(pool.call("pid")).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        theirs = int(os.read(reader, 100))
        os.close(reader)
        assert theirs != mine and pool.call("pid") == mine


def test_a_function_that_cannot_be_imported_is_an_error_not_a_hang():
    function = type(
        "F",
        (),
        {"__module__": "no_such_module", "__qualname__": "f", "__call__": lambda self, x: x},
    )()
    function.__qualname__ = "f"
    with Workers(function) as pool, pytest.raises(LaurelError, match="no_such_module"):
        pool.call(1)


def test_frames_survive_split_writes():
    reader, writer = os.pipe()
    assert (
        workers._send(writer, b"abc", time.monotonic() + 1)
        and workers._receive(reader, time.monotonic() + 1) == b"abc"
    )
    assert workers._receive(reader, time.monotonic()) is None
    os.close(writer)
    assert workers._receive(reader, time.monotonic() + 1) == b""
    os.close(reader)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
