"""An `output_dir` that counts up: `runs/grpo-{n}` is the next free number.

Making the folder takes the number, so that no two runs get the same.
"""

from __future__ import annotations

import re
from pathlib import Path

from laurel.core.errors import UsageError
from laurel.core.lock import NAME as LOCK_FILE

MARK = "{n}"


def claim_dir(output_dir: str | Path, *, newest: bool = False) -> tuple[Path, bool]:
    """The folder that a name with `{n}` means now, and whether this call made it.

    A name without `{n}` stays as it is. newest: the highest number that holds a run already, to be
    continued; the next free one where none does.
    """
    text = str(output_dir)
    if MARK not in text:
        return Path(output_dir), False
    parts = Path(text).parts
    places = [i for i, part in enumerate(parts) if MARK in part]
    if len(places) > 1 or parts[places[0]].count(MARK) > 1:
        raise UsageError(f"`{MARK}` can stand in one place only.", where=f"output_dir {text}")
    at = places[0]
    parent, name, rest = Path(*parts[:at]), parts[at], Path(*parts[at + 1 :])
    parent.mkdir(parents=True, exist_ok=True)
    taken = taken_numbers(parent, name)
    for number in reversed(taken if newest else []):
        folder = parent / name.replace(MARK, str(number)) / rest
        if (folder / "run.json").exists():
            return folder, False
    return make_next(parent, name, taken[-1] + 1 if taken else 1) / rest, True


def taken_numbers(parent: Path, name: str) -> list[int]:
    """The numbers of the folders in `parent` that have this name, in order."""
    before, _, after = name.partition(MARK)
    shape = re.compile(re.escape(before) + r"([1-9]\d*)" + re.escape(after))
    matches = (shape.fullmatch(child.name) for child in parent.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def make_next(parent: Path, name: str, number: int) -> Path:
    """Make the folder of this number, or of the first one above it that no other process has."""
    while True:
        folder = parent / name.replace(MARK, str(number))
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder


def remove_empty_dir(folder: Path) -> None:
    """Remove a folder in which nothing was written."""
    if folder.is_dir() and all(child.name == LOCK_FILE for child in folder.iterdir()):
        (folder / LOCK_FILE).unlink(missing_ok=True)
        folder.rmdir()
