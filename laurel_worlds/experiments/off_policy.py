"""On-policy against off-policy training.

Reuse of samples with and without a clipped ratio, and a fixed log of the start policy.

    python -m laurel_worlds.experiments.off_policy [--first-seed N] [--seeds K]

Prints a table and the verdicts that it supports; docs/experiments.md records one. Every method runs
at a learning rate of its own, the best of RATES on the seeds TUNED: `--tune` repeats that search
(with `--first-seed 0 --seeds 4`).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from laurel.core.config import TrainConfig
from laurel.train.loop import train
from laurel_worlds.experiments.comparison import (
    Curve,
    draw_figure,
    interval,
    interval_text,
    make_parser,
    markdown_table,
    print_verdicts,
    run_seeds,
    seeds_of,
)
from laurel_worlds.experiments.online_dpo import (
    HERE,
    LIMIT,
    WORLDS,
    kl_to,
    sample_groups,
    score,
    start_model,
    write_lines,
)

STEPS, PROMPTS, GROUP, REUSE = 32, 4, 8, 8
SHORT = STEPS // REUSE
COMMON: dict[str, Any] = {
    "num_generations": GROUP,
    "max_completion_length": LIMIT,
    "rewards": [f"{HERE}:far"],
}
POLICY_GRADIENT = {**COMMON, "loss_aggregation": "seq_mean_token_sum"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "on-policy": ("dr_grpo", POLICY_GRADIENT),
    "reuse with clipped ratio": ("dr_grpo", {**POLICY_GRADIENT, "num_iterations": REUSE}),
    "reuse with plain ratio": (
        "dr_grpo",
        {**POLICY_GRADIENT, "num_iterations": REUSE, "epsilon": 1e6},
    ),
    "reuse without ratio": ("rloo", {**POLICY_GRADIENT, "num_iterations": REUSE}),
    "imitation of fresh samples": ("raft", COMMON),
    "imitation of a fixed log": ("sft", {}),
}
"""A label: the row of the table and its options.

All but the last sample; that one imitates the best of each group of a log.
"""
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
TUNED = range(4)
Run = tuple[str, int]  # a method and its steps
Results = Mapping[Run, Mapping[str, float]]
RATE: dict[Run, float] = {
    ("on-policy", STEPS): 4e-3,
    ("reuse with clipped ratio", STEPS): 4e-3,
    ("reuse with clipped ratio", SHORT): 2e-3,
    ("reuse with plain ratio", STEPS): 1e-3,
    ("reuse with plain ratio", SHORT): 5e-4,
    ("reuse without ratio", STEPS): 1e-3,
    ("reuse without ratio", SHORT): 1.6e-2,
    ("imitation of fresh samples", STEPS): 1.6e-2,
    ("imitation of a fixed log", STEPS): 1e-3,
}
"""What `--tune --first-seed 0 --seeds 4` found best."""
PAIRED = (
    ("reuse with clipped ratio", STEPS, "on-policy", STEPS),
    ("reuse with clipped ratio", SHORT, "on-policy", STEPS),
    ("reuse with plain ratio", STEPS, "reuse with clipped ratio", STEPS),
    ("reuse with plain ratio", SHORT, "reuse with clipped ratio", SHORT),
    ("reuse without ratio", STEPS, "reuse with clipped ratio", STEPS),
    ("reuse without ratio", SHORT, "reuse with clipped ratio", SHORT),
    ("imitation of a fixed log", STEPS, "imitation of fresh samples", STEPS),
)
"""Who is compared with whom, both after so many steps."""


def fixed_log(folder: Path, start: Path) -> Path:
    """The best completion of each group as lines of JSON to imitate, all from the start model.

    As many groups as a run samples.
    """
    groups = sample_groups(folder, start, STEPS * PROMPTS, GROUP)
    best = (max((sample.text for sample in group.samples), key=gold) for group in groups)
    return write_lines(folder / "log.jsonl", ({"prompt": "?", "completion": text} for text in best))


def gold(text: str) -> float:
    """The reward of the far world of `online_dpo`.

    Its optimum is 3 deviations away from the start model.
    """
    return score(text, WORLDS["far"])


def runs() -> list[Run]:
    """Every method over all steps, and those that reuse samples over fewer steps, too.

    As few as make STEPS updates.
    """
    short = [
        (label, SHORT) for label, (_, options) in METHODS.items() if "num_iterations" in options
    ]
    return [*((label, STEPS) for label in METHODS), *short]


def of_seed(
    seed: int, folder: Path, rates: Mapping[Run, Sequence[float]]
) -> dict[tuple[Run, float], dict[str, float]]:
    """(run, rate) -> gold reward and KL on 512 completions.

    The start model is ("start model", 0) at rate 0.
    """
    start = start_model(folder, seed)
    log = fixed_log(folder, start)
    drawn = sample_groups(folder, start, 64, GROUP)
    found = {
        (("start model", 0), 0.0): {
            "gold": mean(gold(s.text) for group in drawn for s in group.samples),
            "kl": 0.0,
        }
    }
    for (label, steps), rate in ((run, rate) for run, several in rates.items() for rate in several):
        name, options = METHODS[label]
        config = TrainConfig(
            model=str(start),
            dataset=str(log if name == "sft" else folder / "prompts.jsonl"),
            eval_size=0,
            seed=seed,
            max_steps=steps,
            output_dir=str(folder / f"{len(found)}"),
            prompts_per_step=PROMPTS,
            learning_rate=rate,
            device="cpu",
            **options,
        )
        model = train(name, config, quiet=True).model
        after = sample_groups(folder, model, 64, GROUP)
        golds = [gold(sample.text) for group in after for sample in group.samples]
        found[(label, steps), rate] = {"gold": mean(golds), "kl": kl_to(start, model, after)}
    return found


def tune(seeds: range) -> None:
    """Print the mean gold reward of every run at every rate, and its best rate."""
    found = run_seeds(seeds, partial(of_seed, rates=dict.fromkeys(runs(), RATES)))
    rows = []
    for run in runs():
        golds = {rate: mean(seed[run, rate]["gold"] for seed in found) for rate in RATES}
        rows.append(
            [
                run[0],
                str(run[1]),
                *(f"{value:.3f}" for value in golds.values()),
                f"{max(golds, key=golds.__getitem__):g}",
            ]
        )
    print(markdown_table(["method", "steps", *(f"{rate:g}" for rate in RATES), "best rate"], rows))


def main() -> None:
    """Print the table of all seeds, then the verdicts; draw the figure. Or search for the rates."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--tune", action="store_true", help="search for every method's learning rate instead"
    )
    args = parser.parse_args()
    if args.tune:
        return tune(seeds_of(args))
    asked = seeds_of(args)
    if set(asked) & set(TUNED):
        raise SystemExit(
            f"the rates were tuned on seeds {TUNED[0]} to {TUNED[-1]}: take others, such as"
            " --first-seed 100."
        )
    found = run_seeds(asked, partial(of_seed, rates={run: [RATE[run]] for run in runs()}))
    seeds = [{run: value for (run, _), value in seed.items()} for seed in found]  # one rate each
    header = ["method", "samples", "updates", "learning rate", "gold reward", "KL to the start"]
    print(markdown_table(header, [row_of(run, seeds) for run in seeds[0]]) + "\n")
    gaps = {
        f"{one}, {many} steps, against {other}, {few} steps": [
            s[one, many]["gold"] - s[other, few]["gold"] for s in seeds
        ]
        for one, many, other, few in PAIRED
    }
    print_verdicts(gaps, "not clearly better or worse")
    title = f"Each batch used once, or {REUSE} times"
    lines = curves(seeds)
    print(f"\n{draw_figure('off_policy', lines, x='samples drawn', y='gold reward', title=title)}")


def row_of(run: Run, seeds: Sequence[Results]) -> list[str]:
    """A row of the table: what a run took and what it reached."""
    label, steps = run
    updates = steps * METHODS.get(label, ("", {}))[1].get("num_iterations", 1)
    return [
        label,
        str(steps * PROMPTS * GROUP),
        str(updates),
        f"{RATE[run]:g}" if steps else "",
        *(interval_text([seed[run][name] for seed in seeds]) for name in ("gold", "kl")),
    ]


def curves(seeds: Sequence[Results]) -> dict[str, Curve]:
    """Each method's mean gold reward against the samples drawn, from the start model on."""
    begin = interval([seed["start model", 0]["gold"] for seed in seeds])[0]
    points: dict[str, list[tuple[float, float]]] = {}
    for label, steps in seeds[0]:
        if steps:
            reached = interval([seed[label, steps]["gold"] for seed in seeds])[0]
            points.setdefault(label, [(0, begin)]).append((steps * PROMPTS * GROUP, reached))
    return {
        label: ([x for x, _ in sorted(found)], [y for _, y in sorted(found)])
        for label, found in points.items()
    }


if __name__ == "__main__":
    main()
