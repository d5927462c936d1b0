"""What a trained scorer is held against at the end of its run; and it remembers where its scores
lie.
"""

from __future__ import annotations

from laurel.model.held import judge
from laurel.model.scorer import Card
from laurel.train.evaluate import parts_of
from laurel.train.session import Session


def held_out_report(session: Session) -> list[str]:
    """What the held-out rows say of the scorer, as lines; and the scorer remembers the mean and
    spread of its scores on them.

    Of several evaluation sets each speaks for itself; the scorer remembers its scores on all.
    """
    found = judge(session.policy, session.eval_rows, session.row.source, known=session.rows[:2000])
    if session.row.head == 1:
        session.policy.card = Card.of(found.scores, session.config.max_length)
    parts = parts_of(session.eval_rows)
    if len(parts) == 1:
        return found.lines
    lines = list[str]()
    for name, rows in parts.items():
        alone = judge(session.policy, rows, session.row.source, known=session.rows[:2000])
        lines += [f"{name.rstrip('/')}: {line}" for line in alone.lines]
    return lines
