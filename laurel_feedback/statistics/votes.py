"""Votes as the statistics take them: by response, with the slot as a covariate.

From the store, or from LLMFAO's and MT-Bench's files.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from laurel.core.errors import UsageError
from laurel.measure.agreement import in_alphabetical_order
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import (
    Annotator,
    Assignment,
    Batch,
    Dispute,
    Item,
    Response,
    Verdict,
    Vote,
)

COUNTED = ("normal", "product")
"""Kinds of items whose votes are opinions.

The others have a right answer and measure the annotator.
"""
LEVELS = {1: 1.0, 2: 2.0, 0: 2.5, 3: 3.0, 4: 4.0}
"""Ratings on one scale from "the first is better" to "the second is better", a tie in its middle.
"""


@dataclass(frozen=True, slots=True)
class Ballot:
    """The last answer to one assignment.

    `rating` and `ranking` are by place, as stored; `order` is the places slot by slot as shown.

    models, lengths: of each response by place, "" and words. words: to read in all. seconds: at
    work; None: not known.
    """

    item: str
    annotator: str
    order: tuple[int, ...]
    rating: int | None = None
    ranking: tuple[int, ...] | None = None
    models: tuple[str, ...] = ("", "")
    lengths: tuple[int, ...] = (0, 0)
    words: int = 0
    seconds: float | None = None
    pasted: float | None = None
    kind: str = "normal"
    gold: int | None = None
    repeat: int = 0
    made_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """One pair of responses in one ballot.

    A ranking of K holds K(K-1)/2 of weight 1 / (K(K-1)/2) each.

    label: a (the response with the lower place), tie or b. slot: left, tie or right. level: see
    `LEVELS`; None in a ranking.
    """

    unit: tuple[str, int, int]
    annotator: str
    label: str
    slot: str
    level: float | None
    models: tuple[str, str]
    lengths: tuple[int, int]
    weight: float = 1.0

    @property
    def longer(self) -> bool | None:
        """Did the longer response win? None: a tie, or equal lengths."""
        if self.label == "tie" or self.lengths[0] == self.lengths[1]:
            return None
        return (self.label == "a") == (self.lengths[0] > self.lengths[1])


@dataclass(frozen=True, slots=True)
class JudgeAnswer:
    """A model's answer about an item.

    status is a or b (the first or the second as shown), tie, inconsistent, invalid or error.
    """

    item: str
    status: str
    order: tuple[int, ...] = (0, 1)
    """Empty: not known, and the status is about responses."""


@dataclass(frozen=True)
class Poll:
    """What is analysed together: a batch, or a published set of votes.

    `judges`: the answers of each model that judged the same items.
    """

    name: str
    ballots: Sequence[Ballot]
    judges: dict[str, list[JudgeAnswer]] = field(default_factory=dict)
    settings: BatchSettings | None = None
    notes: tuple[str, ...] = ()
    models: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The models of each item's responses, rated or not."""
    prompts: dict[str, str] = field(default_factory=dict)
    """What each item asks, where it is known: items of one prompt are not independent."""
    lengths: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Words of each item's responses, rated or not."""
    checks: dict[str, str] = field(default_factory=dict)
    """Of spot checks of a judge: the name of the pair that was judged, and of the item here."""

    @cached_property
    def counted(self) -> list[Ballot]:
        """Opinions: no repeats, no items with a right answer."""
        return [b for b in self.ballots if b.kind in COUNTED and not b.repeat]

    @cached_property
    def choices(self) -> list[Choice]:
        """See `Choice`; in the order given."""
        return [choice for ballot in self.counted for choice in choices_of(ballot)]

    @cached_property
    def labels(self) -> dict[tuple[str, int, int], list[str]]:
        """The labels of each pair of responses."""
        found: dict[tuple[str, int, int], list[str]] = defaultdict(list)
        for choice in self.choices:
            found[choice.unit].append(choice.label)
        return dict(found)


def choices_of(ballot: Ballot) -> list[Choice]:
    """The pairs in a ballot; none in a thumb for a single answer."""
    count = len(ballot.order)
    if count < 2:
        return []
    if ballot.rating is not None:
        return [_choice(ballot, 0, 1, label_of(ballot.rating), LEVELS[ballot.rating], 1.0)]
    ranks = ballot.ranking
    if ranks is None:
        return []
    pairs = list(combinations(range(count), 2))
    labels = [
        "a" if ranks[i] < ranks[j] else "b" if ranks[i] > ranks[j] else "tie" for i, j in pairs
    ]
    return [
        _choice(ballot, i, j, label, None, 1 / len(pairs))
        for (i, j), label in zip(pairs, labels, strict=True)
    ]


def label_of(rating: int) -> str:
    """1 and 2 are for the first response, 3 and 4 for the second, 0 for neither."""
    return "tie" if rating == 0 else "a" if rating <= 2 else "b"


def _choice(
    ballot: Ballot, i: int, j: int, label: str, level: float | None, weight: float
) -> Choice:
    first = ballot.order.index(i) < ballot.order.index(j)
    slot = "tie" if label == "tie" else "left" if (label == "a") == first else "right"
    models, lengths = (ballot.models[i], ballot.models[j]), (ballot.lengths[i], ballot.lengths[j])
    return Choice(
        (ballot.item, i, j), ballot.annotator, label, slot, level, models, lengths, weight
    )


def batch_poll(store: Store, batch_id: int) -> Poll:
    """A batch's votes, the last revision of each, in the order they were first given."""
    with store.read() as session:
        batch = session.get(Batch, batch_id)
        if batch is None:
            raise UsageError(
                f"there is no batch {batch_id}.", where="batch", fix="The overview lists them."
            )
        items = _items(session, batch_id)
        return Poll(
            batch.name,
            _ballots(session, batch_id, items),
            _verdicts(session, batch_id),
            BatchSettings.model_validate(batch.settings),
            models={name: item.models for name, item in items.items() if item.models},
            prompts={name: item.prompt for name, item in items.items()},
            lengths={name: item.lengths for name, item in items.items()},
            checks={item.check: name for name, item in items.items() if item.check},
        )


def batch_polls(address: str) -> list[Poll]:
    """Every batch of a database; UsageError where there is none."""
    store = Store(address)
    try:
        with store.read() as session:
            batches = list(session.scalars(select(Batch.id).order_by(Batch.id)))
        if not batches:
            fix = "Bring votes or items in: laurel feedback import."
            raise UsageError("this database has no batch.", where=store.shown, fix=fix)
        return [batch_poll(store, batch) for batch in batches]
    finally:
        store.close()


class _Item(NamedTuple):
    """What a ballot says of its item: its kind, the words to read, and of each response the model
    and the words.
    """

    kind: str
    gold: int | None
    words: int
    models: tuple[str, ...]
    lengths: tuple[int, ...]
    prompt: str
    check: str


def _items(session: Session, batch_id: int) -> dict[str, _Item]:
    models: dict[str, list[str]] = defaultdict(list)
    lengths: dict[str, list[int]] = defaultdict(list)
    texts = (
        select(Response.item_id, Response.model, Response.text)
        .join(Item)
        .where(Item.batch_id == batch_id)
    )
    for item, model, text in session.execute(texts.order_by(Response.item_id, Response.place)):
        models[item].append(model)
        lengths[item].append(len(text.split()))
    columns = (Item.id, Item.kind, Item.gold, Item.prompt, Item.source)
    rows = select(*columns).where(Item.batch_id == batch_id)
    return {
        name: _Item(
            kind,
            gold,
            sum(lengths[name]) + sum(len(str(m.get("content", "")).split()) for m in prompt),
            tuple(models[name]),
            tuple(lengths[name]),
            json.dumps(prompt),
            str(source.get("spot check", "")),
        )
        for name, kind, gold, prompt, source in session.execute(rows)
    }


def _ballots(session: Session, batch_id: int, items: dict[str, _Item]) -> list[Ballot]:
    votes = (
        select(
            Vote.assignment_id,
            Vote.rating,
            Vote.ranking,
            Vote.active_ms,
            Vote.pasted,
            Vote.made_at,
            Assignment.item_id,
            Assignment.order,
            Assignment.repeat,
            Annotator.pseudonym,
        )
        .join(Assignment, Vote.assignment_id == Assignment.id)
        .join(Annotator, Assignment.annotator_id == Annotator.id)
        .where(Assignment.batch_id == batch_id, Assignment.state == "submitted")
        .order_by(Vote.id)
    )
    disputes = select(Dispute.assignment_id).where(Dispute.state == "upheld")
    upheld = set(session.scalars(disputes))  # such an answer is no mistake
    ballots: dict[str, Ballot] = {}
    for row in session.execute(votes):
        item = items[row.item_id]
        gold = None if row.assignment_id in upheld else item.gold
        ballots[row.assignment_id] = _ballot(row, item, gold)
    return list(ballots.values())


def _ballot(row: Any, item: _Item, gold: int | None) -> Ballot:
    return Ballot(
        row.item_id,
        row.pseudonym,
        tuple(row.order),
        row.rating,
        tuple(row.ranking) if row.ranking else None,
        item.models,
        item.lengths,
        item.words,
        row.active_ms / 1000 if row.active_ms else None,
        row.pasted,
        item.kind,
        gold,
        row.repeat,
        row.made_at,
    )


def _verdicts(session: Session, batch_id: int) -> dict[str, list[JudgeAnswer]]:
    """judge -> its verdicts on the batch's items."""
    judges: dict[str, list[JudgeAnswer]] = defaultdict(list)
    verdicts = (
        select(Verdict.item_id, Verdict.judge, Verdict.status, Verdict.order)
        .join(Item)
        .where(Item.batch_id == batch_id)
    )
    for row in session.execute(verdicts.order_by(Verdict.id)):
        judges[row.judge].append(JudgeAnswer(row.item_id, row.status, tuple(row.order)))
    return dict(judges)


def timed_poll(store: Store, batch_id: int) -> Poll:
    """A batch's votes with annotator and time alone: all that pay needs, and fast to read."""
    with store.read() as session:
        batch = session.get(Batch, batch_id)
        if batch is None:
            raise UsageError(
                f"there is no batch {batch_id}.", where="batch", fix="The overview lists them."
            )
        votes = (
            select(Vote.assignment_id, Vote.active_ms, Annotator.pseudonym)
            .join(Assignment, Vote.assignment_id == Assignment.id)
            .join(Annotator, Assignment.annotator_id == Annotator.id)
            .where(Assignment.batch_id == batch_id, Assignment.state == "submitted")
            .order_by(Vote.id)
        )
        last = {
            name: Ballot("", who, (), seconds=spent / 1000 if spent else None)
            for name, spent, who in session.execute(votes)
        }
        return Poll(
            batch.name, list(last.values()), {}, BatchSettings.model_validate(batch.settings)
        )


def file_polls(path: Path) -> list[Poll]:
    """The polls in a folder of LLMFAO or MT-Bench, or in one file of either.

    Anything else is refused.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / "crowd-comparisons.csv").is_file():
        return [read_llmfao(folder)]
    if (folder / "human.jsonl").is_file():
        return read_mtbench(folder)
    fix = (
        "Give a laurel feedback database, or a folder with crowd-comparisons.csv (LLMFAO) or"
        " human.jsonl (MT-Bench)."
    )
    raise UsageError("there are no votes here that laurel knows.", where=str(path), fix=fix)


def read_llmfao(folder: Path) -> Poll:
    """Read LLMFAO's crowd-comparisons.csv (id, left, right, winner, worker).

    pairs-crowd.jsonl and the models' own verdicts are read too where they exist.
    """
    pairs = {str(row["id"]): row for row in _jsonl(folder / "pairs-crowd.jsonl", optional=True)}
    prompts: dict[str, str] = {}
    ballots = []
    for row in _csv(folder / "crowd-comparisons.csv", ("id", "left", "right", "winner", "worker")):
        pair = pairs.get(row["id"], {})
        lengths = tuple(len(str(pair.get(name) or "").split()) for name in ("result_x", "result_y"))
        words = sum(lengths) + len(str(pair.get("text", "")).split())
        prompts[row["id"]] = str(pair.get("prompt", row.get("prompt", row["id"])))
        rating = _rating(
            row["winner"], {"left": 1, "right": 4, "tie": 0}, folder / "crowd-comparisons.csv"
        )
        ballots.append(
            Ballot(
                row["id"],
                row["worker"],
                (0, 1),
                rating,
                None,
                (row["left"], row["right"]),
                lengths,
                words,
            )
        )
    files = {"GPT-4": "gpt4-crowd-comparisons.csv", "GPT-3.5": "gpt3-crowd-comparisons.csv"}
    judges = {
        name: _llmfao_verdicts(folder / file)
        for name, file in files.items()
        if (folder / file).is_file()
    }
    return Poll("LLMFAO", ballots, judges, prompts=prompts)


def _llmfao_verdicts(path: Path) -> list[JudgeAnswer]:
    status = {"left": "a", "right": "b", "tie": "tie"}
    rows = _csv(path, ("id", "winner"))
    return [JudgeAnswer(row["id"], status.get(row["winner"], "invalid")) for row in rows]


MTBENCH = ("GPT-4 with a person", 0.66, 0.85), ("a person with a person", 0.63, 0.81)
"""What Zheng et al. 2023 print for the first turn, with ties and without.

arXiv:2306.05685, table 5.
"""


def read_mtbench(folder: Path) -> list[Poll]:
    """human.jsonl and gpt4_pair.jsonl, one poll for each turn; (x, y) and (y, x) are one item.

    The authors' own votes are left out.
    """
    polls: dict[str, tuple[list[Ballot], list[JudgeAnswer], list[str]]] = defaultdict(
        lambda: ([], [], [])
    )
    for file, human in (("human.jsonl", True), ("gpt4_pair.jsonl", False)):
        for row in _jsonl(folder / file, optional=not human):
            first, second, label, item, turn = _mtbench_row(row, folder / file)
            ballots, judged, left_out = polls[turn]
            who = str(row["judge"])
            if not human:
                status = "inconsistent" if "inconsistent" in row["winner"] else label
                judged.append(JudgeAnswer(item, status, ()))
            elif who.startswith("author"):
                left_out.append(who)
            else:
                order = (0, 1) if first == row["model_a"] else (1, 0)
                rating = {"a": 1, "b": 4, "tie": 0}[label]
                ballots.append(Ballot(item, who, order, rating, None, (first, second)))
    return [
        Poll(
            f"MT-Bench, {turn}",
            ballots,
            {"GPT-4": judged} if judged else {},
            None,
            (f"{len(left_out)} votes of the paper's authors are left out.", *MTBENCH_NOTES),
        )
        for turn, (ballots, judged, left_out) in sorted(polls.items())
    ]


MTBENCH_NOTES = (
    "GPT-4 was asked in both orders; where its answers differ it says tie here, as in the paper.",
    "model_a counts as shown first.",
)


def _mtbench_row(row: dict[str, Any], path: Path) -> tuple[str, str, str, str, str]:
    """(first model, second, label, item, turn) of a row, the models in a fixed order."""
    try:
        winner = row["winner"]
        label = winner if winner.startswith("tie") else {"model_a": "a", "model_b": "b"}[winner]
        first, second, label = in_alphabetical_order(row["model_a"], row["model_b"], label)
        row["judge"]
        return first, second, label, f"{row['question_id']}:{first}:{second}", f"turn {row['turn']}"
    except (KeyError, AttributeError) as error:
        fix = (
            "A row has question_id, turn, model_a, model_b, judge and winner: model_a,"
            " model_b or tie."
        )
        raise UsageError(f"this row is not MT-Bench's: {row}", where=str(path), fix=fix) from error


def _rating(word: str, known: dict[str, int], path: Path) -> int:
    if word not in known:
        raise UsageError(
            f"`{word}` is no winner; there are {', '.join(known)}.",
            where=str(path),
            fix="Mend the row.",
        )
    return known[word]


def _csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise UsageError(
                f"the columns {', '.join(sorted(missing))} are missing.",
                where=str(path),
                fix="Is this the right file?",
            )
        return list(reader)


def _jsonl(path: Path, *, optional: bool = False) -> Iterator[dict[str, Any]]:
    if optional and not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise UsageError(
                        f"this line is no JSON: {error}",
                        where=f"{path}:{number}",
                        fix="Mend the line.",
                    ) from error
