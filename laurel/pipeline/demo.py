"""The demonstration: from nothing to a model that can add, in minutes on two cores: build, SFT, GRPO, evaluate, report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from laurel.core.config import EvalConfig, TrainConfig
from laurel.core.files import write_atomic
from laurel.core.run import Run
from laurel.core.sample import Group
from laurel.data.split import prompt_key
from laurel.eval.evaluate import Evaluation, evaluate, is_right
from laurel.measure.intervals import paired_difference
from laurel.policy.model import load_policy
from laurel.report.page import write_report
from laurel.reward.mixture import load_rewards
from laurel.train.loop import train
from laurel.train.setup import load_data
from laurel.train.starter import starter_config

TASK = "addition"
PROBLEMS = 500


def demo(output_dir: str = "runs/demo", seed: int = 0) -> dict[str, Any]:
    """Run the whole thing; returns (and writes to `output_dir`/summary.json) accuracy before and after, and the seconds it took.

    Greedy accuracy over 500 different problems that neither stage has trained on.
    """
    began, console, folder = time.perf_counter(), Console(highlight=False), Path(output_dir)
    console.rule("[bold]1  a small language model imitates a sloppy teacher, who forgets carries (SFT)")
    sft = train("sft", starter_config(TASK, seed=seed, output_dir=str(folder / "sft")))
    before = held_out(sft)
    console.rule("[bold]2  the same model asks a verifier: right or wrong? (GRPO)")
    grpo = train("grpo", grpo_config(str(sft.model), seed, str(folder / "grpo")))
    after = held_out(grpo)
    report = write_report(grpo.folder)
    seconds = time.perf_counter() - began
    summary = {
        "accuracy_before": before.figures["accuracy"].value, "accuracy_after": after.figures["accuracy"].value,
        "seconds": round(seconds, 1), "held_out": before.prompts, "seed": seed,
    }  # fmt: skip
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    show(console, before, after, seconds, report)
    return summary


def grpo_config(model: str, seed: int, output_dir: str) -> TrainConfig:
    """Eight tries per problem, and the verifier's yes or no."""
    return TrainConfig(
        model=model, dataset=TASK, dataset_size=20_000, eval_size=1_400, seed=seed, output_dir=output_dir, max_steps=200,
        prompts_per_step=64, num_generations=8, max_completion_length=6, learning_rate=1.5e-4, warmup_steps=10,
        lr_scheduler_type="cosine", adam_beta2=0.98, reference="start", logging_steps=5, eval_steps=25, stop_at=0.96,
    )  # fmt: skip


def held_out(run: Run) -> Evaluation:
    """Greedy accuracy of a run's model on PROBLEMS different prompts that the run held out."""
    config = TrainConfig(**{name: value for name, value in run.config().items() if name in TrainConfig.model_fields})
    policy = load_policy(config.model_copy(update={"model": str(run.model)}))
    distinct = list({prompt_key(row): row for row in load_data(config, "rl")[1]}.values())[:PROBLEMS]
    return evaluate(policy, distinct, load_rewards(None, None, distinct), EvalConfig(max_completion_length=6))


def show(console: Console, before: Evaluation, after: Evaluation, seconds: float, report: Path) -> None:
    """The table at the end, a few answers before and after, and where to look next."""
    table = Table("problem", "after SFT", "after GRPO", title="a few held-out problems", title_justify="left")
    for first, last in list(zip(before.greedy, after.greedy, strict=True))[:6]:
        table.add_row(str(first.row["prompt"]), *(verdict(group) for group in (first, last)))
    console.print(table)
    table = Table(f"greedy accuracy on {before.prompts} held-out problems", "value", "95 % interval")
    for name, result in [("after SFT", before), ("after GRPO", after)]:
        figure = result.figures["accuracy"]
        table.add_row(name, f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}")
    console.print(table)
    gain = paired_difference(*([float(is_right(group.rewards[0])) for group in result.greedy] for result in (before, after)))
    gained = f"gain {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}, paired)"
    console.print(f"{gained} in {seconds:.0f} seconds. The report: {report}", soft_wrap=True)


def verdict(group: Group) -> str:
    """An answer and whether the verifier took it."""
    return f"{group.samples[0].text} {'right' if is_right(group.rewards[0]) else 'wrong'}"
