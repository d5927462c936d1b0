"""The lectures' claim that RLHF beats imitation: SFT, then RAFT, RLOO or PPO.

The reward model comes from noisy pairs; all are judged by the gold reward.

    python -m laurel_worlds.experiments.rlhf [--first-seed N] [--seeds K]

Prints a table and the verdicts that it supports, and draws docs/figures/rlhf.svg. The gold reward
is never trained on: it labels pairs, at random (Bradley-Terry), and measures. docs/experiments.md
records a run.
"""

import json
import math
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from laurel.core.config import TrainConfig
from laurel.core.sample import Draw
from laurel.data.source import Row, load_rows
from laurel.model.policy import Policy, load_policy
from laurel.model.scratch import save_scratch
from laurel.reward.learned import learned
from laurel.rollout.pack import pack
from laurel.rollout.sampler import Sampler, rollout
from laurel.train.loop import train
from laurel_worlds.experiments.comparison import (
    correction_note,
    draw_figure,
    interval_text,
    make_parser,
    markdown_table,
    run_seeds,
    seeds_of,
    sign_if_clear,
)

LETTERS, LENGTH, LONGEST = "abcdefgh", 6, 8
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DEMONSTRATIONS, PAIRS, BEST = 2000, 2000, 16
METHODS = {
    "SFT on the chosen answers": (
        "sft",
        {"prompts_per_step": 64, "max_steps": 100, "learning_rate": 1e-3},
    ),
    "RAFT": ("raft", {"num_generations": 4, "max_steps": 60, "learning_rate": 3e-4}),
    "RLOO": ("rloo", {"num_generations": 4, "max_steps": 60, "learning_rate": 1e-3, "beta": 0.1}),
    "PPO": ("ppo", {"num_generations": 4, "max_steps": 60, "learning_rate": 1e-3, "beta": 0.1}),
}
"""A label: the row of the table and its options.

All start from the same SFT model; all but the first ask the same learned reward.
"""
ORDER = ("demonstrations", "SFT", f"best of {BEST}", *METHODS)
HEADER = [
    "method",
    "gold reward",
    "wins against SFT (gold)",
    "learned reward",
    "wins (learned)",
    "KL to SFT, nats",
]


def gold(prompt: str, answer: str) -> float:
    """The gold reward of an answer.

    +1 for each letter followed by the next of the alphabet, +1 for beginning with the prompt's
    first letter, -2 per letter off six.

    ("cab=", "cdefgh"): 5 + 1 = 6, the most there is. ("cab=", "abxy"): 1 + 0 - 4 = -3.
    """
    steps = sum(ord(b) - ord(a) == 1 for a, b in pairwise(answer))
    return steps + (answer[:1] == prompt[:1]) - 2.0 * abs(len(answer) - LENGTH)


def demonstration(prompt: str, rng: random.Random) -> str:
    """What a person of middling skill writes.

    It begins as asked three times in five, and takes the right next letter two times in five.
    """
    drawn = prompt[0] if rng.random() < 0.6 else rng.choice(LETTERS)
    while len(drawn) < LENGTH:
        after = LETTERS.find(drawn[-1]) + 1
        drawn += (
            LETTERS[after] if after < len(LETTERS) and rng.random() < 0.4 else rng.choice(LETTERS)
        )
    return drawn


def write(path: Path, rows: Sequence[dict[str, str]]) -> str:
    """Rows as lines of JSON; the file's name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def train_sft(folder: Path, seed: int) -> Path:
    """The SFT model: a tiny model from nothing, on demonstrations. Writes prompts.jsonl too."""
    rng = random.Random(seed)
    prompts = [
        rng.choice(LETTERS[:3]) + "".join(rng.choices(LETTERS, k=2)) + "="
        for _ in range(DEMONSTRATIONS)
    ]
    rows = write(
        folder / "demos.jsonl",
        [{"prompt": prompt, "completion": demonstration(prompt, rng)} for prompt in prompts],
    )
    write(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    save_scratch(folder / "fresh", alphabet=LETTERS + "=", seed=seed, **TINY)
    config = TrainConfig(
        model=str(folder / "fresh"),
        dataset=rows,
        output_dir=str(folder / "sft"),
        max_steps=150,
        prompts_per_step=64,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=5,
        eval_size=0,
        seed=seed,
        device="cpu",
    )
    return train("sft", config, quiet=True).model


def sample_answers(
    model: Path, rows: Sequence[Row], count: int, seed: int
) -> tuple[list[str], list[list[str]]]:
    """Prompts and `count` answers to each."""
    policy: Policy = load_policy(TrainConfig(model=str(model), device="cpu"))
    groups = rollout(Sampler(policy), rows, Draw("claim", 0, seed, count, LONGEST, 1.0))
    return [row.columns["prompt"] for row in rows], [
        [sample.text for sample in group.samples] for group in groups
    ]


@torch.no_grad()
def kl_in_nats(model: Path, start: Path, rows: Sequence[Row]) -> float:
    """KL(model || start) in nats per answer, estimated on four samples of each prompt."""
    policy, reference = (
        load_policy(TrainConfig(model=str(name), device="cpu")) for name in (model, start)
    )
    batch = pack(rollout(Sampler(policy), rows, Draw("claim", 0, 7, 4, LONGEST, 1.0)))
    return float((policy.logp(batch).logp - reference.logp(batch).logp).sum(1).mean())


def preferences(model: Path, folder: Path, seed: int) -> tuple[str, float]:
    """Pairs of the model's answers, labelled by Bradley and Terry's chance under the gold reward:
    the file, and the share labelled wrongly.

    Equal answers are no pair.
    """
    rng, rows, wrong = random.Random(seed + 1), [], []
    prompts, answers = sample_answers(
        model, load_rows(str(folder / "prompts.jsonl"))[:PAIRS], 2, seed
    )
    for prompt, (one, two) in zip(prompts, answers, strict=True):
        gap = gold(prompt, one) - gold(prompt, two)
        won = rng.random() < 1 / (1 + math.exp(-gap))
        if one != two:
            rows.append(
                {"prompt": prompt, "chosen": one if won else two, "rejected": two if won else one}
            )
            wrong += [won == (gap < 0)] if gap else []
    return write(folder / "pairs.jsonl", rows), mean(wrong)


def reward_model(model: Path, pairs: str, output: Path, seed: int) -> Path:
    """A scorer on the SFT model's body, trained on the pairs."""
    config = TrainConfig(
        model=str(model),
        dataset=pairs,
        output_dir=str(output),
        max_steps=120,
        prompts_per_step=64,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=5,
        eval_size=100,
        seed=seed,
        device="cpu",
    )
    return train("reward", config, quiet=True).model


def train_on_reward(
    name: str, start: Path, scorer: Path, folder: Path, output: Path, seed: int, **options: object
) -> Path:
    """Any row of the table from the SFT model, on the learned reward.

    `sft` takes the chosen answers instead.
    """
    if "num_generations" in options:
        options |= {
            "rewards": [f"model:{scorer}"],
            "max_completion_length": LONGEST,
            "dataset": str(folder / "prompts.jsonl"),
        }
    common = {
        "model": str(start),
        "output_dir": str(output),
        "eval_size": 0,
        "seed": seed,
        "device": "cpu",
        "warmup_steps": 5,
    }
    return train(
        name, TrainConfig.model_validate({"prompts_per_step": 16, **common, **options}), quiet=True
    ).model


def measure_answers(
    prompts: Sequence[str], answers: Sequence[str], before: Sequence[str], scorer: Path
) -> dict[str, float]:
    """Mean learned and gold reward, and how often each prefers these answers to those of SFT.

    Ties count half.
    """
    ask: Any = learned(str(scorer), device="cpu")
    found: dict[str, float] = {}
    for name, judge in {
        "learned": lambda texts: ask(prompts=list(prompts), completions=list(texts)),
        "gold": lambda texts: [
            gold(prompt, one) for prompt, one in zip(prompts, texts, strict=True)
        ],
    }.items():
        now, then = judge(answers), judge(before)
        found[name] = mean(now)
        found[f"{name} wins"] = mean(
            1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(now, then, strict=True)
        )
    return found


def of_seed(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Everything from one start: label -> what was measured."""
    start = train_sft(folder, seed)
    pairs, wrong = preferences(start, folder, seed)
    scorer = reward_model(start, pairs, folder / "reward", seed)
    write(
        folder / "chosen.jsonl",
        [
            {"prompt": r.columns["prompt"], "completion": r.columns["chosen"]}
            for r in load_rows(pairs)
        ],
    )
    found, before = without_training(start, scorer, folder)
    found["SFT"] |= {"kl": 0.0, "wrong": wrong}
    rows = load_rows(str(folder / "prompts.jsonl"))[:400]
    for number, (label, (name, options)) in enumerate(METHODS.items()):
        extra = {"dataset": str(folder / "chosen.jsonl")} if name == "sft" else {}
        model = train_on_reward(
            name, start, scorer, folder, folder / str(number), seed, **options, **extra
        )
        prompts, answers = sample_answers(model, rows, 1, 13)
        found[label] = {
            **measure_answers(prompts, [texts[0] for texts in answers], before, scorer),
            "kl": kl_in_nats(model, start, rows),
        }
    return found


def without_training(
    start: Path, scorer: Path, folder: Path
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """What was measured of demonstrations, SFT and best-of-n; the answers to compare with."""
    rows = load_rows(str(folder / "prompts.jsonl"))[:400]
    prompts, many = sample_answers(start, rows, BEST + 1, 11)
    # the last answer to each prompt is what the others are compared with
    before, many = [texts[BEST] for texts in many], [texts[:BEST] for texts in many]
    demonstrations = load_rows(str(folder / "demos.jsonl"))[:400]
    shown = {
        "demonstrations": [row.columns["completion"] for row in demonstrations],
        "SFT": [texts[0] for texts in many],
        f"best of {BEST}": best_of_n(prompts, many, scorer),
    }
    found = {
        label: measure_answers(prompts, texts, before, scorer) for label, texts in shown.items()
    }
    found[f"best of {BEST}"]["kl"] = math.log(BEST) - (BEST - 1) / BEST
    return found, before


def best_of_n(prompts: list[str], many: list[list[str]], scorer: Path) -> list[str]:
    """Of each prompt's answers the one that the learned reward scores highest."""
    ask: Any = learned(str(scorer), device="cpu")
    scores = iter(
        ask(
            prompts=[prompt for prompt, texts in zip(prompts, many, strict=True) for _ in texts],
            completions=[text for texts in many for text in texts],
        )
    )
    scored = [[(text, next(scores)) for text in texts] for texts in many]
    return [max(pairs, key=lambda pair: pair[1])[0] for pairs in scored]


def main() -> None:
    """Run the seeds, print the table and the verdicts, draw the figure."""
    seeds = run_seeds(seeds_of(make_parser(__doc__).parse_args()), of_seed)
    columns = ("gold", "gold wins", "learned", "learned wins", "kl")
    rows = [
        [
            label,
            *(
                interval_text([s[label][c] for s in seeds]) if c in seeds[0][label] else ""
                for c in columns
            ),
        ]
        for label in ORDER
    ]
    print(markdown_table(HEADER, rows))
    print(f"\nLabels against the gold reward: {interval_text([s['SFT']['wrong'] for s in seeds])}.")
    print_comparisons(seeds)
    points = {
        label: (
            [mean(s[label]["kl"] for s in seeds)],
            [mean(s[label]["gold"] for s in seeds)],
        )
        for label in ORDER[1:]
    }
    print(
        draw_figure(
            "rlhf",
            points,
            x="KL to SFT, nats per answer",
            y="gold reward",
            title="What each method bought, and how far it went",
        )
    )


def print_comparisons(seeds: Sequence[dict[str, dict[str, float]]]) -> None:
    """Every method against SFT and the method before it, in both rewards, a line each."""
    steps = ((ORDER[4], ORDER[3]), ("RLOO", "RAFT"), ("PPO", "RAFT"))
    paired = (*((label, "SFT") for label in ORDER[2:]), *steps)
    made = 2 * len(paired)
    print("\n" + correction_note(made))
    for better, worse in paired:
        gaps = {
            name: [s[better][name] - s[worse][name] for s in seeds] for name in ("gold", "learned")
        }
        way = {1: "more", -1: "less", 0: "no clear difference in"}
        print(
            f"{better} against {worse}: "
            + ", ".join(
                f"{way[sign_if_clear(g, made)]} {name} reward ({interval_text(g, of=made)})"
                for name, g in gaps.items()
            )
            + "."
        )


if __name__ == "__main__":
    main()
