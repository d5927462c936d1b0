"""From an answer's text and log-probabilities to a label, or to why there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

THOUGHT = re.compile(r"<think>.*?</think>|^.*?</think>", re.DOTALL)
"""What models that reason by themselves write before their answer."""
VERDICT_LINE = re.compile(r"^[\W_]*verdict[\W_]*[:=-][\W_]*(\w+)[\W_]*$", re.IGNORECASE)
BARE = re.compile(r"^[\W_]*(\w+)[\W_]*$")


def read_label(text: str, labels: Sequence[str], *, reasoning: bool) -> str | None:
    """The label that an answer names, None where it names none, or more than one.

    Without reasoning the answer is the label alone, or a verdict line. With it the last line is a
    verdict line, or all verdict lines name one label: a verdict that is only quoted does not count.
    """
    spoken = THOUGHT.sub("", text).strip()
    lines = [line for line in spoken.splitlines() if line.strip()]
    if not lines:
        return None
    exact = {label.upper(): label for label in labels}
    if not reasoning and (bare := BARE.match(spoken)):
        return exact.get(bare[1].upper())
    found = [VERDICT_LINE.match(line.strip()) for line in lines]
    named = [exact.get(one[1].upper()) for one in found if one]
    if found[-1] is not None:
        return named[-1]
    return named[0] if len(set(named)) == 1 else None


def read_number(text: str, low: int, high: int, *, reasoning: bool) -> int | None:
    """The whole number from low to high that an answer names; None where it names none."""
    numbers = [str(number) for number in range(low, high + 1)]
    spoken = re.sub(rf"\s*/\s*{high}\b", "", text)
    label = read_label(spoken, numbers, reasoning=reasoning)
    return None if label is None else int(label)


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
    completion's `top_logprobs[i]`. The drawn token often stands there twice; two tokens of one
    text, with a space before and without, have probabilities of their own.
    """
    found: Any = choice.get("logprobs")
    logprobs = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    content: Any = logprobs.get("content")
    if isinstance(content, list):
        here = entry(cast("list[Any]", content), position)
        listed = [here, *cast("list[dict[str, Any]]", here.get("top_logprobs") or [])]
        pairs = {(str(one.get("token")), number(one.get("logprob"))) for one in listed if one}
        return sorted(pairs) or None
    top: Any = logprobs.get("top_logprobs")
    if isinstance(top, list):
        here = entry(cast("list[Any]", top), position)
        return [(token, number(logp)) for token, logp in here.items()] or None
    return None


def entry(rows: Sequence[Any], position: int) -> dict[str, Any]:
    """The object at a position; empty where there is none."""
    found = rows[position] if position < len(rows) else None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def number(value: Any) -> float:
    """A log-probability; minus infinity for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return -math.inf
    # rounding may leave it a little above 0; what is NaN is no number either
    if not value <= 1e-6:
        return -math.inf
    return float(value)


def label_position(choice: Mapping[str, Any], label: str) -> int | None:
    """Where in a chat's answer the token of its verdict stands: the last that spells the label."""
    logprobs: Any = choice.get("logprobs")
    content: Any = cast("dict[str, Any]", logprobs).get("content") if logprobs else None
    if not isinstance(content, list):
        return None
    place = None
    for i, one in enumerate(cast("list[dict[str, Any]]", content)):
        if spelt(str(one.get("token"))) == label:
            place = i
    return place
