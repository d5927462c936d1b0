"""A folder as a server: `laurel serve FOLDER` in a process of its own, ended with this one."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path

from laurel.core.errors import LaurelError

SECONDS = 300.0
"""In which a model is loaded."""
CHILD = """
import os, runpy, sys, threading
def end():
    sys.stdin.buffer.read()
    os._exit(0)
threading.Thread(target=end, daemon=True).start()
sys.argv = ["laurel", "serve", sys.argv[1], "--port", "0"]
runpy.run_module("laurel", run_name="__main__")
"""
"""Ends when its input does: with the process that began it, however that ends."""
LINE = re.compile(r" is served at (http://\S+)/v1")


class ModelServer:
    """A server for the model in a folder. `url`: where it is."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.log = Path(tempfile.mkstemp(prefix="laurel-judge-", suffix=".log")[1])
        # a file, not a pipe: nobody need read it for the server to go on
        with self.log.open("wb") as out:
            command = [sys.executable, "-c", CHILD, folder]
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.PIPE
            )
        self.end = weakref.finalize(self, end_process, self.process, self.log)
        self.url = self.wait_for_url()

    def wait_for_url(self) -> str:
        """The address, once the model is loaded; LaurelError with the server's last words."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            said = self.log.read_text(encoding="utf-8", errors="replace")
            if found := LINE.search(said):
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        said = self.log.read_text(encoding="utf-8", errors="replace").strip()
        self.close()
        last = said.splitlines()[-1] if said else "It said nothing."
        what = f"`laurel serve` did not start. {last}"
        raise LaurelError(what, where=f"judge {self.folder}", fix="Does it load by itself?")

    def close(self) -> None:
        """End the server."""
        self.end()


def end_process(process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask the process to end, make it end, and take its log away."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
    log.unlink(missing_ok=True)


def digest_of_folder(folder: str) -> str:
    """The digest of a model's files, by names and contents."""
    found = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.is_file():
            found.update(path.name.encode())
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
