"""What an answer says in the end: without its thoughts, and inside its answer tags."""

from __future__ import annotations

import re

_WORD = r"(?:think|thinking|thoughts?|reason|reasoning|seed:think)"
OPEN = re.compile(rf"<{_WORD}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>", re.IGNORECASE)
CLOSE = re.compile(rf"</{_WORD}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>", re.IGNORECASE)
TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)


def visible_answer(answer: str) -> str:
    """The answer as a reader is meant to see it.

    Thoughts (`<think>...</think>` and its kin) are not read: neither closed ones, nor what stands
    before a lone `</think>` (the prompt opened it), nor one that never ends. Of what is left, the
    content of `<answer>...</answer>`, where there is one; empty pairs are none, and several that
    differ are no answer. An `<answer>` that is not closed runs to the end (a stop string cut its
    tag off).
    """
    return in_answer_tags(without_thinking(answer))


def without_thinking(answer: str) -> str:
    """The answer without its thoughts."""
    if "<" not in answer and "[" not in answer and "◁" not in answer:
        return answer
    ends = [match.end() for match in CLOSE.finditer(answer)]
    rest = answer[ends[-1] :] if ends else answer
    begun = OPEN.search(rest)
    rest = rest if begun is None else rest[: begun.start()]
    first = OPEN.search(answer)
    return rest if rest.strip() or first is None else answer[: first.start()]


def in_answer_tags(answer: str) -> str:
    """What stands in the answer tags; the answer as it is where there are none."""
    marks = list(TAG.finditer(answer))
    if not marks:
        return answer
    found: list[str] = []
    start: int | None = (
        None if any(not mark[1] for mark in marks) else 0
    )  # a lone closer: the prompt opened it
    for mark in marks:
        if not mark[1]:
            start = mark.end()
        elif start is not None:
            found.append(answer[start : mark.start()].strip())
            start = None
    if start is not None:
        found.append(answer[start:].strip())
    different = list(dict.fromkeys(part for part in found if part))
    return different[0] if len(different) == 1 else ""
