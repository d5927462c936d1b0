"""What is no answer: the question again, numbers in a row of which one may be right, a sum that is
not done.
"""

from __future__ import annotations

import re

ECHO_LENGTH = 12
LONGEST_JOINT = 200
# Separators and the words and/or between two different numbers: a list. An operator between two
# numbers: "9**9" and "49 - 10" answer
# nothing, "49 - 10 = 39" does.
_JOINT = re.compile(
    r"(?:[\s,;|%$€£.()\[\]{}'\"*\\&+\N{MINUS SIGN}\N{EN DASH}-]|and\b|or\b)*", re.IGNORECASE
)
_OPERATOR = re.compile(
    r"[ \t)]*(?:\*\*|[-\N{MINUS SIGN}\N{EN DASH}+*/^\N{MULTIPLICATION SIGN}\N{DIVISION SIGN}])["
    r" \t($]*"
)


def without_question(answer: str, question: str) -> str:
    """The answer without copies of its question (of 12 characters or more), however spaced: who
    repeats it has said nothing.
    """
    question = question.strip()
    if len(question) < ECHO_LENGTH:
        return answer
    answer = answer.replace(question, " ")
    words = question.split()
    if words[0] not in answer:  # saves most answers the slower search
        return answer
    return re.sub(r"\s+".join(map(re.escape, words)), " ", answer)


def is_undecided(between: str, *, equal: bool) -> bool:
    """Do the last two numbers of a text, with `between` between them, leave open which is the
    answer?

    True where an operator stands there, or where nothing but separators and the words and/or do and
    the numbers are not `equal`.
    """
    if len(between) > LONGEST_JOINT:
        return False
    return bool(_OPERATOR.fullmatch(between)) or (not equal and bool(_JOINT.fullmatch(between)))
