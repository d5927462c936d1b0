"""Artefacts by content: a stage with the same options and inputs is not made again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import laurel
from laurel.core.files import read_json, write_atomic

MARK = "artefact.json"


@dataclass(frozen=True)
class Artefact:
    """A finished stage: its folder, and the digest of what it made.

    The digest is the key that later stages depend on.
    """

    folder: Path
    digest: str
    made: bool


def make(
    root: Path, stage: str, parts: Mapping[str, Any], build: Callable[[Path], list[str]]
) -> Artefact:
    """The artefact of `stage` for these parts, under root/STAGE-KEY.

    parts: options, and digests of inputs. `build(folder)` makes it and returns the names of the
    files and folders that are the artefact; called again after a kill it continues. The folder
    counts as finished once its mark is written, with a hash per file: a file that has changed since
    is made again.
    """
    key = digest_of({"stage": stage, "laurel": laurel.__version__, **parts})[:12]
    folder = root / f"{stage}-{key}"
    mark = read_json(folder / MARK)
    if mark and all(hashed(folder / name) == value for name, value in mark["files"].items()):
        return Artefact(folder, mark["digest"], made=False)
    if mark:  # finished once, and changed since
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        str(path.relative_to(folder)): hashed(path)
        for name in build(folder)
        for path in sorted(within(folder / name))
    }
    digest = digest_of(files)
    write_atomic(
        folder / MARK,
        json.dumps({"stage": stage, "digest": digest, "files": files}, indent=1) + "\n",
    )
    return Artefact(folder, digest, made=True)


def digest_of(value: Any) -> str:
    """sha256 of a value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hashed(path: Path) -> str:
    """sha256 of a file's bytes; empty where there is no file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def within(path: Path) -> list[Path]:
    """The file itself, or every file below a folder."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def source(name: str | None) -> Any:
    """What a user's name stands for: a file or folder by its content, any other name itself."""
    if name is None:
        return None
    path, _, function = name.partition(":") if ".py:" in name else (name, "", "")
    if not Path(path).exists():
        return name
    files = {str(file.relative_to(path)): hashed(file) for file in sorted(within(Path(path)))}
    return [digest_of(files), function]
