"""The card of a saved scorer: where its scores lie, and where rows were cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from laurel.core.errors import UsageError
from laurel.core.files import read_json
from laurel.core.json_values import is_object

CARD = "laurel_scorer.json"


@dataclass(frozen=True, slots=True)
class Card:
    """Mean and deviation of a scorer's scores on `n` held-out answers, and where rows were cut."""

    mean: float = 0.0
    std: float = 1.0
    n: int = 0
    max_length: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise UsageError(
                f"scores of mean {self.mean} and deviation {self.std} have no scale.", where=CARD
            )

    @classmethod
    def of(cls, scores: Sequence[float], max_length: int | None = None) -> Card:
        """The card of these held-out scores.

        One score, or equal ones, have no spread: std stays 1. [1, 3]: mean 2, std 1 (ddof 0).
        """
        values = torch.as_tensor(scores, dtype=torch.float64).flatten()
        if not len(values):
            raise UsageError("no held-out score to centre by.", where=CARD)
        spread = float(values.std(correction=0))
        # equal scores can have a deviation of rounding alone
        rounding = 1e-9 * max(1.0, float(values.abs().max()))
        std = spread if spread > rounding else 1.0
        return cls(float(values.mean()), std, len(values), max_length)


def read_card(folder: str | Path) -> Card:
    """The card of a saved scorer; where there is none, scores stay as they are (mean 0, std 1)."""
    found = read_json(Path(folder) / CARD) if Path(folder).is_dir() else None
    if found is None:
        return Card()
    if not is_object(found) or not found.keys() <= {item.name for item in fields(Card)}:
        raise UsageError(
            "not the card of a scorer.",
            where=f"{folder}/{CARD}",
            fix="It holds mean, std, n and max_length.",
        )
    return Card(**found)
