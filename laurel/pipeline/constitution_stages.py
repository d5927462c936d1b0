"""The stages of a constitution that ask a model: critiques, revisions, comparisons.

Every stage writes a line of JSON for each answer or pair as its batch is done, and what a model
said is kept beside it as soon as it is there, so a killed run goes on where it was.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from laurel.core.errors import LaurelError, UsageError
from laurel.core.files import atomic_file, read_lines, write_atomic
from laurel.core.load import load_file
from laurel.core.sample import sample_seed
from laurel.judge.judge import Ask, Judge, Pair, spoken
from laurel.judge.options import JudgeConfig, read_judge
from laurel.judge.verdict import as_row
from laurel.pipeline.constitution_plan import Judging, Revising
from laurel.pipeline.constitution_text import (
    HARM,
    Constitution,
    Principle,
    critique_messages,
    revise_messages,
)
from laurel.pipeline.stages import write_rows

AT_ONCE = 32  # answers or pairs between two writes
DIGITS = 6  # of a soft label: beyond them, a server's last bits
SEEDS = 2**31 - 1  # what every server takes
ANSWERS = "asked.db"
"""Beside a stage's files: everything that a model said, so that nothing is asked twice."""


def in_batches(
    path: Path,
    items: Sequence[Any],
    work: Callable[[Sequence[Any]], list[dict[str, Any]]],
    watch: Callable[[int], None],
) -> list[dict[str, Any]]:
    """A line of `path` for each item; what a killed run has written is kept.

    work: items -> their lines.
    """
    whole = list(read_lines(path))
    with atomic_file(path) as file:
        file.writelines(raw for raw, _ in whole)
    lines = [line for _, line in whole]
    watch(len(lines))
    for start in range(len(lines), len(items), AT_ONCE):
        part = items[start : start + AT_ONCE]
        new = work(part)
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in new))
        lines += new
        watch(len(part))
    return lines


def reply_as(prompt: Any, text: str) -> Any:
    """An answer as its prompt was asked: a text to a text, a turn to a conversation."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def each_answer(path: Path, most: int | None = None) -> Iterator[tuple[str, Any, str]]:
    """(id, prompt, answer) of each answer in a file of stage `sample`, `most` for each prompt."""
    for _, line in read_lines(path):
        for number, text in enumerate(line["responses"][:most]):
            yield f"{line['id']}/{number}", line["columns"]["prompt"], text


def revise(
    folder: Path,
    answers: Path,
    config: JudgeConfig,
    author: str,
    law: Constitution,
    how: Revising,
    seed: int,
    watch: Callable[[int], None],
) -> list[str]:
    """`revisions.jsonl`: a row for each round of each answer, with what it was made of.

    Also `final.jsonl` (prompt and last revision), `first.jsonl` (the first revision preferred to
    the answer, by construction) and `facts.json`. An answer in one of whose rounds the critic
    failed is left out of both, and counted. author: what the rows call the critic.
    """
    items = list(each_answer(answers, how.num_answers))
    with Judge(config, cache=folder / ANSWERS) as critic:
        chains = in_batches(
            folder / "chains.jsonl",
            items,
            lambda part: revise_batch(part, critic, author, law, how, seed),
            watch,
        )
    return write_revised(folder, chains)


def write_revised(folder: Path, chains: Sequence[Mapping[str, Any]]) -> list[str]:
    """The files of stage `revise` from its chains; LaurelError where none is whole."""
    rounds = [
        {"id": one["id"], "prompt": one["prompt"], **row} for one in chains for row in one["rounds"]
    ]
    good = [one for one in chains if one["status"] == "ok"]
    if not good:
        bad = next((row["reason"] for row in rounds if row["reason"]), "there was none")
        raise LaurelError(f"no answer could be revised: {bad}", where="stage revise")
    write_rows(folder / "revisions.jsonl", rounds)
    write_rows(folder / "final.jsonl", [shown(one, one["rounds"][-1]["after"]) for one in good])
    write_rows(folder / "first.jsonl", [pair for one in good if (pair := by_construction(one))])
    facts = {
        "answers": len(chains),
        "revised": len(good),
        "failed": len(chains) - len(good),
        "unchanged": sum(one["first"] == one["rounds"][-1]["after"] for one in good),
        "principles": dict(sorted(Counter(row["principle"] for row in rounds).items())),
    }
    write_atomic(folder / "facts.json", json.dumps(facts) + "\n")
    return ["revisions.jsonl", "final.jsonl", "first.jsonl", "facts.json"]


def shown(chain: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A demonstration: what the prompt should have been answered."""
    return {"prompt": chain["prompt"], "completion": reply_as(chain["prompt"], text)}


def by_construction(chain: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first revision against the first answer: preferred unseen. None where they are equal."""
    prompt, first, after = chain["prompt"], chain["first"], chain["rounds"][0]["after"]
    if first == after:
        return None
    return {
        "prompt": prompt,
        "chosen": reply_as(prompt, after),
        "rejected": reply_as(prompt, first),
    }


def revise_batch(
    part: Sequence[tuple[str, Any, str]],
    critic: Judge,
    author: str,
    law: Constitution,
    how: Revising,
    seed: int,
) -> list[dict[str, Any]]:
    """The chains of some answers, round after round; a chain ends where the critic fails."""
    chains: list[dict[str, Any]] = [
        {"id": id, "prompt": prompt, "first": text, "status": "ok", "rounds": []}
        for id, prompt, text in part
    ]
    for turn in range(how.rounds):
        going = [one for one in chains if one["status"] == "ok"]
        rows = [round_of(one, law, turn, author, seed) for one in going]
        revise_round(critic, [one["prompt"] for one in going], rows, law, how)
        for one, row in zip(going, rows, strict=True):
            one["rounds"].append(row)
            one["status"] = row["status"]
    return chains


def revise_round(
    critic: Judge,
    prompts: Sequence[Any],
    rows: Sequence[dict[str, Any]],
    law: Constitution,
    how: Revising,
) -> None:
    """Have each row's critique written, and then its revision."""
    known = {one.id: one for one in law.principles}
    places = [
        (known[row["principle"]], spoken(prompt), row)
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    asks = [critique_messages(law, one, prompt, row["before"]) for one, prompt, row in places]
    say(critic, asks, rows, "critique", how.critique_tokens, how)
    asks = [
        revise_messages(law, one, prompt, row["before"], row["critique"])
        for one, prompt, row in places
    ]
    say(critic, asks, rows, "after", how.revision_tokens, how)


def round_of(
    chain: Mapping[str, Any], law: Constitution, turn: int, author: str, seed: int
) -> dict[str, Any]:
    """A row of a round before anything is said: the principle is drawn by prompt and round."""
    before = chain["rounds"][-1]["after"] if chain["rounds"] else chain["first"]
    dice = Random(sample_seed(seed, chain["id"], turn, 0))
    return {
        "round": turn + 1,
        "principle": dice.choice(law.about(HARM)).id,
        "before": before,
        "critique": "",
        "after": "",
        "status": "ok",
        "reason": "",
        "judge": author,
        "prompt_version": law.title,
        "seed": sample_seed(seed, chain["id"], turn, 1) % SEEDS,
    }


def say(
    critic: Judge,
    asks: Sequence[Any],
    rows: Sequence[dict[str, Any]],
    name: str,
    tokens: int,
    how: Revising,
) -> None:
    """Have a critique (`critique`) or a revision (`after`) written into each row.

    No answer, or an empty one, is a failure of the row.
    """
    wanted = [i for i, row in enumerate(rows) if row["status"] == "ok"]
    questions = [
        Ask(
            asks[i],
            seed=rows[i]["seed"] + (name == "after"),
            max_tokens=tokens,
            temperature=how.temperature,
            stop=tuple(how.stop),
            version=rows[i]["prompt_version"],
        )
        for i in wanted
    ]
    for i, reply in zip(wanted, critic.complete(questions), strict=True):
        said = reply.text.strip()
        rows[i][name] = said
        if reply.error or not said:
            rows[i]["status"] = "error"
            rows[i]["reason"] = reply.error or f"the {name} is empty"


def supervise(folder: Path, revised: Path, helpful: Sequence[Mapping[str, Any]]) -> list[str]:
    """`train.jsonl`: the last revisions and the helpful demonstrations, and how many of each."""
    final = [line for _, line in read_lines(revised)]
    rows = [
        *final,
        *({"prompt": row["prompt"], "completion": row["completion"]} for row in helpful),
    ]
    write_rows(folder / "train.jsonl", rows)
    facts = {"revisions": len(final), "helpful": len(helpful)}
    write_atomic(folder / "facts.json", json.dumps(facts) + "\n")
    return ["train.jsonl", "facts.json"]


def drawn_pairs(
    path: Path, principles: Sequence[Principle], how: Judging, seed: int, facts: dict[str, int]
) -> list[dict[str, Any]]:
    """The pairs of a file of answers, each with the principles that it is compared by.

    Both draws depend on the prompt only. Answers that are equal are no pair, and counted.
    """
    found: list[dict[str, Any]] = []
    for _, line in read_lines(path):
        dice = Random(sample_seed(seed, line["id"], 0, 1))
        every = list(combinations(range(len(line["responses"])), 2))
        count = min(how.pairs_per_prompt or len(every), len(every))
        for a, b in dice.sample(every, count):
            laws = dice.sample(list(principles), how.principles_per_pair)
            first, second = line["responses"][a], line["responses"][b]
            if first == second:
                facts["same"] += 1
                continue
            found.append(
                {
                    "id": f"{line['id']}/{a}-{b}",
                    "prompt": line["columns"]["prompt"],
                    "first": first,
                    "second": second,
                    "principles": laws,
                }
            )
    return found


def judge_pairs(
    folder: Path,
    pairs: Sequence[Mapping[str, Any]],
    config: JudgeConfig,
    author: str,
    how: Judging,
    more: Sequence[Mapping[str, Any]],
    facts: dict[str, int],
    watch: Callable[[int], None],
) -> list[str]:
    """`preferences.jsonl`: prompt, chosen, rejected, soft_label, and who said so by what.

    more: people's preferences, which follow. `verdicts.jsonl`: every answer of the judge. A pair of
    which one verdict is an error or cannot be read is dropped and counted, never a tie.
    """
    with Judge(config, cache=folder / ANSWERS) as judge:
        lines = in_batches(
            folder / "compared.jsonl",
            pairs,
            lambda part: judge_batch(part, judge, config, author, how),
            watch,
        )
    facts |= dict(sorted(Counter(f"by {name}" for pair in pairs for name in ids(pair)).items()))
    return write_judged(folder, pairs, lines, author, more, facts)


def write_judged(
    folder: Path,
    pairs: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    author: str,
    more: Sequence[Mapping[str, Any]],
    facts: dict[str, int],
) -> list[str]:
    """The files of stage `judge` from a line for each pair; LaurelError where none has a label."""
    rows = [
        preference(pair, line, author)
        for pair, line in zip(pairs, lines, strict=True)
        if line["soft_label"] is not None
    ]
    facts |= {"pairs": len(lines), "kept": len(rows), "dropped": len(lines) - len(rows)}
    facts["given"] = len(more)
    if not rows:
        bad = next((line["reason"] for line in lines if line["reason"]), "there was none")
        raise LaurelError(f"no pair could be judged: {bad}", where="stage judge")
    write_rows(folder / "preferences.jsonl", [*rows, *map(dict, more)])
    write_rows(folder / "verdicts.jsonl", [row for line in lines for row in line["verdicts"]])
    write_atomic(folder / "facts.json", json.dumps(facts) + "\n")
    return ["preferences.jsonl", "verdicts.jsonl", "facts.json"]


def ids(pair: Mapping[str, Any]) -> list[str]:
    """The ids of a pair's principles."""
    return [one.id for one in pair["principles"]]


def judge_batch(
    part: Sequence[Mapping[str, Any]],
    judge: Judge,
    config: JudgeConfig,
    author: str,
    how: Judging,
) -> list[dict[str, Any]]:
    """A line for each pair: the soft label, and every verdict."""
    asked = [
        Pair(
            f"{pair['id']}/{law.id}",
            pair["prompt"],
            pair["first"],
            pair["second"],
            principle=law.prefer,
        )
        for pair in part
        for law in pair["principles"]
    ]
    given = iter(judge.compare(asked))
    lines: list[dict[str, Any]] = []
    for pair in part:
        said = [next(given) for _ in pair["principles"]]
        bad = [one.reason for one in said if one.soft_label is None]
        labels = [
            clamped(one.soft_label, config, how) for one in said if one.soft_label is not None
        ]
        verdicts = [
            {**as_row(one.id, verdict), "principle": law.id, "judge": author}
            for one, law in zip(said, pair["principles"], strict=True)
            for verdict in one.verdicts
        ]
        label = None if bad else round(sum(labels) / len(labels), DIGITS)
        lines.append(
            {
                "id": pair["id"],
                "soft_label": label,
                "reason": bad[0] if bad else "",
                "verdicts": [rounded(row) for row in verdicts],
            }
        )
    return lines


def clamped(label: float, config: JudgeConfig, how: Judging) -> float:
    """P(the first is better), cut off where the judge reasons first and so is too sure.

    Bai et al. 2022, section 4.1: .4 to .6.
    """
    reasons = config.reasoning or any(read_judge(path).reasoning for path in config.panel)
    return min(max(label, how.clamp[0]), how.clamp[1]) if reasons else label


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """A verdict's row, its chances without a server's last bits."""
    names = ("chance", "missing_mass")
    return row | {name: round(row[name], DIGITS) for name in names if row[name] is not None}


def preference(pair: Mapping[str, Any], line: Mapping[str, Any], author: str) -> dict[str, Any]:
    """A row of our preference format, the likelier answer as chosen."""
    label, prompt = line["soft_label"], pair["prompt"]
    first = label >= 0.5
    better, worse = (pair["first"], pair["second"]) if first else (pair["second"], pair["first"])
    return {
        "prompt": prompt,
        "chosen": reply_as(prompt, better),
        "rejected": reply_as(prompt, worse),
        "soft_label": label if first else round(1 - label, DIGITS),
        "judge": author,
        "principles": ids(pair),
    }


def made_rows(name: str, model: str, seed: int) -> list[dict[str, Any]]:
    """The rows that FILE.py:function(model, seed) gives; its errors become a LaurelError."""
    path, _, attribute = name.rpartition(":")
    function = getattr(load_file(path, f"data `{name}`"), attribute, None)
    if not callable(function):
        what = f"`{path}` has no function `{attribute}`."
        raise UsageError(what, where=name, fix="Write FILE.py:function.")
    try:
        rows: Any = function(model=model, seed=seed)
        found = [dict(row) for row in rows]
    except Exception as error:
        raise LaurelError(f"raised {type(error).__name__}: {error}.", where=name) from error
    if not found:
        raise UsageError("it gave no rows.", where=name)
    return found
