"""What a trained scorer is held against at the end of its run; and it remembers where its scores
lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from laurel.model.held import judge
from laurel.model.scorer import Card
from laurel.train.evaluate import parts_of

if TYPE_CHECKING:
    from laurel.train.setup import Setup


def held_out_report(setup: Setup) -> list[str]:
    """What the held-out rows say of the scorer, as lines; and the scorer remembers the mean and
    spread of its scores on them.

    Of several evaluation sets each speaks for itself; the scorer remembers its scores on all.
    """
    found = judge(setup.policy, setup.held, setup.row.source, known=setup.rows[:2000])
    if setup.row.head == 1:
        setup.policy.card = Card.of(found.scores, setup.config.max_length)
    parts = parts_of(setup.held)
    if len(parts) == 1:
        return found.lines
    lines = list[str]()
    for name, rows in parts.items():
        alone = judge(setup.policy, rows, setup.row.source, known=setup.rows[:2000])
        lines += [f"{name.rstrip('/')}: {line}" for line in alone.lines]
    return lines
