"""Search at equal tokens: beam search and verifier trees against best-of-n and votes.

    python -m laurel_worlds.experiments.search_at_equal_tokens [--first-seed N] [--seeds K]

A small policy adds digits modulo 5 in seven steps, a running total a line: "3+1+4...=" -> "4", "3",
... It imitates sloppy writers, who often lose one where a number is large: so its errors are
systematic, and go on to the end of the answer. A process reward model is trained on the policy's
own steps, labelled by exact arithmetic. All ways of choosing then answer the same held-out
questions, and every token that is drawn counts. docs/choosing.md records a run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from laurel.core.config import TrainConfig
from laurel.core.sample import Draw
from laurel.data.source import Row
from laurel.measure.intervals import paired_difference
from laurel.measure.majority import majority_at_k
from laurel.measure.pass_at_k import pass_at_k
from laurel.model.policy import load_policy
from laurel.reward.mixture import load_rewards
from laurel.rollout.sampler import Sampler, rollout
from laurel.search.answers import votes_of
from laurel.search.curves import Judged, by_score, weighted_vote
from laurel.search.pool import Answer, Question, scored
from laurel.search.tree import RewardValue, Searched, TreeShape, tree_search
from laurel.train.loop import train
from laurel_worlds.experiments.comparison import (
    interval_text,
    make_parser,
    markdown_table,
    print_verdicts,
    run_seeds,
    seeds_of,
)
from laurel_worlds.experiments.start_model import imitate, write_lines

TERMS, WRITTEN = 8, 12000
BASE, LARGE, SLIPS = 5, 3, 0.3  # of numbers of LARGE or more a writer loses one so often
OWN, EACH = 1500, 4  # the policy's own answers that the process model learns from
QUESTIONS, LONGEST = 200, 24
NS = (4, 16, 32)
WAYS = ("product", "min", "last")
BRANCHES = 4
SHOWN = "product"  # by what beams are kept
AGAINST = (
    ("beam", "best of n"),
    ("trees", "best of n"),
    ("beam", "weighted vote"),
    ("trees, vote", "weighted vote"),
    ("beam", "majority"),
)
Right = dict[str, list[float]]
"""way -> of each question the chance that its answer is right."""


@dataclass
class OfSeed:
    """right: by "way, n". tokens: per question."""

    right: Right
    tokens: dict[str, float]
    facts: dict[str, float]


def totals(numbers: Sequence[int]) -> list[str]:
    """The running totals, modulo BASE, of all but the first."""
    return [str(sum(numbers[: i + 1]) % BASE) for i in range(1, len(numbers))]


def chains(name: str, count: int) -> list[dict[str, Any]]:
    """So many sums with their worked answers, by a name that says which."""
    dice, rows = random.Random(name), list[dict[str, Any]]()
    for _ in range(count):
        numbers = [dice.randrange(BASE) for _ in range(TERMS)]
        steps = totals(numbers)
        row = {"prompt": "+".join(map(str, numbers)) + "=", "completion": "\n".join(steps)}
        rows.append({**row, "answer": steps[-1], "numbers": numbers})
    return rows


def written(seed: int) -> list[dict[str, Any]]:
    """Worked answers of sloppy writers: a slip is carried on to the end."""
    dice, rows = random.Random(f"slips/{seed}"), list[dict[str, Any]]()
    for row in chains(f"written/{seed}", WRITTEN):
        first, *others = row["numbers"]
        seen = [n - (n >= LARGE and dice.random() < SLIPS) for n in others]
        rows.append({"prompt": row["prompt"], "completion": "\n".join(totals([first, *seen]))})
    return rows


def as_rows(made: Sequence[Mapping[str, Any]], name: str) -> list[Row]:
    """Rows with ids."""
    return [Row(dict(one), f"{name}:{i}", f"{name}-{i}") for i, one in enumerate(made)]


def labelled(row: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    """An answer's steps, each right or wrong by arithmetic, up to the first wrong one."""
    steps, gold = text.split("\n"), row["completion"].split("\n")
    right = [i < len(gold) and step == gold[i] for i, step in enumerate(steps)]
    kept = right.index(False) + 1 if False in right else len(right)
    if not all(step.strip() for step in steps[:kept]):
        return None
    return {"prompt": row["prompt"], "completions": steps[:kept], "labels": right[:kept]}


def policy_of(seed: int, folder: Path) -> tuple[Sampler, Path]:
    """The policy: a small model that imitated worked answers, and its folder."""
    model = imitate(
        folder,
        written(seed),
        "0123456789+=\n",
        seed,
        layers=2,
        hidden=64,
        heads=4,
        max_steps=500,
        prompts_per_step=32,
        learning_rate=4e-3,
    )
    return Sampler(load_policy(TrainConfig(model=str(model), device="cpu"))), model


def process_model(seed: int, folder: Path, sampler: Sampler, policy: Path) -> Path:
    """The process reward model, from the policy's body, on steps that the policy wrote."""
    asked = as_rows(chains(f"own/{seed}", OWN), "own")
    groups = rollout(sampler, asked, Draw("own", 0, seed, EACH, LONGEST, 1.0))
    rows = [
        line
        for group in groups
        for sample in group.samples
        if (line := labelled(group.row, sample.text)) is not None
    ]
    config = TrainConfig(
        model=str(policy),
        dataset=str(write_lines(folder / "steps.jsonl", rows)),
        output_dir=str(folder / "prm"),
        eval_size=0,
        seed=seed,
        lr_scheduler_type="cosine",
        device="cpu",
        max_steps=500,
        prompts_per_step=32,
        learning_rate=3e-3,
    )
    return train("prm", config, quiet=True).model


def is_right(question: Question, answer: Answer) -> bool:
    """Is the last line the sum?"""
    return answer.text.split("\n")[-1] == question.row["answer"]


def last_lines(question: Question) -> list[str | None]:
    """The votes."""
    texts = [answer.text.split("\n")[-1] for answer in question.answers]
    return votes_of(texts, question.row, "text")


def pool_of(sampler: Sampler, rows: Sequence[Row], draw: Draw, prm: Path) -> list[Judged]:
    """Plain answers with their scores in every way: what best-of-n and votes choose from."""
    groups = rollout(sampler, rows, draw)
    questions = [
        Question(
            group.prompt,
            group.row,
            tuple(
                Answer(one.text, len(one.completion_ids), sum(one.logps), one.finish)
                for one in group.samples
            ),
        )
        for group in groups
    ]
    for way in WAYS:
        questions = scored(questions, load_rewards([f"prm:{prm}:{way}"], None, []))
    return [
        Judged(one, last_lines(one), [is_right(one, answer) for answer in one.answers])
        for one in questions
    ]


def chosen_right(found: Sequence[Searched], name: str, votes: bool) -> list[float]:
    """Whether the choice of each search is right."""
    right = list[float]()
    for one in found:
        cut = tuple(
            Answer(last or "", answer.tokens, scores=answer.scores)
            for last, answer in zip(last_lines(one.question), one.question.answers, strict=True)
        )
        shown = Searched(Question(one.question.id, one.question.row, cut), 0, 0, 0)
        place = shown.choice(name, "text", votes=votes).place
        right.append(0.0 if place is None else float(cut[place].text == one.question.row["answer"]))
    return right


def plain_ways(seed: int) -> dict[str, Callable[[Judged, int], float]]:
    """Ways of choosing from n plain answers: the chance that they give the right one."""
    return {
        "majority": lambda one, k: majority_at_k(one.votes, one.right, k),
        **{f"best of n, {way}": by_score(f"prm_{way}") for way in WAYS},
        "weighted vote": weighted_vote("score", f"prm_{SHOWN}", seed),
        "oracle": lambda one, k: pass_at_k(one.size, sum(one.right), k),
    }


def of_seed(seed: int, folder: Path) -> OfSeed:
    """All ways of choosing with the policy and the process model of a seed."""
    torch.set_num_threads(1)
    sampler, model = policy_of(seed, folder)
    prm = process_model(seed, folder, sampler, model)
    rows = as_rows(chains(f"held out/{seed}", QUESTIONS), "held-out")
    draw = Draw("held out", 0, seed, max(NS), LONGEST, 1.0)
    pool = pool_of(sampler, rows, draw, prm)
    found = OfSeed({}, {}, {"one": float(np.mean([np.mean(one.right) for one in pool]))})
    mean_tokens = float(np.mean([one.mean_tokens for one in pool]))
    for n in (1, *NS):
        for way, value in plain_ways(seed).items():
            found.right[f"{way}, {n}"] = [value(one, n) for one in pool]
            found.tokens[f"{way}, {n}"] = n * mean_tokens
    for way in WAYS:
        value = RewardValue(load_rewards([f"prm:{prm}:{way}"], None, []))
        for n in NS if way == SHOWN else NS[1:2]:
            search(found, sampler, rows, draw, value, n, way)
    return found


def search(
    found: OfSeed,
    sampler: Sampler,
    rows: Sequence[Row],
    draw: Draw,
    value: RewardValue,
    n: int,
    way: str,
) -> None:
    """Beam search and subtrees of n beams, added to what was found."""
    for kind, subtrees in (("beam", 1), ("trees", n // BRANCHES)):
        if subtrees == 1 and kind == "trees":
            continue
        shape = TreeShape(n, BRANCHES, subtrees, max_steps=2 * TERMS)
        done = tree_search(sampler, value, rows, shape, draw)
        for words, votes in (("", False), (", vote", True)):
            name = f"{kind}{words}, {way}, {n}"
            found.right[name] = chosen_right(done, value.name, votes)
            found.tokens[name] = float(np.mean([one.tokens for one in done]))


def full_name(way: str, n: int) -> str:
    """The key of a way in what was found: by the way that is shown, where there are several."""
    bare = way in ("majority", "weighted vote", "oracle")
    return f"{way}, {n}" if bare else f"{way}, {SHOWN}, {n}"


def table(seeds: Sequence[OfSeed]) -> str:
    """Accuracy and tokens of every way, and what it gains on best-of-n with as many beams."""
    lines = list[list[str]]()
    for name in seeds[0].right:
        n = name.rpartition(", ")[2]
        if n == "1" and not name.startswith("majority"):
            continue
        base = f"best of n, {SHOWN}, {n}"
        own = [value for seed in seeds for value in seed.right[name]]
        other = [value for seed in seeds for value in seed.right[base]]
        gain = paired_difference(other, own)
        lines.append(
            [
                "one answer" if n == "1" else name.rpartition(", ")[0],
                n,
                f"{np.mean([seed.tokens[name] for seed in seeds]):.1f}",
                interval_text([float(np.mean(seed.right[name])) for seed in seeds], 3),
                "" if name == base else f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
            ]
        )
    lines.sort(key=lambda line: int(line[1]))
    header = ["way", "n", "tokens", "accuracy", f"against best of n, {SHOWN}, by question"]
    return markdown_table(header, lines)


def gaps(seeds: Sequence[OfSeed]) -> dict[str, list[float]]:
    """The comparisons that verdicts are about: a mean difference of each seed."""
    found: dict[str, list[float]] = {}
    for n in NS:
        for one, other in AGAINST:
            mine, theirs = full_name(one, n), full_name(other, n)
            if mine in seeds[0].right:
                found[f"{one} against {other}, {n}"] = [
                    float(np.mean(seed.right[mine]) - np.mean(seed.right[theirs])) for seed in seeds
                ]
    return found


def main() -> None:
    """Run the seeds; print the table and the verdicts."""
    seeds = run_seeds(seeds_of(make_parser(__doc__).parse_args()), of_seed)
    print(f"one answer is right in {interval_text([seed.facts['one'] for seed in seeds], 3)}.\n")
    print(table(seeds) + "\n")
    print_verdicts(gaps(seeds))


if __name__ == "__main__":
    main()
