"""What a server answers to a request for completions, held against what was asked for.

Nothing of it is taken on trust: ids, log-probabilities, ends, texts and versions of the weights are
checked, and what is wrong is an error that names the server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from laurel.core.errors import LaurelError
from laurel.core.sample import Completion, Finish

ABOVE_ZERO = 1e-3
"""How far above 0 rounding may take the log-probability of a token that is certain."""


class _Told(BaseModel):
    """Fields of an answer: those that are not known are of no interest."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _LogProbs(_Told):
    token_logprobs: list[float | None]


class Span(_Told):
    """Tokens [start, end) of a completion, and the version of the weights that drew them."""

    version: str
    start: int
    end: int


class Choice(_Told):
    """One completion, as servers write it."""

    index: int
    text: str
    finish_reason: str
    stop_reason: str | int | None = None
    token_ids: list[int]
    logprobs: _LogProbs
    weight_versions: list[Span] | None = None
    finish_reason_detail: str | None = None


class _Answer(_Told):
    choices: list[Choice]


@dataclass(frozen=True)
class ExpectedAnswer:
    """What a request asked for, as far as its answer is held against it.

    - count: completions. limit: the most tokens of each. vocabulary: ids are below it.
    - ends: the ids that end a completion. stop: the texts that do.
    - version: that of the weights, where the server is known to tell it with each completion.
    """

    count: int
    limit: int
    vocabulary: int
    ends: frozenset[int]
    stop: tuple[str, ...] = ()
    version: str | None = None


def read_choices(
    answer: Any, asked: ExpectedAnswer, tokenizer: Any, where: str
) -> list[Completion]:
    """The completions of an answer, in the order in which they were asked for.

    LaurelError, at the server `where`, for whatever is not as it was asked for.
    """
    try:
        choices = _Answer.model_validate(answer).choices
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the answer"
        raise wrong_answer(f"{place}: {first['msg']}", where) from None
    order = sorted(choice.index for choice in choices)
    if order != list(range(asked.count)):
        raise wrong_answer(
            f"{asked.count} completions were asked for, and it sent {order[:9]}", where
        )
    choices = sorted(choices, key=lambda choice: choice.index)
    done = [read_choice(choice, asked, where) for choice in choices]
    check_texts(choices, done, asked, tokenizer, where)
    return done


def read_choice(choice: Choice, asked: ExpectedAnswer, where: str) -> Completion:
    """One completion; LaurelError for ids, log-probabilities or an end that cannot be."""
    ids, logps, which = choice.token_ids, choice.logprobs.token_logprobs, f"choice {choice.index}"
    if not ids:
        raise wrong_answer(f"{which} has no token", where)
    if len(logps) != len(ids):
        what = f"{which} has {len(ids)} ids and {len(logps)} log-probabilities"
        raise wrong_answer(what, where)
    if len(ids) > asked.limit:
        raise wrong_answer(
            f"{which} has {len(ids)} tokens, where {asked.limit} are the limit", where
        )
    for place, (token, logp) in enumerate(zip(ids, logps, strict=True)):
        if not 0 <= token < asked.vocabulary:
            what = f"{which}, token {place}: there is no id {token} in a vocabulary of"
            raise wrong_answer(f"{what} {asked.vocabulary}: it serves another model", where)
        if logp is None or not math.isfinite(logp) or logp > ABOVE_ZERO:
            raise wrong_answer(f"{which}, token {place}: {logp} is no log-probability", where)
    check_spans(choice, asked, where)
    finish = finish_of(choice, asked, which, where)
    # `logp is None` ended above
    return Completion(tuple(ids), tuple(map(float, logps)), finish)  # pyright: ignore[reportArgumentType]


def finish_of(choice: Choice, asked: ExpectedAnswer, which: str, where: str) -> Finish:
    """Why sampling ended, in our words."""
    ids, said = choice.token_ids, choice.finish_reason
    early = [place for place, token in enumerate(ids[:-1]) if token in asked.ends]
    if early:
        what = f"{which} goes on behind the end token {ids[early[0]]}"
        raise wrong_answer(f"{what}: it knows other end tokens than the trainer's model", where)
    if said not in ("stop", "length"):
        raise wrong_answer(f"{which} ended by `{said}`", where)
    if ids[-1] in asked.ends:
        return "eos"
    by_text = isinstance(choice.stop_reason, str) or choice.finish_reason_detail == "stop"
    if said == "stop" and by_text and asked.stop:
        return "stop"
    if said == "stop":
        what = f"{which} ended at id {ids[-1]}, which ends nothing here"
        raise wrong_answer(f"{what}: it knows other end tokens than the trainer's model", where)
    if len(ids) < asked.limit:
        what = f"{which} was cut at {len(ids)} of {asked.limit} tokens"
        raise wrong_answer(f"{what}: has the server fewer positions (--max-model-len)?", where)
    return "length"


def check_spans(choice: Choice, asked: ExpectedAnswer, where: str) -> None:
    """LaurelError where a completion was not drawn with one version of the weights, ours."""
    if asked.version is None:
        return
    spans = choice.weight_versions
    if spans is None:
        raise wrong_answer(f"choice {choice.index} does not tell the version of its weights", where)
    at = 0
    for span in spans:
        if span.start != at or span.end < span.start:
            raise wrong_answer(f"choice {choice.index}: its spans of versions have holes", where)
        if span.version != asked.version:
            raise foreign_weights(span.version, asked.version, where)
        at = span.end
    if at != len(choice.token_ids):
        raise wrong_answer(f"choice {choice.index}: versions are told of {at} tokens only", where)


def check_texts(
    choices: Sequence[Choice],
    done: Sequence[Completion],
    asked: ExpectedAnswer,
    tokenizer: Any,
    where: str,
) -> None:
    """LaurelError where a server's texts are not what its ids say to the trainer's tokenizer.

    White space is left out (a completion by itself may lose its first), and so is a text with a
    broken letter in it, which two decoders may write in two ways. A text that was stopped may end
    before the stop string.
    """
    spoken = [completion.spoken for completion in done]
    texts: list[str] = tokenizer.batch_decode(spoken, skip_special_tokens=True)
    for choice, completion, text in zip(choices, done, texts, strict=True):
        ours, theirs = "".join(text.split()), "".join(choice.text.split())
        if "\ufffd" in text or "\ufffd" in choice.text:
            continue
        same = ours.startswith(theirs) if completion.finish == "stop" else ours == theirs
        if not same:
            what = (
                f"choice {choice.index}: its ids say {text[:60]!r} here, and {choice.text[:60]!r}"
            )
            raise wrong_answer(f"{what} there: it has another tokenizer", where)


def wrong_answer(what: str, where: str) -> LaurelError:
    """The error for an answer that is not what was asked for."""
    fix = "`laurel doctor --engine URL` checks a server by itself."
    return LaurelError(f"its answer is wrong: {what}.", where=where, fix=fix)


def foreign_weights(found: str, ours: str, where: str) -> LaurelError:
    """The error for weights that somebody else put on the server."""
    what = f"it samples with the weights `{found}`, and this run left `{ours}` there."
    fix = "Does another run train on the same server? Give each its own."
    return LaurelError(what, where=where, fix=fix)
