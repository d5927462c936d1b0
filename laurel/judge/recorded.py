"""Verdicts that exist already, told by what the files hold: published ones, and our own.

LLMBar, MT-Bench, FastChat's judgements, AlpacaEval, Chatbot Arena, `verdicts.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.files import read_json
from laurel.data.csv_table import Record
from laurel.data.read import SUFFIXES, read_records, suffix_of
from laurel.judge.published import (
    BATTLES,
    MTBENCH,
    Gathered,
    digest,
    named,
    read_alpaca,
    read_battles,
    read_fastchat,
    text_of,
)
from laurel.measure.judge_records import STATUSES, Judged, JudgedItem, PersonVote

MTBENCH_FILES = ("human.jsonl", "gpt4_pair.jsonl")
MTBENCH_JUDGES = {"gpt4_pair": "GPT-4"}
MTBENCH_NOTES = (
    "GPT-4 was asked in both orders; where its answers differ they count as a tie, as in the"
    " paper.",
)
LLMBAR = {"1": "a", "2": "b"}
KNOWN = (
    "Known are: a folder of LLMBar (dataset.json with swap_*.json, or evaluators/), of MT-Bench"
    " (human.jsonl, gpt4_pair.jsonl) or of FastChat (model_judgment), AlpacaEval's"
    " annotations.json, Chatbot Arena's rows (model_a, model_b, winner, judge), our verdicts.jsonl,"
    " LLMFAO's folder, a laurel feedback database."
)


def read_recorded(path: str | Path) -> list[Judged]:
    """The sources in a folder or a file: one for each subset of LLMBar and turn of MT-Bench.

    Errors: UsageError that names file and line, or what is known where nothing fits.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UsageError("there is no such file or folder.", where=str(path), fix=KNOWN)
    return _folder(path) if path.is_dir() else _file(path)


def _folder(path: Path) -> list[Judged]:
    subsets = [path] if (path / "dataset.json").is_file() else sorted(path.glob("*/dataset.json"))
    if subsets:
        return [read_llmbar(one if one.is_dir() else one.parent) for one in subsets]
    if any((path / name).is_file() for name in MTBENCH_FILES):
        return read_mtbench(path)
    games = [*path.glob("*_pair.jsonl"), *path.glob("model_judgment/*_pair.jsonl")]
    if games:
        return read_fastchat([row for one in sorted(games) for row in read_records(one)])
    for name in ("annotations.json", "verdicts.jsonl"):
        if (path / name).is_file():
            return _file(path / name)
    raise UsageError("there are no verdicts here that laurel knows.", where=str(path), fix=KNOWN)


def _file(path: Path) -> list[Judged]:
    if path.name in MTBENCH_FILES:
        return read_mtbench(path.parent, (path.name,))
    if path.name == "dataset.json":
        return [read_llmbar(path.parent)]
    if suffix_of(path)[0] not in SUFFIXES:
        raise UsageError("this file holds no verdicts.", where=str(path), fix=KNOWN)
    records = read_records(path)
    columns = set(records[0][1])
    if "g1_winner" in columns:
        return read_fastchat(records)
    if {"model_a", "model_b", "winner"} <= columns:
        return _named(path, read_battles(records, MTBENCH_JUDGES))
    if {"instruction", "generator_1"} <= columns or {"instruction", "preference"} <= columns:
        return read_alpaca(records)
    if {"id", "status"} <= columns:
        return [read_verdicts(path, records)]
    fix = f"Its first row has {', '.join(records[0][1])}. {KNOWN}"
    raise UsageError("these rows are no verdicts that laurel knows.", where=str(path), fix=fix)


def _named(path: Path, sources: list[Judged]) -> list[Judged]:
    """Sources by the name of the file that they come from."""
    return [
        replace(one, name=path.stem if one.name == BATTLES else f"{path.stem}, {one.name}")
        for one in sources
    ]


def read_mtbench(folder: Path, names: Sequence[str] = MTBENCH_FILES) -> list[Judged]:
    """MT-Bench's human.jsonl and gpt4_pair.jsonl, those that are there, beside what was printed."""
    there = [folder / name for name in names if (folder / name).is_file()]
    records = [record for path in there for record in read_records(path)]
    sources: list[Judged] = []
    for one in read_battles(records, MTBENCH_JUDGES):
        printed = MTBENCH if one.name == "turn 1" and len(there) == len(MTBENCH_FILES) else {}
        notes = (*one.notes, *(MTBENCH_NOTES if one.judges else ()))
        sources.append(replace(one, name=f"MT-Bench, {one.name}", published=printed, notes=notes))
    return sources


def read_llmbar(folder: Path) -> Judged:
    """One subset of LLMBar: dataset.json, and a judge's answers in both orders for each file.

    The files are swap_JUDGE.json, or evaluators/JUDGE/STRATEGY/result.json as in its repository. A
    winner is by response already, whatever was shown first. Zeng et al. 2023, arXiv:2310.07641.
    """
    source = Gathered(f"LLMBar, {folder.name}")
    rows = [row for _, row in read_records(folder / "dataset.json")]
    for k, (where, row) in enumerate(read_records(folder / "dataset.json")):
        texts = [text_of(row, column, where) for column in ("output_1", "output_2")]
        gold = named(text_of(row, "label", where), LLMBAR, "label", where)
        item = JudgedItem(
            f"{folder.name}/{k}",
            f"{folder.name}/{digest(text_of(row, 'input', where))}",
            lengths=(len(texts[0]), len(texts[1])),
            gold=gold,
            identical=texts[0] == texts[1],
        )
        source.item(item, where)
    files = {path.stem.removeprefix("swap_"): path for path in sorted(folder.glob("swap_*.json"))}
    for path in sorted(folder.glob("evaluators/*/*/result.json")):
        files["/".join(path.parts[-3:-1])] = path
    if not files:
        fix = "It should hold swap_JUDGE.json or evaluators/JUDGE/STRATEGY/result.json."
        raise UsageError("there are no verdicts beside dataset.json.", where=str(folder), fix=fix)
    for judge, path in files.items():
        _llmbar_answers(source, judge, path, rows)
    return source.judged()


def _llmbar_answers(
    source: Gathered, judge: str, path: Path, rows: Sequence[Mapping[str, Any]]
) -> None:
    records = read_records(path)
    if len(records) != len(rows):
        what = f"{len(records)} answers to the {len(rows)} items of dataset.json."
        raise UsageError(what, where=str(path))
    for (where, row), asked, item in zip(records, rows, source.items, strict=True):
        if row.get("input") != asked.get("input") or row.get("label") != asked.get("label"):
            fix = "Rows stand in the order of dataset.json."
            raise UsageError("this is another item than in dataset.json.", where=where, fix=fix)
        results: list[Any] = row.get("results") or []
        # a strategy may have asked other things first, and a swapped one decides anew at the end
        plain = [k for k, one in enumerate(results) if "swap = False" in one]
        for swapped, order in ((False, (0, 1)), (True, (1, 0))):
            told = results[plain[0]].get(f"swap = {swapped}") if plain else None
            if told is None:
                what = f"there is no answer `swap = {swapped}`."
                raise UsageError(what, where=where, fix="Rating evaluators compare nothing.")
            source.answer(judge, item, _llmbar_status(told, where), order=order)


def _llmbar_status(told: Mapping[str, Any], where: str) -> str:
    """1 and 2 are the responses; no winner is an answer that cannot be read, or none at all."""
    winner: Any = told.get("winner")
    if winner is not None:
        return named(str(winner), LLMBAR, "winner", where)
    spoken: Any = told.get("completion") or ""
    return "invalid" if (spoken if isinstance(spoken, str) else spoken[0]) else "error"


def read_verdicts(path: Path, records: Sequence[Record]) -> Judged:
    """Our own verdicts.jsonl: a row for each question, with `id`, `judge`, `order`, `status`.

    judgements.jsonl beside it tells of each id what the card can use (prompt, models, lengths,
    gold), summary.json the price. Scores of single responses are no verdicts on pairs and are
    refused.
    """
    source = Gathered(path.parent.name or path.stem)
    beside = path.parent / "judgements.jsonl"
    each = _price(path.parent / "summary.json", records)
    for where, row in read_records(beside) if beside.is_file() else []:
        source.item(described(row, where), where)
    for where, row in records:
        item = text_of(row, "id", where)
        if item not in source.items:
            source.item(described(row, where), where)
        status = text_of(row, "status", where)
        if status in ("scored", "abstain"):
            fix = "calibrate reads verdicts on pairs (form: pair or levels)."
            raise UsageError("this row scores a single response.", where=where, fix=fix)
        order = row.get("order")
        tokens = row.get("tokens")
        source.answer(
            str(row.get("judge") or "judge"),
            item,
            named(status, {one: one for one in sorted(STATUSES)}, "status", where),
            order=_pair(order) if order else None,
            chance=row.get("chance"),
            tokens=_pair(tokens) if tokens else None,
            cost=row.get("cost", each),
            **({"repeat": int(row["repeat"])} if row.get("repeat") is not None else {}),
        )
    return source.judged()


def _price(path: Path, records: Sequence[Record]) -> float | None:
    """What each answer cost, where one judge's whole price is known."""
    judges = {row.get("judge") for _, row in records}
    told: Any = read_json(path).get("cost") if path.is_file() and len(judges) == 1 else None
    return float(told) / len(records) if isinstance(told, int | float) else None


def _pair(values: Any) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def described(row: Mapping[str, Any], where: str) -> JudgedItem:
    """An item by the columns that a row has: id, prompt, models, lengths, both texts, gold."""
    models = [str(name or "") for name in row.get("models") or ("", "")]
    texts = [row["first"], row["second"]] if {"first", "second"} <= row.keys() else []
    sizes = row.get("lengths") or [len(str(text)) for text in texts]
    gold = row.get("gold")
    if gold is not None:
        gold = named(str(gold), {"a": "a", "b": "b"}, "gold", where)
    if len(models) != 2 or len(sizes) not in (0, 2):
        raise UsageError("an item has two responses.", where=where, fix="Give two of each.")
    prompt = row.get("prompt")
    return JudgedItem(
        text_of(row, "id", where),
        "" if prompt is None else digest(str(prompt)),
        (models[0], models[1]),
        _pair(sizes) if sizes else None,
        gold=gold,
        identical=len(texts) == 2 and texts[0] == texts[1],
    )


VOTERS = ("rater", "annotator", "worker", "person", "judge")
LABELS = {
    **dict.fromkeys(("a", "left", "model_a", "1"), "a"),
    **dict.fromkeys(("b", "right", "model_b", "2"), "b"),
    **dict.fromkeys(("tie", "0", "tie (bothbad)"), "tie"),
}


def read_votes(path: str | Path) -> list[PersonVote]:
    """People's votes for `--votes`: rows id (or item), label (or winner), and who voted.

    A label is a (the first as stored), b or tie.
    """
    votes: list[PersonVote] = []
    for where, row in read_records(Path(path).expanduser()):
        item = row.get("id", row.get("item"))
        if item is None:
            raise UsageError("the column `id` is missing.", where=where, fix="Of which item?")
        column = "label" if "label" in row else "winner"
        label = named(text_of(row, column, where), LABELS, column, where)
        who = next((str(row[name]) for name in VOTERS if row.get(name) is not None), where)
        votes.append(PersonVote(str(item), who, label))
    return votes


def with_votes(source: Judged, votes: Sequence[PersonVote]) -> Judged:
    """A source with more votes of people; those about other items are counted in its notes."""
    own = [vote for vote in votes if vote.item in source.items]
    other = len(votes) - len(own)
    notes = source.notes + ((f"{other} votes are about other items.",) if other else ())
    return replace(source, votes=(*source.votes, *own), notes=notes)
