"""Digests of what a run reads besides its options.

By them a resumed run notices edited data, rewards and models.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from laurel.core.bound_objects import bound_object
from laurel.core.config import TrainConfig
from laurel.core.named_datasets import format_named_sets
from laurel.data.source import Row
from laurel.judge.options import files_of
from laurel.model.folders import adapter_base, is_adapter
from laurel.model.policy import weights_hash

ENDS = 1 << 20
"""Bytes at both ends of a file of weights that, with its size, tell two trainings apart."""
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


def digest_inputs(config: TrainConfig, rows: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """What is read -> a few words that change with its content.

    `rows`: the rows of each option that names data. Data counts by its rows, whatever holds them (a
    file, a folder, the hub, a generated task); rewards, environments and relabelling by the text of
    their Python files and of those that these import from the same folder; models by their files.
    """
    found = {
        f"{option} {format_named_sets(getattr(config, option))}": digest_rows(read)
        for option, read in rows.items()
        if read
    }
    for option in ("rewards", "env", "relabel"):
        value = getattr(config, option, None)
        names = list[str]() if value is None else [value] if isinstance(value, str) else list(value)
        for name in names:
            words = (
                digest_object(bound_object(name))
                if bound_object(name) is not None
                else digest_code(name)
            )
            if words:
                found[f"{option} {name}"] = words
    if (model := bound_object(config.model)) is not None:
        found[f"model {config.model}"] = digest_given_model(model, whole=config.use_peft)
    folders = [
        config.model,
        *(
            name.partition(":")[2]
            for name in config.rewards or ()
            if name.startswith(("model:", "prm:"))
        ),
    ]
    # the model that adapters are put on counts, too
    folders += [adapter_base(folder) for folder in folders if is_adapter(folder)]
    for folder in folders:
        if Path(folder).is_dir():
            found[f"model {folder}"] = digest_model_folder(Path(folder))
    if config.chat_template:
        found[f"chat_template {config.chat_template}"] = digest_files([Path(config.chat_template)])
    return found


def digest_rows(rows: Sequence[Row]) -> str:
    """How many rows, and a digest of what they hold, in their order in the source.

    A row's id is made from both.
    """
    ids = sorted((row.id for row in rows), key=lambda name: int(name.rpartition("-")[2]))
    return f"{len(rows)} rows, {digest_parts(name.encode() for name in ids)}"


def digest_code(name: str) -> str:
    """A digest of the file behind `file.py:function` or `module.function`, "" if there is none.

    What the file imports from its own folder counts, too; of `judge:FILE.yaml` its prompt does.
    """
    if name.startswith("judge:"):
        return digest_files(files_of(name.removeprefix("judge:")))
    path, colon, _ = name.rpartition(":")
    file = (
        Path(path).expanduser()
        if colon and path.endswith(".py")
        else file_of(name.rpartition(".")[0])
    )
    if file is None or not file.is_file():
        return ""
    return digest_files(sorted(with_neighbours(file.resolve())))


def digest_object(thing: Any) -> str:
    """A digest of the text of a function or class; "" where Python cannot show it."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    try:
        text = inspect.getsource(
            thing if hasattr(thing, "__qualname__") else cast("Any", type(thing))
        )
    except (OSError, TypeError):
        return ""
    return digest_parts([text.encode()])


def digest_given_model(model: Any, *, whole: bool) -> str:
    """A digest of a model in memory: of its kind and shapes, and with `whole` of its weights.

    Without adapters a checkpoint holds every weight, so a resumed run does not depend on those the
    model came with.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    shapes = sorted(
        f"{name.replace('.base_layer', '')} {tuple(p.shape)}"
        for name, p in base.named_parameters()
        if "lora_" not in name
    )
    parts = [type(base).__name__, *shapes]
    if whole or base is not model:
        parts.append(weights_hash(base, skip="lora_"))
    return digest_parts(part.encode() for part in parts)


def file_of(module: str) -> Path | None:
    """The file of a module by name: in the current folder, else where Python finds it."""
    here = Path(*module.split(".")).with_suffix(".py") if module else None
    if here is None or here.is_file():
        return here
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found and found.origin and found.origin.endswith(".py") else None


def with_neighbours(file: Path) -> set[Path]:
    """The file and all that it imports from its own folder, read off the text.

    The result is the same whatever has been imported already.
    """
    found, new = set[Path](), [file]
    while new:
        one = new.pop()
        if one in found:
            continue
        found.add(one)
        try:
            tree = ast.parse(one.read_bytes())
        except (SyntaxError, ValueError):
            continue
        names = [
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names += [node.module] if node.module else [alias.name for alias in node.names]
        for name in {name.partition(".")[0] for name in names}:
            new += [path for path in (file.parent / f"{name}.py",) if path.is_file()]
            new += (
                sorted((file.parent / name).rglob("*.py")) if (file.parent / name).is_dir() else []
            )
    return found


def digest_model_folder(folder: Path) -> str:
    """A digest of a model's files: of weights the size and both ends, of all else every byte."""
    return digest_files(
        sorted(
            file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")
        )
    )


def digest_files(files: Iterable[Path]) -> str:
    """One digest of several files, their names included."""
    return digest_parts(
        part for file in files for part in (file.name.encode(), content_to_digest(file))
    )


def content_to_digest(file: Path) -> bytes:
    """A file's bytes; of weights the size, the first MiB and the last."""
    size = file.stat().st_size
    if file.suffix not in WEIGHTS or size <= 2 * ENDS:
        return file.read_bytes()
    with open(file, "rb") as stream:
        first = stream.read(ENDS)
        stream.seek(size - ENDS)
        return b"%d " % size + first + stream.read()


def digest_parts(parts: Iterable[bytes]) -> str:
    """12 hex digits of the SHA-256 of parts, each told apart from the next by its length."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(b"%d:" % len(part) + part)
    return whole.hexdigest()[:12]
