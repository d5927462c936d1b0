"""The columns in which a row says how sure its label is: margin, weight, soft_label.

They are all that passes from people's votes to training: `laurel_feedback` writes them, and the
objectives of comparisons and labels read them.

    column       range      what it does                                              left out
    margin       a number   the score of chosen is to exceed rejected's by this much  0
    weight       0 or more  the row's loss is multiplied by it over the mean weight   1
    soft_label   0 to 1     s: the loss is s L(chosen better) + (1-s) L(rejected)     1
"""

from __future__ import annotations

from typing import Any

MARGIN, WEIGHT, SOFT_LABEL = "margin", "weight", "soft_label"

PAIR_COLUMNS = (MARGIN, WEIGHT, SOFT_LABEL)
"""What a preference, or a ranking of which pairs are made, may have."""
LABEL_COLUMNS = (WEIGHT,)
"""What a completion with a label, and one with labelled steps, may have."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def is_margin(value: Any) -> bool:
    """A number."""
    return _number(value)


def is_weight(value: Any) -> bool:
    """A finite number, 0 or above."""
    return _number(value) and 0 <= value < float("inf")


def is_soft_label(value: Any) -> bool:
    """A number from 0 to 1."""
    return _number(value) and 0 <= value <= 1


RANGES = {
    MARGIN: ("a number", is_margin),
    WEIGHT: ("a finite number, 0 or above", is_weight),
    SOFT_LABEL: ("a number from 0 to 1", is_soft_label),
}
"""column: (its range in words, whether a value is in it)."""
