"""A reward model that a person can read: linear in a dozen features of a text."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import t as student

FEATURES = (
    "log of the words",
    "empty",
    "line ends a word",
    "a list",
    "share of repeated three words",
    "different words a word",
    "words shared with the prompt",
    "code",
    "refuses, or calls itself a model",
    "ends with a full stop",
    "marks of a chat's turns",
    "letters a word",
)
RIDGE = 10.0
"""Of the weights, in votes; chosen beforehand."""
REFUSALS = re.compile(r"as an ai|i'm sorry|i am sorry|i cannot|language model", re.I)
TURNS = re.compile(r"user:|human:|assistant:|###|<\|", re.I)
LISTED = re.compile(r"^\s*(?:[-*]|\d+[.)])", re.M)


def features(prompt: str, text: str) -> list[float]:
    """What the model sees of a response, in the order of `FEATURES`."""
    words = text.split()
    count = len(words)
    triples = [tuple(words[k : k + 3]) for k in range(count - 2)]
    asked = set(re.findall(r"\w+", prompt.lower()))
    said = set(re.findall(r"\w+", text.lower()))
    return [
        float(np.log1p(count)),
        float(count == 0),
        text.count("\n") / (count + 1),
        float(len(LISTED.findall(text)) > 2),
        1 - len(set(triples)) / len(triples) if triples else 0.0,
        len(said) / (count + 1),
        len(asked & said) / (len(asked) + 1),
        float("```" in text),
        float(bool(REFUSALS.search(text))),
        float(text.strip()[-1:] in set(".!?`)\"'")),
        float(bool(TURNS.search(text))),
        float(np.mean([len(word) for word in words])) if words else 0.0,
    ]


@dataclass(frozen=True, slots=True)
class LinearReward:
    """Weights in logits a standard deviation of a feature's gap, and the half of their intervals.

    gaps: pair -> the reward of the first less that of the second, by weights that saw no pair of
    its prompt.
    """

    weights: np.ndarray
    half: np.ndarray
    gaps: dict[str, float]


def fit_linear(
    pairs: Mapping[str, tuple[str, str, str]],
    taught: Mapping[str, tuple[float, float]],
    prompts: Mapping[str, Hashable],
) -> LinearReward:
    """Bradley-Terry in features: logit P(first wins) = w (x_first - x_second).

    pairs: name -> prompt and both responses; taught: name -> (P(the first wins), how much it
    counts). The intervals of the weights leave out one prompt at a time (jackknife).
    """
    names = list(pairs)
    rows = _gaps([pairs[name] for name in names])
    share, count = np.array([taught.get(name, (0.5, 0.0)) for name in names]).T
    of = np.array([str(prompts[name]) for name in names])
    gaps: dict[str, float] = {}
    without: list[np.ndarray] = []
    for prompt in sorted(set(of.tolist())):
        out = of == prompt
        without.append(_weights(rows[~out], share[~out], count[~out]))
        held = [name for name, apart in zip(names, out.tolist(), strict=True) if apart]
        found = (rows[out] @ without[-1]).tolist()
        gaps.update(zip(held, found, strict=True))
    weights = _weights(rows, share, count)
    return LinearReward(weights, _jackknife(without), gaps)


def _gaps(pairs: Sequence[tuple[str, str, str]]) -> np.ndarray:
    """[pairs, features] those of the first response less the second's, in standard deviations."""
    first = np.array([features(prompt, one) for prompt, one, _ in pairs])
    second = np.array([features(prompt, two) for prompt, _, two in pairs])
    spread = (first - second).std(0)
    return (first - second) / np.where(spread > 0, spread, 1)


def _weights(rows: np.ndarray, share: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The maximum of the likelihood less RIDGE / 2 |w|^2, by Newton's method."""
    weights = np.zeros(rows.shape[1])
    ridge = RIDGE * np.eye(rows.shape[1])
    for _ in range(30):
        chance = expit(rows @ weights)
        slope = rows.T @ (count * (share - chance)) - RIDGE * weights
        bend = (rows * (count * chance * (1 - chance))[:, None]).T @ rows + ridge
        weights = weights + np.linalg.solve(bend, slope)
    return weights


def _jackknife(without: Sequence[np.ndarray]) -> np.ndarray:
    """Half the 95 % interval of each weight, from the fits without one group."""
    found = np.stack(without)
    n = len(found)
    error = np.sqrt((n - 1) / n * ((found - found.mean(0)) ** 2).sum(0))
    return float(student.ppf(0.975, n - 1)) * error
