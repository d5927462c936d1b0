"""Where rows come from: a file, a generated task, or a dataset of the Hugging Face hub.

One function: `load_rows`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from laurel.core.bound_objects import bound_object, refuse_unbound
from laurel.core.errors import UsageError
from laurel.data.paths import files_of, is_list, is_path
from laurel.data.read import missing_file, read_records, suffix_of
from laurel.data.row_errors import combined_error
from laurel.data.tasks import TASKS, generate_task, is_task

GENERATED_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Row:
    """One example: its columns, where it came from ("train.jsonl:17"), and a name of its own.

    `id` is a hash of the content followed by the position in the source. It is the same in every
    run, and two identical rows of one source keep different ids. `read` names the columns whose
    content went into ours (`laurel.data.layouts`), `part` the evaluation set that the row belongs
    to, where there are several.
    """

    columns: dict[str, Any]
    where: str
    id: str
    read: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    part: str = field(default="", compare=False, repr=False)


def load_rows(
    name: str,
    *,
    split: str = "train",
    seed: int = 0,
    size: int | None = None,
    faults: list[UsageError] | None = None,
) -> list[Row]:
    """All rows of `name`, in order.

    Nothing is left out: len(result) is the number of records in the source.

    name: a generated task, with parameters if any (`addition`, `addition:digits=3`,
    `reasoning_gym:chain_sum`); a file (.jsonl, .json, .csv, .tsv, each also with .gz; .parquet,
    .arrow), several between commas, a pattern (`parts/*.jsonl`) or a folder of
    `datasets.save_to_disk` or of a cloned hub set; or a dataset of the hub (`openai/gsm8k`, with a
    configuration `openai/gsm8k:main`). A task's name goes before a file of that name (write
    `./addition` for the file). split belongs to hub datasets and folders, seed and size (default
    1000) to generated tasks. A file is read whole. The rows are as they stand in the source;
    `laurel.data.formats.normalise` gives them their final columns.
    Errors: UsageError with file and line of every record that cannot be read; faults takes these
    instead, to be told with others.
    """
    if (own := bound_object(name)) is not None:
        records = own
    elif is_task(name):
        records = [
            (f"{name}:seed {seed}:{i}", row)
            for i, row in enumerate(
                generate_task(name, seed, GENERATED_ROWS if size is None else size), start=1
            )
        ]
    elif is_file_name(name):
        records = read_files(name, split, faults)
    else:
        refuse_unbound(name, "dataset")
        records = load_hub(name, split)
    return [
        Row(columns, where, row_id(columns, position))
        for position, (where, columns) in enumerate(records)
    ]


def read_files(
    name: str, split: str, faults: list[UsageError] | None
) -> list[tuple[str, dict[str, Any]]]:
    """The records of all files that a name stands for, one after the other.

    All that cannot be read are one error.
    """
    found: list[UsageError] = []
    records = [
        record
        for path, place in files_of(name, split)
        for record in read_records(path, name=place, faults=found)
    ]
    if found and faults is None:
        raise combined_error(found, len(records) + len(found), name)
    if faults is not None:
        faults.extend(found)
    return records


def row_id(columns: Mapping[str, Any], position: int) -> str:
    """A name for a row: 12 hex digits of the SHA-256 of its content, a dash, its position
    from 0.
    """
    return f"{content_hash(columns)[:12]}-{position}"


def content_hash(columns: Mapping[str, Any]) -> str:
    """SHA-256 of the columns as canonical JSON: the order of the columns does not matter."""
    canonical = json.dumps(
        columns, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def load_hub(name: str, split: str) -> list[tuple[str, dict[str, Any]]]:
    """The records of a hub dataset `owner/name[:configuration]` (or of a local folder in that
    layout) through `datasets`.
    """
    import datasets

    path, _, configuration = name.partition(":")
    try:
        table = datasets.load_dataset(path, configuration or None, split=split)
    # every library below `datasets` has its own exceptions; each becomes one that says what to do
    except Exception as error:
        reason = (
            " ".join(f"{error} {error.__cause__ or ''}".split())[:300].rstrip(".")
            or type(error).__name__
        )
        tasks = ", ".join(task for task in TASKS if TASKS[task].make is not None)
        fix = (
            "Check the name, the configuration (owner/name:configuration), the split and the"
            f" connection. Generated tasks: {tasks}."
        )
        raise UsageError(f"cannot load the dataset: {reason}.", where=name, fix=fix) from error
    if len(table) == 0:
        raise UsageError("the dataset holds no rows.", where=f"{name}[{split}]")
    rows: list[dict[str, Any]] = [
        {key: value for key, value in row.items() if value is not None} for row in table.to_list()
    ]
    return [(f"{name}[{split}]:record {number}", row) for number, row in enumerate(rows, start=1)]


def is_file_name(name: str) -> bool:
    """True for a path; a name that is neither a path nor like a hub name is refused here, before
    any network is asked.
    """
    path = Path(name).expanduser()
    if not name.strip():
        raise UsageError(
            "the dataset has no name.", fix="Give a file, a generated task or a hub name."
        )
    if is_path(name) or is_list(name):
        return True
    if name.count("/") > 1 or "\\" in name or suffix_of(path)[1]:
        raise missing_file(path)
    close = (
        [] if "/" in name else get_close_matches(name.partition(":")[0], TASKS, n=1, cutoff=0.75)
    )
    if close:
        raise UsageError(
            f"no file and no generated task `{name}`.",
            where="dataset",
            fix=f"Did you mean `{close[0]}`?",
        )
    return False
