"""What a run reads besides its options, by content: so that a resumed run notices edited data, rewards and models."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from laurel.core.config import TrainConfig
from laurel.data.source import Row

ENDS = 1 << 20  # bytes: of a file of weights its size, beginning and end are enough to tell two trainings apart
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


def inputs(config: TrainConfig, rows: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """What is read -> a few words that change with its content. `rows`: the rows of each option that names data.

    Data by its rows, whatever holds them (a file, a folder, the hub, a generated task); rewards, environments and
    relabelling by the text of their Python files and of the files beside them that they import; models by their files.
    """
    found = {f"{option} {getattr(config, option)}": of_rows(read) for option, read in rows.items() if read}
    for option in ("rewards", "env", "relabel"):
        value = getattr(config, option, None)
        for name in value if isinstance(value, list) else [value] if isinstance(value, str) else []:
            words = of_code(name)
            if words:
                found[f"{option} {name}"] = words
    folders = [config.model, *(name.partition(":")[2] for name in config.rewards or () if name.startswith(("model:", "prm:")))]
    for folder in folders:
        if Path(folder).is_dir():
            found[f"model {folder}"] = of_model(Path(folder))
    if config.chat_template:
        found[f"chat_template {config.chat_template}"] = of_files([Path(config.chat_template)])
    return found


def of_rows(rows: Sequence[Row]) -> str:
    """How many rows, and a digest of what they hold, in their order in the source (a row's id is made from both)."""
    ids = sorted((row.id for row in rows), key=lambda name: int(name.rpartition("-")[2]))
    return f"{len(rows)} rows, {digest(name.encode() for name in ids)}"


def of_code(name: str) -> str:
    """A digest of the file behind `file.py:function` or `module.function`, and of what it imports from its own folder.

    "" where there is no such file.
    """
    path, colon, _ = name.rpartition(":")
    if not (colon and path.endswith(".py")):
        module = sys.modules.get(name.rpartition(".")[0])
        path = str(getattr(module, "__file__", None) or "")
    file = Path(path).expanduser()
    if not path.endswith(".py") or not file.is_file():
        return ""
    folder = file.resolve().parent
    beside = {Path(str(found)) for module in list(sys.modules.values()) if (found := getattr(module, "__file__", None))}
    return of_files(sorted({file.resolve(), *(one for one in beside if one.parent == folder and one.suffix == ".py")}))


def of_model(folder: Path) -> str:
    """A digest of a model's files: of weights the size and both ends, of all else every byte."""
    return of_files(sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")))


def of_files(files: Iterable[Path]) -> str:
    """One digest of several files, their names included."""
    return digest(part for file in files for part in (file.name.encode(), content(file)))


def content(file: Path) -> bytes:
    """A file's bytes; of weights the size, the first MiB and the last."""
    size = file.stat().st_size
    if file.suffix not in WEIGHTS or size <= 2 * ENDS:
        return file.read_bytes()
    with open(file, "rb") as stream:
        first = stream.read(ENDS)
        stream.seek(size - ENDS)
        return b"%d " % size + first + stream.read()


def digest(parts: Iterable[bytes]) -> str:
    """12 hex digits of the SHA-256 of parts, each told apart from the next by its length."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(b"%d:" % len(part) + part)
    return whole.hexdigest()[:12]
