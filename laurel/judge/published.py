"""The published files of verdicts, row by row, as records of the report card.

MT-Bench and Chatbot Arena (model_a, model_b, winner, judge), FastChat's model_judgment (g1_winner,
g2_winner), AlpacaEval's annotations.json.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from laurel.core.errors import UsageError
from laurel.data.csv_table import Record
from laurel.measure.agreement import in_alphabetical_order
from laurel.measure.judge_records import JudgeAnswer, Judged, JudgedItem, PersonVote

PEOPLE = re.compile(r"^(arena_user|expert|author|user|human|worker|annotator|person)", re.I)
"""How published files name people among their judges."""
AUTHORS = re.compile(r"^author", re.I)
"""MT-Bench's own authors, whom its agreement table leaves out."""
MAKERS = (
    ("openai", r"gpt[- ]?[345]|chatgpt|davinci|^o[134]\b|openai"),
    ("anthropic", r"claude"),
    ("google", r"palm|bard|gemini|gemma|flan"),
    ("meta", r"^llama|^meta"),
    ("mistral", r"mistral|mixtral"),
    ("tii", r"falcon"),
    ("qwen", r"qwen"),
    ("deepseek", r"deepseek"),
)
"""Makers by what their models are called; a model tuned by others from llama is none of meta's."""
MTBENCH = {
    "people": 0.66,
    "people_no_ties": 0.85,
    "agreement": 0.63,
    "agreement_no_ties": 0.81,
}
"""What Zheng et al. 2023 print for the first turn (arXiv:2306.05685, table 5)."""


def maker_of(name: str) -> str:
    """The maker of a model by its name, "" where the name does not tell."""
    return next((maker for maker, word in MAKERS if re.search(word, name, re.I)), "")


def with_makers(source: Judged) -> Judged:
    """A source whose judges and responses have their makers by name, where none are told."""
    items = {
        name: replace(item, families=(maker_of(item.models[0]), maker_of(item.models[1])))
        if not any(item.families)
        else item
        for name, item in source.items.items()
    }
    families = {name: maker for name in source.judges if (maker := maker_of(name))}
    return replace(source, items=items, families={**families, **source.families})


@dataclass
class Gathered:
    """What the rows of one source have said so far."""

    name: str
    items: dict[str, JudgedItem] = field(default_factory=dict[str, JudgedItem])
    judges: dict[str, list[JudgeAnswer]] = field(default_factory=dict[str, list[JudgeAnswer]])
    votes: list[PersonVote] = field(default_factory=list[PersonVote])
    notes: list[str] = field(default_factory=list[str])
    published: Mapping[str, float] = field(default_factory=dict[str, float])
    asked: Counter[tuple[str, str, Any]] = field(default_factory=Counter[tuple[str, str, Any]])

    def item(self, item: JudgedItem, where: str) -> str:
        """Remember an item; the same id with other facts is refused."""
        before = self.items.setdefault(item.id, item)
        if before != item:
            fix = f"Before it had models {before.models}, lengths {before.lengths}."
            raise UsageError(f"item `{item.id}` occurs with other facts.", where=where, fix=fix)
        return item.id

    def answer(self, judge: str, item: str, status: str, **more: Any) -> None:
        """A judge's answer; asked again in the same order it counts as a repeat."""
        key = (judge, item, more.get("order"))
        repeat = more.pop("repeat", self.asked[key])
        self.asked[key] += 1
        self.judges.setdefault(judge, []).append(JudgeAnswer(item, status, repeat=repeat, **more))

    def judged(self) -> Judged:
        """All of it."""
        notes = tuple(self.notes)
        return with_makers(
            Judged(
                self.name,
                self.items,
                self.judges,
                self.votes,
                published=self.published,
                notes=notes,
            )
        )


def text_of(row: Mapping[str, Any], column: str, where: str) -> str:
    """A column that must be there, as text."""
    if row.get(column) is None:
        fix = f"The row has {', '.join(row) or 'nothing'}."
        raise UsageError(f"the column `{column}` is missing.", where=where, fix=fix)
    return str(row[column])


def named(word: str, known: Mapping[str, str], column: str, where: str) -> str:
    """What a published word means; another is refused."""
    if word not in known:
        fix = f"Known: {', '.join(known)}."
        raise UsageError(f"`{word}` is no `{column}`.", where=where, fix=fix)
    return known[word]


def digest(text: str) -> str:
    """A short name of a text, the same in every file."""
    return sha256(text.encode()).hexdigest()[:12]


WINNERS = {
    "model_a": "a",
    "model_b": "b",
    "tie": "tie",
    "tie (bothbad)": "tie",
    "tie (inconsistent)": "inconsistent",
}


BATTLES = "battles"
"""The name of a source without turns, until its file gives it one."""


def read_battles(records: Iterable[Record], judges: Mapping[str, str]) -> list[Judged]:
    """MT-Bench's and Chatbot Arena's rows: model_a, model_b, winner, judge; turn, question_id.

    Who judged is a person where the name says so (expert_12, arena_user_973), else a model.
    judges: other names for them. (x, y) and (y, x) of one question are one item. "tie
    (inconsistent)" is an answer that stands for two which differ. One source for each turn.
    """
    turns: dict[str, Gathered] = {}
    left_out = Counter[str]()
    for where, row in records:
        turn = str(row.get("turn", "")) if "conversation_a" not in row else ""
        source = turns.setdefault(turn, Gathered(f"turn {turn}" if turn else BATTLES))
        item, label, status = _battle(row, turn, where)
        known = source.item(item, where)
        who = text_of(row, "judge", where)
        if AUTHORS.match(who):
            left_out[turn] += 1
        elif PEOPLE.match(who):
            source.votes.append(PersonVote(known, who, label))
        else:
            source.answer(judges.get(who, who), known, status)
    for turn, count in left_out.items():
        turns[turn].notes.append(f"{count} votes of the paper's authors are left out.")
    return [turns[turn].judged() for turn in sorted(turns)]


def _battle(row: Mapping[str, Any], turn: str, where: str) -> tuple[JudgedItem, str, str]:
    """The pair of a row, its models in a fixed order; who won, as a label and as a status."""
    one, two = (text_of(row, column, where) for column in ("model_a", "model_b"))
    status = named(text_of(row, "winner", where), WINNERS, "winner", where)
    told = "tie" if status == "inconsistent" else status
    first, second, label = in_alphabetical_order(one, two, told)
    question = text_of(row, "question_id", where)
    place = f"{question}/{turn}" if turn else question
    lengths = _conversation_lengths(row, first == one)
    item = JudgedItem(f"{place}:{first}:{second}", question, (first, second), lengths)
    return item, label, status if status == "inconsistent" else label


def _conversation_lengths(row: Mapping[str, Any], straight: bool) -> tuple[int, int] | None:
    """Characters that each model wrote; None where the file has no conversations."""
    talks = [row.get("conversation_a"), row.get("conversation_b")]
    if not all(isinstance(talk, list) for talk in talks):
        return None
    sizes = [
        sum(len(str(m.get("content", ""))) for m in talk if m.get("role") == "assistant")
        for talk in talks
        if talk is not None
    ]
    return (sizes[0], sizes[1]) if straight else (sizes[1], sizes[0])


def read_fastchat(records: Iterable[Record]) -> list[Judged]:
    """FastChat's model_judgment/*_pair.jsonl: both orders of each question.

    g1_winner is of the game with model_1 first, g2_winner with model_2 first, both by model. A
    winner "error" is an answer without [[A]], [[B]] or [[C]]; a judgement $ERROR$ no answer. One
    source for each turn.
    """
    turns: dict[str, Gathered] = {}
    for where, row in records:
        turn = str(row.get("turn", 1))
        source = turns.setdefault(turn, Gathered(f"turn {turn}"))
        one, two = (text_of(row, column, where) for column in ("model_1", "model_2"))
        question = text_of(row, "question_id", where)
        first, second = sorted((one, two))
        item = JudgedItem(
            f"{question}/{turn}:{first}:{second}",
            question,
            (first, second),
            None,
        )
        known = source.item(item, where)
        _both_games(source, known, row, first == one, where)
    return [turns[turn].judged() for turn in sorted(turns)]


def _both_games(
    source: Gathered,
    item: str,
    row: Mapping[str, Any],
    is_a: bool,
    where: str,
) -> None:
    """The answers of both games. is_a: is model_1 the item's first model?"""
    told: Any = row.get("judge") or "judge"
    name = told if isinstance(told, str) else str(told[0])
    words = {"model_1": "a" if is_a else "b", "model_2": "b" if is_a else "a"}
    words |= {"tie": "tie", "error": "invalid"}
    for game, a_first in (("g1", is_a), ("g2", not is_a)):
        column = f"{game}_winner"
        status = named(text_of(row, column, where), words, column, where)
        if status == "invalid" and row.get(f"{game}_judgment") in ("$ERROR$", None):
            status = "error"
        source.answer(name, item, status, order=(0, 1) if a_first else (1, 0))


def read_alpaca(records: Sequence[Record]) -> list[Judged]:
    """AlpacaEval's annotations.json: a verdict a row, each asked in one order drawn for it.

    preference: 1 the first, 2 the second, 1.5 or 0 a draw, a number between of annotators that
    weigh by log-probability (P(first) = 2 - preference); null where there is none. The order is
    known where referenced_models tells which output was m, the one shown first. A row with an
    annotator_index is a person's vote.
    """
    source = Gathered("AlpacaEval")
    for where, row in records:
        item = _alpaca_item(row, where)
        known = source.item(item, where)
        status, chance = _alpaca_status(row, where)
        person = row.get("annotator_index")
        if person is not None:
            if status in ("a", "b", "tie"):
                source.votes.append(PersonVote(known, str(person), status))
            continue
        price = row.get("price_per_example")
        cost = float(price) if isinstance(price, int | float) else None
        annotator = str(row.get("annotator") or "annotator")
        order = _alpaca_order(row)
        source.answer(annotator, known, status, order=order, chance=chance, cost=cost)
    return [source.judged()]


def _alpaca_item(row: Mapping[str, Any], where: str) -> JudgedItem:
    """The pair of a row: its instruction, who answered, and how long."""
    outputs = [row.get("output_1"), row.get("output_2")]
    one, two = (str(row.get(f"generator_{k}") or "") for k in (1, 2))
    prompt = digest(text_of(row, "instruction", where))
    whole = all(isinstance(output, str) for output in outputs)
    names = [name or digest(str(said)) for name, said in zip((one, two), outputs, strict=True)]
    return JudgedItem(
        ":".join((prompt, *names)),
        prompt,
        (one, two),
        (len(str(outputs[0])), len(str(outputs[1]))) if whole else None,
        identical=whole and outputs[0] == outputs[1],
    )


def _alpaca_order(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """Which output was shown first, as `m`; None where the row does not tell."""
    shown: Any = row.get("referenced_models")
    for first, order in (("output_1", (0, 1)), ("output_2", (1, 0))):
        if shown in ({"m": first}, {"m": first, "M": "output_1"}, {"m": first, "M": "output_2"}):
            return order
    return None


def _alpaca_status(row: Mapping[str, Any], where: str) -> tuple[str, float | None]:
    """A preference as a status and, where it is a chance, as P(the first is better)."""
    preference = row.get("preference")
    if preference is None:
        return ("invalid" if row.get("raw_completion") else "error"), None
    if isinstance(preference, bool) or not isinstance(preference, int | float):
        raise UsageError(f"`{preference}` is no preference.", where=where, fix="1 to 2, or null.")
    value = 1.5 if preference == 0 else float(preference)
    if not 1 <= value <= 2:
        raise UsageError(f"`{preference}` is no preference.", where=where, fix="1 to 2, or null.")
    status = "tie" if value == 1.5 else "a" if value < 1.5 else "b"
    return status, (None if value in (1, 1.5, 2) else 2 - value)


Reader = Callable[[Sequence[Record]], list[Judged]]
