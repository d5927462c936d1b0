"""Stopping on request: a signal ends the run after the step, saved."""

from __future__ import annotations

import signal

from laurel.core.errors import LaurelError


class Interrupted(LaurelError):
    """The run was asked to stop; it has saved itself."""

    exit_code = 143


class StopFlag:
    """SIGTERM and SIGINT ask for a stop at the end of the step; the handlers that were there come back afterwards."""

    asked = False

    def __enter__(self) -> StopFlag:
        try:
            self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: whoever owns it decides about signals
            self.before = {}
        return self

    def ask(self, *_: object) -> None:
        """Remember; a second SIGINT stops at once."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for which, handler in self.before.items():
            signal.signal(which, handler)
