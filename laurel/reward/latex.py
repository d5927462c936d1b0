"""Expressions as people write them, as the LaTeX that math-verify reads."""

from __future__ import annotations

import re

from laurel.data.plain_text import ascii_digits

COMMANDS = {
    "π": r"\pi ",
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": r"\div ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "∞": r"\infty ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∅": r"\emptyset ",
    "°": r"^\circ ",
    "∈": r"\in ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
}
FUNCTIONS = (
    r"(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|max|min|arcsin|arccos|arctan|sinh|cosh|tanh"
    r"|det|gcd|lcm|mod|inf|and|or)\b"
)
_LEADING = re.compile(
    rf"^(?:(?!{FUNCTIONS})[A-Za-z']{{2,}}[,:]?\s+|[Aa]\s+(?=[A-Za-z]{{2}})|I\s+)+", re.IGNORECASE
)
# Words that change what the number behind them is worth.
_SPOKEN = re.compile(
    r"\b(?:root|log|logarithm|factorial|power|sum|product|difference|quotient|times|minus|plus|half|twice|double|squared|cubed|not|inverse"
    r"|reciprocal|than|least|most|between|either|neither)\b",
    re.IGNORECASE,
)
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|mathsf|operatorname)\s*\{([^{}]*)\}"
)
_ROOT = re.compile(r"√\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")
_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc))\s*(?:\{|\(|\\left\()?\s*(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)\s*(?:\\right\)|\)|\})?"
)
_DIGIT = r"(?:\{[^{}]*\}|\d)"


def as_latex(text: str) -> str:
    r"""√3 as \sqrt{3}, x² as x^{2}, π as \pi, \frac12 as \frac{1}{2}.

    No full stop at the end, no Markdown.
    """
    text = ascii_digits(text.strip().strip("*`").strip())
    text = re.sub(r"(?<=[^.])\.$", "", text.strip()).strip()
    text = re.sub(
        r"(?:the\s+)?square root of\s+|(?<![\\A-Za-z])sqrt\s*(?=[\d({])|(?<=\d)sqrt\s*(?=[\d({])",
        "√",
        text,
    )
    text = _ROOT.sub(
        lambda found: r"\sqrt{" + next(part for part in found.groups() if part is not None) + "}",
        text,
    )
    text = re.sub(rf"\\([dt]?frac)\s*({_DIGIT})\s*({_DIGIT})", _braced, text)
    text = re.sub(r"\\sqrt\s*(\d)(?!\])", r"\\sqrt{\1}", text)
    text = _DEGREES.sub(r"\1(\\frac{\2\\pi}{180})", text)
    text = re.sub(r"(\d+)\s+choose\s+(\d+)", r"\\binom{\1}{\2}", text)
    return "".join(COMMANDS.get(character, character) for character in text).strip()


def _braced(found: re.Match[str]) -> str:
    top, bottom = (part if part.startswith("{") else f"{{{part}}}" for part in found.groups()[1:])
    return rf"\{found[1]}{top}{bottom}"


def without_words(line: str) -> str:
    """A line of prose without the words that lead to its formula; "" if they are mathematics too; a
    line of words alone as it is.
    """
    line = line.strip().strip("*`_ ")
    bare = re.sub(r"^(?:[-#>]+|\d+[.)])\s+(?=\D)", "", line)
    bare = re.sub(r"(?:the\s+)?square root of\s+", "√", bare)
    lead = _LEADING.match(bare)
    if lead and _SPOKEN.search(lead[0]):
        return ""
    rest = _LEADING.sub("", bare).strip()
    return rest if re.search(r"[\d=+^\\]|[^\x00-\x7f]", rest) else bare


def bare_word(text: str) -> str:
    r"""The word or words that an expression is, in small letters.

    A single letter, as of a choice, as it is; "" for mathematics.
    """
    text = _TEXT.sub(r" \1 ", text.strip().strip("$*`").strip())
    inside = re.fullmatch(r"\(\s*([A-Za-z])\s*\)\.?", text.strip())
    if inside:
        return inside[1]
    text = " ".join(text.strip().rstrip(".").split())
    if re.fullmatch(r"[A-Z]", text):
        return text
    words = re.fullmatch(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*", text)
    if (
        not words
        or re.match(FUNCTIONS, text)
        or (len(text) < 4 and text.casefold() not in ("yes", "no", "odd"))
    ):
        return ""
    return text.casefold()
