"""GRPO's two biases, and Dr.

GRPO without them: how much a prompt's difficulty weighs, and what length does that no reward asked
for.

    python -m laurel_worlds.experiments.dr_grpo [--first-seed N] [--seeds K]

Prints two tables and the verdicts that they support. docs/experiments.md records one.
"""

import random
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import torch

from laurel.core.config import TrainConfig
from laurel.core.sample import Message
from laurel.train.loop import train
from laurel.weight.group import centred, standardised
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
from laurel_worlds.experiments.start_model import imitate, write_lines

GROUP = 8
LEVELS = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)  # success rates of a prompt
MEAN_LENGTH, LIMIT, STEPS, PROMPTS = 8, 64, 50, 24
RATE = 5e-4
LOSSES: dict[str, tuple[Any, float]] = {
    "its own length (GRPO)": ("seq_mean_token_mean", RATE),
    "constant (Dr. GRPO)": ("token_sum_over_const", RATE * LIMIT / MEAN_LENGTH),
}
"""A label: the loss's unit and the learning rate.

The rates are such that a row of average length moves the policy equally far in both.

A large epsilon leaves AdamW that proportion: usually it would scale pure noise, all that the second
loss sees here, up to full steps.
"""
HERE = str(Path(__file__).resolve())
MADE = (
    2 * len(LOSSES) + 1
)  # comparisons: each loss and side over training, and the two losses with each other


def group_weight_in_theory(p: float, *, by_std: bool) -> float:
    """c_G(p): the expected push on a prompt's logit of success over p(1-p), the true one.

    1 would be exact.

    A group with k of G right pushes by (1/G) sum_i A_i r_i = k(G-k)/G^2 over its standard deviation
    sqrt(k(G-k)/(G(G-1))), or over 1. Without the division the sum over the binomial is (G-1)/G for
    every p.
    """
    push = 0.0
    for k in range(1, GROUP):
        deviation = (k * (GROUP - k) / GROUP / (GROUP - 1)) ** 0.5 + 1e-4 if by_std else 1.0
        push += (
            comb(GROUP, k) * p**k * (1 - p) ** (GROUP - k) * k * (GROUP - k) / GROUP**2 / deviation
        )
    return push / (p * (1 - p))


def group_weight_in_code(p: float, *, by_std: bool) -> float:
    """The same by laurel's own weights over every one of the 2^G groups."""
    reward_PG = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * GROUP)
    chance_P = torch.where(reward_PG == 1, p, 1 - p).prod(1)
    weight_PG = (standardised if by_std else centred)(reward_PG)
    return float((chance_P * (weight_PG * (reward_PG - p)).mean(1)).sum() / (p * (1 - p)))


class Coin:
    """A world that says `+` or `-` after the prompt, in turn, and listens once.

    Whether the answer is right does not depend on the policy.
    """

    count: ClassVar[int] = 0

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """+ for every second episode, - for the others: half of each group is right."""
        Coin.count += 1
        return [Message(role="user", content="+-"[Coin.count % 2])]

    def step(self, text: str) -> None:
        """One turn is the whole answer."""
        return


def coin(completions: list[str], **columns: Any) -> list[float]:
    """1 after `+`, 0 after `-`, whatever was written.

    The episodes of a step come in the order they were opened.
    """
    return [float(place % 2 == 1) for place in range(len(completions))]


def start_model(folder: Path, seed: int) -> Path:
    """A small model that writes x's after + and o's after -, with the same lengths of both.

    Lengths are geometric, 8 tokens on average with the stop.
    """
    rng = random.Random(seed)

    def answer(letter: str) -> str:
        length = 1
        while rng.random() > 1 / (MEAN_LENGTH - 1):
            length += 1
        return letter * min(length, LIMIT - 1)

    rows = (
        {"prompt": f"?{side}", "completion": answer(letter)}
        for _ in range(2400)
        for side, letter in ("+x", "-o")
    )
    write_lines(folder / "prompts.jsonl", ({"prompt": "?"} for _ in range(PROMPTS)))
    return imitate(
        folder, rows, "?+-xo", seed, max_steps=150, prompts_per_step=32, learning_rate=3e-3
    )


def of_seed(seed: int, folder: Path) -> dict[tuple[str, str], list[float]]:
    """(loss, right or wrong) -> mean length of such answers at every step."""
    start, found = start_model(folder, seed), {}
    for label, (loss, rate) in LOSSES.items():
        config = TrainConfig(
            model=str(start),
            dataset=str(folder / "prompts.jsonl"),
            output_dir=str(folder / loss),
            eval_size=0,
            seed=seed,
            max_steps=STEPS,
            prompts_per_step=PROMPTS,
            num_generations=GROUP,
            max_completion_length=LIMIT,
            learning_rate=rate,
            loss_aggregation=loss,
            adam_epsilon=1e-2,
            rewards=[f"{HERE}:coin"],
            env=f"{HERE}:Coin",
            max_turns=1,
            device="cpu",
        )
        lines = train("grpo", config, quiet=True).samples()
        for side, reward in (("right", 1.0), ("wrong", 0.0)):
            mine = [line for line in lines if line["reward"] == reward]
            found[label, side] = [
                mean(line["length"] for line in mine if line["step"] == step)
                for step in range(1, STEPS + 1)
            ]
    return found


def mean_length_at_ends(curve: Sequence[float]) -> tuple[float, float]:
    """Mean length over the first five and the last five steps."""
    return mean(curve[:5]), mean(curve[-5:])


def verdicts(seeds: Sequence[Mapping[tuple[str, str], Sequence[float]]]) -> list[str]:
    """What the difficulty's weights say, and how lengths changed, where the interval is clear."""
    most, middle = (
        group_weight_in_theory(LEVELS[0], by_std=True),
        group_weight_in_theory(0.5, by_std=True),
    )
    lines = [
        f"difficulty: dividing by the group's deviation weighs a prompt solved {LEVELS[0]:.0%} of"
        f" the time {most / middle:.2f} times as much as one solved half of the time; without the"
        f" division all weigh {group_weight_in_theory(0.5, by_std=False):.3f}."
    ]
    words = {1: "grew", -1: "shrank", 0: "did not clearly change"}
    for label in LOSSES:
        for side in ("wrong", "right"):
            change = [
                last - first
                for first, last in (mean_length_at_ends(seed[label, side]) for seed in seeds)
            ]
            lines.append(
                f"length, {label}: {side} answers {words[sign_if_clear(change, MADE)]}"
                f" ({interval_text(change, 1, MADE)} tokens)."
            )
    gaps = {
        label: [
            mean_length_at_ends(s[label, "wrong"])[1] - mean_length_at_ends(s[label, "right"])[1]
            for s in seeds
        ]
        for label in LOSSES
    }
    more = [a - b for a, b in zip(*gaps.values(), strict=True)]
    how = {1: "larger", -1: "smaller", 0: "not clearly other"}[sign_if_clear(more, MADE)]
    what = "length: at the end, wrong minus right is"
    lines.append(
        f"{what} {how} when a row is divided by its own length than by a constant"
        f" ({interval_text(more, 1, MADE)} tokens)."
    )
    return lines


def main() -> None:
    """Print both tables, then the verdicts; draw the figure."""
    asked = seeds_of(make_parser(__doc__).parse_args())
    columns = [
        (form, by_std)
        for by_std in (True, False)
        for form in (group_weight_in_theory, group_weight_in_code)
    ]
    rows = [
        [f"{p:g}", *(f"{form(p, by_std=by_std):.4f}" for form, by_std in columns)] for p in LEVELS
    ]
    print(
        markdown_table(
            [
                "success rate",
                "over std, closed form",
                "over std, code",
                "centred, closed form",
                "centred, code",
            ],
            rows,
        )
    )
    seeds = run_seeds(asked, of_seed)
    cells = {key: [mean_length_at_ends(seed[key]) for seed in seeds] for key in seeds[0]}
    rows = [
        [
            *key,
            interval_text([first for first, _ in cell], 1),
            interval_text([last for _, last in cell], 1),
        ]
        for key, cell in cells.items()
    ]
    print(
        "\n"
        + markdown_table(
            ["a row divided by", "answers", "length, first 5 steps", "length, last 5 steps"], rows
        )
    )
    print("\n".join(["", correction_note(MADE), *verdicts(seeds)]))
    curves = {
        f"{side}, {label}": (
            list(range(1, STEPS + 1)),
            [
                interval([mean(seed[label, side][max(0, step - 2) : step + 3]) for seed in seeds])[
                    0
                ]
                for step in range(STEPS)
            ],
        )
        for label, side in seeds[0]
    }
    title = "The reward is a coin that length does not touch"
    y = "tokens (mean over seeds and 5 steps)"
    print(f"\n{draw_figure('dr_grpo', curves, x='step', y=y, title=title)}")


if __name__ == "__main__":
    main()
