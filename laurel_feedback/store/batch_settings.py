"""The settings of a batch: its form, number of votes, pay and protection of its annotators."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from laurel.core.errors import UsageError

RATINGS = {
    1: "Response 1 is better",
    2: "Response 1 is only slightly better (only pick this if it's truly close)",
    3: "Response 2 is only slightly better (only pick this if it's truly close)",
    4: "Response 2 is better",
}
HELPFULNESS = {1: "not at all", 2: "slightly", 3: "somewhat", 4: "very", 5: "extremely"}
PRESENTATION = {1: "poor", 2: "adequate", 3: "excellent"}


class BatchSettings(BaseModel):
    """Settings of a batch; kept as JSON with it. An unknown name is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    target_votes: int = Field(default=3, ge=1, le=1000)
    """Votes wanted of every normal item; no item gets more."""
    hit_size: int = Field(default=20, ge=1)
    """Samples that an annotator is asked for; progress counts to it."""
    form: Literal["rating", "ranking"] = "rating"
    """Two responses and four levels, or K responses in order."""
    allow_tie: bool = False
    helpfulness: bool = False
    presentation: bool = False
    rationale: Literal["no", "optional", "required"] = "no"
    markdown: bool = False
    """Render responses as Markdown (sanitised); off: plain text."""
    lease_minutes: float = Field(default=15.0, gt=0)
    repeat_share: float = Field(default=0.0, ge=0, le=0.4)
    """Share of an annotator's samples that are shown once more, slots the other way round."""
    gold_share: float = Field(default=0.0, ge=0, le=0.5)
    """Share of an annotator's samples that are gold or attention items, while there are any."""
    needs_check: bool = False
    """Annotators pass the check items (all right, two attempts) before the first sample."""
    pay_per_item: float = Field(default=0.0, ge=0)
    currency: str = "USD"
    expected_seconds: float = Field(default=60.0, gt=0)
    pay_floor: float = Field(default=0.0, ge=0)
    """Pay per hour below which the batch is not opened."""
    daily_harm_cap: int = Field(default=0, ge=0)
    """Items with a kind of harm that an annotator sees in a day; 0: no cap."""

    @property
    def hourly(self) -> float:
        """Pay per hour at the expected speed."""
        return self.pay_per_item * 3600 / self.expected_seconds


LONGEST_NAME = 200


def checked_name(name: str) -> str:
    """A batch's name without the spaces around it; refused where it is empty or too long."""
    if not 0 < len(name.strip()) <= LONGEST_NAME:
        raise UsageError(
            f"a batch has a name of 1 to {LONGEST_NAME} characters.", where="batch", fix="Give one."
        )
    return name.strip()
