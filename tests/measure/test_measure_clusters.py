"""Votes on one item are no independent witnesses: intervals and tests that know it hold what they
promise.
"""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest

from laurel.measure.intervals import clustered_share, wilson
from laurel.measure.judging import clustered_slot_bias, position_bias, preference
from laurel.measure.ranking import bradley_terry, bradley_terry_slots

MODELS = 5


def votes(dice, items, spread, *, each=5, slot=0.2):
    """first, second, won, item: each item is two of five models and an effect of its own of
    `spread` logits; slots are drawn.
    """
    ability = np.linspace(-0.8, 0.8, MODELS)
    one = dice.integers(0, MODELS, items)
    two = (one + dice.integers(1, MODELS, items)) % MODELS
    effect = spread * dice.normal(size=items)
    item = np.repeat(np.arange(items), each)
    turned = dice.random(len(item)) < 0.5
    first, second = np.where(turned, two[item], one[item]), np.where(turned, one[item], two[item])
    pull = ability[first] - ability[second] + slot + np.where(turned, -1, 1) * effect[item]
    return first.tolist(), second.tolist(), (dice.random(len(item)) < expit(pull)) * 1.0, item


def coverage(spread, items, worlds, *, clustered=True):
    """The share of intervals that hold what the whole population gives: of scores, of the slot's
    pull, of the first slot's wins.
    """
    dice = np.random.default_rng(99)
    first, second, won, _ = votes(dice, 100_000, spread, each=2)
    whole = bradley_terry_slots(first, second, won)
    truth = dict(zip(whole.names, whole.log_ability, strict=True))
    share, held = won.mean(), Counter()
    dice = np.random.default_rng(1)
    while held["worlds"] < worlds:
        first, second, won, item = votes(dice, items, spread)
        found = bradley_terry_slots(
            first, second, won, clusters=item.tolist() if clustered else None
        )
        if (
            found.log_ability is None
        ):  # with few items a model may lose throughout: there is no interval then
            continue
        held["worlds"] += 1
        gap = np.abs(found.log_ability - [truth[name] for name in found.names])
        held["scores"] += (gap <= found.reach() * found.error).mean()
        held["slot"] += abs(found.slot - whole.slot) <= found.reach() * found.slot_error
        told = clustered_share(won, item.tolist()) if clustered else wilson(won.sum(), len(won))
        held["share"] += told.low <= share <= told.high
    return {name: float(held[name]) / worlds for name in ("scores", "slot", "share")}


@pytest.mark.parametrize("spread", [0, 1, 2])
def test_intervals_of_scores_hold_what_they_promise(spread):
    """Sixty worlds of 200 items with five votes; taken as independent the scores' intervals held
    .95, .87 and .74.
    """
    found = coverage(spread, 200, 60)
    assert 0.91 <= found["scores"] <= 0.985
    assert min(found.values()) > 0.86
    if spread == 2:
        assert coverage(spread, 200, 30, clustered=False)["scores"] < 0.83


@pytest.mark.whole
@pytest.mark.parametrize("items", [200, 30])
@pytest.mark.parametrize("spread", [0, 1, 2])
def test_intervals_of_scores_hold_what_they_promise_in_long(spread, items, record_property):
    found = coverage(spread, items, 1000)
    record_property("coverage", found)
    print(
        f"{items} items, spread {spread}:", {name: round(value, 3) for name, value in found.items()}
    )
    assert all(0.93 <= value <= 0.97 for value in found.values()), found


def test_the_errors_are_those_of_leaving_out_one_item_at_a_time():
    """(B - B_g)^-1 s_g for each item g, with B the information: one Newton step from the whole to
    the rest.
    """
    first, second, won, item = votes(np.random.default_rng(3), 40, 1)
    weights = np.random.default_rng(4).uniform(0.5, 2, len(won))
    found = bradley_terry_slots(first, second, won, weights=weights, clusters=item.tolist())
    rows = np.zeros((len(won), MODELS + 1))
    place = np.arange(len(won))
    (
        rows[place, [found.names.index(x) for x in first]],
        rows[place, [found.names.index(x) for x in second]],
        rows[:, -1],
    ) = 1, -1, 1
    p = expit(rows @ np.append(found.log_ability, found.slot))
    flat = np.zeros((MODELS + 1, MODELS + 1))
    flat[:MODELS, :MODELS] = 1 / MODELS
    bend = (rows * (weights * p * (1 - p))[:, None]).T @ rows + flat
    steps = []
    for g in range(40):
        own = item == g
        part = (rows[own] * (weights * p * (1 - p))[own, None]).T @ rows[own]
        steps.append(np.linalg.solve(bend - part, rows[own].T @ (weights * (won - p))[own]))
    covariance = 39 / 40 * np.array(steps).T @ np.array(steps)
    assert found.error == pytest.approx(np.sqrt(np.diag(covariance))[:MODELS])
    assert found.slot_error == pytest.approx(np.sqrt(covariance[-1, -1]))
    assert found.covariance == pytest.approx(covariance[:MODELS, :MODELS])
    gap = found.difference(found.names[0], found.names[1])
    assert gap.n == found.clusters == 40
    assert gap.high - gap.value == pytest.approx(
        found.reach() * np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    )


def test_without_a_slot_it_is_bradley_terry_and_order_does_not_matter():
    first, second, won, item = votes(np.random.default_rng(5), 60, 1)
    found = bradley_terry_slots(first, second, won, clusters=item.tolist(), slots=False)
    wins = np.zeros((MODELS, MODELS))
    np.add.at(wins, (first, second), won)
    np.add.at(wins, (second, first), 1 - won)
    plain = bradley_terry(wins)
    assert found.slot is None and found.slot_error is None
    assert [found.log_ability[found.names.index(k)] for k in range(MODELS)] == pytest.approx(
        plain.log_ability, abs=1e-8
    )
    mixed = np.random.default_rng(6).permutation(len(won))
    again = bradley_terry_slots(
        [first[k] for k in mixed],
        [second[k] for k in mixed],
        won[mixed],
        clusters=[f"i{item[k]}" for k in mixed],
        slots=False,
    )
    assert [again.error[again.names.index(k)] for k in found.names] == pytest.approx(found.error)


def test_an_item_that_alone_tells_of_a_model_counts_as_one_vote():
    """Nine votes of two to one on the only item of z: no other item says how far items differ, so
    they are one vote and not nine.
    """
    first, second, won = (
        ["x", "y"] * 20 + ["z"] * 9,
        ["y", "x"] * 20 + ["x"] * 9,
        [1, 1, 0, 1, 1, 0, 0, 1] * 5 + [1] * 6 + [0] * 3,
    )
    items = [n // 4 for n in range(40)] + ["z"] * 9
    alone = bradley_terry_slots(first, second, won, clusters=items, slots=False)
    apart = bradley_terry_slots(first, second, won, slots=False)
    k = alone.names.index("z")
    assert alone.error[k] > 2 * apart.error[k]


def test_a_share_of_single_trials_is_nearly_wilsons_and_copies_add_nothing():
    hits = [1.0] * 60 + [0.0] * 40
    single, plain = clustered_share(hits, range(100)), wilson(60, 100)
    assert (single.low, single.high) == (
        pytest.approx(plain.low, abs=2e-3),
        pytest.approx(plain.high, abs=2e-3),
    )
    copies = clustered_share(hits * 9, list(range(100)) * 9)
    assert (copies.value, copies.low, copies.high) == (
        single.value,
        pytest.approx(single.low),
        pytest.approx(single.high),
    )
    assert copies.n == 900
    sure = clustered_share([1.0] * 12, [n // 4 for n in range(12)])
    assert sure.value == sure.high == 1 and sure.low < wilson(3, 3).low < 0.5
    lone = clustered_share([1.0, 1.0], ["i", "i"])
    assert (lone.low, lone.high) == (0, 1)


def test_the_p_of_the_first_slot_is_the_binomials_and_that_of_turning_items():
    for first in (7, 12, 20, 31):
        wins = [True] * first + [False] * (31 - first)
        assert clustered_slot_bias(wins, range(31)).p == pytest.approx(
            binomtest(first, 31).pvalue, rel=1e-9
        )
    told = {"i": [True] * 3, "j": [True, True, False], "k": [True], "l": [False, True]}
    wins, items = (
        [won for given in told.values() for won in given],
        [item for item, given in told.items() for _ in given],
    )
    gaps = [sum(1 if won else -1 for won in given) for given in told.values()]
    turned = [
        abs(sum(sign * gap for sign, gap in zip(signs, gaps, strict=True))) >= abs(sum(gaps))
        for signs in product((1, -1), repeat=4)
    ]
    assert clustered_slot_bias(wins, items).p == pytest.approx(np.mean(turned))
    assert clustered_slot_bias([], []) is None
    assert clustered_slot_bias([True] * 400, [0] * 400).p == 1  # one item proves nothing


def test_large_batches_are_tested_by_the_normal_and_near_the_exact(monkeypatch):
    dice = np.random.default_rng(7)
    items = [int(n) for n in dice.integers(0, 300, 900)]
    wins = [bool(x) for x in dice.random(900) < 0.55]
    exact = clustered_slot_bias(wins, items).p
    monkeypatch.setattr("laurel.measure.judging.MOST_TURNS", 0)
    assert clustered_slot_bias(wins, items).p == pytest.approx(exact, rel=0.25)


def test_a_judges_two_answers_about_a_pair_count_together():
    """Always the first slot: each of twelve pairs decides for it twice, which is twelve witnesses
    and not 24.
    """
    found = position_bias(["a"] * 12, ["b"] * 12)
    assert found.first.p == pytest.approx(2 * 0.5**12)
    assert found.first.share.low < wilson(24, 24).low
    verdicts, lengths = ["a"] * 24, [9] * 24
    wide = preference(verdicts, lengths, [2] * 24, [n // 2 for n in range(24)])
    assert wide.low < preference(verdicts, lengths, [2] * 24).low
