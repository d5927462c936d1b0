"""What is to be judged: prompts with their responses, from files, runs and lists of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any, cast

from laurel.core.errors import UsageError
from laurel.core.sample import sample_seed
from laurel.data.formats import normalise
from laurel.data.source import Row, load_rows
from laurel.judge.judge import Item, Pair, spoken

SAMPLES = frozenset({"step", "prompt_id", "prompt", "completion", "sample"})
ANSWERS = frozenset({"id", "columns", "responses"})
RESPONSES = frozenset({"prompt", "responses"})
OUTPUTS = frozenset({"output_1", "output_2"})
SHAPES = (
    "prompt, chosen, rejected; prompt, responses; prompt, completion; instruction, output_1,"
    " output_2; samples.jsonl of a run; answers.jsonl of a pipeline"
)


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and its responses. models: who wrote each, "" where that is not known.

    gold: the place of the better of two, where the source says so.
    """

    id: str
    prompt: Any
    responses: tuple[Any, ...]
    models: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict[str, Any])
    gold: int | None = None
    where: str = ""

    def reference(self, column: str | None) -> str:
        """The reference answer in a column; "" without one. UsageError where it is missing."""
        if column is None:
            return ""
        if column not in self.row:
            fix = f"The row has: {', '.join(self.row) or 'nothing else'}."
            raise UsageError(f"the column `{column}` is missing.", where=self.where, fix=fix)
        return spoken(self.row[column])


@dataclass(frozen=True, slots=True)
class Drawn:
    """A pair to be judged, and the responses' places among those of its prompt."""

    pair: Pair
    answered: Answered
    places: tuple[int, int]

    @property
    def models(self) -> tuple[str, str]:
        """Who wrote the two."""
        names = self.answered.models or ("",) * len(self.answered.responses)
        return names[self.places[0]], names[self.places[1]]


def read_answered(name: str, limit: int | None = None) -> list[Answered]:
    """The prompts and responses of a file, or of the folder of a run.

    Errors: UsageError naming the row.
    """
    path = Path(name)
    if path.is_dir() and (path / "samples.jsonl").is_file():
        name = str(path / "samples.jsonl")
    rows = load_rows(name)
    if not rows:
        raise UsageError("there are no rows.", where=name)
    found = list(answered_rows(rows))
    ids = [one.id for one in found]
    if len(set(ids)) < len(ids):
        # a prompt may come twice with other answers: its place tells them apart
        found = [
            Answered(f"{one.id}.{i}", *parts_of(one)[1:]) for i, one in enumerate(found, start=1)
        ]
    return found[:limit]


def parts_of(one: Answered) -> tuple[Any, ...]:
    """The fields, in their order."""
    return tuple(getattr(one, name) for name in Answered.__slots__)


def answered_rows(rows: Sequence[Row]) -> Iterator[Answered]:
    """Each row, or each group of samples, as what is to be judged."""
    if rows[0].columns.keys() >= SAMPLES:
        yield from sampled_groups(rows)
        return
    for row in rows:
        columns = row.columns
        if columns.keys() >= ANSWERS:
            inner = columns["columns"]
            texts = tuple(columns["responses"])
            yield Answered(
                str(columns["id"]), inner.get("prompt"), texts, (), inner, None, row.where
            )
        elif columns.keys() >= RESPONSES:
            yield plain(row)
        elif columns.keys() >= OUTPUTS:
            yield outputs(row)
        else:
            yield preferred(row)


def sampled_groups(rows: Sequence[Row]) -> Iterator[Answered]:
    """samples.jsonl: the samples of one prompt in one step are its responses."""
    groups: dict[tuple[Any, Any], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.columns["step"], row.columns["prompt_id"]), []).append(row)
    for (step, prompt), members in groups.items():
        members.sort(key=lambda row: row.columns["sample"])
        first = members[0]
        texts = tuple(row.columns["completion"] for row in members)
        names = (f"step {step}",) * len(texts)
        said = first.columns["prompt"]
        yield Answered(f"{step}:{prompt}", said, texts, names, first.columns, None, first.where)


def plain(row: Row) -> Answered:
    """prompt and responses: texts, messages, or {text, model}."""
    given: Any = row.columns["responses"]
    if not isinstance(given, list) or not given:
        raise UsageError("field `responses`: expected a list of responses.", where=row.where)
    texts, names = list[Any](), list[str]()
    for one in cast("list[Any]", given):
        named = cast("dict[str, Any]", one) if isinstance(one, dict) else {"text": one}
        said: Any = named.get("text", named.get("messages"))
        if not said:
            raise UsageError("a response has no text.", where=row.where)
        texts.append(said)
        names.append(str(named.get("model") or ""))
    columns = row.columns
    return Answered(row.id, columns["prompt"], tuple(texts), tuple(names), columns, None, row.where)


def outputs(row: Row) -> Answered:
    """instruction (or input, or prompt), output_1 and output_2: AlpacaEval's and LLMBar's rows."""
    columns = row.columns
    names = [name for name in ("instruction", "input", "prompt") if columns.get(name)]
    if not names:
        raise UsageError("no instruction, input or prompt.", where=row.where)
    models = tuple(str(columns.get(f"generator_{i}") or "") for i in (1, 2))
    label: Any = columns.get("label")
    gold = int(label) - 1 if label in (1, 2, "1", "2") else None
    texts = (columns["output_1"], columns["output_2"])
    return Answered(row.id, columns[names[0]], texts, models, columns, gold, row.where)


def preferred(row: Row) -> Answered:
    """prompt, chosen and rejected, or prompt and completion, in all layouts that are known."""
    made = normalise(row)
    columns = made.columns
    if {"prompt", "chosen", "rejected"} <= columns.keys():
        both = (columns["chosen"], columns["rejected"])
        return Answered(row.id, columns["prompt"], both, (), columns, 0, row.where)
    for name in ("completion", "response"):
        if "prompt" in columns and name in columns:
            one = (columns[name],)
            return Answered(row.id, columns["prompt"], one, (), columns, None, row.where)
    what = f"nothing to judge: the columns are {', '.join(row.columns)}."
    raise UsageError(what, where=row.where, fix=f"Known: {SHAPES}.")


def pairs_of(
    answered: Sequence[Answered],
    *,
    per_prompt: int = 0,
    seed: int = 0,
    reference: str | None = None,
) -> tuple[list[Drawn], list[str]]:
    """The pairs of each prompt's responses; and why rows have none, a line each.

    per_prompt: so many at most of each prompt, drawn by the seed; 0: all. Equal responses are no
    pair. A preference's two sides are put in an order that tells nothing.
    """
    found, left_out = list[Drawn](), list[str]()
    for one in answered:
        dice = Random(sample_seed(seed, one.id, 0, 0))
        every = [
            (a, b)
            for a, b in combinations(range(len(one.responses)), 2)
            if spoken(one.responses[a]) != spoken(one.responses[b])
        ]
        if not every:
            why = "its responses are equal" if len(one.responses) > 1 else "one response alone"
            left_out.append(f"{one.where}: {why}")
            continue
        chosen = sorted(dice.sample(every, min(per_prompt or len(every), len(every))))
        for a, b in chosen:
            # a file has the better one first: a judge with a bias for a place would look good
            a, b = (b, a) if one.gold is not None and dice.random() < 0.5 else (a, b)
            name = one.id if len(every) == 1 else f"{one.id}:{a}-{b}"
            pair = Pair(
                name, one.prompt, one.responses[a], one.responses[b], one.reference(reference)
            )
            found.append(Drawn(pair, one, (a, b)))
    return found, left_out


def items_of(answered: Sequence[Answered], reference: str | None = None) -> list[Item]:
    """Each response by itself."""
    return [
        Item(
            one.id if len(one.responses) == 1 else f"{one.id}:{i}",
            one.prompt,
            said,
            one.reference(reference),
        )
        for one in answered
        for i, said in enumerate(one.responses)
    ]
