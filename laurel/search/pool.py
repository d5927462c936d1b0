"""Questions with the answers that were drawn for them: what choosing works on.

A pool comes from a file or folder of stored answers, or grows as a generator draws. A verifier, a
reward model or a judge scores its answers; one that it fails on, or abstains from, has no score: it
neither wins nor loses by default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.result import Result, Score
from laurel.core.sample import Group, Key, Message, Sample
from laurel.data.read import read_records
from laurel.data.source import load_rows
from laurel.reward.mixture import Mixture


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. tokens: those drawn; words stand in where a file does not say.

    logp: the log-probability of all its tokens, None where it is unknown. scores: by scorer.
    """

    text: str
    tokens: int = 0
    logp: float | None = None
    finish: str = "eos"
    ids: tuple[int, ...] = ()
    scores: Mapping[str, Result] = field(default_factory=dict[str, Result])

    def score(self, name: str) -> float | None:
        """Its score; None where the scorer failed, abstained or was not asked."""
        result = self.scores.get(name)
        return result.value if isinstance(result, Score) else None

    @property
    def likelihood(self) -> float | None:
        """exp of the mean log-probability of its tokens; None where it is unknown."""
        if self.logp is None or not self.tokens:
            return None
        return math.exp(self.logp / self.tokens)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, the row's columns, and its answers in the order in which they were drawn."""

    id: str
    row: Mapping[str, Any]
    answers: tuple[Answer, ...] = ()

    @property
    def prompt(self) -> Any:
        """A text, or messages."""
        return self.row.get("prompt", self.row.get("question", ""))

    @property
    def tokens(self) -> int:
        """Drawn for all of its answers."""
        return sum(answer.tokens for answer in self.answers)


def read_pool(name: str) -> list[Question]:
    """The questions and answers of a file, or a folder.

    Rows with `responses` (texts, or {text, tokens, logp}); samples.jsonl of a run or of `laurel
    choose`; or a folder with a file of answers for each way of asking, rows of {q_idx, response},
    beside questions*.jsonl with {idx, question, answer}. Errors: UsageError.
    """
    path = Path(name)
    if path.is_dir() and (path / "samples.jsonl").is_file():
        path = path / "samples.jsonl"
    if path.is_dir():
        return answers_by_way(path)
    rows = load_rows(str(path))
    if not rows:
        raise UsageError("there are no rows.", where=name)
    first = rows[0].columns
    if {"prompt_id", "completion", "sample"} <= first.keys():
        return drawn_samples([row.columns for row in rows])
    found = list[Question]()
    for row in rows:
        given: Any = row.columns.get("responses")
        if not isinstance(given, list) or not given:
            fix = "Give rows with `responses`, or samples.jsonl."
            raise UsageError("a row has no answers to choose from.", where=row.where, fix=fix)
        columns = {key: value for key, value in row.columns.items() if key != "responses"}
        found.append(Question(row.id, columns, tuple(map(plain_answer, given))))
    return found


def plain_answer(given: Any) -> Answer:
    """An answer of a row: a text, or {text, tokens, logp}."""
    one: Mapping[str, Any] = given if isinstance(given, Mapping) else {"text": str(given)}
    text = str(one.get("text") or "")
    return Answer(text, int(one.get("tokens") or len(text.split())), one.get("logp"))


def drawn_samples(rows: Sequence[Mapping[str, Any]]) -> list[Question]:
    """samples.jsonl: a question for each prompt and step, in the order of the samples."""
    groups: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row.get("step", 0), row["prompt_id"]), []).append(row)
    found = list[Question]()
    for (step, prompt), lines in groups.items():
        lines.sort(key=lambda line: line["sample"])
        answers = tuple(
            Answer(
                line["completion"],
                int(line.get("length") or 0),
                sum(line["logps"]) if line.get("logps") else line.get("logp"),
                line.get("finish", "eos"),
                tuple(line.get("ids") or ()),
            )
            for line in lines
        )
        row = {"prompt": lines[0]["prompt"], **(lines[0].get("row") or {})}
        found.append(Question(f"{step}:{prompt}", row, answers))
    return found


def answers_by_way(folder: Path) -> list[Question]:
    """One answer to each question from each of several files, joined by the question's number."""
    files = sorted(folder.glob("*.jsonl.gz")) + sorted(folder.glob("*.jsonl"))
    questions = question_rows(folder, {file.name.split("_")[0] for file in files})
    answers: dict[int, list[Answer]] = {}
    for file in files:
        for where, row in read_records(file):
            if "q_idx" not in row or "response" not in row:
                raise UsageError("a row has no q_idx and response.", where=where)
            text = str(row["response"] or "")
            answers.setdefault(row["q_idx"], []).append(Answer(text, len(text.split())))
    if not answers:
        raise UsageError("there are no answers.", where=str(folder))
    most = max(map(len, answers.values()))
    return [
        Question(str(number), questions[number], tuple(given))
        for number, given in sorted(answers.items())
        if number in questions and len(given) == most
    ]


def question_rows(folder: Path, names: set[str]) -> dict[int, dict[str, Any]]:
    """The questions in or beside a folder, by their number."""
    found: dict[int, dict[str, Any]] = {}
    for place in (folder, folder.parent):
        for name in sorted(names):
            for file in sorted(place.glob(f"questions_{name}.jsonl*")):
                for _, row in read_records(file):
                    found[row["idx"]] = {**row, "prompt": row["question"]}
        if found:
            return found
    raise UsageError("there are no questions.", where=f"{folder}/questions_NAME.jsonl")


def as_group(question: Question) -> Group:
    """The answers as a group, which rewards score."""
    samples = tuple(
        Sample(
            key=Key("choose", "answers", question.id, i, 0),
            prompt_ids=(),
            completion_ids=answer.ids or (0,),
            logps=(0.0,) * len(answer.ids or (0,)),
            loss_mask=(True,) * len(answer.ids or (0,)),
            temperature=1.0,
            finish="length" if answer.finish == "length" else "eos",
            text=answer.text,
            turns=(Message(role="assistant", content=answer.text),),
        )
        for i, answer in enumerate(question.answers)
    )
    return Group(question.id, question.row, samples)


def scored(
    questions: Sequence[Question],
    mixture: Mixture,
    watch: Callable[[int], None] | None = None,
    *,
    at_once: int = 64,
) -> list[Question]:
    """The questions with the results of each reward of a mixture, by its name."""
    found = list[Question]()
    for start in range(0, len(questions), at_once):
        some = questions[start : start + at_once]
        groups = mixture.score([as_group(one) for one in some], refuse=False)
        for question, group in zip(some, groups, strict=True):
            found.append(with_results(question, group))
        if watch is not None:
            watch(len(some))
    return found


def with_results(question: Question, group: Group) -> Question:
    """The question's answers with a scored group's results."""
    answers = list[Answer]()
    for i, answer in enumerate(question.answers):
        results = {name: given[i] for name, given in group.results.items()}
        answers.append(replace(answer, scores={**answer.scores, **results}))
    return replace(question, answers=tuple(answers))
