"""x ~ data: rows as groups of samples that nobody had to draw.

Demonstrations, preference pairs, answers labelled good or bad.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.sample import Group, Key, Message, Sample
from laurel.data.source import Row
from laurel.model.chat import Supervised, encode_supervised
from laurel.model.policy import Policy
from laurel.model.rows import encode_answers


def demonstrations(
    policy: Policy,
    rows: Sequence[Row],
    *,
    run: str,
    step: int,
    train_on: str | None,
    max_length: int | None,
) -> list[Group]:
    """One group per row, holding the row itself as a sample with reward 1.

    The completion starts at the first supervised token, so nothing before it costs anything in the
    head.
    """
    return [
        as_group(row, [encode_row(policy, row.columns, train_on, max_length)], (1.0,), run, step)
        for row in rows
    ]


def logged(
    policy: Policy,
    rows: Sequence[Row],
    *,
    run: str,
    step: int,
    train_on: str | None,
    max_length: int | None,
) -> list[Group]:
    """One group per row: its answer as a sample with the reward that was logged.

    For an answer cut at max_length, the logged reward is the return at the cut.
    """
    return [
        as_group(
            row,
            [encode_row(policy, row.columns, train_on, max_length)],
            (float(row.columns["reward"]),),
            run,
            step,
        )
        for row in rows
    ]


def rankings(
    policy: Policy,
    rows: Sequence[Row],
    *,
    run: str,
    step: int,
    train_on: str | None,
    max_length: int | None,
) -> list[Group]:
    """One group per row, a pair or K responses, with rewards that order the answers.

    A pair has w and -w; K responses -w for the best rank, -2 w for the next, and so on. w is the
    row's `weight`, the annotator's reliability (1).
    """
    groups = list[Group]()
    for row in rows:
        encoded = encode_answers(policy, row, train_on=train_on, max_length=max_length)
        groups.append(as_group(row, encoded, grades_of(row), run, step))
    return groups


def grades_of(row: Row) -> tuple[float, ...]:
    """The rewards that order a row's answers; only the order of its ranks counts."""
    w = weight_of(row)
    if "chosen" in row.columns:
        return w, -w
    ranks = row.columns.get("ranks", ())
    places = sorted(set(ranks))  # equal ranks are a tie
    return tuple(-w * (1 + places.index(rank)) for rank in ranks)


def graded(
    policy: Policy,
    rows: Sequence[Row],
    *,
    run: str,
    step: int,
    train_on: str | None,
    max_length: int | None,
) -> list[Group]:
    """One group per row: its answer, or its steps, as a sample that counts `weight` (1)."""
    groups = list[Group]()
    for row in rows:
        encoded = encode_answers(policy, row, train_on=train_on, max_length=max_length)
        groups.append(as_group(row, encoded, (weight_of(row),), run, step))
    return groups


def labelled(
    policy: Policy,
    rows: Sequence[Row],
    *,
    run: str,
    step: int,
    train_on: str | None,
    max_length: int | None,
    others: Sequence[Row] | None = None,
) -> list[Group]:
    """One group per row: its answer with reward w (good) or -w (bad), and another row's with 0.

    w is the row's `weight` (1). The second sample is another row's answer to this row's prompt: it
    measures how far the policy is from the reference where nobody judged, KTO's reference point.

    others: the rows whose answers they are, one per row (see `mismatched_rows`); None: each is the
    next row's; (): nobody's, the group is the row alone.
    """
    if others is None:
        others = mismatched_rows(rows, rows)
    groups = list[Group]()
    for n, row in enumerate(rows):
        paired = [{**row.columns, "completion": others[n].columns["completion"]}] if others else []
        encoded = [
            encode_row(policy, columns, train_on, max_length) for columns in (row.columns, *paired)
        ]
        w = weight_of(row) if row.columns["label"] else -weight_of(row)
        groups.append(as_group(row, encoded, (w, *(0.0 for _ in paired)), run, step))
    return groups


def weight_of(row: Row) -> float:
    """How much a row counts: its `weight`, or 1."""
    return float(row.columns.get("weight", 1.0))


def encode_row(
    policy: Policy, columns: Mapping[str, Any], train_on: str | None, max_length: int | None
) -> Supervised:
    """The tokens of a row's answer behind its prompt, and which of them are trained on."""
    return encode_supervised(policy.tokenizer, columns, train_on=train_on, max_length=max_length)


def as_group(
    row: Row, encoded: Sequence[Supervised], rewards: tuple[float, ...], run: str, step: int
) -> Group:
    """The answers of a row as the samples of a group, a reward each."""
    samples = tuple(
        as_sample(answer, Key(run, row.where, row.id, g, step)) for g, answer in enumerate(encoded)
    )
    return Group(row.id, row.columns, samples, rewards=rewards)


def mismatched_rows(
    rows: Sequence[Row], together: Sequence[Row], later: Sequence[Row] = ()
) -> list[Row]:
    """The row whose answer stands beside each row's prompt: the next one that asks something else.

    Looked for among the rows of the step, all of them whatever process they are on, from the row on
    and round their end; where they all ask the same, among those that come later. A row is never
    its own partner, even where a step crosses an epoch and has it twice.
    """
    place = {row.id: at for at, row in enumerate(together)}
    found = list[Row]()
    for row in rows:
        at = place[row.id]
        round_ = itertools.chain(together[at + 1 :], together[:at], later)
        other = next(
            (other for other in round_ if other.columns["prompt"] != row.columns["prompt"]), None
        )
        if other is None:
            what = "answers to other prompts are needed, and there is one prompt."
            raise UsageError(
                what, where="prompts_per_step", fix="At least 2, of rows that ask different things."
            )
        found.append(other)
    return found


def as_sample(encoded: Supervised, key: Key) -> Sample:
    """A supervised row as a Sample: ids up to the first target are the prompt.

    A row without a target is an error.
    """
    first = next((i for i, on in enumerate(encoded.mask) if on and i > 0), None)
    if first is None:
        raise UsageError(
            "no token of this row is supervised.",
            where=key.source,
            fix="Its answer is empty, or lies behind max_length: raise max_length or drop the row.",
        )
    ids = encoded.ids[first:]
    return Sample(
        key=key,
        prompt_ids=tuple(encoded.ids[:first]),
        completion_ids=tuple(ids),
        logps=(0.0,) * len(ids),
        loss_mask=tuple(encoded.mask[first:]),
        temperature=1.0,
        finish="eos",
        text=encoded.text,
        turns=(Message(role="assistant", content=encoded.text),),
    )
