"""DPO maximises only the margin: what happens to the chosen answers?

The lectures ask it. Measured on a small model that has learned to add.

    python -m laurel_worlds.experiments.dpo_margin [--first-seed N] [--seeds K]

Prints a table and the verdicts that it supports. docs/algorithms/dpo.md records one.
"""

import json
import random
from pathlib import Path
from statistics import mean

import torch

from laurel.core.config import TrainConfig
from laurel.core.sample import Draw
from laurel.data.source import Row, load_rows
from laurel.model.policy import Policy, load_policy
from laurel.model.scratch import save_scratch
from laurel.rollout.data import rankings
from laurel.rollout.pack import pack
from laurel.rollout.sampler import Sampler, rollout
from laurel.train.loop import train
from laurel_worlds.experiments.comparison import (
    correction_note,
    interval,
    interval_text,
    make_parser,
    markdown_table,
    run_seeds,
    seeds_of,
)

METHODS = {
    "dpo": ("dpo", {}),
    "dpo, rpo_alpha 1": ("dpo", {"rpo_alpha": 1.0}),
    "dpop": ("dpop", {}),
    "ipo": ("ipo", {}),
    "simpo": ("simpo", {}),
    "orpo": ("orpo", {}),
}
"""A label: the row of the table and its options. All take the same pairs, steps and learning rate.
"""
MADE = 3 * len(METHODS)  # comparisons with SFT: of the chosen answers, the margin, and the sums
SHOWN = ("chosen", "rejected", "margin", "accuracy")


def one_digit_off(number: int, rng: random.Random) -> str:
    """The number with one digit changed: the two answers of a pair share every other token."""
    digits = list(str(number))
    place = rng.randrange(len(digits))
    digits[place] = rng.choice([d for d in "0123456789" if d != digits[place]])
    return "".join(digits)


def write_data(folder: Path, seed: int) -> None:
    """Write the data as lines of JSON: 8000 sums of two numbers below 100 to imitate.

    1000 of them with a wrong answer as pairs, and 300 others held out.
    """
    rng = random.Random(seed)
    sums = rng.sample([(a, b) for a in range(100) for b in range(100)], 8300)
    rows = [
        {
            "prompt": f"{a}+{b}=",
            "completion": str(a + b),
            "chosen": str(a + b),
            "rejected": one_digit_off(a + b, rng),
        }
        for a, b in sums
    ]
    files = {
        "sft": (rows[:8000], ("prompt", "completion")),
        "pairs": (rows[:1000], ("prompt", "chosen", "rejected")),
        "held": (rows[8000:], ("prompt", "completion")),
    }
    for name, (part, columns) in files.items():
        lines = (json.dumps({column: row[column] for column in columns}) for row in part)
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))


@torch.no_grad()
def measure_model(folder: Path, model: Path) -> dict[str, float]:
    """Mean log-probability of the pairs' answers, and the share of held-out sums right.

    Of chosen and rejected answers.
    """
    policy: Policy = load_policy(TrainConfig(model=str(model), device="cpu"))
    batch = pack(
        rankings(
            policy,
            load_rows(str(folder / "pairs.jsonl")),
            run="",
            step=0,
            train_on=None,
            max_length=None,
        )
    )
    chosen, rejected = policy.logp(batch).logp.sum(1).view(-1, 2).mean(0).tolist()
    held_out: list[Row] = load_rows(str(folder / "held.jsonl"))
    groups = rollout(Sampler(policy), held_out, Draw("claim", 0, 0, 1, 6, 0.0, ()))
    right = [group.samples[0].text == group.row["completion"] for group in groups]
    return {
        "chosen": chosen,
        "rejected": rejected,
        "margin": chosen - rejected,
        "accuracy": mean(right),
    }


def of_seed(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """SFT, then every method from that same model: label -> what was measured."""
    write_data(folder, seed)
    save_scratch(
        folder / "fresh",
        alphabet="0123456789+=",
        seed=seed,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    common = {"eval_size": 0, "seed": seed, "lr_scheduler_type": "cosine", "warmup_steps": 5}
    sft = TrainConfig(
        model=str(folder / "fresh"),
        dataset=str(folder / "sft.jsonl"),
        output_dir=str(folder / "sft"),
        max_steps=500,
        prompts_per_step=64,
        learning_rate=3e-3,
        **common,
    )
    start = train("sft", sft, quiet=True).model
    found = {"sft": measure_model(folder, start)}
    for number, (label, (name, options)) in enumerate(METHODS.items()):
        config = TrainConfig(
            model=str(start),
            dataset=str(folder / "pairs.jsonl"),
            output_dir=str(folder / str(number)),
            max_steps=80,
            prompts_per_step=32,
            learning_rate=3e-4,
            **common,
            **options,
        )
        found[label] = measure_model(folder, train(name, config, quiet=True).model)
    return found


def verdicts(seeds: list[dict[str, dict[str, float]]]) -> list[str]:
    """How each method changed the chosen answers' log-probability, where the interval is clear.

    Against SFT of the same seed.
    """
    lines = []
    for label in METHODS:
        (chosen, c), (margin, m) = (
            interval([s[label][x] - s["sft"][x] for s in seeds], MADE) for x in ("chosen", "margin")
        )
        accuracy, a = interval([s[label]["accuracy"] - s["sft"]["accuracy"] for s in seeds], MADE)
        way = "fell" if chosen + c < 0 else "rose" if chosen - c > 0 else "did not clearly change"
        grew = "the margin grew" if margin - m > 0 else "the margin did not clearly grow"
        right = "fewer" if accuracy + a < 0 else "more" if accuracy - a > 0 else "about as many"
        lines.append(
            f"{label}: chosen answers {way} ({chosen:+.2f} +- {c:.2f} nats), {grew}, {right}"
            " held-out sums right."
        )
    return lines


def main() -> None:
    """Print the table of all seeds, then the verdicts."""
    seeds = run_seeds(seeds_of(make_parser(__doc__).parse_args()), of_seed)
    rows = [
        [label, *(interval_text([seed[label][name] for seed in seeds]) for name in SHOWN)]
        for label in ("sft", *METHODS)
    ]
    print(
        markdown_table(
            ["method", "log-prob of chosen", "of rejected", "margin", "held-out sums right"], rows
        )
    )
    print("\n".join(["", correction_note(MADE), *verdicts(seeds)]))


if __name__ == "__main__":
    main()
