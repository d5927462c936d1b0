"""Checks a model folder before any weight is read: its files, their lengths, an adapter's base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from laurel.core.errors import UsageError
from laurel.core.json_values import is_object

ADAPTER = "adapter_config.json"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
AGAIN = "Copy or download it again."
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""The first bytes of files that torch writes."""


def check_folder(name: str) -> None:
    """UsageError for a name that looks like a path and is no whole model folder.

    So transformers never asks the hub for it. Of its files only the headers are read: an index must
    name files that are there, each of the length in its header. An adapter's base is checked, too.
    """
    path = Path(name)
    if not (looks_local(name) or path.exists()):
        return
    if not path.is_dir():
        fix = "Give a folder with config.json, or a hub name."
        raise UsageError("no such model folder.", where=f"model={name}", fix=fix)
    if (path / ADAPTER).is_file():
        check_adapter(path)
    elif not (path / "config.json").is_file():
        fix = "A trained run keeps its model in RUN/model."
        raise UsageError("the folder holds no config.json.", where=f"model={name}", fix=fix)
    for file in weight_files(path):
        check_file(file)


def looks_local(name: str) -> bool:
    """Can this only be a path? Names on the hub are `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def weight_files(folder: Path) -> Iterator[Path]:
    """The files that transformers or peft would read the weights of a folder from."""
    if (folder / ADAPTER).is_file():
        yield from [folder / name for name in ADAPTERS if (folder / name).is_file()][:1]
        return
    for whole, index in zip(WHOLE, INDEXES, strict=True):
        if (folder / whole).is_file():
            yield folder / whole
            return
        if (folder / index).is_file():
            yield from shard_files(folder / index)
            return


def shard_files(index: Path) -> list[Path]:
    """The files that an index names, each of which must be there."""
    named = read_object(index).get("weight_map")
    if not is_object(named) or not named:
        raise UsageError("it has no `weight_map`.", where=str(index), fix=AGAIN)
    files = sorted({str(name) for name in named.values()})
    lost = [name for name in files if not (index.parent / name).is_file()]
    if lost:
        what = f"it names {len(files)} files, and {len(lost)} are not there, such as {lost[0]}."
        raise UsageError(what, where=str(index), fix="Copy or download the missing ones.")
    return [index.parent / name for name in files]


def check_file(file: Path) -> None:
    """UsageError for a file of weights that is cut short, or is something else."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(8)
        if start.startswith(b"version "):
            fix = "Fetch the file itself: `git lfs pull`, or download the model again."
            raise UsageError(
                "this is a pointer of Git LFS, not the weights.", where=str(file), fix=fix
            )
        if file.suffix == ".safetensors":
            # a safetensors file begins with the length of its header
            length = int.from_bytes(start, "little") if size > 8 else 0
            check_header(file, stream.read(length), size)
        # the table of what is in a zip is at its end
        elif start.startswith(ZIP) and not is_zipfile(file):
            raise UsageError("the file is cut short.", where=str(file), fix=AGAIN)
        # torch writes a zip, or, in old versions, a bare pickle
        elif not start.startswith((ZIP, PICKLE)):
            raise UsageError(
                "this is no file of weights that torch wrote.", where=str(file), fix=AGAIN
            )


def check_header(file: Path, header: bytes, size: int) -> None:
    """UsageError for a header of a safetensors file that is damaged or names packed integers.

    The header must be JSON, and its offsets must fit the file's size.
    """
    try:
        entries = json.loads(header)
        tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        kinds = {name: entry["dtype"] for name, entry in tensors.items()}
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, MemoryError):
        raise UsageError(
            "this is no safetensors file, or it is damaged.", where=str(file), fix=AGAIN
        ) from None
    if size != 8 + len(header) + end:
        what = f"the file has {size} bytes, and its header tells of {8 + len(header) + end}."
        raise UsageError(what, where=str(file), fix=AGAIN)
    packed = sorted(
        name for name, kind in kinds.items() if kind in ("I8", "U8") and name.endswith("weight")
    )
    if packed:
        what = f"{len(packed)} weights are 8-bit integers, such as {packed[0]}: a quantised model."
        raise UsageError(what, where=str(file), fix="Take the model in bfloat16 or float32.")


def check_adapter(folder: Path) -> None:
    """UsageError for a folder of adapters that laurel cannot load.

    They must be LoRA, with their weights, on a base that is there and is no adapter itself.
    """
    base = adapter_base(folder)
    where = str(folder / ADAPTER)
    if (Path(base) / ADAPTER).is_file():
        fix = "Merge that one first: peft's `merge_and_unload`, then `save_pretrained`."
        raise UsageError(f"its base {base} is an adapter itself.", where=where, fix=fix)
    if looks_local(base) and not Path(base).is_dir():
        fix = "If it has moved, write its new place there as `base_model_name_or_path`."
        raise UsageError(f"the adapter's base model is not there: {base}.", where=where, fix=fix)
    config = read_object(folder / ADAPTER)
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        fix = "Merge it into its base with peft, if it can be, and give that folder."
        raise UsageError(
            f"its adapter is of the type {kind}, and laurel takes LoRA.", where=where, fix=fix
        )
    if config.get("ensure_weight_tying"):
        fix = "Merge it into its base with peft (`merge_and_unload`), and give that folder."
        raise UsageError(
            "its adapters share their weights (ensure_weight_tying), and laurel cannot copy them.",
            where=where,
            fix=fix,
        )
    if not any((folder / name).is_file() for name in ADAPTERS):
        what = f"the folder holds no weights of the adapter ({ADAPTERS[0]})."
        raise UsageError(what, where=f"model={folder}", fix="Copy the whole folder.")
    check_folder(base)


def adapter_base(folder: str | Path) -> str:
    """The model under an adapter: what its configuration names."""
    file = Path(folder) / ADAPTER
    base = read_object(file).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        fix = "Write its folder or hub name there as `base_model_name_or_path`."
        raise UsageError("the adapter names no base model.", where=str(file), fix=fix)
    return base


def is_adapter(name: str) -> bool:
    """Is this a folder with adapters, to be put on a base?"""
    return (Path(name) / ADAPTER).is_file()


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object of a model folder."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"it cannot be read: {' '.join(str(error).split())}."
        raise UsageError(what, where=str(file), fix=AGAIN) from error
    if not is_object(found):
        raise UsageError("this is no JSON object.", where=str(file), fix=AGAIN)
    return dict(found)
