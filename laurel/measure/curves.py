"""Did a curve of training fall from its peak, and which text is the commonest of all?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Block = TypeVar("Block")


def fall_from_peak(
    blocks: Sequence[Block],
    mean: Callable[[Block], float],
    below: Callable[[Block, Block], bool],
) -> tuple[Block, Block] | None:
    """(peak, end): the best block of a curve and its last, if `below(end, peak)`; else None.

    `below` says whether the end lies clearly below, beyond its noise: the best of many noisy blocks
    is a little high by luck.
    """
    if len(blocks) < 2:
        return None
    peak, end = max(blocks, key=mean), blocks[-1]
    return (peak, end) if below(end, peak) else None


def commonest_text(texts: Iterable[str]) -> tuple[str, int]:
    """The text that occurs most often, and how often; ("", 0) of none."""
    found = Counter(texts).most_common(1)
    return found[0] if found else ("", 0)
