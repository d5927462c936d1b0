"""The compiled part of the compact decoder (kernels.cpp): built once per machine where there is a C++ compiler, else absent."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
         "-fassociative-math", "-freciprocal-math", "-mprefer-vector-width=512")  # fmt: skip
"""Not -ffast-math: a library linked with it makes the whole process flush small numbers to zero."""


@cache
def library() -> Any:
    """The loaded library, compiled into the user's cache folder when it is not there yet; None where that does not work."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    info = Path("/proc/cpuinfo")
    machine = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "") if info.exists() else ""
    digest = hashlib.sha256("|".join((SOURCE.read_text(), *FLAGS, machine, os.path.realpath(compiler))).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "laurel"
    path = folder / f"kernels-{digest}.so"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as made:
                subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", f"{made}/kernels.so"], check=True, capture_output=True, timeout=120)
                os.replace(f"{made}/kernels.so", path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


class Kernels:
    """Calls with tensors in place of addresses. kind: 0 float32, 1 float32 rounded to bfloat16, 2 bfloat16. All tensors are contiguous."""

    def __init__(self, kind: int) -> None:
        self.kind = kind

    def call(self, name: str, *arguments: Tensor | int | float | None) -> None:
        library()[f"laurel_{name}"](ctypes.c_int(self.kind), *map(as_c, arguments))


def as_c(value: Tensor | int | float | None) -> Any:
    """A tensor's address, an integer or a number, as C takes it."""
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_void_p(None) if value is None else ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)


def kernels_for(device: torch.device, work: torch.dtype, rounded: bool) -> Kernels | None:
    """The compiled part for tensors of that kind, or None: another device, or no compiler."""
    if device.type != "cpu" or library() is None:
        return None
    return Kernels(2 if work == torch.bfloat16 else int(rounded))
