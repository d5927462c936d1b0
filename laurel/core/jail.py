"""The inside of the sandbox: run by `laurel.core.sandbox` as a script, never imported. Standard
library only.

Closes every door it can (limits, namespaces, Landlock, seccomp, audit hook), says which ones on the
report pipe, runs the program and says how it ended.
"""

from __future__ import annotations

import builtins
import importlib.util
import json
import linecache
import os
import platform
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

EPERM, ENOSYS = 1, 38
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
CLONE_THREAD = 0x10000
NAMESPACES = {"user": 0x10000000, "network": 0x40000000, "ipc": 0x08000000}

# Files a program may read: the standard library, shared libraries, time zones and three devices.
# Nothing else, so no /etc, no home.
READABLE = (
    "/usr/lib",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/dev/null",
    "/dev/zero",
    "/dev/urandom",
)

# System calls refused with EPERM: (audit architecture, clone, clone3, prlimit64, the others) of
# each machine we know.
# In order: networks; signals, tracing and other processes; new programs; mounts and namespaces;
# kernel doors.
SECCOMP = {
    "x86_64": (0xC000003E, 56, 435, 302, (
        41, 42, 49, 50, 62, 101, 129, 141, 144, 200, 203, 234, 297, 310, 311, 424, 434, 438, 57,
        58, 59, 322, 155, 161, 165, 166, 167, 272, 308, 169, 175, 176, 246, 248, 249, 250, 251,
        298, 313, 321, 323, 425, 426, 427,
    )),
    "aarch64": (0xC00000B7, 220, 435, 261, (
        198, 200, 201, 203, 117, 119, 122, 129, 130, 131, 138, 140, 240, 270, 271, 424, 434, 438,
        221, 281, 39, 40, 41, 51, 97, 268, 104, 105, 106, 142, 217, 218, 219, 241, 273, 280, 282,
        425, 426, 427,
    )),
}  # fmt: skip


class Forbidden(PermissionError):
    """The program tried something the sandbox does not allow."""


def limit(seconds: float, memory_mb: int, file_mb: int) -> None:
    """CPU seconds, address space, file size, open files, no core dumps. The hard memory limit
    leaves room for a traceback.
    """
    cpu = int(seconds) + 1
    size = memory_mb << 20
    for what, soft, hard in [
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, size, size + (64 << 20)),
        (resource.RLIMIT_FSIZE, file_mb << 20, file_mb << 20),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
    ]:
        try:
            resource.setrlimit(what, (soft, hard))
        except (
            ValueError,
            OSError,
        ):  # a lower hard limit is already in force, or the system has no such limit
            continue


def close_kernel_doors(folder: str, parent: int, readable: list[str]) -> dict[str, object]:
    """Namespaces, Landlock and seccomp, each where the kernel lets us. Returns what is active."""
    active: dict[str, object] = {"namespaces": [], "landlock": 0, "seccomp": False}
    if not sys.platform.startswith("linux"):
        return active
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    everything = sum(NAMESPACES.values())
    if libc.unshare(everything) == 0:
        active["namespaces"] = sorted(NAMESPACES)
    active["landlock"] = landlock(ctypes, libc, folder, readable)
    active["seccomp"] = seccomp(ctypes, libc)
    return active


def landlock(ctypes: Any, libc: Any, folder: str, readable: list[str]) -> int:
    """Write only in `folder`, read only there and in `readable`; no TCP, no signals out. Returns
    the ABI used, 0 if none.
    """
    abi = libc.syscall(444, None, 0, 1)
    if abi < 1:
        return 0
    files = (
        (1 << 13) - 1
        | (1 << 13 if abi >= 2 else 0)
        | (1 << 14 if abi >= 3 else 0)
        | (1 << 15 if abi >= 5 else 0)
    )
    ruleset = (ctypes.c_uint64 * 3)(files, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    fd = libc.syscall(444, ctypes.byref(ruleset), 8 * (1 + (abi >= 4) + (abi >= 6)), 0)
    if fd < 0:
        return 0
    rights = [(path, 0b1100) for path in readable] + [(folder, files & ~0b1), ("/dev/null", 0b110)]
    for path, right in rights:
        try:
            door = os.open(path, os.O_PATH)
        except OSError:
            continue
        if not os.path.isdir(path):
            right &= 0b110
        rule = right.to_bytes(8, sys.byteorder) + door.to_bytes(4, sys.byteorder)
        libc.syscall(445, fd, 1, rule, 0)
        os.close(door)
    done = libc.syscall(446, fd, 0) == 0
    os.close(fd)
    return abi if done else 0


def seccomp(ctypes: Any, libc: Any) -> bool:
    """Refuse new processes, networks, signals, tracing and mounts in the kernel, for good. Threads
    stay possible.
    """
    if platform.machine() not in SECCOMP:
        return False
    arch, clone, clone3, prlimit, refused = SECCOMP[platform.machine()]
    load, equal, above, bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    deny, allow = 0x00050000, 0x7FFF0000
    program: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),
        (equal, 1, 0, arch),
        (answer, 0, 0, deny | EPERM),
        (load, 0, 0, 0),
    ]
    program += [(above, 0, 1, 0x40000000), (answer, 0, 0, deny | EPERM)]
    program += [(equal, 0, 1, clone3), (answer, 0, 0, deny | ENOSYS)]
    program += [
        (equal, 0, 4, clone),
        (load, 0, 0, 16),
        (bit, 0, 1, CLONE_THREAD),
        (answer, 0, 0, allow),
        (answer, 0, 0, deny | EPERM),
    ]
    program += [
        (equal, 0, 4, prlimit),
        (load, 0, 0, 16),
        (equal, 0, 1, 0),
        (answer, 0, 0, allow),
        (answer, 0, 0, deny | EPERM),
    ]
    for number in refused:
        program += [(equal, 0, 1, number), (answer, 0, 0, deny | EPERM)]
    program += [(answer, 0, 0, allow)]

    lines = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    bundle = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(lines)))
    return libc.prctl(PR_SET_SECCOMP, 2, bundle, 0, 0) == 0


def no_new_processes() -> None:
    """Where seccomp cannot: a process limit (root is exempt from it), and subprocess's door to the
    kernel closed by name.
    """
    import _posixsubprocess as door
    import subprocess

    def refuse(*args: Any) -> None:
        raise Forbidden("the sandbox does not allow new processes")

    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    for module, name in ((door, "fork_exec"), (subprocess, "_fork_exec")):
        setattr(module, name, refuse)


def audit(
    folder: str, readable: list[str], seccomp: bool
) -> Callable[[str, tuple[Any, ...]], None]:
    """The audit hook: names everything it uses as a local, so that a program that rebinds builtins
    cannot change it.

    A second fence, not the first: PEP 578 hooks can be bypassed by native code. It gives clear
    errors, and is all there is where the kernel offers nothing.
    """
    refuse, is_a, text, data, tell, getcwd, decode = (
        Forbidden,
        isinstance,
        str,
        bytes,
        len,
        os.getcwd,
        os.fsdecode,
    )
    write_flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    inside, null = folder.rstrip("/") + "/", "/dev/null"
    roots = (*readable, *(path.rstrip("/") + "/" for path in readable))
    never = frozenset(
        (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.fork",
            "os.forkpty",
            "os.posix_spawn",
            "os.spawn",
            "os.startfile",
            "pty.spawn",
            "os.kill",
            "os.killpg",
            "signal.pthread_kill",
            "os.link",
            "os.symlink",
            "os.chown",
            "os.setxattr",
            "os.removexattr",
            "os.chflags",
            "gc.get_objects",
            "gc.get_referrers",
            "gc.get_referents",
            "sys._current_frames",
            "sys._current_exceptions",
            "syslog.openlog",
            "syslog.syslog",
        )
    )
    writes = frozenset(
        (
            "os.remove",
            "os.rmdir",
            "os.mkdir",
            "os.rename",
            "os.truncate",
            "os.chmod",
            "os.utime",
            "sqlite3.connect",
        )
    )
    reads = frozenset(("os.listdir", "os.scandir"))
    modules = frozenset(
        ("ctypes", "_ctypes") if seccomp else ("ctypes", "_ctypes", "_posixsubprocess")
    )

    def clean(path: Any) -> str:
        path = decode(path)
        if path[:1] != "/":
            path = getcwd() + "/" + path
        parts: list[str] = []
        for part in path.split("/"):
            if part == "..":
                del parts[-1:]
            elif part and part != ".":
                parts.append(part)
        return "/" + "/".join(parts)

    def check(path: Any, writing: bool, event: str) -> None:
        if not is_a(path, (text, data)):
            return
        path = clean(path)
        if (path + "/").startswith(inside) or (writing and path == null):
            return
        if writing or not (path in roots or path.startswith(roots)):
            raise refuse(f"the sandbox does not allow {event} of {path}")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            check(
                args[0],
                bool(args[2] & write_flags),
                "writing" if args[2] & write_flags else "reading",
            )
        elif event == "import":
            if args[0] in modules:
                raise refuse(f"the sandbox does not allow import {args[0]}")
        elif event in never or event.startswith("ctypes."):
            raise refuse(f"the sandbox does not allow {event}")
        elif event.startswith("socket."):
            if not (event == "socket.__new__" and args[1] == 1):
                raise refuse(f"the sandbox does not allow {event}")
        elif event in writes:
            for path in args[: 2 if event == "os.rename" else 1]:
                if path != ":memory:":
                    check(path, True, event)
        elif event in reads and tell(args):
            check(args[0] if args[0] is not None else ".", False, event)
        elif (
            event == "object.__setattr__"
            and tell(args) > 1
            and args[1] == "__code__"
            and args[0] is hook
        ):
            raise refuse("the sandbox does not allow changing itself")

    return hook


def run(source: str) -> dict[str, str]:
    """Run the program as `__main__`. {"why": "" if it came to its end, else "exit", "memory",
    "forbidden" or "error"}.
    """
    main = sys.modules["__main__"]
    linecache.cache["program.py"] = (
        len(source),
        None,
        source.splitlines(keepends=True),
        "program.py",
    )
    try:
        exec(compile(source, "program.py", "exec"), main.__dict__)
        return {"why": ""}
    except SystemExit:
        return {"why": "exit"}
    except BaseException as error:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        why = (
            "memory"
            if isinstance(error, MemoryError)
            else "forbidden"
            if isinstance(error, PermissionError)
            else "error"
        )
        story = traceback.TracebackException.from_exception(error, limit=-12)
        story.stack[:] = [line for line in story.stack if line.filename != __file__]
        print("".join(story.format()), end="", file=sys.__stderr__)
        return {"why": why}


def prepare() -> None:
    """A `__main__` of its own for what runs here, and nothing of ours in sight."""
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    sys.argv[:] = ["program.py"]


def seal(order: dict[str, Any], parent: int) -> dict[str, object]:
    """Shut every door behind this process. Returns which ones."""
    folder = order["folder"]
    library = os.path.dirname(os.path.realpath(os.__file__))
    readable = sorted(
        {library, *(os.path.realpath(path) for path in READABLE if os.path.exists(path)), *READABLE}
    )
    active = close_kernel_doors(folder, parent, readable)
    if not active["seccomp"]:
        no_new_processes()
    sys.path[:] = [
        path
        for path in sys.path
        if path and os.path.realpath(path).startswith(os.path.dirname(library))
    ]
    for name in [name for name in sys.modules if "ctypes" in name]:
        del sys.modules[name]
    sys.addaudithook(audit(folder, readable, bool(active["seccomp"])))
    prepare()
    return active


def flush() -> None:
    """What was printed goes out, as far as the program has left the streams alone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue


def beside(path: str) -> ModuleType:
    """The file `sandbox_rpc.py`, loaded while files can still be read."""
    spec = importlib.util.spec_from_file_location("sandbox_rpc", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def two(order: dict[str, Any], report_fd: int, tests_fd: int) -> None:
    """The program in a child, its tests here. What the tests hold is read when the child has gone
    its own way.
    """
    rpc = beside(os.path.join(os.path.dirname(__file__), "sandbox_rpc.py"))
    from_program, to_tests = os.pipe()
    from_tests, to_program = os.pipe()
    unreadable()
    parent, leave = (
        os.getpid(),
        os._exit,
    )  # by a name of our own: the program may put another function into `os`
    child = os.fork()
    if child == 0:
        for fd in (report_fd, tests_fd, from_program, to_program):
            os.close(fd)
        seal(order, parent)
        link = rpc.Link(from_tests, to_tests, serves=True)
        try:
            rpc.serve(link, run, order["setup"], order["source"])
            flush()
        except rpc.Gone:
            flush()
        finally:
            leave(0)
    for fd in (from_tests, to_tests):
        os.close(fd)
    with open(tests_fd, encoding="utf-8") as file:
        secret = json.load(file)
    active = seal(order, order["parent"])
    os.write(report_fd, (json.dumps(active) + "\n").encode())
    end = rpc.judge(
        rpc.Link(from_program, to_program, serves=False), run, order["setup"], secret["tests"]
    )
    os.close(to_program)
    if end["why"] == "exit":
        end = {"why": fate(child) or "exit"}
    flush()
    os.write(report_fd, (json.dumps({"nonce": secret["nonce"], **end}) + "\n").encode())
    os._exit(0)


def unreadable() -> None:
    """No other process of this user may look into the memory or at the open files of this one."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def fate(child: int) -> str:
    """Why a program that is gone went: "time", "memory", "crash", or "" where no signal ended
    it.
    """
    try:
        status = os.waitpid(child, 0)[1]
    except OSError:
        return ""
    if not os.WIFSIGNALED(status):
        return ""
    return {signal.SIGXCPU: "time", signal.SIGKILL: "memory"}.get(os.WTERMSIG(status), "crash")


def main() -> None:
    """Read the order from the first descriptor, report to the second; the tests, if the program has
    any, wait at the third.
    """
    order_fd, report_fd, *tests_fd = map(int, sys.argv[1:])
    with open(order_fd, encoding="utf-8") as file:
        order = json.load(file)
    limit(order["seconds"], order["memory_mb"], order["file_mb"])
    if tests_fd:
        two(order, report_fd, tests_fd[0])
    write, close = os.write, os._exit
    active = seal(order, order["parent"])
    write(report_fd, (json.dumps(active) + "\n").encode())
    end = run(order["source"])
    flush()
    write(report_fd, (json.dumps({"nonce": order["nonce"], **end}) + "\n").encode())
    close(0)


if __name__ == "__main__":
    main()
