"""Which of PPO-max's tricks keeps PPO from exploiting a learned reward? Plain PPO, PPO-max, and its tricks by themselves.

python bench/claim_ppo_max.py [SEEDS] prints a table and the verdicts that it supports. docs/experiments.md records one.
"""

import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from claim import clearly, figure, interval, table, told
from claim_online_dpo import samples, write_lines

from laurel.core.config import TrainConfig
from laurel.policy.scratch import save_scratch
from laurel.train.loop import train

NEXT = {"a": "bcd", "b": "cde", "c": "def", "d": "efg", "e": "fga", "f": "gab", "g": "abc"}
"""The language: what may follow a letter, with chances .6, .3 and .1."""
LETTERS, LIMIT, ENOUGH = 10, 14, 3
PAIRS, NOISE = 300, 0.25
STEPS, ROWS = 60, 32
PLAIN: dict[str, Any] = {"beta": 0.0, "reference": "start", "normalize_rewards": False, "reward_clip": 0.0, "cliprange_value": 0.0}
KL, SCORES, VALUES = {"beta": 0.2}, {"normalize_rewards": True, "reward_clip": 0.8}, {"cliprange_value": 0.05}
CRITIC = {"critic_model": "REWARD MODEL", "critic_warmup_steps": 5}
METHODS: dict[str, dict[str, Any]] = {
    "plain PPO": PLAIN,
    "PPO-max": {**PLAIN, **KL, **SCORES, **CRITIC, **VALUES},
    "KL alone": {**PLAIN, **KL},
    "all but KL": {**PLAIN, **SCORES, **CRITIC, **VALUES},
    "normalised, clipped rewards alone": {**PLAIN, **SCORES},
    "critic from the reward model alone": {**PLAIN, **CRITIC},
    "value clip alone": {**PLAIN, **VALUES},
}
"""A label: options of the row `ppo`. Everything else is the same in all."""
SHOWN = {"end": "gold, end", "peak": "gold, its own peak", "kl": "KL, end", "distinct": "distinct, end", "proxy": "learned reward, end"}


def gold(text: str) -> float:
    """The hidden reward: the share of neighbours that the language allows, plus a bonus for `g` that three of them exhaust. At most 2.

    "abgg": 1 of 3 neighbours (ab), 2 of 3 g: 1.
    """
    allowed = [after in NEXT.get(letter, "") for letter, after in pairwise(text)]
    return (mean(allowed) if allowed else 0.0) + min(text.count("g"), ENOUGH) / ENOUGH


def speak(rng: random.Random) -> str:
    """Ten letters of the language."""
    text = rng.choice(list(NEXT))
    while len(text) < LETTERS:
        text += rng.choices(NEXT[text[-1]], [0.6, 0.3, 0.1])[0]
    return text


def start_model(folder: Path, seed: int) -> Path:
    """A small model that has learnt the language by imitation, and the prompt in prompts.jsonl."""
    rng = random.Random(seed)
    data = write_lines(folder / "sft.jsonl", ({"prompt": "?", "completion": speak(rng)} for _ in range(6400)))
    write_lines(folder / "prompts.jsonl", ({"prompt": "?"} for _ in range(ROWS)))
    save_scratch(folder / "fresh", alphabet="abcdefg?", seed=seed, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = TrainConfig(
        model=str(folder / "fresh"), dataset=str(data), output_dir=str(folder / "sft"), eval_size=0, seed=seed, max_steps=160,
        prompts_per_step=40, learning_rate=5e-3, lr_scheduler_type="cosine", device="cpu",
    )  # fmt: skip
    return train("sft", config, quiet=True).model


def reward_model(folder: Path, start: Path, seed: int) -> Path:
    """A reward model from few pairs of the start model's completions, judged by gold, one verdict in four turned round."""
    rng, rows = random.Random(seed), []
    for group in samples(folder, start, 2 * PAIRS, 2, limit=LIMIT):
        good, bad = sorted((sample.text for sample in group.samples), key=gold, reverse=True)
        if gold(good) > gold(bad):
            good, bad = (bad, good) if rng.random() < NOISE else (good, bad)
            rows.append({"prompt": "?", "chosen": good, "rejected": bad})
    data, held = write_lines(folder / "pairs.jsonl", rows[:PAIRS]), write_lines(folder / "held.jsonl", rows[PAIRS:])
    config = TrainConfig(
        model=str(start), dataset=str(data), output_dir=str(folder / "reward"), eval_dataset=str(held), seed=seed,
        max_steps=30, prompts_per_step=32, learning_rate=1e-3, lr_scheduler_type="cosine", device="cpu",
    )  # fmt: skip
    return train("reward", config, quiet=True).model


def of_seed(seed: int, folder: Path) -> dict[str, dict[str, Any]]:
    """label -> what was measured on the samples that training itself drew: 32 at every step."""
    start = start_model(folder, seed)
    judge, found = reward_model(folder, start, seed), {}
    for number, (label, options) in enumerate(METHODS.items()):
        options = {key: str(judge) if key == "critic_model" else value for key, value in options.items()}
        config = TrainConfig(
            model=str(start), dataset=str(folder / "prompts.jsonl"), output_dir=str(folder / str(number)), eval_size=0, seed=seed,
            max_steps=STEPS, prompts_per_step=ROWS, max_completion_length=LIMIT, learning_rate=1e-3, rewards=[f"model:{judge}"],
            device="cpu", **options,
        )  # fmt: skip
        found[label] = watched(train("ppo", config, quiet=True))
    return found


def watched(run: Any) -> dict[str, Any]:
    """Gold per step; over the last five steps gold, KL to the start, share of distinct completions, learned reward; gold's peak of five."""
    lines, metrics = run.samples(), run.metrics()
    golds = [mean(gold(line["completion"]) for line in lines if line["step"] == step) for step in range(1, STEPS + 1)]
    last = [line["completion"] for line in lines if line["step"] > STEPS - 5]
    return {
        "curve": golds,
        "end": mean(golds[-5:]),
        "peak": max(mean(golds[i : i + 5]) for i in range(STEPS - 4)),
        "kl": mean(line["kl/sequence"] for line in metrics[-5:]),
        "distinct": len(set(last)) / len(last),
        "proxy": mean(line["reward"] for line in metrics[-5:]),
    }


def verdicts(seeds: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Who ends clearly above plain PPO, and who loses less of its own peak, paired by seed."""
    lines, way = [], {1: "higher", -1: "lower", 0: "not clearly other"}
    for label in METHODS:
        fall = [seed[label]["peak"] - seed[label]["end"] for seed in seeds]
        if label == "plain PPO":
            lines.append(f"plain PPO: gold ends {told(fall)} below its own peak; {told([s[label]['distinct'] for s in seeds])} distinct.")
            continue
        more, distinct = ([s[label][x] - s["plain PPO"][x] for s in seeds] for x in ("end", "distinct"))
        lines.append(
            f"{label}: gold ends {way[clearly(more)]} than plain PPO's ({told(more)}), distinct completions {way[clearly(distinct)]} "
            f"({told(distinct)}); it ends {told(fall)} below its own peak."
        )
    for label, against in (("PPO-max", "KL alone"), ("KL alone", "all but KL")):
        more = [s[label]["end"] - s[against]["end"] for s in seeds]
        lines.append(f"{label} against {against}: gold at the end is {way[clearly(more)]} ({told(more)}).")
    return lines


def main(count: int = 5) -> None:
    """Print the table of all seeds, then the verdicts; draw the figure."""
    seeds = []
    for seed in range(count):
        with tempfile.TemporaryDirectory() as folder:
            seeds.append(of_seed(seed, Path(folder)))
    rows = [[label, *(told([seed[label][name] for seed in seeds]) for name in SHOWN)] for label in METHODS]
    print(table(["PPO with", *SHOWN.values()], rows))
    print("\n".join(["", *verdicts(seeds)]))
    curves = {
        label: (
            list(range(1, STEPS + 1)),
            [interval([mean(seed[label]["curve"][max(0, step - 2) : step + 3]) for seed in seeds])[0] for step in range(STEPS)],
        )
        for label in METHODS
    }
    title = "A learned reward is maximised; the hidden one is shown"
    print(f"\n{figure('ppo_max', curves, x='step', y='gold reward (mean over seeds and 5 steps)', title=title)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
