"""The inside of the sandbox: a script that `laurel.core.sandbox` runs. Standard library only.

It sets every restriction the system allows (limits, namespaces, Landlock, seccomp, audit hook),
reports which ones it could set, runs the program and reports how it ended. Nothing imports it.
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


NEVER = frozenset(
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
"""Audit events that are refused whatever their arguments."""
WRITES = frozenset(
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
"""Audit events that change the file named first."""
READS = frozenset(("os.listdir", "os.scandir"))


class Forbidden(PermissionError):
    """The program tried something the sandbox does not allow."""


def limit(seconds: float, memory_mb: int, file_mb: int) -> None:
    """Limit CPU seconds, address space, file size and open files; no core dumps.

    The hard memory limit leaves room for a traceback.
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
    """Set namespaces, Landlock and seccomp where the kernel allows it; returns what is active."""
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
    """Write only in `folder`, read only there and in `readable`; no TCP, no signals out.

    Returns the version of Landlock's ABI that is used, 0 where there is none.
    """
    abi = libc.syscall(444, None, 0, 1)
    if abi < 1:
        return 0
    # one bit per right to files: 13 in the first ABI; refer, truncate and ioctl came later
    later = (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0)
    files = (1 << 13) - 1 | later | (1 << 15 if abi >= 5 else 0)
    # rights to files, to TCP (ABI 4), and to signals and abstract sockets (ABI 6), 8 bytes each
    ruleset = (ctypes.c_uint64 * 3)(files, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    fd = libc.syscall(444, ctypes.byref(ruleset), 8 * (1 + (abi >= 4) + (abi >= 6)), 0)
    if fd < 0:
        return 0
    # 0b1: execute, 0b10: write to a file, 0b100: read a file, 0b1000: list a folder
    rights = [(path, 0b1100) for path in readable] + [(folder, files & ~0b1), ("/dev/null", 0b110)]
    for path, right in rights:
        allow_path(libc, fd, path, right)
    done = libc.syscall(446, fd, 0) == 0
    os.close(fd)
    return abi if done else 0


def allow_path(libc: Any, ruleset: int, path: str, right: int) -> None:
    """Add a rule to a Landlock ruleset: these rights below this path."""
    try:
        handle = os.open(path, os.O_PATH)
    except OSError:
        return
    if not os.path.isdir(path):
        right &= 0b110  # a file has no rights of folders
    rule = right.to_bytes(8, sys.byteorder) + handle.to_bytes(4, sys.byteorder)
    libc.syscall(445, ruleset, 1, rule, 0)
    os.close(handle)


def seccomp(ctypes: Any, libc: Any) -> bool:
    """Refuse new processes, networks, signals, tracing and mounts in the kernel, for good."""
    if platform.machine() not in SECCOMP:
        return False
    program = seccomp_filter(*SECCOMP[platform.machine()])
    lines = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    bundle = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(lines)))
    return libc.prctl(PR_SET_SECCOMP, 2, bundle, 0, 0) == 0


def seccomp_filter(
    arch: int, clone: int, clone3: int, prlimit: int, refused: tuple[int, ...]
) -> list[tuple[int, int, int, int]]:
    """The filter as BPF instructions: (operation, skip if true, skip if false, operand).

    Threads stay possible: clone with CLONE_THREAD is allowed, and so is prlimit of oneself.
    """
    load, equal, above, bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow = (answer, 0, 0, 0x7FFF0000)
    deny = (answer, 0, 0, 0x00050000 | EPERM)
    absent = (answer, 0, 0, 0x00050000 | ENOSYS)  # glibc then falls back from clone3 to clone
    number, argument = (load, 0, 0, 0), (load, 0, 0, 16)  # the first argument of the call
    program = [(load, 0, 0, 4), (equal, 1, 0, arch), deny, number]
    program += [(above, 0, 1, 0x40000000), deny]  # the second numbering of x86-64 (x32)
    program += [(equal, 0, 1, clone3), absent]
    program += [(equal, 0, 4, clone), argument, (bit, 0, 1, CLONE_THREAD), allow, deny]
    program += [(equal, 0, 4, prlimit), argument, (equal, 0, 1, 0), allow, deny]
    for call in refused:
        program += [(equal, 0, 1, call), deny]
    return [*program, allow]


def no_new_processes() -> None:
    """Where seccomp is missing: a process limit, and `subprocess` made to refuse.

    Root is exempt from the limit.
    """
    import _posixsubprocess as door
    import subprocess

    def refuse(*args: Any) -> None:
        raise Forbidden("the sandbox does not allow new processes")

    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    for module, name in ((door, "fork_exec"), (subprocess, "_fork_exec")):
        setattr(module, name, refuse)


Check = Callable[[Any, bool, str], None]
"""(path, writing, event): Forbidden unless the path may be read, or written."""


def path_cleaner() -> Callable[[Any], str]:
    """A function of a path that makes it absolute and resolves `.` and `..` as text."""
    getcwd, decode = os.getcwd, os.fsdecode

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

    return clean


def path_checker(folder: str, readable: list[str]) -> Check:
    """The check of paths: everything in `folder`, reading in `readable`, writing to /dev/null."""
    refuse, is_a, text, data, clean = Forbidden, isinstance, str, bytes, path_cleaner()
    inside, null = folder.rstrip("/") + "/", "/dev/null"
    roots = (*readable, *(path.rstrip("/") + "/" for path in readable))

    def check(path: Any, writing: bool, event: str) -> None:
        if not is_a(path, (text, data)):
            return
        path = clean(path)
        if (path + "/").startswith(inside) or (writing and path == null):
            return
        if writing or not (path in roots or path.startswith(roots)):
            raise refuse(f"the sandbox does not allow {event} of {path}")

    return check


def audit(check: Check, seccomp: bool) -> Callable[[str, tuple[Any, ...]], None]:
    """The audit hook. It names everything it uses as a local: rebinding builtins cannot change it.

    A second fence, not the first: PEP 578 hooks can be bypassed by native code. It gives clear
    errors, and is all there is where the kernel offers nothing.
    """
    refuse, never, writes, reads = Forbidden, NEVER, WRITES, READS
    write_flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    modules = frozenset(
        ("ctypes", "_ctypes") if seccomp else ("ctypes", "_ctypes", "_posixsubprocess")
    )

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if args[2] & write_flags:
                check(args[0], True, "writing")
            else:
                check(args[0], False, "reading")
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
        elif event in reads and args:
            check("." if args[0] is None else args[0], False, event)
        elif event == "object.__setattr__" and args[1:2] == ("__code__",) and args[0] is hook:
            raise refuse("the sandbox does not allow changing itself")

    return hook


def run(source: str) -> dict[str, str]:
    """Run the program as `__main__`; {"why": ""} if it reached its end.

    Else why is "exit", "memory", "forbidden" or "error".
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
        why = "forbidden" if isinstance(error, PermissionError) else "error"
        if isinstance(error, MemoryError):
            why = "memory"
        story = traceback.TracebackException.from_exception(error, limit=-12)
        story.stack[:] = [line for line in story.stack if line.filename != __file__]
        print("".join(story.format()), end="", file=sys.__stderr__)
        return {"why": why}


def prepare() -> None:
    """Give the program a `__main__` of its own, without this script's names."""
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    sys.argv[:] = ["program.py"]


def seal(order: dict[str, Any], parent: int) -> dict[str, object]:
    """Restrict this process for good; returns which restrictions are active."""
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
    sys.addaudithook(audit(path_checker(folder, readable), bool(active["seccomp"])))
    prepare()
    return active


def flush() -> None:
    """Write out what was printed, as far as the program has left the streams alone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue


def load_file(path: str) -> Any:
    """The module in a file, loaded while files can still be read."""
    spec = importlib.util.spec_from_file_location("sandbox_rpc", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_with_tests(order: dict[str, Any], report_fd: int, tests_fd: int) -> None:
    """The program in a child, its tests in this process.

    What the tests hold is read only after the fork: the child never has it in memory.
    """
    rpc = load_file(os.path.join(os.path.dirname(__file__), "sandbox_rpc.py"))
    from_program, to_tests = os.pipe()
    from_tests, to_program = os.pipe()
    unreadable()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        for fd in (report_fd, tests_fd, from_program, to_program):
            os.close(fd)
        serve_program(rpc, rpc.Link(from_tests, to_tests, serves=True), order, parent)
    for fd in (from_tests, to_tests):
        os.close(fd)
    with open(tests_fd, encoding="utf-8") as file:
        secret = json.load(file)
    active = seal(order, order["parent"])
    os.write(report_fd, (json.dumps(active) + "\n").encode())
    link = rpc.Link(from_program, to_program, serves=False)
    end = rpc.run_tests(link, run, order["setup"], secret["tests"])
    os.close(to_program)
    if end["why"] == "exit":
        end = {"why": fate(child) or "exit"}
    flush()
    os.write(report_fd, (json.dumps({"nonce": secret["nonce"], **end}) + "\n").encode())
    os._exit(0)


def serve_program(rpc: Any, link: Any, order: dict[str, Any], parent: int) -> None:
    """The child's whole life: sealed, it runs the program and serves the tests' calls."""
    leave = os._exit  # by a name of its own: the program may put another function into `os`
    seal(order, parent)
    try:
        rpc.serve(link, run, order["setup"], order["source"])
        flush()
    except rpc.PeerExited:
        flush()
    finally:
        leave(0)


def unreadable() -> None:
    """Keep other processes of this user from reading this one's memory and open files."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def fate(child: int) -> str:
    """Why a process ended: "time", "memory", "crash", or "" where no signal ended it."""
    try:
        status = os.waitpid(child, 0)[1]
    except OSError:
        return ""
    if not os.WIFSIGNALED(status):
        return ""
    reasons = {int(signal.SIGXCPU): "time", int(signal.SIGKILL): "memory"}
    return reasons.get(os.WTERMSIG(status), "crash")


def main() -> None:
    """Read the order from the first descriptor and report to the second.

    The tests, if the program has any, wait at the third.
    """
    order_fd, report_fd, *tests_fd = map(int, sys.argv[1:])
    with open(order_fd, encoding="utf-8") as file:
        order = json.load(file)
    limit(order["seconds"], order["memory_mb"], order["file_mb"])
    if tests_fd:
        run_with_tests(order, report_fd, tests_fd[0])
    write, close = os.write, os._exit
    active = seal(order, order["parent"])
    write(report_fd, (json.dumps(active) + "\n").encode())
    end = run(order["source"])
    flush()
    write(report_fd, (json.dumps({"nonce": order["nonce"], **end}) + "\n").encode())
    close(0)


if __name__ == "__main__":
    main()
