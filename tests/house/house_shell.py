"""Shell blocks of pages: bash runs them, and the `laurel` in them is a call of `main` in this
process, which need not start cold.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from laurel.cli.main import main

LAUREL = r"""
laurel() {
    if [ -p /dev/stdout ]; then command laurel "$@"; return; fi
    printf '%s\0' "$PWD" "$@" > "$DOOR/asked"
    read -r code < "$DOOR/done"
    cat "$DOOR/out"; cat "$DOOR/err" >&2
    return "$code"
}
trap ': > "$DOOR/asked"' EXIT
"""
"""Hands its words over, waits, prints what was printed, leaves with the same code. The end of the
script hands over nothing.

What goes on into a pipe is a process of its own, as a user's shell starts it: there real output
flows.
"""


def run_shell(script: str, door: Path) -> tuple[int, str]:
    """(exit code, everything printed) of a bash script in the current folder. `door`: an empty
    folder for what is handed over.
    """
    os.mkfifo(door / "asked")
    os.mkfifo(door / "done")
    printed = door / "printed"
    command = ["bash", "-euo", "pipefail", "-c", LAUREL + script]
    with printed.open("w") as file:
        shell = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "DOOR": str(door)},
        )
        try:
            while asked := (door / "asked").read_text():
                folder, *words = asked.split("\0")[:-1]
                with as_it_was(), (door / "out").open("w") as out, (door / "err").open("w") as err:
                    os.chdir(folder)
                    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                        code = main(words)
                (door / "done").write_text(f"{code}\n")
        except BaseException:
            shell.kill()
            raise
        finally:
            shell.wait()
    return shell.returncode, printed.read_text()


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """What a command leaves to the end of its process, put back: folder, environment, module path,
    signals, threads, chance.
    """
    folder, environment, path, modules = (
        Path.cwd(),
        dict(os.environ),
        list(sys.path),
        set(sys.modules),
    )
    handlers = {
        which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    }
    threads, chance = (
        torch.get_num_threads(),
        (random.getstate(), np.random.get_state(), torch.get_rng_state()),
    )
    try:
        yield
    finally:
        left = [
            f"signal {which.name}"
            for which, handler in handlers.items()
            if signal.getsignal(which) is not handler
        ]
        for which, handler in handlers.items():
            signal.signal(which, handler)
        for name in set(sys.modules) - modules:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
                # a file of the page's own, such as a reward: the next page may have another of it
                del sys.modules[name]
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        torch.set_num_threads(threads)
        random.setstate(chance[0])
        np.random.set_state(chance[1])
        torch.set_rng_state(chance[2])
    assert not left, f"a command that has ended still holds {left}"
