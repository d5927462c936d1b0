"""Disks that refuse: whoever writes, the error is ours, names the file and says what to do; nothing
half-written stays.
"""

import errno
import os
import resource
import signal

import pytest
import torch
from safetensors.torch import save_file

from laurel.core.errors import LaurelError, UsageError
from laurel.core.files import (
    atomic_file,
    atomic_folder,
    disk_error,
    disk_errors,
    os_error_of,
    write_atomic,
)
from laurel.core.run import Run
from laurel.train.checkpoint import save_checkpoint
from laurel.train.session import State

BIG = {"a": torch.zeros(200, 200)}


@pytest.fixture
def limited():
    """No file may grow beyond 40 kB while the test runs."""
    before, was = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, was)


def bytes_to(path):
    path.write_bytes(bytes(100_000))


@pytest.mark.parametrize(
    "write", [bytes_to, lambda path: save_file(BIG, path), lambda path: torch.save(BIG, path)]
)
def test_a_full_disk_is_told_whichever_library_writes(tmp_path, limited, write):
    path = tmp_path / "it"
    with pytest.raises(LaurelError) as told, disk_errors(path):
        write(path)
    assert told.value.where == str(path)
    assert told.value.fix
    assert told.value.exit_code == 1
    with pytest.raises(ZeroDivisionError), disk_errors(path):  # a mistake in code is not the disk's
        _ = 1 / 0


@pytest.mark.parametrize(
    ("number", "said", "kind"),
    [
        (errno.ENOSPC, "No space left on device. Free some room", LaurelError),
        (errno.EROFS, "Read-only file system. Name a place", UsageError),
        (errno.EACCES, "Permission denied. Name a place", UsageError),
        (errno.ENOTDIR, "Not a directory. Is every folder", UsageError),
    ],
)
def test_what_the_system_says_becomes_what_where_fix(number, said, kind):
    error = OSError(number, os.strerror(number), "some/file")
    told = disk_error(error, "elsewhere")
    assert type(told) is kind
    assert str(told).startswith(f"some/file: {said}")
    assert str(disk_error(OSError(number, "No"), "elsewhere")).startswith("elsewhere: No.")
    assert os_error_of(ValueError("x")) is None
    assert os_error_of(RuntimeError("I/O error: no room (os error 28)")).errno == errno.ENOSPC


def test_a_run_on_a_full_disk_says_which_file_and_keeps_no_halves(tmp_path, limited):
    run = Run.create(tmp_path / "run", {}, resume=False)
    with pytest.raises(LaurelError, match=r"metrics\.jsonl: File too large"):
        run.log(1, {f"number {i}": 0.5 for i in range(3000)})
    weights = {"w": torch.nn.Parameter(torch.zeros(50, 50))}
    optimizer = torch.optim.AdamW(weights.values())
    save_checkpoint(run.checkpoints, run.id, "", weights, optimizer, State(1), keep=2)
    weights = {"w": torch.nn.Parameter(torch.zeros(200, 200))}
    with pytest.raises(LaurelError, match=r"checkpoints: File too large.*ulimit -f"):
        save_checkpoint(run.checkpoints, run.id, "", weights, optimizer, State(2), keep=2)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-1"]
    with pytest.raises(LaurelError, match=r"run\.json: File too large"):
        run.note({"much": "x" * 50_000})
    assert Run(run.folder).id == run.id


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    """New, over an old model of other shards, and failing: in the last case the old one stays."""
    folder = tmp_path / "model"
    with atomic_folder(folder) as made:
        write_atomic(made / "model-1.safetensors", "a")
        assert not folder.exists()
    (folder / "mine.txt").write_text("b")
    with pytest.raises(KeyError), atomic_folder(folder) as made:
        (made / "model.safetensors").write_text("c")
        raise KeyError
    assert sorted(file.name for file in folder.iterdir()) == ["mine.txt", "model-1.safetensors"]
    with atomic_folder(folder) as made:
        (made / "model.safetensors").write_text("d")
    assert sorted(file.name for file in folder.iterdir()) == ["mine.txt", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "plain").touch()
    with (
        pytest.raises(UsageError, match="plain: File exists"),
        atomic_folder(tmp_path / "plain" / "model"),
    ):
        pass
    with pytest.raises(UsageError, match="No such file"), atomic_file(tmp_path / "none" / "x"):
        pass
