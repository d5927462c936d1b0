"""Where in an answer its answer stands: in a box, behind ####, behind "the answer is", or at the
end. Each in one linear pass.
"""

from __future__ import annotations

import re
from collections import deque

MOST_MARKS = 50
SENTENCE = re.compile(
    r"\n|(?<!\bapprox)(?<!\bca)(?<!\bsq)(?<!\bcu)(?<!\bvs)(?<!\bi\.e)(?<!\be\.g)(?:[.!?](?=[\s*_]|$)|[\u3002\uff01\uff1f])"
)
_FINAL = r"(?:final|correct|right|desired|required|numerical|exact)"
# "answer is", "answers to the question are", "Answer:", a heading "Answer"; and, the other way
# round, "42 is the answer".
BEHIND = re.compile(
    r"\b(?:answers?|(?:correct|right|best)\s+(?:option|choice))\b"
    r"[^.\n:=?!]{0,80}?(?:\b(?:is|are|was|be|equals?|becomes)\b(?:\s*:)?|[:=])"
    r"|^[#*_ \t]*(?:the\s+)?(?:final\s+)?answers?[*_ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
BEFORE = re.compile(
    r"\s(?:is|are|was|must be|would be|will"
    rf" be)\s+(?:\w+\s+)?(?:the|our|my|your)\s+(?:{_FINAL}\s+)*answers?\b",
    re.IGNORECASE,
)
# What stands behind "answer is" without being one.
_FILLER = re.compile(
    r"(?:correct|right|helpful|clear|useful|wrong|incorrect|what|that|as"
    r" follows|below|above|it\b|obvious|found|given|shown|in\b|to\b"
    r"|here|based|complete|now|easy|simple|unique|yours|satisfactory|acceptable|understandable|accurate)",
    re.IGNORECASE,
)
_CONTRAST = re.compile(
    r"(?:(?<=[\d$])[ \t]+|[,;(][ \t]*)(?:and |but )?(?:not|rather than|instead of)[ \t]+"
    r"(?:\$[^$\n]{1,80}\$|[-$€£]?\d[\d.,/]*(?<=\d)%?)[ \t]*\)?"
)
# What is said beside the answer: "42, as found in step 3".
_ASIDE = re.compile(
    r",?\s+(?:as"
    r" (?:we|i|found|shown|in|above|computed|required|expected|given)|which|since|because|so"
    r" that|after|obtained|found in)\b",
    re.I,
)


def boxed_contents(text: str) -> list[str]:
    r"""The contents of every outermost \boxed{...} (and \fbox), in order.

    Unclosed ones are left out. Linear in the text.

    Of a box in a box the inner content, twice at most.
    """
    found = _boxes(text)
    for _ in range(2):
        found = [
            inner[0] if box.startswith(r"\boxed") and len(inner := _boxes(box)) == 1 else box
            for box in found
        ]
    return found


def _boxes(text: str) -> list[str]:
    found: list[str] = []
    depth, start = 0, 0
    for match in re.finditer(
        r"\\(?:boxed|fbox)\s*\{|\\boxed\s+(?=[-\d])[-\d.,/]*\d|\\.|[{}]", text, re.DOTALL
    ):
        token = match.group()
        if depth == 0:
            if token[-1].isdigit() and len(token) > 2:
                found.append(token[6:].strip())
            elif token.endswith("{") and len(token) > 2:
                depth, start = 1, match.end()
        elif token.endswith("{") and token != r"\{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                found.append(text[start : match.start()].strip())
    return found


def unboxed_answer(text: str) -> str:
    r"""The part of an unboxed text that holds its answer: the rest of the line behind the last
    ####, else the sentence behind the last
    "the answer is" (or before "is the answer"), else all. Marks with nothing behind them mark
    nothing.
    """
    if "####" in text:
        rest = text.rsplit("####", 1)[1]
        line = rest.lstrip().partition("\n")[0]
        if re.match(r"[^A-Za-z\n]*\d|[-+$\\]", line) or not rest.strip().partition("\n")[1]:
            return line.strip() or text
        text = rest
    return without_contrast(stated_answer(text) or text)


def without_contrast(text: str) -> str:
    """Less what the answer is said not to be: "11, not 12" and "11 (rather than 12)" are 11."""
    return _CONTRAST.sub(" ", text)


def stated_answer(text: str) -> str:
    """The sentence that a text calls its answer; "" if it calls none so."""
    marks = deque(BEHIND.finditer(text), maxlen=MOST_MARKS)
    found = [
        (match.start(), first_sentence(text[match.end() : match.end() + 4000])) for match in marks
    ]
    for match in deque(BEFORE.finditer(text), maxlen=MOST_MARKS):
        start = [
            end.end()
            for end in SENTENCE.finditer(text[max(0, match.start() - 1000) : match.start()])
        ]
        begin = max(0, match.start() - 1000)
        found.append(
            (match.start(), text[begin + (start[-1] if start else 0) : match.start()].strip())
        )
    told = [said for _, said in sorted(found) if said and not _FILLER.match(said)]
    numbers = [said for said in told if re.search(r"[\d\\$]", said)]
    return (numbers or told or [""])[-1]


def first_sentence(text: str) -> str:
    """The first sentence, a formula that opens it whole: as far as a line's end or a full stop."""
    text = text.lstrip(" \t\n:*_")
    skip = 0
    for begin, end in (("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"), ("$", "$")):
        if text.startswith(begin) and not re.match(r"\$\d[\d.,]*(?:[\s.]|$)", text):
            closed = text.find(end, len(begin))
            skip = closed + len(end) if closed > 0 else 0
            break
    stop = SENTENCE.search(text, skip)
    text = text[: stop.start()] if stop else text
    aside = _ASIDE.search(text, skip)
    if aside and re.search(r"[\d\\]", text[: aside.start()]):
        text = text[: aside.start()]
    return text.strip().rstrip("*_").strip()
