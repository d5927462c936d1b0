"""Rankings: published fits, likelihood identities, what has no estimate, and rank correlations."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from laurel.measure.ranking import (
    bradley_terry,
    bradley_terry_slots,
    elo,
    expected_score,
    kendall_tau_b,
    kendall_w,
    plackett_luce,
    spearman,
)

TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
BASEBALL = (
    "43 42 43 61 42 60",
    "33 42 43 60 61 43",
    "25 43 24 43 42 60",
    "33 51 25 43 42 61",
    "51 25 33 42 52 60",
    "25 33 34 43 42 24",
    "25 15 16 24 16 34",
)
"""American League 1987 (Agresti 1990, table 10.10; BradleyTerry2): each team at home, wins and
losses against the others in order.
"""
CITATIONS = [[0, 730, 498, 221], [33, 0, 68, 17], [320, 813, 0, 142], [284, 276, 325, 0]]
"""Cited by rows: Biometrika, Comm Statist, JASA, JRSS-B (Agresti 1990; BradleyTerry2)."""
WIKIPEDIA = [[0, 2, 0, 1], [3, 0, 5, 0], [0, 3, 0, 1], [4, 0, 3, 0]]


def baseball():
    """(home, away, home wins, away wins)."""
    for home, line in zip(TEAMS, BASEBALL, strict=True):
        others = [team for team in TEAMS if team != home]
        yield from (
            (home, away, int(score[0]), int(score[1]))
            for away, score in zip(others, line.split(), strict=True)
        )


def test_two_items_by_hand():
    found = bradley_terry([[0, 7], [3, 0]])
    assert found.probability == pytest.approx([0.7, 0.3])
    assert found.elo()[0] - found.elo()[1] == pytest.approx(147.1907, abs=5e-5)
    gap = found.difference(0, 1)
    assert gap.value == pytest.approx(np.log(7 / 3)) and gap.high - gap.value == pytest.approx(
        1.959964 * np.sqrt(1 / 7 + 1 / 3)
    )


def test_wikipedia_four_items():
    found = bradley_terry(WIKIPEDIA)
    assert found.probability == pytest.approx([0.1387, 0.2262, 0.1430, 0.4921], abs=5e-5)
    assert np.exp(found.log_ability) == pytest.approx([0.640, 1.043, 0.660, 2.270], abs=5e-3)


def test_journal_citations():
    found = bradley_terry(CITATIONS, names=["Biometrika", "Comm", "JASA", "JRSS"])
    against = [found.difference(name, "Biometrika").value for name in ("Comm", "JASA", "JRSS")]
    assert against == pytest.approx([-2.94907, -0.47957, 0.26895], abs=1e-5)


def test_baseball_and_its_home_advantage():
    """With the home term: .3023 with standard error .1309, BradleyTerry2's published fit."""
    wins = np.zeros((7, 7))
    first, second, won, weights = [], [], [], []
    for home, away, up, down in baseball():
        wins[TEAMS.index(home), TEAMS.index(away)] += up
        wins[TEAMS.index(away), TEAMS.index(home)] += down
        first, second, won, weights = (
            [*first, home, home],
            [*second, away, away],
            [*won, 1, 0],
            [*weights, up, down],
        )
    plain = bradley_terry(wins, names=TEAMS)
    against = [plain.difference(team, "Baltimore").value for team in TEAMS[:-1]]
    assert against == pytest.approx([1.581, 1.436, 1.294, 1.248, 1.108, 0.684], abs=1e-3)
    found = bradley_terry_slots(first, second, won, weights=weights)
    assert (round(found.slot, 4), round(found.slot_error, 4)) == (0.3023, 0.1309)


def test_the_fit_meets_its_own_equation():
    """Hunter's fixed point: p_i = W_i / sum_j N_ij / (p_i + p_j)."""
    wins = np.array(CITATIONS, dtype=float)
    p = bradley_terry(wins).probability
    again = wins.sum(1) / ((wins + wins.T) / np.add.outer(p, p)).sum(1)
    assert again / again.sum() == pytest.approx(p, rel=1e-9)


def test_order_of_items_does_not_matter():
    swap = [2, 0, 3, 1]
    moved = bradley_terry(np.array(WIKIPEDIA)[np.ix_(swap, swap)])
    found = bradley_terry(WIKIPEDIA)
    assert moved.log_ability == pytest.approx(
        found.log_ability[swap]
    ) and moved.error == pytest.approx(found.error[swap])


def test_ties_as_half_wins_and_after_davidson():
    """4 wins, 2 losses, 3 ties of two items: half a win each is 5.5 to 3.5; Davidson fits (4, 2,
    3)/9, so p ratio 2, nu = 3/sqrt(8).
    """
    wins, tied = [[0, 4], [2, 0]], [[0, 3], [3, 0]]
    assert bradley_terry(wins, tied, ties="half").probability == pytest.approx([5.5 / 9, 3.5 / 9])
    found = bradley_terry(wins, tied, ties="davidson")
    assert found.probability == pytest.approx([2 / 3, 1 / 3]) and found.tie == pytest.approx(
        3 / np.sqrt(8)
    )


def test_davidson_reproduces_totals():
    """At the maximum, expected ties equal ties and expected wins plus half ties equal the same of
    every item.
    """
    wins, tied = (
        np.array([[0, 5, 1], [2, 0, 3], [1, 1, 0.0]]),
        np.array([[0, 3, 2], [3, 0, 1], [2, 1, 0.0]]),
    )
    found = bradley_terry(wins, tied, ties="davidson")
    p, games = found.probability, wins + wins.T + tied
    root = found.tie * np.sqrt(np.outer(p, p))
    total = np.add.outer(p, p) + root
    ties = games * root / total
    assert np.triu(ties, 1).sum() == pytest.approx(6)
    assert (games * p[:, None] / total + ties / 2).sum(1) == pytest.approx((wins + tied / 2).sum(1))


def test_components_are_named_where_there_is_no_estimate():
    found = bradley_terry([[0, 5, 2], [2, 0, 1], [0, 0, 0]], names=["x", "y", "z"])
    assert (
        found.log_ability is None
        and found.components == (("x", "y"), ("z",))
        and "'z'" in found.reason
    )
    assert found.elo() is None
    with pytest.raises(ValueError, match="no abilities"):
        found.difference("x", "y")
    apart = bradley_terry([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    assert apart.log_ability is None and len(apart.components) == 2
    assert (
        bradley_terry(
            [[0, 5, 2], [2, 0, 1], [0, 0, 0]], [[0, 0, 1], [0, 0, 0], [1, 0, 0]], ties="half"
        ).log_ability
        is not None
    )


def votes(rng, ability, pull, n):
    names = np.arange(len(ability))
    first, second = np.array([rng.choice(names, 2, replace=False) for _ in range(n)]).T
    won = rng.random(n) < 1 / (
        1 + np.exp(-(np.array(ability)[first] - np.array(ability)[second] + pull))
    )
    return first.tolist(), second.tolist(), won.astype(float).tolist()


def test_slot_term_is_found_and_swapping_slots_turns_its_sign():
    first, second, won = votes(np.random.default_rng(0), [1.0, 0.3, -0.2, -1.1], 0.5, 4000)
    found = bradley_terry_slots(first, second, won)
    order = np.argsort(found.names)
    assert found.log_ability[order] == pytest.approx([1.0, 0.3, -0.2, -1.1], abs=0.12)
    assert abs(found.slot - 0.5) < 3 * found.slot_error and 0.02 < found.slot_error < 0.05
    swapped = bradley_terry_slots(second, first, [1 - x for x in won])
    assert swapped.slot == pytest.approx(-found.slot)
    assert [swapped.difference(0, k).value for k in (1, 2, 3)] == pytest.approx(
        [found.difference(0, k).value for k in (1, 2, 3)]
    )


def test_balanced_slots_leave_the_ranking_at_plain_order():
    """Each pair shown both ways, the same share of wins in each: the slot term is 0 and the
    abilities those without it.
    """
    found = bradley_terry_slots(
        ["a", "a", "b", "b"], ["b", "b", "a", "a"], [1, 0, 1, 0], weights=[7, 3, 3, 7]
    )
    assert found.slot == pytest.approx(0, abs=1e-9) and found.difference(
        "a", "b"
    ).value == pytest.approx(np.log(7 / 3))


def test_weights_are_repeated_votes_and_soft_labels_split_ones():
    one = bradley_terry_slots(["a", "b", "a"], ["b", "a", "b"], [1, 0.5, 0], weights=[3, 4, 1])
    two = bradley_terry_slots(
        ["a"] * 3 + ["b"] * 4 + ["a"], ["b"] * 3 + ["a"] * 4 + ["b"], [1, 1, 1, 1, 1, 0, 0, 0]
    )
    assert one.slot == pytest.approx(two.slot) and one.difference("a", "b").value == pytest.approx(
        two.difference("a", "b").value
    )


def test_a_slot_that_always_wins_has_no_estimate():
    found = bradley_terry_slots(["a", "b"], ["b", "a"], [1, 1])
    assert found.log_ability is None and found.slot is None and "first slot" in found.reason


def test_plackett_luce_published_value():
    rankings = [[0, 1, 2]] * 3 + [[1, 0, 2]] * 2 + [[0, 2, 1]]
    found = plackett_luce(rankings)
    assert found.probability == pytest.approx([0.687750, 0.265813, 0.046437], abs=1e-6)
    assert plackett_luce(
        [[0, 1, 2], [1, 0, 2], [0, 2, 1]], weights=[3, 2, 1]
    ).probability == pytest.approx(found.probability)


def test_plackett_luce_of_pairs_is_bradley_terry():
    pairs = [
        [i, j]
        for i, row in enumerate(WIKIPEDIA)
        for j, count in enumerate(row)
        for _ in range(count)
    ]
    found, plain = plackett_luce(pairs), bradley_terry(WIKIPEDIA)
    order = np.argsort(found.names)
    assert found.probability[order] == pytest.approx(plain.probability) and found.error[
        order
    ] == pytest.approx(plain.error)


def test_plackett_luce_with_an_item_that_always_loses():
    found = plackett_luce([["a", "b", "c"], ["b", "a", "c"]])
    assert found.log_ability is None and found.components == (("a", "b"), ("c",))


def test_elo_by_hand_and_its_dependence_on_order():
    assert expected_score(1000, 1200) == pytest.approx(0.240253, abs=5e-7)
    circle = [("A", "B", 1), ("B", "C", 1), ("C", "A", 1)]
    found = elo(circle)
    assert [round(found[name], 4) for name in "ABC"] == [998.4969, 1000.7363, 1000.7668]
    assert elo(circle[::-1])["A"] == pytest.approx(1001.5031, abs=5e-5)
    assert sum(found.values()) == pytest.approx(3000)


def test_elo_published_value():
    """evalica's README: k = 30, start 1000."""
    found = elo([("pizza", "burger", 1), ("burger", "sushi", 0), ("pizza", "sushi", 0.5)], k=30)
    assert found == pytest.approx(
        {"pizza": 1014.972058, "sushi": 1014.380742, "burger": 970.647200}, abs=5e-7
    )


def test_kendall_w():
    assert kendall_w([[1, 2, 3, 4], [2, 1, 3, 4], [1, 3, 2, 4]]).value == pytest.approx(7 / 9)
    assert kendall_w([[1, 2, 3]] * 4).value == pytest.approx(1) and kendall_w(
        [[1, 2], [2, 1]]
    ).value == pytest.approx(0)
    assert kendall_w([[4, 3, 2, 1], [3, 4, 2, 1], [4, 2, 3, 1]]).value == pytest.approx(7 / 9)
    assert kendall_w([[1, 1, 2]] * 3).value == pytest.approx(
        1
    )  # ties do not make agreement smaller
    tied = kendall_w([[1, 1], [2, 2]])
    assert tied.value is None and tied.reason


def test_rank_correlations_by_hand():
    assert kendall_tau_b(range(1, 6), [3, 1, 2, 5, 4]).value == pytest.approx(0.4)
    assert spearman(range(1, 6), [3, 1, 2, 5, 4]).value == pytest.approx(0.6)
    assert kendall_tau_b([1, 2, 2, 3], [1, 3, 2, 4]).value == pytest.approx(0.9129, abs=5e-5)
    iq, tv = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert spearman(iq, tv).value == pytest.approx(-29 / 165)


@pytest.mark.parametrize("measure", [spearman, kendall_tau_b])
def test_rank_correlations_know_ranks_only(measure):
    rng = np.random.default_rng(2)
    x = rng.integers(0, 9, 30)
    y = x + rng.normal(size=30) * 3
    found = measure(x, y)
    assert measure(np.exp(x), y**3) == found and measure(y, x).value == pytest.approx(found.value)
    assert measure(x, -y).value == pytest.approx(-found.value)
    assert found.low < found.value < found.high and found.n == 30
    oracle = stats.spearmanr(x, y) if measure is spearman else stats.kendalltau(x, y)
    assert found.value == pytest.approx(oracle.statistic)


@pytest.mark.parametrize("measure", [spearman, kendall_tau_b])
def test_rank_correlation_of_a_constant_is_undefined(measure):
    found = measure([1, 2, 3], [5, 5, 5])
    assert found.value is None and "constant" in found.reason


def abilities(comparisons):
    """Bradley-Terry with half wins from (first, second, "first", "second" or "tie")."""
    names = sorted({name for first, second, _ in comparisons for name in (first, second)})
    place = {name: k for k, name in enumerate(names)}
    wins, tied = np.zeros((2, len(names), len(names)))
    for first, second, winner in comparisons:
        i, j = place[first], place[second]
        if winner == "tie":
            tied[i, j] += 1
            tied[j, i] += 1
        else:
            wins[(i, j) if winner == "first" else (j, i)] += 1
    return bradley_terry(wins, tied, ties="half", names=names).log_ability


def test_crowd_and_gpt4_on_59_models(shared):
    def read(name):
        rows = csv.DictReader(shared(f"data/llmfao/{name}").open())
        return abilities(
            [
                (
                    r["model_x"],
                    r["model_y"],
                    {"left": "first", "right": "second", "tie": "tie"}[r["winner"]],
                )
                for r in rows
            ]
        )

    crowd, judge = read("crowd-comparisons.csv"), read("gpt4-crowd-comparisons.csv")
    rho, tau = spearman(crowd, judge), kendall_tau_b(crowd, judge)
    assert (rho.n, round(rho.value, 4), round(tau.value, 4)) == (59, 0.7309, 0.5371)
    assert 0.5 < rho.low < rho.value < rho.high < 0.9


def test_people_and_gpt4_order_six_models_alike(shared):
    def read(name):
        rows = map(json.loads, shared(f"data/mtbench/{name}").read_text().splitlines())
        kinds = {"model_a": "first", "model_b": "second", "tie": "tie", "tie (inconsistent)": "tie"}
        return abilities([(r["model_a"], r["model_b"], kinds[r["winner"]]) for r in rows])

    found = spearman(read("human.jsonl"), read("gpt4_pair.jsonl"))
    assert (found.n, found.value) == (6, pytest.approx(1.0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: bradley_terry([[0, 1]]),
        lambda: bradley_terry([[1, 1], [1, 0]]),
        lambda: bradley_terry([[0, -1], [1, 0]]),
        lambda: bradley_terry([[0, 1], [1, 0]], [[0, 1], [1, 0]]),
        lambda: bradley_terry([[0, 1], [1, 0]], ties="davidson"),
        lambda: bradley_terry([[0, 1], [1, 0]], [[0, 1], [2, 0]], ties="half"),
        lambda: bradley_terry([[0, 1], [1, 0]], names=["a"]),
        lambda: bradley_terry_slots(["a"], ["a"], [1]),
        lambda: bradley_terry_slots(["a"], ["b"], [2]),
        lambda: bradley_terry_slots(["a"], ["b"], [1], weights=[-1]),
        lambda: bradley_terry_slots([], [], []),
        lambda: plackett_luce([["a", "a"]]),
        lambda: plackett_luce([]),
        lambda: elo([("a", "b", 2)]),
        lambda: kendall_w([[1, 2, 3]]),
        lambda: spearman([1, 2], [1]),
        lambda: kendall_tau_b([1, float("nan")], [1, 2]),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(ValueError):
        call()
