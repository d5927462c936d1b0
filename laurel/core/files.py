"""Files that survive a kill: atomic replacement, and JSON lines whose last one may be half-written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from laurel.core.errors import LaurelError


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Replace a file whole: at every moment the path holds the old content or the new, on disk, never a part of it."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: str | Path) -> Generator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well: temporary file, fsync, rename, fsync of the folder."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
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
    """Each line of a JSON-lines file, as it stands (newline included) and as an object; nothing where there is no file.

    A last line that a kill cut short is passed over. Any other line that is not an object, and a line stamped with another
    run than `run` (when given), is a LaurelError naming file and line.
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
                raise LaurelError(f"written by another run ({fields['run']!s:.12}), not by {run:.12}.", where=where)
            yield raw if raw.endswith(b"\n") else raw + b"\n", fields
