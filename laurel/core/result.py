"""What a reward returns for one sample: a score, an abstention or a failure, which is no zero."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """A finite number, and in one line why."""

    value: float
    reason: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a score must be finite, got {self.value}; report a Failed instead")


@dataclass(frozen=True, slots=True)
class Abstain:
    """The reward does not apply to this sample; others in the mixture decide."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The reward broke on this sample, which is left out and counted.

    It raised, hung, or returned NaN.
    """

    reason: str


Result = Score | Abstain | Failed
ENVIRONMENT = "environment"
"""The name under which a group that was never finished says why, instead of any reward's verdict.
"""


def as_result(value: object) -> Result:
    """Number -> Score, None -> Abstain, anything else (NaN, infinity too) -> Failed.

    A Result passes through.
    """
    if isinstance(value, (Score, Abstain, Failed)):
        return value
    if value is None:
        return Abstain()
    if isinstance(value, (bytes, bytearray)) or getattr(
        value, "shape", ()
    ):  # b"1" and an array of one would pass as numbers
        return Failed(f"not a number: {value!r:.80}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return Failed(f"not a number: {value!r:.80}")
    except OverflowError:
        return Failed("not finite: a whole number beyond the range of floats")
    return Score(number) if math.isfinite(number) else Failed(f"not finite: {number}")
