"""The learning race: two-digit addition from the same start to 90 % held-out accuracy, wall clock
without evaluation, one seed a turn.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import peers
import torch
from measure import Turns
from models import Shape, write

from laurel.core.config import TrainConfig
from laurel.data.source import load_rows
from laurel.model.chat import encode_prompt
from laurel.model.policy import Policy, load_policy
from laurel.rollout.sampler import sample
from laurel.train import evaluate as evaluation
from laurel.train import loop
from laurel.train.starter import build_starter

HYPER = {"prompts": 64, "each": 8, "length": 6, "steps": 1000, "learning_rate": 3e-4}
GOAL, EVERY, HELD = 0.9, 5, 400


def task(folder: Path, tiny: bool) -> tuple[str, list[dict[str, str]], list[dict[str, str]]]:
    """The start (laurel's starter: sloppy demonstrations, kept for the next run), rows to train on,
    rows to test on.
    """
    if tiny:
        os.environ["LAUREL_CACHE"] = str(folder / "cache")
    rows = [
        {"prompt": row.columns["prompt"], "answer": row.columns["answer"]}
        for row in load_rows("addition", seed=7, size=8_000)
    ]
    distinct = list({row["prompt"]: row for row in rows}.values())
    start = str(build_starter("scratch" if tiny else "starter", "addition", 0, loop.train))
    return start, distinct[HELD:], distinct[:HELD]


def accuracy(policy: Policy, held: list[dict[str, str]]) -> float:
    """Share of held-out prompts answered rightly, greedily."""
    prompts = [encode_prompt(policy.tokenizer, row["prompt"]) for row in held]
    said = sample(
        policy,
        prompts,
        seeds=[0] * len(held),
        max_completion_length=HYPER["length"],
        temperature=0.0,
    )
    texts = policy.tokenizer.batch_decode([one.ids for one in said], skip_special_tokens=True)
    return sum(text.strip() == row["answer"] for text, row in zip(texts, held, strict=True)) / len(
        held
    )


def hyper_of(shape: Shape) -> tuple[dict[str, Any], bool]:
    """The settings of both sides; a handful of steps with --quick."""
    tiny = shape.size == "tiny"
    return (HYPER | {"prompts": 4, "each": 2, "steps": EVERY} if tiny else HYPER), tiny


def ours(turns: Turns, shape: Shape, folder: Path, dtype: str) -> None:
    """`laurel.train.loop.train`, which stops by itself; its evaluations are timed and taken off."""
    hyper, tiny = hyper_of(shape)
    start, rows, held = task(folder, tiny)
    data, test = write(rows, folder / "rows.jsonl"), write(held, folder / "held.jsonl")
    looked, original = [0.0], evaluation.evaluate

    def timed(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*args, **options)
        finally:
            looked[0] += time.perf_counter() - began

    loop.evaluate = timed
    turns.ready()
    seed = 0
    while turns.begin():
        looked[0] = 0.0
        config = TrainConfig.model_validate(
            {
                "model": start,
                "dataset": data,
                "eval_dataset": test,
                "eval_size": HELD,
                "output_dir": str(folder / f"run-{seed}"),
                "rewards": ["exact"],
                "max_steps": hyper["steps"],
                "prompts_per_step": hyper["prompts"],
                "num_generations": hyper["each"],
                "max_completion_length": hyper["length"],
                "learning_rate": hyper["learning_rate"],
                "eval_steps": EVERY,
                "stop_at": GOAL,
                "seed": seed,
                "dtype": "float32" if dtype == "fp32" else "bfloat16",
                "num_threads": torch.get_num_threads(),
            }
        )
        began = time.perf_counter()
        lines = loop.train("grpo", config, quiet=True).metrics()
        whole = time.perf_counter() - began
        reached = max((line.get("eval/accuracy", 0.0) for line in lines), default=0.0)
        turns.end(
            seconds=whole - looked[0],
            whole=whole,
            steps=len(lines),
            accuracy=reached,
            reached=reached >= GOAL,
        )
        seed += 1


def trl(turns: Turns, shape: Shape, folder: Path, dtype: str) -> None:
    """GRPOTrainer with TRL's defaults, tested by the same function every five steps; the tests'
    time is taken off.
    """
    hyper, tiny = hyper_of(shape)
    start, rows, held = task(folder, tiny)
    judge = load_policy(TrainConfig(model=start, device="cpu"))
    import trl as installed  # an import error belongs before the first turn

    turns.ready(trl=installed.__version__)
    seed = 0
    while turns.begin():
        found = {"looked": 0.0, "accuracy": 0.0}

        def check(model: Any, found: dict[str, float] = found) -> bool:
            began = time.perf_counter()
            policy = Policy(model, judge.tokenizer, torch.float32, judge.template)
            found["accuracy"] = max(found["accuracy"], accuracy(policy, held))
            model.train()
            found["looked"] += time.perf_counter() - began
            return found["accuracy"] >= GOAL

        began = time.perf_counter()
        trainer = peers.learn_trainer(start, folder, seed, rows, check, hyper)
        trainer.train()
        whole = time.perf_counter() - began
        steps, best = trainer.state.global_step, found["accuracy"]
        turns.end(
            seconds=whole - found["looked"],
            whole=whole,
            steps=steps,
            accuracy=best,
            reached=best >= GOAL,
        )
        seed += 1
