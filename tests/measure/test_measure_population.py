"""Whose opinions: distances by hand, baselines, raking that meets its margins, and cells that stay
hidden.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laurel.measure.population import (
    PUBLISHED,
    chi_square,
    effective_sample_size,
    raking,
    representativeness,
    similarity,
    suppress,
    total_variation,
    wasserstein,
)


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ((0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1), 2 / 3),
        ((1, 0, 0, 0), (0, 0, 0, 1), 0.0),
        ((0.1, 0.2, 0.3, 0.4), (1, 2, 3, 4), 1.0),
        ((0.5, 0.5, 0), (0, 0.5, 0.5), 0.5),
    ],
)
def test_similarity_by_hand(p, q, expected):
    assert similarity(p, q) == pytest.approx(expected)
    assert similarity(q, p) == pytest.approx(expected)
    assert similarity(p[::-1], q[::-1]) == pytest.approx(expected)


def test_positions_scale_and_shift():
    """Options at 0, 1, 3: moving all mass from 0 to 3 costs 3, from 1 to 3 costs 2; a shift changes
    nothing.
    """
    assert (
        wasserstein([1, 0, 0], [0, 0, 1], [0, 1, 3]) == 3
        and wasserstein([0, 1, 0], [0, 0, 1], [5, 6, 8]) == 2
    )
    assert similarity([0, 1, 0], [0, 0, 1], [0, 1, 3]) == pytest.approx(1 / 3)


def test_representativeness_with_groups_and_refusals():
    """One question of three options and a refusal. Answers (.5, .5, 0 | refused 7) against all
    people (0, .5, .5): 1 - 1/2.
    """
    places = {"q": [1, 2, 3, None]}
    answers = {"q": [5, 5, 0, 7], "unasked": [1, 0]}
    people = {"q": [0, 4, 4, 0]}
    groups = {"old": {"q": [0, 0, 8, 1]}, "young": {"q": [0, 1, 1, 0]}}
    found = representativeness(answers, people, groups, positions=places)
    assert found.overall == pytest.approx(0.5) and found.questions == 1
    assert found.per_group == {"old": pytest.approx(0.25), "young": pytest.approx(0.5)}
    assert (found.worst_group, found.worst, found.mean) == (
        "old",
        pytest.approx(0.75),
        pytest.approx(0.875),
    )
    with_refusals = representativeness({"q": [5, 5, 0, 700]}, people, groups, positions=places)
    assert with_refusals == found


def test_representativeness_undefined_says_why():
    nothing = representativeness({"a": [1, 0]}, {"b": [1, 0]})
    assert nothing.overall is None and "no question" in nothing.reason
    only_refused = representativeness(
        {"a": [0, 0, 9]}, {"a": [1, 1, 0]}, positions={"a": [1, 2, None]}
    )
    assert only_refused.overall is None


def test_composition_by_hand():
    assert total_variation((0.5, 0.3, 0.2), (0.4, 0.4, 0.2)) == pytest.approx(0.1)
    fit = chi_square([50, 30, 20], [0.4, 0.4, 0.2])
    assert (
        fit.statistic == pytest.approx(100 / 40 + 100 / 40)
        and fit.freedom == 2
        and fit.p == pytest.approx(np.exp(-2.5))
    )
    assert fit.reason == "" and "below 5" in chi_square([2, 3], [0.5, 0.5]).reason
    assert chi_square([20, 30, 50], [0.2, 0.4, 0.4]).statistic == pytest.approx(fit.statistic)


def test_effective_size():
    assert effective_sample_size([1, 1, 1, 5]) == pytest.approx(64 / 28)
    assert effective_sample_size([2, 2, 2, 10]) == pytest.approx(64 / 28) and effective_sample_size(
        [3] * 7
    ) == pytest.approx(7)


def test_raking_meets_every_margin():
    rng = np.random.default_rng(0)
    people = [
        {
            "sex": "f" if rng.random() < 0.2 else "m",
            "age": ("young", "old")[int(rng.random() < 0.3)],
        }
        for _ in range(200)
    ]
    wanted = {"sex": {"f": 0.51, "m": 0.49}, "age": {"young": 0.4, "old": 0.6}}
    found = raking(people, wanted)
    assert found.weights.mean() == pytest.approx(1)
    for trait, shares in wanted.items():
        for category, share in shares.items():
            mine = sum(
                w
                for w, person in zip(found.weights, people, strict=True)
                if person[trait] == category
            )
            assert mine / 200 == pytest.approx(share, abs=1e-8)
    assert (
        found.effective == pytest.approx(effective_sample_size(found.weights))
        and found.effective < 150
    )


def test_raking_of_one_trait_by_hand():
    """3 of 4 are a where half should be: weights 2/3 and 2, n_eff = 16 / (3 * 4/9 + 4) = 3."""
    found = raking([{"t": "a"}, {"t": "a"}, {"t": "a"}, {"t": "b"}], {"t": {"a": 0.5, "b": 0.5}})
    assert found.weights.tolist() == pytest.approx(
        [2 / 3, 2 / 3, 2 / 3, 2]
    ) and found.effective == pytest.approx(3)


def test_raking_that_cannot_be_says_why():
    missing = raking([{"t": "a"}], {"t": {"a": 0.5, "b": 0.5}})
    assert missing.weights is None and "nobody has t in ['b']" in missing.reason
    people = [{"x": "a", "y": "a"}, {"x": "b", "y": "b"}]
    torn = raking(people, {"x": {"a": 0.5, "b": 0.5}, "y": {"a": 0.9, "b": 0.1}})
    assert torn.weights is None and "cannot all be met" in torn.reason
    with pytest.raises(ValueError, match="person 0 has t = 'c'"):
        raking([{"t": "c"}], {"t": {"a": 1.0}})


def test_published_tables_hold_what_the_specification_states():
    table = {row.name: row for row in PUBLISHED}
    assert table["HH-RLHF"].answered == 28 and dict(table["HH-RLHF"].shares) == {
        "white": 0.68,
        "male": 0.54,
    }
    assert (table["InstructGPT"].labelers, table["InstructGPT"].answered) == (40, 19) and dict(
        table["InstructGPT"].shares
    ) == {"Asian": 0.58}
    assert {name: table[name].labelers for name in ("Sparrow", "red team", "TL;DR", "PRISM")} == {
        "Sparrow": 533,
        "red team": 115,
        "TL;DR": 21,
        "PRISM": 1500,
    }


def test_suppress_by_hand():
    """3 of (3, 10, 20) is hidden; alone it would be 33 - 10 - 20, so 10 is too. Nothing small:
    nothing hidden.
    """
    assert suppress([[3, 10, 20]])[0] == [None, None, 20, 33]
    assert suppress([[7, 10], [9, 0]]) == [[7, 10, 17], [9, 0, 9], [16, 10, 26]]
    shown = suppress([[3, 10, 20], [8, 9, 30], [11, 12, 13]])
    assert shown[0][0] is None and sum(cell is None for row in shown for cell in row) == 4


def solutions(shown, limit):
    """Every 2 by 2 table with these shown cells and totals, by brute force: an array [tables, 3,
    3].
    """
    inner = np.array(list(product(range(limit + 1), repeat=4))).reshape(-1, 2, 2)
    rows = np.concatenate([inner, inner.sum(2, keepdims=True)], 2)
    full = np.concatenate([rows, rows.sum(1, keepdims=True)], 1)
    fits = np.ones(len(full), dtype=bool)
    for i, j in product(range(3), repeat=2):
        if shown[i][j] is not None:
            fits &= full[:, i, j] == shown[i][j]
    return full[fits]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=2, max_size=2))
def test_no_small_cell_can_be_computed_from_what_is_shown(table):
    """Over all tables that fit, every hidden count takes more than one value; no count of 1 to k-1
    is shown.
    """
    shown = suppress(table, k=3)
    assert not any(cell is not None and 0 < cell < 3 for row in shown for cell in row)
    if any(cell is None for row in shown for cell in row):
        found = solutions(shown, 8)
        for i, j in product(range(3), repeat=2):
            if shown[i][j] is None:
                assert len(set(found[:, i, j].tolist())) > 1


def test_a_chain_of_subtractions_reveals_nothing():
    """Two blocks joined by one hidden cell: each line has two hidden cells, yet that cell is row
    sums minus column sums.
    """
    rng = np.random.default_rng(3)
    table = rng.integers(20, 40, (4, 4))
    for cell in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3)]:
        table[cell] = 4
    table[1, 2] = 4
    hidden = {
        (i, j)
        for i, row in enumerate(suppress(table))
        for j, cell in enumerate(row)
        if cell is None
    }
    assert {(0, 0), (1, 2), (3, 3)} < hidden and len(hidden) > 9


@pytest.mark.parametrize(
    "call",
    [
        lambda: wasserstein([0.5, 0.5], [1.0]),
        lambda: wasserstein([0, 0], [1, 0]),
        lambda: wasserstein([1, 0], [0, 1], [2, 1]),
        lambda: total_variation([-1, 2], [1, 0]),
        lambda: chi_square([1, 1], [1.0, 0.0]),
        lambda: chi_square([0, 0], [0.5, 0.5]),
        lambda: effective_sample_size([0, 0]),
        lambda: raking([], {"t": {"a": 1}}),
        lambda: suppress([[1.5]]),
        lambda: suppress([[-1]]),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(ValueError):
        call()
