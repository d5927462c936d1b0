"""The display of a run: a bar with numbers, or a line now and then without a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from laurel.train.session import Session

SHOWN = (
    "reward",
    "eval/accuracy",
    "nll",
    "eval/nll",
    "rewards/accuracies",
    "eval/rewards/accuracies",
    "rewards/margins",
    "accuracy",
    "kl",
    "entropy",
    "informative_fraction",
    "completions/mean_length",
    "grad_norm",
    "tokens_per_second",
)
MINUTE = 60.0  # seconds after which a line comes anyway, where there is no terminal
TROUBLE = ("failed_fraction", "zero_signal")
"""Numbers that are shown where they are not 0."""
SHORT = {
    "informative_fraction": "informative",
    "completions/mean_length": "length",
    "tokens_per_second": "tok/s",
}


class Progress:
    """A context manager; `advance` moves the bar, `say` prints a line above it."""

    def __init__(self, session: Session, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(quiet=quiet, highlight=False)
        self.live = self.console.is_terminal and not quiet
        self.every, self.last_line = max(1, session.config.max_steps // 10), time.monotonic()
        self.bar = Bar(
            TextColumn(f"[bold]{session.name}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task(session.name, total=session.config.max_steps, numbers="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def advance(self, step: int, means: Mapping[str, float]) -> None:
        """The bar moves to `step`, with the numbers of the step."""
        sets = [
            name
            for name in means
            if name.count("/") > 1
            and name.startswith("eval/")
            and f"eval/{name.split('/', 2)[2]}" in SHOWN
        ]
        names = (
            [name for name in SHOWN if name in means]
            + sets
            + [name for name in TROUBLE if means.get(name)]
        )
        numbers = "  ".join(f"{SHORT.get(name, name)} {means[name]:.3g}" for name in names)
        self.bar.update(self.task, completed=step, numbers=numbers)
        late = time.monotonic() - self.last_line >= MINUTE
        if not self.live and (step % self.every == 0 or step == 1 or late):
            self.last_line = time.monotonic()
            self.say(f"step {step}  {numbers}")
