"""Scores of a scorer on another machine: `model:http://HOST:PORT`, served by `laurel serve`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from laurel.core.errors import LaurelError
from laurel.core.http import Wire, check_urls
from laurel.model.card import Card

if TYPE_CHECKING:
    from torch import Tensor

SECONDS = 300.0
"""That one call may take."""
AT_ONCE = 256
"""Rows of a call."""


def is_address(name: str) -> bool:
    """Is it the address of a server, and no folder?"""
    return name.startswith(("http://", "https://"))


class RemoteScorer:
    """What `laurel.reward.learned` needs of a scorer: `score` and `card`.

    The server is asked when it is made: an address without a scorer of one number is an error
    before any weight is loaded.
    """

    def __init__(self, url: str) -> None:
        (self.url,) = check_urls([url], "model")
        self.wire = Wire()
        answer = self.ask([{"prompt": "1", "completion": "1"}])
        card = answer.get("card")
        self.card = Card(**cast("dict[str, Any]", card)) if isinstance(card, dict) else Card()

    def score(self, rows: Sequence[Mapping[str, Any]], *, token_budget: int = 0) -> Tensor:
        """The score of each row: [N], in the order given. The server has a budget of its own."""
        import torch

        found = list[float]()
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            found += scores_of(self.ask(some), len(some), self.url)
        return torch.tensor(found)

    def ask(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """What the server answers to these rows."""
        body = {"rows": [dict(row) for row in rows]}
        answer = self.wire.run(self.wire.call(self.url, "/v1/score", body, seconds=SECONDS))
        if not isinstance(answer, dict):
            raise LaurelError("its answer is no object.", where=f"{self.url}/v1/score")
        return cast("dict[str, Any]", answer)


def scores_of(answer: Mapping[str, Any], count: int, url: str) -> list[float]:
    """The scores of an answer, by their index; LaurelError unless each row has a number."""
    where = f"{url}/v1/score"
    data: Any = answer.get("data")
    if not isinstance(data, list) or len(cast("list[Any]", data)) != count:
        raise LaurelError(f"it was asked for {count} scores and gave others.", where=where)
    found: dict[int, float] = {}
    for row in cast("list[Any]", data):
        score = row.get("score") if isinstance(row, dict) else None
        if not isinstance(score, float | int) or not math.isfinite(score):
            what = f"one of its scores is `{score!r:.60}`, and no number."
            raise LaurelError(what, where=where, fix="Serve a scorer of one number.")
        found[cast("dict[str, Any]", row).get("index", -1)] = float(score)
    if found.keys() != set(range(count)):
        raise LaurelError("the indices of its scores are not those of the rows.", where=where)
    return [found[i] for i in range(count)]
