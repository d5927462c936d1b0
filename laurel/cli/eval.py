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
from laurel.core.files import writing
from laurel.core.result import ENVIRONMENT

if TYPE_CHECKING:
    from laurel.data.source import Row
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


def load_prompts(config: EvalConfig) -> list[Row]:
    """The rows of --dataset, the first --limit of them."""
    from laurel.data.rows import read_rows

    rows = read_rows(
        config.dataset,
        "rl",
        split=config.dataset_split,
        seed=config.seed,
        size=config.dataset_size,
        by="sampling",
    )
    return rows[: config.limit or None]


def load_policies(config: EvalConfig) -> tuple[Policy, Policy | None]:
    """The policy, and the reference if one is named. A reference that numbers its tokens
    differently is refused.
    """
    import torch

    from laurel.fast import products
    from laurel.model.chat import ensure_template
    from laurel.model.ends import learn_ends
    from laurel.model.policy import (
        Policy,
        load_causal,
        load_tokenizer,
        pick_device,
        pick_dtype,
        pick_threads,
    )
    from laurel.model.render import without_template
    from laurel.train.starter import STARTERS, build_starter

    def folder_of(model: str) -> str:
        return (
            str(build_starter(model, config.dataset, config.seed)) if model in STARTERS else model
        )

    name, reference = (
        folder_of(config.model),
        folder_of(config.reference) if config.reference else None,
    )
    device = pick_device(config.device)
    tokenizer = load_tokenizer(name)
    notes = without_template(tokenizer, config.chat_template)
    template = ensure_template(tokenizer, config.chat_template)
    if reference and load_tokenizer(reference).get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            "the reference has another vocabulary than the model: no KL between them.",
            where=f"reference={config.reference}",
        )

    def load(folder: str) -> Policy:
        model = load_causal(folder, torch.float32)
        said = [
            *notes,
            *learn_ends(
                model.get_base_model() if hasattr(model, "get_base_model") else model, tokenizer
            ),
        ]
        return Policy(
            model.to(device).eval(),
            tokenizer,
            pick_dtype(config.dtype, device),
            template,
            tuple(said),
        )

    policy = load(name)
    torch.set_num_threads(pick_threads(config.num_threads, policy.num_parameters))
    products.choose(policy.model, device, policy.dtype)
    return policy, load(reference) if reference else None


def say(policy: Policy) -> None:
    """What is to be said of a model before its answers are looked at, on the error stream."""
    for note in policy.notes:
        print(note, file=sys.stderr)


def run_eval(args: argparse.Namespace) -> int:
    """Evaluate, print a table, write --output."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    config = read_options(args, EvalConfig)
    from laurel.eval.evaluate import evaluate, figures_at
    from laurel.model.classifier import trained_labels
    from laurel.reward.mixture import load_rewards
    from laurel.train.starter import STARTERS

    if config.model not in STARTERS and trained_labels(config.model):
        return run_scorer(config)
    figures_at(config)
    rows = load_prompts(config)
    mixture = load_rewards(
        config.rewards,
        config.reward_weights,
        rows,
        timeout=config.reward_timeout,
        max_failed_fraction=1.0,
    )
    policy, reference = load_policies(config)
    console = Console(highlight=False)
    say(policy)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(
            "evaluating", total=len(rows) * (2 if config.num_generations > 1 else 1)
        )
        result = evaluate(
            policy,
            rows,
            mixture,
            config,
            reference=reference,
            watch=lambda n: progress.advance(task, n),
        )
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
    write(config, result.as_json(), console)
    return 0


def run_scorer(config: EvalConfig) -> int:
    """Hold a trained scorer against rows with labels, print what they say, write --output."""
    from rich.console import Console

    from laurel.eval.scorer import evaluate_scorer

    refuse(
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
    write(config, {"figures": verdict.as_json(), "left_out": left_out}, console)
    return 0


def write(config: EvalConfig, result: dict[str, Any], console: Any) -> None:
    """The result beside its configuration, as JSON in the file that --output names."""
    if config.output:
        path = Path(config.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path):
            path.write_text(
                json.dumps({"config": config.model_dump(), **result}, indent=1) + "\n",
                encoding="utf-8",
            )
        console.print(f"written to {path}")


def run_sample(args: argparse.Namespace) -> int:
    """Print num_generations completions of each prompt, with their log-probability and how they
    ended.
    """
    from rich.console import Console
    from rich.text import Text

    config = read_options(args, EvalConfig)
    from laurel.core.sample import Draw
    from laurel.data.source import Row
    from laurel.rollout.episode import load_env, play
    from laurel.rollout.sampler import Sampler
    from laurel.rollout.single import rollout

    refuse(
        config,
        FOR_SCORES,
        "is about scores, and `laurel sample` gives none.",
        "Use `laurel eval`, or leave it out.",
    )
    if args.prompt:
        refuse(
            config, FOR_ROWS, "belongs to the rows of --dataset.", "Leave it out, or the prompt."
        )
    rows = [
        Row({"prompt": as_text(word)}, f"prompt {i}", f"prompt-{i}")
        for i, word in enumerate(args.prompt, 1)
    ]
    rows = rows or load_prompts(config)[: config.limit or 3]
    policy, _ = load_policies(config)
    say(policy)
    draw = Draw(
        "sample",
        0,
        config.seed,
        config.num_generations,
        config.max_completion_length,
        config.temperature,
        tuple(config.stop),
        config.top_k,
        config.top_p,
    )
    groups = (
        play(Sampler(policy), rows, draw, load_env(config.env), config.max_turns)
        if config.env
        else rollout(Sampler(policy), rows, draw)
    )
    console = Console(highlight=False, soft_wrap=True)
    for group in groups:
        for why in group.results.get(ENVIRONMENT, ())[:1]:
            console.print(f"failed: {why.reason}", markup=False)
        for sample in group.samples:
            logp = sum(sample.logps)
            console.print(
                Text.assemble(
                    (str(group.row["prompt"]), "bold"),
                    (sample.text, "cyan"),
                    f"  [{sample.finish}, log-prob {logp:.2f}]",
                )
            )
    return 0


def as_text(word: str) -> str:
    """A word of the command line as text: where the terminal's language is not UTF-8, Python leaves
    its bytes as they came.
    """
    try:
        return word.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise UsageError(
            "the prompt is not text in UTF-8.",
            where="laurel sample",
            fix="Put it in a file, for --dataset.",
        ) from None


def refuse(
    config: EvalConfig, options: Sequence[str], why: str, fix: str, *, where: str = "laurel sample"
) -> None:
    """An option that is set and would be ignored is an error."""
    for option in options:
        if getattr(config, option) != EvalConfig.model_fields[option].default:
            raise UsageError(f"`--{option}` {why}", where=where, fix=fix)
