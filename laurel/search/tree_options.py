"""The options of `laurel choose search`."""

from __future__ import annotations

from typing import Literal

from laurel.core.options import option
from laurel.search.options import ChooseConfig

NOT_OURS = ("pool", "url", "adaptive", "alpha", "give_up", "worth", "bar", "weigh", "k")
"""Options of the other verbs, which say nothing to a search."""


class SearchConfig(ChooseConfig):
    """Everything `laurel choose search` can be told: num_generations is the number of beams."""

    branches: int = option(
        4,
        "next steps of each prefix that is kept; num_generations / branches are kept",
        ge=1,
        group="search",
    )
    subtrees: int = option(
        1,
        "1: beam search; num_generations / branches: diverse verifier tree search; or between",
        ge=1,
    )
    delimiters: list[str] = option(["\n"], "strings that end a step, as the model's end does")
    step_tokens: int = option(0, "tokens after which a step ends, too; 0: no limit", ge=0)
    max_steps: int = option(64, "steps of an answer, at most", ge=1)
    distinct: bool = option(True, "of equal prefixes keep the first, while there are others")
    final: Literal["best", "vote"] = option(
        "best", "the answer with the highest value, or the vote weighted by values"
    )
