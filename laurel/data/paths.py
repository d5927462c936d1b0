"""From a name to files: one file, a list of files, a pattern, or a folder as `datasets` saves it
and as the hub's sets are cloned.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path

from laurel.core.errors import UsageError
from laurel.data.read import SUFFIXES, missing_file, suffix_of

META = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "metadata.json",
)
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
}
"""Words of file and folder names that say the split, and how it is called."""
Place = tuple[Path, str]
"""A file, and how the places of its rows call it."""


def files_of(name: str, split: str = "train") -> list[Place]:
    """The files that a name stands for, in order.

    A folder gives those of its split; what is not there, or not clear, is a UsageError.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return files_in(path, split)
    if path.exists() or not (is_list(name) or is_pattern(name)):
        return [(path, path.name)]
    found = [place for part in split_names(name) for place in _part(part, split)]
    return _with_distinct_names(found)


def split_names(name: str) -> list[str]:
    """The names in a list `a.jsonl,b.jsonl`; a name that is a file, comma and all, is one."""
    return [part.strip() for part in name.split(",") if part.strip()] if is_list(name) else [name]


def is_list(name: str) -> bool:
    """True for names of files between commas."""
    if "," not in name or Path(name).expanduser().exists():
        return False
    return all(is_path(part.strip()) for part in name.split(",") if part.strip())


def is_pattern(name: str) -> bool:
    """True for a pattern of file names: `parts/*.jsonl`."""
    return any(letter in name for letter in "*?[") and not Path(name).expanduser().exists()


def is_path(name: str) -> bool:
    """True for what can only be a path: it is there, ends as a data file does, is a pattern, or
    begins as paths do.
    """
    path = Path(name).expanduser()
    return (
        path.exists()
        or suffix_of(path)[0] in SUFFIXES
        or is_pattern(name)
        or name.startswith((".", "/", "~"))
    )


def files_in(folder: Path, split: str) -> list[Place]:
    """The files of one split of a folder: of `save_to_disk`, of a cloned hub set, or of data files
    alone.
    """
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return saved_arrow_files(folder)
    if (folder / "dataset_dict.json").is_file():
        kept = [
            child.name for child in sorted(folder.iterdir()) if (child / "state.json").is_file()
        ]
        return [
            (path, f"{split}/{name}")
            for path, name in saved_arrow_files(folder / _split(split, kept, folder))
        ]
    found = [path for path in sorted(folder.rglob("*")) if _is_data(path, folder)]
    if not found:
        fix = (
            "It should hold .jsonl, .json, .csv, .tsv, .parquet or .arrow files, or be one of"
            " datasets.save_to_disk."
        )
        raise UsageError("this folder holds no data file.", where=str(folder), fix=fix)
    by_split: dict[str, list[Path]] = {}
    for path in found:
        by_split.setdefault(split_of(path.relative_to(folder)), []).append(path)
    if list(by_split) == [""]:
        chosen = by_split[""]
    elif "" in by_split:
        what = f"some of its files name a split, and some do not: {_names(by_split[''], folder)}."
        raise UsageError(
            what, where=str(folder), fix="Name a file in it, several between commas, or a pattern."
        )
    else:
        chosen = by_split[_split(split, list(by_split), folder)]
    _one_set(chosen, folder, split)
    return [(path, path.relative_to(folder).as_posix()) for path in chosen]


def saved_arrow_files(folder: Path) -> list[Place]:
    """The Arrow files that `datasets.save_to_disk` lists in the folder's state.json."""
    try:
        listed = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
        names = [item["filename"] for item in listed]
    except (ValueError, KeyError, TypeError) as error:
        fix = "Save the set again with datasets.save_to_disk."
        raise UsageError(
            f"its state.json does not list its files: {error}.", where=str(folder), fix=fix
        ) from None
    return [(folder / name, name) for name in names]


def split_of(path: Path) -> str:
    """The split that a path inside a set names (`data/train-00000-of-00001.parquet`,
    `test/a.jsonl`), the last word of it; or "".
    """
    words = [
        word
        for part in path.with_suffix("").parts
        for word in re.split(r"[^A-Za-z]+", part.lower())
    ]
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), "")


def _split(wanted: str, there: Sequence[str], folder: Path) -> str:
    """The split of that name, by any of its words."""
    for name in (wanted, SPLITS.get(wanted, wanted)):
        if name in there:
            return name
    what = f"no split `{wanted}`; it has {', '.join(sorted(there)) or 'none'}."
    raise UsageError(
        what,
        where=str(folder),
        fix=f"Name one with --dataset_split (`laurel data`: --split): {', '.join(sorted(there))}.",
    )


def _one_set(chosen: Sequence[Path], folder: Path, split: str) -> None:
    """Refuse files that are not one set: of several kinds, or in sub-folders that are sets of their
    own.
    """
    kinds = sorted({suffix_of(path)[0] for path in chosen})
    if len(kinds) > 1:
        what = f"files of several kinds ({', '.join(kinds)}): {_names(chosen, folder)}."
        raise UsageError(
            what, where=str(folder), fix=f"Name one, or a pattern: {folder}/*{kinds[0]}"
        )
    homes = {_set_folder(path.relative_to(folder)) for path in chosen}
    if len(homes) > 1:
        what = f"it holds several sets: {', '.join(sorted(str(home) for home in homes))}."
        raise UsageError(
            what, where=str(folder), fix=f"Name one of these folders: {folder / sorted(homes)[-1]}"
        )


def _set_folder(path: Path) -> Path:
    """The folder of a file without those that only say `data` or the split."""
    kept = [part for part in path.parent.parts if part != "data" and not split_of(Path(part))]
    return Path(*kept) if kept else Path(".")


def _is_data(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder)
    hidden = any(part.startswith((".", "_")) for part in inside.parts)
    return (
        path.is_file() and not hidden and path.name not in META and suffix_of(path)[0] in SUFFIXES
    )


def _part(name: str, split: str) -> list[Place]:
    if not is_pattern(name):
        path = Path(name).expanduser()
        if not path.exists():
            raise missing_file(path)
        return files_in(path, split) if path.is_dir() else [(path, path.name)]
    found = [
        Path(path)
        for path in sorted(glob.glob(str(Path(name).expanduser()), recursive=True))
        if Path(path).is_file()
    ]
    if not found:
        folder = Path(re.split(r"[*?\[]", name)[0]).expanduser()
        folder = folder if folder.is_dir() else folder.parent
        children = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
        hint = (
            f"{folder} holds {', '.join(children[:8])}."
            if children
            else f"There is no folder {folder}."
            if not folder.is_dir()
            else ""
        )
        raise UsageError("no file fits this pattern.", where=name, fix=hint)
    return [(path, path.name) for path in found]


def _with_distinct_names(found: Sequence[Place]) -> list[Place]:
    """The same files, under their paths where names repeat.

    A file that is named twice is refused.
    """
    paths = [path.resolve() for path, _ in found]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise UsageError("this file is named twice.", where=str(twice), fix="Name it once.")
    names = [name for _, name in found]
    return [(path, name if names.count(name) == 1 else path.as_posix()) for path, name in found]


def _names(paths: Sequence[Path], folder: Path) -> str:
    names = [path.relative_to(folder).as_posix() for path in paths]
    return ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")


def has_splits(name: str) -> bool:
    """True where a split says which files are meant: a folder, or a list with one."""
    return any(Path(part).expanduser().is_dir() for part in split_names(name))
