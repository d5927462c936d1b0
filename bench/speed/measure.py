"""A contender's side of a race: a process that waits for its turn, does one repetition, and says
how long it took and what it held.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Over(Exception):
    """The race is over: raised where a trainer owns the loop and has no other way out."""


class Turns:
    """Turns are given by a line on standard input and answered by a line of JSON on what was
    standard output.

    Everything else that is printed goes to standard error.
    """

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.began, self.base, self.first = 0.0, resident_mb(), True

    def ready(self, **facts: Any) -> None:
        """What was to be made is made."""
        self.base = resident_mb()
        self.answers.write(json.dumps({"ready": True, **facts}) + "\n")

    def begin(self) -> bool:
        """Wait for a turn; False when there will be none. The peak of memory counts from the first
        turn.
        """
        if not sys.stdin.readline().strip():
            return False
        if self.first:
            forget_peak()
            self.first = False
        self.began = time.perf_counter()
        return True

    def end(self, **figures: Any) -> None:
        """The repetition is done: `seconds` unless given."""
        seconds = time.perf_counter() - self.began
        self.answers.write(
            json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "base_mb": self.base, **figures})
            + "\n"
        )

    def each(self, repetition: Callable[[], dict[str, Any] | None]) -> None:
        """One repetition per turn. A `bound` among its figures is a function: the seconds that the
        machine allows at its rates of now.
        """
        self.ready()
        while self.begin():
            figures = repetition() or {}
            figures = {"seconds": time.perf_counter() - self.began, "peak_mb": peak_mb(), **figures}
            if (
                "bound" in figures
            ):  # measured now, beside the repetition, and neither in its time nor in its memory
                figures["bound"] = figures["bound"]()
            self.end(**figures)


def _status(name: str) -> float | None:
    """A line of /proc/self/status in MB."""
    try:
        lines = dict(
            line.split(":", 1)
            for line in Path("/proc/self/status").read_text().splitlines()
            if ":" in line
        )
        return int(lines[name].split()[0]) / 1024
    except (OSError, KeyError, ValueError):
        return None


def resident_mb() -> float:
    """Memory of this process now."""
    return _status("VmRSS") or 0.0


def peak_mb() -> float:
    """The most memory it held since the peak was forgotten (where the system cannot forget: since
    it began); on a GPU the GPU's.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """Let the peak of memory count from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print(
            "this system does not forget peaks of memory: they count from the start of the process",
            file=sys.stderr,
        )


def give_back_at_once() -> None:
    """Let freed blocks of 64 KiB and more leave the process at once (glibc), so that resident
    memory is memory in use.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
        libc.malloc_trim(0)
    except (OSError, AttributeError):
        print(
            "this C library keeps freed memory: extra memory will look too small", file=sys.stderr
        )


def synchronise() -> None:
    """Wait for a GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
