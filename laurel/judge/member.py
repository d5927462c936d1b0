"""One model as a judge: questions into requests, answers into verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from laurel.core.errors import LaurelError
from laurel.judge.cache import Cache, cache_key
from laurel.judge.child import ModelServer, digest_of_folder
from laurel.judge.client import Client, Reply, Request, Watch
from laurel.judge.options import Criterion, JudgeConfig
from laurel.judge.reading import (
    first_tokens,
    label_position,
    label_shares,
    mapping,
    read_label,
    read_number,
)
from laurel.judge.template import Prompt, as_text, fill, load_prompt
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
    Verdict,
)

TOP = 20
"""The likeliest tokens that OpenAI's wire gives at most."""
IDS, LIKELIEST, SAMPLES = "logprob_token_ids", "top_logprobs", "samples"
"""How sure a judge is, from the best way to the one that every server has."""
ANSWER = "Verdict:"
PROBES = 8
"""Questions by which it is found out."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked once: the texts by the prompt's places, and in which order they stand."""

    values: Mapping[str, str]
    order: tuple[int, int] = STRAIGHT
    repeat: int = 0
    criterion: Criterion | None = None


class Member:
    """A model on a server, with its prompt; `close` ends what it began."""

    def __init__(self, config: JudgeConfig, cache: Cache, name: str = "") -> None:
        self.config, self.cache, self.name = config, cache, name or config.name
        self.prompt = load_prompt(config.prompt or config.form)
        self.labels = labels_of(self.prompt, config)
        self.child: ModelServer | None = None
        local = config.url is None
        identity = digest_of_folder(config.model) if local else config.model
        self.client = Client(config, self.start, identity, cache)
        self.way = ""
        self.settled = False
        self.label_ids: tuple[int, ...] = ()

    def start(self) -> str:
        """The address of the server, which is started here where the model is a folder."""
        if self.config.url is not None:
            return self.config.url.rstrip("/").removesuffix("/v1")
        self.child = ModelServer(self.config.model)
        return self.child.url

    def close(self) -> None:
        """End the connections, and the server if it is ours."""
        self.client.close()
        if self.child is not None:
            self.child.close()

    def verdicts(self, questions: Sequence[Question], watch: Watch | None = None) -> list[Verdict]:
        """A verdict on each question."""
        if not questions:
            return []
        if self.config.label == "logprobs" and not self.settled:
            self.choose_way(questions)
        sampled = self.config.label == "samples" or self.way == SAMPLES
        each = self.config.num_samples if sampled else 1
        requests = [
            replace(self.request(question), seed=self.config.seed + i)
            for question in questions
            for i in range(each)
        ]
        done = 0

        def watch_answers(count: int) -> None:
            nonlocal done
            done += count
            if watch is not None and done >= each:
                watch(done // each)
                done %= each

        replies = self.client.ask(requests, watch_answers)
        return [
            self.verdict(question, replies[i * each : (i + 1) * each])
            for i, question in enumerate(questions)
        ]

    # asking

    def request(self, question: Question) -> Request:
        """The call of a question."""
        config = self.config
        values = dict(question.values)
        if question.order == SWAPPED:
            values |= {"first": values["second"], "second": values["first"]}
        if question.criterion is not None:
            values["question"] = question.criterion.question
        values["low"], values["high"] = map(str, config.scale)
        values["choices"] = choices_of(self.prompt, self.labels)
        messages = fill(self.prompt, values, reasoning=config.reasoning)
        body = {
            **asked(config, messages, self.prompt.answer_prefix or ANSWER),
            "max_tokens": config.answer_tokens,
            "temperature": 1.0 if self.way == SAMPLES and not config.heat else config.heat,
        }
        return Request(
            {**body, **self.label_fields()}, config.seed, question.repeat, self.prompt.title
        )

    def label_fields(self) -> dict[str, Any]:
        """What a request says to have the labels' log-probabilities."""
        if self.way not in (IDS, LIKELIEST):
            return {}
        chat = self.config.api == "chat"
        fields: dict[str, Any] = (
            {"logprobs": True, "top_logprobs": TOP} if chat else {"logprobs": TOP}
        )
        # one token answers, and its whole distribution is asked for: what is drawn does not matter,
        # and servers that give log-probabilities as they draw give the model's own at 1
        if not self.config.reasoning:
            fields |= {"max_tokens": 1, "temperature": 1.0}
        return {**fields, "logprob_token_ids": list(self.label_ids)} if self.way == IDS else fields

    def choose_way(self, questions: Sequence[Question]) -> None:
        """The best way in which this server says how sure it is, tried with the first questions.

        It is kept with the answers: a later run asks in the same way. Where the server answers none
        of them, the way stays open.
        """
        key = cache_key(
            model=self.client.identity, way=list(self.labels), config=self.config.model_dump()
        )
        known = self.cache.get(key)
        if known is not None:
            self.way, self.label_ids = known["way"], tuple(known["ids"])
            self.settled = True
            return
        ids = () if self.config.reasoning else self.find_label_ids()
        self.label_ids = ids
        ways = [IDS, LIKELIEST, SAMPLES] if ids else [LIKELIEST, SAMPLES]
        # a question may fail, or be refused for itself: that says nothing of the fields
        for question in questions[:PROBES]:
            if self.try_ways(question, ways):
                self.cache.put(key, {"way": self.way, "ids": list(ids)})
                self.settled = True
                return
        self.way = ways[0]

    def try_ways(self, question: Question, ways: Sequence[str]) -> bool:
        """Take the first of these ways in which the server answers the question; is there one?"""
        for way in ways:
            self.way = way
            (reply,) = self.client.ask([self.request(question)])
            # a server that knows no such field refuses it, or leaves it out
            if reply.error and not reply.refused:
                return False
            if not reply.error and (way == SAMPLES or first_tokens(reply.choice) is not None):
                return True
        return False

    def find_label_ids(self) -> tuple[int, ...]:
        """The ids of the labels; empty where the server does not say, or one is no single token.

        Behind a prefix, a label is what its text adds to the prefix's ids: some tokenizers write
        the same word in other ids at the beginning of a text.
        """
        front = "" if self.config.api == "chat" else self.prompt.answer_prefix or ANSWER
        before = self.tokenize(front) if front else []
        found = list[int]()
        for label in self.labels:
            ids = self.tokenize(f"{front} {label}" if front else label)
            if before is None or ids is None or ids[:-1] != before:
                return ()
            found.append(ids[-1])
        return tuple(found) if len(set(found)) == len(found) else ()

    def tokenize(self, text: str) -> list[int] | None:
        """The ids of a text by itself; None where the server does not say."""
        body = {"prompt": text, "add_special_tokens": False}
        ids = mapping(self.client.fetch("/tokenize", body)).get("tokens")
        fine = isinstance(ids, list) and all(isinstance(one, int) for one in cast("list[Any]", ids))
        return cast("list[int]", ids) if fine else None

    # reading

    def verdict(self, question: Question, replies: Sequence[Reply]) -> Verdict:
        """The verdict in the answers to one question: one, or several samples."""
        read = [self.read(question, reply) for reply in replies]
        blank = Verdict(
            self.name,
            INVALID,
            question.order,
            question.repeat,
            raw=replies[0].text,
            prompt_version=self.prompt.title,
            tokens=(sum(one.tokens[0] for one in replies), sum(one.tokens[1] for one in replies)),
            cached=all(one.cached for one in replies),
        )
        failed = [one for one in replies if one.error]
        if failed:
            return replace(blank, status=ERROR, reason=failed[0].error)
        shares = [one for one in read if one is not None]
        if not shares:
            return replace(blank, reason=why_unread(replies[0], self.labels))
        # of several samples the share of each label; what could not be read is missing
        mean = {
            label: sum(one.shares.get(label, 0.0) for one in shares) / len(shares)
            for label in shares[0].shares
        }
        missing = 1 - sum(1 - one.missing for one in shares) / len(read)
        sure = self.config.label != "text"
        found = self.meaning(question, mean, blank)
        return replace(
            found,
            chance=found.chance if sure else None,
            missing_mass=missing if sure else None,
        )

    def read(self, question: Question, reply: Reply) -> Any:
        """The labels' shares in one answer; None where it names none."""
        if reply.error:
            return None
        names = list(self.labels)
        if self.way in (IDS, LIKELIEST):
            place = label_place(reply, names) if self.config.reasoning else 0
            tokens = None if place is None else first_tokens(reply.choice, place)
            shares = None if tokens is None else label_shares(tokens, names)
            enough = shares is not None and 1 - shares.missing >= self.config.least_mass
            return shares if enough else None
        return said_label(reply, names, self.config, numbers=not self.prompt.labels)

    def meaning(self, question: Question, shares: Mapping[str, float], blank: Verdict) -> Verdict:
        """A verdict from the labels' shares: what they mean, for the responses as stored."""
        best = max(shares, key=lambda label: shares[label])
        means = {label: self.labels[label] for label in shares}
        if self.config.form == "pair":
            return pair_verdict(shares, means, best, blank)
        if self.config.form == "levels":
            return level_verdict(shares, means, best, blank)
        if means[best] is None:
            return replace(blank, status=ABSTAIN)
        counted = {label: share for label, share in shares.items() if means[label] is not None}
        score = sum(share * float(means[label]) for label, share in counted.items())
        return replace(blank, status=SCORED, score=score / sum(counted.values()))


def pair_verdict(
    shares: Mapping[str, float], means: Mapping[str, Any], best: str, blank: Verdict
) -> Verdict:
    """P(a better) = p(A) + p(tie) / 2 of what was shown first, turned to the responses."""
    weight = {A: 1.0, TIE: 0.5, B: 0.0}
    first = sum(share * weight[means[label]] for label, share in shares.items())
    chance = first if blank.order == STRAIGHT else 1 - first
    status = means[best]
    if blank.order == SWAPPED and status != TIE:
        status = B if status == A else A
    # labels that are equally likely name no winner
    if first == 0.5:
        status = TIE
    return replace(blank, status=status, chance=chance)


def level_verdict(
    shares: Mapping[str, float], means: Mapping[str, Any], best: str, blank: Verdict
) -> Verdict:
    """Of four levels the likeliest, and P(a better), the share of the two that say so."""
    first = sum(share for label, share in shares.items() if means[label] <= 2)
    straight = blank.order == STRAIGHT
    level = means[best] if straight else 5 - means[best]
    chance = first if straight else 1 - first
    return replace(blank, status=A if level <= 2 else B, level=level, chance=chance)


def labels_of(prompt: Prompt, config: JudgeConfig) -> dict[str, Any]:
    """label -> what it means, as this judge is asked."""
    if config.form == "score":
        low, high = config.scale
        return {str(number): number for number in range(low, high + 1)}
    found = {
        label: meaning for label, meaning in prompt.labels.items() if config.ties or meaning != TIE
    }
    if len(found) < 2:
        raise LaurelError("it has no two labels.", where=f"prompt {prompt.name}, labels")
    return found


def choices_of(prompt: Prompt, labels: Mapping[str, Any]) -> str:
    """The labels in words: `A: A is better; B: B is better`."""
    said = [f"{label}: {prompt.choices.get(label, label)}" for label in labels]
    return "; ".join(said)


def asked(
    config: JudgeConfig, messages: Sequence[Mapping[str, str]], prefix: str
) -> dict[str, Any]:
    """The messages as the wire has them: a chat, or one text that ends in the prefix."""
    if config.api == "completions":
        return {"prompt": as_text(messages, "" if config.reasoning else prefix)}
    if config.system_role:
        return {"messages": list(messages)}
    joined = "\n\n".join(message["content"] for message in messages)
    return {"messages": [{"role": "user", "content": joined}]}


@dataclass(frozen=True, slots=True)
class Said:
    """The one label that an answer names."""

    shares: Mapping[str, float]
    missing: float = 0.0


def said_label(
    reply: Reply, names: Sequence[str], config: JudgeConfig, *, numbers: bool
) -> Said | None:
    """The label that stands in an answer's text."""
    text = reply.text
    # a base model goes on writing: its answer is the first line
    if config.api == "completions" and not config.reasoning:
        text = text.strip().partition("\n")[0]
    if numbers:
        low, high = config.scale
        number = read_number(text, low, high, reasoning=config.reasoning)
        label = None if number is None else str(number)
    else:
        label = read_label(text, names, reasoning=config.reasoning)
    if label is None:
        return None
    return Said({name: float(name == label) for name in names})


def label_place(reply: Reply, names: Sequence[str]) -> int | None:
    """Where in a reasoned answer the token of its verdict stands."""
    label = read_label(reply.text, names, reasoning=True)
    return None if label is None else label_position(reply.choice, label)


def why_unread(reply: Reply, labels: Mapping[str, Any]) -> str:
    """Why an answer is no verdict, in one line."""
    said = " ".join(reply.text.split())[:80]
    cut = " (cut off)" if reply.finish == "length" else ""
    counted = Counter(labels)
    return f"it names none of {', '.join(counted)}: {said!r}{cut}"
