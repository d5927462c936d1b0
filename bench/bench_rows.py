"""Every row of the table that learns from the task's own reward, from the same start: reward,
accuracy, KL, seconds.

python bench/bench_rows.py [STEPS] prints the table that bench/RESULTS.md records.
"""

import sys
import tempfile
from pathlib import Path

from laurel.core.config import TrainConfig
from laurel.train.algorithms import ALGORITHMS
from laurel.train.loop import train
from laurel.train.options import defaults

TASK = "addition"


def main(steps: int = 60) -> None:
    """Train each row for `steps` steps and print its line."""
    print(
        "| row | reward, first 5 steps | reward, last 5 | held-out accuracy | KL to the start,"
        f" nats per token | seconds, {steps} steps |"
    )
    print("|---|---|---|---|---|---|")
    for name, row in ALGORITHMS.items():
        if not row.source.sampled or row.source.judge or row.source.revise:
            continue
        options = {"reference": "start"} if "reference" in defaults(name) else {}
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(
                dataset=TASK,
                dataset_size=8_000,
                eval_size=400,
                output_dir=str(Path(folder) / name),
                max_steps=steps,
                prompts_per_step=64,
                num_generations=8,
                max_completion_length=6,
                learning_rate=3e-4,
                warmup_steps=10,
                eval_steps=steps,
                **options,
            )
            lines = train(name, config, quiet=True).metrics()
        rewards = [line["reward"] for line in lines]
        kl = next((line["kl"] for line in reversed(lines) if "kl" in line), float("nan"))
        first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
        seconds = sum(line["seconds/step"] for line in lines)
        print(
            f"| {name} | {first:.3f} | {last:.3f} | {lines[-1]['eval/accuracy']:.3f} | {kl:.3f} |"
            f" {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
