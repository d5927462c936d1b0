"""What a reward returns for one sample: a score, an abstention or a failure.

A failure is not a score of 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """A finite number, and the reason in one line."""

    value: float
    reason: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a score must be finite, got {self.value}; report a Failed instead")


@dataclass(frozen=True, slots=True)
class Abstain:
    """The reward does not apply to this sample; the other rewards of the mixture decide."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The reward raised, hung or returned NaN on this sample, which is left out and counted."""

    reason: str


Result = Score | Abstain | Failed
ENVIRONMENT = "environment"
"""The name in a group's results under which an unfinished group gives its reason.

It stands there instead of any reward's result.
"""


def as_result(value: object) -> Result:
    """The Result that a reward's return value stands for.

        a number              Score
        None                  Abstain
        a Result              itself
        anything else         Failed

    NaN and infinity are Failed, too.
    """
    if isinstance(value, (Score, Abstain, Failed)):
        return value
    if value is None:
        return Abstain()
    # b"1" and an array of one element would pass as numbers
    if isinstance(value, (bytes, bytearray)) or getattr(value, "shape", ()):
        return Failed(f"not a number: {value!r:.80}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return Failed(f"not a number: {value!r:.80}")
    except OverflowError:
        return Failed("not finite: a whole number beyond the range of floats")
    return Score(number) if math.isfinite(number) else Failed(f"not finite: {number}")
