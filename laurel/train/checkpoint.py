"""Checkpoints: weights, optimiser and state, written atomically, verified by hash.

A half-written one is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from laurel.core.errors import LaurelError
from laurel.core.files import disk_errors
from laurel.train.session import State

TENSOR_FILES: Any = safetensors.torch
"""The library of tensor files, whose arguments are typed in part."""
Parameters = dict[str, torch.nn.Parameter]
OURS = ("weight_decay", "betas", "eps")
"""Options of an optimiser that are the configuration's, whatever the checkpoint says."""


def whole_or_nothing(save: Callable[..., Path]) -> Callable[..., Path]:
    """A decorator: errors of the disk name the folder, and half a checkpoint is removed."""

    @wraps(save)
    def saved(folder: Path, *what: object, **options: object) -> Path:
        try:
            with disk_errors(folder):
                return save(folder, *what, **options)
        except BaseException:
            for half in folder.glob(".step-*.tmp"):
                shutil.rmtree(half, ignore_errors=True)
            raise

    return saved


@whole_or_nothing
def save_checkpoint(
    folder: Path,
    run: str,
    template: str,
    parameters: Parameters,
    optimizer: Any,
    state: State,
    *,
    keep: int,
) -> Path:
    """Write `folder/step-N` of the run with that id.

    The files are written first, then the manifest of their hashes; one rename makes it a
    checkpoint. Older checkpoints are removed afterwards, except the best one.
    """
    final, temporary = folder / f"step-{state.step}", folder / f".step-{state.step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    TENSOR_FILES.save_file(
        {name: p.detach().cpu().contiguous() for name, p in parameters.items()},
        temporary / "weights.safetensors",
    )
    torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
    (temporary / "state.json").write_text(
        json.dumps({**asdict(state), "run": run, "template": template})
    )
    manifest = {file.name: digest(file) for file in sorted(temporary.iterdir())}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for file in temporary.iterdir():
        flush_to_disk(file)
    flush_to_disk(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    flush_to_disk(folder)
    for old in finished_checkpoints(folder)[keep:]:
        if old.name != f"step-{state.best_step}":
            shutil.rmtree(old)
    return final


def finished_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints, newest first.

    Finished means that the rename happened; `is_sound` tells whether the files are intact.
    """
    return sorted(folder.glob("step-*"), key=lambda path: -int(path.name.removeprefix("step-")))


def is_sound(checkpoint: Path) -> bool:
    """Does every file named in the manifest exist with its hash?"""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        return bool(manifest) and all(
            digest(checkpoint / name) == value for name, value in manifest.items()
        )
    except (OSError, ValueError):
        return False


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint, and the names of damaged ones passed over.

    The checkpoint is None where none is sound.
    """
    damaged = list[str]()
    for checkpoint in finished_checkpoints(folder):
        if is_sound(checkpoint):
            return checkpoint, damaged
        damaged.append(checkpoint.name)
    return None, damaged


def load_checkpoint(
    checkpoint: Path,
    run: str,
    template: str,
    parameters: Parameters,
    optimizer: Any,
    reference: str,
) -> State:
    """Put weights and optimiser back bit by bit.

    Another run's checkpoint, reference or chat template is an error.
    """
    saved = json.loads((checkpoint / "state.json").read_text())
    if saved.pop("run", run) != run:
        fix = "Move it away; to train on from its weights, load them as a model."
        raise LaurelError(
            "this checkpoint was written by another run.", where=str(checkpoint), fix=fix
        )
    for what, now in [("reference", reference), ("template", template)]:
        if saved[what] != now:
            raise LaurelError(
                f"the {what} is not the one this run started with.",
                where=str(checkpoint),
                fix=(
                    "The model folder has changed since: put the old one back, or start a new"
                    " output_dir."
                ),
            )
    weights = TENSOR_FILES.load_file(checkpoint / "weights.safetensors")
    if weights.keys() != parameters.keys():
        raise LaurelError(
            "the checkpoint holds other parameters than the model.",
            where=str(checkpoint),
            fix="Was use_peft changed?",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    asked = [
        {name: group[name] for name in OURS if name in group} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(
        torch.load(
            checkpoint / "optimizer.pt",
            weights_only=True,
            map_location=next(iter(parameters.values())).device,
        )
    )
    for group, values in zip(optimizer.param_groups, asked, strict=True):
        group.update(values)
    del saved["template"]
    return State(**saved | {"moments": tuple(saved["moments"])})


def digest(file: Path) -> str:
    """sha256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
