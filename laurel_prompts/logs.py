"""Logs of prompted queries: one table of rewards, queries by prompts.

What was not tried is left open. Coverage and leakage.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from laurel.core.errors import UsageError, nearest
from laurel.data.read import Record, kind_of, read_records
from laurel.measure.intervals import wilson
from laurel.report.exhibit import Table
from laurel_prompts.columns import COLUMNS, NUMBERS, closest_column, standard_columns

SPLITS = ("train", "test")
SHOWN = 20  # faults of a file that its error lists


@dataclass(frozen=True)
class Log:
    """S queries by P prompts; nan where a prompt was not tried.

    Two samples of one question are two rows with one `question_S`.

    reward_SP: in [0, 1], such as right (1) or wrong (0). cost_SP: tokens or money of the answer.
    propensity_SP: the probability with which the logger tried this prompt on this query.
    confidence_SP: what the language model said of its own answer. test_S: held out by whoever made
    the log. question_S: equal numbers for equal normalised text.
    """

    name: str
    queries: tuple[str, ...]
    names: tuple[str, ...]
    prompts: tuple[str, ...]
    reward_SP: np.ndarray
    test_S: np.ndarray
    question_S: np.ndarray
    cost_SP: np.ndarray | None = None
    propensity_SP: np.ndarray | None = None
    confidence_SP: np.ndarray | None = None
    responses: Mapping[tuple[int, int], str] = field(default_factory=dict)

    @property
    def logged_SP(self) -> np.ndarray:
        """Which prompt was tried on which query."""
        return ~np.isnan(self.reward_SP)

    def rows(self, chosen: np.ndarray) -> Log:
        """The log of some queries only; `chosen` is a mask or positions."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        place = {int(old): new for new, old in enumerate(index)}
        return replace(
            self,
            queries=tuple(self.queries[s] for s in index),
            reward_SP=self.reward_SP[index],
            test_S=self.test_S[index],
            question_S=self.question_S[index],
            responses={
                (place[s], p): text for (s, p), text in self.responses.items() if s in place
            },
            **{
                name: None if (table := getattr(self, name)) is None else table[index]
                for name in OPEN
            },
        )

    def columns(self, chosen: Sequence[int]) -> Log:
        """The log of some prompts only, in this order."""
        place = {old: new for new, old in enumerate(chosen)}
        return replace(
            self,
            names=tuple(self.names[p] for p in chosen),
            prompts=tuple(self.prompts[p] for p in chosen),
            reward_SP=self.reward_SP[:, chosen],
            responses={
                (s, place[p]): text for (s, p), text in self.responses.items() if p in place
            },
            **{
                name: None if (table := getattr(self, name)) is None else table[:, chosen]
                for name in OPEN
            },
        )


OPEN = ("cost_SP", "propensity_SP", "confidence_SP")
"""Tables of a Log that may be absent."""


WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+|[^\w\s]")
WHOLE = re.compile(r"\.0+$")


def normalise_question(text: str) -> str:
    """A question without what does not matter: case, spaces, punctuation, and the .0 of 8.0.
    Symbols, and signs beside a number, stay.
    """
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    kept = [
        word
        for n, word in enumerate(words)
        if word[0].isalnum() or word[0] == "_" or _is_significant(words, n)
    ]
    return " ".join(WHOLE.sub("", word) if ".0" in word else word for word in kept) or text.strip()


def _is_significant(words: Sequence[str], n: int) -> bool:
    """Is the n-th of the words, no letter and no digit, a symbol, or a sign beside a number?"""
    near = "".join(word[:1] for word in (*words[max(n - 1, 0) : n], *words[n + 1 : n + 2]))
    return (words[n] in "-*/%" and any(one.isdigit() for one in near)) or unicodedata.category(
        words[n]
    ).startswith("S")


def question_numbers(queries: Iterable[str]) -> np.ndarray:
    """For each query a number; equal ones for queries that are equal once normalised."""
    known: dict[str, int] = {}
    return np.array(
        [known.setdefault(normalise_question(query), len(known)) for query in queries],
        dtype=np.int64,
    )


def group_by_story(log: Log) -> Log | None:
    """The log with questions grouped by their story.

    Equal numbers for questions that differ in their figures only.

    Such questions are not the same, but what a model memorises of one is true of the other. None
    where at most one in a hundred shares its story, and where figures are most of what questions
    differ in (more than half would fall together).
    """
    masked = question_numbers(re.sub(r"\d+(?:[.,]\d+)*", "0", query) for query in log.queries)
    before, after = len(np.unique(log.question_S)), len(np.unique(masked))
    return replace(log, question_S=masked) if before / 2 <= after < 0.99 * before else None


def read_log(
    path: str | Path,
    *,
    prompts: str | Path | None = None,
    model: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> Log:
    """A log of a JSONL, JSON, CSV or Parquet file, one row for each answer.

    Columns: `query`, `prompt` (its text, or its name in the file `prompts` of rows {name, prompt}),
    `reward` in [0, 1]; and optionally `response`, `model`, `cost`, `propensity`, `confidence`,
    `split` (train or test), `query_id` (else the query's text) and `sample` (several draws of one
    query). model: which one's rows, needed where there are several. Common other names are read as
    these (`columns.ALIASES`); `say` is told which, and which columns are not used.

    No row is left out: wrong ones are named in a UsageError, up to 20 (an empty query, an unknown
    prompt, a missing reward, the same query and prompt twice, numbers out of range).
    """
    path = Path(path).expanduser()
    records, notes = standard_columns(read_records(path), str(path))
    for note in notes:
        say(f"{path.name}: {note}")
    records = _records_of_model(records, model, str(path))
    table = read_prompts(prompts)
    faults = [
        fault for where, row in records for fault in _row_faults(where, row, table)
    ] or _duplicate_faults(records, table)
    if faults:
        more = f"\n  ... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        message = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
        fix = "Mend or remove these rows; nothing was read."
        raise UsageError(
            f"{len(faults)} wrong row{'s' if len(faults) > 1 else ''}:{message}{more}\n ",
            where=str(path),
            fix=fix,
        )
    return _table(path.name.partition(".")[0], [row for _, row in records], table)


def coverage_tables(log: Log) -> list[Table]:
    """Which prompts were tried where and how they did.

    Overlap, repeated questions, and leakage from test to training questions.
    """
    logged_SP = log.logged_SP
    in_training = [p for p in range(len(log.names)) if logged_SP[~log.test_S, p].any()]
    train = log.columns(in_training).logged_SP[~log.test_S]
    repeated = len(log.queries) - len(np.unique(log.question_S))
    facts = [
        ("queries, train and test", f"{int((~log.test_S).sum()):,} and {int(log.test_S.sum()):,}"),
        ("different questions", f"{len(np.unique(log.question_S)):,}"),
        ("queries that repeat a question", f"{repeated:,}"),
        (
            "training queries with every training prompt",
            f"{train.all(1).mean():.1%}" if len(train) else "-",
        ),
        (
            "prompts tried on a training query, mean",
            f"{train.sum(1).mean():.2f}" if len(train) else "-",
        ),
        ("propensities", "logged" if log.propensity_SP is not None else "not logged"),
        (
            "test queries whose question is in training, too",
            f"{count_leaked_queries(log):,} of {int(log.test_S.sum()):,}",
        ),
    ]
    return [_prompts_table(log), Table("coverage", ("what", "figure"), tuple(facts))]


def _prompts_table(log: Log) -> Table:
    """How often each prompt was tried, and its mean reward."""
    rows = []
    for p, name in enumerate(log.names):
        tried_S = log.logged_SP[:, p]
        if tried_S.any():
            rate = wilson(float(np.nansum(log.reward_SP[:, p])), int(tried_S.sum()))
            train, test = (int((tried_S & part_S).sum()) for part_S in (~log.test_S, log.test_S))
            cost = None if log.cost_SP is None else float(np.nanmean(log.cost_SP[tried_S, p]))
            rows.append((name, train, test, rate.value, rate.low, rate.high, cost))
    columns = ("prompt", "train", "test", "mean reward", "low", "high", "cost")
    cut = columns if log.cost_SP is not None else columns[:-1]
    title = "prompts: how often each was tried, and its mean reward"
    return Table(title, cut, tuple(row[: len(cut)] for row in rows))


def count_leaked_queries(log: Log) -> int:
    """How many test queries ask a question that a training query asks, too."""
    return int(np.isin(log.question_S[log.test_S], log.question_S[~log.test_S]).sum())


def grouped_split(log: Log, share: float = 0.2, seed: int = 0) -> Log:
    """The same log with another test part.

    About `share` of the questions, each with all of its queries. Nothing leaks.
    """
    groups = np.unique(log.question_S)
    held_out = np.random.default_rng(seed).permutation(groups)[: max(1, round(share * len(groups)))]
    return replace(log, test_S=np.isin(log.question_S, held_out))


def fold_of_query(question_S: np.ndarray, count: int = 5, seed: int = 0) -> np.ndarray:
    """A fold for each query, the same for queries of one question."""
    groups, place = np.unique(question_S, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(groups)) % count)[place]


def _records_of_model(records: list[Record], model: str, where: str) -> list[Record]:
    known = sorted({str(row["model"]) for _, row in records if row.get("model") not in (None, "")})
    if model and model not in known:
        raise UsageError(
            f"no row is of model `{model}`.",
            where=where,
            fix=nearest(model, known) or "The log names no model.",
        )
    if not model and len(known) > 1:
        raise UsageError(
            f"rows of {len(known)} models.",
            where=where,
            fix=f"Name one with --log_model: {', '.join(known)}.",
        )
    return (
        [record for record in records if str(record[1].get("model")) == model] if model else records
    )


def read_prompts(path: str | Path | None) -> dict[str, str]:
    """name -> text of a file of rows {name, prompt}; empty for None: anything may be a prompt."""
    if path is None:
        return {}
    table: dict[str, str] = {}
    for where, row in read_records(Path(path).expanduser()):
        text = row.get("prompt")
        if not isinstance(text, str):
            raise UsageError(f"`prompt` is a text, not {kind_of(text)}.", where=where)
        name = str(row.get("name", text))
        if not isinstance(row.get("name", ""), str):
            raise UsageError(f"`name` is a text, not {kind_of(row['name'])}.", where=where)
        if name in table or text in table.values():
            raise UsageError(
                (
                    f"two prompts are called `{name}`."
                    if name in table
                    else f"two prompts say {text!r:.60}."
                ),
                where=where,
            )
        table[name] = text
    if mixed := [name for name in table if name in table.values() and table[name] != name]:
        raise UsageError(
            f"`{mixed[0]}` is the name of one prompt and the text of another.",
            where=str(path),
            fix="Rename it.",
        )
    return table


def _row_faults(where: str, row: dict[str, Any], table: dict[str, str]) -> Iterable[str]:
    """What is wrong with one row by itself."""
    strange = [name for name in row if name not in COLUMNS]
    if strange:
        meant = closest_column(strange[0])
        yield f"{where}: unknown column `{strange[0]}`. Did you mean `{meant}`?"
    query, prompt = row.get("query"), row.get("prompt")
    if not isinstance(query, str) or not query.strip():
        yield (
            f"{where}: the query is"
            f" {kind_of(query) if not isinstance(query, str) or not query else 'blank'}"
        )
    if not isinstance(prompt, str):
        yield f"{where}: the prompt is {kind_of(prompt)}, not a text"
    elif table and prompt not in table and prompt not in table.values():
        yield f"{where}: unknown prompt `{prompt:.40}`"
    for name in NUMBERS:
        value = row.get(name)
        if value is None:
            if name == "reward":
                yield f"{where}: the reward is missing"
            continue
        low = value > 0.0 if name == "propensity" and isinstance(value, int | float) else True
        top = 1e12 if name == "cost" else 1.0
        if not isinstance(value, int | float) or not (
            math.isfinite(value) and 0 <= value <= top and low
        ):
            limits = {"cost": "0 or more", "propensity": "above 0, at most 1"}.get(
                name, "from 0 to 1"
            )
            yield f"{where}: {name} is {kind_of(value)}, not a number {limits}"
    if row.get("split", "train") not in SPLITS:
        yield f"{where}: split is {kind_of(row['split'])}, not train or test"
    for name in ("query_id", "sample"):
        if not isinstance(row.get(name), str | int | float | None):
            yield f"{where}: {name} is {kind_of(row[name])}, not a text or a number"
    if not isinstance(row.get("response") or "", str):
        yield f"{where}: the response is {kind_of(row['response'])}, not a text"


def _duplicate_faults(records: list[Record], table: dict[str, str]) -> list[str]:
    """Errors between rows.

    A key that comes twice, one query_id with two texts or splits, propensities on some rows only.
    """
    by_text = {text: name for name, text in table.items()}
    some = any(row.get("propensity") is not None for _, row in records)
    seen: dict[tuple[Any, ...], str] = {}
    first: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
    faults = []
    for where, row in records:
        query = _key(row)
        key = (*query, by_text.get(row["prompt"], row["prompt"]))
        if some and row.get("propensity") is None:
            faults.append(f"{where}: the propensity is missing, which other rows have")
        if key in seen:
            faults.append(
                f"{where}: the same query and prompt as {seen[key]} (number draws of one query in a"
                " column `sample`)"
            )
        seen.setdefault(key, where)
        before, known = first.setdefault(query, (where, row))
        if known["query"] != row["query"]:
            faults.append(
                f"{where}: query_id {row['query_id']!r} has another text than at {before}"
            )
        if known.get("split", "train") != row.get("split", "train"):
            faults.append(f"{where}: this query is in another split at {before}")
    return faults


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    named, sample = row.get("query_id"), row.get("sample")
    return (row["query"] if named is None else named), (0 if sample is None else sample)


def _table(name: str, rows: list[dict[str, Any]], table: dict[str, str]) -> Log:
    """Rows that were checked as tables."""
    names: dict[str, int] = {called: p for p, called in enumerate(table)}
    by_text = {text: called for called, text in table.items()}
    places: dict[tuple[Any, ...], int] = {}
    first: list[dict[str, Any]] = []  # the first row of each query
    cells: list[tuple[int, int]] = []
    for row in rows:
        s = places.setdefault(_key(row), len(places))
        if s == len(first):
            first.append(row)
        called = row["prompt"] if row["prompt"] in names or not table else by_text[row["prompt"]]
        cells.append((s, names.setdefault(called, len(names))))
    queries, shape = [row["query"] for row in first], (len(first), len(names))
    return Log(
        name=name,
        queries=tuple(queries),
        names=tuple(names),
        prompts=_texts(names, table),
        reward_SP=_filled(rows, "reward", cells, shape),
        test_S=_in_test(first),
        question_S=question_numbers(queries),
        responses=_responses(rows, cells),
        **_optional(rows, cells, shape),
    )


def _texts(names: Iterable[str], table: dict[str, str]) -> tuple[str, ...]:
    """The text of each prompt; one that is in no table is its own name."""
    return tuple(table.get(name, name) for name in names)


def _in_test(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([row.get("split") == "test" for row in rows])


def _optional(
    rows: list[dict[str, Any]], cells: list[tuple[int, int]], shape: tuple[int, int]
) -> dict[str, Any]:
    """The tables of a log that not every log has, by their name in `Log`."""
    return {
        f"{column}_SP": _filled(rows, column, cells, shape)
        for column in ("cost", "propensity", "confidence")
        if any(row.get(column) is not None for row in rows)
    }


def _responses(
    rows: list[dict[str, Any]], cells: list[tuple[int, int]]
) -> dict[tuple[int, int], str]:
    """cell -> the answer of its row, where it has one."""
    return {
        cell: row["response"]
        for cell, row in zip(cells, rows, strict=True)
        if row.get("response") is not None
    }


def _filled(
    rows: list[dict[str, Any]], column: str, cells: list[tuple[int, int]], shape: tuple[int, int]
) -> np.ndarray:
    """A column as a table [S, P]; nan where there is no value."""
    table_SP = np.full(shape, np.nan)
    # all cells at once, by the list of their first indices and that of their second
    table_SP[tuple(np.array(cells).T)] = [
        np.nan if row.get(column) is None else row[column] for row in rows
    ]
    return table_SP
