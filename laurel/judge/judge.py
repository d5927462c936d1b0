"""A judge: pairs and responses in, judgements out; several models vote as a panel.

    soft_label = mean of P(a better) over orders and judges

Both orders by default: what a judge gives to a place cancels, and disagreement shows as
`inconsistent` (Zheng et al. 2023, arXiv:2306.05685; Lee et al. 2023, arXiv:2309.00267).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from laurel.core.errors import UsageError
from laurel.core.result import Result
from laurel.judge.cache import Cache
from laurel.judge.client import Reply, Request, Spending, Watch
from laurel.judge.member import Member, Question, asked
from laurel.judge.options import Criterion, JudgeConfig, read_judge
from laurel.judge.verdict import (
    ABSTAIN,
    ERROR,
    INVALID,
    SCORED,
    STRAIGHT,
    SWAPPED,
    TIE,
    A,
    B,
    Judgement,
    Verdict,
    of_pair,
    of_response,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt, which is a text or messages."""

    id: str
    prompt: Any
    first: Any
    second: Any
    reference: str = ""
    principle: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """A response to a prompt, which is a text or messages."""

    id: str
    prompt: Any
    response: Any
    reference: str = ""
    principle: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """Something else that the same model is to write: messages, or a text for `completions`."""

    text: str | Sequence[Mapping[str, str]]
    seed: int = 0
    max_tokens: int = 256
    temperature: float = 1.0
    stop: Sequence[str] = ()
    version: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Judge:
    """The model, or the panel, that a configuration names.

    cache: a file that keeps every answer; default: the configuration's, else memory. Use it as a
    context, or `close` it: a model that is served from its folder ends then.
    """

    def __init__(self, config: JudgeConfig, *, cache: str | Path | None = None) -> None:
        self.config = config
        self.cache = Cache(cache or config.cache)
        self.members = list[Member]()
        try:
            for name, one in named_members(config):
                self.members.append(Member(one, self.cache, name))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End connections, servers of our own and the cache."""
        for member in self.members:
            member.close()
        self.members = []
        self.cache.close()

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return [member.name for member in self.members]

    @property
    def ways(self) -> dict[str, str]:
        """model -> how it says how sure it is."""
        return {one.name: one.way or one.config.label for one in self.members}

    def spending(self) -> dict[str, Spending]:
        """model -> tokens read and written."""
        return {one.name: one.client.spending for one in self.members}

    def money(self) -> float | None:
        """What was asked now cost; None where a price is missing."""
        costs = [one.client.spending.money(one.config.price) for one in self.members]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if len(known) == len(costs) else None

    def questions(self, items: int) -> int:
        """How many questions these items are, for a progress bar."""
        total = 0
        for member in self.members:
            orders = 2 if member.config.orders == "both" else 1
            sides = orders if member.config.compares else max(len(member.config.criteria), 1)
            total += sides * items
        return total

    def compare(
        self, pairs: Sequence[Pair], *, repeat: int = 0, watch: Watch | None = None
    ) -> list[Judgement]:
        """Which of two responses is better: a judgement for each pair, in their order.

        repeat: the same question once more, with another seed, to see whether the judge repeats
        itself. A judge of single responses scores both, and the higher score is better. Errors:
        LaurelError where a server stays down, or refuses whoever asks.
        """
        found: list[list[Verdict]] = [[] for _ in pairs]
        for member in self.members:
            compared = compare_by if member.config.compares else compare_scores
            for verdicts, more in zip(found, compared(member, pairs, repeat, watch), strict=True):
                verdicts += more
        return [of_pair(pair.id, given) for pair, given in zip(pairs, found, strict=True)]

    def score(
        self, items: Sequence[Item], *, repeat: int = 0, watch: Watch | None = None
    ) -> list[Judgement]:
        """How good single responses are: a judgement with a score for each.

        A judge of pairs gives none: UsageError.
        """
        if compares := [one.name for one in self.members if one.config.compares]:
            fix = "Take form: score, or rubric."
            raise UsageError("it judges pairs, not single responses.", where=compares[0], fix=fix)
        found: list[list[Verdict]] = [[] for _ in items]
        for member in self.members:
            for verdicts, one in zip(found, score_by(member, items, repeat, watch), strict=True):
                verdicts.append(one)
        return [of_response(item.id, given) for item, given in zip(items, found, strict=True)]

    def results(self, items: Sequence[Item]) -> list[Result]:
        """The scores as results of a reward: Score, Abstain or Failed."""
        return [judgement.result() for judgement in self.score(items)]

    def complete(self, asks: Sequence[Ask], watch: Watch | None = None) -> list[Reply]:
        """What the first model writes to each, kept as verdicts are."""
        member = self.members[0]
        requests = [written(member.config, ask) for ask in asks]
        return member.client.ask(requests, watch)


def named_members(config: JudgeConfig) -> list[tuple[str, JudgeConfig]]:
    """The judges by name: a panel's by its models, or by its files where two have one model."""
    if not config.panel:
        return [(config.name, config)]
    configs = [read_judge(path) for path in config.panel]
    names = [one.name for one in configs]
    if len(set(names)) < len(names):
        names = [Path(path).stem for path in config.panel]
    if len(set(names)) < len(names):
        raise UsageError("two of its files have one name.", where="panel", fix="Rename one.")
    return list(zip(names, configs, strict=True))


def written(config: JudgeConfig, ask: Ask) -> Request:
    """The call that has something written."""
    if isinstance(ask.text, str):
        text = ask.text
        said = {"prompt": text} if config.api == "completions" else asked(config, [user(text)], "")
    else:
        said = asked(config, ask.text, "")
    body: dict[str, Any] = {
        **said,
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        **ask.extra,
    }
    if ask.stop:
        body["stop"] = list(ask.stop)
    return Request(body, ask.seed, prompt_version=ask.version)


def user(text: str) -> dict[str, str]:
    """A text as a user's turn."""
    return {"role": "user", "content": text}


def spoken(said: Any) -> str:
    """A prompt or a response as one text: of messages, who speaks and what."""
    if isinstance(said, str):
        return said
    if len(said) == 1:
        return str(said[0].get("content") or "")
    return "\n".join(f"{one.get('role')}: {one.get('content') or ''}" for one in said)


def compare_by(
    member: Member, pairs: Sequence[Pair], repeat: int, watch: Watch | None
) -> list[list[Verdict]]:
    """A model's verdicts on each pair, in the orders that it is asked in."""
    orders = (STRAIGHT, SWAPPED) if member.config.orders == "both" else (STRAIGHT,)
    questions = [Question(values_of(pair), order, repeat) for pair in pairs for order in orders]
    verdicts = member.verdicts(questions, watch)
    size = len(orders)
    return [verdicts[i * size : (i + 1) * size] for i in range(len(pairs))]


def values_of(pair: Pair) -> dict[str, str]:
    """The texts of a pair by the prompt's places."""
    return {
        "prompt": spoken(pair.prompt),
        "first": spoken(pair.first),
        "second": spoken(pair.second),
        "reference": pair.reference,
        "principle": pair.principle,
    }


def compare_scores(
    member: Member, pairs: Sequence[Pair], repeat: int, watch: Watch | None
) -> list[list[Verdict]]:
    """A verdict on each pair from the scores of both: there is no order to be biased by."""
    items = [
        Item(pair.id, pair.prompt, said, pair.reference, pair.principle)
        for pair in pairs
        for said in (pair.first, pair.second)
    ]
    scored = score_by(member, items, repeat, watch)
    return [[higher(scored[2 * i], scored[2 * i + 1])] for i in range(len(pairs))]


def higher(first: Verdict, second: Verdict) -> Verdict:
    """Whose score is higher. A failure of one, or an abstention, leaves no verdict."""
    tokens = (first.tokens[0] + second.tokens[0], first.tokens[1] + second.tokens[1])
    both = Verdict(
        first.judge,
        INVALID,
        repeat=first.repeat,
        raw=f"{first.raw}\n{second.raw}",
        prompt_version=first.prompt_version,
        tokens=tokens,
        cached=first.cached and second.cached,
    )
    statuses = (first.status, second.status)
    for failure in (ERROR, INVALID):
        if failure in statuses:
            reason = first.reason or second.reason
            return replace(both, status=failure, reason=reason)
    if first.score is None or second.score is None:
        return replace(both, status=INVALID, reason="it abstained")
    difference = first.score - second.score
    return replace(both, status=A if difference > 0 else B if difference < 0 else TIE, reason="")


def score_by(
    member: Member, items: Sequence[Item], repeat: int, watch: Watch | None
) -> list[Verdict]:
    """A model's verdict on each response."""
    criteria: Sequence[Criterion | None] = member.config.criteria or [None]
    questions = [
        Question(
            {
                "prompt": spoken(item.prompt),
                "response": spoken(item.response),
                "reference": item.reference,
                "principle": item.principle,
            },
            repeat=repeat,
            criterion=criterion,
        )
        for item in items
        for criterion in criteria
    ]
    verdicts = member.verdicts(questions, watch)
    if not member.config.criteria:
        return verdicts
    size = len(criteria)
    return [
        rubric_verdict(member.config.criteria, verdicts[i * size : (i + 1) * size])
        for i in range(len(items))
    ]


def rubric_verdict(criteria: Sequence[Criterion], verdicts: Sequence[Verdict]) -> Verdict:
    """The verdicts on a rubric's criteria as one.

        score = sum(weight * met) / sum(weight above 0), over the criteria that did not abstain

    A failure of one criterion fails the whole; where all that can be gained abstain, so does it.
    """
    tokens = (sum(one.tokens[0] for one in verdicts), sum(one.tokens[1] for one in verdicts))
    whole = Verdict(
        verdicts[0].judge,
        SCORED,
        repeat=verdicts[0].repeat,
        criteria={one.name: verdict.score for one, verdict in zip(criteria, verdicts, strict=True)},
        raw="\n".join(verdict.raw for verdict in verdicts),
        prompt_version=verdicts[0].prompt_version,
        tokens=tokens,
        cached=all(verdict.cached for verdict in verdicts),
    )
    for failure in (ERROR, INVALID):
        for one, verdict in zip(criteria, verdicts, strict=True):
            if verdict.status == failure:
                return replace(
                    whole, status=failure, reason=f"criterion {one.name}: {verdict.reason}"
                )
    met = [
        (one.weight, verdict.score)
        for one, verdict in zip(criteria, verdicts, strict=True)
        if verdict.score is not None
    ]
    possible = sum(weight for weight, _ in met if weight > 0)
    if not possible:
        return replace(whole, status=ABSTAIN, reason="no criterion applies")
    return replace(whole, score=sum(weight * score for weight, score in met) / possible)
