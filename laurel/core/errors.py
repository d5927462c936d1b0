"""Errors a person can act on: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LaurelError(Exception):
    """A failure with a remedy. The command line prints it without a traceback and leaves with
    `exit_code`.

    `wanted`: nothing failed, somebody asked for the end.
    `what` is one sentence, `where` a place (file:line, option, reward name), `fix` what to do next.
    """

    exit_code = 1
    wanted = False

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__((f"{where}: " if where else "") + what + (f" {fix}" if fix else ""))

    def __reduce__(
        self,
    ):  # keyword-only arguments do not survive pickling across a process border by themselves
        return _rebuild, (type(self), self.what, self.where, self.fix)


class UsageError(LaurelError):
    """Bad options, configuration or input: found before any weight is loaded. Exit code 2."""

    exit_code = 2


def _rebuild(kind: type[LaurelError], what: str, where: str, fix: str) -> LaurelError:
    return kind(what, where=where, fix=fix)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest right spelling: "Did you mean `learning_rate`?", or the choices
    if few.
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"Known: {', '.join(known)}." if len(known) <= 24 else ""


def misspelt(name: str, known: Iterable[str]) -> str:
    """The one option of which `name` can only be a misspelling, or "": a letter or two of its
    words, or where they part.

    A word more or less, or another word, makes another option (`entropy_coef_min`, `top_p` and
    `top_k`, `lora_rank` and `lora_r`): a hint by likeness alone would point to it, and be followed.
    """
    known = sorted(set(known))
    joined = [one for one in known if one.replace("_", "") == name.replace("_", "")]
    words = name.split("_")
    close = [
        one for one in known if len(one.split("_")) == len(words) and _near(words, one.split("_"))
    ]
    found = joined or close
    return found[0] if len(found) == 1 else ""


def _near(words: list[str], others: list[str]) -> bool:
    """Do two names differ in one word: cut short after three letters, or with slips, of which a
    short word allows none, a long one two?
    """
    pairs = [(one, other) for one, other in zip(words, others, strict=True) if one != other]
    if len(pairs) != 1:
        return False
    (one, other) = pairs[0]
    shorter = min(len(one), len(other))
    if any(letter.isdigit() for letter in {*one} ^ {*other}):
        return False  # beta1 and beta2 are two options, and neither is beta
    if len(one) >= 3 and other.startswith(one):
        return True
    return edit_distance(one, other) <= (0 if shorter < 4 else 1 if shorter < 7 else 2)


def edit_distance(one: str, other: str) -> int:
    """Letters put in, left out, changed, or swapped with their neighbour, that make one word the
    other.
    """
    before, last = [0] * (len(other) + 1), list(range(len(other) + 1))
    for i, letter in enumerate(one):
        row = [i + 1]
        for j, there in enumerate(other):
            cost = min(last[j + 1] + 1, row[j] + 1, last[j] + (letter != there))
            if i and j and letter == other[j - 1] and one[i - 1] == there:
                cost = min(cost, before[j - 1] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]
