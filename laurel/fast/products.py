"""Which library multiplies float32 matrices on a CPU: measured once per machine and kind of work,
for at most 50 ms, then remembered.

torch has two, its default (MKL in most builds) and oneDNN, which it uses where a lower precision is
allowed: but only on some CPUs is what comes out then of a lower precision. On others the same
switch means oneDNN's own float32. So what it says is looked at, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from laurel.core.errors import UsageError
from laurel.core.files import write_atomic
from laurel.core.machine import cpu_name
from laurel.fast.kernels import cache_folder

DEFAULT, ONEDNN = "default", {"onednn/tf32": "tf32", "onednn/bf16": "bf16"}
"""Names of the choices; what the switch is set to for those that are oneDNN's."""
PIN = "LAUREL_PRODUCTS"
"""An environment variable that names the choice."""
BUDGET, MARGIN, EXACT = 0.05, 1.2, 1e-6
"""Seconds of the measurement; how many times as fast as the default another must be; how near the
exact product, of the largest.
"""
NARROW = 256
"""A model whose matrices are narrower than this is not measured: its products are too short to tell
libraries apart.
"""
OPERATIONS = 1 << 29
"""Of a product that is measured, at most: a few milliseconds."""


def matmul_settings() -> Any:
    """torch's settings of oneDNN's products, which its types leave out."""
    mkldnn: Any = torch.backends.mkldnn
    return mkldnn.matmul


@contextmanager
def product_library(name: str) -> Generator[None]:
    """Within it float32 products are this library's."""
    switch = matmul_settings()
    was = switch.fp32_precision
    set_product_library(name)
    try:
        yield
    finally:
        switch.fp32_precision = was


def set_product_library(name: str) -> None:
    """From now on float32 products are this library's."""
    matmul_settings().fp32_precision = ONEDNN.get(name, "none")


def choose_product_library(
    model: nn.Module, device: torch.device, dtype: torch.dtype, known: str | None = None
) -> str:
    """Take the library for this model's products, and say which: `known` (what a run began with),
    the pinned one, or by measurement.

    A measurement is remembered for this machine, number of threads and shape, so that the same run
    started again multiplies with the same library and has the same numbers to the last bit.
    """
    if device.type != "cpu":
        return DEFAULT
    name = known or os.environ.get(PIN)
    if name is None:
        shape = largest_product_shape(model)
        fit = (
            dtype == torch.float32
            and torch.backends.mkldnn.is_available()
            and min(shape[1:]) >= NARROW
        )
        name = cached_choice(*shape) if fit else DEFAULT
    if name not in (DEFAULT, *ONEDNN):
        raise UsageError(
            f"no library is called {name!r}.",
            where=PIN,
            fix=f"Give one of {', '.join((DEFAULT, *ONEDNN))}.",
        )
    set_product_library(name)
    return name


def largest_product_shape(model: nn.Module) -> tuple[int, int, int]:
    """rows, inner and columns of a product of the model's own: its largest matrix but the
    vocabulary's, and as many tokens as are quick.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    shapes = [p.shape for p in model.parameters() if p.ndim == 2 and id(p) not in tables]
    columns, inner = max(
        shapes, key=lambda shape: (min(shape), shape.numel()), default=torch.Size((1, 1))
    )
    rows = OPERATIONS // (2 * inner * columns)
    return max(16, min(1024, 1 << max(0, rows.bit_length() - 1))), inner, columns


def cached_choice(rows: int, inner: int, columns: int) -> str:
    """The choice for such a product on this machine: what was found the first time, by whichever
    process was first.
    """
    about = (cpu_name(), torch.__version__, torch.get_num_threads(), rows, inner, columns)
    file = cache_folder() / f"products-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads(file.read_text())["library"])
    found = pick_quickest(measure_libraries(rows, inner, columns))
    with suppress(OSError):  # where it cannot be written it is measured again the next time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps({"library": found}) + "\n")
    return found


def pick_quickest(seconds: dict[str, float]) -> str:
    """The quickest, where it is clearly quicker than the default; else the default."""
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds[DEFAULT] >= MARGIN * seconds[best] else DEFAULT


@torch.no_grad()
def measure_libraries(
    rows: int, inner: int, columns: int, budget: float = BUDGET
) -> dict[str, float]:
    """Seconds of one product with each library whose float32 is float32, the least of what fits
    into the budget, in turns.
    """
    end, coin = time.perf_counter() + budget, torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, generator=coin) for size in ((rows, inner), (columns, inner)))
    out, seconds = torch.empty(rows, columns), dict[str, float]()
    for name in (DEFAULT, *ONEDNN):
        with product_library(name):
            torch.mm(
                left, right.t(), out=out
            )  # a library prepares itself at its first product of a shape
        if name == DEFAULT or is_exact_product(left, right, out):
            seconds[name] = float("inf")
    while time.perf_counter() < end or seconds[DEFAULT] == float("inf"):
        for name in seconds:
            with product_library(name):
                began = time.perf_counter()
                torch.mm(left, right.t(), out=out)
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def is_exact_product(left: Tensor, right: Tensor, out: Tensor) -> bool:
    """Is left times right' what float32 can give, in its first rows?"""
    wanted = left[:16].double() @ right[:64].double().t()
    return float((out[:16, :64] - wanted).abs().max()) <= EXACT * float(wanted.abs().max())
