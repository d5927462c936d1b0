"""An `output_dir` that counts up: `runs/grpo-{n}` is the next free number, taken by making the
folder, so that no two runs get one.
"""

from __future__ import annotations

import re
from pathlib import Path

from laurel.core.errors import UsageError
from laurel.core.lock import NAME as LOCK_FILE

MARK = "{n}"


def claim_dir(output_dir: str | Path, *, newest: bool = False) -> tuple[Path, bool]:
    """The folder that a name with `{n}` means now, and whether it was made for this call; any other
    name as it is.

    newest: the highest number that holds a run already, to be continued; the next free one where
    none does.
    """
    text = str(output_dir)
    if MARK not in text:
        return Path(output_dir), False
    parts = Path(text).parts
    places = [i for i, part in enumerate(parts) if MARK in part]
    if len(places) > 1 or parts[places[0]].count(MARK) > 1:
        raise UsageError(f"`{MARK}` can stand in one place only.", where=f"output_dir {text}")
    at = places[0]
    parent, rest = Path(*parts[:at]), Path(*parts[at + 1 :])
    before, _, after = parts[at].partition(MARK)
    parent.mkdir(parents=True, exist_ok=True)

    def numbered(number: int) -> Path:
        return parent / f"{before}{number}{after}"

    shape = re.compile(re.escape(before) + r"([1-9]\d*)" + re.escape(after))
    taken = sorted(
        int(found[1]) for child in parent.iterdir() if (found := shape.fullmatch(child.name))
    )
    for number in reversed(taken if newest else []):
        if (numbered(number) / rest / "run.json").exists():
            return numbered(number) / rest, False
    number = taken[-1] + 1 if taken else 1
    while True:  # ends at the first number that nobody has: each turn somebody else was faster
        try:
            numbered(number).mkdir()
        except FileExistsError:
            number += 1
            continue
        return numbered(number) / rest, True


def remove_empty_dir(folder: Path) -> None:
    """Remove a folder in which nothing was written."""
    if folder.is_dir() and all(child.name == LOCK_FILE for child in folder.iterdir()):
        (folder / LOCK_FILE).unlink(missing_ok=True)
        folder.rmdir()
