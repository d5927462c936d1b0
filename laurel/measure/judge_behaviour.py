"""How a judge behaves, whatever is right: readable answers, slots, repeats, length, makers, cost.

Intervals are by prompt. What the answers leave undefined is None with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from laurel.measure.agreement import Agreement
from laurel.measure.crowd import LABELS
from laurel.measure.intervals import Interval, clustered_share, paired_difference
from laurel.measure.judge_records import (
    VALID,
    WORTH,
    JudgeAnswer,
    Judged,
    JudgedItem,
    final_status,
)
from laurel.measure.judging import (
    PositionBias,
    SlotBias,
    clustered_slot_bias,
    position_bias,
    preference,
)

EVEN = 0.05
"""A chance so near to one half is no preference, where identical responses were compared."""


def known(found: Interval | None, reason: str) -> Agreement:
    """An interval as a figure of the card, or None with the reason."""
    if found is None:
        return Agreement(None, None, None, 0, reason)
    return Agreement(found.value, found.low, found.high, found.n, "", found.level)


def share_of_hits(hits: Sequence[float], prompts: Sequence[Hashable], reason: str) -> Agreement:
    """A share with its interval by prompt, or None with the reason where there is nothing."""
    return known(clustered_share(hits, prompts) if len(hits) else None, reason)


def swap_bias(
    answers: Iterable[JudgeAnswer], prompt: Callable[[str], Hashable] | None = None
) -> PositionBias | None:
    """The items asked in both orders, the first answer of each; None without any.

    See `position_bias`.

    prompt: an item -> its prompt; the intervals are then by prompt.
    """
    straight, swapped, items = [], [], []
    for item, given in by_item(answers).items():
        by_order = {a.order[:1]: a.status for a in first_asked(given) if a.order}
        if (0,) in by_order and (1,) in by_order:
            items.append(item)
            for column, order in ((straight, (0,)), (swapped, (1,))):
                column.append(by_order[order] if by_order[order] in LABELS else None)
    if not items:
        return None
    clusters = None if prompt is None else [prompt(item) for item in items]
    return position_bias(straight, swapped, clusters=clusters)


def told_consistency(judged: Judged, answers: Sequence[JudgeAnswer]) -> Agreement:
    """The share of valid answers that are not `inconsistent`, where a source tells only so much.

    Undefined where no answer is: the judge was asked once, or the order is not known.
    """
    valid = [answer for answer in answers if answer.status in VALID]
    if all(answer.status != "inconsistent" for answer in valid):
        reason = "no item was asked in both orders, or the order is not known"
        return Agreement(None, None, None, 0, reason)
    hits = [float(answer.status != "inconsistent") for answer in valid]
    return share_of_hits(hits, judged.prompts(answer.item for answer in valid), "")


def first_slot_bias(
    answers: Iterable[JudgeAnswer], prompt: Callable[[str], Hashable] | None = None
) -> SlotBias | None:
    """How often the response shown first won, among decided answers of known order."""
    decided = [(answer.first_won, answer.item) for answer in answers]
    rows = [(first, item) for first, item in decided if first is not None]
    items = [item if prompt is None else prompt(item) for _, item in rows]
    return clustered_slot_bias([first for first, _ in rows], items)


def by_item(answers: Iterable[JudgeAnswer]) -> dict[str, list[JudgeAnswer]]:
    """The answers about each item, in their order."""
    asked: dict[str, list[JudgeAnswer]] = defaultdict(list)
    for answer in answers:
        asked[answer.item].append(answer)
    return asked


def first_asked(given: Iterable[JudgeAnswer]) -> list[JudgeAnswer]:
    """The answers about one item without those that ask the same again."""
    answers = list(given)
    least: dict[tuple[int, ...] | None, int] = {}
    for answer in answers:
        least[answer.order] = min(answer.repeat, least.get(answer.order, answer.repeat))
    return [answer for answer in answers if answer.repeat == least[answer.order]]


def parse_rate(judged: Judged, answers: Sequence[JudgeAnswer]) -> Agreement:
    """Valid answers of all that were asked."""
    hits = [float(answer.status in VALID) for answer in answers]
    return share_of_hits(hits, judged.prompts(a.item for a in answers), "nothing was asked")


def flips(judged: Judged, answers: Sequence[JudgeAnswer], *, swapped: bool) -> Agreement:
    """How often two valid answers about one item differ.

    Both asked in the same order (the judge does not repeat itself), or in the two orders if
    `swapped`. Every pair of such answers counts.
    """
    hits: list[float] = []
    items: list[str] = []
    for item, given in by_item(answers).items():
        valid = [a for a in given if a.status in LABELS and a.order]
        for one, two in combinations(valid, 2):
            if (one.order != two.order) == swapped:
                hits.append(float(one.status != two.status))
                items.append(item)
    reason = (
        "no item has valid answers in both orders"
        if swapped
        else "no item was asked twice in the same order"
    )
    return share_of_hits(hits, judged.prompts(items), reason)


def identical_even(judged: Judged, answers: Sequence[JudgeAnswer]) -> Agreement:
    """Of valid answers about two responses that are one text, how many show no preference.

    That is a tie, or a chance within `EVEN` of one half.
    """
    asked = [a for a in answers if judged.items[a.item].identical and a.status in VALID]
    hits = [
        float(a.status == "tie" or (a.chance is not None and abs(a.chance - 0.5) <= EVEN))
        for a in asked
    ]
    reason = "no pair of identical responses was judged"
    return share_of_hits(hits, judged.prompts(a.item for a in asked), reason)


def accuracy(judged: Judged, answers: Sequence[JudgeAnswer], *, of_all: bool = False) -> Agreement:
    """How often an answer is the right one, over all questions about items with gold.

    Each order is a question of its own, as in LLMBar (Zeng et al. 2023, arXiv:2310.07641). A tie is
    not right. Of the valid answers; of all that were asked if `of_all`: what cannot be read is then
    not right either.
    """
    asked = [
        a
        for a in answers
        if judged.items[a.item].gold is not None and (of_all or a.status in VALID)
    ]
    hits = [float(a.status == judged.items[a.item].gold) for a in asked]
    return share_of_hits(hits, judged.prompts(a.item for a in asked), "no item has a right answer")


Side = Callable[[JudgedItem], tuple[float, float]]


def lengths_of(item: JudgedItem) -> tuple[float, float]:
    """The lengths of both responses; equal where they are not known, which says nothing."""
    return item.lengths or (0, 0)


def slots_of(_: JudgedItem) -> tuple[float, float]:
    """The first as stored before the second."""
    return (1, 0)


def preferred(
    judged: Judged, labels: Iterable[tuple[str, str]], side: Side, reason: str
) -> Agreement:
    """How often the response with more of something won; labels are rows (item, label)."""
    rows = list(labels)
    sides = [side(judged.items[item]) for item, _ in rows]
    found = preference(
        [label for _, label in rows],
        [first for first, _ in sides],
        [second for _, second in sides],
        judged.prompts(item for item, _ in rows),
    )
    return known(found, reason)


def self_preference(judged: Judged, name: str, labels: Mapping[str, str]) -> Agreement:
    """How much more often a judge prefers responses of its own family than the truth does.

        mean(w_judge - w_truth) over items with one response of the judge's family,

    w: 1 where that response wins, 1/2 for a tie, 0. The truth is gold, else the mean of people's
    votes. The interval resamples prompts. Panickssery et al. 2024, arXiv:2404.13076.
    """
    family = judged.families.get(name, "")
    if not family:
        return Agreement(None, None, None, 0, "the judge's maker is not known")
    items = [
        item
        for item in labels
        if judged.items[item].families.count(family) == 1
        and (judged.items[item].gold or judged.ballots.get(item))
    ]
    if not items:
        reason = "no judged item with gold or votes has one response of the judge's maker"
        return Agreement(None, None, None, 0, reason)
    truth, own = [], []
    for item in items:
        first = judged.items[item].families[0] == family
        gold = judged.items[item].gold
        given = judged.ballots.get(item, []) if gold is None else [gold]
        worth = float(np.mean([WORTH[label] for label in given]))
        truth.append(worth if first else 1 - worth)
        own.append(WORTH[labels[item]] if first else 1 - WORTH[labels[item]])
    found = paired_difference(truth, own, judged.prompts(items))
    return Agreement(found.value, found.low, found.high, len(items))


def last_words(judged: Judged, name: str) -> dict[str, str]:
    """The judge's last word on each item, from the first time that it was asked."""
    asked = by_item(judged.judges[name])
    return {
        item: final_status(answer.status for answer in first_asked(given))
        for item, given in asked.items()
    }


def total_cost(answers: Sequence[JudgeAnswer]) -> tuple[int | None, int | None, float | None]:
    """Tokens read, tokens written and money of all answers; None where no answer tells."""
    tokens = [a.tokens for a in answers if a.tokens is not None]
    costs = [a.cost for a in answers if a.cost is not None]
    return (
        sum(read for read, _ in tokens) if tokens else None,
        sum(written for _, written in tokens) if tokens else None,
        sum(costs) if costs else None,
    )
