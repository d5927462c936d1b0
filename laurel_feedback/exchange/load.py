"""Files into a batch: preferences, completions of a run, LLMFAO, LLMBar, Argilla's records.

Rows are checked, faults tell file and line.

A batch, item or candidate keeps its name from one import to the next: ids are hashes of content.
Where the order of a file's answers says which is better (chosen before rejected, a ranking), they
are put in the order of their hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from laurel.core.errors import UsageError
from laurel.data.formats import is_messages, normalise
from laurel.data.read import read_records
from laurel.data.source import Row
from laurel_feedback.store.audit import record
from laurel_feedback.store.batch_settings import BatchSettings, checked_name
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, Batch, Item, Plan, Response

KINDS = ("normal", "gold", "attention", "check", "training")
ENDLESS = 10**6
"""Answers that an item with a known answer takes: gold, attention, check and training items."""
Record = tuple[str, dict[str, Any]]


MOST_RANKED = 12
"""Responses that an item may have."""


@dataclass
class ProposedItem:
    """An item as a file gives it.

    `responses` are texts, messages or {"text" or "messages", "model"}. `right` is a place among
    them.

    ordered: the order of the responses says which is better. `row` has what else the file says:
    kind, gold, explanation, harm, target.
    """

    where: str
    prompt: Any
    responses: list[Any]
    row: Mapping[str, Any] = field(default_factory=dict)
    right: int | None = None
    ordered: bool = False
    source: dict[str, Any] = field(default_factory=dict)
    plan: tuple[str, ...] = ()
    fault: str = ""
    """Why it cannot be an item, if it cannot."""


@dataclass(frozen=True)
class ImportResult:
    """What an import did: the batch's id, the items added, a line for each one left out."""

    batch: int
    items: int
    left_out: tuple[str, ...]


def import_file(
    store: Store,
    path: str | Path,
    batch: str,
    *,
    settings: BatchSettings | None = None,
    shape: str = "auto",
    kind: str = "",
    harm: Sequence[str] = (),
    pairs: int = 0,
    votes: str | Path | None = None,
    limit: int | None = None,
    actor: str = "operator",
) -> ImportResult:
    """Import a file into the batch of this name, which is made (a draft) where there is none.

    All rows, or none and an error.

    shape: a key of SHAPES, or auto: by the columns. kind, harm: for rows that do not say theirs.
    pairs: of each prompt with more than two answers take this many pairs, each an item of its own.
    votes: LLMFAO's table of votes; each item then wants as many votes as it had there, from the
    same workers. limit: the first so many items.
    """
    path, batch = Path(path).expanduser(), checked_name(batch)
    proposed = _read_items(path, shape, pairs, votes, limit)
    with store.write() as session:
        found = find_or_make_batch(session, batch, settings, store.now())
        count, left_out = _add_items(session, found, proposed, kind, harm, store.now())
        detail = {"file": path.name, "items": count, "left_out": len(left_out)}
        record(session, actor, "import", f"batch {batch}", store.now(), **detail)
        return ImportResult(found.id, count, tuple(left_out))


def _duplicate_message(item: Item, known: Mapping[str, str]) -> str:
    """Where the batch has this item already; "" where it has not."""
    place = known.get(item.content_hash)
    return f"the same as {place}" if place else ""


def _add_items(
    session: Session,
    batch: Batch,
    proposed: list[ProposedItem],
    kind: str,
    harm: Sequence[str],
    now: float,
) -> tuple[int, list[str]]:
    """(items added, a line for each that is left out)."""
    settings = BatchSettings.model_validate(batch.settings)
    place, known = _item_positions(session, batch.id)
    count, left_out = 0, []
    for one in proposed:
        item, responses, fault = checked_item(one, settings, kind=kind, harm=harm)
        if fault := fault or _duplicate_message(item, known):
            left_out.append(f"{one.where}: {fault}")
            continue
        known[item.content_hash] = one.where
        add_item(session, batch, item, responses, place + count)
        plan_item(session, item.id, one.plan, now)
        count += 1
    return count, left_out


def _read_items(
    path: Path, shape: str, pairs: int, votes: str | Path | None, limit: int | None
) -> list[ProposedItem]:
    """The items that a file holds."""
    for name, number, least in (("limit", limit, 1), ("pairs", pairs, 0)):
        if number is not None and number < least:
            raise UsageError(
                f"{number} is too few.", where=name, fix="Give 1 or more, or leave it out."
            )
    records = read_records(path)
    needed, parse = _detect_shape(*records[0]) if shape == "auto" else _shape_named(shape)
    found = list(parse(_require_columns(records, needed), path))
    if votes is not None:
        found = list(_plan_as_voted(found, Path(votes).expanduser()))
    if pairs:
        found = [one for whole in found for one in _sample_pairs(whole, pairs)]
    return found[:limit]


def _item_positions(session: Session, batch_id: int) -> tuple[int, dict[str, str]]:
    """The number of items in a batch, and content -> where it is."""
    rows = select(Item.content_hash, Item.place).where(Item.batch_id == batch_id)
    known = {digest: f"item {place} of the batch" for digest, place in session.execute(rows)}
    count = select(func.count()).select_from(Item).where(Item.batch_id == batch_id)
    return session.scalar(count) or 0, known


def find_or_make_batch(
    session: Session, name: str, settings: BatchSettings | None, now: float
) -> Batch:
    """The batch of this name, made as a draft if need be.

    Settings for one that has others already are refused.
    """
    found = session.scalar(select(Batch).where(Batch.name == name))
    if found is None:
        found = Batch(name=name, settings=(settings or BatchSettings()).model_dump(), made_at=now)
        session.add(found)
        session.flush()
    elif settings is not None and BatchSettings.model_validate(found.settings) != settings:
        raise UsageError(
            "this batch has other settings already.",
            where=f"batch {name}",
            fix="Leave them out, or name another batch.",
        )
    return found


def add_item(
    session: Session, batch: Batch, item: Item, responses: Sequence[Response], place: int
) -> None:
    """Put an item with its responses into a batch.

    Its id, and theirs, are made of the batch's name and the content.
    """
    item.id, item.batch_id, item.place = (
        canonical_digest(batch.name, item.content_hash)[:32],
        batch.id,
        place,
    )
    session.add(item)
    session.flush()
    for at, response in enumerate(responses):
        response.id, response.item_id, response.place = (
            canonical_digest(item.id, at)[:32],
            item.id,
            at,
        )
        session.add(response)
    session.flush()


def plan_item(session: Session, item_id: str, workers: Sequence[str], now: float) -> None:
    """Plan an item for these pseudonyms.

    Annotators who are new are made, without an invitation yet.
    """
    for pseudonym in workers:
        annotator = session.scalar(select(Annotator).where(Annotator.pseudonym == pseudonym))
        if annotator is None:
            annotator = Annotator(pseudonym=pseudonym, made_at=now)
            session.add(annotator)
            session.flush()
        session.add(Plan(item_id=item_id, annotator_id=annotator.id))


def checked_item(
    one: ProposedItem, settings: BatchSettings, *, kind: str = "", harm: Sequence[str] = ()
) -> tuple[Item, list[Response], str]:
    """An item and its responses, checked; and why it is left out, if it is: equal answers.

    A row that is wrong is a UsageError.
    """
    row, where = one.row, one.where
    kind = _item_kind(one, kind)
    prompt = messages_of(one.prompt, "user", where, "prompt")
    given = _optional_text(row, "input", where)
    answers = [
        _response_parts(answer, where, number) for number, answer in enumerate(one.responses, 1)
    ]
    names = [
        (canonical_digest(prompt, given, text, turns), model) for text, turns, model in answers
    ]
    right = _right_response(one, kind, len(answers))
    order = _distinct_positions(names, ordered=one.ordered)
    fault = _response_count_fault(one, len(order), settings)
    item = Item(
        kind=kind,
        prompt=prompt,
        input=given,
        **_harm_fields(one, harm),
        gold=_gold_position(right, names, order),
        explanation=_optional_text(row, "explanation", where),
        source=_item_source(one, kind, names),
        content_hash=_content_digest(kind, prompt, given, [names[at] for at in order]),
        target=_vote_target(row, settings, kind, where),
        live=0,
    )
    return item, [_make_response(answers[at], names[at][0]) for at in order], fault


def _harm_fields(one: ProposedItem, harm: Sequence[str]) -> dict[str, Any]:
    tags = _harm_kinds(one.row.get("harm") or list(harm), one.where)
    return {"harm": tags, "harmful": bool(tags)}


def _content_digest(kind: str, prompt: list[dict[str, str]], given: str, names: list[Any]) -> str:
    """Equal for items that are the same, in whatever order their responses are."""
    return canonical_digest(kind, prompt, given, sorted(names))


def _gold_position(right: int | None, names: list[tuple[str, str]], order: list[int]) -> int | None:
    """The place of the right response among those kept: of equal ones the first was."""
    return None if right is None else order.index(names.index(names[right]))


def _response_count_fault(one: ProposedItem, responses: int, settings: BatchSettings) -> str:
    """Why an item with so many different responses is left out; "" where it is not."""
    if one.fault:
        return one.fault
    if responses == 1 and len(one.responses) > 1:
        return "its responses are equal"
    _require_form_fits(responses, settings, one.where)
    return ""


def _optional_text(row: Mapping[str, Any], field: str, where: str) -> str:
    return _checked_text(row.get(field) or "", where, field)


def _item_kind(one: ProposedItem, usual: str) -> str:
    """The kind that the row says, else the usual one of the file."""
    kind = one.row.get("kind") or usual or "normal"
    if kind not in KINDS:
        known = f"Known: {', '.join(KINDS)}."
        raise UsageError(f"unknown kind `{kind}`.", where=one.where, fix=known)
    return kind


def _item_source(one: ProposedItem, kind: str, names: list[tuple[str, str]]) -> dict[str, Any]:
    """Where an item comes from, and which response the file preferred."""
    preferred = {}
    if one.right is not None and kind == "normal":
        preferred["preferred"] = names[one.right][0]
    return {"row": one.where, **preferred, **one.source}


def _distinct_positions(names: list[tuple[str, str]], *, ordered: bool) -> list[int]:
    """The places of the responses that differ; ordered: sorted, whatever order the file had."""
    first = [at for at, name in enumerate(names) if name not in names[:at]]
    return sorted(first, key=lambda at: names[at]) if ordered else first


def _vote_target(row: Mapping[str, Any], settings: BatchSettings, kind: str, where: str) -> int:
    """How many votes an item wants; of items with a known answer there are never enough."""
    target = row.get("target", settings.target_votes)
    if not isinstance(target, int) or isinstance(target, bool) or target < 1:
        raise UsageError(
            f"field `target`: expected a number of votes, found {target!r}.", where=where
        )
    return target if kind == "normal" else ENDLESS


def _make_response(answer: tuple[str, list[dict[str, str]], str], candidate: str) -> Response:
    text, messages, model = answer
    source: dict[str, Any] = {"candidate": candidate}
    if messages:
        source["messages"] = messages
    return Response(text=text, model=model, source=source)


def _right_response(one: ProposedItem, kind: str, count: int) -> int | None:
    """Which response is right, of an item that is not there to be rated; such a row must say so."""
    gold = one.row.get("gold", one.right)
    if kind == "normal" or one.fault:
        return None
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < count:
        what = (
            f"an item of kind {kind} says with `gold` which response is right, 0 to {count - 1};"
            f" found {gold!r}."
        )
        raise UsageError(what, where=one.where)
    return gold


def _require_form_fits(count: int, settings: BatchSettings, where: str) -> None:
    if settings.form == "rating" and count > 2:
        fix = "Give the batch the form `ranking`, or take pairs of them (--pairs)."
        raise UsageError(
            f"{count} responses, and the form `rating` shows two.", where=where, fix=fix
        )
    if settings.form == "ranking" and count < 2:
        raise UsageError(
            "one response cannot be ranked.", where=where, fix="Give the batch the form `rating`."
        )
    if count > MOST_RANKED:
        fix = "Give fewer, or take pairs of them (--pairs) into a batch of the form `rating`."
        raise UsageError(
            f"{count} responses, and nobody ranks more than {MOST_RANKED} with care.",
            where=where,
            fix=fix,
        )


def _response_parts(value: Any, where: str, number: int) -> tuple[str, list[Any], str]:
    """(text to show, messages where it is more than one, model) of a response."""
    field, model = f"response {number}", ""
    if isinstance(value, Mapping):
        model = _checked_text(value.get("model") or "", where, f"{field}'s model")
        value = value.get("text", value.get("messages"))
    if isinstance(value, str):
        return _checked_text(value, where, field), [], model
    turns = messages_of(value, "assistant", where, field)
    if len(turns) == 1 and turns[0]["role"] == "assistant":
        return turns[0]["content"], [], model
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns), turns, model


def messages_of(value: Any, role: str, where: str, field: str) -> list[dict[str, str]]:
    """A text as one message of `role`, or messages as they are (role and content).

    Anything else is refused.
    """
    if isinstance(value, str) and (value or role == "assistant"):
        return [{"role": role, "content": _checked_text(value, where, field)}]
    if not is_messages(value):
        raise UsageError(
            f"field `{field}`: expected text or messages {{role, content}}, found"
            f" {str(value)[:60]!r}.",
            where=where,
        )
    turns: Any = value  # messages, as is_messages has found
    return [
        {"role": turn["role"], "content": _checked_text(turn["content"], where, field)}
        for turn in turns
    ]


def _checked_text(value: Any, where: str, field: str) -> str:
    """A text that both databases can hold."""
    if not isinstance(value, str):
        raise UsageError(f"field `{field}`: expected text, found {str(value)[:60]!r}.", where=where)
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UsageError(
            f"field `{field}` holds a NUL or half a character, which no database keeps.",
            where=where,
            fix="Take it out.",
        )
    return value


def _harm_kinds(value: Any, where: str) -> list[str]:
    tags = [tag.strip() for tag in value.split(",")] if isinstance(value, str) else value
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
        raise UsageError(
            f"field `harm`: expected names of kinds of harm, found {str(value)[:60]!r}.",
            where=where,
        )
    return sorted(set(tags))


def canonical_digest(*parts: Any) -> str:
    """SHA-256 of the parts as canonical JSON."""
    return hashlib.sha256(
        json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()
    ).hexdigest()


def _sample_pairs(one: ProposedItem, count: int) -> list[ProposedItem]:
    """`count` of the pairs of an item's responses, chosen by a hash of prompt and places.

    An item of two stays as it is.
    """
    if len(one.responses) <= 2:
        return [one]
    if one.row.get("gold") is not None:
        raise UsageError(
            "an item that says which response is right is not taken apart.",
            where=one.where,
            fix="Leave --pairs out.",
        )
    every = sorted(
        combinations(range(len(one.responses)), 2),
        key=lambda pair: canonical_digest(one.prompt, pair),
    )
    return [
        ProposedItem(
            one.where,
            one.prompt,
            [one.responses[a], one.responses[b]],
            one.row,
            ordered=True,
            source=dict(one.source),
            plan=one.plan,
        )
        for a, b in every[:count]
    ]


def _plan_as_voted(proposed: Sequence[ProposedItem], path: Path) -> Iterator[ProposedItem]:
    """Each item for the workers who voted on it in LLMFAO's table, and for as many votes."""
    workers: dict[str, list[str]] = {}
    for where, row in read_records(path):
        if not {"id", "worker"} <= row.keys():
            raise UsageError("votes have the columns `id` and `worker`.", where=where)
        workers.setdefault(str(row["id"]), []).append(f"worker-{row['worker']}")
    for one in proposed:
        mine = workers.get(str(one.source.get("id")), [])
        if not mine:
            raise UsageError(
                "nobody voted on this item.",
                where=one.where,
                fix=f"Is {path.name} the table that belongs to it?",
            )
        if twice := [name for name, times in Counter(mine).items() if times > 1]:
            raise UsageError(
                f"{twice[0]} voted more than once on item {one.source['id']}.", where=str(path)
            )
        yield ProposedItem(
            one.where,
            one.prompt,
            one.responses,
            {**one.row, "target": len(mine)},
            source=one.source,
            plan=tuple(sorted(mine)),
        )


def _read_llmfao(records: Sequence[Record], path: Path) -> Iterator[ProposedItem]:
    """LLMFAO's pairs: text, result_x, result_y; names of models from models.jsonl beside the file.
    Training pairs say who is right.
    """
    models_file = path.with_name("models.jsonl")
    names = (
        {str(row["id"]): str(row["name"]) for _, row in read_records(models_file)}
        if models_file.exists()
        else {}
    )
    for where, row in records:
        answers = [
            {
                "text": row[f"result_{s}"],
                "model": names.get(str(row[f"model_{s}"]), str(row[f"model_{s}"])),
            }
            for s in "xy"
        ]
        more: dict[str, Any] = {}
        if "golden" in row:
            if row["golden"] not in ("left", "right", "tie"):
                raise UsageError(
                    f"field `golden`: expected left, right or tie, found {row['golden']!r}.",
                    where=where,
                )
            more = {
                "kind": "training",
                "gold": int(row["golden"] == "right"),
                "explanation": row.get("reason") or "",
            }
        fault = (
            "its right answer is a tie, and a training item has one that is right"
            if row.get("golden") == "tie"
            else ""
        )
        source = {"id": row["id"], "prompt": row.get("slug") or row.get("prompt")}
        yield ProposedItem(where, row["text"], answers, more, source=source, fault=fault)


def _read_llmbar(records: Sequence[Record], path: Path) -> Iterator[ProposedItem]:
    """LLMBar: gold items from input, output_1, output_2 and label.

    The label, 1 or 2, is the one that is right by the instruction.
    """
    for where, row in records:
        if str(row["label"]) not in ("1", "2"):
            raise UsageError(
                f"field `label`: expected 1 or 2, found {row['label']!r}.", where=where
            )
        more = {
            "kind": row.get("kind", "gold"),
            "gold": int(row["label"]) - 1,
            "explanation": row.get("explanation") or "",
        }
        yield ProposedItem(where, row["input"], [row["output_1"], row["output_2"]], more)


def _read_samples(records: Sequence[Record], path: Path) -> Iterator[ProposedItem]:
    """samples.jsonl of `laurel train`: the samples of one prompt in one step are an item."""
    groups: dict[tuple[Any, Any], list[Record]] = {}
    for where, row in records:
        groups.setdefault((row["step"], row["prompt_id"]), []).append((where, row))
    for (step, prompt_id), lines in groups.items():
        lines.sort(key=lambda line: line[1]["sample"])
        model = f"{lines[0][1].get('run', path.parent.name)} step {step}"
        answers = [{"text": row["completion"], "model": model} for _, row in lines]
        source = {
            "step": step,
            "prompt_id": prompt_id,
            "rewards": [row.get("reward") for _, row in lines],
        }
        yield ProposedItem(lines[0][0], lines[0][1]["prompt"], answers, source=source)


def _read_answers(records: Sequence[Record], path: Path) -> Iterator[ProposedItem]:
    """answers.jsonl of `laurel pipeline`: K answers of a prompt on each line."""
    for where, row in records:
        yield ProposedItem(
            where,
            row["columns"].get("prompt"),
            list(row["responses"]),
            source={"prompt_id": row["id"]},
        )


def _read_responses(records: Sequence[Record], path: Path) -> Iterator[ProposedItem]:
    """The plain shape: prompt and responses (texts, messages or {text, model}).

    With `ranks`, their order tells nothing.
    """
    for where, row in records:
        if not isinstance(row["responses"], list) or not row["responses"]:
            raise UsageError("field `responses`: expected a list of responses.", where=where)
        yield ProposedItem(where, row["prompt"], row["responses"], row, ordered="ranks" in row)


def _read_argilla(records: Sequence[Record], path: Path) -> Iterator[ProposedItem]:
    """Argilla's records: `fields` with an instruction (or prompt) and two or more responses.

    Or distilabel's list of generations.
    """
    for where, row in records:
        fields = row.get("fields") or row
        prompt = next(
            (fields[name] for name in ("prompt", "instruction", "question") if fields.get(name)),
            None,
        )
        starts = ("response", "generation", "completion", "output")
        answers = fields.get("generations") or [
            fields[name] for name in sorted(fields) if name.startswith(starts)
        ]
        if prompt is None or not isinstance(answers, list) or not answers:
            raise UsageError(
                "a record has an instruction (or prompt) and responses among its fields.",
                where=where,
            )
        models = row.get("generation_models") or [""] * len(answers)
        paired = [
            {"text": text, "model": model} for text, model in zip(answers, models, strict=True)
        ]
        yield ProposedItem(
            where,
            prompt,
            paired,
            {**(row.get("metadata") or {}), "kind": None, "gold": None},
            source={"id": row.get("id")},
        )


def _read_preferences(records: Sequence[Record], path: Path) -> Iterator[ProposedItem]:
    """Preferences: prompt, chosen, rejected, or HH's whole dialogues.

    What the file preferred is kept as `preferred` in the item's source.
    """
    for position, (where, row) in enumerate(records):
        columns = normalise(Row(row, where, str(position))).columns
        if not {"prompt", "chosen", "rejected"} <= columns.keys():
            raise UsageError(
                f"no preference: the columns are {', '.join(row)}.",
                where=where,
                fix="Needed: prompt, chosen, rejected.",
            )
        sides = [
            {"text" if isinstance(s, str) else "messages": s}
            for s in (columns["chosen"], columns["rejected"])
        ]
        yield ProposedItem(where, columns["prompt"], sides, columns, right=0, ordered=True)


Parser = Callable[[Sequence[Record], Path], Iterator[ProposedItem]]
SHAPES: dict[str, tuple[frozenset[str], Parser]] = {
    "llmfao": (frozenset({"text", "result_x", "result_y", "model_x", "model_y"}), _read_llmfao),
    "llmbar": (frozenset({"input", "output_1", "output_2", "label"}), _read_llmbar),
    "samples": (frozenset({"step", "prompt_id", "prompt", "completion", "sample"}), _read_samples),
    "answers": (frozenset({"id", "columns", "responses"}), _read_answers),
    "responses": (frozenset({"prompt", "responses"}), _read_responses),
    "argilla": (frozenset({"fields"}), _read_argilla),
    "distilabel": (frozenset({"generations"}), _read_argilla),
    "preferences": (frozenset({"chosen", "rejected"}), _read_preferences),
}
"""shape: (the columns by which it is known, how its records become items)."""


def _detect_shape(where: str, columns: Mapping[str, Any]) -> tuple[frozenset[str], Parser]:
    """The first shape whose columns the first record has."""
    for needed, parse in SHAPES.values():
        if needed <= columns.keys():
            return needed, parse
    known = "; ".join(
        f"{name}: {', '.join(sorted(needed))}" for name, (needed, _) in SHAPES.items()
    )
    raise UsageError(
        f"no shape that is known: the columns are {', '.join(columns)}.",
        where=where,
        fix=f"Known: {known}.",
    )


def _shape_named(shape: str) -> tuple[frozenset[str], Parser]:
    if shape not in SHAPES:
        raise UsageError(
            f"unknown shape `{shape}`.", where="shape", fix=f"Known: auto, {', '.join(SHAPES)}."
        )
    return SHAPES[shape]


def _require_columns(records: Sequence[Record], needed: frozenset[str]) -> Sequence[Record]:
    """The records; one without a column that its shape needs is refused."""
    for where, row in records:
        if missing := sorted(needed - row.keys()):
            raise UsageError(
                f"column `{missing[0]}` is missing; this row has {', '.join(row)}.", where=where
            )
    return records
