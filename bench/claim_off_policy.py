"""On-policy against off-policy: reuse of samples with and without a clipped ratio, and a fixed log of the start policy.

python bench/claim_off_policy.py [SEEDS] prints a table and the verdicts that it supports. docs/experiments.md records one.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from claim import clearly, figure, interval, table, told
from claim_online_dpo import HERE, LIMIT, WORLDS, kl_to, samples, score, start_model, write_lines

from laurel.core.config import TrainConfig
from laurel.train.loop import train

STEPS, PROMPTS, GROUP, REUSE = 32, 4, 8, 8
COMMON: dict[str, Any] = {"num_generations": GROUP, "max_completion_length": LIMIT, "rewards": [f"{HERE}:far"]}
POLICY_GRADIENT = {**COMMON, "loss_aggregation": "seq_mean_token_sum", "learning_rate": 2e-3}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "on-policy": ("dr_grpo", POLICY_GRADIENT),
    "reuse with clipped ratio": ("dr_grpo", {**POLICY_GRADIENT, "num_iterations": REUSE}),
    "reuse with plain ratio": ("dr_grpo", {**POLICY_GRADIENT, "num_iterations": REUSE, "epsilon": 1e6}),
    "reuse without ratio": ("rloo", {**POLICY_GRADIENT, "num_iterations": REUSE}),
    "imitation of fresh samples": ("raft", {**COMMON, "learning_rate": 2e-3}),
    "imitation of a fixed log": ("sft", {"learning_rate": 2e-3}),
}
"""A label: the row of the table and its options. All but the last sample; that one imitates the best of each group of a log."""
PAIRED = {
    "reuse with clipped ratio": "on-policy",
    "reuse with plain ratio": "reuse with clipped ratio",
    "reuse without ratio": "reuse with clipped ratio",
    "imitation of a fixed log": "imitation of fresh samples",
}
"""Whom a method is compared with."""


def fixed_log(folder: Path, start: Path) -> Path:
    """The best completion of each of as many groups as a run samples, all drawn from the start model, as lines of JSON to imitate."""
    groups = samples(folder, start, STEPS * PROMPTS, GROUP)
    best = (max((sample.text for sample in group.samples), key=gold) for group in groups)
    return write_lines(folder / "log.jsonl", ({"prompt": "?", "completion": text} for text in best))


def gold(text: str) -> float:
    """The reward of the far world of claim_online_dpo.py: its optimum is 3 deviations away from the start model."""
    return score(text, WORLDS["far"])


def of_seed(seed: int, folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    """(method, steps) -> gold reward and KL on 512 completions, after all steps and after as many as make STEPS updates."""
    start = start_model(folder, seed)
    log = fixed_log(folder, start)
    drawn = samples(folder, start, 64, GROUP)
    found = {("start model", 0): {"gold": mean(gold(s.text) for group in drawn for s in group.samples), "kl": 0.0}}
    for number, (label, (name, options)) in enumerate(METHODS.items()):
        for steps in (STEPS, STEPS // REUSE) if "num_iterations" in options else (STEPS,):
            config = TrainConfig(
                model=str(start), dataset=str(log if name == "sft" else folder / "prompts.jsonl"), eval_size=0, seed=seed, max_steps=steps,
                output_dir=str(folder / f"{number}-{steps}"), prompts_per_step=PROMPTS, device="cpu", **options,
            )  # fmt: skip
            model = train(name, config, quiet=True).model
            after = samples(folder, model, 64, GROUP)
            golds = [gold(sample.text) for group in after for sample in group.samples]
            found[label, steps] = {"gold": mean(golds), "kl": kl_to(start, model, after)}
    return found


def difference(seeds: Sequence[Mapping[tuple[str, int], Mapping[str, float]]], one: tuple[str, int], other: tuple[str, int]) -> str:
    """`better`, `worse` or `not clearly better or worse` by the paired gold rewards, with their interval."""
    gaps = [seed[one]["gold"] - seed[other]["gold"] for seed in seeds]
    return f"{ {1: 'better', -1: 'worse', 0: 'not clearly better or worse'}[clearly(gaps)] } ({told(gaps)})"


def verdicts(seeds: Sequence[Mapping[tuple[str, int], Mapping[str, float]]]) -> list[str]:
    """Each method against the one it is paired with, at equal samples and where it reuses them at equal updates."""
    lines = []
    for label, other in PAIRED.items():
        equal = difference(seeds, (label, STEPS), (other, STEPS))
        lines.append(f"{label}, against {other}: at equal samples {equal}.")
        short = (label, STEPS // REUSE)
        if short in seeds[0]:
            against = (other, STEPS // REUSE) if (other, STEPS // REUSE) in seeds[0] else (other, STEPS)
            lines.append(f"{label}, against {other}: after {STEPS} updates {difference(seeds, short, against)}.")
    return lines


def main(count: int = 5) -> None:
    """Print the table of all seeds, then the verdicts; draw the figure."""
    seeds = []
    for seed in range(count):
        with tempfile.TemporaryDirectory() as folder:
            seeds.append(of_seed(seed, Path(folder)))
    rows, curves = [], {}
    for label, steps in seeds[0]:
        options = METHODS.get(label, ("", {}))[1]
        drawn = steps * PROMPTS * GROUP
        updates = steps * options.get("num_iterations", 1)
        cells = (told([seed[label, steps][name] for seed in seeds]) for name in ("gold", "kl"))
        rows.append([label, str(drawn), str(updates), *cells])
        x, y = curves.setdefault(label, ([0], [interval([seed["start model", 0]["gold"] for seed in seeds])[0]]))
        x.append(drawn)
        y.append(interval([seed[label, steps]["gold"] for seed in seeds])[0])
    print(table(["method", "samples", "updates", "gold reward", "KL to the start"], rows))
    print("\n".join(["", *verdicts(seeds)]))
    del curves["start model"]
    sorted_curves = {label: tuple(zip(*sorted(zip(x, y, strict=True)), strict=True)) for label, (x, y) in curves.items()}
    title = f"Each batch used once, or {REUSE} times"
    print(f"\n{figure('off_policy', sorted_curves, x='samples drawn', y='gold reward', title=title)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
