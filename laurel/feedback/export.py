"""Votes into files that trainers read: preferences, single answers, rankings, or the votes themselves; each row says where it came from.

Every vote is by response, never by slot, so the order of showing is undone already. Only normal and product items leave the house, and
no repetition. A pair's votes are joined by the one-coin model over all its votes, in which an annotator is right with chance s_k:

    soft_label   P(chosen is better), its posterior; chosen is the response for which it is above 1/2
    weight       mean over the pair's voters of max(0, 2 s_k - 1): how far those people can be believed; a ranking's pairs share it
    margin       mean over the votes of 1 (better), .33 (slightly), 0 (tie), negative where the vote was for the other; at least 0

A vote of "tie" is no evidence. Where the posterior is 1/2 (all tied, or evenly split between equally reliable people) the pair is a tie:
left out and counted, or with ties="half" a row with soft_label 1/2. What the coordinator ruled stands instead of the votes: soft_label 1,
weight 1. Votes of people who withdrew are there only if their consent keeps them, and then without a pseudonym.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from laurel.core.errors import UsageError
from laurel.data.source import Row
from laurel.data.split import prompt_key
from laurel.data.write import write_rows
from laurel.feedback.audit import record
from laurel.feedback.store import Store
from laurel.feedback.tables import Annotator, Assignment, Batch, Item, Release, Ruling, Vote
from laurel.measure.annotators import one_coin

EXPORTED = ("normal", "product")
SLIGHTLY = 0.33
SIGN = {1: 1.0, 2: SLIGHTLY, 0: 0.0, 3: -SLIGHTLY, 4: -1.0}
"""What a rating says for the first response against the second."""
WITHDRAWN = "withdrawn"
COLUMNS = ("margin", "weight", "soft_label")


class Cast(NamedTuple):
    """A vote that holds, with who gave it and the sample it belongs to."""

    vote: Vote
    assignment: Assignment
    pseudonym: str
    person: int


@dataclass
class Rated:
    """An item with its votes (of every revision: `every`), and what the coordinator ruled."""

    item: Item
    batch: str
    votes: list[Cast] = field(default_factory=list)
    every: list[Cast] = field(default_factory=list)
    ruling: Ruling | None = None

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The messages; what the annotator saw as input stands behind the last one."""
        turns = [dict(turn) for turn in self.item.prompt]
        if self.item.input:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{self.item.input}"
        return turns

    def said(self, place: int) -> list[dict[str, str]]:
        """A response as messages."""
        response = self.item.responses[place]
        return response.source.get("messages") or [{"role": "assistant", "content": response.text}]

    def provenance(self, places: Sequence[int]) -> dict[str, Any]:
        """Where a row comes from: ids, models, people and what they were told."""
        shown = [self.item.responses[place] for place in places]
        return {
            "batch": self.batch, "item": self.item.id, "kind": self.item.kind,
            "candidates": [r.source.get("candidate", r.id) for r in shown], "models": [r.model for r in shown],
            "annotators": sorted({cast.pseudonym for cast in self.votes}), "votes": len(self.votes), "ruled": self.ruling is not None,
            "guidelines": sorted({cast.vote.guideline_id for cast in self.votes} - {None}), "source": self.item.source,
        }  # fmt: skip


class Opinion(NamedTuple):
    """What is known of two responses of an item: P(first better), belief in the voters, margin for the first."""

    first: float
    weight: float
    margin: float


@dataclass(frozen=True)
class Exported:
    """What left: the files, rows in them, the pairs that were ties, the items without (enough) votes, and the release's number."""

    files: tuple[Path, ...]
    rows: int
    ties: int
    unrated: int
    release: int


def export(
    store: Store,
    batches: str | Sequence[str],
    kind: str,
    out: str | Path,
    *,
    eval_share: float = 0.0,
    columns: Sequence[str] = COLUMNS,
    ties: str = "drop",
    least_votes: int = 1,
    revisions: bool = False,
    actor: str = "operator",
) -> Exported:
    """Write a file (.jsonl, .json, .csv, .parquet) of one or several batches; a release and a line of the audit log remember it.

    kind: a key of KINDS. eval_share: about this share of the prompts goes to OUT with `.eval` before its suffix, chosen by a hash of the
    prompt, so that none stands in both and no later export moves one. columns: which of margin, weight and soft_label preferences have.
    ties: drop or half. least_votes: items with fewer are left out. revisions: of votes, those that were changed later, too.
    In .csv a text that begins like a formula (= + - @) has a ' before it.
    """
    names = [batches] if isinstance(batches, str) else list(dict.fromkeys(batches))
    out = Path(out).expanduser()
    _check(kind, ties, eval_share, columns, out)
    with store.read() as session:
        rated = [one for name in names for one in gather(session, name)]
        enough = [one for one in rated if one.ruling is not None or len(one.votes) >= max(1, least_votes)]
        if not enough:
            raise UsageError("no item has (enough) votes to export.", where=", ".join(names), fix="Wait for votes, or lower least_votes.")
        made = Made(opinions(enough), tuple(columns), ties, revisions)
        rows = [row for one in enough for row in KINDS[kind](one, made)]
        people = sorted({cast.pseudonym for one in enough for cast in (one.every if revisions else one.votes)} - {WITHDRAWN})
    if not rows:
        raise UsageError("every pair is a tie; there is nothing to write.", where=", ".join(names), fix="ties=half writes them.")
    parts = {out: [row for row in rows if not _held(row, eval_share)]}
    if eval_share:
        parts[_eval_path(out)] = [row for row in rows if _held(row, eval_share)]
    if empty := [path.name for path, part in parts.items() if not part]:
        raise UsageError(f"no prompt falls into {empty[0]}: {len(rows)} rows.", where="eval_share", fix="Change the share.")
    release = _write(store, parts, kind, people, names, actor)
    return Exported(tuple(parts), len(rows), made.tied, len(rated) - len(enough), release)


def _check(kind: str, ties: str, eval_share: float, columns: Sequence[str], out: Path) -> None:
    if kind not in KINDS:
        raise UsageError(f"unknown kind `{kind}`.", where="kind", fix=f"Known: {', '.join(KINDS)}.")
    if ties not in ("drop", "half"):
        raise UsageError(f"unknown treatment of ties `{ties}`.", where="ties", fix="Known: drop, half.")
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise UsageError(f"unknown column `{unknown[0]}`.", where="columns", fix=f"Known: {', '.join(COLUMNS)}.")
    if ties == "half" and (kind != "preferences" or "soft_label" not in columns):
        raise UsageError("a tie can only be said by `soft_label`, in preferences.", where="ties", fix="Use ties=drop, or add the column.")
    if not 0 <= eval_share < 1:
        raise UsageError(f"{eval_share:g} is no share below 1.", where="eval_share", fix="Give 0.1 for a tenth of the prompts, 0 for none.")
    if out.parent != Path() and not out.parent.is_dir():
        raise UsageError("no such folder.", where=str(out.parent), fix="Make it first.")


def gather(session: Session, name: str) -> list[Rated]:
    """The items of a batch that may leave the house, with their votes: of each assignment the last one, and every one of them."""
    batch = session.scalar(select(Batch).where(Batch.name == name))
    if batch is None:
        known = ", ".join(session.scalars(select(Batch.name).order_by(Batch.id))) or "none yet"
        raise UsageError(f"there is no batch `{name}`.", where="batch", fix=f"There are: {known}.")
    wanted = Item.batch_id == batch.id, Item.kind.in_(EXPORTED)
    items = session.scalars(select(Item).where(*wanted).options(selectinload(Item.responses)).order_by(Item.place)).all()
    rated = {item.id: Rated(item, name) for item in items}
    if not rated:
        raise UsageError("it has only items that never leave the house: gold, attention, check, training.", where=f"batch {name}")
    given = (
        select(Vote, Assignment, Annotator.id, Annotator.pseudonym, Annotator.state)
        .join(Assignment, Vote.assignment_id == Assignment.id)
        .join(Annotator, Assignment.annotator_id == Annotator.id)
        .where(Assignment.batch_id == batch.id, Assignment.repeat == 0, Assignment.state == "submitted", Annotator.state != "erased")
        .order_by(Vote.assignment_id, Vote.revision)
    )
    last: dict[str, Cast] = {}
    for vote, assignment, person, pseudonym, state in session.execute(given):
        if assignment.item_id in rated:
            cast = Cast(vote, assignment, WITHDRAWN if state == "withdrawn" else pseudonym, person)
            rated[assignment.item_id].every.append(cast)
            last[assignment.id] = cast
    for cast in sorted(last.values(), key=lambda cast: cast.vote.id):
        rated[cast.assignment.item_id].votes.append(cast)
    for ruling in session.scalars(select(Ruling).where(Ruling.item_id.in_(select(Item.id).where(*wanted)))):
        if len(rated[ruling.item_id].item.responses) == 2:
            rated[ruling.item_id].ruling = ruling
    return list(rated.values())


def signed(vote: Vote, a: int, b: int) -> float:
    """What a vote says for place a against place b: 1 better, .33 slightly, 0 tie, negative the other way round. Ranks: 1 or -1."""
    if vote.ranking is not None:
        return float(np.sign(vote.ranking[b] - vote.ranking[a]))
    return SIGN[vote.rating or 0]


def opinions(rated: Sequence[Rated]) -> dict[tuple[str, int, int], Opinion]:
    """(item, a, b), a < b -> `Opinion`, from all the votes together. A pair about which nobody said more than "tie" is at 1/2.

    Which response is the first means nothing, so the model sees every vote twice, as it is and with the pair turned round: its prior is
    1/2 then, and turning a pair in the data turns its posterior and changes nothing else.
    """
    pairs = [(one, a, b) for one in rated for a, b in combinations(range(len(one.item.responses)), 2)]
    rows = [
        (n, cast.person, int(said < 0))
        for n, (one, a, b) in enumerate(pairs)
        for cast in one.votes
        if (said := signed(cast.vote, a, b)) != 0
    ]
    first, skill = dict[int, float](), dict[int, float]()
    if rows:
        turned = [(n + len(pairs), person, 1 - label) for n, person, label in rows]
        found = one_coin(rows + turned, classes=2, smoothing=2.0)
        first = dict(zip(found.items.tolist(), found.posterior[:, 0].tolist(), strict=True))
        skill = dict(zip(found.annotators.tolist(), found.skill.tolist(), strict=True))
    made = {}
    for n, (one, a, b) in enumerate(pairs):
        says = [signed(cast.vote, a, b) for cast in one.votes]
        trust = [max(0.0, 2 * skill.get(cast.person, 0.5) - 1) for cast in one.votes]
        if one.ruling is not None:
            side = SIGN[one.ruling.rating]
            made[one.item.id, a, b] = Opinion(0.5 + 0.5 * float(np.sign(side)), 1.0, side)
        else:
            mean = float(np.mean(says)) if says else 0.0
            made[one.item.id, a, b] = Opinion(first.get(n, 0.5), float(np.mean(trust)) if trust else 0.0, mean)
    return made


@dataclass
class Made:
    """What rows are made with, and the ties met on the way."""

    opinions: dict[tuple[str, int, int], Opinion]
    columns: tuple[str, ...]
    ties: str
    revisions: bool
    tied: int = 0

    def pair(self, one: Rated, a: int, b: int) -> tuple[int, int, Opinion] | None:
        """(chosen, rejected, what is known of them in this order); None for a tie."""
        first, weight, margin = self.opinions[one.item.id, a, b]
        if abs(first - 0.5) < 1e-9:
            self.tied += 1
            return (a, b, Opinion(0.5, weight, 0.0)) if self.ties == "half" else None
        chosen, rejected, better, by = (a, b, first, margin) if first > 0.5 else (b, a, 1 - first, -margin)
        return chosen, rejected, Opinion(better, weight, max(0.0, by))


def preferences(one: Rated, made: Made) -> list[dict[str, Any]]:
    """prompt, chosen, rejected as messages: a row for each pair; the C(K, 2) pairs of a ranking weigh 1/C(K, 2) each."""
    pairs = list(combinations(range(len(one.item.responses)), 2))
    rows = []
    for a, b in pairs:
        if (found := made.pair(one, a, b)) is not None:
            chosen, rejected, (better, weight, margin) = found
            values = {"margin": _short(margin), "weight": _short(weight / len(pairs)), "soft_label": _short(better)}
            rows.append(
                {"prompt": one.prompt, "chosen": one.said(chosen), "rejected": one.said(rejected),
                 **{name: values[name] for name in COLUMNS if name in made.columns}, "provenance": one.provenance((chosen, rejected))}
            )  # fmt: skip
    return rows


def unpaired(one: Rated, made: Made) -> list[dict[str, Any]]:
    """prompt, completion, label (KTO): of one response what most said, of a pair both sides, of a ranking the best and the worst."""
    count = len(one.item.responses)
    if count == 1:
        votes = sum(SIGN[cast.vote.rating or 0] for cast in one.votes)
        made.tied += not votes
        labels = {0: votes > 0} if votes else {}
    else:
        wins = [0.0] * count
        for a, b in combinations(range(count), 2):
            first = made.opinions[one.item.id, a, b].first
            wins[a], wins[b] = wins[a] + first, wins[b] + 1 - first
        order = sorted(range(count), key=lambda place: -wins[place])
        level = abs(wins[order[0]] - wins[order[-1]]) < 1e-9
        made.tied += level
        labels = {} if level else {order[0]: True, order[-1]: False}
    return [
        {"prompt": one.prompt, "completion": one.said(place), "label": label, "provenance": one.provenance((place,))}
        for place, label in labels.items()
    ]


def ranks(one: Rated, made: Made) -> list[dict[str, Any]]:
    """prompt, responses, ranks: by the sum of P(better) over the others; the pairs stay together and weigh 1/C(K, 2) each.

    `weight` is how far the voters can be believed; `pairs` lists (better, worse), which `reward_kwise` makes by itself.
    """
    count = len(one.item.responses)
    every = list(combinations(range(count), 2))
    if not every:
        return []
    wins = [0.0] * count
    for a, b in every:
        first = made.opinions[one.item.id, a, b].first
        wins[a], wins[b] = wins[a] + first, wins[b] + 1 - first
    levels = sorted({_short(win) for win in wins}, reverse=True)
    placed = [1 + levels.index(_short(win)) for win in wins]
    if len(levels) == 1:
        made.tied += 1
        return []
    better = [[a, b] if placed[a] < placed[b] else [b, a] for a, b in every if placed[a] != placed[b]]
    weight = _short(float(np.mean([made.opinions[one.item.id, a, b].weight for a, b in every])))
    return [
        {"prompt": one.prompt, "responses": [one.said(place) for place in range(count)], "ranks": placed,
         **({"weight": weight} if "weight" in made.columns else {}), "pairs": better, "pair_weight": 1 / len(every),
         "provenance": one.provenance(range(count))}
    ]  # fmt: skip


def votes(one: Rated, made: Made) -> list[dict[str, Any]]:
    """The votes as they were given, by place, with the order of the slots; what trainers do not need and researchers do."""
    rows = []
    for vote, assignment, pseudonym, _ in one.every if made.revisions else one.votes:
        rows.append(
            {"prompt": one.prompt, "responses": [one.said(place) for place in range(len(one.item.responses))],
             "rating": vote.rating, "ranking": vote.ranking, "scales": vote.scales, "rationale": vote.rationale,
             "annotator": pseudonym, "order": assignment.order, "revision": vote.revision, "active_ms": vote.active_ms,
             "pasted": vote.pasted, "given_at": vote.made_at, "guideline": vote.guideline_id, "sample": assignment.seq,
             "harm": one.item.harm, "provenance": one.provenance(range(len(one.item.responses)))}
        )  # fmt: skip
    return rows


KINDS: dict[str, Callable[[Rated, Made], list[dict[str, Any]]]] = {
    "preferences": preferences,
    "unpaired": unpaired,
    "ranks": ranks,
    "votes": votes,
}


def _held(row: dict[str, Any], share: float) -> bool:
    """Does the prompt belong to the held-out part? By its hash alone."""
    return bool(share) and int(prompt_key(Row(row, "", ""))[:13], 16) / 16**13 < share


def _eval_path(out: Path) -> Path:
    stem, dot, rest = out.name.partition(".")
    return out.with_name(f"{stem}.eval{dot}{rest}")


def _write(store: Store, parts: dict[Path, list[dict[str, Any]]], kind: str, people: list[str], names: list[str], actor: str) -> int:
    """Files and their release: first written aside, then remembered, then given their names, so that no file is out unremembered."""
    drafts = {path: path.with_name(f"{path.name.partition('.')[0]}.{os.getpid()}.part.{path.name.partition('.')[2]}") for path in parts}
    try:
        for path, draft in drafts.items():
            cells = (lambda row: {k: _cell(v) for k, v in row.items()}) if ".csv" in path.suffixes else (lambda row: row)
            write_rows([Row(cells(row), f"row {n}", str(n)) for n, row in enumerate(parts[path], 1)], draft)
        digest = hashlib.sha256(b"".join(draft.read_bytes() for draft in drafts.values())).hexdigest()
        with store.write() as session:
            paths = ", ".join(str(path.absolute()) for path in parts)
            release = Release(digest=digest, kind=kind, path=paths, pseudonyms=people, made_at=store.now())
            session.add(release)
            session.flush()
            rows = sum(map(len, parts.values()))
            record(session, actor, "export", f"release {release.id}", store.now(), kind=kind, batches=names, rows=rows, digest=digest)
        for path, draft in drafts.items():
            os.replace(draft, path)
        return release.id
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula has a ' before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _short(value: float) -> float:
    return round(value, 9)
