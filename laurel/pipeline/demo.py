"""The demonstration: SFT, then learning from a verifier (GRPO) and from preferences.

In minutes on two cores; the preferences are a pipeline.
"""

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
from laurel.model.policy import load_policy
from laurel.pipeline.plan import Comparing, Plan, Preferring, Sampling
from laurel.pipeline.run import pipeline
from laurel.report.page import write_report
from laurel.reward.mixture import load_rewards
from laurel.train.interrupt import Interrupted
from laurel.train.loop import train
from laurel.train.run_data import load_data
from laurel.train.starter import starter_config

TASK = "addition"
PROBLEMS = 500


def demo(output_dir: str = "runs/demo", seed: int = 0) -> dict[str, Any]:
    """Run the demonstration; accuracy before and after, and the seconds it took.

    First half: greedy accuracy over 500 different problems that neither stage has trained on.
    Second half: how many of a policy's answers are right after it was trained on preferences alone,
    one label in ten of which is wrong.
    """
    began, console, folder = time.perf_counter(), Console(highlight=False), Path(output_dir)
    console.rule(
        "[bold]1  a small language model imitates a sloppy teacher, who forgets carries (SFT)"
    )
    sft = stage("sft", starter_config(TASK, seed=seed, output_dir=str(folder / "sft")))
    before = held_out(sft)
    console.rule("[bold]2  the same model asks a verifier: right or wrong? (GRPO)")
    grpo = stage("grpo", grpo_config(str(sft.model), seed, str(folder / "grpo")))
    after = held_out(grpo)
    report = write_report(grpo.folder)
    console.rule(
        "[bold]3  the first model again, and no verifier: people say which of two answers they like"
        " better (reward model, PPO)"
    )
    preferred = pipeline(preference_plan(str(sft.model), seed, str(folder / "preferences")))[
        "figures"
    ]
    seconds = time.perf_counter() - began
    summary = {
        "accuracy_before": before.figures["accuracy"].value,
        "accuracy_after": after.figures["accuracy"].value,
        "preferences_before": preferred[f"{TASK}, start"]["value"],
        "preferences_after": preferred[f"{TASK}, policy"]["value"],
        "preferences_gain": [preferred[f"{TASK}, gain"][key] for key in ("value", "low", "high")],
        "seconds": round(seconds, 1),
        "held_out": before.prompts,
        "seed": seed,
    }
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    show(console, before, after, seconds, report)
    return summary


def stage(algorithm: str, config: TrainConfig) -> Run:
    """A run of the tour, carried on where an earlier call of the same command left it."""
    try:
        return train(algorithm, config.model_copy(update={"resume": True}))
    except Interrupted as stopped:
        raise stopped.again(stopped.what, "The same command goes on from there.") from None


def grpo_config(model: str, seed: int, output_dir: str) -> TrainConfig:
    """Eight tries per problem, and the verifier's yes or no."""
    return TrainConfig(
        model=model,
        dataset=TASK,
        dataset_size=20_000,
        eval_size=1_400,
        seed=seed,
        output_dir=output_dir,
        max_steps=200,
        prompts_per_step=64,
        num_generations=8,
        max_completion_length=6,
        learning_rate=1.5e-4,
        warmup_steps=10,
        lr_scheduler_type="cosine",
        adam_beta2=0.98,
        reference="start",
        logging_steps=5,
        eval_steps=25,
        stop_at=0.96,
    )


def preference_plan(model: str, seed: int, output_dir: str) -> Plan:
    """Pairs of the model's own answers, a reward model of them, and PPO close to the start.

    The right answer is preferred nine times in ten.
    """
    return Plan(
        model=model,
        dataset=TASK,
        dataset_size=6_000,
        eval_size=500,
        seed=seed,
        output_dir=output_dir,
        sample=Sampling(num_generations=4, max_completion_length=6),
        prefer=Preferring(error_rate=0.1),
        reward={
            "max_steps": 300,
            "prompts_per_step": 64,
            "learning_rate": 5e-4,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 10,
            "logging_steps": 10,
        },
        policy={
            "algorithm": "ppo",
            "max_steps": 40,
            "prompts_per_step": 64,
            "num_generations": 4,
            "max_completion_length": 6,
            "learning_rate": 1.5e-4,
            "beta": 0.3,
            "critic_model": "reward",
            "normalize_rewards": True,
            "missing_eos_penalty": 0.0,
        },
        compare=Comparing(num_generations=4, best_of=[1, 2, 4]),
    )


def held_out(run: Run) -> Evaluation:
    """Greedy accuracy of a run's model on PROBLEMS different prompts that the run held out."""
    config = TrainConfig(
        **{name: value for name, value in run.config().items() if name in TrainConfig.model_fields}
    )
    policy = load_policy(config.model_copy(update={"model": str(run.model)}))
    distinct = list({prompt_key(row): row for row in load_data(config, "rl")[1]}.values())[
        :PROBLEMS
    ]
    return evaluate(
        policy, distinct, load_rewards(None, None, distinct), EvalConfig(max_completion_length=6)
    )


def show(
    console: Console, before: Evaluation, after: Evaluation, seconds: float, report: Path
) -> None:
    """The table at the end, a few answers before and after, and where to look next."""
    table = Table(
        "problem", "after SFT", "after GRPO", title="a few held-out problems", title_justify="left"
    )
    for first, last in list(zip(before.greedy, after.greedy, strict=True))[:6]:
        table.add_row(str(first.row["prompt"]), *(verdict(group) for group in (first, last)))
    console.print(table)
    table = Table(
        f"greedy accuracy on {before.prompts} held-out problems", "value", "95 % interval"
    )
    for name, result in [("after SFT", before), ("after GRPO", after)]:
        figure = result.figures["accuracy"]
        table.add_row(name, f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}")
    console.print(table)
    gain = paired_difference(
        *(
            [float(is_right(group.rewards[0])) for group in result.greedy]
            for result in (before, after)
        )
    )
    gained = f"gain {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}, paired)"
    console.print(f"{gained}. The report: {report}", soft_wrap=True)
    console.print(
        "preferences alone: the table above, and"
        f" {report.parent.parent / 'preferences' / 'report.html'}",
        soft_wrap=True,
    )
    console.print(f"all of it in {seconds:.0f} seconds", soft_wrap=True)


def verdict(group: Group) -> str:
    """An answer and whether the verifier took it."""
    return f"{group.samples[0].text} {'right' if is_right(group.rewards[0]) else 'wrong'}"
