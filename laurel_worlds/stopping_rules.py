"""How often is a rule wrong that looks after every answer? Counted exactly, no draw is made.

    python -m laurel_worlds.stopping_rules

Prints the largest error of rules that announce the most likely of two and of three answers, over
all distributions on a grid and up to 64 draws; then what best-of-n and rejection sampling are
exactly, on a language of eight answers. docs/choosing.md records a run.
"""

from itertools import product

import numpy as np
from rich.console import Console

from laurel.measure.best_of_n import best_of_n_bound, best_of_n_law, kl, rejection_law
from laurel.measure.stopping_law import (
    StoppingLaws,
    adaptive_consistency,
    anytime,
    in_a_row,
    peeking_test,
    stopping_laws,
)
from laurel.report.exhibit import Table
from laurel.report.exhibit_text import text_table

MOST = 64
TWO = [(i / 100, 1 - i / 100) for i in range(101)]
THREE = [
    (i / 20, j / 20, (20 - i - j) / 20) for i, j in product(range(21), repeat=2) if i + j <= 20
]
RULES = {
    "laurel's, alpha .05": anytime(0.05),
    "laurel's, alpha .01": anytime(0.01),
    "sign test after every draw, .05": peeking_test(0.05),
    "adaptive consistency, .95": adaptive_consistency(0.05),
    "three votes ahead": in_a_row(3),
}
SHOWN = (0.7, 0.2, 0.1)
"""A distribution of which the mean number of draws is shown."""


def main() -> int:
    """Print both tables."""
    console = Console(highlight=False, width=100)
    title = f"largest error up to {MOST} draws, and the draws at p = {SHOWN}"
    head = ("rule", "two answers", "at", "three answers", "draws", "announced")
    console.print(text_table(Table(title, head, tuple(map(row_of, RULES))), 100))
    head = ("n", "KL to the policy", "log n - (n - 1) / n")
    rows = tuple(selection_row(n) for n in (1, 2, 4, 8, 16, 64))
    console.print(text_table(Table("best of n on eight answers, in nats", head, rows), 100))
    p, scores = language()
    accepted, chance = rejection_law(p.tolist(), scores.tolist(), beta=0.5, bar=2.0)
    tilted = p * np.exp(scores / 0.5)
    gap = float(np.abs(accepted - tilted / tilted.sum()).max())
    print(f"rejection sampling: {chance:.4f} are accepted, at most {gap:.1e} from p exp(r / beta)")
    return 0


def row_of(name: str) -> tuple[str, ...]:
    """A rule's largest errors, and what it costs where one answer leads."""
    rule = RULES[name]
    two, three = (stopping_laws(grid, MOST, rule) for grid in (TWO, THREE))
    shown = stopping_laws([SHOWN], MOST, rule)
    worst = TWO[int(two.error.argmax())]
    return (
        name,
        f"{two.error.max():.4f}",
        f"({worst[0]:.2f}, {worst[1]:.2f})",
        f"{three.error.max():.4f}",
        *cost(shown),
    )


def cost(law: StoppingLaws) -> tuple[str, str]:
    """Mean draws, and how often an answer is announced."""
    return f"{law.draws[0]:.1f}", f"{law.decided[0]:.2f}"


def language() -> tuple[np.ndarray, np.ndarray]:
    """Eight answers: their probabilities and scores, two of which are equal."""
    p = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.08, 0.05, 0.02])
    return p, np.array([0.0, 0.5, 0.2, 1.0, 1.0, 1.5, 0.1, 2.0])


def selection_row(n: int) -> tuple[str, ...]:
    """Best of n: its KL, and the bound."""
    p, scores = language()
    law = best_of_n_law(p.tolist(), scores.tolist(), n)
    return str(n), f"{kl(law, p):.6f}", f"{best_of_n_bound(n):.6f}"


if __name__ == "__main__":
    raise SystemExit(main())
