"""Read everything a page needs from a run directory, whatever part of it exists yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.files import read_json, read_lines
from laurel.core.run import Run

Series = dict[int, float | None]
"""Step -> value; None where the value was not finite."""

ABOUT_A_LINE = ("run", "step", "time")
TAIL_BYTES = 8_000_000
ENDING = 512  # of the last samples, how many tell what the policy says at the end
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Story:
    """A run as a reader wants it: what it was, how each metric went, what the model said at first
    and at last.

    `first`, `last` are lines of samples.jsonl: of prompts that were answered early and late, or,
    where none was, of the first and the last step (`last` is empty if they are one step). `ending`
    are the last lines of all, whatever their prompts. `evaluation` is eval.json, `profile`
    profile.json. `times` are the wall-clock seconds of the logged lines.
    """

    folder: Path
    facts: dict[str, Any]
    config: dict[str, Any]
    series: dict[str, Series]
    times: list[float]
    first: Lines
    last: Lines
    ending: Lines
    evaluation: dict[str, Any]
    profile: dict[str, Any]

    @property
    def steps(self) -> int:
        """The last step that was logged; 0 for an evaluation."""
        return max((max(series) for series in self.series.values()), default=0)

    @property
    def planned(self) -> int | None:
        """How many steps the run was to take."""
        return self.config.get("max_steps")

    @property
    def options(self) -> dict[str, Any]:
        """The configuration of the run, or of the evaluation where there is no run."""
        nested = self.evaluation.get("config")
        return self.config or (nested if isinstance(nested, dict) else {})

    @property
    def algorithm(self) -> str:
        """The row of the table, as far as the run says."""
        return str(
            self.config.get("algorithm")
            or self.facts.get("algorithm")
            or ("evaluation" if self.evaluation else "run")
        )


def read_story(folder: str | Path) -> Story:
    """Everything there is to tell about a run directory.

    A UsageError where there is no folder, or nothing in it to tell.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(
            "no such folder.", where=str(folder), fix="Name the --output_dir of a run."
        )
    run = Run(folder)
    lines, evaluation = run.metrics(), read_json(folder / "eval.json") or {}
    if not lines and not evaluation:
        what = (
            "the run has not logged a step yet."
            if run.id
            else "there is no run and no evaluation in this folder."
        )
        raise UsageError(what, where=str(folder), fix="A report needs metrics.jsonl or eval.json.")
    samples = folder / "samples.jsonl"
    first, last = before_and_after(samples, run.id) or first_and_last(samples, run.id)
    ending = _tail(samples, run.id)[-ENDING:] if last else first
    times = [line["time"] for line in lines if isinstance(line.get("time"), int | float)]
    profile = read_json(folder / "profile.json") or {}
    return Story(
        folder,
        run.facts,
        run.config(),
        _series(lines),
        times,
        first,
        last,
        ending,
        evaluation,
        profile,
    )


def _series(lines: list[dict[str, Any]]) -> dict[str, Series]:
    """Metric -> its values by step; a step logged twice keeps the later value."""
    series: dict[str, Series] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ABOUT_A_LINE and (value is None or isinstance(value, int | float)):
                series.setdefault(name, {})[int(line.get("step", 0))] = value
    return series


def before_and_after(path: Path, run: str) -> tuple[Lines, Lines] | None:
    """The lines of prompts that were answered early and again late, at half of the run's length
    apart or more; None without any.

    What lies between the first and the last megabytes of a long file is not read.
    """
    early, late = _head(path, run), _tail(path, run) if path.exists() else []
    if not early or not late:
        return None
    first = dict[str, int]()
    for line in early:
        first.setdefault(asked(line), int(line.get("step", 0)))
    last = {asked(line): int(line.get("step", 0)) for line in late}
    length = max(last.values()) - min(first.values())
    apart = {
        prompt: last[prompt] - step
        for prompt, step in first.items()
        if 2 * (last.get(prompt, step) - step) >= max(length, 1)
    }
    if not apart:
        return None
    order = sorted(apart, key=lambda prompt: -apart[prompt])

    def of(lines: Lines, steps: dict[str, int]) -> Lines:
        found = {
            prompt: [
                line
                for line in lines
                if asked(line) == prompt and line.get("step", 0) == steps[prompt]
            ]
            for prompt in order[:4]
        }
        return [line for prompt in order[:4] for line in found[prompt]]

    return of(early, first), of(late, last)


def asked(line: Mapping[str, Any]) -> str:
    """The prompt of a sample, to be compared."""
    return json.dumps(line.get("prompt"), sort_keys=True)


def first_and_last(path: Path, run: str) -> tuple[Lines, Lines]:
    """The lines of the first and of the last step, without reading what lies between."""
    first: Lines = []
    for _, line in read_lines(path, run):
        if first and line.get("step") != first[0].get("step"):
            break
        first.append(line)
    else:
        return first, []
    tail = _tail(path, run)
    return first, [line for line in tail if line.get("step") == tail[-1].get("step")]


def _head(path: Path, run: str) -> Lines:
    """The lines in the first few megabytes."""
    lines, size = [], 0
    for raw, line in read_lines(path, run):
        lines.append(line)
        size += len(raw)
        if size > TAIL_BYTES:
            break
    return lines


def _tail(path: Path, run: str) -> Lines:
    """The lines in the last few megabytes (all of them where a line is longer than that)."""
    with open(path, "rb") as file:
        start = max(0, path.stat().st_size - TAIL_BYTES)
        file.seek(start)
        raws = file.read().split(b"\n")[bool(start) :]
    lines = []
    for raw in raws[:-1]:
        line = json.loads(raw)
        if not run or line.get("run", run) == run:
            lines.append(line)
    return lines or [line for _, line in read_lines(path, run)]
