"""`laurel eval`: how good a model is on rows with a verifier, or a scorer on rows with labels.
`laurel sample`: what it says.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel.cli.options import add_options, read_options
from laurel.core.config import EvalConfig
from laurel.core.errors import UsageError
from laurel.core.files import disk_errors
from laurel.core.result import ENVIRONMENT

if TYPE_CHECKING:
    from rich.console import Console

    from laurel.core.sample import Group
    from laurel.eval.evaluate import Evaluation
    from laurel.model.policy import Policy

FOR_SCORES = ("k", "rewards", "reward_weights", "reward_timeout", "reference", "output")
FOR_ANSWERS = (
    "num_generations",
    "k",
    "max_completion_length",
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "env",
    "max_turns",
    "rewards",
    "reward_weights",
    "reward_timeout",
    "reference",
)
FOR_ROWS = ("dataset_split", "dataset_size", "limit")


def add_parser(subparsers: Any) -> None:
    """Register `eval` and `sample`; their options are those of EvalConfig."""
    parser = subparsers.add_parser(
        "eval",
        help="greedy accuracy, pass@k, majority@k, with intervals; of a scorer: calibration, too",
    )
    add_options(parser, EvalConfig)
    parser.set_defaults(run=run_eval)
    parser = subparsers.add_parser("sample", help="sample completions of a prompt")
    parser.add_argument(
        "prompt",
        nargs="*",
        help="the prompt; without one, the first rows of --dataset (see --limit)",
    )
    add_options(parser, EvalConfig)
    parser.set_defaults(run=run_sample)


def print_policy_notes(policy: Policy) -> None:
    """What is to be said of a model before its answers are looked at, on the error stream."""
    for note in policy.notes:
        print(note, file=sys.stderr)


def run_eval(args: argparse.Namespace) -> int:
    """Evaluate, print a table, write --output."""
    from rich.console import Console
    from rich.progress import Progress

    config = read_options(args, EvalConfig)
    from laurel.train.inference import evaluate_config, is_scorer

    if is_scorer(config.model):
        return run_scorer(config)
    console = Console(highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluating", total=None)

        def loaded(policy: Policy, rows: int) -> None:
            print_policy_notes(policy)
            progress.update(task, total=rows * (2 if config.num_generations > 1 else 1))

        _, result = evaluate_config(
            config, loaded=loaded, watch=lambda count: progress.advance(task, count)
        )
    print_figures(console, config, result)
    write_result(config, result.as_json(), console)
    return 0


def print_figures(console: Console, config: EvalConfig, result: Evaluation) -> None:
    """The figures as a table, and how many samples could not be scored."""
    from rich.table import Table

    table = Table(
        "figure",
        "value",
        "95 % interval",
        "prompts",
        title=f"{config.model} on {config.dataset}",
        title_justify="left",
    )
    for name, interval in result.figures.items():
        table.add_row(
            name,
            f"{interval.value:.4f}",
            f"{interval.low:.4f} to {interval.high:.4f}",
            str(interval.n),
        )
    console.print(table)
    if result.failed:
        console.print(
            f"{result.failed} samples could not be scored (counted as wrong, left out of the mean"
            " reward)",
            style="yellow",
        )


def run_scorer(config: EvalConfig) -> int:
    """Hold a trained scorer against rows with labels, print what they say, write --output."""
    from rich.console import Console

    from laurel.eval.scorer import evaluate_scorer

    refuse_ignored_option(
        config,
        FOR_ANSWERS,
        "is about answers, and a scorer gives none.",
        "Leave it out.",
        where="laurel eval",
    )
    verdict, left_out = evaluate_scorer(config)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{config.model} on {config.dataset}")
    console.print("\n".join(verdict.lines), markup=False)
    if left_out:
        console.print(
            f"{left_out} rows left out: no answer within the scorer's max_length", style="yellow"
        )
    write_result(config, {"figures": verdict.as_json(), "left_out": left_out}, console)
    return 0


def write_result(config: EvalConfig, result: dict[str, Any], console: Any) -> None:
    """The result beside its configuration, as JSON in the file that --output names."""
    if config.output:
        path = Path(config.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(path):
            path.write_text(
                json.dumps({"config": config.model_dump(), **result}, indent=1) + "\n",
                encoding="utf-8",
            )
        console.print(f"written to {path}")


def run_sample(args: argparse.Namespace) -> int:
    """Print the completions of each prompt, with their log-probability and how they ended."""
    from rich.console import Console

    config = read_options(args, EvalConfig)
    from laurel.eval.load import load_prompts
    from laurel.train.inference import policies_of, rows_of, sample_rows

    refuse_ignored_option(
        config,
        FOR_SCORES,
        "is about scores, and `laurel sample` gives none.",
        "Use `laurel eval`, or leave it out.",
    )
    if args.prompt:
        refuse_ignored_option(
            config, FOR_ROWS, "belongs to the rows of --dataset.", "Leave it out, or the prompt."
        )
    rows = rows_of([as_text(word) for word in args.prompt])
    rows = rows or load_prompts(config)[: config.limit or 3]
    policy, _ = policies_of(config)
    print_policy_notes(policy)
    groups = sample_rows(policy, rows, config)
    show_samples(Console(highlight=False, soft_wrap=True), groups)
    return 0


def show_samples(console: Console, groups: Sequence[Group]) -> None:
    """Every completion behind its prompt, and why environments failed."""
    from rich.text import Text

    for group in groups:
        for why in group.results.get(ENVIRONMENT, ())[:1]:
            console.print(f"failed: {getattr(why, 'reason', '')}", markup=False)
        for sample in group.samples:
            logp = sum(sample.logps)
            console.print(
                Text.assemble(
                    (str(group.row["prompt"]), "bold"),
                    (sample.text, "cyan"),
                    f"  [{sample.finish}, log-prob {logp:.2f}]",
                )
            )


def as_text(word: str) -> str:
    """A word of the command line as text.

    Where the terminal's language is not UTF-8, Python leaves its bytes as they came.
    """
    try:
        return word.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise UsageError(
            "the prompt is not text in UTF-8.",
            where="laurel sample",
            fix="Put it in a file, for --dataset.",
        ) from None


def refuse_ignored_option(
    config: EvalConfig, options: Sequence[str], why: str, fix: str, *, where: str = "laurel sample"
) -> None:
    """An option that is set and would be ignored is an error."""
    for option in options:
        if getattr(config, option) != EvalConfig.model_fields[option].default:
            raise UsageError(f"`--{option}` {why}", where=where, fix=fix)
