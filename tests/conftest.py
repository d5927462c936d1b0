"""Shared by every test: where the real data lies, one thread for tiny models, and what a run makes
once for all of its processes.
"""

import fcntl
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items):
    """What needs a CUDA device is skipped where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(
                pytest.mark.skip(
                    reason=(
                        "needs a CUDA device, and torch sees none (bench/gpu.sh runs these on one)"
                    )
                )
            )


@pytest.fixture(scope="session")
def shared():
    """`shared("data/gsm8k/test.jsonl")` -> that path beside the checkout; skips the test where it
    is absent.
    """

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} in the folder `shared` beside the checkout")
        return path

    return find


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)` -> a folder that `make(folder)` has filled, once a run: other processes of
    the run wait, and find it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    shared.mkdir(exist_ok=True)

    def find(name: str, make: Callable[[Path], object]) -> Path:
        folder, making = shared / name, shared / f"{name}.making"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                making.mkdir()  # fails where the first process failed: its error is the one to read
                make(making)
                making.rename(folder)
        return folder

    return find
