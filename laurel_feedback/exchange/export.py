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
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from laurel.core.errors import UsageError
from laurel.data.confidence import PAIR_COLUMNS, SOFT_LABEL
from laurel.data.source import Row
from laurel.data.split import prompt_key
from laurel.data.write import write_rows
from laurel.measure.preference_shares import HeldOut
from laurel_feedback.exchange.rows import (
    KINDS,
    CastVote,
    RatedItem,
    RowSettings,
    distrusted_voters,
    pair_opinions,
    pair_votes,
)
from laurel_feedback.statistics.labels import estimate_labels, gold_answers_in_batches
from laurel_feedback.store.audit import record
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, Assignment, Batch, Item, Release, Ruling, Vote

EXPORTED = ("normal", "product")
WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class ExportResult:
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
    columns: Sequence[str] = PAIR_COLUMNS,
    ties: str = "drop",
    least_votes: int = 1,
    revisions: bool = False,
    actor: str = "operator",
) -> ExportResult:
    """Write a file (.jsonl, .json, .csv, .parquet) of one or several batches.

    A release and a line of the audit log remember it.

    kind: a key of KINDS. eval_share: about this share of the prompts goes to OUT with `.eval`
    before its suffix, chosen by a hash of the prompt, so that none stands in both and no later
    export moves one. columns: which of margin, weight and soft_label preferences have.
    ties: drop or half. least_votes: items with fewer are left out. revisions: of votes, those that
    were changed later, too. In .csv a text that begins like a formula (= + - @) has a ' before it.
    """
    names, out = _distinct_names(batches), Path(out).expanduser()
    _check_options(kind, ties, eval_share, columns, out)
    with store.read() as session:
        rated = [one for name in names for one in exportable_items(session, name)]
        enough = _with_enough_votes(rated, least_votes, names)
        gold = gold_answers_in_batches(session, names)
        found = estimate_labels(pair_votes(enough), gold)
        left = distrusted_voters(enough, gold)
        made = RowSettings(pair_opinions(enough, found), tuple(columns), ties, revisions, left)
        rows = list(chain.from_iterable(KINDS[kind](one, made) for one in enough))
        people = _voter_pseudonyms(enough, revisions)
    _require_rows(rows, made, names)
    parts = _split_held_out(rows, out, eval_share)
    release = _write(store, parts, kind, people, names, actor)
    scored = found.held_out() if kind != "votes" else None
    counts = len(rows), made.tied, len(rated) - len(enough)
    return ExportResult(tuple(parts), *counts, release, scored)


def _distinct_names(batches: str | Sequence[str]) -> list[str]:
    """The batches, each once."""
    return [batches] if isinstance(batches, str) else list(dict.fromkeys(batches))


def _split_held_out(
    rows: list[dict[str, Any]], out: Path, eval_share: float
) -> dict[Path, list[dict[str, Any]]]:
    """file -> its rows; UsageError where a file would have none."""
    parts = {out: [row for row in rows if not _is_held_out(row, eval_share)]}
    if eval_share:
        parts[_eval_path(out)] = [row for row in rows if _is_held_out(row, eval_share)]
    if empty := [path.name for path, part in parts.items() if not part]:
        what = f"no prompt falls into {empty[0]}: {len(rows)} rows."
        raise UsageError(what, where="eval_share", fix="Change the share.")
    return parts


def _with_enough_votes(
    rated: list[RatedItem], least_votes: int, names: list[str]
) -> list[RatedItem]:
    """The items with a ruling or so many votes; UsageError where there are none."""
    found = [
        one for one in rated if one.ruling is not None or len(one.votes) >= max(1, least_votes)
    ]
    if not found:
        raise UsageError(
            "no item has (enough) votes to export.",
            where=", ".join(names),
            fix="Wait for votes, or lower least_votes.",
        )
    return found


def _voter_pseudonyms(rated: list[RatedItem], revisions: bool) -> list[str]:
    """The pseudonyms of those who voted, but for people who withdrew."""
    casts = (cast for one in rated for cast in (one.every if revisions else one.votes))
    return sorted({cast.pseudonym for cast in casts} - {WITHDRAWN})


def _require_rows(rows: list[dict[str, Any]], made: RowSettings, names: list[str]) -> None:
    """UsageError where there is no row."""
    if rows:
        return
    left = ""
    if made.left_out:
        left = f", once the votes of {len(made.left_out)} people are left out whom gold speaks"
        left += " against"
    raise UsageError(
        f"every pair is a tie{left}; there is nothing to write.",
        where=", ".join(names),
        fix="ties=half writes them.",
    )


def _check_options(
    kind: str, ties: str, eval_share: float, columns: Sequence[str], out: Path
) -> None:
    if kind not in KINDS:
        raise UsageError(f"unknown kind `{kind}`.", where="kind", fix=f"Known: {', '.join(KINDS)}.")
    if ties not in ("drop", "half"):
        raise UsageError(
            f"unknown treatment of ties `{ties}`.", where="ties", fix="Known: drop, half."
        )
    if unknown := [name for name in columns if name not in PAIR_COLUMNS]:
        raise UsageError(
            f"unknown column `{unknown[0]}`.",
            where="columns",
            fix=f"Known: {', '.join(PAIR_COLUMNS)}.",
        )
    if ties == "half" and (kind != "preferences" or SOFT_LABEL not in columns):
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


def exportable_items(session: Session, name: str) -> list[RatedItem]:
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
    rated = {item.id: RatedItem(item, name) for item in items}
    if not rated:
        raise UsageError(
            "it has only items that never leave the house: gold, attention, check, training.",
            where=f"batch {name}",
        )
    _add_votes(session, batch.id, rated)
    in_batch = Ruling.item_id.in_(select(Item.id).where(*wanted))
    for ruling in session.scalars(select(Ruling).where(in_batch)):
        if len(rated[ruling.item_id].item.responses) == 2:
            rated[ruling.item_id].ruling = ruling
    return list(rated.values())


def _add_votes(session: Session, batch_id: int, rated: dict[str, RatedItem]) -> None:
    """Give the items their votes: every one, and of each assignment the last."""
    votes = (
        select(Vote, Assignment, Annotator.id, Annotator.pseudonym, Annotator.state)
        .join(Assignment, Vote.assignment_id == Assignment.id)
        .join(Annotator, Assignment.annotator_id == Annotator.id)
        .where(
            Assignment.batch_id == batch_id,
            Assignment.repeat == 0,
            Assignment.state == "submitted",
            Annotator.state != "erased",
        )
        .order_by(Vote.assignment_id, Vote.revision)
    )
    last: dict[str, CastVote] = {}
    for vote, assignment, person, pseudonym, state in session.execute(votes):
        if assignment.item_id in rated:
            cast = CastVote(
                vote, assignment, WITHDRAWN if state == "withdrawn" else pseudonym, person
            )
            rated[assignment.item_id].every.append(cast)
            last[assignment.id] = cast
    for cast in sorted(last.values(), key=lambda cast: cast.vote.id):
        rated[cast.assignment.item_id].votes.append(cast)


def _is_held_out(row: dict[str, Any], share: float) -> bool:
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
    drafts = {path: _unfinished_path(path) for path in parts}
    try:
        for path, draft in drafts.items():
            write_rows(_spreadsheet_rows(parts[path], path), draft)
        content = b"".join(draft.read_bytes() for draft in drafts.values())
        detail = {
            "kind": kind,
            "batches": names,
            "rows": sum(map(len, parts.values())),
            "digest": hashlib.sha256(content).hexdigest(),
        }
        with store.write() as session:
            release = Release(
                digest=detail["digest"],
                kind=kind,
                path=", ".join(str(path.absolute()) for path in parts),
                pseudonyms=people,
                made_at=store.now(),
            )
            session.add(release)
            session.flush()
            record(session, actor, "export", f"release {release.id}", store.now(), **detail)
        for path, draft in drafts.items():
            os.replace(draft, path)
        return release.id
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _unfinished_path(path: Path) -> Path:
    """The name under which a file is written first."""
    name, _, suffixes = path.name.partition(".")
    return path.with_name(f"{name}.{os.getpid()}.part.{suffixes}")


def _spreadsheet_rows(rows: list[dict[str, Any]], path: Path) -> list[Row]:
    """The rows as they are written; in .csv as cells of a spreadsheet."""
    if ".csv" in path.suffixes:
        rows = [{name: _escape_formula(value) for name, value in row.items()} for row in rows]
    return [Row(row, f"row {n}", str(n)) for n, row in enumerate(rows, 1)]


def _escape_formula(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula has a ' before it."""
    return (
        f"'{value}"
        if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
        else value
    )
