"""From an answer's text and log-probabilities to a label, or to why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

VERDICT = "verdict"
THINK, THOUGHT = "<think>", "</think>"
"""Around what models that reason by themselves write before their answer."""


def read_label(text: str, labels: Sequence[str], *, reasoning: bool) -> str | None:
    """The label that an answer names, None where it names none, or more than one.

    Without reasoning the answer is the label alone. Else its last line is a verdict line, such as
    `Verdict: A`: verdicts before it may be quotations.
    """
    spoken = spoken_part(text)
    exact = {label.upper(): label for label in labels}
    if not reasoning and (alone := word_of(spoken)):
        return exact.get(alone.upper())
    named = word_of_verdict(last_line(spoken))
    return exact.get(named.upper()) if named else None


def read_number(text: str, low: int, high: int, *, reasoning: bool) -> int | None:
    """The whole number from low to high that an answer names, also as `7/10`; None for none."""
    numbers = [str(number) for number in range(low, high + 1)]
    spoken = spoken_part(text).strip()
    front, slash, limit = spoken.rpartition("/")
    if slash and word_of(limit) == str(high):
        spoken = front
    label = read_label(spoken, numbers, reasoning=reasoning)
    return None if label is None else int(label)


# no regular expressions: on what a hostile server says, these took hours


def spoken_part(text: str) -> str:
    """An answer without its thoughts; of one that was cut off in them nothing is left."""
    after = text.rpartition(THOUGHT)[2]
    return "" if THINK in after else after


def without_halves(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which no file and no server takes."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def last_line(text: str) -> str:
    """The last line that has a letter or a number; "" where none has."""
    for line in reversed(text.splitlines()):
        if any(letter.isalnum() for letter in line):
            return line
    return ""


def word_of(line: str) -> str:
    """The one word of a line, a number with its minus; "" for none, or more.

    Around it stand marks, such as those of Markdown.
    """
    inside = [i for i, letter in enumerate(line) if letter.isalnum()]
    if not inside or inside[-1] - inside[0] + 1 != len(inside):
        return ""
    word = line[inside[0] : inside[-1] + 1]
    minus = word.isdigit() and line[: inside[0]].endswith("-")
    return f"-{word}" if minus else word


def word_of_verdict(line: str) -> str:
    """The word after `Verdict:`; "" where the line is no verdict."""
    start = line.lower().find(VERDICT)
    if start < 0 or any(letter.isalnum() for letter in line[:start]):
        return ""
    rest = line[start + len(VERDICT) :]
    marks = rest[: next((i for i, letter in enumerate(rest) if letter.isalnum()), 0)]
    return word_of(rest) if any(mark in marks for mark in ":=-") else ""


Token = tuple[str, float]
"""A token's text and its log-probability."""


@dataclass(frozen=True, slots=True)
class LabelShares:
    """The labels' probabilities, normalised among themselves, and what fell on none of them.

    missing: 1 minus the mass that is known to be the labels'.
    """

    shares: Mapping[str, float]
    missing: float


def label_shares(first: Sequence[Token], labels: Sequence[str]) -> LabelShares | None:
    """The labels' shares from the tokens that may stand in one place, as text and log-probability.

    p(label) = sum of the tokens that spell it, with or without a space before. Of a label that is
    not among the tokens no more is known than that each of its tokens has at most the smallest
    probability there, and no more than what is left: it is given that much, so that a soft label is
    never surer than what was seen. None where no label is among them.
    """
    mass = dict.fromkeys(labels, 0.0)
    seen = set[str]()
    for token, logp in first:
        word = spelt(token)
        if word in mass:
            mass[word] += math.exp(logp)
            seen.add(word)
    if not seen:
        return None
    known = min(sum(mass.values()), 1.0)
    listed = [math.exp(logp) for _, logp in first]
    rest = max(0.0, 1.0 - sum(listed))
    bound = min(min(listed), rest)
    for label in labels:
        if label not in seen:
            mass[label] = bound
    total = sum(mass.values())
    if total <= 0:
        return None
    shares = dict[str, float]()
    for label, value in mass.items():
        shares[label] = value / total
    return LabelShares(shares, 1.0 - known)


def spelt(token: str) -> str:
    """A token as the word that it spells: without the space before it, as text or as its mark."""
    return token.lstrip(" \u0120\u2581\n").rstrip()


def first_tokens(choice: Mapping[str, Any], position: int = 0) -> list[Token] | None:
    """The tokens at one position of an answer, as text and log-probability.

    None where the server gives none. Both shapes: a chat's `content[i].top_logprobs`, and a
    completion's `top_logprobs[i]`. Two tokens of one text, with a space before and without, have
    probabilities of their own. The drawn token counts where nothing else is listed: beside its own
    entry in the list it would count twice, as servers round the two apart.
    """
    logprobs = mapping(choice.get("logprobs"))
    if isinstance(logprobs.get("content"), list):
        here = entry(logprobs["content"], position)
        found = [one for one in map(mapping, sequence(here.get("top_logprobs"))) if one]
        listed = found or [one for one in [here] if one]
        pairs = {(str(one.get("token")), number(one.get("logprob"))) for one in listed}
        return sorted(pairs) or None
    here = entry(logprobs.get("top_logprobs"), position)
    return [(str(token), number(logp)) for token, logp in here.items()] or None


def mapping(value: Any) -> dict[str, Any]:
    """An object of an answer; empty where it is none."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """A list of an answer; empty where it is none."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def entry(rows: Any, position: int) -> dict[str, Any]:
    """The object at a position; empty where there is none."""
    listed = sequence(rows)
    return mapping(listed[position]) if position < len(listed) else {}


def number(value: Any) -> float:
    """A log-probability; minus infinity for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return -math.inf
    # rounding may leave it a little above 0; what is NaN is no number either, and a whole number
    # may be too long for a float
    if not -1e9 <= value <= 1e-6:
        return -math.inf
    return float(value)


def label_position(choice: Mapping[str, Any], label: str) -> int | None:
    """Where in a chat's answer the token of its verdict stands: the last that spells the label."""
    content = sequence(mapping(choice.get("logprobs")).get("content"))
    places = [i for i, one in enumerate(content) if spelt(str(mapping(one).get("token"))) == label]
    return places[-1] if places else None
