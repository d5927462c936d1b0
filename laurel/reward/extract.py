"""What did the answer settle on? Finding the final answer in a text, in one linear pass each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from laurel.data.hedges import undecided, without_question

# A sign counts only where no number, letter or bracket stands directly before it: "5-3" holds 5 and 3, "= -3" holds -3.
NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)\]}])[-+])?[$€£]?(?P<whole>\d{1,3}(?:,\d{3})+(?![\d,]*\d)|\d+)?(?P<part>\.\d+)?(?<=\d)\.?(?P<power>(?<!\.)[eE][-+]?\d+)?(?:/(?P<under>\d+))?"
)
DIGITS = 100
POWER = 300
ANSWER_IS = re.compile(r"\banswer(?:\s+is)?\s*(?::|=|\bis\b)?\s*", re.IGNORECASE)


def column(row: Mapping[str, Any], name: str = "answer") -> str | None:
    """A column of the row as text, or None where it is absent or empty. Without an `answer`, the row's `completion` stands in for it."""
    value = row.get(name)
    if value is None and name == "answer" and isinstance(row.get("completion"), str):
        value = row["completion"]
    text = "" if value is None else str(value).strip()
    return text or None


def prompt_text(row: Mapping[str, Any]) -> str:
    """The prompt as text: `prompt` (a string, or messages: the last one), else `question`."""
    prompt = row.get("prompt", row.get("question", ""))
    if isinstance(prompt, (list, tuple)) and prompt:
        prompt = prompt[-1].get("content", "") if isinstance(prompt[-1], Mapping) else ""
    return prompt if isinstance(prompt, str) else ""


def own_words(answer: str, row: Mapping[str, Any]) -> str:
    """The answer without copies of its prompt."""
    return without_question(answer, prompt_text(row))


def boxed(text: str) -> list[str]:
    r"""The contents of every outermost \boxed{...} (and \fbox), in order; unclosed ones are left out. Linear in the text."""
    found: list[str] = []
    depth, start = 0, 0
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", text, re.DOTALL):
        token = match.group()
        if depth == 0:
            if token.endswith("{") and len(token) > 2:
                depth, start = 1, match.end()
        elif token.endswith("{") and token != r"\{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                found.append(text[start : match.start()].strip())
    return found


def plain(text: str) -> str:
    r"""LaTeX that numbers are written in, as plain text: \frac{1}{2}, \$, \%, \!, \text{...}; the typographic minus too."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")
    text = re.sub(r"\\[dtc]?frac\s*\{\s*(\d{1,50})\s*\}\s*\{\s*(\d{1,50})\s*\}", r"\1/\2", text)
    text = re.sub(r"\\([$%])", r"\1", text)
    return re.sub(r"\{,\}", ",", re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]{0,200})\}", r" \1 ", text)).replace(r"\!", "")


def value(match: re.Match[str]) -> Fraction | None:
    """The exact value of one match of NUMBER; None where it is absurd (over 100 digits, exponent over 300, zero denominator)."""
    whole, part, power, under = (match.group(name) or "" for name in ("whole", "part", "power", "under"))
    if len(whole) + len(part) + len(under) > DIGITS or len(power) > 5 or abs(int(power[1:] or 0)) > POWER:
        return None
    if under and (part or power or int(under) == 0):
        return None
    number = Fraction((whole.replace(",", "") or "0") + part + power)
    number = number / int(under) if under else number
    return -number if match.group("sign") == "-" else number


def final_number(text: str) -> Fraction | None:
    """The last number of the text, unless it is one of a list (different numbers, only separators between) or an operand.

    "so 49 - 10 = 39." is 39; "$1,234.00" is 1234; "1/2" is Fraction(1, 2); "50%" is 50; "3 or 4", "1 2 3 4" and "9**9" are None.
    """
    text = plain(text)[-20_000:]
    matches = [match for match in NUMBER.finditer(text) if match.group("whole", "part") != (None, None)]
    if not matches:
        return None
    last = value(matches[-1])
    if last is not None and len(matches) > 1:
        before = matches[-2]
        start = matches[-1].start("whole") if matches[-1].group("whole") else matches[-1].start("part")
        if undecided(text[before.end() : start], equal=value(before) == last):
            return None
    return last


def close(left: Fraction, right: Fraction, tolerance: float = 1e-6) -> bool:
    """Equal; or, unless both are whole, within `tolerance` relative to the larger of |right| and 1 (so 0.333333 is 1/3)."""
    if left == right or (left.denominator == 1 and right.denominator == 1):
        return left == right
    return abs(left - right) <= Fraction(tolerance) * max(1, abs(right))


def shown(number: Fraction) -> str:
    """A number for a reason: 39, 0.5, 1.2e+300."""
    return f"{float(number):.10g}" if abs(number) < 10**300 else "a number beyond 1e300"


def settled(text: str) -> str:
    r"""The part of an unboxed text that holds its answer: the sentence after the last ####, else after the last "answer is", else all."""
    if "####" in text:
        rest = text.rsplit("####", 1)[1]
    else:
        said = list(ANSWER_IS.finditer(text))
        rest = text[said[-1].end() :] if said else ""
    return re.split(r"\n|[.!?](?=\s|$)", rest.strip(), maxsplit=1)[0] if rest.strip() else text
