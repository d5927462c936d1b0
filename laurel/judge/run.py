"""A judge over a source, into a folder: every verdict, the labels, and what it cost."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.files import atomic_file, write_atomic
from laurel.judge.judge import Item, Judge, spoken
from laurel.judge.labels import preference_rows
from laurel.judge.options import JudgeConfig, judges_pairs
from laurel.judge.sources import Answered, Drawn, items_of, pairs_of
from laurel.judge.verdict import ERROR, Judgement, as_row

VERDICTS, JUDGEMENTS = "verdicts.jsonl", "judgements.jsonl"
PREFERENCES, SCORES, SUMMARY = "preferences.jsonl", "scores.jsonl", "summary.json"
CACHE = "answers.sqlite"
Watch = Callable[[int], None]


@dataclass(frozen=True)
class Judged:
    """What a run of a judge came to. left_out: rows without a pair, a line each."""

    pairs: Sequence[Drawn] = ()
    items: Sequence[Item] = ()
    judgements: Sequence[Judgement] = ()
    again: Sequence[Judgement] = ()
    left_out: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def errors(self) -> int:
        """Items without an answer, which the same command asks again."""
        return sum(one.status == ERROR for one in (*self.judgements, *self.again))


@dataclass(frozen=True)
class HowToRun:
    """per_prompt: pairs of each prompt, 0 for all. repeat_share: of the items, asked twice.

    ties: keep ties, and verdicts that cancel out, with soft_label 1/2.
    """

    per_prompt: int = 0
    repeat_share: float = 0.0
    ties: bool = False
    seed: int = 0


def prepare(config: JudgeConfig, answered: Sequence[Answered], how: HowToRun) -> Judged:
    """The pairs, or the single responses, that a judge is to be asked about.

    Errors: UsageError where there are none.
    """
    if not judges_pairs(config):
        return Judged(items=items_of(answered, config.reference))
    pairs, left_out = pairs_of(
        answered, per_prompt=how.per_prompt, seed=how.seed, reference=config.reference
    )
    if not pairs:
        fix = "Judge them with form: score?"
        raise UsageError("no row has two responses that differ.", where="source", fix=fix)
    return Judged(pairs=pairs, left_out=left_out)


def judge_all(judge: Judge, todo: Judged, how: HowToRun, watch: Watch | None = None) -> Judged:
    """What was prepared, judged; a share of it twice."""
    if todo.pairs:
        pairs = [one.pair for one in todo.pairs]
        twice = [pair for pair in pairs if repeated(pair.id, how)]
        return replace(
            todo,
            judgements=judge.compare(pairs, watch=watch),
            again=judge.compare(twice, repeat=1, watch=watch),
        )
    items = [item for item in todo.items if repeated(item.id, how)]
    return replace(
        todo,
        judgements=judge.score(todo.items, watch=watch),
        again=judge.score(items, repeat=1, watch=watch),
    )


def repeated(id: str, how: HowToRun) -> bool:
    """Is this item among those that are asked twice? By its id, whatever else is judged."""
    digest = hashlib.sha256(f"{how.seed}\0{id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < how.repeat_share * 2**64


def write_judged(folder: Path, judge: Judge, found: Judged, how: HowToRun) -> dict[str, Any]:
    """The run's files; returns the summary that is written, too."""
    folder.mkdir(parents=True, exist_ok=True)
    every = (*found.judgements, *found.again)
    write_rows(
        folder / VERDICTS, [as_row(one.id, verdict) for one in every for verdict in one.verdicts]
    )
    write = write_pairs if found.pairs else write_scores
    facts: dict[str, Any] = {
        "judges": judge.names,
        "how_sure": judge.ways,
        **write(folder, found, how),
        "left_out": len(found.left_out),
        "asked_twice": len(found.again),
        "tokens": total_tokens(every),
        "cost": cost_of(judge, every),
    }
    write_atomic(folder / SUMMARY, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return facts


def write_pairs(folder: Path, found: Judged, how: HowToRun) -> dict[str, Any]:
    """What was said of pairs, and the preferences that come of it; returns the counts."""
    pairs = [one.pair for one in found.pairs]
    rows, count = preference_rows(pairs, found.judgements, ties=how.ties)
    write_rows(folder / PREFERENCES, rows)
    judged = zip(found.pairs, found.judgements, strict=True)
    write_rows(folder / JUDGEMENTS, [pair_row(drawn, one) for drawn, one in judged])
    return {"pairs": len(pairs), "preferences": len(rows), "statuses": dict(count)}


def write_scores(folder: Path, found: Judged, how: HowToRun) -> dict[str, Any]:
    """The scores of single responses; returns the counts."""
    judged = zip(found.items, found.judgements, strict=True)
    write_rows(folder / SCORES, [score_row(item, one) for item, one in judged])
    statuses = Counter(one.status for one in found.judgements)
    return {"responses": len(found.items), "statuses": dict(sorted(statuses.items()))}


def total_tokens(every: Sequence[Judgement]) -> list[int]:
    """Tokens read and written for these judgements, whenever they were asked for."""
    verdicts = [verdict for one in every for verdict in one.verdicts]
    return [sum(one.tokens[0] for one in verdicts), sum(one.tokens[1] for one in verdicts)]


def cost_of(judge: Judge, every: Sequence[Judgement]) -> float | None:
    """Their price; None unless each judge has one."""
    prices = {one.name: one.config.price for one in judge.members}
    total = 0.0
    for one in every:
        for verdict in one.verdicts:
            price = prices.get(verdict.judge)
            if price is None:
                return None
            total += (verdict.tokens[0] * price[0] + verdict.tokens[1] * price[1]) / 1e6
    return total


def pair_row(drawn: Drawn, judged: Judgement) -> dict[str, Any]:
    """A row of `judgements.jsonl`: the texts, and what the judge says of them in the end."""
    pair = drawn.pair
    gold = drawn.answered.gold
    return {
        "id": pair.id,
        "prompt": pair.prompt,
        "first": pair.first,
        "second": pair.second,
        "models": list(drawn.models),
        "gold": None if gold is None else "ab"[drawn.places.index(gold)],
        "status": judged.status,
        "soft_label": judged.soft_label,
        "margin": judged.margin,
        "lengths": [len(spoken(pair.first).split()), len(spoken(pair.second).split())],
    }


def score_row(item: Item, judged: Judgement) -> dict[str, Any]:
    """A row of `scores.jsonl`."""
    criteria = [dict(verdict.criteria) for verdict in judged.verdicts if verdict.criteria]
    return {
        "id": item.id,
        "prompt": item.prompt,
        "response": item.response,
        "status": judged.status,
        "score": judged.score,
        "criteria": criteria,
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    with atomic_file(path) as file:
        file.writelines(json_line(row) for row in rows)


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as UTF-8; half a surrogate pair, which is none, as it is escaped."""
    try:
        return f"{json.dumps(row, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(row)}\n".encode()
