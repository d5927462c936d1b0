"""The stages between a plan and its result: prompts, answers, preferences. Those that train are the
ordinary loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from laurel.core.config import TrainConfig
from laurel.core.errors import LaurelError, UsageError
from laurel.core.files import atomic_file, read_lines, write_atomic
from laurel.core.load import load_file
from laurel.core.result import Failed, Score, as_result
from laurel.core.sample import Draw, Group, Key, Message, Sample, sample_seed
from laurel.data.formats import needs
from laurel.data.source import Row, load_rows
from laurel.data.split import split_rows
from laurel.model.policy import load_policy
from laurel.pipeline.plan import Plan, Preferring, Sampling
from laurel.reward.calls import listed
from laurel.reward.mixture import Mixture
from laurel.rollout.sampler import Sampler
from laurel.rollout.single import rollout

AT_ONCE = 32  # prompts answered between two lines of a file: what a kill can cost


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    with atomic_file(path) as file:
        file.writelines((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)


def answer(
    folder: Path,
    model: str,
    rows: Sequence[Row],
    how: Sampling,
    seed: int,
    watch: Callable[[int], None],
) -> list[str]:
    """`answers.jsonl`: each prompt's K answers, with ids. A killed run goes on behind the last
    whole line. `watch` counts prompts.
    """
    path = folder / "answers.jsonl"
    whole = [raw for raw, _ in read_lines(path)]
    with atomic_file(path) as file:
        file.writelines(whole)
    policy = load_policy(TrainConfig(model=model))
    watch(len(whole))
    draw = Draw(
        "pipeline",
        0,
        seed,
        how.num_generations,
        how.max_completion_length,
        how.temperature,
        tuple(how.stop),
    )
    for start in range(len(whole), len(rows), AT_ONCE):
        groups = rollout(Sampler(policy), rows[start : start + AT_ONCE], draw)
        lines = [
            {
                "id": group.prompt,
                "columns": group.row,
                "responses": [s.text for s in group.samples],
                "ids": [s.completion_ids for s in group.samples],
                "finish": [s.finish for s in group.samples],
            }
            for group in groups
        ]
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        watch(len(groups))
    return ["answers.jsonl"]


def as_groups(path: Path) -> list[Group]:
    """The answers in a file as groups, as a reward takes them."""
    groups = []
    for _, line in read_lines(path):
        samples = tuple(
            Sample(
                key=Key("pipeline", "answers", line["id"], g, 0),
                prompt_ids=(),
                completion_ids=tuple(ids),
                logps=(0.0,) * len(ids),
                loss_mask=(True,) * len(ids),
                temperature=1.0,
                finish=finish,
                text=text,
                turns=(Message(role="assistant", content=text),),
            )
            for g, (text, ids, finish) in enumerate(
                zip(line["responses"], line["ids"], line["finish"], strict=True)
            )
        )
        groups.append(Group(line["id"], line["columns"], samples))
    return groups


def prefer(
    folder: Path, groups: Sequence[Group], how: Preferring, mixture: Mixture | None, seed: int
) -> list[str]:
    """`pairs.jsonl`, `labels.jsonl` (the same as single answers) and `facts.json`: who was
    preferred, by the judge or the gold reward.

    Ties are dropped. A label is flipped with probability error_rate, by a die that belongs to the
    pair.
    """
    compare = by_judge(how.judge) if how.judge else by_gold
    groups = mixture.score(groups) if mixture else groups
    pairs, labels, facts = [], [], {"pairs": 0, "ties": 0, "flipped": 0}
    for group in groups:
        dice = Random(sample_seed(seed, group.prompt, 0, 0))
        every = list(combinations(range(len(group.samples)), 2))
        chosen = dice.sample(every, min(how.pairs_per_prompt or len(every), len(every)))
        for (a, b), likely in zip(chosen, compare(group, chosen), strict=True):
            flip = dice.random() < how.error_rate
            if likely is None or likely == 0.5 or group.samples[a].text == group.samples[b].text:
                facts["ties"] += 1
                continue
            first = (likely > 0.5) != flip
            better, worse = (group.samples[i] for i in ((a, b) if first else (b, a)))
            facts["pairs"] += 1
            facts["flipped"] += flip
            row = {
                "prompt": group.row["prompt"],
                "chosen": spoken(group, better),
                "rejected": spoken(group, worse),
            }
            pairs.append(row if how.judge is None else {**row, "weight": abs(2 * likely - 1)})
            labels += [
                {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
                for side in ("chosen", "rejected")
            ]
    if not pairs:
        raise UsageError(
            "no answer was preferred to another: all were ties.",
            where="stage prefer",
            fix="Raise sample.num_generations?",
        )
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "labels.jsonl", labels)
    write_atomic(folder / "facts.json", json.dumps(facts) + "\n")
    return ["pairs.jsonl", "labels.jsonl", "facts.json"]


def spoken(group: Group, sample: Sample) -> str | list[Message]:
    """An answer as its prompt was asked: a text to a text, a turn to a conversation."""
    return sample.text if isinstance(group.row["prompt"], str) else list(sample.turns)


def by_gold(group: Group, pairs: Sequence[tuple[int, int]]) -> list[float | None]:
    """1 where the first answer has the higher reward, 0 where the second, 1/2 for equal ones, None
    where one has none.
    """
    found: list[float | None] = []
    for a, b in pairs:
        first, second = group.rewards[a], group.rewards[b]
        found.append(
            None
            if first is None or second is None
            else 0.5 + 0.5 * ((first > second) - (first < second))
        )
    return found


def by_judge(name: str) -> Callable[[Group, Sequence[tuple[int, int]]], list[float | None]]:
    """The user's judge, asked in both orders and averaged: a liking for the first place cancels."""
    path, _, attribute = name.rpartition(":")
    judge = getattr(load_file(path, f"judge `{name}`"), attribute, None)
    if not callable(judge):
        raise UsageError(
            f"`{path}` has no function `{attribute}`.",
            where="prefer.judge",
            fix="Write file.py:function.",
        )

    def compare(group: Group, pairs: Sequence[tuple[int, int]]) -> list[float | None]:
        texts = [s.text for s in group.samples]
        columns = {
            column: [value] * 2 * len(pairs)
            for column, value in group.row.items()
            if column != "prompt"
        }
        first = [texts[a] for a, _ in pairs] + [texts[b] for _, b in pairs]
        second = [texts[b] for _, b in pairs] + [texts[a] for a, _ in pairs]
        try:
            said = listed(
                judge(
                    prompts=[group.row["prompt"]] * len(first),
                    first=first,
                    second=second,
                    **columns,
                ),
                len(first),
            )
        except Exception as error:
            raise LaurelError(
                f"raised {type(error).__name__}: {error}.",
                where=f"judge `{name}`, prompt {group.prompt}",
            ) from error
        if isinstance(said, str):
            raise UsageError(
                f"{said}.",
                where=f"judge `{name}`",
                fix="A list of chances between 0 and 1 (or None), one for each question.",
            )
        results = [as_result(p) for p in said]
        if any(
            isinstance(r, Failed) or (isinstance(r, Score) and not 0 <= r.value <= 1)
            for r in results
        ):
            raise UsageError(
                f"{len(first)} questions, and not as many chances between 0 and 1 or None.",
                where=f"judge `{name}`",
            )
        chances = [r.value if isinstance(r, Score) else None for r in results]
        there, back = chances[: len(pairs)], chances[len(pairs) :]
        return [
            None if p is None or q is None else (p + 1 - q) / 2
            for p, q in zip(there, back, strict=True)
        ]

    return compare


def split_prompts(folder: Path, plan: Plan) -> list[str]:
    """`train.jsonl` and `held.jsonl`: the prompts that stages train on, and those for the
    comparison.
    """
    rows, held = split_rows(
        needs(load_rows(plan.dataset, seed=plan.seed, size=plan.dataset_size), "rl"),
        plan.eval_size,
        plan.seed,
    )
    if not rows:
        raise UsageError(
            f"{len(held)} prompts are too few.", where=plan.dataset, fix="Lower eval_size."
        )
    write_rows(folder / "train.jsonl", [dict(row.columns) for row in rows])
    write_rows(folder / "held.jsonl", [dict(row.columns) for row in held])
    return ["train.jsonl", "held.jsonl"]
