"""Answers drawn from a policy in this process, or from a server, and kept as they come.

The tokens of an answer depend on the seed, its question and its number alone. Each is a line of
samples.jsonl before it is used: a run that was killed draws what is missing, and the same choices
come out. Answers are drawn in rounds, one more of each question that still wants one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

from laurel.core.errors import LaurelError, UsageError
from laurel.core.files import atomic_file, read_json, read_lines, write_atomic
from laurel.core.protocols import Generator
from laurel.core.sample import Draw, sample_seed
from laurel.data.source import Row
from laurel.judge.cache import Cache
from laurel.judge.client import Client, Reply, Request
from laurel.judge.judge import spoken
from laurel.judge.options import JudgeConfig
from laurel.model.chat import encode_prompt
from laurel.search.options import ChooseConfig
from laurel.search.pool import Answer, Question

SAMPLES, DRAWN = "samples.jsonl", "draw.json"
AT_ONCE = 64
"""Questions answered between two lines of the file: what a kill can cost."""
OPTIONS = ("seed", "max_completion_length", "temperature", "top_p", "top_k", "stop")
"""What an answer depends on, beside the model and the question."""


class AnswerSource(Protocol):
    """Draws answers: numbers `first` to `first + count - 1` of each question."""

    def draw(self, rows: Sequence[Row], first: int, count: int) -> list[list[Answer]]: ...


class LocalSource:
    """Answers of a generator in this process."""

    def __init__(self, generator: Generator, config: ChooseConfig) -> None:
        self.generator, self.config = generator, config

    def draw(self, rows: Sequence[Row], first: int, count: int) -> list[list[Answer]]:
        """The next answers of each row."""
        config, tokenizer = self.config, self.generator.tokenizer
        prompts = [
            encode_prompt(tokenizer, prompt_of(row.columns), tools=row.columns.get("tools"))
            for row in rows
        ]
        seeds = [
            sample_seed(config.seed, row.id, first + g, 0) for row in rows for g in range(count)
        ]
        draw = replace(Draw.of(config, "choose", 0), num_generations=count, seeds=tuple(seeds))
        done = self.generator.generate(prompts, draw)
        texts = tokenizer.batch_decode([one.spoken for one in done], skip_special_tokens=True)
        answers = [
            Answer(text, len(one.ids), float(sum(one.logps)), one.finish, tuple(one.ids))
            for text, one in zip(texts, done, strict=True)
        ]
        return [answers[i * count : (i + 1) * count] for i in range(len(rows))]


class ServerSource:
    """Answers of a model on an OpenAI-compatible server.

    A server that is down is waited for; a question that it refuses, or does not answer, is an error
    that names it.
    """

    def __init__(self, config: ChooseConfig) -> None:
        self.config = config
        ways = {name: getattr(config, name) for name in ("model", "url", "api", "api_key")}
        self.judge = JudgeConfig(**ways, concurrency=config.concurrency, timeout=config.timeout)
        url = str(config.url).rstrip("/").removesuffix("/v1")
        self.client = Client(self.judge, lambda: url, config.model, Cache())

    def close(self) -> None:
        """End the connections."""
        self.client.close()

    def draw(self, rows: Sequence[Row], first: int, count: int) -> list[list[Answer]]:
        """The next answers of each row."""
        requests = [
            replace(
                self.request(row), seed=sample_seed(self.config.seed, row.id, first + g, 0) >> 1
            )
            for row in rows
            for g in range(count)
        ]
        replies = self.client.ask(requests)
        for i, reply in enumerate(replies):
            if reply.error:
                where = f"{self.config.url}, question {rows[i // count].id}"
                raise LaurelError(reply.error, where=where, fix="The same command goes on.")
        answers = [answer_of(reply) for reply in replies]
        return [answers[i * count : (i + 1) * count] for i in range(len(rows))]

    def request(self, row: Row) -> Request:
        """What is asked for an answer to a row."""
        config, prompt = self.config, prompt_of(row.columns)
        body: dict[str, Any] = {
            "max_tokens": config.max_completion_length,
            "temperature": config.temperature,
            "top_p": config.top_p,
        }
        if config.top_k:
            body["top_k"] = config.top_k
        if config.stop:
            body["stop"] = list(config.stop)
        if config.api == "completions":
            body |= {"prompt": spoken(prompt), "logprobs": 0}
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            body |= {"messages": messages, "logprobs": True}
        return Request(body)


def answer_of(reply: Reply) -> Answer:
    """A server's reply as an answer."""
    logps = logps_of(reply.choice.get("logprobs"))
    finish = "length" if reply.finish == "length" else "eos"
    return Answer(reply.text, reply.tokens[1], sum(logps) if logps else None, finish)


def logps_of(found: Any) -> list[float]:
    """The tokens' log-probabilities, in either shape; empty where there are none."""
    if not isinstance(found, dict):
        return []
    logprobs = cast("dict[str, Any]", found)
    rows: Any = logprobs.get("content")
    given: Any = [one.get("logprob") for one in rows] if rows else logprobs.get("token_logprobs")
    return [float(one) for one in given or [] if isinstance(one, int | float)]


def prompt_of(columns: Mapping[str, Any]) -> Any:
    """The prompt of a row: a text, or messages."""
    return columns.get("prompt", columns.get("question", ""))


class Drawing:
    """The questions of a run with the answers that are there, in a folder.

    Errors: UsageError where the folder holds answers that were drawn in another way.
    """

    def __init__(
        self, folder: Path, rows: Sequence[Row], config: ChooseConfig, identity: str
    ) -> None:
        self.folder, self.rows, self.config = folder, list(rows), config
        folder.mkdir(parents=True, exist_ok=True)
        self.check(identity)
        self.answers: dict[str, list[Answer]] = {row.id: [] for row in self.rows}
        self.known = self.read()

    def check(self, identity: str) -> None:
        """Note how answers are drawn, or hold it to what is noted."""
        how = {"model": identity, **{name: getattr(self.config, name) for name in OPTIONS}}
        noted = read_json(self.folder / DRAWN)
        if not noted:
            write_atomic(self.folder / DRAWN, json.dumps(how, indent=1) + "\n")
            return
        changed = [name for name in how if noted.get(name) != how[name]]
        if changed:
            what = f"its answers were drawn with another {', '.join(changed)}."
            fix = "Name another --output_dir."
            raise UsageError(what, where=f"output_dir={self.folder}", fix=fix)

    def read(self) -> int:
        """The answers that are there; a half-written last line is cut off."""
        path = self.folder / SAMPLES
        if not path.exists():
            return 0
        lines = list(read_lines(path))
        with atomic_file(path) as file:
            file.writelines(raw for raw, _ in lines)
        for _, line in lines:
            given = self.answers.get(line["prompt_id"])
            # a line of a question that is not asked now stays in the file
            if given is not None and line["sample"] == len(given):
                given.append(read_answer(line))
        return sum(map(len, self.answers.values()))

    def question(self, row: Row) -> Question:
        """A row with its answers."""
        return Question(row.id, row.columns, tuple(self.answers[row.id]))

    def questions(self) -> list[Question]:
        """All rows with their answers."""
        return [self.question(row) for row in self.rows]

    def fill(
        self, source: AnswerSource, most: int, watch: Callable[[int], None] | None = None
    ) -> None:
        """Draw until each question has `most` answers."""
        for start in range(0, len(self.rows), AT_ONCE):
            some = self.rows[start : start + AT_ONCE]
            for first, rows in self.by_count(some, most):
                self.add(source, rows, first, most - first)
            if watch is not None:
                watch(len(some))

    def by_count(self, rows: Sequence[Row], most: int) -> Iterator[tuple[int, list[Row]]]:
        """The rows that want more, by how many answers they have."""
        groups: dict[int, list[Row]] = {}
        for row in rows:
            if len(self.answers[row.id]) < most:
                groups.setdefault(len(self.answers[row.id]), []).append(row)
        yield from sorted(groups.items(), key=lambda one: one[0])

    def draw_while(
        self,
        source: AnswerSource,
        most: int,
        wants: Callable[[Sequence[Question]], Sequence[bool]],
        watch: Callable[[int], None] | None = None,
    ) -> list[Question]:
        """One answer a round for each question that wants one, up to `most` each.

        wants: looks at questions, each with one answer or more, and says which want another. What a
        file has beyond the answer at which a question was satisfied is not looked at: a run that
        was killed ends in the same choices.
        """
        used = dict.fromkeys((row.id for row in self.rows), 0)
        open_rows = list(self.rows)
        while open_rows:
            for start in range(0, len(open_rows), 4 * AT_ONCE):
                missing = [
                    row
                    for row in open_rows[start : start + 4 * AT_ONCE]
                    if len(self.answers[row.id]) == used[row.id]
                ]
                if missing:
                    self.add(source, missing, used[missing[0].id], 1)
            for row in open_rows:
                used[row.id] += 1
            looked = [self.first_answers(row, used[row.id]) for row in open_rows]
            more = wants(looked)
            before = len(open_rows)
            open_rows = [
                row
                for row, another in zip(open_rows, more, strict=True)
                if another and used[row.id] < most
            ]
            if watch is not None:
                watch(before - len(open_rows))
        return [self.first_answers(row, used[row.id]) for row in self.rows]

    def first_answers(self, row: Row, count: int) -> Question:
        """A row with its first so many answers."""
        return Question(row.id, row.columns, tuple(self.answers[row.id][:count]))

    def add(self, source: AnswerSource, rows: Sequence[Row], first: int, count: int) -> None:
        """Draw answers, and keep them."""
        drawn = source.draw(rows, first, count)
        lines = [
            json.dumps(line_of(row, first + g, answer), ensure_ascii=False) + "\n"
            for row, given in zip(rows, drawn, strict=True)
            for g, answer in enumerate(given)
        ]
        with open(self.folder / SAMPLES, "a", encoding="utf-8") as file:
            file.write("".join(lines))
        for row, given in zip(rows, drawn, strict=True):
            self.answers[row.id] += given


def line_of(row: Row, number: int, answer: Answer) -> dict[str, Any]:
    """A line of samples.jsonl, which `read_pool` reads."""
    return {
        "step": 0,
        "prompt_id": row.id,
        "sample": number,
        "prompt": prompt_of(row.columns),
        "completion": answer.text,
        "length": answer.tokens,
        "logp": answer.logp,
        "finish": answer.finish,
        "ids": list(answer.ids),
        "row": {key: value for key, value in row.columns.items() if key != "prompt"},
    }


def read_answer(line: Mapping[str, Any]) -> Answer:
    """An answer of samples.jsonl."""
    return Answer(
        line["completion"], line["length"], line["logp"], line["finish"], tuple(line["ids"])
    )
