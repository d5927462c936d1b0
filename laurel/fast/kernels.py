"""The compiled passes of decoding and training (kernels.cpp): built once per machine where there is
a C++ compiler, else absent.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laurel.core.machine import cpu_name

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = (
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-freciprocal-math",
    "-mprefer-vector-width=512",
)
"""Not -ffast-math: a library linked with it makes the whole process flush small numbers to zero."""


def cache_folder() -> Path:
    """Where what belongs to a machine and its user is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "laurel"


@cache
def load_library() -> Any:
    """The loaded library, compiled into the user's cache folder when it is not there yet; None
    where that does not work.
    """
    if (compiler := shutil.which("g++")) is None:
        return None
    digest = hashlib.sha256(
        "|".join(
            (SOURCE.read_text(), *FLAGS, cpu_name("flags"), os.path.realpath(compiler))
        ).encode()
    ).hexdigest()[:16]
    folder = cache_folder()
    path = folder / f"kernels-{digest}.so"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as made:
                subprocess.run(
                    [compiler, *FLAGS, str(SOURCE), "-o", f"{made}/kernels.so"],
                    check=True,
                    capture_output=True,
                    timeout=120,
                )
                os.replace(f"{made}/kernels.so", path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


SKIPPING, ELSEWHERE = [False], [False]
"""The innermost block says: is nothing computed? Do tensors on the CPU stand for tensors of another
device?
"""


@contextmanager
def push_true(stack: list[bool]) -> Generator[None]:
    """Puts True on top of a stack, as long as the block lasts."""
    stack.append(True)
    try:
        yield
    finally:
        stack.pop()


def skip_calls() -> AbstractContextManager[None]:
    """A block in which `call_kernel` does nothing: for tensors that have shapes and no memory."""
    return push_true(SKIPPING)


def off_cpu() -> AbstractContextManager[None]:
    """A block in which tensors count as on another device than a CPU.

    For tensors without memory that stand for tensors there.
    """
    return push_true(ELSEWHERE)


def on_cpu(x: Tensor) -> bool:
    """Is a tensor on a CPU, and does it stand for itself?"""
    return x.device.type == "cpu" and not ELSEWHERE[-1]


def call_kernel(name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> None:
    """A function of kernels.cpp on tensors of `dtype` (float32 or bfloat16), contiguous, on the
    CPU; a tensor goes as its address.
    """
    if SKIPPING[-1]:
        return
    load_library()[f"laurel_{name}"](ctypes.c_int(dtype == torch.float32), *map(as_c, arguments))


def as_c(value: Tensor | int | float | None) -> Any:
    """A tensor's address, an integer or a number, as C takes it."""
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return (
        ctypes.c_void_p(None)
        if value is None
        else ctypes.c_float(value)
        if isinstance(value, float)
        else ctypes.c_int64(value)
    )
