"""`write_report`: a run directory becomes one self-contained HTML page, with no script and nothing
fetched from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

import laurel
from laurel.core.files import write_atomic
from laurel.core.run import Run
from laurel.report.collect import Story, asked, read_story
from laurel.report.panels import Panel, panels
from laurel.report.verdict import changes, findings, finite, meaning_of, show, window

PROMPTS, SAMPLES = 4, 4  # shown of a step: prompts, and samples of each
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    Works on a run that is still going, and on an evaluation.

    A folder with nothing to report is a UsageError that says so.
    """
    story = read_story(run_dir)
    path = Run(run_dir).report
    write_atomic(path, render(story).encode("utf-8", "replace"))
    return path


def render(story: Story) -> str:
    """The page. Everything that came from a model, a dataset or a configuration is escaped."""
    return _template().render(
        story=story,
        title=title(story),
        facts=facts(story),
        changes=changes(story),
        findings=findings(story),
        worse=any(change.kind == "bad" for change in changes(story)),
        tiles=tiles(story),
        same=bool(story.last)
        and {asked(line) for line in story.first} == {asked(line) for line in story.last},
        phases=phase_rows(story.profile),
        shares=time_shares(story.profile),
        svg=Markup,
        steps=[(name, groups(lines), len(lines)) for name, lines in sample_steps(story)],
        bars=bars(story.evaluation),
        config=yaml.safe_dump(story.options, sort_keys=False, allow_unicode=True)
        if story.options
        else "",
        metrics=metric_rows(story),
        version=laurel.__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **_panels_by_kind(story),
    )


def _template() -> jinja2.Template:
    """The report's template, with the filters that it names."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["show"] = show
    pages.filters["clean"] = clean
    return pages.get_template("page.html")


def _panels_by_kind(story: Story) -> dict[str, list[Panel]]:
    """The pictures of what moved, and of what stayed constant, which the page folds."""
    shown = panels(story)
    return {
        "panels": [panel for panel in shown if not panel.constant],
        "constant": [panel for panel in shown if panel.constant],
    }


def clean(value: object) -> str:
    """Text as it may stand in HTML: control characters, which browsers drop or choke on, become
    visible.
    """
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))


def title(story: Story) -> str:
    """grpo on addition"""
    where = story.options.get("dataset")
    return (
        f"{story.algorithm} on {Path(str(where)).name}"
        if where
        else f"{story.algorithm} · {story.folder.resolve().name}"
    )


def facts(story: Story) -> list[tuple[str, str]]:
    """What the run was: the small print under the title."""
    source = {**story.facts, **story.options}
    rows = [
        (name, source.get(name))
        for name in (
            "model",
            "dataset",
            "seed",
            "commit",
            "laurel",
            "torch",
            "transformers",
            "threads",
        )
    ]
    if "created" in story.facts:
        rows.insert(
            3,
            (
                "started",
                datetime.fromtimestamp(story.facts["created"], UTC).strftime("%Y-%m-%d %H:%M UTC"),
            ),
        )
    if story.facts.get("run"):
        rows.append(("run", str(story.facts["run"])[:8]))
    return [
        (name, str(value))
        for name, value in rows
        if value is not None and not isinstance(value, dict | list)
    ]


def tiles(story: Story) -> list[tuple[str, str, str]]:
    """(label, figure, small print) of what a reader asks first besides the reward."""
    made = []
    if story.steps:
        made.append(
            ("steps", show(story.steps), f"of {show(story.planned)}" if story.planned else "")
        )
    spent = sum(finite(story.series.get("seconds/step", {})))
    if spent:
        made.append(("time", duration(spent), "in logged steps"))
    speed = finite(story.series.get("tokens_per_second", {}))
    if speed:
        made.append(("speed", show(float(f"{sum(speed) / len(speed):.3g}")), "tokens per second"))
    for name, label, note in (
        ("kl", "KL", "nats per token, at last"),
        ("kl/sequence", "KL", "nats per completion, at last"),
        ("entropy", "entropy", "nats per token, at last"),
        ("completions/mean_length", "length", "tokens, at last"),
    ):
        values = finite(story.series.get(name, {}))
        if values:
            width = window(len(values))
            made.append((label, show(sum(values[-width:]) / width), note))
    return made


def duration(seconds: float) -> str:
    """48 s, 3 min 20 s, 2 h 05 min"""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def sample_steps(story: Story) -> list[tuple[str, list[dict[str, Any]]]]:
    """The lines shown side by side: early ones and late ones, of the same prompts where any was
    asked twice.
    """
    if not story.first:
        return []
    if not story.last:
        step = story.first[0].get("step")
        return [("Samples" if step is None else f"Step {step}", story.first)]
    return [
        (f"Before: {steps_of(story.first)}", story.first),
        (f"After: {steps_of(story.last)}", story.last),
    ]


def steps_of(lines: Iterable[Mapping[str, Any]]) -> str:
    """step 3 · steps 3 to 7"""
    steps = sorted({line.get("step") or 0 for line in lines})
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def groups(lines: Iterable[Mapping[str, Any]]) -> list[tuple[Any, list[Mapping[str, Any]]]]:
    """The first few prompts of a step, each with its first few samples, best reward first."""
    by_prompt: dict[Any, list[Mapping[str, Any]]] = {}
    for line in lines:
        key = line.get("prompt_id", str(line.get("prompt")))
        by_prompt.setdefault(key, []).append(line)
    shown = []
    for samples in list(by_prompt.values())[:PROMPTS]:
        ordered = sorted(
            samples, key=lambda line: (line.get("reward") is None, -(line.get("reward") or 0.0))
        )
        spread = (
            ordered
            if len(ordered) <= SAMPLES
            else [*ordered[: SAMPLES - SAMPLES // 2], *ordered[-(SAMPLES // 2) :]]
        )
        shown.append((samples[0].get("prompt", ""), spread))
    return shown


def bars(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of eval.json: intervals {value, low, high, n}, and plain numbers."""
    found = []
    for name, value in {**evaluation.get("figures", {}), **evaluation}.items():
        if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
            found.append({"name": name, "low": None, "high": None, "n": None, **value})
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append({"name": name, "value": value, "low": None, "high": None, "n": None})
    return found


def phase_rows(profile: Mapping[str, Any]) -> list[tuple[str, str, str, str, float]]:
    """A line per phase of a step: its name, its seconds, its share of the step, the idle part of
    that share, the share as a number.
    """
    rows = [
        (
            name,
            show(float(f"{part['seconds']:.3g}")),
            f"{part['share']:.1%}",
            f"{part['idle']:.1%}",
            part["share"],
        )
        for name, part in profile.get("phases", {}).items()
    ]
    whole = profile.get("seconds")
    return (
        [*rows, ("step", show(float(f"{whole:.3g}")), "100.0%", f"{profile['idle']:.1%}", 1.0)]
        if whole
        else []
    )


def time_shares(profile: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(label, figure, small print) of what the time of a step was for."""
    if not profile:
        return []
    speed = profile["tokens_per_second"]
    shares = [("sampled", speed["sampled"]), ("trained on", speed["trained"])]
    return [
        (
            "roofline",
            f"{profile['roofline']:.0%}",
            "of the step is what its products and attention take at this machine's rates",
        ),
        ("idle", f"{profile['idle']:.0%}", "the main thread waited: rewards, disk, other programs"),
        (
            "overhead",
            f"{profile['overhead']:.0%}",
            "the rest: Python, dispatch, element-wise work, memory",
        ),
        *(
            (f"tokens {what}", show(float(f"{rate:.3g}")), "per second of the step")
            for what, rate in shares
            if rate
        ),
        ("padding", f"{profile['padding_share']:.0%}", "of computed positions"),
    ]


def metric_rows(story: Story) -> list[dict[str, Any]]:
    """Every logged metric: first and last value, what it means."""
    rows = []
    for name, series in sorted(story.series.items()):
        first, last = series[min(series)], series[max(series)]
        rows.append(
            {"name": name, "first": show(first), "last": show(last), "meaning": meaning_of(name)}
        )
    return rows
