"""Numbers as they are typeset, in plain characters: LaTeX, Unicode and Markdown dress taken off,
other scripts' digits made ASCII.
"""

from __future__ import annotations

import re
import unicodedata

THIN = "\u2009"
# What a command means in one character; a formula that holds another command is no plain number.
SIGNS = {
    "times": "×",
    "cdot": "·",
    "div": "÷",
    "pm": "±",
    "mp": "∓",
    "pi": "π",
    "sqrt": "√",
    "infty": "∞",
    "approx": "≈",
    "neq": "≠",
    "ne": "≠",
    "leq": "≤",
    "le": "≤",
    "geq": "≥",
    "ge": "≥",
    "lt": "<",
    "gt": ">",
    "circ": "°",
    "degree": "°",
    "percent": "%",
    "euro": "€",
    "pounds": "£",
    "dollar": "¤",
    "ldots": "…",
    "dots": "…",
    "quad": " ",
    "qquad": " ",
    **dict.fromkeys(
        (
            "left",
            "right",
            "displaystyle",
            "textstyle",
            "big",
            "Big",
            "large",
            "Large",
            "LARGE",
            "small",
            "bf",
            "rm",
            "it",
        ),
        "",
    ),
}
_SUPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUB = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SIMPLE = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{NON-BREAKING HYPHEN}": "-",
        "\N{HYPHEN}": "-",
        "\u00a0": THIN,
        "\u202f": THIN,
        "\N{ARABIC DECIMAL SEPARATOR}": ".",
        "\N{ARABIC THOUSANDS SEPARATOR}": ",",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{DOT OPERATOR}": "·",
        "\N{IDEOGRAPHIC FULL STOP}": ". ",
        "\u200b": "",
        "\u2060": "",
        "\ufeff": "",
        "\u066a": "%",
    }
)
_INT = r"[-+]?\d{1,50}(?:\.\d{1,50})?"
_ARGUMENT = rf"(?:\{{\s{{0,3}}({_INT})\s{{0,3}}\}}|(\d))"
_FRACTION = re.compile(
    rf"(?:(?P<mixed>\d)\s{{0,3}})?\\[dtc]?frac\s{{0,3}}{_ARGUMENT}\s{{0,3}}{_ARGUMENT}"
)
_BOLD = re.compile(r"(?<![\w*])(\*{1,3}|__)(?=\S)([^*\n]{0,300}?\S)\1(?![\w*])")
_WORDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|mathsf|texttt|boldsymbol|bm|mathcal)\s*\{([^{}]{0,200})\}"
)


def to_plain_text(text: str) -> str:
    r"""The text in plain characters: `\frac{1}{2}` and ½ as 1/2, `2\frac12` as 2 1/2, x² as x^{2},
    `\$` as ¤, `\sqrt` as √.

    Dollar signs stay: whether one opens a formula or a price is seen from what follows.
    """
    text = ascii_digits(text)
    text = (
        text.replace("$$", " ")
        .replace(r"\$", "¤")
        .replace(r"\%", "%")
        .replace("{,}", ",")
        .replace(r"\!", "")
    )
    text = re.sub(r"\\[,:]", THIN, text)
    text = re.sub(r"\\[;()\[\] ]|(?<!\\)~", " ", text).replace(r"\{", "{").replace(r"\}", "}")
    text = _FRACTION.sub(_as_slash, text)
    text = _WORDS.sub(r" \1 ", text)
    text = re.sub(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ|\\degree", "°", text)
    text = re.sub(r"\\([A-Za-z]+)", lambda found: SIGNS.get(found[1], found[0]), text)
    text = re.sub(r"\bnegative\s+(?=[\d.])", "-", text, flags=re.IGNORECASE)
    return _BOLD.sub(r"\2", text).replace("`", "")


def ascii_digits(text: str) -> str:
    """Digits, signs and fractions of other scripts and fonts as ASCII: ٤٢, ४२, full width, the long
    minus, ½, x².
    """
    if text.isascii():
        return text
    text = text.translate(_SIMPLE)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda found: "^{" + found[0].translate(_SUPER) + "}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda found: "_{" + found[0].translate(_SUB) + "}", text)
    return "".join(map(_ascii, text))


def _ascii(character: str) -> str:
    if character.isascii():
        return character
    if 0xFF01 <= ord(character) <= 0xFF5E:  # full width
        return chr(ord(character) - 0xFEE0)
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if unicodedata.category(character) == "No" and "FRACTION" in unicodedata.name(character, ""):
        return " " + unicodedata.normalize("NFKC", character).replace("\N{FRACTION SLASH}", "/")
    return character


def _as_slash(found: re.Match[str]) -> str:
    top, bottom = found[2] or found[3], found[4] or found[5]
    if bottom.startswith("-"):  # 1/-2 is -1/2
        bottom, top = bottom[1:], top[1:] if top.startswith("-") else f"-{top}"
    before = "" if found["mixed"] is None else found["mixed"] + " "
    return f"{before}{top}/{bottom.removeprefix('+')}"
