"""Which of PPO-max's tricks keeps PPO from exploiting a learned reward?

Plain PPO, PPO-max, and its tricks by themselves.

    python -m laurel_worlds.experiments.ppo_max [--first-seed N] [--seeds K]

Prints a table and the verdicts that it supports; docs/experiments.md records one. PPO-max and KL
alone are compared at the same beta, at like KL, and each at its best beta; plain PPO also at its
best learning rate. `--tune --first-seed 0 --seeds 2` is how those betas and that rate were found.
"""

import random
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from laurel.core.config import TrainConfig
from laurel.train.loop import train
from laurel_worlds.experiments.comparison import (
    comparison_words,
    correction_note,
    draw_figure,
    interval,
    interval_text,
    make_parser,
    markdown_table,
    run_seeds,
    seeds_of,
)
from laurel_worlds.experiments.online_dpo import sample_groups
from laurel_worlds.experiments.start_model import imitate, write_lines

NEXT = {"a": "bcd", "b": "cde", "c": "def", "d": "efg", "e": "fga", "f": "gab", "g": "abc"}
"""The language: what may follow a letter, with chances .6, .3 and .1."""
LETTERS, LIMIT, ENOUGH = 10, 14, 3
PAIRS, NOISE = 300, 0.25
STEPS, ROWS, RATE = 60, 32, 1e-3
PLAIN: dict[str, Any] = {
    "beta": 0.0,
    "reference": "start",
    "normalize_rewards": False,
    "reward_clip": 0.0,
    "cliprange_value": 0.0,
}
KL, SCORES, VALUES = (
    {"beta": 0.2},
    {"normalize_rewards": True, "reward_clip": 0.8},
    {"cliprange_value": 0.05},
)
CRITIC = {"critic_model": "REWARD MODEL", "critic_warmup_steps": 5}
TRICKS: dict[str, Any] = {**PLAIN, **SCORES, **CRITIC, **VALUES}
TUNED = range(2)
SEARCHED: dict[str, dict[str, Any]] = {
    **{f"PPO-max, beta {beta:g}": {**TRICKS, "beta": beta} for beta in (0.2, 0.1, 0.05)},
    **{f"KL alone, beta {beta:g}": {**PLAIN, "beta": beta} for beta in (0.05, 0.025, 0.0125)},
    **{
        f"plain PPO, rate {rate:g}": {**PLAIN, "learning_rate": rate}
        for rate in (5e-5, 1e-4, 2.5e-4)
    },
}
"""What `--tune` tries."""
BEST_MAX, BEST_KL, LIKE_KL, BEST_RATE = 0.05, 0.025, 0.05, 1e-4
"""Of PPO-max and KL alone the beta of the highest gold at the end.

Where KL alone goes as far as PPO-max at .2; plain PPO's rate.
"""
METHODS: dict[str, dict[str, Any]] = {
    "plain PPO": PLAIN,
    "plain PPO, its best rate": {**PLAIN, "learning_rate": BEST_RATE},
    "PPO-max": {**TRICKS, **KL},
    "PPO-max, its best beta": {**TRICKS, "beta": BEST_MAX},
    "KL alone": {**PLAIN, **KL},
    "KL alone, like KL": {**PLAIN, "beta": LIKE_KL},
    "KL alone, its best beta": {**PLAIN, "beta": BEST_KL},
    "all but KL": TRICKS,
    "normalised, clipped rewards alone": {**PLAIN, **SCORES},
    "critic from the reward model alone": {**PLAIN, **CRITIC},
    "value clip alone": {**PLAIN, **VALUES},
}
"""A label: options of the row `ppo`. Everything else is the same in all."""
SHOWN = {
    "end": "gold, end",
    "peak": "gold, its own peak",
    "kl": "KL, end",
    "distinct": "distinct, end",
    "proxy": "learned reward, end",
}
AGAINST_PLAIN = (
    "PPO-max",
    "KL alone",
    "all but KL",
    "normalised, clipped rewards alone",
    "critic from the reward model alone",
    "value clip alone",
)
PAIRED = (
    ("PPO-max", "KL alone"),
    ("PPO-max", "KL alone, like KL"),
    ("PPO-max, its best beta", "KL alone, its best beta"),
    ("PPO-max, its best beta", "plain PPO, its best rate"),
    ("KL alone, its best beta", "plain PPO, its best rate"),
)


def gold(text: str) -> float:
    """The hidden reward: the share of neighbours that the language allows, plus a bonus for `g`.

    Three of them exhaust the bonus. At most 2.

    "abgg": 1 of 3 neighbours (ab), 2 of 3 g: 1.
    """
    allowed = [after in NEXT.get(letter, "") for letter, after in pairwise(text)]
    return (mean(allowed) if allowed else 0.0) + min(text.count("g"), ENOUGH) / ENOUGH


def draw_sentence(rng: random.Random) -> str:
    """Ten letters of the language."""
    text = rng.choice(list(NEXT))
    while len(text) < LETTERS:
        text += rng.choices(NEXT[text[-1]], [0.6, 0.3, 0.1])[0]
    return text


def start_model(folder: Path, seed: int) -> Path:
    """A small model that has learnt the language by imitation, and the prompt in prompts.jsonl."""
    rng = random.Random(seed)
    write_lines(folder / "prompts.jsonl", ({"prompt": "?"} for _ in range(ROWS)))
    rows = ({"prompt": "?", "completion": draw_sentence(rng)} for _ in range(6400))
    return imitate(
        folder,
        rows,
        "abcdefg?",
        seed,
        layers=2,
        max_steps=160,
        prompts_per_step=40,
        learning_rate=5e-3,
    )


def reward_model(folder: Path, start: Path, seed: int) -> Path:
    """A reward model from few pairs of the start model's completions.

    They are judged by gold, one verdict in four turned round.
    """
    rng, rows = random.Random(seed), []
    for group in sample_groups(folder, start, 2 * PAIRS, 2, limit=LIMIT):
        good, bad = sorted((sample.text for sample in group.samples), key=gold, reverse=True)
        if gold(good) > gold(bad):
            good, bad = (bad, good) if rng.random() < NOISE else (good, bad)
            rows.append({"prompt": "?", "chosen": good, "rejected": bad})
    data, held_out = (
        write_lines(folder / "pairs.jsonl", rows[:PAIRS]),
        write_lines(folder / "held.jsonl", rows[PAIRS:]),
    )
    config = TrainConfig(
        model=str(start),
        dataset=str(data),
        output_dir=str(folder / "reward"),
        eval_dataset=str(held_out),
        seed=seed,
        max_steps=30,
        prompts_per_step=32,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        device="cpu",
    )
    return train("reward", config, quiet=True).model


def of_seed(
    seed: int, folder: Path, methods: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """label -> what was measured on the samples that training itself drew: 32 at every step.

    Equal options are run once.
    """
    start = start_model(folder, seed)
    judge, found = reward_model(folder, start, seed), {}
    known: dict[str, dict[str, Any]] = {}
    for label, own in methods.items():
        options: dict[str, Any] = {"learning_rate": RATE, **own}
        if "critic_model" in options:
            options["critic_model"] = str(judge)
        key = str(sorted(options.items()))
        if key not in known:
            config = TrainConfig(
                model=str(start),
                dataset=str(folder / "prompts.jsonl"),
                output_dir=str(folder / str(len(known))),
                eval_size=0,
                seed=seed,
                max_steps=STEPS,
                prompts_per_step=ROWS,
                max_completion_length=LIMIT,
                rewards=[f"model:{judge}"],
                device="cpu",
                **options,
            )
            known[key] = measure_run(train("ppo", config, quiet=True))
        found[label] = known[key]
    return found


def measure_run(run: Any) -> dict[str, Any]:
    """Gold per step.

    Over the last five steps gold, KL to the start, share of distinct completions, learned reward;
    gold's peak of five.
    """
    lines, metrics = run.samples(), run.metrics()
    golds = [
        mean(gold(line["completion"]) for line in lines if line["step"] == step)
        for step in range(1, STEPS + 1)
    ]
    last = [line["completion"] for line in lines if line["step"] > STEPS - 5]
    return {
        "curve": golds,
        "end": mean(golds[-5:]),
        "peak": max(mean(golds[i : i + 5]) for i in range(STEPS - 4)),
        "kl": mean(line["kl/sequence"] for line in metrics[-5:]),
        "distinct": len(set(last)) / len(last),
        "proxy": mean(line["reward"] for line in metrics[-5:]),
    }


def results_table(seeds: list[dict[str, dict[str, Any]]]) -> str:
    """The table of what was measured."""
    rows = [
        [label, *(interval_text([seed[label][name] for seed in seeds]) for name in SHOWN)]
        for label in seeds[0]
    ]
    return markdown_table(["PPO with", *SHOWN.values()], rows)


def verdicts(seeds: list[dict[str, dict[str, Any]]]) -> list[str]:
    """Who ends clearly above whom, who keeps more completions distinct: paired by seed, corrected.
    Then how far each fell from its peak.
    """
    gaps = {
        f"{one} against {other}, {what}": [seed[one][name] - seed[other][name] for seed in seeds]
        for one, other in (*((label, "plain PPO") for label in AGAINST_PLAIN), *PAIRED)
        for name, what in (("end", "gold at the end"), ("distinct", "distinct completions"))
        if name == "end" or other == "plain PPO"
    }
    lines = [correction_note(len(gaps))]
    lines += [
        f"{what}: {said}."
        for what, said in comparison_words(
            gaps, {1: "higher", -1: "lower", 0: "not clearly other"}
        ).items()
    ]
    falls = {
        label: [seed[label]["peak"] - seed[label]["end"] for seed in seeds] for label in METHODS
    }
    return [
        *lines,
        "\nBelow its own peak at the end: "
        + "; ".join(f"{label} {interval_text(fall)}" for label, fall in falls.items())
        + ".",
    ]


def main() -> None:
    """Print the table of all seeds, then the verdicts; draw the figure.

    Or search for betas and rate.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--tune", action="store_true", help="try every beta and rate instead")
    args = parser.parse_args()
    asked = seeds_of(args)
    if args.tune:
        print(results_table(run_seeds(asked, partial(of_seed, methods=SEARCHED))))
        return
    if set(asked) & set(TUNED):
        raise SystemExit(
            f"betas are chosen on seeds {TUNED[0]} to {TUNED[-1]}: take others, such as"
            " --first-seed 100."
        )
    seeds = run_seeds(asked, partial(of_seed, methods=METHODS))
    print(results_table(seeds) + "\n")
    print("\n".join(verdicts(seeds)))
    curves = {
        label: (
            list(range(1, STEPS + 1)),
            [
                interval(
                    [mean(seed[label]["curve"][max(0, step - 2) : step + 3]) for seed in seeds]
                )[0]
                for step in range(STEPS)
            ],
        )
        for label in METHODS
        if not label.endswith(" alone") or label == "KL alone"
    }
    title = "A learned reward is maximised; the hidden one is shown"
    y = "gold reward (mean over seeds and 5 steps)"
    print(f"\n{draw_figure('ppo_max', curves, x='step', y=y, title=title)}")


if __name__ == "__main__":
    main()
