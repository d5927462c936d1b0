"""Errors a person can act on: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LaurelError(Exception):
    """A failure with a remedy. The command line prints it without a traceback and leaves with `exit_code`.

    `wanted`: nothing failed, somebody asked for the end.
    `what` is one sentence, `where` a place (file:line, option, reward name), `fix` what to do next.
    """

    exit_code = 1
    wanted = False

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__((f"{where}: " if where else "") + what + (f" {fix}" if fix else ""))

    def __reduce__(self):  # keyword-only arguments do not survive pickling across a process border by themselves
        return _rebuild, (type(self), self.what, self.where, self.fix)


class UsageError(LaurelError):
    """Bad options, configuration or input: found before any weight is loaded. Exit code 2."""

    exit_code = 2


def _rebuild(kind: type[LaurelError], what: str, where: str, fix: str) -> LaurelError:
    return kind(what, where=where, fix=fix)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest right spelling: "Did you mean `learning_rate`?", or the choices if few."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"Known: {', '.join(known)}." if len(known) <= 24 else ""
