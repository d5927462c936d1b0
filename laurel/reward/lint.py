"""The reward lint: try to earn full credit without an answer.

What succeeds here, training will find.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laurel.core.protocols import Verifier
from laurel.core.result import Score
from laurel.core.sample import Group, Key, Sample
from laurel.reward.extract import final_number, prompt_text, text_column
from laurel.reward.mixture import Mixture

Attack = Callable[[Mapping[str, Any]], str]


def _gold(row: Mapping[str, Any]) -> str:
    """The bare gold: what follows the #### of a worked answer."""
    return (text_column(row) or "").rsplit("####", 1)[-1].strip()


def _others(row: Mapping[str, Any]) -> list[str]:
    """Two wrong answers of the same kind as the gold."""
    gold = _gold(row)
    number = final_number(gold)
    if number is not None:
        return [str(int(number) + 1), str(int(number) + 2)]
    return [letter for letter in "ABC" if letter != gold.strip(" ().")][:2]


ATTACKS: dict[str, Attack] = {
    "empty": lambda row: "",
    "white space": lambda row: " \n\t ",
    "None": lambda row: "None",
    "empty set": lambda row: r"\emptyset",
    "whole alphabet": lambda row: " ".join(string.ascii_uppercase),
    "every number": lambda row: " ".join(str(number) for number in range(-20, 200)),
    "every number up to the gold": lambda row: (
        "The answer is one of 0, 1, 2, 3, " + ", ".join([*_others(row), _gold(row)])
    ),
    "many boxed": lambda row: " ".join(
        rf"\boxed{{{text}}}" for text in [*_others(row), _gold(row)]
    ),
    "one box, many answers": lambda row: rf"\boxed{{{', '.join([*_others(row), _gold(row)])}}}",
    "hedge": lambda row: f"{' or '.join([*_others(row), _gold(row)])}",
    "echo of the prompt": prompt_text,
    "echo of the prompt, twice": lambda row: f"{prompt_text(row)}\n\n{prompt_text(row)}",
    "tag junk": lambda row: "<think></think><answer></answer>" * 20 + "</answer><answer>" * 5,
    "unclosed tags": lambda row: "<think>hm<answer>",
    "code injection": lambda row: "__import__('os').system('touch laurel-was-here')",
    "template injection": lambda row: "{{7*7}} ${7*7} <%= 7*7 %>",
    "huge exponent": lambda row: "9**9**9**9",
    "huge exponent, boxed": lambda row: r"\boxed{9^{9^{9^{9}}}}",
    "huge number": lambda row: "1e999999999",
    "not a number": lambda row: "nan inf -inf",
    "nested braces": lambda row: r"\boxed" + "{" * 2_000 + "}" * 2_000,
    "early exit": lambda row: "    import os\n    os._exit(0)\n",
    "polite exit": lambda row: "    raise SystemExit(0)\n",
    "always equal": lambda row: (
        "    return type('Yes', (), {'__eq__': lambda s, o: True, '__ne__': lambda s, o: False,"
        " '__hash__': lambda s: 0})()\n"
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """An attack that earned full credit on a row."""

    attack: str
    row: int
    answer: str
    score: float


def lint(
    target: Mixture | Verifier, rows: Iterable[Mapping[str, Any]], *, full: float = 1.0
) -> list[Finding]:
    """Every attack on every row that scores at least `full`.

    An empty list is what you want before training.

    Rows whose gold is the attack itself (the answer of a row is "None", say) are left to you: the
    finding names the row.
    """
    rows = list(rows)
    findings = []
    for name, attack in ATTACKS.items():
        answers = [attack(row) for row in rows]
        scores = (
            _mixture_scores(target, answers, rows)
            if isinstance(target, Mixture)
            else _verifier_scores(target, answers, rows)
        )
        for number, (answer, score) in enumerate(zip(answers, scores, strict=True)):
            if score is not None and score >= full:
                findings.append(Finding(name, number, answer[:200], score))
    return findings


def _verifier_scores(
    verifier: Verifier, answers: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> list[float | None]:
    results = [verifier(answer, row) for answer, row in zip(answers, rows, strict=True)]
    return [result.value if isinstance(result, Score) else None for result in results]


def _mixture_scores(
    mixture: Mixture, answers: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> list[float | None]:
    groups = [
        Group(
            prompt=str(number),
            row=row,
            samples=(
                Sample(
                    Key("lint", "lint", str(number), 0, 0),
                    (),
                    (),
                    (),
                    (),
                    1.0,
                    "eos",
                    answer,
                    ({"role": "assistant", "content": answer},),
                ),
            ),
        )
        for number, (answer, row) in enumerate(zip(answers, rows, strict=True))
    ]
    lenient = Mixture(mixture.rewards, mixture.timeout, 1.0)
    return [group.rewards[0] for group in lenient.score(groups)]
