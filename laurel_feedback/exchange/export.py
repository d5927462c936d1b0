"""Votes into files that trainers read: preferences, single answers, rankings, or the votes.

Each row says where it came from.

Every vote is by response, never by slot, so the order of showing is undone already. Only normal and
product items leave the house, and no repetition. A pair's votes become one label with what all
votes of all pairs, and answers to gold, say of the people (`laurel_feedback.statistics.labels`):

    soft_label   P(a further annotator, who decides and is like those who voted, prefers
                 chosen), at least 1/2
    weight       mean of 1 - g over the people who decided, g the chance that one guesses;
                 a ranking's pairs share it
    margin       mean over the votes of 1 (better), .33 (slightly), 0 (tie), negative where
                 the vote was for the other; at least 0

and `votes_for`, `votes_against` and `ties` count the votes. Chosen is never the loser of a strict
majority of decisive votes; who gold shows to answer wrongly on purpose, or with the keys mistaken,
is left out of all this (`left_out` in the provenance). A vote of "tie" decides nothing. Where as
many people are for either side the more reliable ones decide; where they are alike, or all said
tie, the pair is a tie: left out and counted, or with ties="half" a row with soft_label 1/2. What
the coordinator ruled stands instead of the votes: soft_label 1, weight 1. Votes of people who
withdrew are there only if their consent keeps them, and then without a pseudonym.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from laurel.core.errors import UsageError
from laurel.data.source import Row
from laurel.data.split import prompt_key
from laurel.data.write import write_rows
from laurel.measure.preference_shares import HeldOut
from laurel_feedback.exchange.rows import (
    COLUMNS,
    KINDS,
    Cast,
    Made,
    Rated,
    left_out,
    opinions,
    said_by,
)
from laurel_feedback.statistics.labels import gold_of, labels
from laurel_feedback.store.audit import record
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, Assignment, Batch, Item, Release, Ruling, Vote

EXPORTED = ("normal", "product")
WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    The files, rows in them, the pairs that were ties, the items without (enough) votes, and the
    release's number.

    held_out: how well labels made just so foretell a vote they have not seen; None where no pair
    has three votes that decide, and for the kind `votes`, which has no labels.
    """

    files: tuple[Path, ...]
    rows: int
    ties: int
    unrated: int
    release: int
    held_out: HeldOut | None = None


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
    """Write a file (.jsonl, .json, .csv, .parquet) of one or several batches.

    A release and a line of the audit log remember it.

    kind: a key of KINDS. eval_share: about this share of the prompts goes to OUT with `.eval`
    before its suffix, chosen by a hash of the prompt, so that none stands in both and no later
    export moves one. columns: which of margin, weight and soft_label preferences have.
    ties: drop or half. least_votes: items with fewer are left out. revisions: of votes, those that
    were changed later, too. In .csv a text that begins like a formula (= + - @) has a ' before it.
    """
    names = [batches] if isinstance(batches, str) else list(dict.fromkeys(batches))
    out = Path(out).expanduser()
    _check(kind, ties, eval_share, columns, out)
    with store.read() as session:
        rated = [one for name in names for one in gather(session, name)]
        enough = [
            one for one in rated if one.ruling is not None or len(one.votes) >= max(1, least_votes)
        ]
        if not enough:
            raise UsageError(
                "no item has (enough) votes to export.",
                where=", ".join(names),
                fix="Wait for votes, or lower least_votes.",
            )
        gold = gold_of(session, names)
        found = labels(said_by(enough), gold)
        made = Made(
            opinions(enough, found), tuple(columns), ties, revisions, left_out(enough, gold)
        )
        rows = [row for one in enough for row in KINDS[kind](one, made)]
        people = sorted(
            {cast.pseudonym for one in enough for cast in (one.every if revisions else one.votes)}
            - {WITHDRAWN}
        )
    if not rows:
        out = (
            f", once the votes of {len(made.left_out)} people are left out whom gold speaks against"
            if made.left_out
            else ""
        )
        raise UsageError(
            f"every pair is a tie{out}; there is nothing to write.",
            where=", ".join(names),
            fix="ties=half writes them.",
        )
    parts = {out: [row for row in rows if not _held(row, eval_share)]}
    if eval_share:
        parts[_eval_path(out)] = [row for row in rows if _held(row, eval_share)]
    if empty := [path.name for path, part in parts.items() if not part]:
        raise UsageError(
            f"no prompt falls into {empty[0]}: {len(rows)} rows.",
            where="eval_share",
            fix="Change the share.",
        )
    release = _write(store, parts, kind, people, names, actor)
    scored = None if kind == "votes" else found.held_out()
    return Exported(tuple(parts), len(rows), made.tied, len(rated) - len(enough), release, scored)


def _check(kind: str, ties: str, eval_share: float, columns: Sequence[str], out: Path) -> None:
    if kind not in KINDS:
        raise UsageError(f"unknown kind `{kind}`.", where="kind", fix=f"Known: {', '.join(KINDS)}.")
    if ties not in ("drop", "half"):
        raise UsageError(
            f"unknown treatment of ties `{ties}`.", where="ties", fix="Known: drop, half."
        )
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise UsageError(
            f"unknown column `{unknown[0]}`.", where="columns", fix=f"Known: {', '.join(COLUMNS)}."
        )
    if ties == "half" and (kind != "preferences" or "soft_label" not in columns):
        raise UsageError(
            "a tie can only be said by `soft_label`, in preferences.",
            where="ties",
            fix="Use ties=drop, or add the column.",
        )
    if not 0 <= eval_share < 1:
        raise UsageError(
            f"{eval_share:g} is no share below 1.",
            where="eval_share",
            fix="Give 0.1 for a tenth of the prompts, 0 for none.",
        )
    if out.parent != Path() and not out.parent.is_dir():
        raise UsageError("no such folder.", where=str(out.parent), fix="Make it first.")


def gather(session: Session, name: str) -> list[Rated]:
    """The items of a batch that may be exported, with their votes.

    Of each assignment the last vote, and every one of them.
    """
    batch = session.scalar(select(Batch).where(Batch.name == name))
    if batch is None:
        known = ", ".join(session.scalars(select(Batch.name).order_by(Batch.id))) or "none yet"
        raise UsageError(f"there is no batch `{name}`.", where="batch", fix=f"There are: {known}.")
    wanted = Item.batch_id == batch.id, Item.kind.in_(EXPORTED)
    items = session.scalars(
        select(Item).where(*wanted).options(selectinload(Item.responses)).order_by(Item.place)
    ).all()
    rated = {item.id: Rated(item, name) for item in items}
    if not rated:
        raise UsageError(
            "it has only items that never leave the house: gold, attention, check, training.",
            where=f"batch {name}",
        )
    given = (
        select(Vote, Assignment, Annotator.id, Annotator.pseudonym, Annotator.state)
        .join(Assignment, Vote.assignment_id == Assignment.id)
        .join(Annotator, Assignment.annotator_id == Annotator.id)
        .where(
            Assignment.batch_id == batch.id,
            Assignment.repeat == 0,
            Assignment.state == "submitted",
            Annotator.state != "erased",
        )
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
    for ruling in session.scalars(
        select(Ruling).where(Ruling.item_id.in_(select(Item.id).where(*wanted)))
    ):
        if len(rated[ruling.item_id].item.responses) == 2:
            rated[ruling.item_id].ruling = ruling
    return list(rated.values())


def _held(row: dict[str, Any], share: float) -> bool:
    """Does the prompt belong to the held-out part? By its hash alone."""
    return bool(share) and int(prompt_key(Row(row, "", ""))[:13], 16) / 16**13 < share


def _eval_path(out: Path) -> Path:
    stem, dot, rest = out.name.partition(".")
    return out.with_name(f"{stem}.eval{dot}{rest}")


def _write(
    store: Store,
    parts: dict[Path, list[dict[str, Any]]],
    kind: str,
    people: list[str],
    names: list[str],
    actor: str,
) -> int:
    """Write the files and record their release.

    They are written under other names first, then recorded, then given their names, so that no file
    exists unrecorded.
    """
    drafts = {
        path: path.with_name(
            f"{path.name.partition('.')[0]}.{os.getpid()}.part.{path.name.partition('.')[2]}"
        )
        for path in parts
    }
    try:
        for path, draft in drafts.items():
            cells = (
                (lambda row: {k: _cell(v) for k, v in row.items()})
                if ".csv" in path.suffixes
                else (lambda row: row)
            )
            write_rows(
                [Row(cells(row), f"row {n}", str(n)) for n, row in enumerate(parts[path], 1)], draft
            )
        digest = hashlib.sha256(
            b"".join(draft.read_bytes() for draft in drafts.values())
        ).hexdigest()
        with store.write() as session:
            paths = ", ".join(str(path.absolute()) for path in parts)
            release = Release(
                digest=digest, kind=kind, path=paths, pseudonyms=people, made_at=store.now()
            )
            session.add(release)
            session.flush()
            rows = sum(map(len, parts.values()))
            record(
                session,
                actor,
                "export",
                f"release {release.id}",
                store.now(),
                kind=kind,
                batches=names,
                rows=rows,
                digest=digest,
            )
        for path, draft in drafts.items():
            os.replace(draft, path)
        return release.id
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula has a ' before it."""
    return (
        f"'{value}"
        if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
        else value
    )
