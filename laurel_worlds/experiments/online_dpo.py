"""Is DPO more sensitive to beta and to coverage offline than online?

Offline, its pairs come once from the start model; online, from the policy.

    python -m laurel_worlds.experiments.online_dpo [--first-seed N] [--seeds K]

Prints a table and the verdicts that it supports. docs/experiments.md records one.
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from laurel.core.config import TrainConfig
from laurel.core.sample import Draw, Group
from laurel.data.source import load_rows
from laurel.model.policy import load_policy
from laurel.rollout.pack import pack
from laurel.rollout.sampler import Sampler, rollout
from laurel.train.loop import train
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

LETTERS, SHARE, LIMIT = (
    10,
    0.2,
    12,
)  # the start model writes 10 letters, each a `b` with chance .2; 12 tokens at most
WORLDS = {"near": 3, "far": 6}
"""The number of `b`s with the highest reward.

The start model writes 2 +- 1.3: 3 is within its bulk, 6 is 3 deviations away.
"""
BETAS = (0.03, 0.1, 0.3, 1.0, 3.0)
STEPS, PAIRS = 40, 16
MADE = (
    len(WORLDS) * (len(BETAS) + 1) + 1
)  # comparisons: at each beta, over betas, and of what coverage costs
HERE = str(Path(__file__).resolve())
Results = Mapping[tuple[str, str, float], Mapping[str, float]]
"""(world, way, beta) -> what was measured."""


def score(text: str, best: int) -> float:
    """1 at `best` letters b, less by .1 for each one more or fewer: the gold reward.

    "abba" with best 3: .9.
    """
    return 1 - abs(text.count("b") - best) / LETTERS


def near(completions: list[str], **columns: Any) -> list[float]:
    """The gold reward whose optimum the start model covers."""
    return [score(text, WORLDS["near"]) for text in completions]


def far(completions: list[str], **columns: Any) -> list[float]:
    """The gold reward whose optimum the start model hardly ever writes."""
    return [score(text, WORLDS["far"]) for text in completions]


def start_model(folder: Path, seed: int) -> Path:
    """A small model that has learnt by imitation to write ten letters.

    The prompt of every experiment here is written to prompts.jsonl.
    """
    rng = random.Random(seed)
    texts = ("".join(rng.choices("ab", [1 - SHARE, SHARE], k=LETTERS)) for _ in range(4800))
    write_lines(folder / "prompts.jsonl", ({"prompt": "?"} for _ in range(64)))
    rows = ({"prompt": "?", "completion": text} for text in texts)
    return imitate(
        folder, rows, "ab?", seed, max_steps=120, prompts_per_step=40, learning_rate=5e-3
    )


def sample_groups(
    folder: Path, model: Path, groups: int, size: int, *, limit: int = LIMIT
) -> list[Group]:
    """`groups` groups of `size` completions of the prompt by a saved model."""
    policy = load_policy(TrainConfig(model=str(model), device="cpu"))
    rows = load_rows(str(folder / "prompts.jsonl"))
    drawn: list[Group] = []
    while len(drawn) < groups:
        drawn += rollout(Sampler(policy), rows, Draw("claim", len(drawn), 0, size, limit, 1.0))
    return drawn[:groups]


@torch.no_grad()
def kl_to(start: Path, model: Path, drawn: list[Group]) -> float:
    """KL(pi || start) of a whole completion in nats, estimated on completions drawn from pi."""
    batch = pack(drawn)
    now, then = (
        load_policy(TrainConfig(model=str(m), device="cpu")).logp(batch).logp.double().sum(1)
        for m in (model, start)
    )
    return float((now - then).mean())


def offline_pairs(folder: Path, start: Path) -> list[tuple[str, str]]:
    """Pairs of completions of the start model: twice as many as the runs will use.

    Ties will be left out.
    """
    drawn = sample_groups(folder, start, 2 * STEPS * PAIRS, 2)
    return [
        (a.text, b.text)
        for a, b in (group.samples for group in drawn)
        if a.finish == b.finish == "eos"
    ]


def of_seed(seed: int, folder: Path) -> dict[tuple[str, str, float], dict[str, float]]:
    """(world, way, beta) -> gold reward and KL of the trained model on 256 completions."""
    start = start_model(folder, seed)
    drawn, found = offline_pairs(folder, start), {}
    for world, best in WORLDS.items():
        gold = partial(score, best=best)
        found[world, "start", 0.0] = {
            "gold": mean(gold(text) for pair in drawn for text in pair),
            "kl": 0.0,
        }
        judged = [
            sorted(pair, key=gold, reverse=True) for pair in drawn if gold(pair[0]) != gold(pair[1])
        ][: STEPS * PAIRS]
        rows = ({"prompt": "?", "chosen": good, "rejected": bad} for good, bad in judged)
        pairs = write_lines(folder / f"{world}.jsonl", rows)
        for way in ("offline", "online"):
            for beta in BETAS:
                model = train_dpo(way, world, beta, start, pairs, seed)
                after = sample_groups(folder, model, 64, 4)
                golds = [gold(sample.text) for group in after for sample in group.samples]
                found[world, way, beta] = {"gold": mean(golds), "kl": kl_to(start, model, after)}
    return found


def train_dpo(way: str, world: str, beta: float, start: Path, pairs: Path, seed: int) -> Path:
    """The model that DPO makes of the start model: offline from the pairs, or online."""
    folder = pairs.parent
    online: dict[str, Any] = {
        "dataset": str(folder / "prompts.jsonl"),
        "rewards": [f"{HERE}:{world}"],
        "max_completion_length": LIMIT,
    }
    options: dict[str, Any] = online if way == "online" else {"dataset": str(pairs)}
    config = TrainConfig(
        model=str(start),
        output_dir=str(folder / f"{world}-{way}-{beta}"),
        eval_size=0,
        seed=seed,
        max_steps=STEPS,
        prompts_per_step=PAIRS,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        beta=beta,
        device="cpu",
        **options,
    )
    return train("online_dpo" if way == "online" else "dpo", config, quiet=True).model


def verdicts(seeds: Sequence[Results]) -> list[str]:
    """Paired by seed: at how many betas one is clearly better, and which varies more over beta."""
    lines = []
    for world in WORLDS:
        gaps = {
            b: [s[world, "online", b]["gold"] - s[world, "offline", b]["gold"] for s in seeds]
            for b in BETAS
        }
        better = [f"{beta:g}" for beta in BETAS if sign_if_clear(gaps[beta], MADE) > 0]
        worse = [f"{beta:g}" for beta in BETAS if sign_if_clear(gaps[beta], MADE) < 0]
        where_better, where_worse = (
            f"at beta {', '.join(betas)}" if betas else "at no beta" for betas in (better, worse)
        )
        lines.append(
            f"{world}: online is clearly better {where_better}, clearly worse {where_worse}."
        )
        lines.append(sensitivity_verdict(world, seeds))
    return [*lines, coverage_verdict(seeds)]


HOW = {1: "more", -1: "less", 0: "not clearly more or less"}


def sensitivity_verdict(world: str, seeds: Sequence[Results]) -> str:
    """How much the reward varies over beta, offline against online."""
    offline, online = (
        [max(golds) - min(golds) for golds in (_over_betas(s, world, way) for s in seeds)]
        for way in ("offline", "online")
    )
    more = [a - b for a, b in zip(offline, online, strict=True)]
    return (
        f"{world}: offline is {HOW[sign_if_clear(more, MADE)]} sensitive to beta: best minus worst"
        f" {interval_text(offline)} offline, {interval_text(online)} online,"
        f" difference {interval_text(more, of=MADE)}."
    )


def coverage_verdict(seeds: Sequence[Results]) -> str:
    """What it costs, at the best beta, that the optimum lies out of the start model's reach."""
    offline, online = (
        [max(_over_betas(s, "near", way)) - max(_over_betas(s, "far", way)) for s in seeds]
        for way in ("offline", "online")
    )
    apart = [a - b for a, b in zip(offline, online, strict=True)]
    return (
        "coverage: at each one's best beta, moving the optimum out of the start model's reach"
        f" costs offline {HOW[sign_if_clear(apart, MADE)]} ({interval_text(offline)} against"
        f" {interval_text(online)}, difference {interval_text(apart, of=MADE)})."
    )


def _over_betas(seed: Results, world: str, way: str) -> list[float]:
    return [seed[world, way, beta]["gold"] for beta in BETAS]


def main() -> None:
    """Print the table of all seeds, then the verdicts; draw the figure."""
    seeds = run_seeds(seeds_of(make_parser(__doc__).parse_args()), of_seed)
    rows = [
        [
            world,
            "start model",
            *[interval_text([s[world, "start", 0.0]["gold"] for s in seeds])] * 2,
            "0",
            "0",
        ]
        for world in WORLDS
    ]
    rows += [
        [
            world,
            f"{beta:g}",
            *(
                interval_text([s[world, way, beta][x] for s in seeds])
                for x in ("gold", "kl")
                for way in ("offline", "online")
            ),
        ]
        for world in WORLDS
        for beta in BETAS
    ]
    print(
        markdown_table(
            ["optimum", "beta", "gold, offline", "gold, online", "KL, offline", "KL, online"], rows
        )
    )
    print("\n".join(["", correction_note(MADE), *verdicts(seeds)]))
    curves = {
        f"{way}, optimum {world}": (
            [interval([s[world, way, beta]["kl"] for s in seeds])[0] for beta in BETAS],
            [interval([s[world, way, beta]["gold"] for s in seeds])[0] for beta in BETAS],
        )
        for world in WORLDS
        for way in ("offline", "online")
    }
    title = f"DPO at beta {BETAS[0]:g} (right) to {BETAS[-1]:g} (left)"
    x = "KL to the start model, nats per completion"
    print(f"\n{draw_figure('online_dpo', curves, x=x, y='gold reward', title=title)}")


if __name__ == "__main__":
    main()
