"""A judge's labels beside people's: kappa with their majority, the order of systems, win rates."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from laurel.measure.agreement import Agreement, cohen_kappa
from laurel.measure.crowd import LABELS
from laurel.measure.judge_records import WORTH, Key, majority
from laurel.measure.judging import PPI, ppi
from laurel.measure.ranking import bradley_terry, kendall_tau_b, spearman

Models = tuple[str, str]
"""Who wrote the first and the second response."""


def kappa_with_majority(
    humans: Mapping[Key, Sequence[str]],
    labels: Mapping[Key, str],
    *,
    cluster: Callable[[Key], Hashable] | None = None,
) -> Agreement:
    """Cohen's kappa of a judge with people's strict majority on each item.

    cluster: what an item belongs to, where the interval's units are larger than items.
    """
    rows = [
        (unit, most, labels[unit])
        for unit, votes in humans.items()
        if unit in labels and (most := majority(votes)) is not None
    ]
    if not rows:
        return Agreement(None, None, None, 0, "no item has a majority of people and a verdict")
    return cohen_kappa(
        [most for _, most, _ in rows],
        [label for *_, label in rows],
        categories=list(LABELS),
        clusters=None if cluster is None else [cluster(unit) for unit, *_ in rows],
    )


def kappa_of_pairs(
    humans: Mapping[Key, Sequence[str]],
    labels: Mapping[Key, str] | None = None,
    *,
    cluster: Callable[[Key], Hashable],
) -> Agreement:
    """Cohen's kappa of a judge with a person, over all their pairs of labels on the same item.

    Without labels of a person with a person, each pair in both directions.
    """
    pairs: list[tuple[str, str, Hashable]] = []
    for unit, votes in humans.items():
        if labels is None:
            met = [(one, two) for x, y in combinations(votes, 2) for one, two in ((x, y), (y, x))]
        else:
            met = [(vote, labels[unit]) for vote in votes if unit in labels]
        pairs += [(one, two, cluster(unit)) for one, two in met]
    if not pairs:
        return Agreement(None, None, None, 0, "no item has a pair of labels to compare")
    one, two, clusters = zip(*pairs, strict=True)
    return cohen_kappa(one, two, categories=list(LABELS), clusters=clusters)


def system_correlations(
    people: Iterable[tuple[Models, str]], judge: Iterable[tuple[Models, str]]
) -> tuple[Agreement | None, Agreement | None]:
    """Rank correlation of the systems' scores by people and by a judge: rho and tau-b.

    Spearman's and Kendall's. Each row is a pair of systems and who won. The scores are
    Bradley-Terry, ties half a win, without a slot term. None where fewer than three have both.
    """
    one, two = system_scores(people), system_scores(judge)
    names = [] if one is None or two is None else [name for name in one if name in two]
    if one is None or two is None or len(names) < 3:
        return None, None
    x, y = [one[name] for name in names], [two[name] for name in names]
    return spearman(x, y), kendall_tau_b(x, y)


def system_scores(results: Iterable[tuple[Models, str]]) -> dict[str, float] | None:
    """Log-abilities of systems; None where the comparisons do not give finite ones."""
    rows = [(pair, label) for pair, label in results if all(pair) and pair[0] != pair[1]]
    named = dict.fromkeys(name for pair, _ in rows for name in pair)
    names = {name: k for k, name in enumerate(named)}
    if len(names) < 2:
        return None
    wins, tied = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    for (one, two), label in rows:
        i, j = names[one], names[two]
        if label == "tie":
            tied[i, j] += 1
            tied[j, i] += 1
        else:
            wins[(i, j) if label == "a" else (j, i)] += 1
    found = bradley_terry(wins, tied, ties="half", names=list(names))
    if found.log_ability is None:
        return None
    return dict(zip(names, found.log_ability.tolist(), strict=True))


def share_of(name: str, models: Models, label: str) -> float | None:
    """The share of a win that `name` has by a label; None where it is not one of the two."""
    if models.count(name) != 1:
        return None
    return WORTH[label] if models[0] == name else 1 - WORTH[label]


def corrected_win_rates(
    rated: Mapping[Key, Models],
    rest: Mapping[Key, Models],
    ballots: Mapping[Key, Sequence[str]],
    labels: Mapping[Key, str],
) -> dict[str, PPI]:
    """Each system's win rate among people, sharpened by a judge's labels of items nobody rated.

    `rated` items have ballots, those of `rest` have none. Ties are half a win. A system with fewer
    than two rated items, or none of the rest, is left out. See `ppi`.
    """
    found: dict[str, PPI] = {}
    for name in sorted({model for pair in rest.values() for model in pair if model}):
        y, f, g = [], [], []
        for unit, pair in [*rated.items(), *rest.items()]:
            judged = share_of(name, pair, labels[unit]) if unit in labels else None
            if judged is None:
                continue
            if unit in rated:
                votes = [share_of(name, pair, vote) or 0.0 for vote in ballots[unit]]
                y.append(float(np.mean(votes)))
                f.append(judged)
            else:
                g.append(judged)
        if len(y) > 1 and g:
            found[name] = ppi(y, f, g)
    return found
