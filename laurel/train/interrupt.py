"""Stopping on request: a signal ends the run after the step, saved."""

from __future__ import annotations

import signal
from typing import Any

from laurel.core.errors import LaurelError


class Interrupted(LaurelError):
    """The run was asked to stop, by the signal `by`; it has saved itself.

    Its exit code is the shell's: 130 of Ctrl-C, 143 of SIGTERM.
    """

    wanted = True

    def __init__(
        self, what: str, *, where: str = "", fix: str = "", by: int = signal.SIGTERM
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.by, self.exit_code = by, 128 + by

    def again(self, what: str, fix: str) -> Interrupted:
        """The same end in other words."""
        return Interrupted(what, fix=fix, by=self.by)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.what, self.where, self.fix, self.by)


def _rebuild(what: str, where: str, fix: str, by: int) -> Interrupted:
    return Interrupted(what, where=where, fix=fix, by=by)


class StopFlag:
    """SIGTERM and SIGINT ask for a stop at the end of the step.

    The handlers that were there come back afterwards. `asked` is the number of the signal, 0 until
    there is one.
    """

    asked = 0

    def __enter__(self) -> StopFlag:
        try:
            self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: whoever owns it decides about signals
            self.before = {}
        return self

    def ask(self, number: int, _: object = None) -> None:
        """Remember; a second SIGINT stops at once."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = int(number)

    def __exit__(self, *_: object) -> None:
        for which, handler in self.before.items():
            signal.signal(which, handler)
