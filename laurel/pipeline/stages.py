"""The stages between a plan and its result that do not train: prompts, answers, preferences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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
from laurel.data.formats import rows_fit_for
from laurel.data.source import Row, load_rows
from laurel.data.split import split_rows
from laurel.judge.judge import Judge, Pair
from laurel.judge.options import read_judge
from laurel.model.policy import load_policy
from laurel.pipeline.plan import Plan, Preferring, Sampling
from laurel.reward.mixture import Mixture, as_result_list
from laurel.rollout.sampler import Sampler, rollout

AT_ONCE = 32  # prompts answered between two lines of a file: what a kill can cost
Places = Sequence[tuple[int, int]]
"""Pairs of a group's samples, by their places."""
Compare = Callable[[Sequence[tuple[Group, Places]]], list[list[float | None]]]
"""(groups, pairs of each) -> how likely the first of each is better; None: no opinion."""


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
    """`answers.jsonl`: each prompt's K answers, with ids.

    A killed run continues after the last whole line. watch: called with the prompts done.
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
    """`pairs.jsonl`, `labels.jsonl` (the same as single answers) and `facts.json`.

    The judge prefers, or the gold reward. Ties are dropped, and so are pairs that nobody judged. A
    label is flipped with probability error_rate, by random numbers that depend on the prompt only.
    """
    groups = mixture.score(groups) if mixture else groups
    facts = {"pairs": 0, "ties": 0, "unjudged": 0, "flipped": 0}
    pairs: list[dict[str, Any]] = []
    drawn = [draw_pairs(group, how, seed) for group in groups]
    asked = [(group, chosen) for group, (chosen, _) in zip(groups, drawn, strict=True)]
    compare = comparer(how, folder)
    for (group, chosen), (_, dice), opinions in zip(asked, drawn, compare(asked), strict=True):
        likely = dict(zip(chosen, opinions, strict=True))
        pairs += group_pairs(group, likely, how, dice, facts)
    if not pairs:
        what = "no answer was preferred to another: {ties} ties, {unjudged} unjudged.".format(
            **facts
        )
        raise UsageError(what, where="stage prefer", fix="Raise sample.num_generations?")
    labels = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "labels.jsonl", labels)
    write_atomic(folder / "facts.json", json.dumps(facts) + "\n")
    return ["pairs.jsonl", "labels.jsonl", "facts.json"]


def comparer(how: Preferring, folder: Path) -> Compare:
    """Who prefers: the gold rewards, a judge's file, or a user's function."""
    if how.judge is None:
        return lambda asked: [by_gold(group, chosen) for group, chosen in asked]
    if is_judge_file(how.judge):
        return partial(by_model, how.judge, folder / "answers.sqlite")
    one = by_judge(how.judge)
    return lambda asked: [one(group, chosen) for group, chosen in asked]


def is_judge_file(name: str) -> bool:
    """Is it a judge's YAML file, and no function?"""
    return name.endswith((".yaml", ".yml"))


def draw_pairs(group: Group, how: Preferring, seed: int) -> tuple[Places, Random]:
    """The pairs of a prompt's answers that are labelled, and the dice for what follows."""
    dice = Random(sample_seed(seed, group.prompt, 0, 0))
    every = list(combinations(range(len(group.samples)), 2))
    return dice.sample(every, min(how.pairs_per_prompt or len(every), len(every))), dice


def group_pairs(
    group: Group,
    opinions: Mapping[tuple[int, int], float | None],
    how: Preferring,
    dice: Random,
    facts: dict[str, int],
) -> Iterator[dict[str, Any]]:
    """The preference pairs of one prompt's answers; counts what becomes of each in `facts`."""
    for (a, b), likely in opinions.items():
        flip = dice.random() < how.error_rate
        if likely is None:
            facts["unjudged"] += 1
            continue
        if likely == 0.5 or group.samples[a].text == group.samples[b].text:
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
        yield {**row, **confidence(how, likely)}


def confidence(how: Preferring, likely: float) -> dict[str, float]:
    """How sure the judge is: a model's chance is a soft label, a function's a weight."""
    if how.judge is None:
        return {}
    if is_judge_file(how.judge):
        return {"soft_label": max(likely, 1 - likely)}
    return {"weight": abs(2 * likely - 1)}


def spoken(group: Group, sample: Sample) -> str | list[Message]:
    """An answer as its prompt was asked: a text to a text, a turn to a conversation."""
    return sample.text if isinstance(group.row["prompt"], str) else list(sample.turns)


def by_gold(group: Group, pairs: Sequence[tuple[int, int]]) -> list[float | None]:
    """1 where the first answer has the higher reward, 0 the second, 1/2 both, None without one."""
    found: list[float | None] = []
    for a, b in pairs:
        first, second = group.rewards[a], group.rewards[b]
        if first is None or second is None:
            found.append(None)
        else:
            found.append(0.5 + 0.5 * ((first > second) - (first < second)))
    return found


def by_model(
    name: str, cache: Path, asked: Sequence[tuple[Group, Places]]
) -> list[list[float | None]]:
    """A judge's chances, all asked at once; None where a verdict failed. Kept in `cache`."""
    with Judge(read_judge(name), cache=cache) as judge:
        pairs = [
            Pair(
                f"{group.prompt}:{a}-{b}",
                group.row["prompt"],
                group.samples[a].text,
                group.samples[b].text,
            )
            for group, chosen in asked
            for a, b in chosen
        ]
        judged = iter(judge.compare(pairs))
    found = [[next(judged) for _ in chosen] for _, chosen in asked]
    return [[one.soft_label if one.valid else None for one in row] for row in found]


def by_judge(name: str) -> Callable[[Group, Places], list[float | None]]:
    """The user's judge, asked in both orders and averaged: a bias for the first place cancels."""
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
        first = [texts[a] for a, _ in pairs] + [texts[b] for _, b in pairs]
        second = [texts[b] for _, b in pairs] + [texts[a] for a, _ in pairs]
        chances = ask_judge(judge, name, group, first, second)
        there, back = chances[: len(pairs)], chances[len(pairs) :]
        return [
            None if p is None or q is None else (p + 1 - q) / 2
            for p, q in zip(there, back, strict=True)
        ]

    return compare


def ask_judge(
    judge: Callable[..., Any], name: str, group: Group, first: list[str], second: list[str]
) -> list[float | None]:
    """How likely each first answer is better than its second; None where the judge abstains.

    The judge is called once, with every column of the row repeated. What it raises is a
    LaurelError, what it returns wrongly a UsageError.
    """
    where = f"judge `{name}`"
    columns = {
        column: [value] * len(first) for column, value in group.row.items() if column != "prompt"
    }
    prompts = [group.row["prompt"]] * len(first)
    try:
        returned = judge(prompts=prompts, first=first, second=second, **columns)
        opinions = as_result_list(returned, len(first))
    except Exception as error:
        what = f"raised {type(error).__name__}: {error}."
        raise LaurelError(what, where=f"{where}, prompt {group.prompt}") from error
    if isinstance(opinions, str):
        fix = "A list of chances between 0 and 1 (or None), one for each question."
        raise UsageError(f"{opinions}.", where=where, fix=fix)
    results = [as_result(p) for p in opinions]
    for result in results:
        if isinstance(result, Failed) or (isinstance(result, Score) and not 0 <= result.value <= 1):
            what = f"{len(first)} questions, and not as many chances between 0 and 1 or None."
            raise UsageError(what, where=where)
    return [result.value if isinstance(result, Score) else None for result in results]


def split_prompts(folder: Path, plan: Plan) -> list[str]:
    """`train.jsonl` and `held.jsonl`: prompts to train on, and prompts for the comparison."""
    rows, held_out = split_rows(
        rows_fit_for(load_rows(plan.dataset, seed=plan.seed, size=plan.dataset_size), "rl"),
        plan.eval_size,
        plan.seed,
    )
    if not rows:
        raise UsageError(
            f"{len(held_out)} prompts are too few.", where=plan.dataset, fix="Lower eval_size."
        )
    write_rows(folder / "train.jsonl", [dict(row.columns) for row in rows])
    write_rows(folder / "held.jsonl", [dict(row.columns) for row in held_out])
    return ["train.jsonl", "held.jsonl"]
