"""`laurel eval`: how good a model is on rows with a verifier. `laurel sample`: what it says to a prompt."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel.cli.options import add_options, read_options
from laurel.core.config import EvalConfig
from laurel.core.errors import UsageError

if TYPE_CHECKING:
    from laurel.data.source import Row
    from laurel.policy.model import Policy

FOR_SCORES = ("k", "rewards", "reward_weights", "reward_timeout", "reference", "output")
FOR_ROWS = ("dataset_split", "dataset_size", "limit")


def add_parser(subparsers: Any) -> None:
    """Register `eval` and `sample`; their options are those of EvalConfig."""
    parser = subparsers.add_parser("eval", help="greedy accuracy, pass@k, majority@k, with intervals")
    add_options(parser, EvalConfig)
    parser.set_defaults(run=run_eval)
    parser = subparsers.add_parser("sample", help="sample completions of a prompt")
    parser.add_argument("prompt", nargs="*", help="the prompt; without one, the first rows of --dataset (see --limit)")
    add_options(parser, EvalConfig)
    parser.set_defaults(run=run_sample)


def load_prompts(config: EvalConfig) -> list[Row]:
    """The rows of --dataset, the first --limit of them."""
    from laurel.data.formats import needs
    from laurel.data.source import load_rows

    rows = needs(load_rows(config.dataset, split=config.dataset_split, seed=config.seed, size=config.dataset_size), "rl")
    return rows[: config.limit or None]


def load_policies(config: EvalConfig) -> tuple[Policy, Policy | None]:
    """The policy, and the reference if one is named. A reference that numbers its tokens differently is refused."""
    import torch

    from laurel.policy.chat import ensure_template
    from laurel.policy.model import Policy, load_causal, load_tokenizer, pick_device, pick_dtype, pick_threads
    from laurel.train.starter import STARTERS, build_starter

    def folder_of(model: str) -> str:
        return str(build_starter(model, config.dataset, config.seed)) if model in STARTERS else model

    name, reference = folder_of(config.model), folder_of(config.reference) if config.reference else None
    device = pick_device(config.device)
    tokenizer = load_tokenizer(name)
    template = ensure_template(tokenizer, config.chat_template)
    if reference and load_tokenizer(reference).get_vocab() != tokenizer.get_vocab():
        raise UsageError("the reference has another vocabulary than the model: no KL between them.", where=f"reference={config.reference}")

    def load(folder: str) -> Policy:
        return Policy(load_causal(folder, torch.float32).to(device).eval(), tokenizer, pick_dtype(config.dtype, device), template)

    policy = load(name)
    torch.set_num_threads(pick_threads(config.num_threads, policy.num_parameters))
    return policy, load(reference) if reference else None


def run_eval(args: argparse.Namespace) -> int:
    """Evaluate, print a table, write --output."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    config = read_options(args, EvalConfig)
    from laurel.eval.evaluate import evaluate, figures_at
    from laurel.reward.mixture import load_rewards

    figures_at(config)
    rows = load_prompts(config)
    mixture = load_rewards(config.rewards, config.reward_weights, rows, timeout=config.reward_timeout, max_failed_fraction=1.0)
    policy, reference = load_policies(config)
    console = Console(highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluating", total=len(rows) * (2 if config.num_generations > 1 else 1))
        result = evaluate(policy, rows, mixture, config, reference=reference, watch=lambda n: progress.advance(task, n))
    table = Table("figure", "value", "95 % interval", "prompts", title=f"{config.model} on {config.dataset}", title_justify="left")
    for name, interval in result.figures.items():
        table.add_row(name, f"{interval.value:.4f}", f"{interval.low:.4f} to {interval.high:.4f}", str(interval.n))
    console.print(table)
    if result.failed:
        console.print(f"{result.failed} samples could not be scored (counted as wrong, left out of the mean reward)", style="yellow")
    if config.output:
        path = Path(config.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"config": config.model_dump(), **result.as_json()}, indent=1) + "\n", encoding="utf-8")
        console.print(f"written to {path}")
    return 0


def run_sample(args: argparse.Namespace) -> int:
    """Print num_generations completions of each prompt, with their log-probability and how they ended."""
    from rich.console import Console
    from rich.text import Text

    config = read_options(args, EvalConfig)
    from laurel.data.source import Row
    from laurel.rollout.episode import load_env, play
    from laurel.rollout.single import Draw, rollout

    refuse(config, FOR_SCORES, "is about scores, and `laurel sample` gives none.", "Use `laurel eval`, or leave it out.")
    if args.prompt:
        refuse(config, FOR_ROWS, "belongs to the rows of --dataset.", "Leave it out, or the prompt.")
    rows = [Row({"prompt": text}, f"prompt {i}", f"prompt-{i}") for i, text in enumerate(args.prompt, 1)]
    rows = rows or load_prompts(config)[: config.limit or 3]
    policy, _ = load_policies(config)
    draw = Draw(
        "sample", 0, config.seed, config.num_generations, config.max_completion_length, config.temperature, tuple(config.stop),
        config.top_k, config.top_p,
    )  # fmt: skip
    groups = play(policy, rows, draw, load_env(config.env), config.max_turns) if config.env else rollout(policy, rows, draw)
    console = Console(highlight=False, soft_wrap=True)
    for group in groups:
        for sample in group.samples:
            logp = sum(sample.logps)
            console.print(
                Text.assemble((str(group.row["prompt"]), "bold"), (sample.text, "cyan"), f"  [{sample.finish}, log-prob {logp:.2f}]")
            )
    return 0


def refuse(config: EvalConfig, options: Sequence[str], why: str, fix: str) -> None:
    """An option that is set and would be ignored is an error."""
    for option in options:
        if getattr(config, option) != EvalConfig.model_fields[option].default:
            raise UsageError(f"`--{option}` {why}", where="laurel sample", fix=fix)
