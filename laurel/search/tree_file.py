"""The steps that a search drew and their values, a line for each call of the generator or scorer.

Steps are written before anything is made of them, values before they are used: no step is drawn, or
valued, twice, however often a search is killed. A call is one line because the last bits of what it
gives may depend on what it was asked together: a search goes on in whole calls, to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.files import atomic_file, disk_errors, read_lines
from laurel.core.result import Abstain, Failed, Result, Score
from laurel.core.sample import Completion

Place = tuple[str, int]
"""The question's id, and the depth."""


class TreeFile:
    """What is known of a search, in memory and, where a path is given, in a file.

    how: what steps and values depend on (options, names of the models); it is the first line.
    Errors: UsageError where the file holds a search of another kind.
    """

    def __init__(self, path: Path | None = None, how: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.drawn: dict[Place, list[Completion]] = {}
        self.valued: dict[Place, list[Result]] = {}
        # as JSON gives it back, tuples as lists
        self.how: dict[str, Any] = json.loads(json.dumps(dict(how or {})))
        if path is not None:
            self.read(path)

    def read(self, path: Path) -> None:
        """What the file holds; a half-written last line is cut off."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(read_lines(path))
        if not lines:
            with atomic_file(path) as file:
                file.write(as_line({"how": self.how}))
            return
        noted: dict[str, Any] = lines[0][1].get("how", {})
        changed = [name for name in self.how if noted.get(name) != self.how[name]]
        if changed:
            what = f"it holds a search with another {', '.join(changed)}."
            raise UsageError(what, where=str(path), fix="Name another --output_dir.")
        for _, line in lines[1:]:
            for id, depth, steps in line.get("drawn", ()):
                self.drawn[id, depth] = [read_step(one) for one in steps]
            for id, depth, values in line.get("valued", ()):
                self.valued[id, depth] = [read_result(one) for one in values]
        with atomic_file(path) as file:
            file.writelines(raw for raw, _ in lines)

    def steps(self, id: str, depth: int) -> list[Completion] | None:
        """The steps of a question that were drawn at a depth; None: none yet."""
        return self.drawn.get((id, depth))

    def values(self, id: str, depth: int) -> list[Result] | None:
        """Their values; None: not asked for yet."""
        return self.valued.get((id, depth))

    def keep_steps(self, places: Sequence[Place], drawn: Sequence[Sequence[Completion]]) -> None:
        """Write newly drawn steps, and know them."""
        rows = [[step_row(step) for step in some] for some in drawn]
        self.write("drawn", places, rows)
        for place, some in zip(places, drawn, strict=True):
            self.drawn[place] = list(some)

    def keep_values(self, places: Sequence[Place], values: Sequence[Sequence[Result]]) -> None:
        """Write new values, and know them."""
        rows = [[result_row(one) for one in some] for some in values]
        self.write("valued", places, rows)
        for place, some in zip(places, values, strict=True):
            self.valued[place] = list(some)

    def write(self, kind: str, places: Sequence[Place], rows: Sequence[Any]) -> None:
        """One more line; whole or, after a kill, to be cut off."""
        if self.path is None:
            return
        line = {kind: [[*place, some] for place, some in zip(places, rows, strict=True)]}
        with disk_errors(self.path), open(self.path, "ab") as file:
            file.write(as_line(line))


def as_line(row: Mapping[str, Any]) -> bytes:
    """A line of the file."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def step_row(step: Completion) -> dict[str, Any]:
    """A step as JSON, which keeps floats to the bit."""
    return {"ids": list(step.ids), "logps": list(step.logps), "finish": step.finish}


def read_step(row: Mapping[str, Any]) -> Completion:
    """A step of the file."""
    return Completion(tuple(row["ids"]), tuple(row["logps"]), row["finish"])


def result_row(result: Result) -> dict[str, Any]:
    """A value as JSON."""
    if isinstance(result, Score):
        return {"value": result.value}
    kind = "abstained" if isinstance(result, Abstain) else "failed"
    return {kind: result.reason}


def read_result(row: Mapping[str, Any]) -> Result:
    """A value of the file."""
    if "value" in row:
        return Score(row["value"])
    return Abstain(row["abstained"]) if "abstained" in row else Failed(row["failed"])
