"""Files that survive a kill, and what the disk refuses as errors with a remedy.

Replacement is atomic; the last line of a JSON-lines file may be half-written.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from laurel.core.errors import LaurelError, UsageError

ROOM = "Free some room, or write to another disk."
RIGHTS = "Name a place where you may write, or read."
PLACE = "Is every folder on the way to it a folder, and there?"
REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: "Raise the limit on file sizes (`ulimit -f`), or write to another disk.",
    errno.EROFS: RIGHTS,
    errno.EACCES: RIGHTS,
    errno.EPERM: RIGHTS,
    errno.ENOTDIR: PLACE,
    errno.ENOENT: PLACE,
    errno.EEXIST: PLACE,
    errno.EISDIR: "Name a file, not a folder.",
    errno.ENAMETOOLONG: "Take a shorter name.",
    errno.EMFILE: "Raise `ulimit -n`.",
}
"""errno: what to do about it."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE)
"""Failures of a run, not of what was asked for."""


def disk_error(error: OSError, where: str | Path = "") -> LaurelError:
    """The system's error about a file, with the file's name and what to do.

    where: the file, if the error itself names none.
    """
    kind = UsageError if error.errno in REMEDIES and error.errno not in FULL else LaurelError
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(where)
    return kind(f"{reason.rstrip('.')}.", where=place, fix=REMEDIES.get(error.errno or 0, ""))


@contextmanager
def disk_errors(path: str | Path) -> Generator[None]:
    """Turn what the disk refuses inside the block into a LaurelError that names `path`."""
    try:
        yield
    except Exception as error:
        refused = os_error_of(error)
        if refused is None:
            raise
        raise disk_error(refused, path) from error


def os_error_of(error: BaseException) -> OSError | None:
    """The system's error behind a library's; None for any other error.

    It is the error itself, its cause, or the number in its text.
    """
    if isinstance(error, OSError):
        return error
    if isinstance(error, LaurelError):
        return None
    number = re.search(r"os error (\d+)", str(error))  # safetensors
    if number:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if re.search(
        "inline_container|PytorchStreamWriter", str(error)
    ):  # torch, which hides the number
        return OSError(errno.ENOSPC, "The disk took only a part of it")
    return os_error_of(error.__cause__) if error.__cause__ is not None else None


@contextmanager
def atomic_folder(folder: str | Path) -> Generator[Path]:
    """A new folder to write into; its files move to `folder` when the block ends without error.

    Files of weights and the configurations that say what they are, where they are not among the new
    ones, are removed: no reader may mix two models, or take a model for an adapter.
    """
    folder = Path(folder)
    folder = folder.resolve() if folder.is_symlink() else folder
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            yield made
            made.chmod(0o755)
            if not folder.exists() or not any(folder.iterdir()):
                made.replace(folder)
                return
            new = {file.name for file in made.iterdir()}
            for old in folder.iterdir():
                if old.name not in new and re.search(
                    r"\.(safetensors|bin)(\.index\.json)?$|^(adapter_)?config\.json$", old.name
                ):
                    old.unlink()
            for file in made.iterdir():
                file.replace(folder / file.name)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Replace a file: at every moment the path holds all of the old content or all of the new."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: str | Path) -> Generator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends without error.

    Temporary file, fsync, rename, fsync of the folder.
    """
    path = Path(path)
    with disk_errors(path):
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file, None where there is no file. Damage is a LaurelError."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LaurelError(f"damaged: {error}.", where=str(path)) from None


def read_lines(path: str | Path, run: str = "") -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line of a JSON-lines file, as bytes (newline included) and as an object.

    Nothing where there is no file. A last line that a kill cut short is skipped. Any other line
    that is not an object, and a line stamped with another run than `run` (when given), is a
    LaurelError naming file and line.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below, after the generator's last line
    except FileNotFoundError:
        return
    with file:
        for number, raw in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                line: Any = json.loads(raw)
            except ValueError:
                if not raw.endswith(b"\n"):
                    return
                raise LaurelError("not a line of JSON.", where=where) from None
            if not isinstance(line, dict):
                raise LaurelError("not a JSON object.", where=where)
            fields = cast(dict[str, Any], line)
            if run and fields.get("run", run) != run:
                raise LaurelError(
                    f"written by another run ({fields['run']!s:.12}), not by {run:.12}.",
                    where=where,
                )
            yield raw if raw.endswith(b"\n") else raw + b"\n", fields


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file; UsageError if it is missing, malformed or no mapping."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise UsageError(
            f"cannot read the configuration: {error.strerror}.", where=str(path)
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(
            f"not valid YAML: {' '.join(str(error).split())}", where=str(path)
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError("a configuration is a mapping of option: value.", where=str(path))
    return cast("dict[str, Any]", values)
