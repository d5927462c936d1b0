"""The run directory: configuration, metrics, samples, checkpoints, model, report.

That is config.yaml, run.json, metrics.jsonl, samples.jsonl, checkpoints/, model/, report.html. The
files are the truth. Every line carries the run's id; a line of another run is refused, never mixed
in. Lines are written whole and flushed, so a killed run leaves at most one half-written last line,
which readers skip and `truncate` removes.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from laurel.core.errors import LaurelError, UsageError
from laurel.core.files import atomic_file, disk_error, read_json, read_lines, write_atomic
from laurel.core.lock import Lock
from laurel.core.numbered_dirs import MARK, claim_dir, remove_empty_dir
from laurel.core.sinks import Sink, check_sinks, open_sinks
from laurel.core.version import __version__

FREE_TO_CHANGE = (
    "device",
    "early_stopping_patience",
    "engine",
    "engine_timeout",
    "engine_weights",
    "eval_steps",
    "load_best_model_at_end",
    "logging_steps",
    "max_steps",
    "num_threads",
    "num_train_epochs",
    "output_dir",
    "profile",
    "report_to",
    "resume",
    "reward_timeout",
    "save_dtype",
    "save_merged",
    "save_steps",
    "save_total_limit",
    "token_budget",
)
"""Options a resumed run may change: how long, how often, where. Everything else would make it
another experiment.
"""
OPTIMIZER_OPTIONS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "warmup_steps",
    "weight_decay",
)
"""Options of the optimiser that `resume: anyway` may change: its moments stay as they are."""
RUN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "samples.jsonl",
    "checkpoints",
    "model",
    "report.html",
    "profile.json",
)
"""What a run writes. A new run finds none of it in its folder: what is there is somebody else's."""


class Run:
    """One run directory, to read or to add to. `id` is empty where the folder holds no run."""

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir)
        self.checkpoints = self.folder / "checkpoints"
        self.model = self.folder / "model"
        self.report = self.folder / "report.html"
        self.facts: dict[str, Any] = read_json(self.folder / "run.json") or {}
        self.id = str(self.facts.get("run", ""))
        self.sinks: list[Sink] = []
        self.lock: Lock | None = None
        self.new = False

    @classmethod
    def create(
        cls,
        output_dir: str | Path,
        config: Mapping[str, Any],
        *,
        resume: bool | str,
        inputs: Mapping[str, str] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Run:
        """Start a run in a new or empty folder, or with `resume` continue the one that is there.

        The folder is this process's alone until `close`, or until the process ends. A folder that
        holds a run already is a UsageError unless `resume`. On resume, an option that differs from
        the saved configuration is a UsageError that names it, unless it is one of FREE_TO_CHANGE,
        or of OPTIMIZER_OPTIONS and resume is "anyway". `output_dir` may count up (`claim_dir`).

        `inputs` (what the run reads, and a fingerprint of its content) are written down; where they
        differ on resume the person at the terminal is asked, and without one it is a UsageError,
        unless resume is "anyway". `say` is called with each line about what is continued and what
        changed; by default the lines go to standard error.
        """
        folder, claimed = claim_dir(output_dir, newest=bool(resume))
        values, say = json.loads(json.dumps(dict(config), default=str)), say or _say
        if MARK in str(output_dir):
            values["output_dir"] = str(folder)
            say(f"this run is {folder}")
        try:
            return cls._open(folder, values, resume, inputs, say)
        except BaseException:
            if claimed:
                remove_empty_dir(folder)
            raise

    @classmethod
    def _open(
        cls,
        folder: Path,
        values: dict[str, Any],
        resume: bool | str,
        inputs: Mapping[str, str] | None,
        say: Callable[[str], None],
    ) -> Run:
        """Check the place, lock it, and begin the run or continue it."""
        check_sinks(values.get("report_to"))
        if folder.exists() and not folder.is_dir():
            raise UsageError("this is a file, not a folder.", where=f"output_dir {folder}")
        _check_place(folder, bool(resume))
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder)
        try:
            _check_place(folder, bool(resume))  # again, now that nobody else can write
            if (folder / "run.json").exists():
                run = _resume_run(cls(folder), values, inputs or {}, resume == "anyway", say)
            else:
                run = _create_run(folder, values, inputs or {}, bool(resume), say)
        except BaseException:
            lock.release()
            raise
        run.lock = lock
        return run

    def withdraw(self) -> None:
        """Close a run that failed. A new one without a step leaves nothing behind."""
        self.close()
        if self.new and not any(
            (self.folder / name).exists() for name in RUN_FILES if name != "config.yaml"
        ):
            for name in ("run.json", "config.yaml"):
                (self.folder / name).unlink(missing_ok=True)
            remove_empty_dir(self.folder)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Add facts about the run as a whole (threads, parameters, versions) to run.json."""
        self.facts = {**self.facts, **facts}
        write_atomic(self.folder / "run.json", _dumps(self.facts, indent=1) + "\n")

    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty where there is none."""
        import yaml

        path = self.folder / "config.yaml"
        try:
            # libyaml, where it is there, reads and writes the hundred options in a tenth of the
            # time
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            return dict(yaml.load(path.read_text(encoding="utf-8"), loader) or {})
        except FileNotFoundError:
            return {}
        except (yaml.YAMLError, ValueError, TypeError) as error:
            raise LaurelError(
                f"damaged: {' '.join(str(error).split())}.", where=str(path)
            ) from None

    def update_config(self, values: Mapping[str, Any]) -> None:
        """Write options into config.yaml that are known only once the run has begun."""
        config = self.config()
        if {**config, **values} != config:
            _write_config(self.folder, {**config, **values})

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line of metrics. A number that is not finite is written as null."""
        values = {name: _number(value) for name, value in metrics.items()}
        self._append(
            "metrics.jsonl",
            [{"run": self.id, "step": step, "time": round(time.time(), 3), **values}],
        )
        for sink in list(self.sinks):
            try:
                sink.log(step, {name: value for name, value in values.items() if value is not None})
            except (
                Exception
            ) as error:  # a dashboard that is down must not end a run; the files have the truth
                self.sinks.remove(sink)
                _say(f"{type(sink).__name__} failed and is switched off: {error}")

    def log_samples(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append the samples of a step, one line each."""
        self._append("samples.jsonl", [{"run": self.id, "step": step, **line} for line in lines])

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, in order; empty where nothing was logged yet."""
        return [line for _, line in read_lines(self.folder / "metrics.jsonl", self.id)]

    def samples(self, step: int | None = None) -> list[dict[str, Any]]:
        """The lines of samples.jsonl, of one step or of all."""
        lines = read_lines(self.folder / "samples.jsonl", self.id)
        return [line for _, line in lines if step is None or line.get("step") == step]

    def truncate(self, step: int) -> None:
        """Drop what was written after `step`, and half-written last lines, before resuming."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.folder / name
            if path.exists():
                with atomic_file(path) as file:
                    file.writelines(
                        raw
                        for raw, line in read_lines(path, self.id)
                        if line.get("step", 0) <= step
                    )

    def connect(self, step: int = 0) -> None:
        """Open the sinks of the option `report_to`; `step` is the last one of a resumed run."""
        config = self.config()
        self.sinks = open_sinks(
            config.get("report_to"), self.folder, self.id, config, resumed_at=step
        )

    def close(self) -> None:
        """Finish the optional sinks, and let others write to the folder."""
        for sink in self.sinks:
            sink.close()
        self.sinks = []
        if self.lock is not None:
            self.lock.release()

    def _append(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        path = self.folder / name
        try:
            with open(path, "a", encoding="utf-8", errors="surrogatepass") as file:
                file.write("".join(_dumps(line) + "\n" for line in lines))
        except OSError as error:
            raise disk_error(error, path) from error


def _check_place(folder: Path, resume: bool) -> None:
    """Refuse a folder with another run, or with files that would be overwritten."""
    where = f"output_dir {folder}"
    if (folder / "run.json").exists():
        if not resume:
            fix = "Add `--resume true`, or name another --output_dir."
            raise UsageError("this folder already holds a run.", where=where, fix=fix)
        return
    there = [name for name in RUN_FILES if (folder / name).exists()]
    if there and not (resume and there == ["config.yaml"]):
        what = (
            f"this folder holds `{there[0]}` but no run.json: it is not a run's, and would be"
            " written over."
        )
        raise UsageError(what, where=where, fix="Name another --output_dir.")


def _create_run(
    folder: Path,
    values: dict[str, Any],
    inputs: Mapping[str, str],
    resume: bool,
    say: Callable[[str], None],
) -> Run:
    """A new run. run.json is written last: a folder without it holds no run."""
    if resume:
        say(f"nothing to resume in {folder}: starting from the beginning")
    _write_config(folder, values)
    run = Run(folder)
    run.id, run.new = uuid.uuid4().hex, True
    facts = {
        "run": run.id,
        "created": round(time.time(), 3),
        "command": sys.argv[1:],
        **_provenance(),
    }
    run.note({**facts, "inputs": dict(inputs)})
    return run


def _resume_run(
    run: Run,
    values: dict[str, Any],
    inputs: Mapping[str, str],
    anyway: bool,
    say: Callable[[str], None],
) -> Run:
    """The run that is there, if it is still the same experiment."""
    where = f"output_dir {run.folder}"
    _check_model(run, where)
    saved = run.config()
    if values.get("max_steps", 0) is None:
        # epochs decide, and how many steps they make is found out later: `update_config`
        values = {**values, "max_steps": saved.get("max_steps")}
    changed = {
        name: [saved[name], values.get(name)] for name in saved if saved[name] != values.get(name)
    }
    _check_changes(changed, (*FREE_TO_CHANGE, *(OPTIMIZER_OPTIONS if anyway else ())), where)
    edited = _changed_inputs(run, inputs, anyway)
    shown = {name: pair for name, pair in changed.items() if name not in ("resume", "output_dir")}
    _announce(run, shown, edited, say)
    if shown:
        _write_config(run.folder, values)
    resumed = {"time": round(time.time(), 3), "changed": {**shown, **edited}}
    run.note(
        {
            "resumed": [*run.facts.get("resumed", []), resumed],
            "inputs": {**run.facts.get("inputs", {}), **inputs},
        }
    )
    return run


def _announce(
    run: Run,
    options: Mapping[str, Sequence[Any]],
    inputs: Mapping[str, Sequence[str]],
    say: Callable[[str], None],
) -> None:
    """Say that a run continues, and which options and inputs changed from what to what."""
    how = "as before, but for" if options else "as before"
    say(f"continuing run {run.id[:8]} in {run.folder}; options {how}")
    for name, (old, new) in options.items():
        say(f"  {name}: {old!r} -> {new!r}")
    for name, (old, new) in inputs.items():
        say(f"  {name}: {old} -> {new}")


def _check_model(run: Run, where: str) -> None:
    """UsageError where `model` holds what this run has not saved."""
    if run.model.exists() and "saving" not in run.facts:
        what = (
            "this run has not saved a model yet, and there is one in `model`: it would be written"
            " over."
        )
        raise UsageError(what, where=where, fix="Move it to another place.")


def _check_changes(changed: Mapping[str, Sequence[Any]], free: Sequence[str], where: str) -> None:
    """UsageError for options that a resumed run may not change."""
    refused = {
        name: f"{name} {old!r} -> {new!r}"
        for name, (old, new) in changed.items()
        if name not in free
    }
    if not refused:
        return
    fix = (
        "Give the saved values, or start anew in another --output_dir. Free to change:"
        f" {', '.join(free)}."
    )
    if refused.keys() <= set(OPTIMIZER_OPTIONS):
        fix = (
            "Give the saved values, or go on with the new ones, the optimiser's moments kept:"
            " `--resume anyway`."
        )
    what = (
        "a resumed run keeps its options, and these differ from its config.yaml:"
        f" {'; '.join(refused.values())}."
    )
    raise UsageError(what, where=where, fix=fix)


def _changed_inputs(run: Run, inputs: Mapping[str, str], anyway: bool) -> dict[str, list[str]]:
    """What the run reads that has changed since it began: name -> [old, new].

    UsageError unless `anyway`, or the person at the terminal agrees.
    """
    before: dict[str, str] = run.facts.get("inputs", {})
    edited = {
        name: [before[name], new] for name, new in inputs.items() if before.get(name, new) != new
    }
    if not edited or anyway:
        return edited
    listed = "; ".join(f"{name} ({old} -> {new})" for name, (old, new) in edited.items())
    what = f"what the run reads has changed since it began: {listed}."
    if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
        print(f"{what}\nGo on with it as it is now? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return edited
    fix = (
        "Put the old content back, start anew in another --output_dir, or go on with the new:"
        " `--resume anyway`."
    )
    raise UsageError(what, where=f"output_dir {run.folder}", fix=fix)


def _write_config(folder: Path, values: dict[str, Any]) -> None:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    write_atomic(
        folder / "config.yaml",
        yaml.dump(values, Dumper=dumper, sort_keys=False, allow_unicode=True, width=140),
    )


def _provenance() -> dict[str, Any]:
    """Versions and commit, without importing anything heavy."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    packages = {name: version(name) for name in ("torch", "transformers")}
    return {
        "laurel": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.system(),
        **packages,
    }


@cache
def _commit() -> str | None:
    """The commit of laurel's own checkout, `-dirty` if edited; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude",
        "*",
    ]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=5,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _number(value: Any) -> float | int | None:
    """A plain number; None for what is not finite."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def _dumps(value: Any, indent: int | None = None) -> str:
    """JSON. Not finite: null; numpy and torch scalars: numbers; paths: text."""
    try:
        return json.dumps(
            value, ensure_ascii=False, default=_to_json_value, allow_nan=False, indent=indent
        )
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=_to_json_value, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in cast(Sequence[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_json_value(value: Any) -> Any:
    return _finite(value.item()) if hasattr(value, "item") else str(value)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
