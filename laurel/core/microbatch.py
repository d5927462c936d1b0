"""Which rows of a batch stay together in one micro-batch, and what they cost where their prompt is
computed once.
"""

from __future__ import annotations

from collections.abc import Sequence


def units_by_group(
    start: Sequence[int], length: Sequence[int], group: Sequence[int], limit: int | None
) -> tuple[list[list[int]], list[int]]:
    """Units of rows of one group, in order, and the tokens of each: its prompt once, every
    completion.

    start, length, group: of each row, the length of its prompt and of its completion, and whose it
    is. limit: a unit that would cost more is begun anew (None: never). Two rows of a group, 3 + 4
    and 3 + 5 tokens: one unit of 12.
    """
    units, tokens, newest = list[list[int]](), list[int](), dict[int, int]()
    for row, whose in enumerate(group):
        unit = newest.get(whose)
        more = length[row] + (
            0 if unit is not None and start[row] == start[units[unit][0]] else start[row]
        )
        if unit is None or (limit is not None and tokens[unit] + more > limit):
            unit, more = len(units), start[row] + length[row]
            newest[whose] = unit
            units.append([])
            tokens.append(0)
        units[unit].append(row)
        tokens[unit] += more
    return units, tokens
