"""Thirteen rows of the table on one skill.

One start model gets sums wrong and is trained by every row with the same steps and samples.

    python -m laurel_worlds.experiments.rows [--first-seed N] [--seeds K]

Prints the table of docs/algorithms/index.md and draws docs/figures/rows.svg. Every row runs at a
learning rate of its own, the best of RATES on seed 0: `--tune --first-seed 0 --seeds 1` repeats
that search.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import laurel
from laurel_worlds.experiments.comparison import (
    correction_note,
    draw_figure,
    interval,
    interval_text,
    make_parser,
    markdown_table,
    run_seeds,
    seeds_of,
    sign_if_clear,
)

STEPS, EVERY, HELD_OUT = 24, 6, 400
SAMPLED: dict[str, Any] = {"max_completion_length": 6, "adam_beta2": 0.98}
GROUPS = {**SAMPLED, "prompts_per_step": 16, "num_generations": 8}
SINGLE = {**SAMPLED, "prompts_per_step": 128, "num_generations": 1}
RATES = (2e-4, 6e-4)
Curve = list[float]  # held-out accuracy before training and after every EVERY steps


def hindsight_prompts(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[str | None]:
    """The sum that an answer would have been right for: 12+34= and 40 -> 12+28=; None without."""
    found: list[str | None] = []
    for prompt, text in zip(prompts, completions, strict=True):
        first = re.match(r"(\d+)\+", prompt)
        second = int(text) - int(first[1]) if first and re.fullmatch(r"\d{1,3}", text) else -1
        found.append(f"{first[1]}+{second}=" if first and 0 <= second < 100 else None)
    return found


ROWS: dict[str, dict[str, Any]] = {
    "sft": {"prompts_per_step": 128, "adam_beta2": 0.98},
    "raft": {**GROUPS, "keep": "above"},
    "reinforce": SINGLE,
    "reinforce_baseline": SINGLE,
    "rloo": GROUPS,
    "grpo": GROUPS,
    "dr_grpo": GROUPS,
    "dapo": GROUPS,
    "gspo": GROUPS,
    "cispo": GROUPS,
    "reinforce_pp": SINGLE,
    "hindsight": {**GROUPS, "relabel": hindsight_prompts},
    "es": {
        "max_completion_length": 6,
        "prompts_per_step": 16,
        "population": 8,
        "sigma": 0.02,
    },
}
"""A row and its options: 128 answers a step."""
RATE = {**dict.fromkeys(ROWS, 2e-4), "sft": 6e-4}
"""What `--tune --first-seed 0 --seeds 1` found best."""


def train_row(row: str, rate: float, seed: int, folder: Path, steps: int = STEPS) -> Curve:
    """Train the small start model by one row; its accuracy on held-out sums, every EVERY steps."""
    options: dict[str, Any] = {"max_steps": steps, "warmup_steps": 5, "eval_size": HELD_OUT}
    run = laurel.train(
        row,
        model="starter",
        dataset="addition",
        learning_rate=rate,
        seed=seed,
        eval_steps=min(EVERY, steps),
        output_dir=str(folder / f"{row}-{rate}-{steps}"),
        quiet=True,
        **(options | ROWS[row]),
    )
    return [line["eval/accuracy"] for line in run.metrics() if "eval/accuracy" in line]


def start_accuracy(seed: int, folder: Path) -> float:
    """The start model's accuracy on the sums that the seed holds out: a step of no length."""
    return train_row("rloo", 1e-30, seed, folder, steps=1)[-1]


def tune(seeds: Sequence[int]) -> None:
    """The mean accuracy at the end of every row at every rate."""

    def of_seed(seed: int, folder: Path) -> dict[str, list[float]]:
        return {row: [train_row(row, rate, seed, folder)[-1] for rate in RATES] for row in ROWS}

    found = run_seeds(seeds, of_seed)
    lines = [
        [row, *(f"{mean(one[row][i] for one in found):.3f}" for i in range(len(RATES)))]
        for row in ROWS
    ]
    print(markdown_table(["row", *(f"{rate:g}" for rate in RATES)], lines))


def show(found: Sequence[dict[str, Curve]]) -> None:
    """The table, a line a row, and the figure."""
    gaps = {row: [one[row][-1] - one[row][0] for one in found] for row in ROWS}
    made = len(gaps)
    began = interval_text([one["rloo"][0] for one in found], 3)
    lines = [["start model", "", began, "", ""]]
    for row, gap in gaps.items():
        ends = interval_text([one[row][-1] for one in found], 3)
        verdict = {1: "better", -1: "worse", 0: "not told apart"}[sign_if_clear(gap, made)]
        lines.append([row, f"{RATE[row]:g}", ends, interval_text(gap, 3, made), verdict])
    print(correction_note(made))
    print(
        markdown_table(
            ["row", "learning rate", "held-out sums right", "gain (paired)", "verdict"], lines
        )
    )


def draw(found: Sequence[dict[str, Curve]]) -> None:
    """The mean over the seeds of every row, over its steps."""
    steps = range(0, STEPS + 1, EVERY)
    curves = {}
    for row in ROWS:
        at_step = zip(*(one[row] for one in found), strict=True)
        curves[row] = (list(steps), [interval(values)[0] for values in at_step])
    title = f"Thirteen rows from one start model, {len(found)} seeds"
    draw_figure("rows", curves, x="steps of 128 answers", y="held-out sums right", title=title)


def main() -> None:
    """Tune, or train every row on every seed and print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--tune", action="store_true", help="every rate, to find the best")
    args = parser.parse_args()
    if args.tune:
        return tune(seeds_of(args))

    def of_seed(seed: int, folder: Path) -> dict[str, Curve]:
        began = start_accuracy(seed, folder)
        return {row: [began, *train_row(row, RATE[row], seed, folder)] for row in ROWS}

    found = run_seeds(seeds_of(args), of_seed)
    show(found)
    draw(found)


if __name__ == "__main__":
    main()
