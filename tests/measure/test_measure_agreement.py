"""Agreement: published values, invariance under names and order, and what is undefined."""

import json
import time
from collections import defaultdict

import numpy as np
import pytest

from laurel.measure.agreement import (
    cohen_kappa,
    fleiss_kappa,
    gwet_ac1,
    gwet_ac1_units,
    in_alphabetical_order,
    krippendorff_alpha,
    pair_agreement,
)

LEVELS = ("nominal", "ordinal", "interval", "ratio")
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
"""The worked example of Wikipedia's page on Fleiss' kappa: 10 subjects, 14 raters, 5 categories."""
EXAMPLE_C = ("123321412***", "1233224125*3", "*3332342251*", "1233244125 1*".replace(" ", ""))
"""Krippendorff 2011, example C: four observers, twelve units, a star for a missing value."""
WIKIPEDIA = ("*****34121133*3", "1*213343*******", "**21344*21133*4")
"""The worked example of Wikipedia's page on Krippendorff's alpha: three coders, fifteen units."""


def units(observers):
    return [[int(value) for value in unit if value != "*"] for unit in zip(*observers, strict=True)]


def raters(cells):
    """The two columns of labels behind a table of counts."""
    pairs = [
        (i, j) for i, row in enumerate(cells) for j, count in enumerate(row) for _ in range(count)
    ]
    return [list(column) for column in zip(*pairs, strict=True)]


def test_cohen_by_hand():
    found = cohen_kappa(*raters([[20, 5], [10, 15]]))
    assert found.value == pytest.approx(0.4) and found.n == 50
    assert found.low < 0.4 < found.high and found.low > 0


@pytest.mark.parametrize(
    ("weights", "expected"), [(None, 0.4667), ("linear", 0.6923), ("quadratic", 0.8519)]
)
def test_weighted_kappa(weights, expected):
    assert cohen_kappa("0011223303", "0112233302", weights=weights).value == pytest.approx(
        expected, abs=5e-5
    )


def test_kappa_does_not_depend_on_names_raters_or_order_of_items():
    first, second = "0011223303", "0112233302"
    found = cohen_kappa(first, second, weights="linear")
    assert cohen_kappa(second, first, weights="linear").value == pytest.approx(found.value)
    assert (
        cohen_kappa(first[::-1], second[::-1], weights="linear") == found
    )  # the bootstrap knows sums, not rows
    assert cohen_kappa(first, second, categories="3210", weights="linear").value == pytest.approx(
        found.value
    )
    renamed = str.maketrans("0123", "3012")
    plain = cohen_kappa(first.translate(renamed), second.translate(renamed))
    assert plain.value == pytest.approx(cohen_kappa(first, second).value)
    assert cohen_kappa(
        first.translate(renamed), second.translate(renamed), weights="linear"
    ).value != pytest.approx(found.value)


def test_kappa_interval_has_the_textbook_width():
    """Large-sample standard error at po .7, pe .5 with even margins and n = 1000: sqrt(po (1 - po)
    / n) / (1 - pe) = .02898.
    """
    found = cohen_kappa(*raters([[350, 150], [150, 350]]))
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.02898, rel=0.08)


def test_fleiss_published_value():
    assert fleiss_kappa(FLEISS).value == pytest.approx(0.2099, abs=5e-5)
    assert fleiss_kappa([row[::-1] for row in FLEISS[::-1]]).value == pytest.approx(
        fleiss_kappa(FLEISS).value
    )


def test_fleiss_refuses_unequal_raters():
    with pytest.raises(ValueError, match="krippendorff_alpha"):
        fleiss_kappa([[2, 1], [2, 0]])


@pytest.mark.parametrize(
    ("level", "c", "wikipedia"),
    [("nominal", 904 / 1216, 0.6914), ("ordinal", 0.8154, 0.8067), ("interval", 0.8491, 0.8108)],
)
def test_alpha_published_values(level, c, wikipedia):
    assert krippendorff_alpha(units(EXAMPLE_C), level).value == pytest.approx(c, abs=5e-5)
    assert krippendorff_alpha(units(WIKIPEDIA), level).value == pytest.approx(wikipedia, abs=5e-5)


def test_alpha_more_published_values():
    assert krippendorff_alpha(units(EXAMPLE_C), "ratio").value == pytest.approx(0.7974, abs=5e-5)
    assert krippendorff_alpha(units(("0100000010", "1110010000"))).value == pytest.approx(
        0.0952, abs=5e-5
    )
    assert krippendorff_alpha(
        list(zip("aabbdcccedda", "babbbccceddd", strict=True))
    ).value == pytest.approx(0.6920, abs=5e-5)
    chain = [[1, 2], [2, 3], [3, 4]]
    assert krippendorff_alpha(chain).value == pytest.approx(-2 / 13) and krippendorff_alpha(
        chain, "interval"
    ).value == pytest.approx(6 / 11)


def test_alpha_leaves_out_lonely_ratings():
    """A unit with one value cannot agree or disagree: dropping it, or writing None for the missing
    ones, changes nothing.
    """
    found = krippendorff_alpha(units(EXAMPLE_C))
    assert found.n == 11
    assert krippendorff_alpha([*units(EXAMPLE_C), [5], [None, 2, None], []]) == found


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_invariances(level):
    data = units(EXAMPLE_C)
    found = krippendorff_alpha(data, level).value
    assert krippendorff_alpha([unit[::-1] for unit in data[::-1]], level).value == pytest.approx(
        found
    )
    moved = {
        "nominal": lambda x: (x * 7) % 11,
        "ordinal": lambda x: x**3,
        "interval": lambda x: 3 * x + 8,
        "ratio": lambda x: 5 * x,
    }[level]
    assert krippendorff_alpha(
        [[moved(x) for x in unit] for unit in data], level
    ).value == pytest.approx(found)


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_interval_is_that_of_resampled_items(level):
    """The bootstrap by sums against the plain one, which computes alpha of drawn lists of units."""
    rng = np.random.default_rng(1)
    truth = rng.integers(1, 5, 60)
    data = [
        [
            int(x) if rng.random() < 0.6 else int(rng.integers(1, 5))
            for _ in range(rng.integers(2, 5))
        ]
        for x in truth
    ]
    fast = krippendorff_alpha(data, level, draws=4000)
    kept = [unit for unit in data if len(unit) > 1]
    slow = [
        krippendorff_alpha(
            [kept[k] for k in rng.integers(0, len(kept), len(kept))], level, draws=1
        ).value
        for _ in range(1500)
    ]
    assert (fast.low, fast.high) == pytest.approx(
        tuple(np.quantile(slow, [0.025, 0.975])), abs=0.04
    )


def test_bootstrap_is_quick_and_seeded():
    data = np.random.default_rng(0).integers(1, 5, (2000, 5)).tolist()
    start = time.perf_counter()
    found = [krippendorff_alpha(data, level) for level in LEVELS]
    assert time.perf_counter() - start < 4
    assert found[0] == krippendorff_alpha(data) and found[0] != krippendorff_alpha(data, seed=1)
    assert all(
        abs(one.value) < 0.03 and 0.005 < one.high - one.low < 0.06 for one in found
    )  # guesses


def test_gwet_and_the_paradox_of_kappa():
    pair = raters([[80, 10], [10, 0]])
    assert cohen_kappa(*pair).value == pytest.approx(-1 / 9)
    found = gwet_ac1(*pair)
    assert (
        found.value == pytest.approx((0.8 - 0.18) / (1 - 0.18)) and round(found.value, 4) == 0.7561
    )
    assert gwet_ac1(*pair[::-1]).value == pytest.approx(found.value)


def test_gwet_with_gaps_as_published():
    """irrCAC's raw.4raters, which is example C, and Ben and Gerry with one rating missing: an item
    with one rating stays in pi.
    """
    assert gwet_ac1_units(units(EXAMPLE_C)).value == pytest.approx(0.77544, abs=5e-6)
    pairs = list(map(list, zip("aabbdcccedda", "babbbccceddd", strict=True)))
    pairs[2].pop()
    found = gwet_ac1_units(pairs)
    assert (found.value, found.n) == (pytest.approx(0.66144, abs=5e-6), 11)
    assert found == gwet_ac1_units([*pairs, []], clusters=range(13))


def test_pairs_of_one_prompt_are_drawn_together():
    """Each item copied four times under one name: the interval is as wide as without the copies,
    and half as wide without names.
    """
    told = [["a", "a"] if n % 3 else ["a", "b"] for n in range(60)]
    names = [n for n in range(60) for _ in range(4)]
    copies = [told[n] for n in names]
    for measure in (krippendorff_alpha, gwet_ac1_units):
        plain, together, apart = measure(told), measure(copies, clusters=names), measure(copies)
        assert together.value == pytest.approx(plain.value, abs=0.01)
        assert together.high - together.low == pytest.approx(plain.high - plain.low, rel=0.1)
        assert apart.high - apart.low < 0.6 * (plain.high - plain.low)
    votes = {(n, k): told[n] for n in range(60) for k in range(4)}
    wide, narrow = pair_agreement(votes, cluster=lambda unit: unit[0]), pair_agreement(votes)
    assert wide.high - wide.low > 1.9 * (narrow.high - narrow.low)


def test_gwet_of_three_raters_by_hand():
    """Items 001 and 000: po = (1/3 + 1) / 2 = 2/3; pi = (5/6, 1/6); pe = 2 * 5/36 = 5/18; (2/3 -
    5/18) / (13/18) = 7/13.
    """
    assert gwet_ac1_units([[0, 0, 1], [0, 0, 0]]).value == pytest.approx(7 / 13)


@pytest.mark.parametrize(
    "found",
    [
        cohen_kappa("aaa", "aaa"),
        cohen_kappa("aaa", "aaa", categories="ab", weights="quadratic"),
        fleiss_kappa([[3, 0], [3, 0]]),
        *(krippendorff_alpha([[2, 2], [2, 2, 2]], level) for level in LEVELS),
        krippendorff_alpha([[1], []]),
        gwet_ac1("aa", "aa"),
        gwet_ac1_units([[1]]),
        pair_agreement({"item": ["a"]}),
        pair_agreement({"item": ["a", "tie"]}, ties=False),
    ],
)
def test_undefined_is_none_with_a_reason(found):
    assert found.value is None and found.low is None and found.high is None and found.reason
    assert str(found).startswith("undefined: ")


def test_no_interval_from_one_item():
    found = krippendorff_alpha([[1, 2, 1]])
    assert found.value is not None and found.low is None and "no interval" in str(found)


def test_pair_agreement_by_hand():
    """Item 1: aab has 1 equal pair of 3. Item 2: (a, tie) has 0 of 1. The judge says a, then b: 2
    of 3, 0 of 2.
    """
    votes, judge = {1: ["a", "a", "b"], 2: ["a", "tie"]}, {1: ["a"], 2: ["b"], 3: ["a"]}
    assert (pair_agreement(votes).value, pair_agreement(votes).n) == (0.25, 4)
    assert (pair_agreement(votes, ties=False).value, pair_agreement(votes, ties=False).n) == (
        pytest.approx(1 / 3),
        3,
    )
    assert (pair_agreement(votes, judge).value, pair_agreement(votes, judge).n) == (0.4, 5)
    assert (
        pair_agreement(votes, judge, ties=False).value,
        pair_agreement(votes, judge, ties=False).n,
    ) == (0.5, 4)


def test_orientation_does_not_matter():
    assert (
        in_alphabetical_order("x", "y", "a")
        == in_alphabetical_order("y", "x", "b")
        == ("x", "y", "a")
    )
    assert in_alphabetical_order("y", "x", "tie (inconsistent)") == ("x", "y", "tie")
    with pytest.raises(ValueError):
        in_alphabetical_order("x", "y", "left")


def mtbench(path, turn, who=""):
    votes = defaultdict(list)
    for row in map(json.loads, path.read_text().splitlines()):
        if row["turn"] == turn and row["judge"].startswith(who):
            label = row["winner"].removeprefix("model_")
            one, two, label = in_alphabetical_order(row["model_a"], row["model_b"], label)
            votes[row["question_id"], one, two].append(label)
    return votes


@pytest.mark.parametrize(
    ("turn", "ties", "with_judge", "among_people"),
    [
        (1, True, (886, 1343), (454, 721)),
        (1, False, (727, 859), (388, 479)),
        (2, True, (871, 1325), (471, 707)),
        (2, False, (731, 864), (388, 474)),
    ],
)
def test_mtbench_to_the_vote(shared, turn, ties, with_judge, among_people):
    """The published 66, 85, 63 and 81 % are of the experts (not the authors), pairs in one
    orientation, both not ties if without.
    """
    people = mtbench(shared("data/mtbench/human.jsonl"), turn, "expert")
    judge = mtbench(shared("data/mtbench/gpt4_pair.jsonl"), turn)
    for (equal, n), found in [
        (with_judge, pair_agreement(people, judge, ties=ties)),
        (among_people, pair_agreement(people, ties=ties)),
    ]:
        assert (round(found.value * found.n), found.n) == (equal, n)
        assert found.low < found.value < found.high


@pytest.mark.parametrize(
    "call",
    [
        lambda: cohen_kappa("ab", "a"),
        lambda: cohen_kappa("", ""),
        lambda: cohen_kappa("ab", "ab", weights="cubic"),
        lambda: cohen_kappa("ab", "ac", categories="ab"),
        lambda: cohen_kappa("ab", "ba", level=1.0),
        lambda: fleiss_kappa([[1, 0]]),
        lambda: krippendorff_alpha([["a", "b"]], "interval"),
        lambda: krippendorff_alpha([[1.0, float("nan")]], "ratio"),
        lambda: krippendorff_alpha([[1, -1]], "ratio"),
        lambda: krippendorff_alpha([[1, 2]], "metric"),
        lambda: gwet_ac1("a", "ab"),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(ValueError):
        call()
